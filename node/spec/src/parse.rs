//! A file to specs, or everything that is wrong with it.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use serde::Deserialize;

use crate::{
    ANY_HOST, AppSpec, Diagnostic, Format, Listen, Violation, claims,
    decode::decode,
    diagnostic::{DUPLICATE, MISSING, WRONG_VERSION},
    differ,
    document::{Node, Value},
    validate,
};

const VERSION: i64 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, rename = "version")]
    _version: u32,
    #[serde(default, alias = "Apps")]
    app: Vec<AppSpec>,
}

/// `version = 1` and `[[app]]`s. When the text is not even well formed only that is reported; when
/// a value has the wrong shape, every such value; otherwise everything that `validate` finds and what
/// the apps of one file may not have in common.
pub fn parse(text: &str, format: Format) -> Result<Vec<AppSpec>, Vec<Diagnostic>> {
    let document = Node::parse(text, format).map_err(|errors| {
        sorted(errors.into_iter().map(|error| Diagnostic::syntax(text, error)).collect())
    })?;
    check_version(text, &document)?;
    let File { app: apps, .. } = decode(&document).map_err(|misfits| {
        sorted(misfits.into_iter().map(|misfit| Diagnostic::misfit(text, misfit)).collect())
    })?;
    let mut violations = conflicts(&apps);
    for (index, app) in apps.iter().enumerate() {
        violations.extend(validate(app).into_iter().map(|violation| (index, violation)));
    }
    let mut diagnostics: Vec<_> = violations
        .into_iter()
        .map(|(index, violation)| {
            let span = document.locate(&format!("app[{index}].{}", violation.path));
            Diagnostic::violation(text, span, violation)
        })
        .collect();
    if apps.is_empty() {
        diagnostics.push(Diagnostic::violation(text, 0..0, no_app()));
    }
    if diagnostics.is_empty() { Ok(apps) } else { Err(sorted(diagnostics)) }
}

/// First of all: a later version may have fields that are unknown here.
fn check_version(text: &str, document: &Node) -> Result<(), Vec<Diagnostic>> {
    let Some(node) = document.get("version") else { return Ok(()) };
    let version = match &node.value {
        Value::Integer(version) => Some(*version),
        Value::Plain(version) => version.parse().ok(),
        _ => None,
    };
    match version {
        Some(VERSION) | None => Ok(()),
        Some(version) => {
            let message =
                format!("version {version} of the spec language is not known to this version of flotilla");
            let help = Some("write `version = 1`".to_owned());
            Err(vec![Diagnostic::new(text, node.span.clone(), WRONG_VERSION, message, help)])
        }
    }
}

/// A port of apps that are applied together.
struct Port<'a> {
    /// The app that named it first, and what it asks of it.
    first: usize,
    settings: &'a Listen,
    /// Whose each of its names is.
    owners: HashMap<String, usize>,
}

/// What apps that are applied together may not share, with the index of the app that comes second.
pub fn conflicts(apps: &[AppSpec]) -> Vec<(usize, Violation)> {
    let mut found = Vec::new();
    let mut report = |index, path: String, message| {
        found.push((index, Violation { path, code: DUPLICATE, message, help: None }));
    };
    let mut names = HashSet::new();
    let mut ports: HashMap<(IpAddr, u16), Port<'_>> = HashMap::new();
    for (index, app) in apps.iter().enumerate() {
        if !names.insert(&app.name) {
            report(index, "name".to_owned(), format!("another app is named `{}` too", app.name));
        }
        for (at, listen) in app.listen.iter().enumerate().filter(|(_, listen)| listen.port != 0) {
            let Port { first, settings, owners } = ports
                .entry((listen.address, listen.port))
                .or_insert_with(|| Port { first: index, settings: listen, owners: HashMap::new() });
            // Within one app it is that app's own mistake, and `validate` says so.
            let differ = differ(settings, listen).filter(|_| *first != index);
            let taken = claims(app, listen).into_iter().find_map(|host| {
                let owner = *owners.entry(host.clone()).or_insert(index);
                (owner != index).then_some((host, owner))
            });
            let other =
                |owner: usize| format!("app `{}` listens on port {} too", apps[owner].name, listen.port);
            let message = match (differ, taken) {
                (Some(why), _) => format!("{}, and {why}", other(*first)),
                (None, Some((host, owner))) if host == ANY_HOST => other(owner),
                (None, Some((host, owner))) => format!("{}, for `{host}`", other(owner)),
                (None, None) => continue,
            };
            report(index, format!("listen[{at}].port"), message);
        }
    }
    found
}

/// A violation that was found later, at its place in the text that app number `index` came from.
pub fn place(text: &str, format: Format, index: usize, violation: Violation) -> Diagnostic {
    let span = match Node::parse(text, format) {
        Ok(document) => document.locate(&format!("app[{index}].{}", violation.path)),
        Err(_) => 0..0,
    };
    Diagnostic::violation(text, span, violation)
}

fn no_app() -> Violation {
    Violation {
        path: "app".to_owned(),
        code: MISSING,
        message: "there is no app in the file".to_owned(),
        help: Some("an app begins with the line `[[app]]`, its `name`, `listen` and `targets`".to_owned()),
    }
}

fn sorted(mut diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    diagnostics.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
    diagnostics
}
