//! The `flotilla` command: the user's hand on a fleet, and the way a node is started.
//!
//! One verb, one file: `app apply` is `app/apply.rs`. A verb asks a node over gRPC, and renders the
//! answer with functions that are pure over the protobuf messages. What a fleet decides is decided
//! by its nodes, never here. Only `node.rs`, `proxy.rs` and `dev.rs` know the crate that nodes are made of.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "printing is what a command line does")]

mod app;
mod args;
mod balancer;
mod bench;
mod client;
mod cluster;
mod codes;
mod completion;
mod convert;
mod dev;
mod events;
mod exit;
mod explain;
mod follow;
mod json;
mod lb;
mod node;
mod output;
mod proxy;
mod rollout;
mod spec_file;
mod table;
mod version;
mod view;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use crate::{
    args::{Cli, Shell, Verb},
    exit::{Exit, Failure},
};

/// The whole program: reads the command line, runs the verb, reports how it ended.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(answer) => {
            // Help and usage errors alike; a reader that went away is no failure.
            drop(answer.print());
            return ExitCode::from(u8::try_from(answer.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    let shell = cli.globals.shell();
    match run(cli.verb, &shell) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if !failure.is_silent() {
                shell.output.error(&failure);
            }
            failure.exit.into()
        }
    }
}

fn run(verb: Verb, shell: &Shell) -> Result<Exit, Failure> {
    match verb {
        Verb::Dev(args) => dev::run(args, shell),
        Verb::Node(verb) => node::run(verb, shell),
        Verb::Proxy(args) => proxy::run(args, shell),
        Verb::Cluster(verb) => cluster::run(verb, shell),
        Verb::App(verb) => app::run(verb, shell),
        Verb::Rollout(verb) => rollout::run(verb, shell),
        Verb::Balancer(verb) => balancer::run(verb, shell),
        Verb::Lb(verb) => lb::run(verb, shell),
        Verb::Events(args) => shell.block_on(events::run(args, shell)),
        Verb::Bench(verb) => bench::run(verb, shell),
        Verb::Ping(args) => bench::run(bench::Verb::Ping(args), shell),
        Verb::Balance(args) => bench::run(bench::Verb::Balance(args), shell),
        Verb::Simulate(args) => bench::run(bench::Verb::Simulate(args), shell),
        Verb::Completion(args) => completion::run(&args, shell),
        Verb::Explain(args) => explain::run(&args, shell),
        Verb::Version => version::run(shell),
    }
}
