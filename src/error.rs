//! The one error type.
//!
//! An [`Error`] is a [`Kind`] that callers match on and the program maps to an exit code, a sentence that names
//! the path or object and what to do next, and the error beneath. The library never prints and never panics on input.

use std::fmt;
use std::io;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, as far as a caller must tell cases apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Anything without a kind of its own (exit 1).
    Failed,
    /// The arguments or the configuration cannot be used (exit 2).
    Usage,
    /// Stored bytes are not what was written: checksum, length or structure is wrong (exit 5).
    Damaged,
    /// No repository stands at the given place (exit 10).
    NoRepository,
    /// Another run is in the way, and waiting may help (exit 11).
    Busy,
    /// The key does not open this repository (exit 12).
    WrongKey,
    /// The storage of the repository does not answer (exit 13).
    Unreachable,
    /// No space or no inodes are left; the context names which file system (exit 14).
    NoSpace,
    /// A snapshot, path or tensor that was asked for does not exist (exit 15).
    NotFound,
    /// The repository was written by a newer version (exit 16).
    FormatTooNew,
    /// Permission denied, or the file system is read-only (exit 17).
    Denied,
    /// A signal asked the run to end; the repository is consistent (exit 130 or 143).
    Interrupted,
    /// A stored object is absent. Seen by people only inside a report of damage.
    Missing,
}

/// An error: its kind, what was being done to what, and the cause.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    context: String,
    hint: Option<String>,
    source: Option<Box<dyn std::error::Error + Send + Sync + 'static>>,
}

impl Error {
    /// A new error of `kind`; `context` says what failed and names the path or object.
    pub fn new(kind: Kind, context: impl Into<String>) -> Self {
        Error { kind, context: context.into(), hint: None, source: None }
    }

    /// Stored bytes that are not what was written.
    pub fn damaged(context: impl Into<String>) -> Self {
        Error::new(Kind::Damaged, context)
    }

    /// An error of the operating system; its kind follows from the code, `context` names the path.
    pub fn io(context: impl Into<String>, source: io::Error) -> Self {
        Error { kind: kind_of_io(&source), context: context.into(), hint: None, source: Some(Box::new(source)) }
    }

    /// True if it tells of this run and not of what it was about to read: it was interrupted, or the system gave it no
    /// memory or no descriptor.
    pub fn is_about_this_run(&self) -> bool {
        const NO_MEMORY_OR_DESCRIPTOR: [i32; 3] = [12, 23, 24];
        self.kind == Kind::Interrupted || self.os_code().is_some_and(|code| NO_MEMORY_OR_DESCRIPTOR.contains(&code))
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    /// Adds what the user can do next, one sentence.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts what was being done in front: `outer: inner`.
    #[must_use]
    pub fn while_doing(mut self, outer: impl fmt::Display) -> Self {
        self.context = format!("{outer}: {}", self.context);
        self
    }

    /// The same error under another kind, for a layer that knows better what it means.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// What callers match on.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What the user can do next, if there is something to say.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The number of the operating system's error beneath, if there is one.
    pub fn os_code(&self) -> Option<i32> {
        self.source.as_ref()?.downcast_ref::<io::Error>()?.raw_os_error()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        match &self.source {
            Some(source) => write!(f, ": {source}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|s| &**s as &(dyn std::error::Error + 'static))
    }
}

fn kind_of_io(error: &io::Error) -> Kind {
    // Numbers of Linux: stable parts of its interface, and absent from `std::io::ErrorKind` where unstable.
    const EIO: i32 = 5;
    const ESTALE: i32 = 116;
    const ENOTCONN: i32 = 107;
    if let Some(EIO | ESTALE | ENOTCONN) = error.raw_os_error() {
        return Kind::Unreachable;
    }
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::NoSpace,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Kind::Denied,
        io::ErrorKind::NotFound => Kind::Missing,
        io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            Kind::Unreachable
        }
        _ => Kind::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_and_a_read_only_mount_have_kinds_of_their_own() {
        assert_eq!(Error::io("x", io::Error::from_raw_os_error(28)).kind(), Kind::NoSpace);
        assert_eq!(Error::io("x", io::Error::from_raw_os_error(122)).kind(), Kind::NoSpace);
        assert_eq!(Error::io("x", io::Error::from_raw_os_error(30)).kind(), Kind::Denied);
        assert_eq!(Error::io("x", io::Error::from_raw_os_error(5)).kind(), Kind::Unreachable);
    }

    #[test]
    fn the_text_names_context_and_cause() {
        let error = Error::io("reading a/b", io::Error::other("boom")).while_doing("verify");
        assert_eq!(error.to_string(), "verify: reading a/b: boom");
    }
}
