//! Every file in `testdata` next to what is said about it. `UPDATE=1 cargo test` writes the
//! transcripts anew; the difference is then read before it is committed.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::{fmt::Write as _, fs, path::Path};

use flotilla_spec::{Diagnostic, Format, file_to_toml, parse};

fn transcript(name: &str, text: &str) -> String {
    let format = match name.rsplit('.').next() {
        Some("toml") => Format::Toml,
        Some("yaml") => Format::Yaml,
        _ => Format::Json,
    };
    match parse(text, format) {
        Ok(apps) => file_to_toml(&apps),
        Err(diagnostics) => diagnostics.iter().map(|diagnostic| marked(text, diagnostic)).collect(),
    }
}

/// The first line that the span touches, with the span underlined.
fn marked(text: &str, diagnostic: &Diagnostic) -> String {
    let Diagnostic { code, message, help, span, line, column } = diagnostic;
    let mut out = format!("{line}:{column} {code} {message}\n");
    let source = text.lines().nth(line - 1).unwrap_or("");
    let span = span.clone().unwrap_or(0..0);
    let width = text[span].lines().next().map_or(0, |marked| marked.chars().count()).max(1);
    writeln!(out, "    {source}\n    {:indent$}{:^<width$}", "", "", indent = column - 1).unwrap();
    if let Some(help) = help {
        writeln!(out, "    help: {help}").unwrap();
    }
    out
}

#[test]
fn every_mistake_is_reported_where_it_stands_with_what_to_write_instead() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata");
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.ends_with(".txt") {
            continue;
        }
        let transcript = transcript(name, &fs::read_to_string(&path).unwrap());
        let expected = folder.join(format!("{name}.txt"));
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&expected, &transcript).unwrap();
        }
        assert_eq!(transcript, fs::read_to_string(&expected).unwrap_or_default(), "{name}");
        seen += 1;
    }
    assert!(seen >= 16, "only {seen} files");
}

#[test]
fn every_code_that_is_given_is_explained() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testdata");
    let mut codes: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .flat_map(|text| {
            text.split_whitespace()
                .filter(|word| word.starts_with("E01"))
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect();
    codes.sort();
    codes.dedup();
    assert!(codes.len() >= 11, "{codes:?}");
    for code in codes {
        assert!(flotilla_spec::explain(&code).is_some(), "{code}");
    }
}
