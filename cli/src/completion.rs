//! `flotilla completion SHELL`

use clap::CommandFactory as _;
use clap_complete::Shell as Dialect;

use crate::{
    args::{Cli, Shell},
    exit::{Exit, Failure},
};

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  source <(flotilla completion bash)
  flotilla completion zsh > ~/.zfunc/_flotilla
  flotilla completion fish > ~/.config/fish/completions/flotilla.fish")]
pub(crate) struct Args {
    #[arg(value_enum)]
    dialect: Dialect,
}

pub(crate) fn run(args: &Args, shell: &Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.dialect, &mut Cli::command(), "flotilla", &mut script);
    shell.output.print(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}
