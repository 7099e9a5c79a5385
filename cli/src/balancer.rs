//! `flotilla balancer …`: the load balancers outside that are told where apps serve.

mod add;
mod describe;
mod list;
mod remove;

use clap::Subcommand;

use crate::{
    args::Shell,
    exit::{Exit, Failure},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    List(list::Args),
    Describe(describe::Args),
    /// Tell a load balancer from now on where apps serve
    #[command(
        subcommand,
        after_help = "Examples:
  flotilla balancer add haproxy edge --address 10.0.0.9:9999 --app web
  flotilla balancer add envoy mesh --port 7403
  flotilla balancer add nginx local --node n1
  flotilla balancer add agent-check edge-agents --port 7402
  flotilla balancer add tcp-check web-check --port 7410 --app web"
    )]
    Add(add::Verb),
    Remove(remove::Args),
}

pub(crate) fn run(verb: Verb, shell: &Shell) -> Result<Exit, Failure> {
    match verb {
        Verb::List(args) => shell.block_on(list::run(args, shell)),
        Verb::Describe(args) => shell.block_on(describe::run(args, shell)),
        Verb::Add(verb) => shell.block_on(add::run(verb, shell)),
        Verb::Remove(args) => shell.block_on(remove::run(args, shell)),
    }
}
