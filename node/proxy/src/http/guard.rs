//! Who may ask: what stands between a request and its endpoint, where an app wants to know more of a client than its
//! address.
//!
//! All of it fails closed: who cannot be looked at in time is answered with 503, and nothing of the request goes on.
//! An app without guards pays one comparison per request.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio_util::{sync::CancellationToken, sync::DropGuard, task::TaskTracker};

use super::{
    connection::{Client, Connection},
    deadline::Phase,
    forward::Parts,
    head::Head,
    headers::Seen,
    refusal::Refusal,
    reply::Answer,
};
use crate::{
    clock::{Expired, millis},
    config::{AccessConfig, GrpcAuthConfig, JwtConfig},
    generation::LocalServing,
    metrics::GuardCells,
};

mod basic;
mod call;
mod envoy;
mod forward;
mod jwt;
mod keys;
mod sign;

pub use sign::{Sign, Signers, Unsigned};

use basic::{Basic, Unknown};
use forward::Forward;
use jwt::Unfit;
use keys::{Keys, Origin};

/// The guards of an app. Generations that have them alike share them, and with them what they have learned.
pub(crate) struct Guards {
    app: Arc<str>,
    config: AccessConfig,
    basic: Option<Basic>,
    tokens: Option<Tokens>,
    forward: Option<Forward>,
    signer: Option<Arc<dyn Sign>>,
}

struct Tokens {
    config: JwtConfig,
    keys: Arc<Keys>,
    _stop: DropGuard,
}

/// Where the pools are, in the order of a generation, that guards ask.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GuardPools {
    forward: Option<usize>,
    grpc: Option<usize>,
}

/// What guards need from outside.
pub(crate) struct Around<'a> {
    pub(crate) app: &'a Arc<str>,
    pub(crate) signers: &'a Signers,
    pub(crate) tasks: &'a TaskTracker,
    pub(crate) runtime: &'a tokio::runtime::Handle,
}

impl GuardPools {
    /// `names`: those of the generation.
    pub(crate) fn of<'a>(
        config: &AccessConfig,
        names: impl Iterator<Item = &'a String> + Clone,
    ) -> GuardPools {
        let at = |pool: &str| names.clone().position(|name| name == pool);
        GuardPools {
            forward: config.forward.as_ref().and_then(|forward| at(&forward.pool)),
            grpc: config.grpc.as_ref().and_then(|grpc| at(&grpc.pool)),
        }
    }
}

impl Guards {
    /// `None`: the address is all that is asked about. `before`: of the latest generation.
    pub(crate) fn compile(
        config: &AccessConfig,
        before: Option<&Arc<Guards>>,
        around: &Around<'_>,
    ) -> Result<Option<Arc<Guards>>, String> {
        let AccessConfig { allow: _, deny: _, basic, jwt, forward, grpc, signer } = config;
        if basic.is_none() && jwt.is_none() && forward.is_none() && grpc.is_none() && signer.is_none() {
            return Ok(None);
        }
        let config = AccessConfig { allow: Vec::new(), deny: Vec::new(), ..config.clone() };
        if let Some(before) = before.filter(|before| before.config == config) {
            // A file may say something else by now, and nobody shall prepare what could not be started again.
            before.basic.as_ref().map_or(Ok(()), Basic::read_again)?;
            let keys = before.tokens.as_ref().map(|tokens| &tokens.keys);
            keys.map_or(Ok(()), |keys| keys.read_again()).map_err(|error| format!("access: {error}"))?;
            return Ok(Some(Arc::clone(before)));
        }
        if let Some(forward) = forward {
            let wrong = forward.copy.iter().find(|name| !forward::may_be_copied(name));
            if let Some(name) = wrong {
                return Err(format!("access: `{name}` is not a field that a service may set"));
            }
        }
        let signer = match signer {
            None => None,
            Some(name) => {
                Some(around.signers.get(name).ok_or_else(|| format!("access: there is no signer `{name}`"))?)
            }
        };
        Ok(Some(Arc::new(Guards {
            app: Arc::clone(around.app),
            basic: basic.as_ref().map(Basic::compile).transpose()?,
            tokens: jwt.as_ref().map(|jwt| Tokens::start(jwt, around)).transpose()?,
            forward: forward.clone().map(|config| Forward { config }),
            signer,
            config,
        })))
    }

    /// Whether [`Guards::refresh`] has anything to look at.
    pub(crate) fn has_files(&self) -> bool {
        let keys = self.tokens.as_ref().map(|tokens| &tokens.keys);
        self.basic.as_ref().is_some_and(Basic::has_file) || keys.is_some_and(|keys| keys.has_file())
    }

    /// Reads files again that have changed. What is wrong with them changes nothing.
    pub(crate) fn refresh(&self) {
        if let Some(basic) = &self.basic {
            basic.refresh(&self.app);
        }
        if let Some(tokens) = &self.tokens {
            tokens.keys.refresh(&self.app);
        }
    }

    /// Lets a request pass, changed as its guards want it, or says what its client is answered.
    pub(super) async fn pass<C: Client>(
        &self,
        connection: &mut Connection<C>,
        serving: &LocalServing,
        parts: &mut Parts,
    ) -> Result<(), Refusal> {
        let Some(cells) = &serving.local.guard_cells else { return Ok(()) };
        if let Some(basic) = &self.basic {
            let authorization = field(&parts.request, "authorization").map(<[u8]>::to_vec);
            let looked = within(connection, basic.timeout, basic.look(authorization.as_deref())).await?;
            match looked {
                Some(Ok(())) => {}
                Some(Err(Unknown::Denied)) => {
                    cells.basic_denied.one();
                    return Err(unauthorized(&basic.challenge));
                }
                Some(Err(Unknown::Busy)) | None => {
                    cells.basic_failed.one();
                    return Err(Refusal::Unverified);
                }
            }
        }
        if let Some(tokens) = &self.tokens {
            tokens.pass(connection, &parts.request, cells).await?;
        }
        let pools = serving.local.generation.guard_pools;
        if let (Some(forward), Some(pool)) = (&self.forward, pools.forward) {
            let before = narrow(connection, forward.config.timeout);
            let passed = forward.pass(connection, serving, parts, pool).await;
            connection.deadline.bound(before);
            passed.map_err(|refusal| closed(refusal, &cells.forward_denied, &cells.forward_failed))?;
        }
        if let (Some(GrpcAuthConfig { timeout, .. }), Some(pool)) = (&self.config.grpc, pools.grpc) {
            let before = narrow(connection, *timeout);
            let passed = envoy::pass(connection, serving, parts, pool).await;
            connection.deadline.bound(before);
            passed.map_err(|refusal| closed(refusal, &cells.grpc_denied, &cells.grpc_failed))?;
        }
        Ok(())
    }

    /// Signs a request that is otherwise ready to be sent.
    pub(super) fn sign(&self, seen: &Seen, request: &mut Head) -> Result<(), Refusal> {
        let Some(signer) = &self.signer else { return Ok(()) };
        let unsigned = Unsigned {
            method: request.method(),
            target: request.path_and_query(),
            host: super::headers::host_of(request),
            client: seen.ip,
            head: request,
        };
        let fields = signer.sign(&unsigned).map_err(|error| {
            tracing::warn!(%error, "sign a request");
            Refusal::Unverified
        })?;
        for (name, value) in fields {
            if forward::may_be_copied(&name) && http::HeaderValue::from_str(&value).is_ok() {
                request.retain(|field| !field.name.eq_ignore_ascii_case(name.as_bytes()));
                request.add(&name, &[value.as_bytes()]);
            }
        }
        Ok(())
    }
}

impl Tokens {
    fn start(config: &JwtConfig, around: &Around<'_>) -> Result<Tokens, String> {
        let origin = Origin::compile(config).map_err(|error| format!("access: {error}"))?;
        let (keys, stop) = (Arc::new(Keys::new(origin)), CancellationToken::new());
        let (run, ends, app) = (Arc::clone(&keys), stop.clone(), Arc::clone(around.app));
        let (refresh, floor) = (config.refresh, config.refresh_floor);
        around.tasks.spawn_on(
            async move {
                let _stopped = ends.run_until_cancelled(run.run(app, refresh, floor)).await;
            },
            around.runtime,
        );
        Ok(Tokens { config: config.clone(), keys, _stop: stop.drop_guard() })
    }

    async fn pass<C: Client>(
        &self,
        connection: &mut Connection<C>,
        request: &Head,
        cells: &GuardCells,
    ) -> Result<(), Refusal> {
        let name = &self.config.header;
        let denied = |why: Unfit| {
            tracing::debug!(?why, "token refused");
            cells.jwt_denied.one();
            // RFC 6750 §3.1: a client that said nothing is not told of an error.
            unauthorized(match why {
                Unfit::Missing => "WWW-Authenticate: Bearer\r\n",
                _ => "WWW-Authenticate: Bearer error=\"invalid_token\"\r\n",
            })
        };
        let token = field(request, name).and_then(|value| jwt::token_in(name, value));
        let token = token.ok_or_else(|| denied(Unfit::Missing))?;
        let mut has_waited = false;
        loop {
            let watch = self.keys.watch();
            let set = self.keys.set();
            let checked = set.as_ref().map(|set| jwt::check(token, set, &self.config, now()));
            match checked {
                Some(Ok(())) => return Ok(()),
                Some(Err(Unfit::UnknownKey)) | None if !has_waited => {}
                Some(Err(why)) => return Err(denied(why)),
                None => {
                    cells.jwt_failed.one();
                    return Err(Refusal::Unverified);
                }
            }
            has_waited = true;
            within(connection, self.config.timeout, self.keys.fresher(watch)).await?;
        }
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    #[allow(clippy::disallowed_methods, reason = "a token is good until a time of day")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn field<'a>(request: &'a Head, name: &str) -> Option<&'a [u8]> {
    request.iter().find(|field| field.name.eq_ignore_ascii_case(name.as_bytes())).map(|field| field.value)
}

fn unauthorized(challenge: &str) -> Refusal {
    let fields = format!("{challenge}Content-Type: text/plain\r\n").into_bytes();
    Refusal::answer_with(Answer { status: 401, fields, body: Bytes::from_static(b"not allowed\n") })
}

/// What comes of asking a service: its own answer as it is, and everything that went wrong as no verdict.
fn closed(refusal: Refusal, denied: &crate::metrics::Count, failed: &crate::metrics::Count) -> Refusal {
    match refusal {
        Refusal::Answer(_) => {
            denied.one();
            refusal
        }
        Refusal::Gone | Refusal::Cut => refusal,
        _ => {
            failed.one();
            Refusal::Unverified
        }
    }
}

/// No phase may last longer than `timeout` from now on; the bound that was there before.
fn narrow<C: Client>(connection: &mut Connection<C>, timeout: Duration) -> u64 {
    let before = connection.deadline.latest();
    let until = connection.worker.clock.now().saturating_add(millis(timeout));
    connection.deadline.bound(before.min(until));
    before
}

/// What a guard finds out; `None`: not in time.
async fn within<C: Client, F: Future>(
    connection: &mut Connection<C>,
    timeout: Duration,
    guard: F,
) -> Result<Option<F::Output>, Refusal> {
    let before = narrow(connection, timeout);
    let Connection { deadline, worker, .. } = &mut *connection;
    deadline.enter(&worker.clock, Phase::Upstream, timeout);
    let until = deadline.timer.deadline();
    let looked = worker.clock.within(&deadline.timer, until, guard).await;
    deadline.bound(before);
    match looked {
        Ok(found) => Ok(Some(found)),
        Err(Expired::Deadline) => Ok(None),
        Err(Expired::Cut) => Err(Refusal::Cut),
    }
}
