//! Programs of others that tests run against: present, or loudly skipped.

use std::{env, path::PathBuf};

/// Where the program is. Without it the test says so and skips, or fails when `FLOTILLA_REQUIRE=all`,
/// as in continuous integration, where a skipped test would be a lie.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    // Debian keeps some daemons out of users' PATH.
    let found = env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file());
    if found.is_none() {
        assert!(
            env::var_os("FLOTILLA_REQUIRE").is_none_or(|required| required != "all"),
            "`{name}` is not installed, and FLOTILLA_REQUIRE=all"
        );
        eprintln!("SKIPPED: `{name}` is not installed");
    }
    found
}
