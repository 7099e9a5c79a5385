//! Refusals as gRPC statuses: one stable code each, and what to do about it.
//!
//! The code travels in the metadata `flotilla-code`, the advice in `flotilla-help` (percent-encoded,
//! because metadata is ASCII). `flotilla explain CODE` has the long form.

use std::fmt::Write as _;

use flotilla_raft_store::{ProposeError, Rejection};
use tonic::{Code, Status};

/// A refusal that did not come from `Fleet::apply`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error("this node belongs to no cluster yet")]
    NoCluster,
    #[error("this node belongs to cluster {name} already (id {id})")]
    HasCluster { id: String, name: String },
    #[error("{address} belongs to cluster {name} (id {id})")]
    SeedHasCluster { address: String, id: String, name: String },
    #[error("no leader is known, so nothing can be changed now")]
    NoLeader,
    #[error("the answer did not come in time: the change may or may not have happened")]
    Unknown,
    #[error("the data disk is nearly full ({free_bytes} bytes free)")]
    DiskFull { free_bytes: u64 },
    #[error("too many changes are waiting for the log")]
    Busy,
    #[error("the change has {bytes} bytes, and the log takes no more than {max} at once")]
    TooLarge { bytes: usize, max: usize },
    #[error("{0}")]
    InvalidSpec(String),
    #[error("{0}")]
    InvalidBalancer(String),
    #[error("{0}")]
    Malformed(#[from] super::convert::Malformed),
    #[error("this message is for another node: {0}")]
    WrongNode(String),
    #[error("none of the addresses let this node in: {0}")]
    JoinFailed(String),
    #[error("there is no node `{0}`")]
    NoSuchNode(String),
    #[error("{0}")]
    WrongAvailability(String),
    #[error("this node is stopping: {0}")]
    Stopping(String),
}

impl Refusal {
    fn parts(&self) -> (Code, &'static str, &'static str) {
        match self {
            Self::NoCluster => (
                Code::FailedPrecondition,
                "E0502",
                "make one with `flotilla cluster init`, or join one with `flotilla cluster join ADDRESS`",
            ),
            Self::HasCluster { .. } => {
                (Code::AlreadyExists, "E0501", "a node changes clusters only with an empty data directory")
            }
            Self::SeedHasCluster { .. } => (
                Code::AlreadyExists,
                "E0501",
                "this node is configured to join it ([join] addresses): use `flotilla cluster join`, or remove the addresses",
            ),
            Self::NoLeader => (
                Code::Unavailable,
                "E0401",
                "traffic goes on as it is; look at `flotilla cluster status` and bring back a majority of the voters",
            ),
            Self::Unknown => (
                Code::DeadlineExceeded,
                "E0402",
                "look before you try again: `flotilla app list`, `flotilla rollout list`",
            ),
            Self::DiskFull { .. } => (
                Code::ResourceExhausted,
                "E0403",
                "free space in the data directory of the leader; reads and traffic go on",
            ),
            Self::Busy => (Code::Unavailable, "E0404", "nothing was changed; try again in a moment"),
            Self::TooLarge { .. } => (Code::InvalidArgument, "E0405", "apply fewer apps at a time"),
            Self::NoSuchNode(_) => (Code::NotFound, "E0304", "`flotilla node list` shows who is there"),
            Self::WrongAvailability(_) => (
                Code::FailedPrecondition,
                "E0309",
                "`flotilla node list` shows the state; `flotilla node undrain NODE` calls a drain off",
            ),
            Self::InvalidSpec(_) => {
                (Code::InvalidArgument, "E0100", "check the file with `flotilla app validate -f FILE`")
            }
            Self::InvalidBalancer(_) => {
                (Code::InvalidArgument, "E0322", "see `flotilla balancer add --help`")
            }
            Self::Malformed(_) => {
                (Code::InvalidArgument, "E0505", "use a `flotilla` of the same version as the nodes")
            }
            Self::WrongNode(_) => (
                Code::FailedPrecondition,
                "E0504",
                "an address is used by another node or cluster than expected; compare `flotilla cluster status` on both",
            ),
            Self::JoinFailed(_) => (
                Code::Unavailable,
                "E0506",
                "check the addresses and that a majority of the cluster's voters is up",
            ),
            Self::Stopping(_) => (Code::Unavailable, "E0507", "ask another node"),
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Status {
        let (code, name, help) = refusal.parts();
        status(code, &refusal.to_string(), name, help)
    }
}

/// The answer of `Fleet::apply`, for people.
pub(crate) fn rejected(rejection: &Rejection) -> Status {
    let (code, name, help) = match rejection {
        Rejection::NoSuchApp { .. } => (Code::NotFound, "E0301", "`flotilla app list` shows what there is"),
        Rejection::VersionConflict { .. } => (
            Code::Aborted,
            "E0302",
            "somebody changed the app meanwhile: look at `flotilla app history APP`, then apply again",
        ),
        Rejection::PortTaken { .. } => (
            Code::FailedPrecondition,
            "E0201",
            "`flotilla app ports` shows who has which; name `hosts` in `listen` to share it, or use `port = 0` to \
             let the cluster choose",
        ),
        Rejection::CannotShare { .. } => (
            Code::FailedPrecondition,
            "E0201",
            "`flotilla app ports` shows who has which; apps share a port if nothing but their hosts and certificates \
             differ there",
        ),
        Rejection::PortReserved { .. } => (
            Code::FailedPrecondition,
            "E0202",
            "choose another port, or change [ports] reserved in node.toml",
        ),
        Rejection::PortPoolExhausted { .. } => {
            (Code::ResourceExhausted, "E0203", "delete apps, or widen [ports] pool in node.toml")
        }
        Rejection::NoPlacement { .. } => (
            Code::FailedPrecondition,
            "E0204",
            "`flotilla node list -o wide` shows regions, zones and labels",
        ),
        Rejection::NoSuchVersion { .. } => {
            (Code::NotFound, "E0303", "`flotilla app history APP` shows what there is")
        }
        Rejection::LastMember { .. } => {
            (Code::FailedPrecondition, "E0308", "stop its process instead; a cluster of no nodes is none")
        }
        Rejection::NoSuchNode { .. } => (Code::NotFound, "E0304", "`flotilla node list` shows who is there"),
        Rejection::NameTaken { .. } => (
            Code::AlreadyExists,
            "E0503",
            "give the node another name; a node that lost its data comes back as a new one",
        ),
        Rejection::CannotSteer { .. } => {
            (Code::FailedPrecondition, "E0307", "`flotilla rollout status APP` shows where it stands")
        }
        Rejection::TooManyApps { .. } => {
            (Code::ResourceExhausted, "E0205", "delete apps that are no longer used")
        }
        Rejection::AlreadyInitialised { .. } => {
            (Code::AlreadyExists, "E0501", "join it instead: `flotilla cluster join`")
        }
        Rejection::NotInitialised => {
            (Code::FailedPrecondition, "E0502", "the first node is still starting; try again")
        }
        Rejection::NoSuchBalancer { .. } => {
            (Code::NotFound, "E0320", "`flotilla balancer list` shows what there is")
        }
        Rejection::BalancerExists { .. } => {
            (Code::AlreadyExists, "E0321", "give it another name, or replace what is there with --replace")
        }
        Rejection::InvalidBalancer { .. } => {
            (Code::InvalidArgument, "E0322", "see `flotilla balancer add --help`")
        }
        Rejection::StaleTerm { .. } | Rejection::Stale { .. } => {
            (Code::Aborted, "E0305", "the fleet changed at the same moment; try again")
        }
        Rejection::StaleRequest { .. } => {
            (Code::Aborted, "E0306", "a later request of the same client was answered already")
        }
    };
    status(code, &rejection.to_string(), name, help)
}

/// A proposal that did not become an answer. `NotLeader` is handled by forwarding before it gets here.
pub(crate) fn not_proposed(error: &ProposeError) -> Status {
    match error {
        ProposeError::NotLeader { .. } | ProposeError::NoQuorum => Refusal::NoLeader.into(),
        ProposeError::Unknown => Refusal::Unknown.into(),
        ProposeError::Busy => Refusal::Busy.into(),
        ProposeError::TooLarge { bytes, max } => Refusal::TooLarge { bytes: *bytes, max: *max }.into(),
        ProposeError::Fatal(why) => Refusal::Stopping(why.clone()).into(),
    }
}

fn status(code: Code, message: &str, name: &'static str, help: &str) -> Status {
    let mut status = Status::new(code, message);
    let metadata = status.metadata_mut();
    metadata.insert("flotilla-code", tonic::metadata::MetadataValue::from_static(name));
    if let Ok(help) = percent_encode(help).parse() {
        metadata.insert("flotilla-help", help);
    }
    status
}

/// RFC 3986 §2.1, of everything that is not printable ASCII, and of `%` itself.
fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'%' | 0..=0x1f | 0x7f..=0xff => {
                write!(encoded, "%{byte:02X}").expect("strings take every write")
            }
            _ => encoded.push(char::from(byte)),
        }
    }
    encoded
}
