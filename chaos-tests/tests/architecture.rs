//! Who may know whom. A rule that is not checked here is a wish.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "what goes wrong fails the test, and what it measured is said"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use flotilla_chaos_tests::peers;

/// What each of our crates may import of the others.
const MAY_IMPORT: [(&str, &[&str]); 7] = [
    ("flotilla-spec", &[]),
    ("flotilla-api", &[]),
    ("flotilla-proxy", &[]),
    ("flotilla-raft-store", &["flotilla-spec"]),
    ("flotilla-node", &["flotilla-spec", "flotilla-api", "flotilla-proxy", "flotilla-raft-store"]),
    ("flotilla-cli", &["flotilla-spec", "flotilla-api", "flotilla-node"]),
    (
        "flotilla-chaos-tests",
        &[
            "flotilla-spec",
            "flotilla-api",
            "flotilla-proxy",
            "flotilla-raft-store",
            "flotilla-node",
            "flotilla-cli",
        ],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Of each of our crates: which of our crates it depends on, for whatever purpose.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let metadata = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).unwrap();
    let name = |value: &serde_json::Value| value["name"].as_str().unwrap().to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    let ours: BTreeSet<_> = packages.iter().map(name).collect();
    let imports = |package: &serde_json::Value| {
        package["dependencies"]
            .as_array()
            .unwrap()
            .iter()
            .map(name)
            .filter(|name| ours.contains(name))
            .collect()
    };
    packages.iter().map(|package| (name(package), imports(package))).collect()
}

fn sources(directory: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "toml") {
            found.push((path.clone(), fs::read_to_string(path).unwrap()));
        }
    }
    found
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_ascii_alphabetic()).filter(|word| !word.is_empty())
}

#[test]
fn crates_import_only_those_they_may_know() {
    let imports = imports();
    let rules: BTreeMap<_, _> = MAY_IMPORT.into_iter().collect();
    for (name, imported) in &imports {
        let allowed = rules
            .get(name.as_str())
            .unwrap_or_else(|| panic!("{name} is a new crate: say whom it may import"));
        for other in imported {
            assert!(allowed.contains(&other.as_str()), "{name} must not import {other}");
        }
    }
    assert_eq!(imports.len(), rules.len(), "a rule names a crate that is gone: {:?}", imports.keys());
}

#[test]
fn the_command_line_knows_nodes_only_where_it_starts_them() {
    let cli = root().join("cli/src");
    let knows = |(path, text): (PathBuf, String)| {
        text.contains("flotilla_node").then(|| path.strip_prefix(&cli).unwrap().to_str().unwrap().to_owned())
    };
    let knowing: BTreeSet<_> = sources(&cli).into_iter().filter_map(knows).collect();
    assert!(knowing.contains("node.rs"), "it starts nodes: {knowing:?}");
    for path in &knowing {
        assert!(
            matches!(path.as_str(), "node.rs" | "proxy.rs" | "dev.rs") || path.starts_with("dev/"),
            "cli/src/{path} knows flotilla_node"
        );
    }
}

#[test]
fn the_data_plane_does_not_know_that_there_is_a_cluster() {
    // Whose calls it carries is no secret to a test of it.
    let knows_tonic = |path: &Path| path.ends_with("tests/it/grpc.rs") || path.ends_with("Cargo.toml");
    for (path, text) in sources(&root().join("node/proxy")) {
        for word in words(&text) {
            let word = word.to_ascii_lowercase();
            let is_known = word == "tonic" && knows_tonic(&path);
            assert!(
                is_known || !["raft", "openraft", "tonic", "protobuf"].contains(&word.as_str()),
                "`{word}` in {}",
                path.display()
            );
        }
    }
}

#[test]
fn the_top_level_is_the_map_of_the_house() {
    let Some(git) = peers::program("git") else { return };
    let listed = Command::new(git).args(["ls-files", "-z"]).current_dir(root()).output().unwrap();
    if !listed.status.success() {
        eprintln!("SKIPPED: not a git checkout: {}", String::from_utf8_lossy(&listed.stderr));
        return;
    }
    let listed = String::from_utf8(listed.stdout).unwrap();
    let top: BTreeSet<_> = listed
        .split('\0')
        .filter_map(|path| path.split('/').next())
        .filter(|name| !name.is_empty() && !name.starts_with('.'))
        .collect();
    let expected =
        ["Cargo.toml", "Cargo.lock", "README.md", "raft-store", "node", "cli", "deploy", "chaos-tests"];
    assert_eq!(top, BTreeSet::from(expected));
}
