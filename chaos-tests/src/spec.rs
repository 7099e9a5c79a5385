//! App specs as a user would write them, with the patience of a test.

/// One app in TOML. `listen`: `8080` or `"http:8080"`, comma-separated. `more`: further keys and tables.
pub fn app(name: &str, listen: &str, targets: &[impl ToString], more: &str) -> String {
    let targets: Vec<_> = targets.iter().map(ToString::to_string).collect();
    format!(
        r#"
[[app]]
name = "{name}"
listen = [{listen}]
targets = {targets:?}
{more}
[app.rollout]
min_healthy = "100ms"
healthy_deadline = "10s"
progress_deadline = "20s"
drain = "2s"
"#
    )
}
