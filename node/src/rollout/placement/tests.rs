use std::sync::Arc;

use flotilla_raft_store::{Assignment, Desired, GenerationId, Timestamp};
use flotilla_spec::AppName;
use proptest::{collection::vec, prelude::*};

use super::*;

/// A node as `id zone`, with `region=`, `label=`, `cordoned`, `draining`, `left`, `load=` behind it.
fn fleet(nodes: &[&str]) -> Fleet {
    let mut fleet = Fleet::default();
    for line in nodes {
        let mut words = line.split(' ');
        let node = NodeId(words.next().unwrap().parse().unwrap());
        let mut member = Member {
            name: format!("n{node}"),
            region: "fra".to_owned(),
            zone: words.next().unwrap().to_owned(),
            cluster_address: String::new(),
            admin_address: String::new(),
            labels: BTreeMap::new(),
            port_pool: (20_000, 29_999),
            reserved_ports: Vec::new(),
            availability: Availability::Active,
            binary_version: String::new(),
        };
        for word in words {
            match word.split_once('=').unwrap_or((word, "")) {
                ("cordoned", _) => member.availability = Availability::Cordoned,
                ("draining", _) => member.availability = Availability::Draining,
                ("left", _) => member.availability = Availability::Left,
                ("region", region) => member.region = region.to_owned(),
                ("load", load) => give(&mut fleet, node, load.parse().unwrap()),
                (label, value) => drop(member.labels.insert(label.to_owned(), value.to_owned())),
            }
        }
        fleet.members.insert(node, Arc::new(member));
    }
    fleet
}

/// That many other apps.
fn give(fleet: &mut Fleet, node: NodeId, apps: u64) {
    let assignment =
        Arc::new(Assignment { desired: Desired::Serve, ports: Vec::new(), index: 0, since: Timestamp(0) });
    for number in 0..apps {
        let app = AppName::parse(&format!("other-{number}")).unwrap();
        fleet.assignments.entry(node).or_default().insert((app, GenerationId(1)), assignment.clone());
    }
}

fn spec(placement: &str) -> AppSpec {
    let json = format!(r#"{{"name":"web","listen":[80],"targets":["a:1"],"placement":{placement}}}"#);
    AppSpec::from_json(json.as_bytes()).unwrap()
}

fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

#[track_caller]
fn check(nodes: &[&str], placement: &str, current: &[u64], down: &[u64], expected: &[u64]) {
    let fleet = fleet(nodes);
    let live: BTreeSet<_> = fleet.members.keys().copied().filter(|node| !down.contains(&node.0)).collect();
    let spec = spec(placement);
    let placed = place(&fleet, &spec, &ids(current), &live);
    assert_eq!(placed.iter().map(|node| node.0).collect::<Vec<_>>(), expected);
    let again = place(&fleet, &spec, &placed.iter().copied().collect(), &live);
    assert_eq!(again, placed, "applying a placement changes it");
}

const SIX: [&str; 6] = ["1 a", "2 a", "3 b", "4 b", "5 c", "6 c"];

#[test]
fn all_means_every_node_that_may() {
    check(&SIX, "{}", &[], &[], &[1, 2, 3, 4, 5, 6]);
    check(&SIX, "{}", &[], &[2, 3], &[1, 2, 3, 4, 5, 6]);
    let mixed = ["1 a", "2 a cordoned", "3 b draining", "4 b left", "5 c region=ber", "6 c ssd=yes"];
    check(&mixed, "{}", &[], &[], &[1, 5, 6]);
    check(&mixed, "{}", &[2, 3, 4], &[], &[1, 2, 5, 6]);
    check(&mixed, r#"{"regions":["ber"]}"#, &[1], &[], &[5]);
    check(&mixed, r#"{"require":{"ssd":"yes"}}"#, &[], &[], &[6]);
    check(&mixed, r#"{"require":{"ssd":"no"}}"#, &[], &[], &[]);
}

#[test]
fn a_number_is_spread_over_zones_first() {
    check(&SIX, r#"{"replicas":3}"#, &[], &[], &[1, 3, 5]);
    check(&SIX, r#"{"replicas":4}"#, &[], &[], &[1, 2, 3, 5]);
    check(&SIX, r#"{"replicas":9}"#, &[], &[], &[1, 2, 3, 4, 5, 6]);
    check(&SIX, r#"{"replicas":3,"spread":"node"}"#, &[], &[], &[1, 2, 3]);
}

#[test]
fn the_least_loaded_node_of_a_zone_is_taken() {
    let loaded = ["1 a load=2", "2 a load=1", "3 b load=9", "4 b load=8"];
    check(&loaded, r#"{"replicas":2}"#, &[], &[], &[2, 4]);
    check(&loaded, r#"{"replicas":2,"spread":"node"}"#, &[], &[], &[1, 2]);
}

#[test]
fn what_a_node_has_it_keeps() {
    // In one zone, and down, and crowded: still no reason to move.
    check(&SIX, r#"{"replicas":2}"#, &[1, 2], &[1, 2], &[1, 2]);
    // One more goes where there is none yet.
    check(&SIX, r#"{"replicas":3}"#, &[1, 2], &[], &[1, 2, 3]);
    // Draining takes it away; another node of the same zone is the evenest choice.
    let draining = ["1 a draining", "2 a", "3 b", "4 b"];
    check(&draining, r#"{"replicas":2}"#, &[1, 3], &[], &[2, 3]);
}

#[test]
fn fewer_replicas_leave_the_fullest_zone_and_the_dead_first() {
    check(&SIX, r#"{"replicas":2}"#, &[1, 2, 3], &[], &[1, 3]);
    check(&SIX, r#"{"replicas":2}"#, &[1, 2, 3], &[3], &[1, 2]);
}

#[test]
fn a_node_that_is_down_is_chosen_last() {
    check(&SIX, r#"{"replicas":3}"#, &[], &[1, 3], &[2, 4, 5]);
    check(&SIX, r#"{"replicas":3}"#, &[], &[1, 2, 3, 4, 5], &[1, 3, 6]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn placements_are_even_stable_and_done_once(
        zones in vec((0..4_u8, 0..5_u64), 1..12),
        count in 1..8_u32,
        more in 0..4_u32,
        gone in any::<prop::sample::Index>(),
    ) {
        let nodes: Vec<String> =
            (1..).zip(&zones).map(|(id, (zone, load))| format!("{id} z{zone} load={load}")).collect();
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let mut fleet = fleet(&nodes);
        let live: BTreeSet<_> = fleet.members.keys().copied().collect();
        let wants = |count: u32| spec(&format!(r#"{{"replicas":{count}}}"#));
        let first: BTreeSet<_> = place(&fleet, &wants(count), &BTreeSet::new(), &live).into_iter().collect();
        prop_assert_eq!(first.len(), zones.len().min(count as usize));

        // No zone has two more than another that still has room.
        let in_zone = |of: &BTreeSet<NodeId>, zone: u8| {
            of.iter().filter(|node| zones[usize::try_from(node.0).unwrap() - 1].0 == zone).count()
        };
        for (full, _) in &zones {
            for (other, _) in &zones {
                let has_room = in_zone(&live, *other) > in_zone(&first, *other);
                prop_assert!(!has_room || in_zone(&first, *full) <= in_zone(&first, *other) + 1);
            }
        }

        let again: BTreeSet<_> = place(&fleet, &wants(count), &first, &live).into_iter().collect();
        prop_assert_eq!(&again, &first);
        let grown: BTreeSet<_> = place(&fleet, &wants(count + more), &first, &live).into_iter().collect();
        prop_assert!(grown.is_superset(&first), "more replicas moved one");

        // A node that leaves moves nothing but what it had.
        let leaving = NodeId(gone.index(zones.len()) as u64 + 1);
        fleet.members.remove(&leaving);
        let after: BTreeSet<_> = place(&fleet, &wants(count), &first, &live).into_iter().collect();
        prop_assert!(first.iter().all(|node| *node == leaving || after.contains(node)));
        prop_assert!(!after.contains(&leaving));
    }
}
