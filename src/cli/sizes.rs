//! Sizes, shares and subsets as people write them.
//!
//! Units are binary whatever their spelling: `64M`, `64MB` and `64MiB` are the same. Everything is exact: decimals are
//! handled in integers and rounded down to a whole byte.

use ckpt::bytes::{GIB, KIB, MIB};
use ckpt::codec::Compression;
use std::time::Duration;

/// The part of a repository's data that `verify --read-data` reads.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SubsetArgument {
    /// `3/30`: the third of thirty parts.
    Part {
        /// From 1 to `of`.
        part: u32,
        /// How many parts there are.
        of: u32,
    },
    /// `5%`.
    Percent(f64),
    /// `200G`.
    Bytes(u64),
    /// `10m`.
    Duration(Duration),
}

/// How much unused space `prune` may leave behind.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum UnusedArgument {
    /// `5%` of what the repository holds.
    Percent(f64),
    /// `10G`.
    Bytes(u64),
    /// `unlimited`: only packs without any used byte go.
    Unlimited,
}

/// A number of bytes: `4096`, `64M`, `1.5GiB`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let scale = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => GIB,
        "t" | "tb" | "tib" => GIB << 10,
        "p" | "pb" | "pib" => GIB << 20,
        _ => return Err(format!("{text:?} is not a size; write it like 200G, 1.5GiB or 64M")),
    };
    scaled(number, scale).ok_or_else(|| format!("{text:?} is not a size; write it like 200G, 1.5GiB or 64M"))
}

/// A number of bytes for each second: a size, optionally followed by `/s`.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    match parse_bytes(text.strip_suffix("/s").unwrap_or(text))? {
        0 => Err("a rate of 0 would never end".to_owned()),
        rate => Ok(rate),
    }
}

/// The memory that a run may use; at least 16 MiB.
pub fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        bytes if bytes < 16 * MIB => Err("at least 16M are needed".to_owned()),
        bytes => Ok(bytes),
    }
}

/// A share: `5%`, `0.5%`.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not a share; write it like 5%, at most 100%");
    let number = text.strip_suffix('%').ok_or_else(wrong)?;
    if !is_decimal(number) {
        return Err(wrong());
    }
    let percent: f64 = number.parse().map_err(|_| wrong())?;
    if percent.is_finite() && (0.0..=100.0).contains(&percent) { Ok(percent) } else { Err(wrong()) }
}

/// `3/30`, `5%`, `10m` (minutes; a duration has its unit in lower case), `200G`.
pub fn parse_subset(text: &str) -> Result<SubsetArgument, String> {
    if text.ends_with('%') {
        return match parse_percent(text)? {
            0.0 => Err("0% would read nothing".to_owned()),
            percent => Ok(SubsetArgument::Percent(percent)),
        };
    }
    if let Some((part, of)) = text.split_once('/') {
        return match (part.parse::<u32>(), of.parse::<u32>()) {
            (Ok(part), Ok(of)) if (1..=of).contains(&part) => Ok(SubsetArgument::Part { part, of }),
            _ => Err(format!("{text:?} is not a part; write it like 3/30, from 1/30 to 30/30")),
        };
    }
    if let Ok(duration) = super::times::parse_duration(text) {
        return Ok(SubsetArgument::Duration(duration));
    }
    match parse_bytes(text) {
        Ok(0) => Err("0 bytes would read nothing".to_owned()),
        Ok(bytes) => Ok(SubsetArgument::Bytes(bytes)),
        Err(_) => Err(format!(
            "{text:?} is not a subset; write a part (3/30), a share (5%), a size (200G) or a time (10m is ten minutes)"
        )),
    }
}

/// `5%`, `10G`, `unlimited`.
pub fn parse_unused(text: &str) -> Result<UnusedArgument, String> {
    if text == "unlimited" {
        return Ok(UnusedArgument::Unlimited);
    }
    if text.ends_with('%') {
        return parse_percent(text).map(UnusedArgument::Percent);
    }
    parse_bytes(text)
        .map(UnusedArgument::Bytes)
        .map_err(|_| format!("{text:?} is neither a share (5%), a size (10G) nor `unlimited`"))
}

/// `auto`, `off`, or a level from 1 to 19.
pub fn parse_compression(text: &str) -> Result<Compression, String> {
    match (text, text.parse::<i32>()) {
        ("auto", _) => Ok(Compression::Auto),
        ("off", _) => Ok(Compression::Off),
        (_, Ok(level @ 1..=19)) => Ok(Compression::Zstd(level)),
        _ => Err("expected auto, off, or a level from 1 to 19".to_owned()),
    }
}

/// A number of threads, at least 1.
pub fn parse_threads(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(threads @ 1..=4096) => Ok(threads),
        _ => Err("expected a number from 1 to 4096".to_owned()),
    }
}

fn is_decimal(number: &str) -> bool {
    number.bytes().any(|b| b.is_ascii_digit())
        && number.bytes().all(|b| b.is_ascii_digit() || b == b'.')
        && number.bytes().filter(|&b| b == b'.').count() <= 1
}

/// `number` (decimal, at most twelve places) times `scale`, rounded down.
fn scaled(number: &str, scale: u64) -> Option<u64> {
    if !is_decimal(number) {
        return None;
    }
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let fraction = &fraction[..fraction.len().min(12)];
    let parts: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let places = u32::try_from(fraction.len()).ok()?;
    let total = whole.checked_mul(u128::from(scale))? + parts * u128::from(scale) / 10u128.pow(places);
    u64::try_from(total).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary_and_exact() {
        assert_eq!(parse_bytes("0"), Ok(0));
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("200G"), Ok(200 * GIB));
        assert_eq!(parse_bytes("1.5GiB"), Ok(GIB + GIB / 2));
        assert_eq!(parse_bytes("64M"), Ok(64 * MIB));
        assert_eq!(parse_bytes("64 MiB"), Ok(64 * MIB));
        assert_eq!(parse_bytes("64mb"), Ok(64 * MIB));
        assert_eq!(parse_bytes(".5k"), Ok(512));
        assert_eq!(parse_bytes("18446744073709551615"), Ok(u64::MAX));
    }

    #[test]
    fn what_is_not_a_size_is_refused() {
        for text in ["", "G", ".", "1.2.3M", "-1", "+1", "1e9", "12X", "64 M B", "18446744073709551616", "99999999P"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert!(parse_bytes(&"9".repeat(60)).is_err());
        assert!(parse_rate("0").is_err());
        assert_eq!(parse_rate("200M/s"), Ok(200 * MIB));
        assert!(parse_memory("1M").is_err());
        assert_eq!(parse_memory("512M"), Ok(512 * MIB));
    }

    #[test]
    fn a_subset_is_a_part_a_share_a_size_or_a_time() {
        assert_eq!(parse_subset("3/30"), Ok(SubsetArgument::Part { part: 3, of: 30 }));
        assert_eq!(parse_subset("5%"), Ok(SubsetArgument::Percent(5.0)));
        assert_eq!(parse_subset("200G"), Ok(SubsetArgument::Bytes(200 * GIB)));
        assert_eq!(parse_subset("10m"), Ok(SubsetArgument::Duration(Duration::from_secs(600))));
        assert_eq!(parse_subset("10M"), Ok(SubsetArgument::Bytes(10 * MIB)));
        for text in ["", "0/30", "31/30", "3/", "/3", "3/0", "0%", "101%", "-5%", "nan%", "inf%", "0", "x"] {
            assert!(parse_subset(text).is_err(), "{text}");
        }
    }

    #[test]
    fn unused_space_and_compression() {
        assert_eq!(parse_unused("5%"), Ok(UnusedArgument::Percent(5.0)));
        assert_eq!(parse_unused("0"), Ok(UnusedArgument::Bytes(0)));
        assert_eq!(parse_unused("unlimited"), Ok(UnusedArgument::Unlimited));
        assert!(parse_unused("some").is_err());
        assert_eq!(parse_compression("auto"), Ok(Compression::Auto));
        assert_eq!(parse_compression("19"), Ok(Compression::Zstd(19)));
        assert!(parse_compression("0").is_err());
        assert!(parse_compression("20").is_err());
        assert!(parse_threads("0").is_err());
    }
}
