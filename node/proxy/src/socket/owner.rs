//! Who has a port: a best effort over `/proc`, for the error message of a refused bind.

use std::fs;

/// The process that listens on `port`, as `name (pid 1)`. `None` when it may not be seen.
pub(crate) fn of_port(port: u16) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| {
            listeners(&table, port).map(|inode| format!("socket:[{inode}]")).collect::<Vec<_>>()
        })
        .collect();
    let mut processes =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let pid = processes.find(|name| name.parse::<u32>().is_ok() && holds(name, &inodes))?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("{} (pid {pid})", name.trim()))
}

/// Socket inodes of the rows in state LISTEN (0A) on `port`.
///
/// Columns: `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode`.
fn listeners(table: &str, port: u16) -> impl Iterator<Item = &str> {
    let suffix = format!(":{port:04X}");
    table.lines().skip(1).filter_map(move |line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let (local, state, inode) = (columns.get(1)?, columns.get(3)?, columns.get(9)?);
        (local.ends_with(&suffix) && *state == "0A").then_some(*inode)
    })
}

fn holds(pid: &str, inodes: &[String]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let mut links = descriptors.flatten().filter_map(|descriptor| fs::read_link(descriptor.path()).ok());
    links.any(|link| inodes.iter().any(|inode| link.as_os_str() == inode.as_str()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_listening_rows_of_the_port_are_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0\n\
            1: 0100007F:1F90 0100007F:D2F0 01 00000000:00000000 00:00000000 00000000     0        0 222 1 0\n\
            2: 0100007F:1F91 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 333 1 0\n";
        assert_eq!(super::listeners(table, 8080).collect::<Vec<_>>(), ["111"]);
    }
}
