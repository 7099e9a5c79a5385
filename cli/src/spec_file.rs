//! Specs from a file, a folder or stdin, and what is wrong with them.
//!
//! What a spec means is `flotilla-spec`'s matter; here are files, and how mistakes in them are shown.

use std::{
    fmt, fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use flotilla_spec::{AppSpec, Diagnostic, Format, conflicts, parse, place};
use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use serde_json::{Value, json};

use crate::{
    exit::{Exit, Failure},
    output::{self, Output, Style},
};

/// A region has at most 10,000 apps; a file beyond this is something else.
const MAX_FILE_BYTES: u64 = 64 << 20;

#[derive(Debug)]
struct Document {
    name: String,
    format: Format,
    text: String,
}

/// A mistake and the file it is in.
struct Mistake<'a> {
    document: &'a Document,
    diagnostic: Diagnostic,
}

/// All apps of a file, of the `*.toml *.yaml *.yml *.json` of a folder, or of stdin (`-`). Mistakes go
/// to stderr, all of them, and the failure that is returned then has nothing to add but exit code 2.
pub(crate) fn read(source: &str, output: &Output) -> Result<Vec<AppSpec>, Failure> {
    let documents = documents(source)?;
    parse_all(&documents).map_err(|mistakes| {
        let shown = match output.format {
            output::Format::Json => {
                output::line("Diagnostics", mistakes.iter().map(Mistake::json).collect()) + "\n"
            }
            output::Format::Table | output::Format::Wide => render(&mistakes, output.stderr),
        };
        eprint!("{shown}");
        Failure::new(Exit::Usage, "")
    })
}

fn documents(source: &str) -> Result<Vec<Document>, Failure> {
    let path = Path::new(source);
    if source == "-" {
        return Ok(vec![document("<stdin>".to_owned(), None, io::stdin().lock())?]);
    }
    if !path.is_dir() {
        return Ok(vec![open(path)?]);
    }
    let mut paths = fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<PathBuf>>>())
        .map_err(|error| unreadable(source, &error))?;
    paths.retain(|path| path.is_file() && format_of(path).is_some() && !is_hidden(path));
    paths.sort();
    if paths.is_empty() {
        return Err(Failure::usage(format!("there is no *.toml, *.yaml, *.yml or *.json in {source}")));
    }
    paths.iter().map(|path| open(path)).collect()
}

fn open(path: &Path) -> Result<Document, Failure> {
    let name = path.display().to_string();
    let file = fs::File::open(path).map_err(|error| unreadable(&name, &error))?;
    document(name, format_of(path), file)
}

fn document(name: String, format: Option<Format>, reader: impl Read) -> Result<Document, Failure> {
    let mut text = String::new();
    reader.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(|error| unreadable(&name, &error))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(Failure::usage(format!("{name} is larger than {} MiB", MAX_FILE_BYTES >> 20)));
    }
    let format = format.unwrap_or_else(|| sniff(&text));
    Ok(Document { name, format, text })
}

fn unreadable(name: &str, error: &io::Error) -> Failure {
    Failure::usage(format!("read {name}: {error}"))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn format_of(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()? {
        "toml" => Some(Format::Toml),
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

/// By the first line that says something: `{`, a `[table]` or `key =`, else YAML.
fn sniff(text: &str) -> Format {
    let lines = text.lines().map(str::trim);
    match lines.filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned).next() {
        None => Format::Toml,
        Some(line) if line.starts_with('{') => Format::Json,
        Some(line) if line.starts_with('[') => Format::Toml,
        Some(line) => match line.find(['=', ':']) {
            Some(at) if line.as_bytes()[at] == b'=' => Format::Toml,
            _ => Format::Yaml,
        },
    }
}

fn parse_all(documents: &[Document]) -> Result<Vec<AppSpec>, Vec<Mistake<'_>>> {
    let mut apps = Vec::new();
    // Where each app came from: its document, and its number there.
    let mut origins = Vec::new();
    let mut mistakes = Vec::new();
    for document in documents {
        match parse(&document.text, document.format) {
            Ok(found) => {
                origins.extend((0..found.len()).map(|index| (document, index)));
                apps.extend(found);
            }
            Err(diagnostics) => {
                mistakes.extend(diagnostics.into_iter().map(|diagnostic| Mistake { document, diagnostic }));
            }
        }
    }
    // A file has no conflicts within itself by now; these are between files.
    for (index, violation) in conflicts(&apps) {
        let (document, index) = origins[index];
        let diagnostic = place(&document.text, document.format, index, violation);
        mistakes.push(Mistake { document, diagnostic });
    }
    if mistakes.is_empty() { Ok(apps) } else { Err(mistakes) }
}

/// With the lines of the file for people at a terminal, one line each otherwise.
fn render(mistakes: &[Mistake<'_>], style: Style) -> String {
    let theme = if style.color { GraphicalTheme::unicode() } else { GraphicalTheme::unicode_nocolor() };
    let graphical = GraphicalReportHandler::new_themed(theme).with_links(false).with_width(110);
    let mut text = String::new();
    for mistake in mistakes {
        if style.color || style.animate {
            let source = NamedSource::new(&mistake.document.name, mistake.document.text.clone());
            let shown = Shown { diagnostic: &mistake.diagnostic, source };
            graphical.render_report(&mut text, &shown).expect("a String takes all text");
            text.push('\n');
        } else {
            text += &mistake.line();
        }
    }
    let count = mistakes.len();
    text + &format!(
        "{count} mistake{}; `flotilla explain CODE` says more\n",
        if count == 1 { "" } else { "s" }
    )
}

impl Mistake<'_> {
    /// The shape that editors and `grep` know.
    fn line(&self) -> String {
        let Diagnostic { code, message, help, line, column, span: _ } = &self.diagnostic;
        let help = help.as_ref().map(|help| format!("\n  help: {help}")).unwrap_or_default();
        format!("{}:{line}:{column}: error[{code}]: {message}{help}\n", self.document.name)
    }

    fn json(&self) -> Value {
        let Diagnostic { code, message, help, line, column, span: _ } = &self.diagnostic;
        json!({
            "file": self.document.name,
            "line": line,
            "column": column,
            "code": code,
            "message": message,
            "help": help,
        })
    }
}

/// A mistake as miette draws it.
struct Shown<'a> {
    diagnostic: &'a Diagnostic,
    source: NamedSource<String>,
}

impl miette::Diagnostic for Shown<'_> {
    fn code<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        Some(Box::new(self.diagnostic.code))
    }

    fn help<'b>(&'b self) -> Option<Box<dyn fmt::Display + 'b>> {
        self.diagnostic.help.as_ref().map(|help| Box::new(help) as _)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&self.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let span = self.diagnostic.span.clone()?;
        // A table or list that goes over lines is shown by its first.
        let text = &self.source.inner()[span.clone()];
        let end = span.start + text.find('\n').unwrap_or(text.len());
        Some(Box::new([LabeledSpan::new_with_span(Some("here".to_owned()), span.start..end)].into_iter()))
    }
}

impl std::error::Error for Shown<'_> {}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.diagnostic.message)
    }
}

impl fmt::Debug for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISSPELT: &str = "[[app]]\nname = \"web\"\nbalanse = \"p2c\"\n";

    fn document(name: &str, text: &str) -> Document {
        let format = format_of(Path::new(name)).unwrap();
        Document { name: name.to_owned(), format, text: text.to_owned() }
    }

    fn rendered(documents: &[Document], style: Style) -> String {
        render(&parse_all(documents).unwrap_err(), style)
    }

    #[test]
    fn at_a_terminal_a_mistake_is_shown_in_its_lines() {
        let style = Style { color: false, animate: true };
        assert_eq!(
            rendered(&[document("a.toml", MISSPELT)], style),
            "E0102

  × unknown field `balanse`
   ╭─[a.toml:3:1]
 2 │ name = \"web\"
 3 │ balanse = \"p2c\"
   · ───┬───
   ·    ╰── here
   ╰────
  help: did you mean `balance`?

1 mistake; `flotilla explain CODE` says more
"
        );
    }

    #[test]
    fn colour_is_used_exactly_when_it_is_asked_for() {
        let files = [document("a.toml", MISSPELT)];
        assert!(rendered(&files, Style { color: true, animate: true }).contains("\x1b["));
        assert!(!rendered(&files, Style { color: false, animate: true }).contains("\x1b["));
        assert!(!rendered(&files, Style::PLAIN).contains("\x1b["));
    }

    #[test]
    fn elsewhere_a_mistake_is_one_line_that_tools_can_read() {
        assert_eq!(
            rendered(&[document("a.toml", MISSPELT)], Style::PLAIN),
            "a.toml:3:1: error[E0102]: unknown field `balanse`\n  help: did you mean `balance`?\n\
             1 mistake; `flotilla explain CODE` says more\n"
        );
    }

    #[test]
    fn as_json_a_mistake_has_its_file_and_place() {
        let files = [document("a.toml", MISSPELT)];
        assert_eq!(
            parse_all(&files).unwrap_err()[0].json(),
            json!({
                "file": "a.toml", "line": 3, "column": 1, "code": "E0102",
                "message": "unknown field `balanse`", "help": "did you mean `balance`?"
            })
        );
    }

    #[test]
    fn apps_of_two_files_that_want_the_same_port_are_a_mistake_in_the_second() {
        let one = |name: &str| format!("[[app]]\nname = \"{name}\"\nlisten = [80]\ntargets = [\"a:1\"]\n");
        let files = [document("a.toml", &one("web")), document("b.toml", &one("blog"))];
        assert_eq!(
            rendered(&files, Style::PLAIN).lines().next(),
            Some("b.toml:3:11: error[E0111]: app `web` listens on port 80 too")
        );
    }

    #[test]
    fn a_folder_is_read_in_the_order_of_its_names() {
        let folder = tempfile::tempdir().unwrap();
        let one = |name: &str, port| {
            format!("{{\"app\":[{{\"name\":\"{name}\",\"listen\":[{port}],\"targets\":[\"a:1\"]}}]}}")
        };
        fs::write(folder.path().join("b.json"), one("second", 2)).unwrap();
        fs::write(folder.path().join("a.yaml"), one("first", 1)).unwrap();
        fs::write(folder.path().join(".c.json"), "hidden").unwrap();
        fs::write(folder.path().join("README.md"), "no spec").unwrap();
        let documents = documents(folder.path().to_str().unwrap()).unwrap();
        let apps = parse_all(&documents).map_err(|mistakes| render(&mistakes, Style::PLAIN)).unwrap();
        assert_eq!(apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>(), ["first", "second"]);
    }

    #[test]
    fn a_folder_without_specs_and_a_missing_file_are_usage_errors() {
        let folder = tempfile::tempdir().unwrap();
        for source in [folder.path().to_str().unwrap(), "/nowhere/web.toml"] {
            assert_eq!(documents(source).unwrap_err().exit, Exit::Usage, "{source}");
        }
    }

    #[test]
    fn what_comes_by_stdin_tells_its_format_by_its_first_words() {
        for (text, format) in [
            ("# comment\n\n[[app]]\n", Format::Toml),
            ("version = 1", Format::Toml),
            ("url = \"http://a\"", Format::Toml),
            ("app:\n  - name: web", Format::Yaml),
            ("---\napp: []", Format::Yaml),
            ("\n {\"app\": []}", Format::Json),
        ] {
            assert_eq!(sniff(text), format, "{text}");
        }
    }
}
