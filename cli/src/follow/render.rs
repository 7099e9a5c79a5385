//! A rollout in words: pure functions over what a node reports.

use std::time::Duration;

use flotilla_api::v1::{Rollout, RolloutStep};

use crate::{
    output::Style,
    view::{clock, plural},
};

/// How a rollout ended for the one who asked for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Serves,
    RolledBack,
    /// It stands where it stood: the spec says `auto_rollback = false`.
    Paused,
    Failed,
    /// Somebody asked for something else meanwhile.
    Superseded,
}

pub(crate) fn ending(rollout: &Rollout) -> Ending {
    match rollout.state.as_str() {
        "completed" => Ending::Serves,
        "rolled back" => Ending::RolledBack,
        "paused" => Ending::Paused,
        "superseded" => Ending::Superseded,
        _ => Ending::Failed,
    }
}

/// What moves where: the first line of a rollout.
pub(crate) fn head(rollout: &Rollout, style: Style) -> String {
    let how = if rollout.strategy.is_empty() { String::new() } else { format!("   {}", rollout.strategy) };
    format!("{}  {}   {}{}", style.bold(&rollout.app), versions(rollout), rollout.state, style.dim(&how))
}

/// How far it is: a line per node, and what is waited for.
pub(crate) fn body(rollout: &Rollout, style: Style) -> String {
    let mut lines = Vec::new();
    let width = rollout.steps.iter().map(|step| step.node.chars().count()).max().unwrap_or(0);
    for step in &rollout.steps {
        let node = format!("{:width$}", step.node);
        let (mark, says) = (mark(step, style), says(step, style));
        let share = match step.percent {
            0 | 100 => step.step.clone(),
            percent => format!("{} {percent} %", step.step),
        };
        let line = format!("  {mark} {node}  {share:<10}  {says}{}", proof(step, style));
        lines.push(line.trim_end().to_owned());
        lines.extend(step.warnings.iter().map(|warning| format!("    {} {warning}", style.yellow("!"))));
    }
    if reason_adds(rollout) {
        lines.push(format!("  {} {}", style.red("reason"), rollout.reason));
    }
    lines.extend(rollout.waiting.iter().map(|why| format!("  {} {why}", style.dim("waiting"))));
    lines.join("\n")
}

/// The last word on a finished rollout.
pub(crate) fn verdict(rollout: &Rollout, elapsed: Duration, style: Style) -> String {
    let (app, version) = (&rollout.app, rollout.to_version);
    let took = clock(elapsed);
    let mut lines = Vec::new();
    match ending(rollout) {
        Ending::Serves => {
            let nodes = plural(rollout.steps.iter().filter(|step| step.step == "done").count(), "node");
            let next = if rollout.from_version == 0 {
                format!("Look at it: flotilla app describe {app}")
            } else {
                format!("Undo: flotilla app rollback {app}")
            };
            lines.push(format!(
                "{} {app} is at version {version} on {nodes} ({took}). {next}",
                style.green("✓")
            ));
        }
        Ending::RolledBack => {
            let back = match rollout.from_version {
                0 => String::new(),
                from => format!(" to {from}"),
            };
            lines.push(format!("{} {app} {version} rolled back{back} after {took}", style.red("✗")));
        }
        Ending::Paused => {
            let done = rollout.steps.iter().filter(|step| step.step == "done").count();
            let (red, all) = (style.red("✗"), rollout.steps.len());
            lines.push(format!("{red} {app} {version} failed after {took} and stands where it stood: on {done} of {all} nodes"));
        }
        Ending::Failed => {
            let serves = match rollout.from_version {
                0 => "nothing served before".to_owned(),
                from => format!("version {from} serves on"),
            };
            lines.push(format!("{} {app} {version} failed after {took}; {serves}", style.red("✗")));
        }
        Ending::Superseded => {
            lines.push(format!("{} {app} {version} was superseded by a later change", style.yellow("!")));
        }
    }
    if ending(rollout) != Ending::Serves && reason_adds(rollout) {
        lines.push(format!("  {}", rollout.reason));
    }
    lines.extend(failures(rollout).into_iter().map(|(why, nodes)| format!("  {}: {why}", nodes.join(" "))));
    for step in rollout.steps.iter().filter(|step| step.step != "failed") {
        let warning = |warning| format!("{} {}: {warning}", style.yellow("!"), step.node);
        lines.extend(step.warnings.iter().map(warning));
    }
    if ending(rollout) == Ending::Serves {
        lines.extend(laggards(rollout).map(|node| {
            format!("{} {node} is down; it will serve version {version} when it is back", style.yellow("!"))
        }));
    } else if ending(rollout) != Ending::Superseded {
        let undo = match ending(rollout) {
            Ending::Paused => format!("      flotilla app rollback {app}"),
            _ => String::new(),
        };
        lines.push(format!("  see  flotilla rollout events {app}      flotilla app describe {app}{undo}"));
    }
    lines.join("\n")
}

/// One `key=value` line for each thing that is new since `before`, for logs.
pub(crate) fn changes(before: Option<&Rollout>, now: &Rollout, time: &str) -> Vec<String> {
    let line = |rest: String| format!("time={time} app={} version={} {rest}", now.app, now.to_version);
    let mut lines = Vec::new();
    for step in &now.steps {
        let known = before.and_then(|before| before.steps.iter().find(|known| known.node == step.node));
        // What becomes of a generation that failed on a node is no news.
        let readiness = |step: &RolloutStep| (step.step != "failed").then(|| step.readiness.clone());
        let same = known.is_some_and(|known| {
            (&known.step, known.percent, readiness(known), known.live, still(&known.detail))
                == (&step.step, step.percent, readiness(step), step.live, still(&step.detail))
        });
        if !same {
            let mut rest =
                format!("node={} phase={} readiness={}", step.node, step.step, quoted(&step.readiness));
            if step.percent != 0 && step.percent != 100 {
                rest += &format!(" percent={}", step.percent);
            }
            if !step.live {
                rest += " live=false";
            }
            if !step.detail.is_empty() {
                rest += &format!(" detail={}", quoted(&step.detail));
            }
            lines.push(line(rest));
        }
        let known_warnings = known.map(|known| known.warnings.as_slice()).unwrap_or_default();
        for warning in step.warnings.iter().filter(|warning| !known_warnings.contains(warning)) {
            lines.push(line(format!("node={} warning={}", step.node, quoted(warning))));
        }
    }
    let known_waiting: Vec<String> =
        before.map(|before| before.waiting.iter().map(|why| still(why)).collect()).unwrap_or_default();
    for why in now.waiting.iter().filter(|why| !known_waiting.contains(&still(why))) {
        lines.push(line(format!("waiting={}", quoted(why))));
    }
    if before.is_none_or(|before| before.state != now.state) {
        let mut rest = format!("phase={}", quoted(&now.state));
        if !now.reason.is_empty() {
            rest += &format!(" reason={}", quoted(&now.reason));
        }
        lines.push(line(rest));
    }
    lines
}

/// Why nodes failed; those that failed alike together.
fn failures(rollout: &Rollout) -> Vec<(&str, Vec<&str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    let failed = rollout.steps.iter().filter(|step| step.step == "failed" && !step.detail.is_empty());
    for step in failed {
        match groups.iter_mut().find(|(why, _)| *why == step.detail) {
            Some((_, nodes)) => nodes.push(&step.node),
            None => groups.push((&step.detail, vec![&step.node])),
        }
    }
    groups
}

/// The reason says more than the steps that failed say themselves.
fn reason_adds(rollout: &Rollout) -> bool {
    !rollout.reason.is_empty() && !failures(rollout).iter().any(|(why, _)| rollout.reason.contains(why))
}

/// Placed nodes that are down: a rollout completes without them.
fn laggards(rollout: &Rollout) -> impl Iterator<Item = &str> {
    rollout.steps.iter().filter(|step| !step.live && step.step != "done").map(|step| step.node.as_str())
}

pub(crate) fn versions(rollout: &Rollout) -> String {
    match rollout.from_version {
        0 => format!("version {}", rollout.to_version),
        from => format!("{from} → {}", rollout.to_version),
    }
}

fn mark(step: &RolloutStep, style: Style) -> String {
    match step.step.as_str() {
        "done" => style.green("✓"),
        "failed" => style.red("✗"),
        "preparing" => style.dim("·"),
        _ => style.yellow("●"),
    }
}

fn says(step: &RolloutStep, style: Style) -> String {
    if !step.live && step.step != "done" {
        return style.yellow("down, not waited for");
    }
    match (step.readiness.as_str(), step.detail.as_str()) {
        ("" | "unknown", "") => String::new(),
        ("" | "unknown", detail) => detail.to_owned(),
        (readiness, "") => readiness.to_owned(),
        (readiness, detail) => format!("{readiness}: {detail}"),
    }
}

/// The digest of what the node has ready or serves, against what was asked for.
fn proof(step: &RolloutStep, style: Style) -> String {
    let short = step.digest.get(..12).unwrap_or(&step.digest);
    match (step.readiness.as_str(), step.digest_matches) {
        ("ready" | "serving", true) => format!("  {}", style.dim(&format!("digest {short}"))),
        ("ready" | "serving", false) if !short.is_empty() => {
            format!("  {}", style.red(&format!("digest {short} is another")))
        }
        _ => String::new(),
    }
}

/// Every node that lives has it ready, or further: what `--wait=ready` waits for.
pub(crate) fn is_ready(rollout: &Rollout) -> bool {
    let mut live = rollout.steps.iter().filter(|step| step.live).peekable();
    let reached = |step: &RolloutStep| !matches!(step.step.as_str(), "preparing" | "failed");
    rollout.state == "progressing" && live.peek().is_some() && live.all(reached)
}

/// The nodes that have not got there yet, and what each says.
pub(crate) fn behind(rollout: &Rollout) -> String {
    let waited_for = rollout.steps.iter().filter(|step| step.step != "done");
    let one = |step: &RolloutStep| {
        let says = says(step, Style::PLAIN);
        if says.is_empty() {
            format!("{} ({})", step.node, step.step)
        } else {
            format!("{} ({says})", step.node)
        }
    };
    waited_for.map(one).collect::<Vec<_>>().join(", ")
}

/// A text without its numbers: a countdown is not news each second.
fn still(text: &str) -> String {
    text.chars().filter(|char| !char.is_ascii_digit()).collect()
}

/// As logfmt wants it: bare words as they are, everything else in quotes.
fn quoted(text: &str) -> String {
    let bare =
        !text.is_empty() && text.chars().all(|char| char.is_ascii_alphanumeric() || "-_.:/".contains(char));
    if bare {
        text.to_owned()
    } else {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(node: &str, step: &str, readiness: &str, detail: &str) -> RolloutStep {
        RolloutStep {
            node: node.to_owned(),
            step: step.to_owned(),
            readiness: readiness.to_owned(),
            detail: detail.to_owned(),
            live: true,
            ..RolloutStep::default()
        }
    }

    fn rollout(state: &str, steps: Vec<RolloutStep>) -> Rollout {
        Rollout {
            app: "web".to_owned(),
            from_version: 12,
            to_version: 13,
            state: state.to_owned(),
            steps,
            ..Rollout::default()
        }
    }

    #[test]
    fn a_node_shows_the_digest_of_what_it_has_and_those_behind_are_named() {
        let digest = "0123456789abcdef".to_owned();
        let proven =
            RolloutStep { digest: digest.clone(), digest_matches: true, ..step("n1", "done", "serving", "") };
        let other = RolloutStep { digest, ..step("n2", "shifting", "serving", "") };
        let slow = step("n3", "preparing", "preparing", "probe `smoke`: HTTP 503, expected 200");
        let mut now = rollout("progressing", vec![proven, other, slow]);
        assert_eq!(
            body(&now, Style::PLAIN),
            "  ✓ n1  done        serving  digest 0123456789ab
  ● n2  shifting    serving  digest 0123456789ab is another
  · n3  preparing   preparing: probe `smoke`: HTTP 503, expected 200"
        );
        assert_eq!(behind(&now), "n2 (serving), n3 (preparing: probe `smoke`: HTTP 503, expected 200)");
        assert!(!is_ready(&now));
        now.steps[2].live = false;
        assert!(is_ready(&now), "a node that is down is not waited for");
        now.state = "rolling back".to_owned();
        assert!(!is_ready(&now));
    }

    const TOOK: Duration = Duration::from_secs(38);

    #[test]
    fn a_rollout_on_its_way_shows_each_node_and_what_is_waited_for() {
        let mut down = step("node-3", "preparing", "unknown", "");
        down.live = false;
        let mut now = rollout(
            "progressing",
            vec![
                step("n1", "done", "serving", ""),
                step("n2", "preparing", "preparing", "no target is up yet"),
                down,
            ],
        );
        now.waiting = vec!["node n2: generation 7 waits for 1 target".to_owned()];
        assert_eq!(head(&now, Style::PLAIN), "web  12 → 13   progressing");
        assert_eq!(
            body(&now, Style::PLAIN),
            "  ✓ n1      done        serving
  · n2      preparing   preparing: no target is up yet
  · node-3  preparing   down, not waited for
  waiting node n2: generation 7 waits for 1 target"
        );
    }

    #[test]
    fn the_last_word_says_what_serves_and_what_to_do_next() {
        let check = |rollout: &Rollout, expected: &str| {
            assert_eq!(verdict(rollout, TOOK, Style::PLAIN), expected);
        };
        let done = || vec![step("n1", "done", "serving", ""), step("n2", "done", "serving", "")];

        let completed = rollout("completed", done());
        check(&completed, "✓ web is at version 13 on 2 nodes (0:38). Undo: flotilla app rollback web");

        let first = Rollout { from_version: 0, to_version: 1, ..rollout("completed", done()) };
        check(&first, "✓ web is at version 1 on 2 nodes (0:38). Look at it: flotilla app describe web");

        let mut laggard = rollout("completed", done());
        laggard.steps[1] = RolloutStep { live: false, ..step("n2", "preparing", "unknown", "") };
        laggard.steps[0].warnings.push("target b:1 does not answer".to_owned());
        check(
            &laggard,
            "✓ web is at version 13 on 1 node (0:38). Undo: flotilla app rollback web
! n1: target b:1 does not answer
! n2 is down; it will serve version 13 when it is back",
        );

        let mut back =
            rollout("rolled back", vec![step("n1", "failed", "rejected", "port 8080: address in use")]);
        back.reason = "1 node did not become ready".to_owned();
        check(
            &back,
            "✗ web 13 rolled back to 12 after 0:38
  1 node did not become ready
  n1: port 8080: address in use
  see  flotilla rollout events web      flotilla app describe web",
        );

        let taken = |node| step(node, "failed", "rejected", "port 8080 is taken");
        let failed = Rollout {
            from_version: 0,
            to_version: 1,
            reason: "node n1: port 8080 is taken; node n2: port 8080 is taken".to_owned(),
            ..rollout("failed", vec![taken("n1"), taken("n2")])
        };
        check(
            &failed,
            "✗ web 1 failed after 0:38; nothing served before
  n1 n2: port 8080 is taken
  see  flotilla rollout events web      flotilla app describe web",
        );

        let mut paused =
            rollout("paused", vec![step("n1", "done", "serving", ""), step("n2", "failed", "", "no")]);
        paused.reason = "n2: no".to_owned();
        check(
            &paused,
            "✗ web 13 failed after 0:38 and stands where it stood: on 1 of 2 nodes
  n2: no
  see  flotilla rollout events web      flotilla app describe web      flotilla app rollback web",
        );

        check(&rollout("superseded", Vec::new()), "! web 13 was superseded by a later change");
    }

    #[test]
    fn a_log_has_one_line_for_each_thing_that_is_new() {
        let before = Rollout {
            waiting: vec!["n1: 3 s of 10 s".to_owned()],
            ..rollout("progressing", vec![step("n1", "monitoring", "serving", "for 3 s")])
        };
        assert_eq!(
            changes(None, &before, "T"),
            [
                "time=T app=web version=13 node=n1 phase=monitoring readiness=serving detail=\"for 3 s\"",
                "time=T app=web version=13 waiting=\"n1: 3 s of 10 s\"",
                "time=T app=web version=13 phase=progressing",
            ]
        );

        let mut countdown = before.clone();
        countdown.waiting = vec!["n1: 4 s of 10 s".to_owned()];
        countdown.steps[0].detail = "for 4 s".to_owned();
        assert!(changes(Some(&before), &countdown, "T").is_empty(), "a countdown is no news");

        let mut failed = rollout("rolling back", vec![step("n1", "failed", "rejected", "said \"no\"")]);
        failed.reason = "n1 rejected it".to_owned();
        assert_eq!(
            changes(Some(&before), &failed, "T"),
            [
                r#"time=T app=web version=13 node=n1 phase=failed readiness=rejected detail="said \"no\"""#,
                r#"time=T app=web version=13 phase="rolling back" reason="n1 rejected it""#,
            ]
        );
    }
}
