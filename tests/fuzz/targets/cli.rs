//! What people type: selectors, sizes, times.

#[path = "../../../src/cli/render.rs"]
#[expect(dead_code, reason = "the program uses more of it")]
mod render;
#[path = "../../../src/cli/selector_text.rs"]
mod selector_text;
#[path = "../../../src/cli/sizes.rs"]
mod sizes;
#[path = "../../../src/cli/times.rs"]
mod times;

use jiff::Zoned;
use selector_text::Base;
use sizes::{SubsetArgument, UnusedArgument};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::OnceLock;

pub fn selector(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let _ = (selector_text::parse_tag(&text), selector_text::parse_meta(&text));
    assert!(render::path(bytes).chars().all(|c| !c.is_control()));
    assert!(render::prose(&text).chars().all(|c| !c.is_control()));
    match selector_text::parse(OsStr::from_bytes(bytes)) {
        Ok(parsed) => {
            if let Some(Base::Id(id)) = &parsed.base {
                assert!((4..=32).contains(&id.len()) && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')));
            }
            assert!(parsed.subpath.is_none_or(|path| !path.is_empty() && (path == b"/" || !path.ends_with(b"/"))));
            true
        }
        Err(error) => {
            assert!(error.to_string().chars().all(|c| !c.is_control()) && error.hint().is_some());
            false
        }
    }
}

pub fn size(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let size = sizes::parse_bytes(text);
    if let Ok(bytes) = &size {
        assert_eq!(sizes::parse_bytes(&bytes.to_string()).as_ref(), Ok(bytes));
    }
    assert!(sizes::parse_rate(text).is_ok_and(|rate| rate > 0) || sizes::parse_rate(text).is_err());
    assert!(sizes::parse_memory(text).map_or(true, |bytes| bytes >= 16 << 20));
    let is_share = |share: f64| (0.0..=100.0).contains(&share);
    assert!(sizes::parse_percent(text).map_or(true, is_share));
    assert!(match sizes::parse_subset(text) {
        Ok(SubsetArgument::Part { part, of }) => 1 <= part && part <= of,
        Ok(SubsetArgument::Percent(share)) => is_share(share),
        Ok(SubsetArgument::Bytes(bytes)) => bytes > 0,
        Ok(SubsetArgument::Duration(duration)) => !duration.is_zero(),
        Err(_) => true,
    });
    assert!(match sizes::parse_unused(text) {
        Ok(UnusedArgument::Percent(share)) => is_share(share),
        Ok(UnusedArgument::Bytes(_) | UnusedArgument::Unlimited) | Err(_) => true,
    });
    let _ = (sizes::parse_compression(text), sizes::parse_threads(text));
    size.is_ok()
}

pub fn time(bytes: &[u8]) -> bool {
    static NOW: OnceLock<Zoned> = OnceLock::new();
    let now = NOW.get_or_init(|| "2026-11-20T10:30:00[Europe/Berlin]".parse().expect("a fixed time"));
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let _ = (times::parse_settle(text), times::parse_span(text));
    assert!(times::parse_duration(text).map_or(true, |duration| !duration.is_zero()));
    match times::parse_instant(text, now) {
        Ok(instant) => {
            assert_eq!(times::instant(times::file_time(instant)), Some(instant));
            true
        }
        Err(error) => {
            assert!(error.hint().is_some(), "{error}");
            false
        }
    }
}
