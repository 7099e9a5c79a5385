//! Which generations this node has tried, and which it has survived.
//!
//! A generation that crashes a node, or makes its traffic threads stand still, must not do it twice. So
//! before one is prepared for the first time the node writes down that it is on trial, and after its
//! bake that it survived. A process that starts and finds the first without the second was taken down
//! meanwhile, and puts the blame there: it goes on with the generation before and rejects this one,
//! which turns the rollout back. A trial that ends with an orderly stop of the node proves nothing.
//!
//! The blame may be wrong: a power cut in mid-rollout looks the same. That costs a rollback. A
//! generation whose rollout completed was survived by the others, so it is tried again here: once at
//! once, later after a pause that grows.
//!
//! The journal is a text file beside the store, a line per step, appended. Writing it survives the
//! process at once; it is made to survive the machine in the background, because nothing waits for that.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use flotilla_raft_store::{GenerationId, RolloutState};
use flotilla_spec::AppName;
use tokio::task::JoinSet;

use super::Key;

const FILE: &str = "trials";
/// After the second crash; doubles with each further one.
const PAUSE: Duration = Duration::from_secs(10);
const PAUSE_MAX: Duration = Duration::from_secs(300);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Trial {
    state: State,
    /// Times the node went down during its trials.
    crashes: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Untried,
    OnTrial,
    Survived,
}

#[derive(Debug, Default)]
pub(crate) struct Trials {
    /// `None`: nothing is kept, as in tests of other things.
    journal: Option<Journal>,
    known: BTreeMap<Key, Trial>,
}

#[derive(Debug)]
struct Journal {
    file: File,
    /// Making it durable, off the path of whoever waits for traffic.
    syncing: JoinSet<()>,
}

/// What a line of the journal says of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// `activating`
    Begin,
    /// `survived`
    Survive,
    /// `stopped`: the node ended in good order during the trial.
    Stop,
    /// `crashed n`: so often, as counted when the file was written anew.
    Crashed(u32),
}

impl Trials {
    /// Reads what the process before has left, and blames what was on trial when it ended.
    pub(crate) fn open(directory: &Path) -> anyhow::Result<Self> {
        let path = directory.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(err) if err.kind() == io::ErrorKind::NotFound => String::new(),
            Err(err) => return Err(err).with_context(|| format!("read {}", path.display())),
        };
        let known = blame(replay(&text));
        let file = rewrite(&path, &known).with_context(|| format!("write {}", path.display()))?;
        Ok(Self { journal: Some(Journal { file, syncing: JoinSet::new() }), known })
    }

    /// Puts generations on trial that have not been survived here. Returns when a crash of the process
    /// would be noticed.
    pub(crate) fn begin<'a>(&mut self, keys: impl IntoIterator<Item = &'a Key>) -> io::Result<()> {
        let mut lines = String::new();
        for key in keys {
            let trial = self.known.entry(key.clone()).or_default();
            if trial.state == State::Untried {
                trial.state = State::OnTrial;
                line(&mut lines, key, Step::Begin);
            }
        }
        self.write(&lines)
    }

    pub(crate) fn survived(&mut self, key: &Key) -> io::Result<()> {
        let Some(trial) = self.known.get_mut(key).filter(|trial| trial.state == State::OnTrial) else {
            return Ok(());
        };
        *trial = Trial { state: State::Survived, crashes: 0 };
        let mut lines = String::new();
        line(&mut lines, key, Step::Survive);
        self.write(&lines)
    }

    pub(crate) fn is_on_trial(&self, key: &Key) -> bool {
        self.known.get(key).is_some_and(|trial| trial.state == State::OnTrial)
    }

    pub(crate) fn any_on_trial(&self) -> bool {
        self.known.values().any(|trial| trial.state == State::OnTrial)
    }

    /// Generations that took the node down and have not been survived since.
    pub(crate) fn suspects(&self) -> impl Iterator<Item = (&Key, u32)> {
        let suspect = |trial: &Trial| trial.crashes > 0 && trial.state == State::Untried;
        self.known.iter().filter(move |(_, trial)| suspect(trial)).map(|(key, trial)| (key, trial.crashes))
    }

    /// Forgets what nobody asks for any more of these apps.
    pub(crate) fn keep(&mut self, apps: &BTreeSet<AppName>, is_asked_for: impl Fn(&Key) -> bool) {
        super::keep(&mut self.known, apps, is_asked_for);
    }

    fn write(&mut self, lines: &str) -> io::Result<()> {
        let Some(journal) = self.journal.as_mut().filter(|_| !lines.is_empty()) else { return Ok(()) };
        journal.file.write_all(lines.as_bytes())?;
        while journal.syncing.try_join_next().is_some() {}
        let file = journal.file.try_clone()?;
        journal.syncing.spawn_blocking(move || {
            if let Err(error) = file.sync_data() {
                tracing::warn!(%error, "the journal of trials is not on disk");
            }
        });
        Ok(())
    }
}

/// The node stops in good order, or at least its agent was told to.
impl Drop for Trials {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut lines = String::new();
        for (key, trial) in &self.known {
            if trial.state == State::OnTrial {
                line(&mut lines, key, Step::Stop);
            }
        }
        if let Some(journal) = &mut self.journal
            && let Err(error) = journal.file.write_all(lines.as_bytes())
        {
            tracing::warn!(%error, "the next start will blame what was on trial");
        }
    }
}

/// Why a generation may not be tried now. PURE. `rollout`: how the rollout to it stands, `None` when
/// that is long forgotten; `up`: how long this process has run.
pub(crate) fn refusal(crashes: u32, rollout: Option<RolloutState>, up: Duration) -> Option<String> {
    let survived_elsewhere = match rollout {
        Some(RolloutState::Completed) | None => true,
        Some(
            RolloutState::Progressing
            | RolloutState::Paused
            | RolloutState::RollingBack
            | RolloutState::RolledBack
            | RolloutState::Failed
            | RolloutState::Superseded,
        ) => false,
    };
    let times = if crashes == 1 { "once".to_owned() } else { format!("{crashes} times") };
    if !survived_elsewhere {
        return Some(format!("crash: the node went down {times} while it took this generation"));
    }
    let pause = match crashes {
        0 | 1 => Duration::ZERO,
        more => PAUSE.saturating_mul(1 << (more - 2).min(16)).min(PAUSE_MAX),
    };
    let left = pause.saturating_sub(up);
    (!left.is_zero()).then(|| {
        format!(
            "crash: the node went down {times} while it took this generation; tried again in {} s",
            left.as_secs()
        )
    })
}

fn replay(text: &str) -> BTreeMap<Key, Trial> {
    let mut known: BTreeMap<Key, Trial> = BTreeMap::new();
    // A line without its end was being written when the process ended.
    for (key, step) in text.split_inclusive('\n').filter(|line| line.ends_with('\n')).filter_map(parse) {
        let trial = known.entry(key).or_default();
        match step {
            Step::Begin => trial.state = State::OnTrial,
            Step::Survive => *trial = Trial { state: State::Survived, crashes: 0 },
            Step::Stop => trial.state = State::Untried,
            Step::Crashed(times) => *trial = Trial { state: State::Untried, crashes: times },
        }
    }
    known
}

fn blame(mut known: BTreeMap<Key, Trial>) -> BTreeMap<Key, Trial> {
    for trial in known.values_mut().filter(|trial| trial.state == State::OnTrial) {
        *trial = Trial { state: State::Untried, crashes: trial.crashes + 1 };
    }
    known
}

/// Only what still counts, so that the file does not grow for ever.
fn rewrite(path: &PathBuf, known: &BTreeMap<Key, Trial>) -> io::Result<File> {
    let mut lines = String::new();
    for (key, trial) in known {
        match (trial.state, trial.crashes) {
            (State::Survived, _) => line(&mut lines, key, Step::Survive),
            (State::Untried, 0) => {}
            (State::Untried | State::OnTrial, crashes) => line(&mut lines, key, Step::Crashed(crashes)),
        }
    }
    let fresh = path.with_extension("new");
    let mut file = File::create(&fresh)?;
    file.write_all(lines.as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    if let Some(directory) = path.parent() {
        File::open(directory)?.sync_all()?;
    }
    OpenOptions::new().append(true).open(path)
}

fn line(lines: &mut String, (app, generation): &Key, step: Step) {
    let (word, times) = match step {
        Step::Begin => ("activating", String::new()),
        Step::Survive => ("survived", String::new()),
        Step::Stop => ("stopped", String::new()),
        Step::Crashed(times) => ("crashed", format!(" {times}")),
    };
    writeln!(lines, "{word} {app} {generation}{times}").expect("a String takes any text");
}

fn parse(line: &str) -> Option<(Key, Step)> {
    let mut words = line.split_whitespace();
    let (word, app, generation) = (words.next()?, words.next()?, words.next()?);
    let key = (AppName::parse(app).ok()?, GenerationId(generation.parse().ok()?));
    let step = match word {
        "activating" => Step::Begin,
        "survived" => Step::Survive,
        "stopped" => Step::Stop,
        "crashed" => Step::Crashed(words.next()?.parse().ok()?),
        _ => return None,
    };
    Some((key, step))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(generation: u64) -> Key {
        (AppName::parse("web").unwrap(), GenerationId(generation))
    }

    fn suspects(trials: &Trials) -> Vec<(u64, u32)> {
        trials.suspects().map(|(key, crashes)| (key.1.0, crashes)).collect()
    }

    /// The process goes away without a word.
    fn crash(trials: Trials) {
        std::mem::forget(trials);
    }

    #[tokio::test]
    async fn what_was_on_trial_when_the_process_went_down_is_blamed_and_what_was_survived_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let open = || Trials::open(directory.path()).unwrap();
        let mut trials = open();
        trials.begin([&key(6), &key(7)]).unwrap();
        trials.survived(&key(6)).unwrap();
        assert!(trials.is_on_trial(&key(7)) && !trials.is_on_trial(&key(6)));
        crash(trials);

        let mut trials = open();
        assert_eq!(suspects(&trials), [(7, 1)]);
        trials.begin([&key(6), &key(7)]).unwrap();
        assert!(!trials.is_on_trial(&key(6)), "survived once is enough");
        crash(trials);
        assert_eq!(suspects(&open()), [(7, 2)], "looking again does not count");

        let mut trials = open();
        trials.begin([&key(7)]).unwrap();
        trials.survived(&key(7)).unwrap();
        crash(trials);
        assert_eq!(suspects(&open()), []);
    }

    #[tokio::test]
    async fn an_orderly_stop_and_a_torn_line_blame_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let mut trials = Trials::open(directory.path()).unwrap();
        trials.begin([&key(7)]).unwrap();
        drop(trials);
        let trials = Trials::open(directory.path()).unwrap();
        assert_eq!(suspects(&trials), []);
        drop(trials);
        let path = directory.path().join(FILE);
        fs::write(&path, "activating web 8\nsurvived web 8\nnonsense\nactivating we").unwrap();
        let trials = Trials::open(directory.path()).unwrap();
        assert_eq!(suspects(&trials), []);
        assert_eq!(fs::read_to_string(path).unwrap(), "survived web 8\n");
    }

    #[test]
    fn a_suspect_is_tried_again_only_when_others_survived_it_and_less_and_less_often() {
        let s = Duration::from_secs;
        for (crashes, rollout, up, refused) in [
            (1, Some(RolloutState::Progressing), s(9_999), true),
            (1, Some(RolloutState::RollingBack), s(0), true),
            (1, Some(RolloutState::Superseded), s(0), true),
            (1, Some(RolloutState::Completed), s(0), false),
            (1, None, s(0), false),
            (2, Some(RolloutState::Completed), s(9), true),
            (2, Some(RolloutState::Completed), s(10), false),
            (3, None, s(19), true),
            (99, None, s(299), true),
            (99, None, s(300), false),
        ] {
            assert_eq!(refusal(crashes, rollout, up).is_some(), refused, "{crashes} {rollout:?} {up:?}");
        }
    }
}
