//! `flotilla events` and `flotilla rollout events`: what happened in the fleet, and why.

use std::time::Duration;

use flotilla_api::v1::{Event, EventsReply, WatchEventsRequest};
use jiff::tz::TimeZone;
use serde_json::json;
use tokio::time::sleep;
use tonic::{Response, Status};

use crate::{
    app::with_suggestion,
    args::Shell,
    client::fleet,
    exit::{Exit, Failure},
    json,
    output::{Format, Output, line},
    table::{self, number, or_dash, text},
    view::moment,
};

/// Before a watch that broke off is begun again.
const RETRY: Duration = Duration::from_secs(1);

/// Show what happened in the fleet: elections, placements, rollouts, drains, scaling, repairs, and why
///
/// The fleet keeps the last 1,000 events, whichever node leads. Oldest first.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla events --since 1h
  flotilla events -f                    what is kept, and then what happens
  flotilla events -f -o json | jq 'select(.app == \"web\")'
  flotilla rollout events web           of one app")]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
}

/// Show what happened to an app: its rollouts step by step, with what each was decided by
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  flotilla rollout events web
  flotilla rollout events web -f --since 10m")]
pub(crate) struct OfApp {
    app: String,
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, clap::Args)]
struct Which {
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    /// Only what happened in this time
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    since: Option<Duration>,
}

pub(crate) async fn run(args: Args, shell: &Shell) -> Result<Exit, Failure> {
    show(String::new(), &args.which, shell).await
}

pub(crate) async fn of_app(args: OfApp, shell: &Shell) -> Result<Exit, Failure> {
    show(args.app, &args.which, shell).await
}

async fn show(app: String, which: &Which, shell: &Shell) -> Result<Exit, Failure> {
    let since_ms = which.since.map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
    let request = WatchEventsRequest { app, after: 0, since_ms, follow: which.follow };
    if which.follow {
        return follow(request, shell).await;
    }
    let client = shell.client();
    let asked = client.read(async |channel| {
        let mut stream = fleet(channel).watch_events(request.clone()).await?.into_inner();
        let reply = stream.message().await?;
        reply.map(Response::new).ok_or_else(|| Status::unavailable("the answer broke off"))
    });
    let reply = match asked.await {
        Ok(reply) => reply,
        Err(failure) => return Err(with_suggestion(&client, &request.app, failure).await),
    };
    let EventsReply { events, forgotten, .. } = &reply;
    if *forgotten {
        shell.output.note("events before these have been forgotten: the fleet keeps the last 1,000");
    }
    shell.output.emit(
        "EventList",
        || json!({ "items": json::list(events, json::event), "forgotten": forgotten }),
        |_| Lines::new(shell.output).render(events, &TimeZone::system()),
    )?;
    Ok(Exit::Done)
}

/// Until the user has seen enough. Goes on at another node where the one that told has died.
async fn follow(mut request: WatchEventsRequest, shell: &Shell) -> Result<Exit, Failure> {
    let mut client = shell.client();
    client.learn().await;
    let mut lines = Lines::new(shell.output);
    let mut answered = false;
    loop {
        let opened = client.read(async |channel| fleet(channel).watch_events(request.clone()).await).await;
        match opened {
            Ok(mut stream) => {
                // One that breaks is opened again, after what it has told.
                while let Ok(Some(reply)) = stream.message().await {
                    if reply.forgotten {
                        shell.output.note(if answered {
                            "events have been forgotten before they were told"
                        } else {
                            "events before these have been forgotten: the fleet keeps the last 1,000"
                        });
                    }
                    let shown = match shell.output.format {
                        Format::Json => reply
                            .events
                            .iter()
                            .map(|event| line("Event", json::event(event)) + "\n")
                            .collect::<String>(),
                        Format::Table | Format::Wide => lines.render(&reply.events, &TimeZone::system()),
                    };
                    shell.output.print(&shown)?;
                    (request.after, request.since_ms) = (reply.index.max(request.after), None);
                    answered = true;
                }
            }
            Err(failure) if answered && matches!(failure.exit, Exit::Unreachable | Exit::NoLeader) => {}
            Err(failure) => return Err(with_suggestion(&client, &request.app, failure).await),
        }
        sleep(RETRY).await;
    }
}

/// Lines of one table that comes in parts.
struct Lines {
    output: Output,
    /// Until the first part was rendered.
    headers: bool,
    /// Of the widest name of an app and of a node so far.
    widths: (usize, usize),
}

impl Lines {
    fn new(output: Output) -> Self {
        Self { output, headers: output.headers, widths: (0, 0) }
    }

    fn render(&mut self, events: &[Event], zone: &TimeZone) -> String {
        const COLUMNS: [&str; 3] = ["TIME", "APP", "EVENT"];
        const WIDE: [&str; 5] = ["INDEX", "TIME", "APP", "NODE", "EVENT"];
        let headers = std::mem::take(&mut self.headers);
        if events.is_empty() && !headers {
            return String::new();
        }
        for event in events {
            let (app, node) = &mut self.widths;
            (*app, *node) = ((*app).max(event.app.len()), (*node).max(event.node.len()));
        }
        let is_wide = self.output.format == Format::Wide;
        let (app, node) = self.widths;
        let row = |event: &Event| {
            let time = text(moment(event.time_ms, zone));
            let app = text(format!("{:app$}", or_dash(&event.app)));
            let message = text(&event.message);
            if !is_wide {
                return vec![time, app, message];
            }
            let node = text(format!("{:node$}", or_dash(&event.node)));
            vec![number(event.index.to_string()), time, app, node, message]
        };
        let columns = if is_wide { &WIDE[..] } else { &COLUMNS[..] };
        table::render(self.output.stdout, headers.then_some(columns), events.iter().map(row).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::ColorChoice;

    fn event(index: u64, app: &str, node: &str, message: &str) -> Event {
        let (app, node, message) = (app.to_owned(), node.to_owned(), message.to_owned());
        Event { index, time_ms: index * 1000, app, node, message }
    }

    #[test]
    fn the_parts_of_a_table_that_is_followed_have_the_same_columns() {
        let first =
            [event(1, "", "n1", "node n1 leads (term 1)"), event(2, "mail-relay", "", "version 1 accepted")];
        let second = [event(3, "web", "n2", "node n2 gives generation 7 back")];
        let mut lines = Lines::new(Output::new(Format::Table, false, true, ColorChoice::Never));
        assert_eq!(
            lines.render(&first, &TimeZone::UTC),
            "TIME                 APP         EVENT\n\
             1970-01-01 00:00:01  -           node n1 leads (term 1)\n\
             1970-01-01 00:00:02  mail-relay  version 1 accepted\n"
        );
        assert_eq!(lines.render(&[], &TimeZone::UTC), "");
        assert_eq!(
            lines.render(&second, &TimeZone::UTC),
            "1970-01-01 00:00:03  web         node n2 gives generation 7 back\n"
        );
        let mut wide = Lines::new(Output::new(Format::Wide, false, false, ColorChoice::Never));
        assert_eq!(
            wide.render(&second, &TimeZone::UTC),
            "3  1970-01-01 00:00:03  web  n2  node n2 gives generation 7 back\n"
        );
    }
}
