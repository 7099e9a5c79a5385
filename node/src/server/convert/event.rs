//! What happened, as people see it. PURE.

use flotilla_api::v1;
use flotilla_raft_store::{EVENTS_MAX, Event, Fleet, Timestamp};
use flotilla_spec::AppName;

/// Which events somebody wants.
pub(crate) struct EventsAsked {
    pub(crate) app: Option<AppName>,
    /// Of log entries after this one.
    pub(crate) after: u64,
    pub(crate) since: Timestamp,
}

/// Oldest first.
pub(crate) fn events_to_pb(fleet: &Fleet, asked: &EventsAsked) -> v1::EventsReply {
    let EventsAsked { app, after, since } = asked;
    let wanted = |event: &&Event| event.time >= *since && (app.is_none() || event.app == *app);
    let oldest = fleet.events.front().filter(|_| fleet.events.len() >= EVENTS_MAX);
    v1::EventsReply {
        events: fleet
            .events
            .iter()
            // Entries are applied in the order of the log.
            .skip_while(|event| event.index <= *after)
            .map(AsRef::as_ref)
            .filter(wanted)
            .map(|event| event_to_pb(fleet, event))
            .collect(),
        index: fleet.index,
        forgotten: oldest.is_some_and(|oldest| oldest.index > after + 1 && oldest.time > *since),
    }
}

fn event_to_pb(fleet: &Fleet, event: &Event) -> v1::Event {
    v1::Event {
        index: event.index,
        time_ms: event.time.0,
        app: event.app.as_ref().map(ToString::to_string).unwrap_or_default(),
        node: event.node.map(|node| fleet.node_name(node)).unwrap_or_default(),
        message: event.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use flotilla_raft_store::NodeId;

    use super::*;

    /// Event `i` of entry `i`, at `i` ms, about the app if `i` is even.
    fn fleet(indexes: impl Iterator<Item = u64>) -> Fleet {
        let app = AppName::parse("web").unwrap();
        let event = |index: u64| Event {
            index,
            time: Timestamp(index),
            app: index.is_multiple_of(2).then(|| app.clone()),
            node: (index == 3).then_some(NodeId(9)),
            message: format!("event {index}"),
        };
        let events: imbl::Vector<_> = indexes.map(|index| Arc::new(event(index))).collect();
        Fleet { index: events.back().map_or(0, |last| last.index) + 5, events, ..Fleet::default() }
    }

    fn check(fleet: &Fleet, app: Option<&str>, after: u64, since: u64, expected: &[u64], forgotten: bool) {
        let app = app.map(|app| AppName::parse(app).unwrap());
        let asked = EventsAsked { app, after, since: Timestamp(since) };
        let reply = events_to_pb(fleet, &asked);
        let told: Vec<u64> = reply.events.iter().map(|event| event.index).collect();
        assert_eq!((told.as_slice(), reply.forgotten), (expected, forgotten), "after {after}, since {since}");
        assert_eq!(reply.index, fleet.index);
    }

    #[test]
    fn events_are_those_of_an_app_of_later_entries_and_of_the_last_time() {
        let few = fleet([1, 2, 2, 3, 4].into_iter());
        check(&few, None, 0, 0, &[1, 2, 2, 3, 4], false);
        check(&few, Some("web"), 0, 0, &[2, 2, 4], false);
        check(&few, Some("mail"), 0, 0, &[], false);
        check(&few, None, 2, 0, &[3, 4], false);
        check(&few, None, 0, 3, &[3, 4], false);
        check(&few, Some("web"), 2, 3, &[4], false);
        check(&few, None, 99, 0, &[], false);
        let asked = EventsAsked { app: None, after: 2, since: Timestamp(0) };
        let third = events_to_pb(&few, &asked).events.swap_remove(0);
        assert_eq!((third.node.as_str(), third.time_ms, third.message.as_str()), ("9", 3, "event 3"));
    }

    #[test]
    fn what_has_been_forgotten_is_said() {
        let max = EVENTS_MAX as u64;
        let full = fleet(101..101 + max);
        let last = 100 + max;
        check(&full, None, last - 1, 0, &[last], false);
        check(&full, None, last - 1, last, &[last], false);
        for (after, since, forgotten) in [(0, 0, true), (99, 0, true), (100, 0, false), (0, 101, false)] {
            let asked = EventsAsked { app: None, after, since: Timestamp(since) };
            assert_eq!(events_to_pb(&full, &asked).forgotten, forgotten, "after {after}, since {since}");
        }
    }
}
