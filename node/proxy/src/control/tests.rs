use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio_util::task::TaskTracker;

use super::*;
use crate::{Layers, upstream::balance::Strategies};

static NO_SIGNERS: std::sync::LazyLock<crate::Signers> = std::sync::LazyLock::new(Default::default);
const HORIZON: Duration = Duration::from_secs(64);

/// The state with what it needs around it, and no worker.
struct Table {
    state: State,
    strategies: Strategies,
    tasks: TaskTracker,
    now: Instant,
}

impl Table {
    fn new() -> Table {
        Table {
            state: State::default(),
            strategies: Strategies::default(),
            tasks: TaskTracker::new(),
            now: Instant::now(),
        }
    }

    fn prepare(&mut self, config: &AppConfig) {
        let runtime = tokio::runtime::Handle::current();
        let compiler = compiler(&self.strategies, &self.tasks, &runtime);
        self.state
            .prepare(&check(config.clone(), &self.strategies, &Layers::default()).unwrap(), &compiler)
            .unwrap();
        self.settle();
    }

    fn serve(&mut self, config: &AppConfig) {
        self.prepare(config);
        let runtime = tokio::runtime::Handle::current();
        let compiler = compiler(&self.strategies, &self.tasks, &runtime);
        self.state.serve(&config.app, config.generation, &compiler).unwrap();
        self.settle();
    }

    /// What is closed now.
    fn settle(&mut self) -> Vec<PortKey> {
        let effects = self.state.settle(self.now, HORIZON);
        let closes = effects.into_iter().filter_map(|effect| match effect {
            Effect::Close { key, .. } => Some(key),
            Effect::Listen { .. } | Effect::Cut { .. } => None,
        });
        closes.collect()
    }

    fn pass(&mut self, time: Duration) -> Vec<PortKey> {
        self.now += time;
        self.settle()
    }

    fn serving(&self, config: &AppConfig) -> Arc<Serving> {
        let key = keys(config).next().unwrap();
        self.state.ports[&key].of(&config.app).unwrap().tenant.serving.load_full().unwrap()
    }
}

fn compiler<'a>(
    strategies: &'a Strategies,
    tasks: &'a TaskTracker,
    runtime: &'a tokio::runtime::Handle,
) -> Compiler<'a> {
    let signers = &NO_SIGNERS;
    Compiler {
        workers: 1,
        strategies,
        signers,
        names: crate::config::NamesPolicy::default(),
        zone: None,
        resolver: None,
        keep_warm: Arc::new(|_: Weak<Running>| ()),
        tasks,
        runtime,
        changed: Arc::new(|_| ()),
    }
}

fn config(app: &str) -> AppConfig {
    let listen: SocketAddr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    AppConfig::tcp(app, listen, ["127.0.0.1:1"])
}

fn next(config: &AppConfig) -> AppConfig {
    AppConfig { generation: config.generation + 1, ..config.clone() }
}

#[tokio::test]
async fn a_change_to_one_app_leaves_the_very_same_objects_to_another() {
    let mut table = Table::new();
    let (a, b) = (config("a"), config("b"));
    table.serve(&a);
    table.serve(&b);
    let (before, generation) = (table.serving(&b), table.state.generation("b", 1).unwrap());
    table.serve(&next(&a));
    table.state.remove("a", 1, None).unwrap();
    table.settle();
    table.prepare(&b);
    assert!(Arc::ptr_eq(&before, &table.serving(&b)));
    assert!(Arc::ptr_eq(&generation, &table.state.generation("b", 1).unwrap()));
}

#[tokio::test]
async fn a_pool_that_stays_the_same_goes_on_over_a_shift() {
    let mut table = Table::new();
    let first = config("a");
    table.serve(&first);
    let mut second = next(&first);
    second.timeouts.connect = Duration::from_secs(9);
    table.serve(&second);
    let upstream = |number| Arc::clone(&table.state.generation("a", number).unwrap().pools[0].upstream);
    assert!(Arc::ptr_eq(&upstream(1), &upstream(2)));
}

#[tokio::test]
async fn a_port_closes_exactly_one_horizon_after_it_was_last_wanted() {
    let mut table = Table::new();
    let first = config("a");
    let key = keys(&first).next().unwrap();
    table.serve(&first);
    table.state.drain("a", 1).unwrap();
    assert_eq!(table.settle(), []);
    assert!(table.serving(&first).closing);
    assert_eq!(table.pass(HORIZON - Duration::from_millis(1)), []);
    // Wanted again, and not any more: the time starts anew.
    table.prepare(&next(&first));
    assert!(!table.serving(&first).closing);
    table.state.remove("a", 2, None).unwrap();
    assert_eq!(table.settle(), []);
    assert_eq!(table.pass(HORIZON - Duration::from_millis(1)), []);
    assert_eq!(table.state.next_due(), Some(table.now + Duration::from_millis(1)));
    assert_eq!(table.pass(Duration::from_millis(1)), [key]);
    assert_eq!(table.settle(), [], "once is enough");
    table.state.closed(key, table.now);
    assert!(!table.state.has_ports());
}

#[tokio::test]
async fn checks_end_when_nothing_can_reach_a_drained_generation() {
    let mut table = Table::new();
    let first = config("a");
    let key = keys(&first).next().unwrap();
    table.serve(&first);
    let running = |table: &Table| table.state.entry("a", 1).unwrap().running.len();
    table.state.drain("a", 1).unwrap();
    table.settle();
    assert_eq!(running(&table), 1, "its port still takes sessions");
    table.pass(HORIZON);
    table.state.closed(key, table.now);
    table.settle();
    assert_eq!(running(&table), 0);
    table.serve(&first);
    assert_eq!(running(&table), 1, "served again, checked again");
}

#[tokio::test]
async fn a_port_goes_from_one_app_to_another_without_closing_but_not_while_it_is_served() {
    let mut table = Table::new();
    let a = config("a");
    let b = AppConfig { app: "b".into(), ..a.clone() };
    table.serve(&a);
    let runtime = tokio::runtime::Handle::current();
    let refused = table.state.prepare(
        &check(b.clone(), &table.strategies, &Layers::default()).unwrap(),
        &compiler(&table.strategies, &table.tasks, &runtime),
    );
    assert!(matches!(refused, Err(PrepareError::Taken(why)) if why.contains("belongs to app `a`")));
    table.state.remove("a", 1, None).unwrap();
    table.settle();
    table.serve(&b);
    assert_eq!(table.pass(HORIZON * 2), []);
    assert_eq!(&*table.serving(&b).generation.config.app, "b");
    assert!(table.state.generation("a", 1).is_none(), "nothing of it is served any more");
}

#[tokio::test]
async fn a_cut_comes_at_its_time_and_only_to_what_is_still_used() {
    for pins in [0, 1] {
        let mut table = Table::new();
        let first = config("a");
        table.serve(&first);
        let generation = table.state.generation("a", 1).unwrap();
        let local = std::rc::Rc::new(crate::generation::LocalPins::new(&generation, 0));
        let _pins: Vec<_> = (0..pins).map(|_| local.pin()).collect();
        table.serve(&next(&first));
        let after = Duration::from_secs(5);
        table.state.remove("a", 1, Some(table.now + after)).unwrap();
        table.settle();
        assert!(table.state.generation("a", 1).is_none());
        let cuts =
            |effects: Vec<Effect>| effects.iter().filter(|one| matches!(one, Effect::Cut { .. })).count();
        assert_eq!(cuts(table.state.settle(table.now, HORIZON)), 0);
        assert_eq!(cuts(table.state.settle(table.now + after, HORIZON)), pins);
    }
}

#[tokio::test]
async fn the_sockets_of_a_port_have_the_options_of_what_serves() {
    let mut table = Table::new();
    let first = config("a");
    table.serve(&first);
    let key = keys(&first).next().unwrap();
    let timeout = |table: &Table| {
        let listener = table.state.ports[&key].sockets.accept_on(0).unwrap();
        socket2::SockRef::from(&listener).tcp_user_timeout().unwrap()
    };
    assert_eq!(timeout(&table), None);
    let mut second = next(&first);
    second.ports[0].socket.user_timeout = Duration::from_secs(7);
    table.prepare(&second);
    assert_eq!(timeout(&table), None, "nothing of it serves yet");
    table.serve(&second);
    assert_eq!(timeout(&table), Some(Duration::from_secs(7)));
    table.serve(&first);
    assert_eq!(timeout(&table), None);
}
