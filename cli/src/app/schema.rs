//! `flotilla app schema`: what an app spec may say.

use std::{fs, path::PathBuf};

use flotilla_spec::REFERENCE;

use crate::{
    args::Shell,
    exit::{Exit, Failure},
};

/// Print a spec with every field, its default and what it is for
///
/// As it is printed it is a small spec: all that may be left out is a comment.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app schema | less
  flotilla app schema --file web.toml     to begin with")]
pub(crate) struct Args {
    /// Write it there, and not to stdout; refused if the file exists
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, shell: &Shell) -> Result<Exit, Failure> {
    let Some(path) = &args.file else {
        shell.output.print(REFERENCE)?;
        return Ok(Exit::Done);
    };
    let created = fs::File::create_new(path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, REFERENCE.as_bytes()));
    created.map_err(|err| Failure::new(Exit::Failed, format!("write {}: {err}", path.display())))?;
    shell.output.note(format!("wrote {}", path.display()));
    Ok(Exit::Done)
}
