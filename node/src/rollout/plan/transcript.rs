//! Rollouts as stories, in `testdata/rollout/*.txt`: what happened, and below `----` what the plan made
//! of it. Read these first; `UPDATE=1` writes what the plan says now, and the diff is to be read.
//!
//! ```text
//! nodes N..                 these are members and report; the first one leads
//! join N..                  further ones, later
//! apply APP listen=P.. ..   settings of [app.rollout] and [app.placement] as key=value; hosts=H,.. of an HTTP port;
//!                           APP .. & APP .. are one change
//! rollback APP | delete APP
//! obey [N..]                these nodes, or all that are up, do what they are asked and report it
//! report N APP/new READINESS [pins=N] [digest=other] [: detail]
//!                           of the wanted generation; APP/old: of the one before it
//! traffic N APP/new requests=N [errors=N] [unreached=N] [resets=N] [slow=N]
//!                           so much more has that generation done there
//! steer APP pause|resume|promote|promote-in-full|abort
//! down N.. | up N..         stops reporting; reports again
//! node N AVAILABILITY
//! drain N deadline=T quiet=T [leaves]   begins a drain of the node
//! load N connections=N quiet=T          what it carries; quiet grows with time
//! leader N                  a new leader, that has heard of nobody yet
//! tick [TIME] [lost]        time passes, then plan and apply until nothing is left to do; or the
//!                           commands of one plan are lost with the leader that made it
//! asked APP                 what each node is asked; * takes the traffic
//! events APP
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use flotilla_proxy::Tally;
use flotilla_raft_store::{
    ApplyApp, Availability, Change, GenerationId, NodeId, Reply, Steer, Step, Transition,
};
use flotilla_spec::AppName;

use super::{
    plan,
    testing::{Log, app, member, obedient, report, spec},
};
use crate::rollout::{
    observed::{GenerationReport, Generations, NodeLoad, Observed, ObservedNode, Readiness},
    placement,
    window::Windows,
};

const SILENCE_MAX: Duration = Duration::from_millis(1500);
/// Plans in a row that find something to do; more is a plan that goes in circles.
const ROUNDS_MAX: usize = 20;

struct Story {
    log: Log,
    leader_for: Duration,
    windows: Windows,
    nodes: BTreeMap<NodeId, Node>,
}

struct Node {
    up: bool,
    /// The leader has heard of it since it leads.
    heard: bool,
    live_for: Duration,
    silent_for: Duration,
    applied: u64,
    connections: u64,
    quiet_for: Duration,
    generations: Generations,
    tallies: BTreeMap<(AppName, GenerationId), Tally>,
}

impl Story {
    fn run(&mut self, line: &str, out: &mut String) {
        let (line, detail) = line.split_once(": ").unwrap_or((line, ""));
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["nodes", names @ ..] => {
                self.log = Log::new();
                self.add(NodeId(1));
                self.join(&names[1..]);
                self.log.take_control(NodeId(1));
            }
            ["join", names @ ..] => self.join(names),
            ["apply", apps @ ..] => {
                let apps = apps.split(|word| *word == "&").map(|app| self.applied(app[0], &app[1..]));
                let apps = apps.collect();
                self.change(Change::ApplyApps { apps }, out);
            }
            ["rollback", name] => {
                let placed = self.log.fleet.members.keys().copied().collect();
                let change = Change::Rollback { app: app(name), to: None, if_version: None, placed };
                self.change(change, out);
            }
            ["delete", name] => self.change(Change::DeleteApp { app: app(name), if_version: None }, out),
            ["obey", names @ ..] => self.obey(names),
            ["report", name, generation, readiness, settings @ ..] => {
                self.report(name, generation, readiness, settings, detail);
            }
            ["traffic", name, generation, settings @ ..] => self.traffic(name, generation, settings),
            ["steer", name, word] => {
                let steer = match *word {
                    "pause" => Steer::Pause,
                    "resume" => Steer::Resume,
                    "promote" => Steer::Promote { full: false },
                    "promote-in-full" => Steer::Promote { full: true },
                    "abort" => Steer::Abort,
                    other => panic!("{other} is no word"),
                };
                self.change(Change::Steer { app: app(name), if_version: None, steer }, out);
            }
            ["down", names @ ..] => self.set_up(names, false),
            ["up", names @ ..] => self.set_up(names, true),
            ["node", name, availability] => {
                let availability = match *availability {
                    "active" => Availability::Active,
                    "cordoned" => Availability::Cordoned,
                    "draining" => Availability::Draining,
                    "left" => Availability::Left,
                    other => panic!("{other} is no availability"),
                };
                self.change(Change::SetAvailability { node: self.node(name), availability }, out);
            }
            ["drain", name, terms @ ..] => {
                let node = self.node(name);
                let time = |key: &str| {
                    let value = terms.iter().find_map(|term| term.strip_prefix(key));
                    humantime::parse_duration(value.unwrap()).unwrap()
                };
                let (deadline, quiet) = (time("deadline="), time("quiet="));
                let leaves = terms.contains(&"leaves");
                self.change(Change::DrainNode { node, deadline, quiet, leaves, cut: false }, out);
            }
            ["load", name, terms @ ..] => {
                let id = self.node(name);
                let node = self.nodes.get_mut(&id).unwrap();
                for term in terms {
                    match term.split_once('=').unwrap() {
                        ("connections", count) => node.connections = count.parse().unwrap(),
                        ("quiet", time) => node.quiet_for = humantime::parse_duration(time).unwrap(),
                        (other, _) => panic!("{other} is no load"),
                    }
                }
            }
            ["leader", name] => {
                self.log.take_control(self.node(name));
                self.leader_for = Duration::ZERO;
                self.windows = Windows::default();
                self.nodes
                    .values_mut()
                    .for_each(|node| (node.heard, node.live_for) = (false, Duration::ZERO));
            }
            ["tick", rest @ ..] => self.tick(rest, out),
            ["asked", name] => self.asked(&app(name), out),
            ["events", name] => {
                let name = app(name);
                let events = self.log.fleet.events.iter().filter(|event| event.app.as_ref() == Some(&name));
                events.for_each(|event| writeln!(out, "{}", event.message).unwrap());
            }
            _ => panic!("what is `{line}`?"),
        }
    }

    fn node(&self, name: &str) -> NodeId {
        let named = self.log.fleet.members.iter().find(|(_, member)| member.name == name);
        *named.unwrap_or_else(|| panic!("there is no node {name}")).0
    }

    fn add(&mut self, node: NodeId) {
        let applied = self.log.fleet.index;
        let silent = Node {
            up: true,
            heard: true,
            live_for: Duration::ZERO,
            silent_for: Duration::ZERO,
            applied,
            connections: 0,
            quiet_for: Duration::ZERO,
            generations: Generations::new(),
            tallies: BTreeMap::new(),
        };
        self.nodes.insert(node, silent);
    }

    fn join(&mut self, names: &[&str]) {
        for name in names {
            let Reply::Member { node } = self.log.apply(Change::AddMember { member: member(name) }).unwrap()
            else {
                panic!("a member is answered")
            };
            self.add(node);
        }
    }

    fn applied(&self, name: &str, settings: &[&str]) -> ApplyApp {
        let mut listen = String::new();
        let (mut rollout, mut placement) = (Vec::new(), Vec::new());
        for setting in settings {
            let (key, value) = setting.split_once('=').unwrap();
            let is_word =
                value.starts_with(|c: char| c.is_ascii_lowercase()) && !["true", "false"].contains(&value);
            let quoted = if is_word || value.ends_with('s') || value.ends_with('m') {
                format!("{value:?}")
            } else {
                value.into()
            };
            match key {
                "listen" => listen = value.to_owned(),
                "hosts" => {
                    let hosts: Vec<&str> = value.split(',').collect();
                    listen = format!(r#"{{"port":{listen},"protocol":"http","hosts":{hosts:?}}}"#);
                }
                "replicas" => placement.push(format!("{key:?}:{quoted}")),
                _ => rollout.push(format!("{key:?}:{quoted}")),
            }
        }
        let (rollout, placement) = (rollout.join(","), placement.join(","));
        let spec = spec(name, &listen, &format!(r#","rollout":{{{rollout}}},"placement":{{{placement}}}"#));
        let fleet = &self.log.fleet;
        let on = |node: &NodeId| fleet.assignments_of(*node, &spec.name).next().is_some();
        let current = fleet.members.keys().copied().filter(on).collect();
        let live = self.nodes.iter().filter(|(_, node)| node.up).map(|(id, _)| *id).collect();
        let placed = placement::place(fleet, &spec, &current, &live);
        ApplyApp { spec, if_version: None, placed }
    }

    /// Where there are several it is said whose something is.
    fn of(&self, app: &AppName) -> String {
        if self.log.fleet.apps.len() > 1 { format!("{app}: ") } else { String::new() }
    }

    fn change(&mut self, change: Change, out: &mut String) {
        match self.log.apply(change) {
            Ok(Reply::Apps { apps }) => {
                for changed in apps {
                    let (outcome, version) =
                        (format!("{:?}", changed.outcome).to_lowercase(), changed.version);
                    let of = self.of(&changed.app);
                    writeln!(out, "{of}{outcome}: version {version}, generation {}", changed.generation)
                        .unwrap();
                }
            }
            Ok(Reply::Done | Reply::Member { .. }) => {}
            Err(rejection) => writeln!(out, "{rejection}").unwrap(),
        }
    }

    fn obey(&mut self, names: &[&str]) {
        let named: BTreeSet<NodeId> = names.iter().map(|name| self.node(name)).collect();
        for (id, node) in self.nodes.iter_mut().filter(|(id, _)| named.is_empty() || named.contains(id)) {
            if !node.up {
                continue;
            }
            let asked = self.log.fleet.assignments.get(id).into_iter().flatten();
            let reports = asked.filter_map(|(key, asked)| {
                Some((key.clone(), Arc::new(obedient(&self.log.fleet, *id, key, asked)?)))
            });
            node.generations = reports.collect();
            node.applied = self.log.fleet.index;
        }
    }

    fn report(&mut self, name: &str, generation: &str, readiness: &str, settings: &[&str], detail: &str) {
        let id = self.node(name);
        let fleet = &self.log.fleet;
        let key = self.key(generation);
        let node = self.nodes.get_mut(&id).unwrap();
        node.applied = fleet.index;
        let readiness = match readiness {
            "preparing" => Readiness::Preparing,
            "ready" => Readiness::Ready,
            "serving" => Readiness::Serving,
            "draining" => Readiness::Draining,
            "rejected" => Readiness::Rejected,
            "gone" => return drop(node.generations.remove(&key)),
            other => panic!("{other} is no readiness"),
        };
        let mut report = GenerationReport { detail: detail.to_owned(), ..report(fleet, &key, readiness) };
        for setting in settings {
            match setting.split_once('=') {
                Some(("pins", pins)) => report.pins = pins.parse().unwrap(),
                Some(("digest", _)) => report.digest = [0; 32],
                _ => panic!("what is `{setting}`?"),
            }
        }
        node.generations.insert(key, Arc::new(report));
    }

    /// More of what a generation did on a node.
    fn traffic(&mut self, name: &str, generation: &str, settings: &[&str]) {
        let (id, key) = (self.node(name), self.key(generation));
        let tally = self.nodes.get_mut(&id).unwrap().tallies.entry(key).or_default();
        for setting in settings {
            let (what, count) = setting.split_once('=').unwrap();
            let count: u64 = count.parse().unwrap();
            match what {
                "requests" => {
                    tally.requests += count;
                    tally.latency[0] += count;
                }
                "errors" => tally.errors += count,
                "unreached" => tally.unreached += count,
                "resets" => tally.resets += count,
                "slow" => {
                    tally.latency[0] -= count;
                    tally.latency[12] += count;
                }
                _ => panic!("what is `{setting}`?"),
            }
        }
    }

    /// `web/new`: what is wanted; `web/old`: what it comes from, or else the one before.
    fn key(&self, generation: &str) -> (AppName, GenerationId) {
        let (name, generation) = generation.split_once('/').unwrap();
        let fleet = &self.log.fleet;
        let wanted = fleet.apps[&app(name)].wanted;
        let of_app = fleet.generations_of(&app(name)).map(|(generation, _)| generation);
        let before = of_app.filter(|generation| *generation < wanted).max();
        let from = fleet.newest_rollout(&app(name)).and_then(|(_, rollout)| rollout.from);
        (app(name), if generation == "new" { wanted } else { from.or(before).unwrap() })
    }

    fn set_up(&mut self, names: &[&str], up: bool) {
        for name in names {
            let id = self.node(name);
            let node = self.nodes.get_mut(&id).unwrap();
            (node.up, node.live_for) = (up, Duration::ZERO);
            // What was heard last was heard a moment ago, and counts as down at once.
            node.silent_for = if up { Duration::ZERO } else { SILENCE_MAX + Duration::from_millis(1) };
        }
    }

    fn observed(&mut self) -> Observed {
        let heard = self.nodes.iter().filter(|(_, node)| node.heard);
        let reports = heard.map(|(id, node)| {
            let age = node.silent_for;
            let (live_for, applied, generations) = (node.live_for, node.applied, node.generations.clone());
            let load = Arc::new(NodeLoad { quiet_for: node.quiet_for, ..NodeLoad::default() });
            let connections = node.connections;
            let tallies = node.tallies.clone();
            (
                *id,
                ObservedNode {
                    age,
                    live_for,
                    applied,
                    connections,
                    load,
                    generations,
                    tallies,
                    ..ObservedNode::default()
                },
            )
        });
        let reports = reports.collect();
        Observed {
            windows: self.windows.look(&self.log.fleet, self.log.fleet.apps.keys(), &reports, self.log.now),
            reports,
            leader_for: self.leader_for,
            silence_max: SILENCE_MAX,
            ..Observed::default()
        }
    }

    fn tick(&mut self, rest: &[&str], out: &mut String) {
        let lost = rest.contains(&"lost");
        let time = rest.iter().find(|word| **word != "lost");
        let time = time.map_or(Duration::ZERO, |time| humantime::parse_duration(time).unwrap());
        self.log.pass(time);
        self.leader_for += time;
        for node in self.nodes.values_mut() {
            node.live_for += time;
            node.quiet_for += time;
            if node.up {
                node.heard |= self.leader_for >= Duration::from_millis(500);
            } else {
                node.silent_for += time;
            }
        }
        for _ in 0..ROUNDS_MAX {
            let observed = self.observed();
            let made = plan(&self.log.fleet, &observed, self.log.now);
            assert_eq!(made, plan(&self.log.fleet, &observed, self.log.now), "the same input, another plan");
            for command in &made.commands {
                let of = command.app().map_or(String::new(), |app| self.of(app));
                writeln!(out, "{}{of}{}", if lost { "lost: " } else { "" }, self.tell(command)).unwrap();
            }
            if lost {
                return;
            }
            if made.commands.is_empty() {
                for (node, why) in &made.drains {
                    writeln!(out, "{} drains: {}", self.log.fleet.node_name(*node), why.join("; ")).unwrap();
                }
                for waiting in &made.waiting {
                    let of = self.of(waiting.app());
                    writeln!(out, "{of}waiting: {}", waiting.display(&self.log.fleet)).unwrap();
                }
                return;
            }
            let term = self.log.fleet.cluster.controller.term;
            for transition in made.commands {
                let change = Change::Coordinate { term, transition };
                self.log.apply(change.clone()).unwrap();
                assert!(self.log.apply(change).is_err(), "a command did something twice");
            }
        }
        panic!("the plan goes in circles");
    }

    fn tell(&self, command: &Transition) -> String {
        let name = |node: &NodeId| self.log.fleet.node_name(*node);
        match command {
            Transition::Advance { generation, steps, why, .. } => {
                let steps = steps.iter().map(|(node, step)| {
                    let step = match step {
                        Step::Preparing { .. } => "preparing".to_owned(),
                        Step::Ready => "ready".to_owned(),
                        Step::Shifting { percent: 100, .. } => "shifting".to_owned(),
                        Step::Shifting { percent, .. } => format!("shifting {percent} %"),
                        Step::Monitoring { percent: 100, .. } => "monitoring".to_owned(),
                        Step::Monitoring { percent, .. } => format!("monitoring {percent} %"),
                        Step::Done => "done".to_owned(),
                        Step::Failed { reason } => format!("failed ({reason})"),
                    };
                    format!("{} {step}", name(node))
                });
                let because = if why.is_empty() { String::new() } else { format!(" ({why})") };
                format!("advance {generation}: {}{because}", steps.collect::<Vec<_>>().join(", "))
            }
            Transition::Complete { generation, .. } => format!("complete {generation}"),
            Transition::RollBack { generation, reason, .. } => format!("roll back {generation}: {reason}"),
            Transition::RolledBack { generation, missing, .. } => match missing.as_str() {
                "" => format!("rolled back {generation}"),
                missing => format!("rolled back {generation}, but {missing}"),
            },
            Transition::Pause { generation, reason, .. } => format!("pause {generation}: {reason}"),
            Transition::Assign { node, generation, desired, .. } => {
                format!("assign {} {generation} {}", name(node), format!("{desired:?}").to_lowercase())
            }
            Transition::Forget { node, generation, .. } => format!("forget {} {generation}", name(node)),
            Transition::Place { node, generation, .. } => format!("place {generation} on {}", name(node)),
            Transition::Note { node, message, .. } => format!("note of {}: {message}", name(node)),
            Transition::ChoosePorts { node, generation, taken, .. } => {
                format!("choose other ports for {generation} on {} than {taken:?}", name(node))
            }
            Transition::AdvanceDrain { node, phase, why } => format!("drain {}: {phase}: {why}", name(node)),
            Transition::TellPresence { node, presence, why } => {
                format!("{} is {}: {why}", name(node), format!("{presence:?}").to_lowercase())
            }
            Transition::Scale { app, replicas, short, reason } => {
                format!("scale {app} to {replicas}, {short} short: {reason}")
            }
        }
    }

    fn asked(&self, app: &AppName, out: &mut String) {
        let fleet = &self.log.fleet;
        for node in fleet.members.keys() {
            let asked = fleet.assignments_of(*node, app).map(|(generation, asked)| {
                let traffic =
                    match fleet.traffic(*node, app).map_or(0, |traffic| traffic.share_of(generation)) {
                        0 => String::new(),
                        100 => "*".to_owned(),
                        percent => format!(" {percent} %"),
                    };
                format!("{generation} {:?}{traffic}", asked.desired).to_lowercase()
            });
            let asked: Vec<String> = asked.collect();
            if !asked.is_empty() {
                writeln!(out, "{}: {}", fleet.node_name(*node), asked.join(", ")).unwrap();
            }
        }
    }
}

/// Every line that is not output stays as it is; output is what the plan says now.
fn retell(text: &str) -> String {
    let mut story = Story {
        log: Log::default(),
        leader_for: Duration::from_secs(60),
        windows: Windows::default(),
        nodes: BTreeMap::new(),
    };
    let mut told = String::new();
    let mut out = String::new();
    let mut is_output = false;
    for line in text.lines().chain([""]) {
        if line.is_empty() {
            if !out.is_empty() {
                write!(told, "----\n{out}").unwrap();
                out.clear();
            }
            is_output = false;
            told.push('\n');
        } else if line == "----" {
            is_output = true;
        } else if !is_output {
            writeln!(told, "{line}").unwrap();
            if !line.starts_with('#') {
                story.run(line, &mut out);
            }
        }
    }
    told.truncate(told.trim_end().len());
    told.push('\n');
    told
}

#[test]
fn every_story_goes_as_it_is_told() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/rollout");
    let mut stories = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let told = retell(&text);
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &told).unwrap();
        } else {
            similar_text(&text, &told, &path);
        }
        stories += 1;
    }
    assert!(stories >= 10, "only {stories} stories in {}", folder.display());
}

fn similar_text(text: &str, told: &str, path: &std::path::Path) {
    let differs = text.lines().zip(told.lines()).position(|(was, is)| was != is);
    if text != told {
        let at = differs.unwrap_or_else(|| text.lines().count().min(told.lines().count()));
        let line = |of: &str| of.lines().nth(at).unwrap_or("(the end)").to_owned();
        panic!("{}:{}: told `{}`, goes `{}`", path.display(), at + 1, line(text), line(told));
    }
}
