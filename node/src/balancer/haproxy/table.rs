//! `show servers state`: what HAProxy has.

use std::{collections::BTreeMap, net::IpAddr};

use crate::balancer::status::Seen;

/// By the name of the backend, servers in HAProxy's order.
pub(super) type Backends = BTreeMap<String, Vec<Server>>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) name: String,
    /// `None`: a name that HAProxy has not resolved.
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
    /// As set; in effect it may be less, by an agent.
    pub(super) weight: u32,
    /// Bits of `SRV_ADMF_*` in HAProxy's server-t.h, written there as part of the file format.
    pub(super) admin: u32,
    /// 0: its check says that it is down.
    pub(super) operational: u32,
    /// An agent check has a say in weight and state.
    pub(super) has_agent: bool,
}

/// Forced, inherited, by the resolver, by the host name. 0x04 only says that the file had it disabled, and
/// stays when it is ready.
const MAINT: u32 = 0x01 | 0x02 | 0x20 | 0x40;
/// Forced, inherited.
const DRAIN: u32 = 0x08 | 0x10;

impl Server {
    pub(super) fn seen(&self) -> Seen {
        match () {
            () if self.admin & MAINT != 0 => Seen::Maint,
            () if self.admin & DRAIN != 0 || self.weight == 0 => Seen::Drain,
            () if self.operational == 0 => Seen::Failing,
            () => Seen::Ready,
        }
    }
}

/// The first line is the version of the table, the second names its columns, which later versions add to.
pub(super) fn parse(text: &str) -> Result<Backends, String> {
    let mut lines = text.lines();
    match lines.next() {
        Some("1") => {}
        Some(other) if !other.is_empty() => return Err(format!("\"{other}\" is not a table of version 1")),
        Some(_) | None => return Err("an empty answer; is its level \"admin\" or \"operator\"?".to_owned()),
    }
    let header = lines.next().and_then(|line| line.strip_prefix("# ")).ok_or("no names of columns")?;
    let columns: Vec<&str> = header.split(' ').collect();
    let mut backends = Backends::new();
    for line in lines.take_while(|line| !line.is_empty()) {
        let fields: Vec<&str> = line.split(' ').collect();
        let field = |name: &str| {
            let at = columns.iter().position(|column| *column == name);
            at.and_then(|at| fields.get(at).copied()).ok_or_else(|| format!("no {name} in \"{line}\""))
        };
        let number = |name: &str| {
            field(name)?.parse::<u32>().map_err(|_| format!("{name} is not a number in \"{line}\""))
        };
        let server = Server {
            name: field("srv_name")?.to_owned(),
            address: field("srv_addr")?.parse().ok(),
            port: u16::try_from(number("srv_port")?).map_err(|_| format!("no port in \"{line}\""))?,
            weight: number("srv_uweight")?,
            admin: number("srv_admin_state")?,
            operational: number("srv_op_state")?,
            has_agent: number("srv_agent_state")? != 0,
        };
        backends.entry(field("be_name")?.to_owned()).or_default().push(server);
    }
    Ok(backends)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From HAProxy 2.6.12.
    const HEADER: &str = "1\n# be_id be_name srv_id srv_name srv_addr srv_op_state srv_admin_state srv_uweight srv_iweight srv_time_since_last_change srv_check_status srv_check_result srv_check_health srv_check_state srv_agent_state bk_f_forced_id srv_f_forced_id srv_fqdn srv_port srvrecord srv_use_ssl srv_check_port srv_check_addr srv_agent_addr srv_agent_port\n";

    #[test]
    fn states_are_read_as_haproxy_means_them() {
        for (row, seen) in [
            ("3 web 1 s 127.0.0.1 0 5 1 1 2 1 0 0 14 0 0 0 - 1 - 0 0 - - 0", Seen::Maint),
            ("3 web 1 s 127.0.0.5 2 4 100 1 0 1 0 2 6 0 0 0 - 8080 - 0 0 - - 0", Seen::Ready),
            ("3 web 1 s 127.0.0.5 2 0 100 1 0 1 0 2 6 0 0 0 - 8080 - 0 0 - - 0", Seen::Ready),
            ("3 web 1 s 127.0.0.5 2 8 100 1 0 1 0 2 6 0 0 0 - 8080 - 0 0 - - 0", Seen::Drain),
            ("3 web 1 s 127.0.0.5 2 0 0 1 0 1 0 2 6 0 0 0 - 8080 - 0 0 - - 0", Seen::Drain),
            ("3 web 1 s 127.0.0.5 0 0 100 1 0 1 0 2 6 0 0 0 - 8080 - 0 0 - - 0", Seen::Failing),
        ] {
            let backends = parse(&format!("{HEADER}{row}\n\n")).unwrap();
            assert_eq!(backends["web"][0].seen(), seen, "{row}");
        }
    }

    #[test]
    fn what_is_no_table_is_said_to_be_none() {
        for text in
            ["", "\n", "Permission denied\n\n", "2\n# be_id\n", "1\nbe_id\n", "1\n# be_id be_name\n3 web\n"]
        {
            parse(text).expect_err(text);
        }
    }
}
