//! Rollouts that could never finish, and words of it that would mean nothing.

use super::{MAX_DURATION, MIN_DURATION, findings::Findings};
use crate::{
    AbortOn, Rollout, RolloutStrategy,
    diagnostic::{CONTRADICTION, OUT_OF_RANGE},
    units::duration_text,
};

/// Each step costs a bake.
const MAX_STEPS: usize = 100;
/// A gate that waits for more would wait for ever on most apps.
const MAX_REQUESTS: u32 = 1_000_000;

pub(super) fn validate(rollout: &Rollout, target_count: usize, findings: &mut Findings) {
    let Rollout {
        strategy: _,
        max_parallel,
        canary,
        steps: _,
        min_healthy,
        min_healthy_targets,
        healthy_deadline,
        progress_deadline,
        drain,
        auto_promote: _,
        auto_rollback: _,
        abort_on: AbortOn { error_percent, p99, min_requests },
    } = rollout;
    findings.number("rollout.max_parallel", *max_parallel, 1..=10_000);
    findings.number("rollout.canary", *canary, 0..=10_000);
    findings.duration_or_off("rollout.min_healthy", *min_healthy, MAX_DURATION);
    findings.duration("rollout.healthy_deadline", *healthy_deadline, MIN_DURATION..=MAX_DURATION);
    findings.duration("rollout.progress_deadline", *progress_deadline, MIN_DURATION..=MAX_DURATION);
    findings.duration_or_off("rollout.drain", *drain, MAX_DURATION);
    findings.number("rollout.abort_on.error_percent", *error_percent, 0..=100);
    findings.duration_or_off("rollout.abort_on.p99", *p99, MAX_DURATION);
    findings.number("rollout.abort_on.min_requests", *min_requests, 1..=MAX_REQUESTS);
    if progress_deadline <= min_healthy {
        let message = format!(
            "`progress_deadline` ({}) must be longer than `min_healthy` ({}), or every rollout fails while it waits",
            duration_text(*progress_deadline),
            duration_text(*min_healthy),
        );
        let is_default = *progress_deadline == Rollout::default().progress_deadline;
        let path = if is_default { "rollout.min_healthy" } else { "rollout.progress_deadline" };
        findings.add(path, CONTRADICTION, message);
    }
    let needed = usize::try_from(*min_healthy_targets).unwrap_or(usize::MAX);
    if needed > target_count && target_count > 0 {
        let message = format!(
            "`min_healthy_targets` is {needed} but the app has {target_count} target{}: no rollout would finish",
            if target_count == 1 { "" } else { "s" }
        );
        findings.add("rollout.min_healthy_targets", CONTRADICTION, message);
    }
    steps(&rollout.steps, findings);
    strategy(rollout, findings);
}

fn steps(steps: &[u8], findings: &mut Findings) {
    let rises = steps.iter().zip(steps.iter().skip(1)).all(|(step, next)| step < next);
    let in_range = steps.iter().all(|step| (1..=100).contains(step));
    if steps.len() > MAX_STEPS || !in_range {
        findings
            .add("rollout.steps", OUT_OF_RANGE, "`steps` are shares of traffic from 1 to 100 percent")
            .help("for example `steps = [5, 25, 50, 100]`");
    } else if !rises || steps.last() != Some(&100) {
        findings
            .add("rollout.steps", CONTRADICTION, "`steps` must rise, and the last one must be 100")
            .help("for example `steps = [5, 25, 50, 100]`");
    }
}

/// What the strategy does not look at is refused, so that nobody counts on it.
fn strategy(rollout: &Rollout, findings: &mut Findings) {
    let word = match rollout.strategy {
        RolloutStrategy::Rolling => "rolling",
        RolloutStrategy::Canary => "canary",
        RolloutStrategy::BlueGreen => "blue_green",
        RolloutStrategy::AllAtOnce => "all_at_once",
    };
    let together = match rollout.strategy {
        RolloutStrategy::Rolling | RolloutStrategy::Canary => false,
        RolloutStrategy::BlueGreen | RolloutStrategy::AllAtOnce => true,
    };
    if together && rollout.canary > 0 {
        let message = format!("`strategy = \"{word}\"` shifts all nodes together and has no canary nodes");
        findings.add("rollout.canary", CONTRADICTION, message);
    }
    if rollout.strategy == RolloutStrategy::AllAtOnce && rollout.steps != [100] {
        let message = "`strategy = \"all_at_once\"` has one step; `blue_green` can have several";
        findings.add("rollout.steps", CONTRADICTION, message);
    }
    let waits = rollout.canaries() > 0
        || rollout.strategy == RolloutStrategy::BlueGreen
        || (rollout.strategy != RolloutStrategy::AllAtOnce && rollout.steps.len() > 1);
    if !rollout.auto_promote && !waits {
        findings
            .add("rollout.auto_promote", CONTRADICTION, "there is nothing to promote: no canary and no steps")
            .help("choose `strategy = \"canary\"` or `\"blue_green\"`");
    }
}
