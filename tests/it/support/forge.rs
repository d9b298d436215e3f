//! Repositories that no backup would write: every checksum and id is right, and what they say is not.

use super::runs::{self, PACK_BYTES_MIN, now};
use ckpt::ids::ChunkId;
use ckpt::metadata::{FileKind, FileTime, Metadata};
use ckpt::repo::Repo;
use ckpt::repo::entry::{self, Entry};
use ckpt::repo::pack::PackKind;
use ckpt::repo::pack_table::FrameRecord;
use ckpt::repo::records::WriterRecord;
use ckpt::repo::snapshots::{Snapshot, Totals};
use ckpt::repo::stream::StreamRef;
use ckpt::repo::transaction::Transaction;
use ckpt::storage::simulated::SimulatedStorage;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Codec 1 of a frame: the bytes themselves.
pub const RAW: u8 = 1;

/// A frame that holds `content` as it is.
pub fn raw_frame(content: &[u8]) -> Vec<u8> {
    [&[RAW, 0, 0, 0][..], &(content.len() as u32).to_le_bytes(), content].concat()
}

/// The record and the bytes of a raw frame.
pub fn raw(content: &[u8]) -> (FrameRecord, Vec<u8>) {
    let frame = raw_frame(content);
    let record = FrameRecord::single(ChunkId::of(content), content.len(), frame.len(), RAW).expect("short");
    (record, frame)
}

/// The list of files in one leaf, as it stands; order and paths are not looked at.
pub fn leaf(entries: &[Entry]) -> Vec<u8> {
    let mut leaf = Vec::new();
    entries.iter().for_each(|entry| entry::append(entry, &mut leaf).expect("short"));
    leaf
}

/// A stream whose whole content is one chunk.
pub fn whole(content: &[u8]) -> StreamRef {
    StreamRef { root: ChunkId::of(content), depth: 0, bytes: content.len() as u64 }
}

/// An entry without anything special; files are empty until [`filled`].
pub fn entry_at(path: &[u8], kind: FileKind) -> Entry {
    let time = FileTime { seconds: 1_600_000_000, nanoseconds: 5 };
    let metadata = Metadata {
        mode: if kind == FileKind::Directory { 0o755 } else { 0o644 },
        uid: 0,
        gid: 0,
        size: 0,
        mtime: time,
        ctime: time,
        inode: 1,
        link_group: None,
        xattrs: Vec::new(),
        kind,
    };
    Entry { root: 0, path: path.to_vec(), metadata, content: None, changed_while_read: false }
}

/// A file with this content, which the repository has to hold.
pub fn filled(path: &[u8], content: &[u8]) -> Entry {
    let mut entry = entry_at(path, FileKind::Regular);
    entry.metadata.size = content.len() as u64;
    entry.content = Some(whole(content));
    entry
}

/// A snapshot document around a list of files.
pub fn snapshot_of(transaction: &Transaction<'_>, tree: Option<StreamRef>) -> Snapshot {
    Snapshot {
        id: transaction.id(),
        started: now(),
        finished: now(),
        host: "forge".to_owned(),
        source: None,
        roots: vec![b"/data".to_vec()],
        tags: BTreeSet::new(),
        meta: BTreeMap::new(),
        tree,
        parent: None,
        totals: Totals::default(),
        problems: 0,
        program: "forged".to_owned(),
        checkpoints: Vec::new(),
        audit: None,
    }
}

/// A repository with these frames in one pack, and one snapshot with this list of files.
pub fn repository(frames: &[(FrameRecord, Vec<u8>)], tree: StreamRef) -> (SimulatedStorage, Snapshot) {
    repository_with(frames, |transaction| snapshot_of(transaction, Some(tree)))
}

/// As [`repository`], with any snapshot.
pub fn repository_with(
    frames: &[(FrameRecord, Vec<u8>)],
    snapshot: impl FnOnce(&Transaction<'_>) -> Snapshot,
) -> (SimulatedStorage, Snapshot) {
    let storage = runs::simulated(PACK_BYTES_MIN);
    let repo: Repo = runs::open(&storage).expect("opens");
    let transaction = Transaction::begin(&repo, &WriterRecord::of_this_process(now())).expect("begins");
    let mut pack = transaction.create_pack(PackKind::Tree).expect("a pack");
    for (record, frame) in frames {
        pack.append(frame, std::slice::from_ref(record)).expect("as described");
    }
    transaction.finish_pack(pack).expect("durable");
    let snapshot = snapshot(&transaction);
    (storage.clone(), transaction.commit(snapshot).expect("commits"))
}

/// Writes all objects to a folder, for the program.
pub fn write_to(storage: &SimulatedStorage, folder: &Path) {
    for (name, bytes) in storage.objects() {
        let path = folder.join(name.as_str());
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        std::fs::write(path, bytes).expect("written");
    }
}
