//! What must hold of rollouts in whatever order things happen: the target that `chaos-tests/fuzz` runs for minutes, and
//! the test here over its corpus. Not compiled otherwise.

pub use crate::rollout::plan::simulation::rollout_plan;

#[cfg(test)]
#[path = "../../chaos-tests/fuzz/replay.rs"]
mod replay;

#[cfg(test)]
mod tests {
    use super::replay::replay;

    #[test]
    fn rollouts_hold_in_any_order_of_events() {
        replay("rollout_plan", 20, super::rollout_plan);
    }
}
