//! What nodes and this command refuse, at length. The codes of invalid specs (E01xx) are explained
//! by the crate that finds them; `E0100` is a node's word for "it was one of those".
//!
//! A code keeps its meaning forever: people search for it.

pub(crate) struct Explained {
    pub(crate) code: &'static str,
    pub(crate) title: &'static str,
    pub(crate) text: &'static str,
}

const fn explained(code: &'static str, title: &'static str, text: &'static str) -> Explained {
    Explained { code, title, text }
}

pub(crate) const CODES: [Explained; 31] = [
    explained(
        "E0100",
        "the spec is invalid",
        "The leader checked the spec again and refused it. `flotilla app validate -f FILE` shows every mistake with \
         its line and column. If it finds none, the command is of another version than the nodes: compare \
         `flotilla version` with `flotilla node list`.",
    ),
    explained(
        "E0201",
        "the port is taken",
        "Another app holds the port on a node where this app is placed. An app keeps a port from the moment a \
         generation is placed until the last generation that uses it has left the node, so a port that was just given \
         up may still drain. `flotilla app ports` shows who has which. With `port = 0` the cluster chooses a free one.",
    ),
    explained(
        "E0202",
        "the port is reserved",
        "The node keeps this port for something else: [ports] reserved in its node.toml, which has 22 (ssh) unless it \
         says otherwise. Choose another port, or change the list and restart the node.",
    ),
    explained(
        "E0203",
        "no free port is left",
        "The app asks for `port = 0`, and every port of [ports] pool in node.toml is given out on that node. Delete \
         apps that are no longer used, or widen the pool.",
    ),
    explained(
        "E0204",
        "no node can carry the app",
        "Placement found no node: the regions or labels that `placement` asks for exist nowhere, or every such node is \
         cordoned or draining. `flotilla node list -o wide` shows regions, zones, labels and states.",
    ),
    explained(
        "E0205",
        "too many apps",
        "A region carries at most 10,000 apps. Every node knows all of them, and they all fit into its memory: that is \
         what the limit is for.",
    ),
    explained(
        "E0301",
        "there is no such app",
        "No app of this name exists, or it has just been deleted. `flotilla app list` shows those that do.",
    ),
    explained(
        "E0302",
        "the version is another one",
        "--if-version names the version that you looked at, and somebody has changed the app since. Nothing was \
         changed now. Look at `flotilla app history APP`, make your change to the newest version \
         (`flotilla app get APP`), and apply again.",
    ),
    explained(
        "E0303",
        "there is no such version",
        "The last ten versions of an app are kept. `flotilla app history APP` lists them.",
    ),
    explained(
        "E0304",
        "there is no such node",
        "No node of this name or id is a member. `flotilla node list` shows the members.",
    ),
    explained(
        "E0305",
        "the fleet changed at the same moment",
        "The change was decided on a state that was no longer the newest when it was made, so it was refused. Nothing \
         is wrong; try again.",
    ),
    explained(
        "E0306",
        "the request is older than the last one",
        "Requests of one client are numbered, so that a repeated one happens once. This one arrived after a later one \
         of the same client and was ignored.",
    ),
    explained(
        "E0307",
        "the rollout cannot be told that",
        "A rollout is paused, resumed, promoted or aborted only while it is on its way. One that has completed is undone \
         with `flotilla app rollback APP`; one that goes back already ends by itself; and one that promotes itself has \
         nothing to promote, except with --full, which skips the bakes and gates that are left.",
    ),
    explained(
        "E0308",
        "it is the last node",
        "A cluster has at least one node, so the last one cannot be removed from it. To end the cluster stop the \
         process and remove its data directory.",
    ),
    explained(
        "E0309",
        "the node is in another state",
        "A node that gives its traffic up can neither be cordoned nor uncordoned, and only such a node can be undrained. \
         `flotilla node list` shows the state of each node.",
    ),
    explained(
        "E0320",
        "there is no such balancer",
        "No load balancer of this name was added, or it has been removed. `flotilla balancer list` shows those that are.",
    ),
    explained(
        "E0321",
        "there is such a balancer already",
        "A load balancer of this name was added before, with other settings, and was left as it is. Give the new one \
         another name, or change what is there with --replace.",
    ),
    explained(
        "E0322",
        "the balancer cannot be told with these settings",
        "The message says which setting cannot work. A unix socket needs --node, because it is on one machine; a port \
         that nodes open for a balancer must be free on all of them, and no app may have it afterwards; a check port \
         is for exactly one app. `flotilla balancer add KIND --help` explains each.",
    ),
    explained(
        "E0400",
        "no node answers",
        "None of the addresses in --addr (or FLOTILLA_ADDR) could be reached. Traffic does not depend on this: nodes \
         serve what they last applied. Is the address the gRPC port (7400, not 7401)? Does the node run \
         (`systemctl status flotilla`)? Does it listen on an address that is reachable from here ([cluster] listen)?",
    ),
    explained(
        "E0401",
        "no leader",
        "Changes need a leader, and a leader needs a majority of the voters. Right after the death of a leader this \
         lasts one election, a few seconds, and the command tries again by itself. If it lasts, a majority of the \
         voters is down or cut off: `flotilla cluster status` shows which. Traffic goes on all the while.",
    ),
    explained(
        "E0402",
        "it is not known whether the change happened",
        "The answer did not arrive in time. The change may have been made, or may still be made. Look first \
         (`flotilla app list`, `flotilla rollout list`); applying the same spec twice changes nothing the second time.",
    ),
    explained(
        "E0403",
        "the disk is nearly full",
        "The leader refuses changes before its data disk is full, because a log that cannot be written to stops the \
         node. Reads and traffic go on. Free space in its data directory.",
    ),
    explained(
        "E0500",
        "the address is in use",
        "Something else listens where a node of `flotilla dev` wants to listen. Often it is another `flotilla dev`, or \
         a node that runs as a service. Stop it, or choose another app port with --port.",
    ),
    explained(
        "E0501",
        "a cluster exists already",
        "A node belongs to one cluster for the life of its data directory. To make it part of another one, stop it, \
         move its data directory away, start it and join.",
    ),
    explained(
        "E0502",
        "the node belongs to no cluster",
        "It was started and waits. Make a cluster with `flotilla cluster init`, once, on one node; on every other node \
         `flotilla cluster join ADDRESS` with the address of a member.",
    ),
    explained(
        "E0503",
        "the name is taken",
        "Names of members are unique. A node that lost its data directory comes back as a new member: give it a name \
         of its own (`name` in node.toml).",
    ),
    explained(
        "E0504",
        "the message was for another node",
        "Every message between nodes names the cluster, the sender and the receiver. A node refused one that was not \
         for it: an address was given to another machine, or two clusters were mixed up. Compare \
         `flotilla cluster status` on both sides.",
    ),
    explained(
        "E0505",
        "the message cannot be read",
        "The command and the node, or two nodes, speak different versions. Compare `flotilla version` with \
         `flotilla node list`.",
    ),
    explained(
        "E0506",
        "no member let the node in",
        "None of the addresses given to `cluster join` answered, or none of them knows a leader. Joining is a change \
         like any other, so a majority of the voters must be up.",
    ),
    explained(
        "E0507",
        "the node is stopping",
        "It finishes its sessions and takes no more questions. Ask another node: --addr takes several addresses.",
    ),
    explained(
        "E0508",
        "the demo fleet did not start",
        "`flotilla dev` starts real nodes as child processes and talks to them as anybody would. One of them did not \
         come up in time; its log, named in the message, says why.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_in_order_and_each_is_explained_once() {
        assert!(CODES.is_sorted_by(|a, b| a.code < b.code));
        for Explained { code, text, .. } in &CODES {
            assert!(text.len() > 60 && text.ends_with(['.', ')']) || text.ends_with('?'), "{code}");
            assert_eq!(code.len(), 5, "{code}");
        }
    }
}
