//! Gives a restored entry its metadata, in the order in which no step undoes another.
//!
//! Attributes of users first, while the file is still writable for us; then the owner, whose change clears setuid and
//! capabilities; then the mode; then ACLs and capabilities, which extend the mode; times last, because everything else
//! touches them. What cannot be set because of missing rights, or because the file system does not know it, is a
//! [`MetadataIssue`] and does not fail the entry; a failing disk does. Setuid and setgid are never given to an entry
//! whose owner or group is not the recorded one. The access time is left alone.

use super::stat::{FileStatus, MODE_MASK};
use super::xattrs::Subject;
use crate::error::{Error, Result};
use crate::metadata::{FileTime, Metadata};
use rustix::fs::{AtFlags, Gid, Mode, RawMode, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::fmt;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

const SETUID: u32 = 0o4000;
const SETGID: u32 = 0o2000;

/// What of the metadata is concerned.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Attribute {
    /// The owner or the group.
    Owner,
    /// The setuid or setgid bit, withheld because the owner or the group is another one.
    SetId,
    /// The permissions.
    Mode,
    /// The extended attribute of this name.
    Xattr(Vec<u8>),
    /// The modification time.
    Times,
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attribute::Owner => f.write_str("owner"),
            Attribute::SetId => f.write_str("setuid or setgid bit"),
            Attribute::Mode => f.write_str("mode"),
            Attribute::Xattr(name) => write!(f, "extended attribute {}", name.escape_ascii()),
            Attribute::Times => f.write_str("modification time"),
        }
    }
}

/// A part of the metadata that could not be set; the entry is restored without it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetadataIssue {
    /// What could not be set.
    pub attribute: Attribute,
    /// Why, in the words of the operating system.
    pub reason: String,
}

/// Issues of a whole restore, counted, with the first example of each attribute.
#[derive(Debug, Clone, Default)]
pub struct IssueSummary {
    counts: BTreeMap<Attribute, (u64, String)>,
}

impl IssueSummary {
    /// Kinds of issues that are told apart; names of attributes come from outside and could be any number.
    const ATTRIBUTES_MAX: usize = 64;

    /// Counts the issues of the entry at `path`.
    pub fn add(&mut self, path: &[u8], issues: &[MetadataIssue]) {
        for issue in issues {
            if let Some((count, _)) = self.counts.get_mut(&issue.attribute) {
                *count += 1;
            } else if self.counts.len() < Self::ATTRIBUTES_MAX {
                let example = format!("\"{}\": {}", path.escape_ascii(), issue.reason);
                self.counts.insert(issue.attribute.clone(), (1, example));
            }
        }
    }

    /// True if there was none.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// One sentence for each attribute concerned.
    pub fn sentences(&self) -> impl Iterator<Item = String> + '_ {
        self.counts.iter().map(|(attribute, (count, example))| {
            let entries = if *count == 1 { "entry" } else { "entries" };
            format!("the {attribute} of {count} {entries} could not be set, first {example}")
        })
    }
}

/// The entry that is given its metadata.
#[derive(Debug)]
pub(super) enum Handle<'a> {
    /// An open file or directory.
    Descriptor(BorrowedFd<'a>),
    /// A name in an open directory that must not be opened: a symbolic link, pipe or device. `locator` is a
    /// descriptor that only names it, absent for a symbolic link, which has no mode of its own.
    Name { parent: BorrowedFd<'a>, name: &'a [u8], locator: Option<BorrowedFd<'a>> },
}

impl Handle<'_> {
    /// Applies `wanted` to the entry, which is now as in `current`.
    pub(super) fn apply(&self, wanted: &Metadata, current: &FileStatus) -> Result<Vec<MetadataIssue>> {
        let mut issues = Issues::default();
        self.set_xattrs(wanted, &mut issues)?;
        let owned = self.set_owner(wanted, current, &mut issues)?;
        if !current.is_symlink() {
            let mode = withhold_set_id(wanted.mode & MODE_MASK, owned, &mut issues);
            issues.note(Attribute::Mode, self.chmod(mode))?;
        }
        for (name, value) in wanted.xattrs.iter().filter(|(name, _)| is_bound_to_mode(name)) {
            issues.note(Attribute::Xattr(name.clone()), self.with_xattrs(|subject| subject.set(name, value)))?;
        }
        issues.note(Attribute::Times, self.set_mtime(wanted.mtime))?;
        Ok(issues.list)
    }

    /// Sets attributes that do not depend on owner or mode, and removes those of users that are not wanted: an ACL
    /// inherited from the parent directory would give rights that the original did not give.
    fn set_xattrs(&self, wanted: &Metadata, issues: &mut Issues) -> Result<()> {
        // What cannot be listed cannot be compared; setting tells what is wrong, if anything is wanted.
        let present = self.with_xattrs(|subject| subject.names()).unwrap_or_default();
        let is_wanted = |name: &[u8]| wanted.xattrs.iter().any(|(wanted, _)| wanted == name);
        for name in present.iter().filter(|name| belongs_to_the_entry(name) && !is_wanted(name)) {
            match self.with_xattrs(|subject| subject.remove(name)) {
                Err(Errno::NODATA) => {}
                outcome => issues.note(Attribute::Xattr(name.clone()), outcome)?,
            }
        }
        for (name, value) in wanted.xattrs.iter().filter(|(name, _)| !is_bound_to_mode(name)) {
            issues.note(Attribute::Xattr(name.clone()), self.with_xattrs(|subject| subject.set(name, value)))?;
        }
        Ok(())
    }

    /// Returns which of owner and group are now the wanted ones.
    fn set_owner(&self, wanted: &Metadata, current: &FileStatus, issues: &mut Issues) -> Result<(bool, bool)> {
        let same = (current.uid == wanted.uid, current.gid == wanted.gid);
        if same == (true, true) {
            return Ok(same);
        }
        // The number of all ones means "leave it" to the system.
        if wanted.uid == u32::MAX || wanted.gid == u32::MAX {
            issues.note(Attribute::Owner, Err(Errno::INVAL))?;
            return Ok(same);
        }
        let (uid, gid) = (Uid::from_raw(wanted.uid), Gid::from_raw(wanted.gid));
        let Err(error) = self.chown(Some(uid), Some(gid)) else { return Ok((true, true)) };
        issues.note(Attribute::Owner, Err(error))?;
        // Without further rights a user can still choose among their own groups.
        let group_set = same.1 || self.chown(None, Some(gid)).is_ok();
        Ok((same.0, group_set))
    }

    fn chown(&self, uid: Option<Uid>, gid: Option<Gid>) -> rustix::io::Result<()> {
        match self {
            Handle::Descriptor(fd) => rustix::fs::fchown(fd, uid, gid),
            Handle::Name { parent, name, .. } => {
                rustix::fs::chownat(parent, *name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }

    fn chmod(&self, mode: u32) -> rustix::io::Result<()> {
        let mode = system_mode(mode);
        match self {
            Handle::Descriptor(fd) => rustix::fs::fchmod(fd, mode),
            // By the name of the descriptor: changing a mode by path would follow a link put there meanwhile.
            Handle::Name { locator: Some(locator), .. } => rustix::fs::chmod(descriptor_path(*locator), mode),
            Handle::Name { locator: None, .. } => Ok(()),
        }
    }

    fn set_mtime(&self, mtime: FileTime) -> rustix::io::Result<()> {
        let times = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
            last_modification: Timespec {
                tv_sec: mtime.seconds,
                // Larger numbers are no time, or mean "now" and "leave it" to the system.
                tv_nsec: mtime.nanoseconds.min(999_999_999).into(),
            },
        };
        match self {
            Handle::Descriptor(fd) => rustix::fs::futimens(fd, &times),
            Handle::Name { parent, name, .. } => {
                rustix::fs::utimensat(parent, *name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
        }
    }

    fn with_xattrs<T>(&self, act: impl FnOnce(Subject<'_>) -> rustix::io::Result<T>) -> rustix::io::Result<T> {
        match self {
            Handle::Descriptor(fd) => act(Subject::Descriptor(*fd)),
            Handle::Name { parent, name, .. } => act(Subject::Path(&path_in(*parent, name))),
        }
    }
}

/// The permissions in the system's type.
pub(super) fn system_mode(mode: u32) -> Mode {
    // At most 0o7777, which every system's type holds.
    Mode::from_raw_mode(RawMode::try_from(mode & MODE_MASK).unwrap_or_default())
}

/// A path of `name` in the open directory `parent`, for calls that take paths only: the directory is reached through
/// its descriptor, so that nothing on the way can be exchanged.
pub(super) fn path_in(parent: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    descriptor_path(parent).join(Path::new(std::ffi::OsStr::from_bytes(name)))
}

fn descriptor_path(fd: BorrowedFd<'_>) -> PathBuf {
    let table = if cfg!(target_os = "linux") { "/proc/self/fd" } else { "/dev/fd" };
    Path::new(table).join(fd.as_raw_fd().to_string())
}

/// Attributes that a change of owner or mode would change or drop.
fn is_bound_to_mode(name: &[u8]) -> bool {
    name.starts_with(b"system.") || name.starts_with(b"security.")
}

/// Attributes that say something about the entry itself, unlike labels that the system gives to every new file.
fn belongs_to_the_entry(name: &[u8]) -> bool {
    name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") || name == b"security.capability"
}

fn withhold_set_id(mode: u32, owned: (bool, bool), issues: &mut Issues) -> u32 {
    let withheld = (if owned.0 { 0 } else { SETUID }) | (if owned.1 { 0 } else { SETGID });
    if mode & withheld != 0 {
        let reason = "the owner or group is another one".to_owned();
        issues.list.push(MetadataIssue { attribute: Attribute::SetId, reason });
    }
    mode & !withheld
}

#[derive(Debug, Default)]
struct Issues {
    list: Vec<MetadataIssue>,
}

impl Issues {
    /// Keeps a failure that leaves the entry usable; passes on one of a disk that fails.
    fn note(&mut self, attribute: Attribute, outcome: rustix::io::Result<()>) -> Result<()> {
        match outcome {
            Ok(()) => Ok(()),
            Err(error @ (Errno::IO | Errno::STALE | Errno::ROFS | Errno::NOTCONN)) => {
                Err(Error::io(format!("setting the {attribute}"), error.into()))
            }
            Err(error) => {
                self.list.push(MetadataIssue { attribute, reason: std::io::Error::from(error).to_string() });
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::fd::AsFd;

    #[test]
    fn setuid_is_withheld_from_a_file_of_another_owner() {
        let mut issues = Issues::default();
        assert_eq!(withhold_set_id(0o6755, (true, true), &mut issues), 0o6755);
        assert!(issues.list.is_empty());
        assert_eq!(withhold_set_id(0o6755, (false, true), &mut issues), 0o2755);
        assert_eq!(withhold_set_id(0o6755, (true, false), &mut issues), 0o4755);
        assert_eq!(withhold_set_id(0o755, (false, false), &mut issues), 0o755);
        assert_eq!(issues.list.len(), 2);
    }

    #[test]
    fn hostile_numbers_are_issues_and_not_panics() {
        let file = tempfile::tempfile().expect("temporary file");
        let status = FileStatus::from_std(&file.metadata().expect("metadata"));
        let Ok(Some(mut wanted)) = status.into_metadata(|| Ok::<_, ()>(Vec::new())) else { panic!("regular") };
        wanted.uid = u32::MAX;
        wanted.mode = u32::MAX;
        wanted.mtime = FileTime { seconds: i64::MIN, nanoseconds: u32::MAX };
        wanted.xattrs =
            vec![(b"user.\0".to_vec(), vec![]), (b"".to_vec(), vec![]), (b"nonsense".to_vec(), vec![1; 1 << 20])];
        let issues = Handle::Descriptor(file.as_fd()).apply(&wanted, &status).expect("soft");
        assert!(issues.iter().any(|issue| issue.attribute == Attribute::Owner));
        assert!(issues.iter().filter(|issue| matches!(issue.attribute, Attribute::Xattr(_))).count() == 3);
    }

    #[test]
    fn issues_are_counted_with_one_example_each() {
        let issue = |attribute| MetadataIssue { attribute, reason: "no".to_owned() };
        let mut summary = IssueSummary::default();
        assert!(summary.is_empty());
        summary.add(b"a\n", &[issue(Attribute::Owner), issue(Attribute::Times)]);
        summary.add(b"b", &[issue(Attribute::Owner)]);
        let sentences: Vec<_> = summary.sentences().collect();
        assert_eq!(sentences[0], "the owner of 2 entries could not be set, first \"a\\n\": no");
        assert_eq!(sentences[1], "the modification time of 1 entry could not be set, first \"a\\n\": no");
        for index in 0..1000 {
            summary.add(b"c", &[issue(Attribute::Xattr(format!("user.{index}").into_bytes()))]);
        }
        assert!(summary.sentences().count() <= IssueSummary::ATTRIBUTES_MAX);
    }

    #[test]
    fn attributes_that_are_not_wanted_are_removed() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let file = File::create(dir.path().join("f")).expect("create");
        let subject = Subject::Descriptor(file.as_fd());
        if subject.set(b"user.old", b"1").is_err() {
            return;
        }
        let status = FileStatus::from_std(&file.metadata().expect("metadata"));
        let Ok(Some(mut wanted)) = status.into_metadata(|| Ok::<_, ()>(Vec::new())) else { panic!("regular") };
        wanted.xattrs = vec![(b"user.new".to_vec(), b"2".to_vec())];
        assert_eq!(Handle::Descriptor(file.as_fd()).apply(&wanted, &status).expect("applied"), []);
        assert_eq!(subject.read_all().expect("read"), wanted.xattrs);
    }
}
