//! The text of selectors, tags and notes, taken apart.
//!
//! `latest`, `tag:NAME`, `step:N` or the first digits of an id, each with an optional `:SUBPATH`. Any bytes are an answer or an
//! error. Which snapshot is meant is not known here.

use super::render;
use ckpt::error::{Error, Kind, Result};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// What a selector can look like, for hints.
pub const FORMS: &str = "a selector is `latest`, `tag:NAME`, `step:N`, or at least four hexadecimal digits of an id, and may be \
                     followed by `:SUBPATH`; `ckpt snapshots` lists what there is";

/// A selector as typed: what stands before the path, and the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// None if nothing stands before the `:`, as beside `--at`.
    pub base: Option<Base>,
    /// What follows the `:`, without slashes at its end.
    pub subpath: Option<Vec<u8>>,
}

/// The part of a selector that names a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// The first digits of an id, in lower case.
    Id(String),
    /// The newest.
    Latest,
    /// The newest with this tag.
    Tag(String),
    /// The newest that holds the finished checkpoint of this step.
    Step(u64),
}

/// Takes `text` apart.
pub fn parse(text: &OsStr) -> Result<Parsed> {
    let bytes = text.as_bytes();
    let prefix = [&b"tag:"[..], b"step:"].into_iter().find(|prefix| bytes.starts_with(prefix)).unwrap_or_default();
    let (prefix_bytes, rest) = (prefix.len(), &bytes[prefix.len()..]);
    let (base, subpath) = match rest.iter().position(|&b| b == b':') {
        Some(colon) => (&bytes[..prefix_bytes + colon], Some(&rest[colon + 1..])),
        None => (bytes, None),
    };
    let subpath = subpath.map(trimmed).filter(|path| !path.is_empty()).map(<[u8]>::to_vec);
    let base = if base.is_empty() { None } else { Some(parse_base(base)?) };
    Ok(Parsed { base, subpath })
}

/// A tag: letters, digits, `.`, `_` and `-`.
pub fn parse_tag(text: &str) -> Result<String, String> {
    let is_sound =
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    if is_sound { Ok(text.to_owned()) } else { Err("a tag is made of letters, digits, `.`, `_` and `-`".to_owned()) }
}

/// `key=value`.
pub fn parse_meta(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if parse_tag(key).is_ok() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as key=value; a key is made of letters, digits, `.`, `_` and `-`".to_owned()),
    }
}

fn parse_base(base: &[u8]) -> Result<Base> {
    let shown = render::path(base);
    if base == b"latest" {
        return Ok(Base::Latest);
    }
    if let Some(tag) = base.strip_prefix(b"tag:") {
        let tag = std::str::from_utf8(tag).ok().and_then(|tag| parse_tag(tag).ok());
        return tag.map(Base::Tag).ok_or_else(|| {
            Error::new(Kind::Usage, format!("{shown} does not name a tag"))
                .with_hint("a tag is made of letters, digits, `.`, `_` and `-`")
        });
    }
    if let Some(step) = base.strip_prefix(b"step:") {
        let step = std::str::from_utf8(step).ok().filter(|s| s.bytes().all(|b| b.is_ascii_digit()));
        return step.and_then(|step| step.parse().ok()).map(Base::Step).ok_or_else(|| {
            Error::new(Kind::Usage, format!("{shown} does not name a step")).with_hint("write it like step:12000")
        });
    }
    if base.iter().all(u8::is_ascii_hexdigit) && base.len() <= 32 {
        if base.len() < 4 {
            return Err(Error::new(Kind::Usage, format!("{shown} is too short for an id")).with_hint(FORMS));
        }
        return Ok(Base::Id(String::from_utf8_lossy(base).to_ascii_lowercase()));
    }
    Err(Error::new(Kind::NotFound, format!("no snapshot is called {shown}")).with_hint(FORMS))
}

fn trimmed(mut path: &[u8]) -> &[u8] {
    while path.len() > 1 && path.ends_with(b"/") {
        path = &path[..path.len() - 1];
    }
    while let Some(rest) = path.strip_prefix(b"./") {
        path = rest;
    }
    if path == b"." { b"" } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> (Option<Base>, Option<String>) {
        let parsed = parse(OsStr::new(text)).expect(text);
        (parsed.base, parsed.subpath.map(|path| String::from_utf8_lossy(&path).into_owned()))
    }

    #[test]
    fn a_selector_names_a_snapshot_and_a_path() {
        let id = |text: &str| Some(Base::Id(text.to_owned()));
        let path = |text: &str| Some(text.to_owned());
        assert_eq!(parsed("latest"), (Some(Base::Latest), None));
        assert_eq!(parsed("ABcd12"), (id("abcd12"), None));
        assert_eq!(parsed("abcd:x/y"), (id("abcd"), path("x/y")));
        assert_eq!(parsed("latest:/abs/x:y/"), (Some(Base::Latest), path("/abs/x:y")));
        assert_eq!(parsed("tag:best"), (Some(Base::Tag("best".to_owned())), None));
        assert_eq!(parsed("tag:best:a:b"), (Some(Base::Tag("best".to_owned())), path("a:b")));
        assert_eq!(parsed("step:12000"), (Some(Base::Step(12000)), None));
        assert_eq!(parsed("step:12000:a/b"), (Some(Base::Step(12000)), path("a/b")));
        assert_eq!(parsed("latest:"), (Some(Base::Latest), None));
        assert_eq!(parsed("latest:./a"), (Some(Base::Latest), path("a")));
        assert_eq!(parsed("latest:."), (Some(Base::Latest), None));
        assert_eq!(parsed("latest:/"), (Some(Base::Latest), path("/")));
        assert_eq!(parsed(":a"), (None, path("a")));
    }

    #[test]
    fn a_path_may_hold_any_bytes() {
        let parsed = parse(OsStr::from_bytes(b"latest:a\xff")).expect("any bytes");
        assert_eq!(parsed.subpath.as_deref(), Some(&b"a\xff"[..]));
    }

    #[test]
    fn what_names_nothing_is_told_apart_from_what_is_not_found() {
        let kind = |text: &str| parse(OsStr::new(text)).map(|_| ()).expect_err(text).kind();
        assert_eq!(kind("abc"), Kind::Usage);
        assert_eq!(kind("tag:"), Kind::Usage);
        assert_eq!(kind("step:"), Kind::Usage);
        assert_eq!(kind("step:-5"), Kind::Usage);
        assert_eq!(kind("step:12k"), Kind::Usage);
        assert_eq!(kind("tag:a b"), Kind::Usage);
        assert_eq!(kind("newest"), Kind::NotFound);
        assert_eq!(kind(&"a".repeat(33)), Kind::NotFound);
    }

    #[test]
    fn tags_and_meta() {
        assert!(parse_tag("v1.2_best-3").is_ok());
        assert!(parse_tag("a b").is_err());
        assert!(parse_tag("").is_err());
        assert_eq!(parse_meta("loss=0.1=x"), Ok(("loss".to_owned(), "0.1=x".to_owned())));
        assert!(parse_meta("loss").is_err());
        assert!(parse_meta("=x").is_err());
    }
}
