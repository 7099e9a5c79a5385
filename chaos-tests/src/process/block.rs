//! A /24 of loopback addresses that no other test of this machine uses.

use std::{
    net::{Ipv4Addr, TcpListener},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// Whoever holds this port of a block's last address holds the block.
const LOCK_PORT: u16 = 7399;

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(super) struct Block {
    second: u8,
    third: u8,
    /// Given back by the kernel, however the process ends.
    _lock: TcpListener,
}

impl Block {
    pub(super) fn reserve() -> Self {
        for _ in 0..10_000 {
            // 127.16.0.0 to 127.215.255.0: far from 127.0.0.x, which people use, and from the clients of `load`.
            let number = process::id().wrapping_mul(61).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
            let [_, _, second, third] = (number % (200 << 8)).to_be_bytes();
            let (second, third) = (16 + second, third);
            if let Ok(lock) = TcpListener::bind((Ipv4Addr::new(127, second, third, 254), LOCK_PORT)) {
                return Self { second, third, _lock: lock };
            }
        }
        panic!("no block of loopback addresses is free");
    }

    pub(super) fn address(&self, index: usize) -> Ipv4Addr {
        assert!(index < 250, "a block has 250 addresses");
        Ipv4Addr::new(127, self.second, self.third, u8::try_from(index + 1).expect("below 251"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_do_not_overlap() {
        let blocks: Vec<_> = (0..50).map(|_| Block::reserve()).collect();
        let mut addresses: Vec<_> = blocks.iter().map(|block| block.address(0)).collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), 50);
    }
}
