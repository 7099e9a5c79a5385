//! `flotilla app convert`: the configuration of another proxy as specs.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use flotilla_spec::{AppName, AppSpec, Listen, Target, conflicts, file_to_toml, validate};
use serde::Deserialize;
use serde_json::Value;

use crate::{
    args::Shell,
    exit::{Exit, Failure},
};

/// Turn the configuration of another proxy into specs
///
/// The specs go to stdout. What could not be taken over as it was is said on stderr; when the
/// result needs a correction before it can be applied, the exit code is 1.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla app convert --from fproxy config.json > apps.toml
  flotilla app convert --from fproxy config.json | flotilla app apply -f -")]
pub(crate) struct Args {
    /// What the file was written for
    #[arg(long, value_enum)]
    from: Source,
    file: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Source {
    Fproxy,
}

#[derive(Debug, PartialEq)]
struct Converted {
    apps: Vec<AppSpec>,
    /// What is different now, and why.
    notes: Vec<String>,
    /// What has to be corrected by hand.
    mistakes: Vec<String>,
}

pub(crate) fn run(args: &Args, shell: &Shell) -> Result<Exit, Failure> {
    let name = args.file.display();
    let text =
        fs::read_to_string(&args.file).map_err(|error| Failure::usage(format!("read {name}: {error}")))?;
    let converted = match args.from {
        Source::Fproxy => fproxy(&text),
    }
    .map_err(|error| Failure::usage(format!("{name} is not a configuration of fproxy: {error}")))?;
    shell.output.print(&file_to_toml(&converted.apps))?;
    for note in &converted.notes {
        shell.output.note(format!("note: {note}"));
    }
    match converted.mistakes.as_slice() {
        [] => Ok(Exit::Done),
        mistakes => Err(mistakes.iter().fold(
            Failure::new(Exit::Failed, "the specs need a correction before they can be applied"),
            |failure, mistake| failure.help(mistake.clone()),
        )),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Fproxy {
    apps: Vec<FproxyApp>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct FproxyApp {
    name: String,
    ports: Vec<u16>,
    targets: Vec<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

fn fproxy(text: &str) -> Result<Converted, serde_json::Error> {
    let Fproxy { apps: old, rest } = serde_json::from_str(text)?;
    let mut apps = Vec::new();
    let mut notes: Vec<_> = rest.keys().map(|key| left_out(key, "")).collect();
    let mut taken = BTreeSet::new();
    for FproxyApp { name: old_name, ports, targets, rest } in old {
        let name = app_name(&old_name, &taken);
        if name.as_str() != old_name {
            notes.push(format!(
                "app `{old_name}` is `{name}` now: a name is a DNS label, and there is one of each"
            ));
        }
        notes.extend(rest.keys().map(|key| left_out(key, &format!(" of app `{name}`"))));
        taken.insert(name.clone());
        apps.push(AppSpec {
            name,
            description: String::new(),
            labels: BTreeMap::new(),
            listen: ports.into_iter().map(|port| Listen { port, ..Listen::default() }).collect(),
            targets: targets.into_iter().map(|address| Target::new(address, 100)).collect(),
            pool: BTreeMap::new(),
            resolve: Default::default(),
            balance: Default::default(),
            check: Default::default(),
            probe: Vec::new(),
            outlier: Default::default(),
            breaker: None,
            retry: Default::default(),
            timeouts: Default::default(),
            limits: Default::default(),
            upstream: Default::default(),
            route: Vec::new(),
            compression: None,
            layers: Vec::new(),
            access: Default::default(),
            placement: Default::default(),
            rollout: Default::default(),
        });
    }
    let within = apps
        .iter()
        .enumerate()
        .flat_map(|(index, app)| validate(app).into_iter().map(move |violation| (index, violation)));
    let mistakes = within
        .chain(conflicts(&apps))
        .map(|(index, violation)| {
            format!("app `{}`, `{}`: {}", apps[index].name, violation.path, violation.message)
        })
        .collect();
    Ok(Converted { apps, notes, mistakes })
}

fn left_out(key: &str, place: &str) -> String {
    format!("`{key}`{place} has no counterpart and was left out")
}

/// The closest DNS label that is not taken yet.
fn app_name(name: &str, taken: &BTreeSet<AppName>) -> AppName {
    let mut label = String::new();
    for c in name.chars().map(|c| c.to_ascii_lowercase()) {
        match c {
            'a'..='z' | '0'..='9' => label.push(c),
            // One for each run of anything else, and none at the start.
            _ if label.is_empty() || label.ends_with('-') => {}
            _ => label.push('-'),
        }
    }
    // Leaves room for a number behind it.
    label.truncate(58);
    let label = match label.trim_end_matches('-') {
        "" => "app",
        label => label,
    };
    let exact = AppName::parse(name).ok();
    let numbered = (2..).map(|number| format!("{label}-{number}"));
    exact
        .into_iter()
        .chain([label.to_owned()].into_iter().chain(numbered).filter_map(|label| AppName::parse(&label).ok()))
        .find(|name| !taken.contains(name))
        .expect("the numbers go on for longer than a file")
}

#[cfg(test)]
mod tests {
    use flotilla_spec::{Format, Protocol, parse};

    use super::*;

    const SEED: &str = include_str!("../testdata/fproxy.json");

    #[test]
    fn the_configuration_that_fproxy_came_with_becomes_three_apps_on_twelve_ports() {
        let Converted { apps, notes, mistakes } = fproxy(SEED).unwrap();
        assert_eq!((notes, mistakes), (vec![], vec![]));
        assert_eq!(
            apps.iter().map(|app| app.name.as_str()).collect::<Vec<_>>(),
            ["five-thousand", "six-thousand", "seven-thousand"]
        );
        let listen: Vec<_> = apps.iter().flat_map(|app| &app.listen).collect();
        assert_eq!(listen.len(), 12);
        assert!(listen.iter().all(|listen| listen.protocol == Protocol::Tcp));
        assert_eq!(apps.iter().map(|app| app.targets.len()).sum::<usize>(), 7);
        assert_eq!(parse(&file_to_toml(&apps), Format::Toml).unwrap(), apps);
        // The same file is a spec as it is.
        assert_eq!(parse(SEED, Format::Json).unwrap(), apps);
    }

    #[test]
    fn a_name_becomes_the_closest_dns_label_and_stays_unique() {
        let mut taken = BTreeSet::new();
        for (old, new) in [
            ("web", "web"),
            ("Web", "web-2"),
            ("Web Shop (EU)", "web-shop-eu"),
            ("web_shop_eu", "web-shop-eu-2"),
            ("…", "app"),
            ("", "app-2"),
            ("web-3", "web-3"),
            ("WEB", "web-4"),
        ] {
            let name = app_name(old, &taken);
            assert_eq!(name.as_str(), new, "{old}");
            taken.insert(name);
        }
        assert_eq!(app_name(&"x".repeat(200), &taken).as_str().len(), 58);
    }

    #[test]
    fn what_cannot_be_taken_over_is_said() {
        let text = r#"{ "Debug": true, "Apps": [
            { "Name": "a_b", "Ports": [80, 80], "Targets": ["nohost"], "Sticky": 1 },
            { "Name": "c", "Ports": [80], "Targets": [] }
        ] }"#;
        let Converted { apps, notes, mistakes } = fproxy(text).unwrap();
        assert_eq!(apps.len(), 2);
        assert_eq!(
            notes,
            [
                "`Debug` has no counterpart and was left out",
                "app `a_b` is `a-b` now: a name is a DNS label, and there is one of each",
                "`Sticky` of app `a-b` has no counterpart and was left out",
            ]
        );
        assert_eq!(
            mistakes,
            [
                "app `a-b`, `listen[1].port`: port 80 is listed twice for the same address",
                "app `a-b`, `targets[0].address`: `nohost` is not a target: it has no port",
                "app `c`, `targets`: the app has no targets",
                "app `c`, `listen[0].port`: app `a-b` listens on port 80 too",
            ]
        );
    }
}
