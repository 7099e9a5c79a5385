//! The bytes of the log and of snapshots: protobuf behind one byte that says which format it is.
//!
//! Field numbers are never reused. An app spec travels as its canonical JSON document and not as
//! protobuf: the file a user writes, the API, the log and a snapshot then share one type, and a new
//! field of a spec is written down once instead of four times. The price is that a spec's defaults
//! are part of the format, because the canonical form leaves them out.
//!
//! A node must not guess. A command, an enum value or a spec field that this binary does not know was
//! written by a newer one, and skipping it would make this replica differ from the others: that is
//! `DecodeError::Newer`, and the node stops. protobuf itself skips unknown *fields*, so a field that
//! changes what a message means needs a new `FORMAT`.

use flotilla_spec::{AppName, AppSpec};
use prost::Message;

use crate::{Answer, Batch, Fleet};

mod answer;
mod command;
mod fleet;
pub mod raft;

const FORMAT: u8 = 1;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("written by a newer version: {what}")]
    Newer { what: String },
    #[error("corrupt: {why}")]
    Corrupt { why: String },
}

pub fn encode_batch(batch: &Batch) -> Vec<u8> {
    seal(&command::wire::Batch::from(batch))
}

pub fn decode_batch(bytes: &[u8]) -> Result<Batch, DecodeError> {
    open::<command::wire::Batch>(bytes)?.try_into()
}

/// One answer per command of a batch, in its order.
pub fn encode_answers(answers: &[Answer]) -> Vec<u8> {
    let answers = answers.iter().map(answer::wire::Answer::from).collect();
    seal(&answer::wire::Answers { answers })
}

pub fn decode_answers(bytes: &[u8]) -> Result<Vec<Answer>, DecodeError> {
    open::<answer::wire::Answers>(bytes)?.answers.into_iter().map(answer::wire::Answer::read).collect()
}

pub fn encode_fleet(fleet: &Fleet) -> Vec<u8> {
    seal(&fleet::wire::Fleet::from(fleet))
}

pub fn decode_fleet(bytes: &[u8]) -> Result<Fleet, DecodeError> {
    open::<fleet::wire::Fleet>(bytes)?.try_into()
}

impl From<prost::DecodeError> for DecodeError {
    fn from(err: prost::DecodeError) -> Self {
        corrupt(&err.to_string())
    }
}

fn seal(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(FORMAT);
    message.encode(&mut bytes).expect("a Vec grows");
    bytes
}

fn open<M: Message + Default>(bytes: &[u8]) -> Result<M, DecodeError> {
    match bytes {
        [FORMAT, message @ ..] => Ok(M::decode(message)?),
        [] => Err(corrupt("there are no bytes")),
        [format, ..] => Err(newer(&format!("format {format}"))),
    }
}

fn newer(what: &str) -> DecodeError {
    DecodeError::Newer { what: what.to_owned() }
}

fn corrupt(why: &str) -> DecodeError {
    DecodeError::Corrupt { why: why.to_owned() }
}

/// A part that every writer of this format has set; a `oneof` is empty when its case is not known.
fn known<T>(part: Option<T>, what: &str) -> Result<T, DecodeError> {
    part.ok_or_else(|| newer(what))
}

fn port(number: u32) -> Result<u16, DecodeError> {
    u16::try_from(number).map_err(|_| corrupt("a port above 65535"))
}

fn app_name(name: &str) -> Result<AppName, DecodeError> {
    AppName::parse(name).map_err(|err| corrupt(&err.to_string()))
}

fn app_spec(json: &[u8]) -> Result<AppSpec, DecodeError> {
    AppSpec::from_json(json).map_err(|err| newer(&err.to_string()))
}
