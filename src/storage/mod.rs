//! Named immutable objects: the only way to a repository's bytes.
//!
//! Guarantees every implementation gives, and one conformance suite (`tests/it/storage_conformance.rs`) holds them to:
//!
//! * An object appears whole, under its name, or not at all. Once [`ObjectWriter::publish`] has returned
//!   [`Published::Created`], the object survives a power cut.
//! * A name is taken by exactly one writer. Nothing is ever overwritten, but by [`Storage::replace`]: whoever sees the
//!   object sees the old one or the new one, whole, and after a power cut it is one of the two.
//! * [`Storage::list`] after a publication that was reported shows the object.
//!
//! Deliberately not here: what objects mean, checksums, retries by name of object, encryption.

pub mod local;
pub mod simulated;

mod durable_file;
mod entries;
mod fresh;
mod leftovers;
mod place;
mod readers;
mod staging;

use crate::bytes::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::ids::SnapshotId;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The name of an object: components of `[0-9a-z._-]` joined by `/`, none empty, none starting with a dot.
///
/// A component that starts with `tmp-` is reserved for implementations.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName(String);

impl ObjectName {
    /// Checks `text` and takes it as a name.
    pub fn new(text: impl Into<String>) -> Result<Self> {
        let text = text.into();
        let component_is_sound = |component: &str| {
            !component.is_empty()
                && !component.starts_with('.')
                && !component.starts_with("tmp-")
                && component.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'z' | b'.' | b'_' | b'-'))
        };
        if text.len() <= 200 && text.split('/').all(component_is_sound) {
            Ok(ObjectName(text))
        } else {
            Err(Error::new(Kind::Failed, format!("{text:?} cannot name an object")))
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An object in a listing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Listed {
    /// Its name.
    pub name: ObjectName,
    /// Its length in bytes.
    pub bytes: u64,
}

/// How a publication ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// The object now exists under the name, durably.
    Created,
    /// The name was taken before; what this writer wrote is gone. The object that has the name is durable.
    AlreadyExists,
}

/// What is known of the transaction that an unfinished object belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// It may still be at work: its unfinished objects stay.
    Open,
    /// It has ended, so nothing unfinished of it is of use.
    Ended,
    /// There is no trace of it.
    Unknown,
}

/// A place that keeps named immutable objects.
pub trait Storage: Send + Sync {
    /// The place in words, for messages: a path or a URL.
    fn describe(&self) -> String;

    /// What someone who asks for detail should know of how the place has behaved so far, a sentence each.
    fn remarks(&self) -> Vec<String> {
        Vec::new()
    }

    /// Begins an object without a name. `folder` is the first component of the name that it will get; a name has at
    /// least two.
    fn create(&self, folder: &str) -> Result<Box<dyn ObjectWriter>>;

    /// As [`Storage::create`], for a transaction: should its process be killed, what it leaves is known as that
    /// transaction's, and goes once that has ended.
    fn create_for(&self, folder: &str, owner: SnapshotId) -> Result<Box<dyn ObjectWriter>> {
        let _ = owner;
        self.create(folder)
    }

    /// Puts `bytes` under `name`, whatever stands there or nothing. Durable when reported.
    ///
    /// For repair alone: the caller has made sure that these are the bytes that belong under the name, by the hash in it or
    /// by the checksum of a copy, so that nobody who has read the sound object can tell the difference.
    fn replace(&self, name: &ObjectName, bytes: &[u8]) -> Result<()>;

    /// The whole object; [`Kind::Missing`] if there is none, [`Kind::Damaged`] if it is longer than `bytes_max`.
    fn read(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>>;

    /// Appends exactly `range` of the object to `into`; [`Kind::Damaged`] if the object ends before.
    fn read_range(&self, name: &ObjectName, range: ByteRange, into: &mut Vec<u8>) -> Result<()>;

    /// All objects whose name starts with `folder` and a `/`, at any depth, sorted by name.
    /// A folder that does not exist is empty.
    fn list(&self, folder: &str) -> Result<Vec<Listed>>;

    /// The names that [`Storage::list`] would show, in no order, without a look at each object where that can be spared: for
    /// folders of very many. What has such a name may turn out to be no object.
    fn list_names(&self, folder: &str) -> Result<Vec<ObjectName>> {
        Ok(self.list(folder)?.into_iter().map(|listed| listed.name).collect())
    }

    /// As [`Storage::list`], of the objects right in `folder`, and never from a cache: it shows every name that any host
    /// had published before this was called. Needs the right to write.
    fn list_fresh(&self, folder: &str) -> Result<Vec<Listed>> {
        self.list(folder)
    }

    /// The object's length in bytes, or none if it does not exist.
    fn size(&self, name: &ObjectName) -> Result<Option<u64>>;

    /// Removes the object; true if it was there. Durable when reported.
    fn delete(&self, name: &ObjectName) -> Result<bool>;

    /// Makes every name durable that a listing of `folder` shows, whoever published it.
    ///
    /// A name can be seen before its writer has made it durable; whoever acts on another's name calls this first, so that
    /// no power cut takes back what the action relied on. Where a visible name always is durable, this does nothing.
    fn sync_folder(&self, folder: &str) -> Result<()>;

    /// Removes unfinished objects that nobody is going to finish and returns how many bytes that freed: those of
    /// transactions that `owner` knows to have ended, and those without a known owner that have stood for long unchanged.
    ///
    /// A writer that loses an unfinished object all the same cannot publish it and gets [`Kind::Unreachable`].
    fn delete_abandoned(&self, owner: &mut dyn FnMut(SnapshotId) -> Result<Owner>) -> Result<u64>;
}

/// An object being written; dropped unpublished, it leaves nothing.
pub trait ObjectWriter: Send {
    /// Appends bytes.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Makes the bytes durable and then gives them `name`, exclusively.
    fn publish(self: Box<Self>, name: &ObjectName) -> Result<Published>;
}

/// The storage at `location`: a path, or the URL of an object store. It must hold a directory or bucket already.
pub fn open(location: &str) -> Result<Arc<dyn Storage>> {
    refuse_url(location)?;
    Ok(Arc::new(local::LocalStorage::open(Path::new(location))?))
}

/// As [`open`], for a new repository: a directory that is absent is made, with its parents, and durable on return.
pub fn create(location: &str) -> Result<Arc<dyn Storage>> {
    refuse_url(location)?;
    Ok(Arc::new(local::LocalStorage::create_root(Path::new(location))?))
}

/// An error if `location` is a URL: no scheme is built in.
fn refuse_url(location: &str) -> Result<()> {
    let Some((scheme, _)) = location.split_once("://") else { return Ok(()) };
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    if !is_scheme {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("{location}: this build cannot store at {scheme}:// URLs"))
        .with_hint("give the path of a local or mounted directory"))
}

/// An error unless `name` lies in `folder`, its first component.
fn check_folder_of(name: &ObjectName, folder: &str) -> Result<()> {
    match name.as_str().split_once('/') {
        Some((first, _)) if first == folder => Ok(()),
        _ => Err(Error::new(Kind::Failed, format!("{name} cannot name an object begun in the folder {folder:?}"))),
    }
}

/// An error unless `folder` can be the first component of a name.
fn check_folder(folder: &str) -> Result<()> {
    let name = ObjectName::new(folder)?;
    if name.as_str().contains('/') {
        return Err(Error::new(Kind::Failed, format!("the folder {folder:?} is more than one component")));
    }
    Ok(())
}

/// True for a name that is reserved for what is being written: killed writers leave such files and folders.
pub fn is_temporary(name: &str) -> bool {
    place::is_temporary_name(name)
}

/// Writes a small object in one call.
pub fn create_new(storage: &dyn Storage, name: &ObjectName, bytes: &[u8]) -> Result<Published> {
    let folder = name.as_str().split('/').next().unwrap_or_default();
    let mut writer = storage.create(folder)?;
    writer.write(bytes)?;
    writer.publish(name)
}

/// As [`create_new`], for a transaction: see [`Storage::create_for`].
pub fn create_new_for(storage: &dyn Storage, owner: SnapshotId, name: &ObjectName, bytes: &[u8]) -> Result<Published> {
    let folder = name.as_str().split('/').next().unwrap_or_default();
    let mut writer = storage.create_for(folder, owner)?;
    writer.write(bytes)?;
    writer.publish(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_a_usage_error_that_names_the_scheme() {
        for location in ["s3://bucket/x", "sftp://host/x", "file:///x"] {
            let error = open(location).err().expect("no scheme is built");
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(location.split(':').next().expect("a scheme")), "{error}");
        }
        assert_eq!(open("/nowhere/here").err().expect("absent").kind(), Kind::NoRepository);
        assert_eq!(open("./odd://path").err().expect("absent").kind(), Kind::NoRepository);
    }
}
