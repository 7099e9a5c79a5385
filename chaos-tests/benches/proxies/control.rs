//! Whether the control plane moves the latency of traffic: three real nodes, a steady load through one of them, and
//! meanwhile elections, changes, and an apply of very many apps.
//!
//! Latency counts from when a request was due, so a node that stands still for a moment shows, also to requests that
//! could not even begin.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
        mpsc,
    },
    thread,
    time::Duration,
};

use flotilla_chaos_tests::{
    process::{NodeSettings, TestFleet},
    spec,
};

use crate::{
    client::{Exchange, Load},
    peer::FLOTILLA,
    targets,
    world::World,
};

/// Through node 1, which carries all of the traffic and a third of the apps.
const PER_SECOND: f64 = 4_000.0;
const CLIENTS: usize = 64;
/// With that of the traffic as many as a region may have. Each on one node only, so that the ports of a third of them are open on each: a port takes a node two
/// descriptors per worker.
const APPS: usize = 9_999;
/// Where a node is slower than this with them, the table says how far it came.
const APPLY_MAX: Duration = Duration::from_secs(240);
/// Of the load among the threads of the nodes: nearly the least nice.
const FIRST: i32 = -15;
const ELECTIONS: usize = 5;
const CHANGES: usize = 30;

/// What happens besides traffic.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    Nothing,
    Elections,
    Changes,
    ManyApps,
}

pub(crate) fn run(seconds: f64) -> ExitCode {
    let mut world = World::new();
    let targets = targets(&mut world);
    let (events, inbox) = mpsc::channel::<Event>();
    let (outbox, said) = mpsc::channel::<String>();
    let is_done = Arc::new(AtomicBool::new(false));
    let done = Arc::clone(&is_done);
    // Nodes die with the thread that started them, so this one lives as long as they are needed.
    let fleet = thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(play(&targets.http, &inbox, &outbox, &done));
    });
    // Clients and targets would have machines of their own; here they would wait for the nodes, and seem slow.
    if let Err(error) = rustix::process::setpriority_process(None, FIRST) {
        println!("The load waits its turn among the nodes, which shows in what follows: {error}");
    }
    let traffic = wait(&mut world, &is_done, &said);
    let load = Load {
        address: traffic.parse().unwrap(),
        exchange: Exchange::Get("/"),
        clients: CLIENTS,
        per_second: Some(PER_SECOND),
        naps: true,
    };
    world.drive(&load, Duration::from_secs(2));
    println!("| meanwhile | requests | p50, µs | p99 | p99.9 | worst | failed |\n|{}", "---|".repeat(7));
    let mut failed = 0;
    for event in [Event::Nothing, Event::Elections, Event::Changes, Event::ManyApps, Event::Nothing] {
        let start = std::time::Instant::now();
        let least = Duration::from_secs_f64(seconds * 5.0);
        is_done.store(false, SeqCst);
        events.send(event).unwrap();
        let result = world.drive_until(&load, || is_done.load(SeqCst) && start.elapsed() >= least);
        println!(
            "| {} | {} | {:.0} | {:.0} | {:.0} | {:.0} | {} |",
            said.recv().unwrap(),
            result.operations,
            result.quantile(0.5),
            result.quantile(0.99),
            result.quantile(0.999),
            result.quantile(1.0),
            result.failed,
        );
        failed += result.failed;
    }
    drop(events);
    world.serve_until(|| fleet.is_finished());
    fleet.join().unwrap();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn wait(world: &mut World, is_done: &AtomicBool, said: &mpsc::Receiver<String>) -> String {
    world.serve_until(|| is_done.load(SeqCst));
    said.recv().unwrap()
}

/// The fleet's side: starts it, says where the traffic goes, then does what it is asked to.
async fn play(
    targets: &[SocketAddr],
    inbox: &mpsc::Receiver<Event>,
    outbox: &mpsc::Sender<String>,
    done: &AtomicBool,
) {
    let mut fleet = TestFleet::empty(FLOTILLA);
    for number in 1..=3 {
        let zone = format!("z{number}");
        fleet.add(NodeSettings { zone, log_level: "error".to_owned(), ..NodeSettings::default() }).await;
    }
    fleet.init(0).await;
    fleet.join(1, 0).await;
    fleet.join(2, 0).await;
    fleet.settled().await;
    fleet.apply(&spec::app("web", "\"http:8080\"", targets, "")).await.exits(0);
    outbox.send(fleet.node(0).port(8080).to_string()).unwrap();
    done.store(true, SeqCst);
    // Between two events nothing in here has to go on by itself.
    while let Ok(event) = inbox.recv() {
        let what = match event {
            Event::Nothing => "nothing".to_owned(),
            Event::Elections => elections(&fleet).await,
            Event::Changes => changes(&fleet, targets).await,
            Event::ManyApps => many_apps(&fleet, targets).await,
        };
        outbox.send(what).unwrap();
        done.store(true, SeqCst);
    }
}

/// Makes whoever leads fall silent, except the node with the traffic: that one loses its followers instead.
async fn elections(fleet: &TestFleet) -> String {
    for _ in 0..ELECTIONS {
        let leader = fleet.leader().await;
        let silent: Vec<usize> = if leader == 0 { vec![1, 2] } else { vec![leader] };
        silent.iter().for_each(|node| fleet.node(*node).pause());
        tokio::time::sleep(Duration::from_secs(2)).await;
        silent.iter().for_each(|node| fleet.node(*node).resume());
        fleet.settled().await;
    }
    format!("{ELECTIONS} elections")
}

async fn changes(fleet: &TestFleet, targets: &[SocketAddr]) -> String {
    for change in 0..CHANGES {
        let targets = &targets[..2 + change % 2];
        fleet.apply(&spec::app("web", "\"http:8080\"", targets, "")).await.exits(0);
    }
    format!("{CHANGES} changes of the app itself")
}

async fn many_apps(fleet: &TestFleet, targets: &[SocketAddr]) -> String {
    let mut file = String::new();
    for number in 0..APPS {
        let target = targets[number % targets.len()];
        write!(
            file,
            "[[app]]\nname = \"many-{number}\"\nlisten = [\"http:{}\"]\ntargets = [\"{target}\"]\ncheck = \"none\"\n\
             placement.replicas = 1\nrollout.drain = \"2s\"\n",
            10_000 + number
        )
        .unwrap();
    }
    let file = fleet.file("many.toml", &file);
    let begin = tokio::time::Instant::now();
    let apply = fleet.cli(["app", "apply", "-f", &file]);
    match tokio::time::timeout(APPLY_MAX, apply).await {
        Ok(output) => {
            output.exits(0);
            format!("{APPS} apps applied in {:.0?}", begin.elapsed())
        }
        Err(_) => format!("{APPS} apps, not all of them serving after {APPLY_MAX:?}"),
    }
}
