//! Waiting for a condition, with a deadline, instead of sleeping and hoping.

use std::time::Duration;

use tokio::time::{Instant, sleep};

const PAUSE: Duration = Duration::from_millis(20);

/// Asks until the answer is `Ok`. After the deadline it panics with `what` was waited for and the last `Err`,
/// which says what was the case instead.
pub async fn eventually<T, E: std::fmt::Display>(
    what: &str,
    within: Duration,
    mut ask: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(instead) if Instant::now() >= deadline => {
                panic!("not within {within:?}: {what}; instead: {instead}")
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}
