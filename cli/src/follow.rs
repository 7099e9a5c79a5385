//! Follows rollouts until they have finished.
//!
//! Watching has no part in a rollout: the fleet goes on when the terminal closes. So a watch that
//! breaks, because the node behind it died, is opened again at another node; only the fleet's own
//! word makes a rollout a failure.

mod render;
mod screen;

use std::time::Duration;

use flotilla_api::v1::{Rollout, WatchRolloutRequest};
use futures_util::{StreamExt as _, stream};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep, timeout_at},
};
use tonic::{Code, Status};

pub(crate) use self::render::{body, head, versions};
use self::{
    render::{Ending, behind, ending, is_ready, verdict},
    screen::Screen,
};
use crate::{
    args::Shell,
    client::{Client, fleet},
    exit::{self, Exit, Failure},
    output::{Format, Output},
};

/// Streams that are open at the same time; the others wait for their turn.
const WATCHES_MAX: usize = 64;
/// Between two attempts to open a watch again.
const REOPEN_PAUSE: Duration = Duration::from_millis(300);
/// A node that has just been asked may not have applied the change yet.
const NOT_FOUND_GRACE: Duration = Duration::from_secs(5);

/// A rollout by the generation that it leads to.
#[derive(Clone, Debug)]
pub(crate) struct Followed {
    pub(crate) app: String,
    /// 0: the newest.
    pub(crate) generation: u64,
}

/// How far a rollout is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    Ready,
    Finished,
}

impl Until {
    fn is_met(self, rollout: &Rollout) -> bool {
        rollout.finished || (self == Self::Ready && is_ready(rollout))
    }
}

pub(crate) struct Followings {
    /// In the order in which they finished.
    pub(crate) rollouts: Vec<Rollout>,
    pub(crate) exit: Exit,
}

/// Shows the way of each rollout and says how it ended. Ctrl-C detaches.
pub(crate) async fn follow(
    shell: &Shell,
    client: &mut Client,
    followed: Vec<Followed>,
    until: Until,
) -> Result<Followings, Failure> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    client.learn().await;
    let screen = Screen::new(&shell.output);
    let names: Vec<String> = followed.iter().map(|one| one.app.clone()).collect();
    let started = Instant::now();
    let deadline = started + shell.rollout_within();

    let client = &*client;
    let mut watches =
        stream::iter(
            followed.into_iter().map(|one| {
                let screen = &screen;
                async move {
                    (watch(client, |rollout| screen.show(rollout), &one, until, deadline).await, one.app)
                }
            }),
        )
        .buffer_unordered(WATCHES_MAX);

    let mut followings = Followings { rollouts: Vec::new(), exit: Exit::Done };
    loop {
        // Both are cancel-safe: the stream keeps its futures, and signals are kept until received.
        let next = tokio::select! {
            next = watches.next() => next,
            _ = interrupt.recv() => {
                screen.clear();
                shell.output.note(detached(&names));
                return Ok(Followings { exit: Exit::Interrupted, ..followings });
            }
        };
        let Some((watched, app)) = next else { break };
        let rollout = match watched {
            Ok(rollout) => rollout,
            Err(failure) => {
                screen.clear();
                return Err(failure.help(format!("the rollout goes on: `{}`", reattach(&[app]))));
            }
        };
        screen.finished(&rollout.app, || say(&shell.output, &rollout, started.elapsed()))?;
        if rollout.finished && ending(&rollout) != Ending::Serves {
            followings.exit = Exit::Failed;
        }
        followings.rollouts.push(rollout);
    }
    Ok(followings)
}

/// The finished rollout, without showing the way there.
pub(crate) async fn finished(client: &Client, one: &Followed, deadline: Instant) -> Result<Rollout, Failure> {
    watch(client, |_| {}, one, Until::Finished, deadline).await
}

/// Success is an answer, anything else an error.
fn say(output: &Output, rollout: &Rollout, elapsed: Duration) -> Result<(), Failure> {
    if !rollout.finished {
        let (app, version) = (&rollout.app, rollout.to_version);
        output.note(format!(
            "✓ {app} {version} is ready on every live node; it goes on: {}",
            reattach(std::slice::from_ref(app))
        ));
        return Ok(());
    }
    match (ending(rollout), output.format) {
        (Ending::Serves, Format::Table | Format::Wide) => {
            output.print(&verdict(rollout, elapsed, output.stdout))?;
        }
        (Ending::Serves, Format::Json) => output.note(verdict(rollout, elapsed, output.stderr)),
        (Ending::RolledBack | Ending::Paused | Ending::Failed | Ending::Superseded, _) => {
            output.complain(&verdict(rollout, elapsed, output.stderr));
        }
    }
    Ok(())
}

/// The finished rollout, whatever happens to the nodes that tell about it until `deadline`.
async fn watch(
    client: &Client,
    show: impl Fn(&Rollout),
    one: &Followed,
    until: Until,
    deadline: Instant,
) -> Result<Rollout, Failure> {
    let mut not_found_since = None;
    let mut last: Option<Rollout> = None;
    loop {
        let request = WatchRolloutRequest { app: one.app.clone(), generation: one.generation };
        let opened = client.open(async |channel| fleet(channel).watch_rollout(request.clone()).await).await;
        let broken = match opened {
            Err(status) => Some(status),
            Ok(mut opened) => {
                let broken = loop {
                    match timeout_at(deadline, opened.stream.message()).await {
                        Err(_) => return Err(unfinished(&one.app, last.as_ref())),
                        Ok(Ok(Some(rollout))) => {
                            not_found_since = None;
                            show(&rollout);
                            if until.is_met(&rollout) {
                                return Ok(rollout);
                            }
                            last = Some(rollout);
                        }
                        Ok(Ok(None)) => break None,
                        Ok(Err(status)) => break Some(status),
                    }
                };
                client.avoid(opened.node);
                broken
            }
        };
        match broken {
            Some(status) if status.code() == Code::NotFound => {
                let since = *not_found_since.get_or_insert_with(Instant::now);
                if since.elapsed() > NOT_FOUND_GRACE {
                    return Err(status.into());
                }
            }
            Some(status) if is_final(&status) => return Err(status.into()),
            Some(_) | None => {}
        }
        if Instant::now() + REOPEN_PAUSE > deadline {
            return Err(unfinished(&one.app, last.as_ref()));
        }
        sleep(REOPEN_PAUSE).await;
    }
}

/// The node itself says no, and another one would say the same.
fn is_final(status: &Status) -> bool {
    exit::server_code(status).is_some() && !exit::is_transient(status)
}

fn unfinished(app: &str, last: Option<&Rollout>) -> Failure {
    let behind = last.map(behind).filter(|behind| !behind.is_empty());
    let behind = behind.map_or(String::new(), |behind| format!("; behind: {behind}"));
    Failure::new(
        Exit::Unreachable,
        format!("the rollout of `{app}` has not finished within --timeout{behind}"),
    )
}

fn detached(apps: &[String]) -> String {
    format!("detached; the rollout goes on. Watch it again with: {}", reattach(apps))
}

fn reattach(apps: &[String]) -> String {
    match apps {
        [app] => format!("flotilla rollout status {app} --watch"),
        _ => "flotilla rollout status --watch".to_owned(),
    }
}
