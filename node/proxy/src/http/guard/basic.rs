//! Names and passwords (RFC 7617), against bcrypt hashes.
//!
//! A hash takes tens of milliseconds by design, so none is computed on a traffic thread, and only a few at a time: a
//! stranger who guesses keeps others waiting who guess, and nobody whose password is known already.
//!
//! Hashes in a file are read again when it changes, by the control side. What was found out with those before is
//! forgotten with them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sha2::{Digest as _, Sha256};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    config::BasicConfig,
    file::{self, Known, Print},
};

/// Hashes that are computed at the same time.
const COMPUTED_MAX: usize = 2;
/// Hashes that are waited for.
const WAITING_MAX: usize = 256;
/// Verdicts that are kept, in two halves.
const KEPT_MAX: usize = 10_000;
/// After this a password is looked at again, though its hash cannot have changed.
const KEPT_FOR: Duration = Duration::from_secs(300);

/// A name and a password as one word that says neither.
type Fingerprint = [u8; 32];

pub(super) struct Basic {
    pub(super) challenge: String,
    pub(super) timeout: Duration,
    config: BasicConfig,
    users: ArcSwap<Users>,
    known: Known,
    secret: [u8; 32],
    computing: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

/// Who has which password, and what was found out about guesses.
struct Users {
    hashes: BTreeMap<String, Arc<str>>,
    /// For names that nobody has, so that they take as long as others.
    nobody: Arc<str>,
    kept: Mutex<Kept>,
}

/// Why a client does not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// It says no name and password, or wrong ones.
    Denied,
    /// Too many are waiting to be looked at.
    Busy,
}

impl Basic {
    pub(super) fn compile(config: &BasicConfig) -> Result<Basic, String> {
        let known = Known::new(prints(config));
        let users = Users::read(config)?;
        let mut secret = [0; 32];
        secret.copy_from_slice(&Sha256::digest(seed()));
        Ok(Basic {
            challenge: format!("WWW-Authenticate: Basic realm=\"{}\", charset=\"UTF-8\"\r\n", config.realm),
            timeout: config.timeout,
            config: config.clone(),
            users: ArcSwap::from_pointee(users),
            known,
            secret,
            computing: Arc::new(Semaphore::new(COMPUTED_MAX)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
        })
    }

    pub(super) fn has_file(&self) -> bool {
        self.config.file.is_some()
    }

    /// Reads the file again if it has changed. What is wrong with it changes nothing.
    pub(super) fn refresh(&self, app: &str) {
        if !self.known.differ(prints(&self.config)) {
            return;
        }
        match self.read_again() {
            Ok(()) => tracing::info!(app, "passwords read again"),
            Err(error) => tracing::error!(app, error, "passwords not read again: those before stay"),
        }
    }

    /// Reads the file again, whatever it looks like. While the hashes are those before, so is what was found out.
    pub(super) fn read_again(&self) -> Result<(), String> {
        let users = Users::read(&self.config)?;
        if users.hashes != self.users.load().hashes {
            self.users.store(Arc::new(users));
        }
        Ok(())
    }

    /// Looks at the value of an `Authorization` field.
    pub(super) async fn look(&self, authorization: Option<&[u8]>) -> Result<(), Unknown> {
        let Some((name, password)) = authorization.and_then(parse) else { return Err(Unknown::Denied) };
        let fingerprint = self.fingerprint(&name, &password);
        let (users, now) = (self.users.load_full(), Instant::now());
        if let Some(is_right) = users.kept().get(&fingerprint, now) {
            return if is_right { Ok(()) } else { Err(Unknown::Denied) };
        }
        let waiting = Arc::clone(&self.waiting).try_acquire_owned().map_err(|_| Unknown::Busy)?;
        let computing = Arc::clone(&self.computing).acquire_owned().await.map_err(|_| Unknown::Busy)?;
        let known = users.hashes.get(&name);
        let (hash, is_known) = (Arc::clone(known.unwrap_or(&users.nobody)), known.is_some());
        // It goes on when nobody waits any more, and holds its place until it has ended.
        let computed = tokio::task::spawn_blocking(move || {
            let _places = (waiting, computing);
            bcrypt::verify(&password, &hash).unwrap_or(false)
        });
        let is_right = computed.await.unwrap_or(false) && is_known;
        users.kept().put(fingerprint, is_right, now);
        if is_right { Ok(()) } else { Err(Unknown::Denied) }
    }

    fn fingerprint(&self, name: &str, password: &[u8]) -> Fingerprint {
        let mut hash = Sha256::new();
        hash.update(self.secret);
        hash.update((name.len() as u64).to_be_bytes());
        hash.update(name);
        hash.update(password);
        hash.finalize().into()
    }
}

fn prints(config: &BasicConfig) -> Vec<Print> {
    config.file.clone().map(Print::of).into_iter().collect()
}

impl Users {
    fn read(config: &BasicConfig) -> Result<Users, String> {
        let mut hashes: BTreeMap<String, Arc<str>> = BTreeMap::new();
        for (name, hash) in &config.users {
            hashes.insert(name.clone(), hash.as_str().into());
        }
        if let Some(path) = &config.file {
            let text = String::from_utf8(file::read(path)?)
                .map_err(|error| format!("{}: {}", path.display(), error.utf8_error()))?;
            let lines = text.lines().map(str::trim).enumerate();
            for (at, line) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
                let (name, hash) = line
                    .split_once(':')
                    .ok_or_else(|| format!("{}:{}: not `name:hash`", path.display(), at + 1))?;
                hashes.insert(name.to_owned(), hash.into());
            }
        }
        for (name, hash) in &hashes {
            check_hash(hash).map_err(|why| format!("user `{name}`: {why}"))?;
        }
        let nobody = Arc::clone(hashes.values().next().ok_or("basic: nobody has a password")?);
        Ok(Users { hashes, nobody, kept: Mutex::default() })
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Random enough that nobody can compute fingerprints of guesses from outside.
fn seed() -> Vec<u8> {
    use std::hash::{BuildHasher as _, RandomState};
    (0..4_u64).flat_map(|n| RandomState::new().hash_one(n).to_be_bytes()).collect()
}

/// `$2y$10$…`, sixty characters (OpenBSD's modular crypt format).
fn check_hash(hash: &str) -> Result<(), String> {
    let mut parts = hash.split('$');
    let (before, version, cost, rest) = (parts.next(), parts.next(), parts.next(), parts.next());
    let is_version = matches!(version, Some("2a" | "2b" | "2y"));
    let cost: Option<u32> = cost.and_then(|cost| cost.parse().ok());
    let is_whole = before == Some("") && rest.is_some_and(|rest| rest.len() == 53) && parts.next().is_none();
    match cost {
        Some(4..=14) if is_version && is_whole => Ok(()),
        Some(15..) if is_version && is_whole => Err("a cost of more than 14 takes seconds".to_owned()),
        _ => Err("not a bcrypt hash: make one with `htpasswd -nB NAME`".to_owned()),
    }
}

/// RFC 7617 §2: the name ends with the first colon.
fn parse(authorization: &[u8]) -> Option<(String, Vec<u8>)> {
    let (scheme, rest) = authorization.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let mut said = STANDARD.decode(rest.trim_ascii()).ok()?;
    let at = said.iter().position(|byte| *byte == b':')?;
    let password = said.split_off(at + 1);
    said.pop();
    Some((String::from_utf8(said).ok()?, password))
}

/// What was found out. Two halves, of which the older one goes when the newer one is full.
#[derive(Default)]
struct Kept {
    newer: HashMap<Fingerprint, (bool, Instant)>,
    older: HashMap<Fingerprint, (bool, Instant)>,
}

impl Kept {
    fn get(&self, fingerprint: &Fingerprint, now: Instant) -> Option<bool> {
        let &(is_right, since) = self.newer.get(fingerprint).or_else(|| self.older.get(fingerprint))?;
        (now.saturating_duration_since(since) < KEPT_FOR).then_some(is_right)
    }

    fn put(&mut self, fingerprint: Fingerprint, is_right: bool, now: Instant) {
        if self.newer.len() >= KEPT_MAX / 2 {
            self.older = std::mem::take(&mut self.newer);
        }
        self.newer.insert(fingerprint, (is_right, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(users: &[(&str, &str)]) -> Basic {
        let users = users
            .iter()
            .map(|(name, password)| ((*name).to_owned(), bcrypt::hash(password, 4).unwrap()))
            .collect();
        Basic::compile(&BasicConfig { users, ..BasicConfig::default() }).unwrap()
    }

    fn said(text: &str) -> Vec<u8> {
        format!("Basic {}", STANDARD.encode(text)).into_bytes()
    }

    #[tokio::test]
    async fn who_has_the_password_comes_in() {
        let basic = basic(&[("ann", "secret"), ("bob", "a:b")]);
        for _again in 0..2 {
            for (authorization, expected) in [
                (Some(said("ann:secret")), Ok(())),
                (Some(said("bob:a:b")), Ok(())),
                (Some(said("ann:Secret")), Err(Unknown::Denied)),
                (Some(said("ann:a:b")), Err(Unknown::Denied)),
                (Some(said("eve:secret")), Err(Unknown::Denied)),
                (Some(said("ann")), Err(Unknown::Denied)),
                (Some(b"Basic ???".to_vec()), Err(Unknown::Denied)),
                (Some(b"Bearer x".to_vec()), Err(Unknown::Denied)),
                (None, Err(Unknown::Denied)),
            ] {
                assert_eq!(basic.look(authorization.as_deref()).await, expected, "{authorization:?}");
            }
        }
    }

    #[tokio::test]
    async fn a_crowd_that_guesses_is_turned_away_and_does_not_disturb_who_is_known() {
        let basic = basic(&[("ann", "secret")]);
        assert_eq!(basic.look(Some(&said("ann:secret"))).await, Ok(()));
        let _places = Arc::clone(&basic.waiting).try_acquire_many_owned(256).unwrap();
        assert_eq!(basic.look(Some(&said("ann:guess"))).await, Err(Unknown::Busy));
        assert_eq!(basic.look(Some(&said("ann:secret"))).await, Ok(()));
    }

    #[test]
    fn what_is_kept_is_bounded_and_grows_old() {
        let mut kept = Kept::default();
        let now = Instant::now();
        for number in 0..100_000_u32 {
            let mut fingerprint = [0; 32];
            fingerprint[..4].copy_from_slice(&number.to_be_bytes());
            kept.put(fingerprint, true, now);
            assert_eq!(kept.get(&fingerprint, now), Some(true));
            assert_eq!(kept.get(&fingerprint, now + KEPT_FOR), None);
        }
        assert!(kept.newer.len() + kept.older.len() <= KEPT_MAX);
    }

    #[test]
    fn a_hash_must_be_one_of_bcrypt() {
        let rest = "a".repeat(53);
        for (hash, fits) in [
            (format!("$2y$10${rest}"), true),
            (format!("$2b$04${rest}"), true),
            (format!("$2y$31${rest}"), false),
            (format!("$2y$10${rest}a"), false),
            (format!("$apr1$10${rest}"), false),
            ("secret".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(check_hash(&hash).is_ok(), fits, "{hash}");
        }
    }
}
