//! `flotilla explain CODE`

use serde_json::json;

use crate::{
    args::Shell,
    codes::{CODES, Explained},
    exit::{Exit, Failure},
    output::Style,
};

/// Explain an error code, or list them all
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla explain E0201
  flotilla explain")]
pub(crate) struct Args {
    code: Option<String>,
}

pub(crate) fn run(args: &Args, shell: &Shell) -> Result<Exit, Failure> {
    let Some(code) = &args.code else {
        let all: Vec<Page> = pages().collect();
        let one = |page: &Page| format!("{}  {}", page.code, page.title);
        shell.output.emit(
            "CodeList",
            || all.iter().map(document).collect(),
            |_| all.iter().map(one).collect::<Vec<_>>().join("\n"),
        )?;
        return Ok(Exit::Done);
    };
    let page = pages().find(|page| page.code.eq_ignore_ascii_case(code)).ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("there is no error code `{code}`"))
            .help("`flotilla explain` lists them all")
    })?;
    shell.output.emit("Code", || document(&page), |style| render(&page, style))?;
    Ok(Exit::Done)
}

struct Page {
    code: String,
    title: &'static str,
    text: &'static str,
}

/// The codes of nodes and of this command, and between them those of the spec.
fn pages() -> impl Iterator<Item = Page> {
    let of_nodes = |explained: &Explained| Page {
        code: explained.code.to_owned(),
        title: explained.title,
        text: explained.text,
    };
    let of_specs = (101..200).filter_map(|number| {
        let code = format!("E{number:04}");
        let text = flotilla_spec::explain(&code)?;
        // Its first sentence.
        let title = text.split_once(['.', ':']).map_or(text, |(first, _)| first);
        Some(Page { code, title, text })
    });
    CODES.iter().take(1).map(of_nodes).chain(of_specs).chain(CODES.iter().skip(1).map(of_nodes))
}

fn document(page: &Page) -> serde_json::Value {
    json!({ "code": page.code, "title": page.title, "text": page.text })
}

fn render(page: &Page, style: Style) -> String {
    format!("{}\n\n{}", style.bold(&format!("{}: {}", page.code, page.title)), page.text)
}
