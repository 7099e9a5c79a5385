//! openraft's messages.

use flotilla_api::v1::{self, append_entries_reply as reply};
use flotilla_raft_store::{NodeId, codec::raft::decode_entry, types::TypeConfig};
use openraft::{
    CommittedLeaderId, LogId, Vote,
    raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse},
};

use super::{Malformed, required};

pub(crate) fn vote_to_pb(vote: &Vote<NodeId>) -> v1::RaftVote {
    v1::RaftVote { term: vote.leader_id.term, node: vote.leader_id.node_id.0, committed: vote.committed }
}

pub(crate) fn vote(vote: Option<v1::RaftVote>) -> Result<Vote<NodeId>, Malformed> {
    let vote = required(vote, "vote")?;
    Ok(if vote.committed {
        Vote::new_committed(vote.term, NodeId(vote.node))
    } else {
        Vote::new(vote.term, NodeId(vote.node))
    })
}

pub(crate) fn log_id_to_pb(id: &LogId<NodeId>) -> v1::RaftLogId {
    v1::RaftLogId { term: id.leader_id.term, node: id.leader_id.node_id.0, index: id.index }
}

fn log_id(id: v1::RaftLogId) -> LogId<NodeId> {
    LogId::new(CommittedLeaderId::new(id.term, NodeId(id.node)), id.index)
}

pub(crate) fn append_request(
    request: v1::AppendEntriesRequest,
) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    let entries = request
        .entries
        .iter()
        .map(|entry| decode_entry(entry).map_err(|err| Malformed(format!("log entry: {err}"))))
        .collect::<Result<_, _>>()?;
    Ok(AppendEntriesRequest {
        vote: vote(request.vote)?,
        prev_log_id: request.prev_log_id.map(log_id),
        entries,
        leader_commit: request.leader_commit.map(log_id),
    })
}

pub(crate) fn append_reply_to_pb(answer: &AppendEntriesResponse<NodeId>) -> v1::AppendEntriesReply {
    let result = match answer {
        AppendEntriesResponse::Success => reply::Result::Success(true),
        AppendEntriesResponse::PartialSuccess(matching) => {
            reply::Result::Partial(reply::PartialSuccess { matching: matching.as_ref().map(log_id_to_pb) })
        }
        AppendEntriesResponse::Conflict => reply::Result::Conflict(true),
        AppendEntriesResponse::HigherVote(vote) => reply::Result::HigherVote(vote_to_pb(vote)),
    };
    v1::AppendEntriesReply { result: Some(result) }
}

pub(crate) fn append_reply(
    answer: v1::AppendEntriesReply,
) -> Result<AppendEntriesResponse<NodeId>, Malformed> {
    Ok(match required(answer.result, "result")? {
        reply::Result::Success(_) => AppendEntriesResponse::Success,
        reply::Result::Partial(partial) => {
            AppendEntriesResponse::PartialSuccess(partial.matching.map(log_id))
        }
        reply::Result::Conflict(_) => AppendEntriesResponse::Conflict,
        reply::Result::HigherVote(higher) => AppendEntriesResponse::HigherVote(vote(Some(higher))?),
    })
}

pub(crate) fn vote_request(request: v1::VoteRequest) -> Result<VoteRequest<NodeId>, Malformed> {
    Ok(VoteRequest { vote: vote(request.vote)?, last_log_id: request.last_log_id.map(log_id) })
}

pub(crate) fn vote_reply_to_pb(answer: &VoteResponse<NodeId>) -> v1::VoteReply {
    v1::VoteReply {
        vote: Some(vote_to_pb(&answer.vote)),
        granted: answer.vote_granted,
        last_log_id: answer.last_log_id.as_ref().map(log_id_to_pb),
    }
}

pub(crate) fn vote_reply(answer: v1::VoteReply) -> Result<VoteResponse<NodeId>, Malformed> {
    Ok(VoteResponse {
        vote: vote(answer.vote)?,
        vote_granted: answer.granted,
        last_log_id: answer.last_log_id.map(log_id),
    })
}
