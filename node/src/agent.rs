//! Every node: does on the proxy what the fleet asks of this node, and says how far it is.
//!
//! Level-triggered: the plan is made anew from the applied fleet and the running proxy, so a missed
//! event heals. It acts on applied assignments only and needs no leader and no quorum.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::Duration,
};

use flotilla_proxy::{PrepareError, Proxy};
use flotilla_raft_store::{AppName, Fleet, GenerationId, NodeId};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::{agent::plan::Action, rollout::observed::GenerationReport};

pub(crate) mod plan;
pub(crate) mod translate;

/// A port that was taken may be free by now; a plan is made at least this often.
const RETRY: Duration = Duration::from_secs(1);

pub(crate) type Key = (AppName, GenerationId);

/// What this node says of every generation that it has, or was asked for.
pub(crate) type Running = BTreeMap<Key, GenerationReport>;
