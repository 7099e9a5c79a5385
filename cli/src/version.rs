//! `flotilla version`

use serde_json::json;

use crate::{
    args::Shell,
    exit::{Exit, Failure},
};

pub(crate) fn run(shell: &Shell) -> Result<Exit, Failure> {
    let version = env!("CARGO_PKG_VERSION");
    shell.output.emit("Version", || json!({ "version": version }), |_| format!("flotilla {version}"))?;
    Ok(Exit::Done)
}
