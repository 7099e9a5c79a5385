//! Answers as protobuf: they are kept in the fleet, for requests that come twice.

use super::{DecodeError, app_name, corrupt, known, port};
use crate::{Answer, AppChanged, ClusterId, GenerationId, NodeId, Outcome, Rejection, Reply};

pub(super) mod wire {
    use prost::{Enumeration, Message, Oneof};

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Answers {
        #[prost(message, repeated, tag = "1")]
        pub(crate) answers: Vec<Answer>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Answer {
        #[prost(
            oneof = "Kind",
            tags = "1, 2, 3, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 40, 41, 42, 43"
        )]
        pub(crate) kind: Option<Kind>,
    }

    /// Replies from 1, rejections from 11.
    #[derive(Clone, PartialEq, Oneof)]
    pub(crate) enum Kind {
        #[prost(message, tag = "1")]
        Done(Fields),
        #[prost(uint64, tag = "2")]
        Member(u64),
        #[prost(message, tag = "3")]
        Apps(Apps),
        #[prost(message, tag = "11")]
        NoSuchApp(Fields),
        #[prost(message, tag = "12")]
        VersionConflict(Fields),
        #[prost(message, tag = "13")]
        PortTaken(Fields),
        #[prost(message, tag = "14")]
        PortReserved(Fields),
        #[prost(message, tag = "15")]
        PortPoolExhausted(Fields),
        #[prost(message, tag = "16")]
        NoPlacement(Fields),
        #[prost(message, tag = "17")]
        NoSuchVersion(Fields),
        #[prost(message, tag = "18")]
        NoSuchNode(Fields),
        #[prost(message, tag = "19")]
        NameTaken(Fields),
        #[prost(message, tag = "20")]
        TooManyApps(Fields),
        #[prost(message, tag = "21")]
        AlreadyInitialised(Fields),
        #[prost(message, tag = "22")]
        NotInitialised(Fields),
        #[prost(message, tag = "23")]
        StaleTerm(Fields),
        #[prost(message, tag = "24")]
        Stale(Fields),
        #[prost(message, tag = "25")]
        StaleRequest(Fields),
        #[prost(message, tag = "26")]
        CannotSteer(Fields),
        #[prost(message, tag = "27")]
        LastMember(Fields),
        #[prost(message, tag = "40")]
        NoSuchBalancer(Fields),
        #[prost(message, tag = "41")]
        BalancerExists(Fields),
        #[prost(message, tag = "42")]
        InvalidBalancer(Fields),
        #[prost(message, tag = "43")]
        CannotShare(Fields),
    }

    /// What rejections speak of: an app, a text and two numbers, and rarely more texts.
    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Fields {
        #[prost(string, tag = "1")]
        pub(crate) app: String,
        #[prost(string, tag = "2")]
        pub(crate) text: String,
        #[prost(uint64, tag = "3")]
        pub(crate) first: u64,
        #[prost(uint64, tag = "4")]
        pub(crate) second: u64,
        /// Further texts.
        #[prost(string, repeated, tag = "5")]
        pub(crate) more: Vec<String>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct Apps {
        #[prost(message, repeated, tag = "1")]
        pub(crate) apps: Vec<AppChanged>,
    }

    #[derive(Clone, PartialEq, Message)]
    pub(crate) struct AppChanged {
        #[prost(string, tag = "1")]
        pub(crate) app: String,
        #[prost(enumeration = "Outcome", tag = "2")]
        pub(crate) outcome: i32,
        #[prost(uint64, tag = "3")]
        pub(crate) version: u64,
        #[prost(uint64, tag = "4")]
        pub(crate) generation: u64,
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq, Enumeration)]
    #[repr(i32)]
    pub(crate) enum Outcome {
        Unknown = 0,
        Created = 1,
        Changed = 2,
        Unchanged = 3,
        Deleted = 4,
    }
}

impl From<&Answer> for wire::Answer {
    fn from(answer: &Answer) -> Self {
        use wire::{Fields, Kind};
        let none = Fields::default();
        let kind = match answer {
            Ok(Reply::Done) => Kind::Done(none),
            Ok(Reply::Member { node }) => Kind::Member(node.0),
            Ok(Reply::Apps { apps }) => {
                Kind::Apps(wire::Apps { apps: apps.iter().map(Into::into).collect() })
            }
            Err(Rejection::NoSuchApp { app }) => Kind::NoSuchApp(Fields { app: app.to_string(), ..none }),
            Err(Rejection::VersionConflict { app, expected, actual }) => Kind::VersionConflict(Fields {
                app: app.to_string(),
                first: *expected,
                second: *actual,
                ..none
            }),
            Err(Rejection::PortTaken { port, node, owner }) => Kind::PortTaken(Fields {
                app: owner.to_string(),
                text: node.clone(),
                first: (*port).into(),
                ..none
            }),
            Err(Rejection::CannotShare { port, node, app, owner, why }) => Kind::CannotShare(Fields {
                app: app.to_string(),
                text: node.clone(),
                first: (*port).into(),
                more: vec![owner.to_string(), why.clone()],
                ..none
            }),
            Err(Rejection::PortReserved { port, node }) => {
                Kind::PortReserved(Fields { text: node.clone(), first: (*port).into(), ..none })
            }
            Err(Rejection::PortPoolExhausted { node, from, to }) => Kind::PortPoolExhausted(Fields {
                text: node.clone(),
                first: (*from).into(),
                second: (*to).into(),
                ..none
            }),
            Err(Rejection::NoPlacement { app, why }) => {
                Kind::NoPlacement(Fields { app: app.to_string(), text: why.clone(), ..none })
            }
            Err(Rejection::NoSuchVersion { app, version }) => {
                Kind::NoSuchVersion(Fields { app: app.to_string(), first: *version, ..none })
            }
            Err(Rejection::NoSuchNode { node }) => Kind::NoSuchNode(Fields { first: node.0, ..none }),
            Err(Rejection::LastMember { node }) => Kind::LastMember(Fields { text: node.clone(), ..none }),
            Err(Rejection::NameTaken { name, node }) => {
                Kind::NameTaken(Fields { text: name.clone(), first: node.0, ..none })
            }
            Err(Rejection::TooManyApps { max }) => Kind::TooManyApps(Fields { first: *max as u64, ..none }),
            Err(Rejection::CannotSteer { app, why }) => {
                Kind::CannotSteer(Fields { app: app.to_string(), text: why.clone(), ..none })
            }
            Err(Rejection::AlreadyInitialised { id }) => {
                Kind::AlreadyInitialised(Fields { text: id.0.clone(), ..none })
            }
            Err(Rejection::NotInitialised) => Kind::NotInitialised(none),
            Err(Rejection::NoSuchBalancer { name }) => {
                Kind::NoSuchBalancer(Fields { text: name.clone(), ..none })
            }
            Err(Rejection::BalancerExists { name }) => {
                Kind::BalancerExists(Fields { text: name.clone(), ..none })
            }
            Err(Rejection::InvalidBalancer { why }) => {
                Kind::InvalidBalancer(Fields { text: why.clone(), ..none })
            }
            Err(Rejection::StaleTerm { proposed, current }) => {
                Kind::StaleTerm(Fields { first: *proposed, second: *current, ..none })
            }
            Err(Rejection::Stale { why }) => Kind::Stale(Fields { text: why.clone(), ..none }),
            Err(Rejection::StaleRequest { client, sequence }) => {
                Kind::StaleRequest(Fields { text: client.clone(), first: *sequence, ..none })
            }
        };
        Self { kind: Some(kind) }
    }
}

impl wire::Answer {
    /// The outer result is whether it could be read, the inner one what was answered.
    pub(super) fn read(self) -> Result<Answer, DecodeError> {
        use wire::Kind;
        let rejection = match known(self.kind, "an answer")? {
            Kind::Done(_) => return Ok(Ok(Reply::Done)),
            Kind::Member(node) => return Ok(Ok(Reply::Member { node: NodeId(node) })),
            Kind::Apps(changed) => {
                let apps = changed.apps.into_iter().map(TryInto::try_into).collect::<Result<_, _>>()?;
                return Ok(Ok(Reply::Apps { apps }));
            }
            Kind::NoSuchApp(of) => Rejection::NoSuchApp { app: app_name(&of.app)? },
            Kind::VersionConflict(of) => {
                Rejection::VersionConflict { app: app_name(&of.app)?, expected: of.first, actual: of.second }
            }
            Kind::PortTaken(of) => {
                Rejection::PortTaken { port: narrow(of.first)?, node: of.text, owner: app_name(&of.app)? }
            }
            Kind::CannotShare(of) => {
                let [owner, why] =
                    of.more.try_into().map_err(|_| corrupt("a refusal to share without owner and reason"))?;
                Rejection::CannotShare {
                    port: narrow(of.first)?,
                    node: of.text,
                    app: app_name(&of.app)?,
                    owner: app_name(&owner)?,
                    why,
                }
            }
            Kind::PortReserved(of) => Rejection::PortReserved { port: narrow(of.first)?, node: of.text },
            Kind::PortPoolExhausted(of) => Rejection::PortPoolExhausted {
                node: of.text,
                from: narrow(of.first)?,
                to: narrow(of.second)?,
            },
            Kind::NoPlacement(of) => Rejection::NoPlacement { app: app_name(&of.app)?, why: of.text },
            Kind::NoSuchVersion(of) => {
                Rejection::NoSuchVersion { app: app_name(&of.app)?, version: of.first }
            }
            Kind::NoSuchNode(of) => Rejection::NoSuchNode { node: NodeId(of.first) },
            Kind::LastMember(of) => Rejection::LastMember { node: of.text },
            Kind::NameTaken(of) => Rejection::NameTaken { name: of.text, node: NodeId(of.first) },
            Kind::TooManyApps(of) => {
                Rejection::TooManyApps { max: usize::try_from(of.first).unwrap_or(usize::MAX) }
            }
            Kind::CannotSteer(of) => Rejection::CannotSteer { app: app_name(&of.app)?, why: of.text },
            Kind::AlreadyInitialised(of) => Rejection::AlreadyInitialised { id: ClusterId(of.text) },
            Kind::NotInitialised(_) => Rejection::NotInitialised,
            Kind::NoSuchBalancer(of) => Rejection::NoSuchBalancer { name: of.text },
            Kind::BalancerExists(of) => Rejection::BalancerExists { name: of.text },
            Kind::InvalidBalancer(of) => Rejection::InvalidBalancer { why: of.text },
            Kind::StaleTerm(of) => Rejection::StaleTerm { proposed: of.first, current: of.second },
            Kind::Stale(of) => Rejection::Stale { why: of.text },
            Kind::StaleRequest(of) => Rejection::StaleRequest { client: of.text, sequence: of.first },
        };
        Ok(Err(rejection))
    }
}

impl From<&AppChanged> for wire::AppChanged {
    fn from(changed: &AppChanged) -> Self {
        let outcome = match changed.outcome {
            Outcome::Created => wire::Outcome::Created,
            Outcome::Changed => wire::Outcome::Changed,
            Outcome::Unchanged => wire::Outcome::Unchanged,
            Outcome::Deleted => wire::Outcome::Deleted,
        };
        Self {
            app: changed.app.to_string(),
            outcome: outcome.into(),
            version: changed.version,
            generation: changed.generation.0,
        }
    }
}

impl TryFrom<wire::AppChanged> for AppChanged {
    type Error = DecodeError;
    fn try_from(changed: wire::AppChanged) -> Result<Self, DecodeError> {
        let outcome = match wire::Outcome::try_from(changed.outcome) {
            Ok(wire::Outcome::Created) => Outcome::Created,
            Ok(wire::Outcome::Changed) => Outcome::Changed,
            Ok(wire::Outcome::Unchanged) => Outcome::Unchanged,
            Ok(wire::Outcome::Deleted) => Outcome::Deleted,
            Ok(wire::Outcome::Unknown) | Err(_) => return known(None, "the outcome of a change"),
        };
        let generation = GenerationId(changed.generation);
        Ok(Self { app: app_name(&changed.app)?, outcome, version: changed.version, generation })
    }
}

fn narrow(number: u64) -> Result<u16, DecodeError> {
    port(u32::try_from(number).unwrap_or(u32::MAX))
}
