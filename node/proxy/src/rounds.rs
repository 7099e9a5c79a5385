//! What a worker looks after now and then and may have ten thousands of: a part at a time, so that a round over all of
//! them keeps no request waiting.

use std::cell::RefCell;

use tokio::task::yield_now;

/// Looked at before others get their turn: some microseconds.
const PART: usize = 32;

pub(crate) struct Rounds<T>(RefCell<Vec<T>>);

impl<T> Default for Rounds<T> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<T> Rounds<T> {
    pub(crate) fn add(&self, one: T) {
        self.0.borrow_mut().push(one);
    }

    /// Looks at each and lets go of those that are not to be kept, with others in between.
    pub(crate) async fn go(&self, mut keep: impl FnMut(&T) -> bool) {
        let mut at = 0;
        while self.part(&mut at, &mut keep) {
            yield_now().await;
        }
    }

    /// The same at once.
    pub(crate) fn run(&self, mut keep: impl FnMut(&T) -> bool) {
        let mut at = 0;
        while self.part(&mut at, &mut keep) {}
    }

    /// False: there are no more.
    fn part(&self, at: &mut usize, keep: &mut impl FnMut(&T) -> bool) -> bool {
        let mut all = self.0.borrow_mut();
        for _ in 0..PART {
            let Some(one) = all.get(*at) else { return false };
            if keep(one) {
                *at += 1;
            } else {
                drop(all.swap_remove(*at));
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, rc::Rc};

    use tokio::task::LocalSet;

    use super::*;

    #[test]
    fn a_round_sees_each_once_and_keeps_some() {
        for count in [0, 1, PART - 1, PART, PART + 1, 10 * PART + 3] {
            let rounds = Rounds::default();
            (0..count).for_each(|one| rounds.add(one));
            let mut seen = vec![0; count];
            rounds.run(|one| {
                seen[*one] += 1;
                one % 3 > 0
            });
            assert!(seen.iter().all(|times| *times == 1), "{seen:?}");
            let mut left = Vec::new();
            rounds.run(|one| {
                left.push(*one);
                true
            });
            left.sort_unstable();
            assert_eq!(left, (0..count).filter(|one| one % 3 > 0).collect::<Vec<_>>());
        }
    }

    #[tokio::test]
    async fn others_have_their_turn_in_the_middle_of_a_round() {
        let rounds = Rounds::default();
        (0..10 * PART).for_each(|one| rounds.add(one));
        let (turns, is_over) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(false)));
        let tasks = LocalSet::new();
        tasks.spawn_local({
            let (turns, is_over) = (Rc::clone(&turns), Rc::clone(&is_over));
            async move {
                while !is_over.get() {
                    turns.set(turns.get() + 1);
                    yield_now().await;
                }
            }
        });
        tasks
            .run_until(async {
                rounds.go(|_| true).await;
                is_over.set(true);
            })
            .await;
        assert!(turns.get() >= 9, "{} turns", turns.get());
    }
}
