use super::*;
use crate::{ApplyApp, Availability, Timestamp, Transition};

fn delete(app: &str) -> Change {
    Change::DeleteApp { app: AppName::parse(app).unwrap(), if_version: None }
}

fn apply(apps: &[&str]) -> Change {
    let apply = |name: &&str| {
        let text =
            format!("[[app]]\nname = \"{name}\"\nlisten = [{{ port = 80 }}]\ntargets = [\"10.0.0.1:80\"]\n");
        let spec = flotilla_spec::parse(&text, flotilla_spec::Format::Toml).unwrap().remove(0);
        ApplyApp { spec, if_version: None, placed: Vec::new() }
    };
    Change::ApplyApps { apps: apps.iter().map(apply).collect() }
}

fn availability(node: u64) -> Change {
    Change::SetAvailability { node: NodeId(node), availability: Availability::Cordoned }
}

/// Takes batches until nothing is left. Each change is known by its place in `changes`.
fn batches(changes: Vec<(Change, usize)>) -> Vec<Vec<u64>> {
    let waiting = |(place, (change, bytes))| {
        let command = Command { request: None, time: Timestamp(place), change };
        Waiting { command, bytes, answer: oneshot::channel().0 }
    };
    let mut queue: VecDeque<Waiting> = (0..).zip(changes).map(waiting).collect();
    let mut batches = Vec::new();
    while !queue.is_empty() {
        batches.push(take_batch(&mut queue).iter().map(|waiting| waiting.command.time.0).collect());
    }
    batches
}

fn check(changes: Vec<Change>, expected: &[&[u64]]) {
    assert_eq!(batches(changes.into_iter().map(|change| (change, 10)).collect()), expected);
}

#[test]
fn changes_of_different_apps_share_an_entry() {
    check(vec![delete("a"), delete("b"), apply(&["c", "d"]), availability(1)], &[&[0, 1, 2, 3]]);
}

#[test]
fn two_changes_of_one_app_never_share_an_entry() {
    check(vec![delete("a"), delete("a"), delete("b")], &[&[0, 2], &[1]]);
    check(vec![delete("a"), apply(&["b", "a"]), delete("a")], &[&[0], &[1], &[2]]);
    let transition = Transition::Complete { app: AppName::parse("a").unwrap(), generation: 4.into() };
    check(vec![delete("a"), Change::Coordinate { term: 1, transition }], &[&[0], &[1]]);
}

#[test]
fn what_the_coordinator_decides_of_one_app_shares_an_entry() {
    let app = || AppName::parse("a").unwrap();
    let forget = |node| {
        let transition = Transition::Forget { node: NodeId(node), app: app(), generation: 4.into() };
        Change::Coordinate { term: 1, transition }
    };
    check(vec![forget(1), forget(2), forget(3)], &[&[0, 1, 2]]);
    // It neither overtakes a user's change nor is overtaken.
    check(vec![forget(1), delete("a"), forget(2), forget(3)], &[&[0], &[1], &[2, 3]]);
}

#[test]
fn nothing_of_an_app_overtakes_what_waits_before_it() {
    // 1 waits for `a`, so 2 has to wait for 1 although `b` is free.
    check(vec![delete("a"), apply(&["a", "b"]), delete("b")], &[&[0], &[1], &[2]]);
}

#[test]
fn two_changes_of_the_members_never_share_an_entry() {
    check(vec![availability(1), availability(2), delete("a")], &[&[0, 2], &[1]]);
}

#[test]
fn an_entry_is_bounded_in_commands_and_bytes_but_takes_one_large_command() {
    let apps: Vec<(Change, usize)> = (0..COMMANDS_MAX + 6).map(|n| (delete(&format!("app{n}")), 1)).collect();
    let sizes: Vec<usize> = batches(apps).iter().map(Vec::len).collect();
    assert_eq!(sizes, [COMMANDS_MAX, 6]);

    let half = ENTRY_BYTES_MAX / 2;
    let sized = [half, half, 1, 2 * ENTRY_BYTES_MAX, 1];
    let changes =
        (0..).zip(sized).map(|(n, bytes): (u32, usize)| (delete(&format!("app{n}")), bytes)).collect();
    assert_eq!(batches(changes), [vec![0, 1], vec![2, 4], vec![3]]);
}
