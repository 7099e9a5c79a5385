//! Who listens at an address of this machine, as far as the kernel lets us see.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
};

/// `pid 4711 (nginx)`. Nothing where there is no /proc, or for processes of other users.
pub(super) fn port_owner(address: SocketAddrV4) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .into_iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, address))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    let pid = fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let mut links = fs::read_dir(entry.path().join("fd")).ok()?.flatten();
        let holds = links.any(|link| {
            fs::read_link(link.path())
                .is_ok_and(|to| inodes.iter().any(|inode| to.as_os_str() == inode.as_str()))
        });
        holds.then_some(pid)
    })?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Some(format!("pid {pid} ({})", name.trim()))
}

/// proc(5), /proc/net/tcp: the second field is `address:port` in hex, the fourth the state (0A is
/// LISTEN), the tenth the inode. Addresses are in the byte order of the machine; an IPv4 address is
/// the end of an IPv6 one, and one that is all zeros is every address.
fn listening_inodes(table: &str, address: SocketAddrV4) -> Vec<String> {
    let port = format!("{:04X}", address.port());
    let ends = |ip: Ipv4Addr| format!("{:08X}", u32::from_ne_bytes(ip.octets()));
    let (this, every) = (ends(*address.ip()), ends(Ipv4Addr::UNSPECIFIED));
    let meant = |ip: &str| ip.ends_with(&this) || ip.ends_with(&every);
    table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.len() > 9 && fields[3] == "0A")
        .filter(|fields| fields[1].split_once(':').is_some_and(|(ip, at)| at == port && meant(ip)))
        .map(|fields| fields[9].to_owned())
        .collect()
}

#[cfg(all(test, target_endian = "little"))]
mod tests {
    use super::*;

    #[test]
    fn only_listening_sockets_of_the_address_are_found() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1
   1: 0100007F:1F90 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 4712 1
   2: 0100007F:1CE8 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1
   3: 0200007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4714 1
   4: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4715 1";
        assert_eq!(listening_inodes(table, "127.0.0.1:8080".parse().unwrap()), ["4711", "4715"]);
    }
}
