//! Where an endpoint is reached: at a network address, or at a socket file of this machine.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use socket2::SockAddr;

/// What a target of a socket file begins with.
const FILE: &str = "unix:";

/// Cheap to clone: neither kind allocates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    Inet(SocketAddr),
    /// The absolute path of the file.
    Unix(Arc<Path>),
}

impl Address {
    /// What `unix:/path` stands for; `None`: it is none, its path is not absolute, or longer than the kernel takes
    /// (unix(7): 107 bytes).
    pub(crate) fn of_file(target: &str) -> Option<Address> {
        let path = PathBuf::from(target.strip_prefix(FILE)?);
        let fits = path.is_absolute() && !target.contains('\0') && SockAddr::unix(&path).is_ok();
        fits.then(|| Address::Unix(path.into()))
    }

    /// `None`: it is a file.
    pub fn inet(&self) -> Option<SocketAddr> {
        match self {
            Address::Inet(address) => Some(*address),
            Address::Unix(_) => None,
        }
    }
}

/// Whether a target, as the user wrote it, is a socket file.
pub(crate) fn is_file(target: &str) -> bool {
    target.starts_with(FILE)
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Inet(address)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Inet(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "{FILE}{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_an_absolute_path_that_the_kernel_takes() {
        let longest = format!("unix:/{}", "a".repeat(106));
        for target in ["unix:/run/app.sock", "unix:/a b:80", &longest] {
            assert_eq!(Address::of_file(target).map(|address| address.to_string()).as_deref(), Some(target));
        }
        for target in
            ["/run/app.sock", "unix:app.sock", "unix:", "unix:@name", "unix:/a\0b", &format!("{longest}a")]
        {
            assert_eq!(Address::of_file(target), None, "{target}");
        }
    }
}
