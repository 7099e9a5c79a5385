//! Who of a pool may be chosen, and with what weight. PURE.
//!
//! Health, backups, zones, slow start and panic meet here and nowhere else; the strategies see only the result.

/// What is known of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) weight: u32,
    pub(super) is_backup: bool,
    /// In the zone of this proxy, or the zone does not matter.
    pub(super) is_near: bool,
    /// What its checks say; `None` before the first.
    pub(super) is_passing: Option<bool>,
    /// Taken out because of what sessions and requests met there.
    pub(super) is_ejected: bool,
    /// Its circuit lets nobody through.
    pub(super) is_open: bool,
    /// How much of its weight it gets while it starts slowly, 1 to [`FULL`].
    pub(super) tenths: u32,
}

/// The `tenths` of an endpoint that is not starting.
pub(super) const FULL: u32 = 10;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selection {
    /// Indexes of those that may be chosen, ascending, and their effective weights, which compare only with each
    /// other.
    pub(super) chosen: Vec<(u32, u32)>,
    /// Those that may be used when everybody chosen was tried.
    pub(super) reserve: Vec<u32>,
    /// The chosen are not fit; nobody is.
    pub(super) is_panic: bool,
}

/// The zone of the proxy keeps all of its traffic until it has lost more than about a third of its weight (Envoy's
/// overprovisioning factor of 140 %).
const OVERPROVISIONED: u64 = 140;
/// Effective weights of two zones together.
const PARTS: u64 = 1_000_000;

pub(super) fn select(all: &[Candidate], panic_threshold: u32) -> Selection {
    let members = || (0_u32..).zip(all).filter(|(_, candidate)| candidate.weight > 0);
    let primaries = || members().filter(|(_, candidate)| !candidate.is_backup);
    let fit_backups: Vec<_> = members().filter(|(_, one)| one.is_backup && one.is_fit()).collect();
    let known = sum(primaries().filter(|(_, one)| one.is_passing.is_some()));
    let fit: Vec<_> = primaries().filter(|(_, one)| one.is_fit()).collect();
    // Open circuits are not a matter of opinion: they stay closed to everybody, and do not add to the panic.
    let unfit = sum(primaries().filter(|(_, one)| one.is_passing.is_some() && !one.is_well()));
    let are_few = unfit > 0 && (known - unfit) * 100 < known * u64::from(panic_threshold);
    if !are_few && !fit.is_empty() {
        let reserve = fit_backups.iter().map(|&(index, _)| index).collect();
        return by_zone(&fit, primaries(), reserve);
    }
    if !fit_backups.is_empty() {
        let mut chosen: Vec<_> = fit.into_iter().chain(fit_backups).collect();
        chosen.sort_unstable_by_key(|&(index, _)| index);
        return Selection { chosen: weighed(&chosen), ..Selection::default() };
    }
    if !are_few {
        return Selection { chosen: weighed(&fit), ..Selection::default() };
    }
    let everybody: Vec<_> = primaries().filter(|(_, one)| one.is_passing.is_some() && !one.is_open).collect();
    Selection { chosen: weighed(&everybody), reserve: Vec::new(), is_panic: true }
}

/// Near ones first. What they cannot carry goes to the others.
fn by_zone<'a>(
    fit: &[(u32, &Candidate)],
    primaries: impl Iterator<Item = (u32, &'a Candidate)>,
    mut reserve: Vec<u32>,
) -> Selection {
    let (near, far): (Vec<_>, Vec<_>) = fit.iter().copied().partition(|(_, one)| one.is_near);
    if near.is_empty() || far.is_empty() {
        return Selection { chosen: weighed(fit), reserve, is_panic: false };
    }
    let (near_fit, far_fit) = (sum(near.iter().copied()), sum(far.iter().copied()));
    let near_all = sum(primaries.filter(|(_, one)| one.is_near && one.is_passing.is_some()));
    let kept = (PARTS * near_fit * OVERPROVISIONED / 100 / near_all).min(PARTS);
    if kept == PARTS {
        // Ahead of the backups.
        reserve.splice(0..0, far.iter().map(|&(index, _)| index));
        return Selection { chosen: weighed(&near), reserve, is_panic: false };
    }
    let part = |(index, one): (u32, &Candidate)| {
        let (parts, all) = if one.is_near { (kept, near_fit) } else { (PARTS - kept, far_fit) };
        let weight = u64::from(one.weight) * parts * u64::from(one.tenths) / all / u64::from(FULL);
        (index, u32::try_from(weight).unwrap_or(u32::MAX).max(1))
    };
    Selection { chosen: fit.iter().copied().map(part).collect(), reserve, is_panic: false }
}

/// With the weights as they are, unless somebody starts slowly.
fn weighed(chosen: &[(u32, &Candidate)]) -> Vec<(u32, u32)> {
    let is_plain = chosen.iter().all(|(_, one)| one.tenths == FULL);
    let weight = |one: &Candidate| match is_plain {
        true => one.weight,
        false => one.weight.saturating_mul(one.tenths),
    };
    chosen.iter().map(|&(index, one)| (index, weight(one))).collect()
}

fn sum<'a>(candidates: impl Iterator<Item = (u32, &'a Candidate)>) -> u64 {
    candidates.map(|(_, one)| u64::from(one.weight)).sum()
}

impl Candidate {
    fn is_well(&self) -> bool {
        self.is_passing == Some(true) && !self.is_ejected
    }

    fn is_fit(&self) -> bool {
        self.is_well() && !self.is_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One word each: `+` passing, `-` failing, `?` not checked, `e` ejected, `o` open; then any of a weight, `b` for
    /// backup, `f` for far, `/3` for a slow start at three tenths.
    fn candidates(text: &str) -> Vec<Candidate> {
        let one = |word: &str| {
            let (word, tenths) = match word.split_once('/') {
                Some((word, tenths)) => (word, tenths.parse().unwrap()),
                None => (word, FULL),
            };
            let digits: String = word.chars().filter(char::is_ascii_digit).collect();
            Candidate {
                weight: digits.parse().unwrap_or(100),
                is_backup: word.contains('b'),
                is_near: !word.contains('f'),
                is_passing: if word.contains('?') { None } else { Some(!word.contains('-')) },
                is_ejected: word.contains('e'),
                is_open: word.contains('o'),
                tenths,
            }
        };
        text.split_whitespace().map(one).collect()
    }

    /// Checks who is chosen as `index:weight`, then after `|` who is in reserve, with `!` in front for panic.
    #[track_caller]
    fn check(text: &str, expected: &str) {
        let Selection { chosen, reserve, is_panic } = select(&candidates(text), 30);
        let chosen: Vec<String> = chosen.iter().map(|(index, weight)| format!("{index}:{weight}")).collect();
        let reserve: Vec<String> = reserve.iter().map(u32::to_string).collect();
        let panic = if is_panic { "!" } else { "" };
        let got = format!("{panic}{}|{}", chosen.join(" "), reserve.join(" "));
        assert_eq!(got, expected, "{text}");
    }

    #[test]
    fn who_passes_is_chosen_by_weight() {
        check("", "|");
        check("+ +", "0:100 1:100|");
        check("+7 -5 +3", "0:7 2:3|");
        check("+ +0", "0:100|");
    }

    #[test]
    fn nobody_is_chosen_before_the_first_check() {
        check("? ?", "|");
        check("? + ?", "1:100|");
    }

    #[test]
    fn ejected_ones_and_open_circuits_are_out() {
        check("+ e +", "0:100 2:100|");
        check("+ o +", "0:100 2:100|");
    }

    #[test]
    fn with_too_few_fit_ones_everybody_is_used() {
        check("+ - -", "0:100|");
        check("+ - - -", "!0:100 1:100 2:100 3:100|");
        check("- -", "!0:100 1:100|");
        check("-", "!0:100|");
        // By weight: 10 of 100 are too few, 40 are not.
        check("+10 -90", "!0:10 1:90|");
        check("+40 -60", "0:40|");
        // What was never checked is not counted as failing, and not used either.
        check("- ?", "!0:100|");
        check("+ ? ? ? ? ?", "0:100|");
        check("e e e +", "!0:100 1:100 2:100 3:100|");
    }

    #[test]
    fn a_threshold_of_zero_never_panics() {
        assert_eq!(select(&candidates("- - -"), 0), Selection::default());
    }

    #[test]
    fn open_circuits_are_no_reason_to_panic_and_no_way_out_of_it() {
        check("o o o", "|");
        check("o o o +", "3:100|");
        check("o - - -", "!1:100 2:100 3:100|");
    }

    #[test]
    fn backups_wait_until_too_few_others_are_fit() {
        check("+ +b", "0:100|1");
        check("- +b", "1:100|");
        check("+ - - - +b", "0:100 4:100|");
        check("+ - +b", "0:100|2");
        check("- -b", "!0:100|");
        check("o +b", "1:100|");
        check("? +b", "1:100|");
    }

    #[test]
    fn near_ones_come_first_and_give_away_what_they_cannot_carry() {
        check("+ +f", "0:100|1");
        check("+ +f +b", "0:100|1 2");
        check("- +f", "1:100|");
        check("+f +f", "0:100 1:100|");
        // 3 of 4 near ones carry everything (75 % x 1.4 > 100 %), 2 of 4 carry 70 %.
        check("+ + + - +f", "0:100 1:100 2:100|4");
        check("+ + - - +f", "0:350000 1:350000 4:300000|");
        check("+ + - - +f300 +f100", "0:350000 1:350000 4:225000 5:75000|");
    }

    #[test]
    fn a_slow_start_takes_its_share_in_tenths() {
        check("+ +/1", "0:1000 1:100|");
        check("+7 +3/5", "0:70 1:15|");
        check("+/10 +/10", "0:100 1:100|");
    }
}
