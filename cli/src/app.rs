//! `flotilla app …`: what the fleet carries.

pub(crate) mod apply;
mod delete;
mod describe;
mod get;
mod history;
mod list;
mod plan;
mod ports;
mod rollback;
mod scale;
mod schema;
mod validate;

use clap::Subcommand;
use flotilla_api::v1::{AppDescription, DescribeAppRequest, ListAppsRequest};

use crate::{
    args::Shell,
    client::{Client, fleet},
    convert,
    exit::{Exit, Failure},
};

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Validate(validate::Args),
    Schema(schema::Args),
    Convert(convert::Args),
    Apply(apply::Args),
    Plan(plan::Args),
    List(list::Args),
    Describe(describe::Args),
    History(history::Args),
    Get(get::Args),
    Rollback(rollback::Args),
    Scale(scale::Args),
    Delete(delete::Args),
    Ports(ports::Args),
}

pub(crate) fn run(verb: Verb, shell: &Shell) -> Result<Exit, Failure> {
    match verb {
        Verb::Validate(args) => validate::run(&args, shell),
        Verb::Schema(args) => schema::run(&args, shell),
        Verb::Convert(args) => convert::run(&args, shell),
        Verb::Apply(args) => shell.block_on(apply::run(args, shell)),
        Verb::Plan(args) => shell.block_on(plan::run(args, shell)),
        Verb::List(args) => shell.block_on(list::run(args, shell)),
        Verb::Describe(args) => shell.block_on(describe::run(args, shell)),
        Verb::History(args) => shell.block_on(history::run(args, shell)),
        Verb::Get(args) => shell.block_on(get::run(args, shell)),
        Verb::Scale(args) => shell.block_on(scale::run(args, shell)),
        Verb::Rollback(args) => shell.block_on(rollback::run(args, shell)),
        Verb::Delete(args) => shell.block_on(delete::run(args, shell)),
        Verb::Ports(args) => shell.block_on(ports::run(args, shell)),
    }
}

/// Everything about one app.
async fn describe(client: &Client, app: &str) -> Result<AppDescription, Failure> {
    let request = DescribeAppRequest { app: app.to_owned() };
    let described = client.read(async |channel| fleet(channel).describe_app(request.clone()).await).await;
    match described {
        Ok(description) => Ok(description),
        Err(failure) => Err(with_suggestion(client, app, failure).await),
    }
}

/// Adds what the user may have meant to "there is no such app".
pub(crate) async fn with_suggestion(client: &Client, app: &str, failure: Failure) -> Failure {
    if failure.exit != Exit::NotFound {
        return failure;
    }
    let asked = client.read(async |channel| fleet(channel).list_apps(ListAppsRequest {}).await).await;
    let Ok(reply) = asked else { return failure };
    let names: Vec<&str> = reply.apps.iter().map(|app| app.name.as_str()).collect();
    match suggestion(app, &names) {
        Some(help) => failure.help(help),
        None => failure,
    }
}

/// The names that there are, the likeliest first. Nothing when `app` itself is among them: it was
/// something else that was not found.
fn suggestion(app: &str, names: &[&str]) -> Option<String> {
    const LISTED_MAX: usize = 10;
    if names.contains(&app) {
        return None;
    }
    if names.is_empty() {
        return Some("the fleet has no apps yet: `flotilla app apply -f FILE` makes one".to_owned());
    }
    let nearest = names.iter().map(|name| (strsim::damerau_levenshtein(app, name), name)).min()?;
    // A slip per three letters.
    if let (mistakes, name) = nearest
        && mistakes <= app.chars().count() / 3
    {
        return Some(format!("did you mean `{name}`?"));
    }
    let listed = names.iter().take(LISTED_MAX).copied().collect::<Vec<_>>().join(", ");
    let more = names.len().saturating_sub(LISTED_MAX);
    Some(if more > 0 {
        format!("there are: {listed} and {more} more")
    } else {
        format!("there are: {listed}")
    })
}

#[cfg(test)]
mod tests {
    use super::suggestion;

    #[test]
    fn a_name_that_is_nearly_right_is_suggested_and_otherwise_all_are_listed() {
        for (typed, names, help) in [
            ("wbe", &["mail", "web"][..], Some("did you mean `web`?")),
            ("shop", &["mail", "web"], Some("there are: mail, web")),
            ("web", &["mail", "web"], None),
            ("web", &[], Some("the fleet has no apps yet: `flotilla app apply -f FILE` makes one")),
        ] {
            assert_eq!(suggestion(typed, names).as_deref(), help, "{typed} in {names:?}");
        }
        let many: Vec<String> = (0..12).map(|number| format!("app-{number}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(suggestion("zzz", &many).unwrap().ends_with("app-9 and 2 more"));
    }
}
