//! How long packs are that are kept in memory until their parity is computed.
//!
//! Bounds only; who keeps them is not looked at here.

use crate::repo::config::Config;

/// The longest pack that is kept in memory until its parity is computed, unless told otherwise.
pub(super) const KEPT_BYTES_MAX: usize = 128 << 20;

/// How long an ordinary pack becomes before it is ended, with some room: the last frames and the table come on top.
pub fn kept_bytes(config: &Config) -> u64 {
    let bytes = u64::from(config.pack_bytes);
    bytes + bytes / 8 + (8 << 20)
}
