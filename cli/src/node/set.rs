//! What the verbs that change a node have in common.

use flotilla_api::v1::{ListNodesRequest, Node, SetNodeRequest, set_node_request::Action};

use crate::{
    args::Shell,
    client::{Client, fleet},
    exit::{Exit, Failure},
    json,
};

/// Asks once; the answer is the node as it is now.
pub(super) async fn set(client: &Client, shell: &Shell, request: SetNodeRequest) -> Result<Node, Failure> {
    let request = SetNodeRequest { request: Some(client.request_id()), ..request };
    client.write(shell.answer_within(), async |channel| fleet(channel).set_node(request.clone()).await).await
}

/// For what is done as soon as it is agreed on.
pub(super) async fn run(shell: &Shell, node: String, action: Action, what: &str) -> Result<Exit, Failure> {
    let client = shell.client();
    let request = SetNodeRequest { node, action: action.into(), ..SetNodeRequest::default() };
    let node = set(&client, shell, request).await?;
    shell.output.emit("Node", || json::node(&node), |_| format!("✓ {} {what}", node.name))?;
    Ok(Exit::Done)
}

/// The node as it is now; `None` when it is no member any more.
pub(super) async fn look(client: &Client, id: u64) -> Result<Option<Node>, Failure> {
    let reply = client.read(async |channel| fleet(channel).list_nodes(ListNodesRequest {}).await).await?;
    Ok(reply.nodes.into_iter().find(|node| node.id == id))
}
