//! The program as a shell sees it, with no fleet in reach.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    net::TcpListener,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn flotilla(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flotilla"));
    command.args(args).env_remove("FLOTILLA_ADDR").env_remove("NO_COLOR").stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    flotilla(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Every verb below `path`, as its help lists them.
fn verbs(path: &[String]) -> Vec<Vec<String>> {
    let mut args: Vec<&str> = path.iter().map(String::as_str).collect();
    args.push("--help");
    let help = stdout(&run(&args));
    let Some((_, commands)) = help.split_once("\nCommands:\n") else { return vec![path.to_owned()] };
    let mut found = vec![path.to_owned()];
    for line in commands.lines().take_while(|line| !line.is_empty()) {
        // Names stand two spaces in; what is further in continues a description.
        let name = line
            .strip_prefix("  ")
            .filter(|line| !line.starts_with(' '))
            .and_then(|line| line.split(' ').next());
        if let Some(name) = name.filter(|name| *name != "help") {
            found.extend(verbs(&[path, &[name.to_owned()]].concat()));
        }
    }
    found
}

#[test]
fn the_help_of_every_verb_has_an_example() {
    let verbs = verbs(&[]);
    assert!(verbs.len() > 20, "{verbs:?}");
    for verb in verbs {
        let mut args: Vec<&str> = verb.iter().map(String::as_str).collect();
        args.push("--help");
        let output = run(&args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(stdout(&output).contains("Examples:\n  "), "{args:?}: {}", stdout(&output));
    }
}

#[test]
fn what_cannot_be_parsed_is_a_usage_error_with_a_suggestion() {
    for (args, suggestion) in [
        (&["app", "aply"][..], "'apply'"),
        (&["app", "list", "--no-header"], "--no-headers"),
        (&["app", "list", "-o", "jso"], "json"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(suggestion), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn a_fleet_that_is_not_there_is_exit_3_with_the_address_and_what_to_do() {
    // Bound and closed: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    for args in
        [&["app", "list"][..], &["cluster", "status"], &["cluster", "init"], &["app", "rollback", "web"]]
    {
        let output = run(&[args, &["--addr", &address]].concat());
        assert_eq!(output.status.code(), Some(3), "{args:?}: {}", stderr(&output));
        let said = stderr(&output);
        assert!(said.starts_with(&format!("error[E0400]: no node answers at {address}\n")), "{said}");
        assert!(said.contains("connection refused"), "{said}");
        assert!(said.contains("flotilla dev"), "{said}");
        assert_eq!(stdout(&output), "");
    }
}

#[test]
fn with_json_an_error_is_one_line_of_json_on_stderr() {
    let output = run(&["app", "list", "--addr", "127.0.0.1:1", "-o", "json"]);
    let said: Value = serde_json::from_str(stderr(&output).trim()).unwrap();
    assert_eq!(said["kind"], "Error");
    assert_eq!(said["code"], "E0400");
    assert_eq!(said["exit"], 3);
}

#[test]
fn the_address_comes_from_the_environment_unless_a_flag_says_otherwise() {
    let from_env = flotilla(&["app", "list"]).env("FLOTILLA_ADDR", "127.0.0.1:1").output().unwrap();
    assert!(stderr(&from_env).contains("127.0.0.1:1:"), "{}", stderr(&from_env));
    let from_flag =
        flotilla(&["app", "list", "--addr", "127.0.0.1:2"]).env("FLOTILLA_ADDR", "127.0.0.1:1").output();
    assert!(stderr(&from_flag.unwrap()).contains("127.0.0.1:2:"));
}

#[test]
fn completions_of_every_shell_know_the_verbs() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(&["completion", shell]);
        assert_eq!(output.status.code(), Some(0));
        assert!(stdout(&output).contains("rollback"), "{shell}");
    }
}

#[test]
fn every_code_is_listed_and_explained() {
    let list = stdout(&run(&["explain"]));
    assert!(list.lines().count() > 30, "{list}");
    for line in list.lines() {
        let code = line.split(' ').next().unwrap();
        let output = run(&["explain", &code.to_lowercase()]);
        assert_eq!(output.status.code(), Some(0), "{code}");
        assert!(stdout(&output).starts_with(&format!("{code}: ")), "{code}");
    }
    assert_eq!(run(&["explain", "E9999"]).status.code(), Some(6));
}

#[test]
fn the_version_is_data() {
    assert_eq!(stdout(&run(&["version"])), format!("flotilla {}\n", env!("CARGO_PKG_VERSION")));
    let json: Value = serde_json::from_slice(&run(&["version", "-o", "json"]).stdout).unwrap();
    assert_eq!(json["apiVersion"], "flotilla/v1");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    for args in [&["completion", "zsh"][..], &["explain"], &["--help"]] {
        let mut child = flotilla(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(stderr(&output), "", "{args:?}");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn colour_appears_where_it_is_wanted_and_nowhere_else() {
    let error = |args: &[&str], env: Option<(&str, &str)>| {
        let mut command = flotilla(&[&["app", "list", "--addr", "127.0.0.1:1"], args].concat());
        command.envs(env);
        stderr(&command.output().unwrap()).contains('\x1b')
    };
    // Here stderr is a pipe: no colour by itself.
    assert!(!error(&[], None));
    assert!(error(&["--color", "always"], None));
    assert!(error(&["--color", "always"], Some(("NO_COLOR", "1"))));
    assert!(!error(&["--color", "never"], Some(("CLICOLOR_FORCE", "1"))));
}

#[test]
fn a_node_with_settings_that_cannot_work_says_which() {
    let output = run(&["node", "run", "--cluster-listen", ":7400", "--data-dir", "/nonexistent"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("advertise"), "{}", stderr(&output));
    let output = run(&["node", "run", "-f", "/nonexistent/node.toml"]);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("read /nonexistent/node.toml"), "{}", stderr(&output));
}
