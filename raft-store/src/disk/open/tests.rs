use openraft::CommittedLeaderId;

use super::*;
use crate::NodeId;

fn identity() -> Identity {
    Identity {
        cluster: ClusterId("c".to_owned()),
        cluster_name: "berlin".to_owned(),
        node: NodeId(7),
        node_name: "n7".to_owned(),
    }
}

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1, NodeId(7)), index)
}

fn scan(purged: Option<u64>, entries: std::ops::Range<u64>) -> Scan {
    Scan {
        owner: Some(identity().owner()),
        purged: purged.map(log_id),
        first: (!entries.is_empty()).then_some(entries.start),
        last: (!entries.is_empty()).then(|| log_id(entries.end - 1)),
        bytes: 0,
    }
}

fn check(scan: &Scan, mark: Option<u64>, committed: Option<u64>, state: Option<u64>) -> Result<(), String> {
    let mark = MarkRecord { last: mark, committed: None };
    judge(&identity(), &mark, committed.map(log_id).as_ref(), scan, state)
}

#[test]
fn a_store_that_has_what_it_acknowledged_may_vote() {
    for (what, scan, mark, committed, state) in [
        ("new", scan(None, 0..0), None, None, None),
        ("entries", scan(None, 0..10), Some(9), Some(9), None),
        ("more than the mark knows of", scan(None, 0..10), Some(5), Some(4), None),
        ("purged to its end", scan(Some(9), 0..0), Some(9), Some(9), Some(9)),
        ("purged behind its snapshot", scan(Some(4), 5..10), Some(9), Some(9), Some(7)),
        ("installed, not yet purged", scan(None, 0..10), Some(99), Some(9), Some(99)),
        ("installed into an empty log", scan(None, 0..0), Some(99), None, Some(99)),
    ] {
        assert_eq!(check(&scan, mark, committed, state), Ok(()), "{what}");
    }
}

#[test]
fn a_store_that_has_forgotten_something_is_lost() {
    let stranger = Scan { owner: Some(b"c/8".to_vec()), ..Scan::default() };
    for (scan, mark, committed, state, expected) in [
        (Scan::default(), None, None, None, "its log came back empty"),
        (stranger, None, None, None, "its log is that of c/8"),
        (scan(None, 0..0), Some(0), None, None, "its log came back empty though it had reached entry 0"),
        (scan(None, 0..9), Some(9), None, None, "its log ends at entry 8 though it had reached 9"),
        (scan(Some(8), 0..0), Some(9), None, Some(8), "its log ends at entry 8 though it had reached 9"),
        (scan(None, 0..9), None, Some(9), None, "its log does not have the committed entry 9"),
        (scan(None, 1..9), None, None, None, "its log begins with entry 1 and not with 0"),
        (scan(Some(3), 5..9), None, None, Some(3), "its log begins with entry 5 and not with 4"),
        (scan(Some(4), 5..9), None, None, None, "entries up to 4 were purged and no good snapshot has them"),
        (
            scan(Some(4), 5..9),
            None,
            None,
            Some(3),
            "entries up to 4 were purged and no good snapshot has them",
        ),
        // The installed snapshot was acknowledged, and is damaged.
        (scan(None, 0..10), Some(99), None, None, "its log ends at entry 9 though it had reached 99"),
    ] {
        assert_eq!(check(&scan, mark, committed, state), Err(expected.to_owned()));
    }
}

#[tokio::test]
async fn an_opening_that_panics_or_hangs_is_a_lost_store() {
    let long = Duration::from_secs(10);
    let panicked = in_thread(long, || panic!("page {} is odd", 3)).await.unwrap_err().to_string();
    assert!(panicked.starts_with("the store is lost: opening it panicked: page 3 is odd"), "{panicked}");

    let (release, released) = std::sync::mpsc::channel::<()>();
    let hung = in_thread(Duration::from_millis(20), move || {
        let _hangs = released.recv();
        Err(OpenError::Absent { dir: PathBuf::new() })
    });
    let hung = hung.await.unwrap_err().to_string();
    assert!(hung.starts_with("the store is lost: it did not open within 0.02 s"), "{hung}");
    drop(release);
}
