//! Which paths a backup leaves out: patterns in the syntax of `.gitignore`.
//!
//! Patterns are relative to each root: `/cache` is the entry `cache` of a root, `*.tmp` any name below it. As in git,
//! the last pattern that matches decides, `!` takes a path in again, and nothing below an excluded directory can be
//! taken in again. A root itself is never excluded: it was named explicitly. Matching makes no system call.

use crate::error::{Error, Kind, Result};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The size above which a file of patterns is surely something else.
const PATTERN_FILE_BYTES_MAX: u64 = 16 << 20;

/// A set of patterns.
#[derive(Debug, Clone)]
pub struct Excludes {
    matcher: Gitignore,
}

impl Default for Excludes {
    fn default() -> Self {
        Excludes::none()
    }
}

impl Excludes {
    /// Excludes nothing.
    pub fn none() -> Self {
        Excludes { matcher: Gitignore::empty() }
    }

    /// The patterns in `files` (one on each line, `#` begins a comment), then those given one by one, which therefore
    /// win. Everything that cannot be used is [`Kind::Usage`] and names the pattern or the file.
    pub fn new(patterns: &[String], files: &[PathBuf]) -> Result<Self> {
        // With `.` as its root the builder matches relative paths as they are.
        let mut builder = GitignoreBuilder::new(".");
        for file in files {
            let text = read_pattern_file(file)?;
            for (index, line) in text.lines().enumerate() {
                let place = || format!("line {} of {}", index + 1, file.display());
                add(&mut builder, line, place)?;
            }
        }
        for pattern in patterns {
            if pattern.trim().is_empty() || pattern.starts_with('#') {
                let text = format!("the exclude pattern {pattern:?} matches nothing");
                return Err(Error::new(Kind::Usage, text).with_hint("Write \\# for a name that begins with #."));
            }
            add(&mut builder, pattern, || "--exclude".to_owned())?;
        }
        let matcher = builder.build().map_err(|error| {
            Error::new(Kind::Usage, format!("the exclude patterns cannot be used together: {error}"))
        })?;
        Ok(Excludes { matcher })
    }

    /// True if `path`, relative to its root and without a leading `/`, is excluded by a pattern of its own. Parents
    /// are not looked at: a walk does not descend into what is excluded.
    pub fn excludes(&self, path: &[u8], is_directory: bool) -> bool {
        !path.is_empty() && self.matcher.matched(Path::new(OsStr::from_bytes(path)), is_directory).is_ignore()
    }
}

/// A selection by patterns of the same syntax: a path is selected if it or a directory above it matches.
#[derive(Debug, Clone)]
pub struct Includes {
    patterns: Option<Excludes>,
}

impl Includes {
    /// Selects what `patterns` match; everything if there are none.
    pub fn new(patterns: &[String]) -> Result<Self> {
        Ok(Includes { patterns: if patterns.is_empty() { None } else { Some(Excludes::new(patterns, &[])?) } })
    }

    /// True if everything is selected.
    pub fn is_everything(&self) -> bool {
        self.patterns.is_none()
    }

    /// True if `path`, relative and without a leading `/`, is selected.
    pub fn includes(&self, path: &[u8], is_directory: bool) -> bool {
        let Some(patterns) = &self.patterns else { return true };
        let above = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(end, _)| &path[..end]);
        patterns.excludes(path, is_directory) || above.into_iter().any(|folder| patterns.excludes(folder, true))
    }
}

fn add(builder: &mut GitignoreBuilder, pattern: &str, place: impl Fn() -> String) -> Result<()> {
    match builder.add_line(None, pattern) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(Error::new(Kind::Usage, format!("{}: the exclude pattern {pattern:?} is invalid: {error}", place())))
        }
    }
}

fn read_pattern_file(path: &Path) -> Result<String> {
    let unusable = |text: String| Error::new(Kind::Usage, format!("exclude file {}: {text}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| unusable(error.to_string()))?;
    if metadata.is_file() && metadata.len() > PATTERN_FILE_BYTES_MAX {
        return Err(unusable(format!("{} bytes are too many for patterns", metadata.len())));
    }
    let bytes = std::fs::read(path).map_err(|error| unusable(error.to_string()))?;
    let text = String::from_utf8(bytes).map_err(|_| unusable("it is not UTF-8 text".to_owned()))?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(patterns: &[&str]) -> Excludes {
        Excludes::new(&patterns.iter().map(|&p| p.to_owned()).collect::<Vec<_>>(), &[]).expect("valid patterns")
    }

    #[test]
    fn patterns_follow_gitignore() {
        let set = excludes(&["*.tmp", "/cache", "logs/", "!keep.tmp", "a/**/z"]);
        assert!(set.excludes(b"x.tmp", false));
        assert!(set.excludes(b"deep/x.tmp", false));
        assert!(!set.excludes(b"deep/keep.tmp", false));
        assert!(set.excludes(b"cache", true));
        assert!(!set.excludes(b"deep/cache", true));
        assert!(set.excludes(b"deep/logs", true));
        assert!(!set.excludes(b"deep/logs", false));
        assert!(set.excludes(b"a/b/c/z", false));
        assert!(!set.excludes(b"", true));
    }

    #[test]
    fn names_that_are_not_text_are_matched_as_bytes() {
        let set = excludes(&["*.tmp"]);
        assert!(set.excludes(b"\xff\xfe.tmp", false));
        assert!(!set.excludes(b"\xff\xfe.tmq", false));
    }

    #[test]
    fn an_invalid_pattern_is_a_usage_error_that_names_it() {
        for pattern in ["{a", "[z-a]", "", "  ", "#x"] {
            let error = Excludes::new(&[pattern.to_owned()], &[]).expect_err(pattern);
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(&format!("{pattern:?}")), "{error}");
        }
    }

    #[test]
    fn files_of_patterns_come_before_single_ones() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = dir.path().join("patterns");
        std::fs::write(&file, "\u{feff}# comment\n\n*.bin\r\n!model.bin\n").expect("write");
        let set = Excludes::new(&["model.bin".to_owned()], std::slice::from_ref(&file)).expect("valid");
        assert!(set.excludes(b"x.bin", false));
        assert!(set.excludes(b"model.bin", false));
        std::fs::write(&file, b"a\n{b\n").expect("write");
        let error = Excludes::new(&[], std::slice::from_ref(&file)).expect_err("invalid line");
        assert!(error.to_string().contains("line 2") && error.to_string().contains("{b"), "{error}");
        assert_eq!(Excludes::new(&[], &[dir.path().join("none")]).expect_err("absent").kind(), Kind::Usage);
    }
}
