//! The PROXY protocol, versions 1 and 2: who the client of a balancer in front of us is, and telling the
//! next hop the same (haproxy.org, `doc/proxy-protocol.txt`).
//!
//! Pure: bytes in, a header out, and back. Who may send one, and how long it may take, is decided in `edge`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::Bytes;

/// The longest line of version 1, its end included.
const V1_BYTES_MAX: usize = 107;
/// Addresses and TLVs of version 2. The format allows 65,535; what balancers send stays far below this.
pub(crate) const V2_BYTES_MAX: usize = 4096;
/// More than any header we accept.
pub(crate) const HEADER_BYTES_MAX: usize = V2_PREFIX + V2_BYTES_MAX;

const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Signature, version and command, family, length.
const V2_PREFIX: usize = 16;

const ALPN: u8 = 0x01;
const AUTHORITY: u8 = 0x02;
const CRC32C: u8 = 0x03;
const NOOP: u8 = 0x04;
const UNIQUE_ID: u8 = 0x05;
const SSL: u8 = 0x20;
const NETNS: u8 = 0x30;
/// A unique id is at most this long (§2.2.5).
const UNIQUE_ID_BYTES_MAX: usize = 128;

/// What a complete header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// The client and where it connected to. `None`: the balancer speaks for itself (LOCAL, UNKNOWN), or
    /// its client came over something that is not TCP.
    pub(crate) addresses: Option<(SocketAddr, SocketAddr)>,
    /// Everything behind the addresses, as it came and well formed.
    pub(crate) tlvs: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// All of it belongs to the header, and more has to come.
    Incomplete,
    /// The header is this many bytes long; the rest is the client's.
    Complete(Header, usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    #[error("this is no PROXY header")]
    NotOne,
    #[error("the PROXY line is malformed")]
    Line,
    #[error("the version, command or family is not one of the protocol's")]
    Version,
    #[error("the header is longer than {V2_BYTES_MAX} bytes")]
    TooLong,
    #[error("the header is too short for its addresses")]
    TooShort,
    #[error("the TLVs do not add up")]
    Tlv,
    #[error("the checksum is wrong")]
    Checksum,
}

/// Which version to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProxyVersion {
    V1,
    V2,
}

/// Reads what may be the beginning of a connection.
pub(crate) fn parse(bytes: &[u8]) -> Result<Parsed, Malformed> {
    if begins(bytes, SIGNATURE) {
        parse_v2(bytes)
    } else if begins(bytes, b"PROXY ") {
        parse_v1(bytes)
    } else {
        Err(Malformed::NotOne)
    }
}

/// Whether `bytes` begin with `prefix`, or may once more of them are there.
fn begins(bytes: &[u8], prefix: &[u8]) -> bool {
    let n = bytes.len().min(prefix.len());
    bytes[..n] == prefix[..n]
}

fn parse_v1(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let line = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = memchr::memchr(b'\n', line) else {
        return if line.len() == V1_BYTES_MAX { Err(Malformed::Line) } else { Ok(Parsed::Incomplete) };
    };
    let line = line[..end].strip_suffix(b"\r").ok_or(Malformed::Line)?;
    let line = std::str::from_utf8(line).map_err(|_| Malformed::Line)?;
    let mut words = line.split(' ').skip(1);
    let mut word = || words.next().ok_or(Malformed::Line);
    let addresses = match word()? {
        // What follows is to be ignored (§2.1).
        "UNKNOWN" => return Ok(Parsed::Complete(Header::default(), end + 1)),
        "TCP4" => {
            let (from, to) = (word()?, word()?);
            (IpAddr::V4(parse_address::<Ipv4Addr>(from)?), IpAddr::V4(parse_address::<Ipv4Addr>(to)?))
        }
        "TCP6" => {
            let (from, to) = (word()?, word()?);
            (IpAddr::V6(parse_address::<Ipv6Addr>(from)?), IpAddr::V6(parse_address::<Ipv6Addr>(to)?))
        }
        _ => return Err(Malformed::Line),
    };
    let ports = (parse_port(word()?)?, parse_port(word()?)?);
    if word().is_ok() {
        return Err(Malformed::Line);
    }
    let addresses = Some((SocketAddr::new(addresses.0, ports.0), SocketAddr::new(addresses.1, ports.1)));
    Ok(Parsed::Complete(Header { addresses, tlvs: Bytes::new() }, end + 1))
}

fn parse_address<A: std::str::FromStr>(text: &str) -> Result<A, Malformed> {
    text.parse().map_err(|_| Malformed::Line)
}

/// No sign, no leading zero (§2.1).
fn parse_port(text: &str) -> Result<u16, Malformed> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().map_err(|_| Malformed::Line) } else { Err(Malformed::Line) }
}

fn parse_v2(bytes: &[u8]) -> Result<Parsed, Malformed> {
    let Some((prefix, rest)) = bytes.split_at_checked(V2_PREFIX) else { return Ok(Parsed::Incomplete) };
    let (version, command, family) = (prefix[12] >> 4, prefix[12] & 0x0f, prefix[13]);
    if version != 2 || command > 1 || family >> 4 > 3 || family & 0x0f > 2 {
        return Err(Malformed::Version);
    }
    let length = usize::from(u16::from_be_bytes([prefix[14], prefix[15]]));
    if length > V2_BYTES_MAX {
        return Err(Malformed::TooLong);
    }
    let Some(body) = rest.get(..length) else { return Ok(Parsed::Incomplete) };
    let (addresses, tlvs) = split_addresses(family, body)?;
    check_tlvs(tlvs, &bytes[..V2_PREFIX + length])?;
    // LOCAL: the addresses are to be ignored, whatever they are (§2.2).
    let addresses = if command == 0 { None } else { addresses };
    let header = Header { addresses, tlvs: Bytes::copy_from_slice(tlvs) };
    Ok(Parsed::Complete(header, V2_PREFIX + length))
}

type Addresses = Option<(SocketAddr, SocketAddr)>;

fn split_addresses(family: u8, body: &[u8]) -> Result<(Addresses, &[u8]), Malformed> {
    let length = match family >> 4 {
        1 => 12,
        2 => 36,
        3 => 216,
        _ => 0,
    };
    let (block, tlvs) = body.split_at_checked(length).ok_or(Malformed::TooShort)?;
    // Over TCP only: the address of a datagram is nobody who could be connected here.
    let addresses = match (family, block) {
        (0x11, [a, b, c, d, e, f, g, h, p, q, r, s]) => Some((
            SocketAddr::new(Ipv4Addr::new(*a, *b, *c, *d).into(), u16::from_be_bytes([*p, *q])),
            SocketAddr::new(Ipv4Addr::new(*e, *f, *g, *h).into(), u16::from_be_bytes([*r, *s])),
        )),
        (0x21, block) => {
            let ip = |at: usize| {
                let bytes: [u8; 16] = block[at..at + 16].try_into().expect("sixteen bytes of thirty-six");
                IpAddr::from(bytes)
            };
            let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
            Some((SocketAddr::new(ip(0), port(32)), SocketAddr::new(ip(16), port(34))))
        }
        _ => None,
    };
    Ok((addresses, tlvs))
}

/// Whether the TLVs fill their place exactly, and the checksum, where there is one, is right.
fn check_tlvs(tlvs: &[u8], header: &[u8]) -> Result<(), Malformed> {
    let mut at = 0;
    while at < tlvs.len() {
        let (kind, value) = tlv_at(tlvs, at).ok_or(Malformed::Tlv)?;
        if kind == CRC32C {
            let sent: [u8; 4] = value.try_into().map_err(|_| Malformed::Tlv)?;
            let from = header.len() - tlvs.len() + at + 3;
            // Computed with the field itself zero (§2.2.3).
            let crc = crc32c([&header[..from], &[0; 4], &header[from + 4..]]);
            if crc != u32::from_be_bytes(sent) {
                return Err(Malformed::Checksum);
            }
        }
        if kind == UNIQUE_ID && value.len() > UNIQUE_ID_BYTES_MAX {
            return Err(Malformed::Tlv);
        }
        at += 3 + value.len();
    }
    Ok(())
}

fn tlv_at(tlvs: &[u8], at: usize) -> Option<(u8, &[u8])> {
    let [kind, high, low] = *tlvs.get(at..at + 3)? else { return None };
    let length = usize::from(u16::from_be_bytes([high, low]));
    Some((kind, tlvs.get(at + 3..at + 3 + length)?))
}

/// CRC32c (Castagnoli, RFC 4960 appendix B), bit by bit: a header is short, and few carry one.
fn crc32c<const N: usize>(parts: [&[u8]; N]) -> u32 {
    let mut crc = u32::MAX;
    for byte in parts.into_iter().flatten() {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

/// What a header that we send says besides addresses.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct About<'a> {
    /// The protocol that the client and we agreed on inside TLS.
    pub(crate) alpn: Option<&'a [u8]>,
    /// The name the client asked for in its TLS hello.
    pub(crate) authority: Option<&'a str>,
    /// Of the session, for logs on both sides.
    pub(crate) unique_id: Option<&'a [u8]>,
    /// What came in with the client's own header.
    pub(crate) received: &'a [u8],
}

/// A header for the next hop. `None`: we speak for ourselves, as a health check does.
pub(crate) fn write(
    version: ProxyVersion,
    addresses: Option<(SocketAddr, SocketAddr)>,
    about: &About<'_>,
) -> Vec<u8> {
    let addresses = addresses.map(|(from, to)| same_family(from, to));
    match version {
        ProxyVersion::V1 => match addresses {
            None => b"PROXY UNKNOWN\r\n".to_vec(),
            Some((from, to)) => {
                let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
                let line =
                    format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port());
                line.into_bytes()
            }
        },
        ProxyVersion::V2 => write_v2(addresses, about),
    }
}

fn write_v2(addresses: Addresses, about: &About<'_>) -> Vec<u8> {
    let mut header = Vec::with_capacity(128);
    header.extend_from_slice(SIGNATURE);
    match addresses {
        None => header.extend_from_slice(&[0x20, 0x00, 0, 0]),
        Some((from, to)) => {
            header.extend_from_slice(&[0x21, if from.is_ipv4() { 0x11 } else { 0x21 }, 0, 0]);
            for ip in [from.ip(), to.ip()] {
                match ip {
                    IpAddr::V4(ip) => header.extend_from_slice(&ip.octets()),
                    IpAddr::V6(ip) => header.extend_from_slice(&ip.octets()),
                }
            }
            header.extend_from_slice(&from.port().to_be_bytes());
            header.extend_from_slice(&to.port().to_be_bytes());
            write_about(&mut header, about);
        }
    }
    let length = u16::try_from(header.len() - V2_PREFIX).expect("bounded by what is put in");
    header[14..16].copy_from_slice(&length.to_be_bytes());
    header
}

fn write_about(header: &mut Vec<u8>, about: &About<'_>) {
    let mut put = |kind: u8, value: &[u8]| {
        let Ok(length) = u16::try_from(value.len()) else { return };
        if header.len() + 3 + value.len() <= HEADER_BYTES_MAX {
            header.push(kind);
            header.extend_from_slice(&length.to_be_bytes());
            header.extend_from_slice(value);
        }
    };
    let has = |kind: u8| match kind {
        ALPN => about.alpn.is_some(),
        AUTHORITY => about.authority.is_some(),
        _ => false,
    };
    if let Some(alpn) = about.alpn {
        put(ALPN, alpn);
    }
    if let Some(authority) = about.authority {
        put(AUTHORITY, authority.as_bytes());
    }
    let mut has_id = false;
    let mut at = 0;
    while let Some((kind, value)) = tlv_at(about.received, at) {
        at += 3 + value.len();
        has_id |= kind == UNIQUE_ID;
        // These speak of the connection between the balancer and us, or of the header they came in.
        let ends_here = matches!(kind, CRC32C | NOOP | SSL | NETNS) || has(kind);
        if !ends_here {
            put(kind, value);
        }
    }
    if let (false, Some(id)) = (has_id, about.unique_id) {
        put(UNIQUE_ID, id);
    }
}

/// One header has one family: a v4 address beside a v6 one is written as a mapped one.
fn same_family(from: SocketAddr, to: SocketAddr) -> (SocketAddr, SocketAddr) {
    let (from_ip, to_ip) = match (from.ip().to_canonical(), to.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V6(to)) => (from.to_ipv6_mapped().into(), to.into()),
        (IpAddr::V6(from), IpAddr::V4(to)) => (from.into(), to.to_ipv6_mapped().into()),
        same => same,
    };
    (SocketAddr::new(from_ip, from.port()), SocketAddr::new(to_ip, to.port()))
}

#[cfg(test)]
mod tests;
