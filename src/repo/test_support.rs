//! Small repositories for tests, made through the same transaction, packs and trees as real ones, on simulated storage.

use super::config::{self, Config, Parameters};
use super::document::{self, DocumentKind};
use super::entry::Entry;
use super::keys::{Bundle, Keys, Role, Unlock};
use super::pack::{PackKind, PackSummary, PackWriter};
use super::pack_table::FrameRecord;
use super::records::WriterRecord;
use super::snapshots::{Snapshot, Totals};
use super::stream::{Child, NodeBuilder, StreamRef};
use super::transaction::{Claim, Transaction};
use super::tree::TreeBuilder;
use super::{Cache, Repo};
use crate::codec::seal::Key;
use crate::codec::{Base, Compression, Encoder, Relation};
use crate::error::{Error, Result};
use crate::events::Silent;
use crate::ids::{ChunkId, RepositoryId, SnapshotId};
use crate::metadata::{FileKind, FileTime, Metadata};
use crate::storage::Storage;
use crate::storage::simulated::SimulatedStorage;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Files are cut into chunks of this many bytes here.
pub(crate) const CHUNK_BYTES: usize = 4096;
/// A frame is ended at this many bytes of content, a pack at this many bytes of frames.
const FRAME_BYTES: usize = 10_000;
const PACK_BYTES: u64 = 60_000;

/// What stands at a path.
#[derive(Debug, Clone)]
pub(crate) enum Node {
    Directory,
    File(Vec<u8>),
    /// Zero bytes that are stored as a hole, between two runs of content.
    Sparse(Vec<u8>, u64, Vec<u8>),
    Link(&'static str),
}

/// An empty repository without parity, in which damage stays damage.
pub(crate) fn storage() -> SimulatedStorage {
    storage_of([5; 16], false, Some([7; 32]))
}

/// An empty repository whose packs get parity.
pub(crate) fn storage_with_parity() -> SimulatedStorage {
    storage_of([5; 16], true, Some([7; 32]))
}

/// An empty repository in which everything is sealed.
pub(crate) fn encrypted_storage() -> SimulatedStorage {
    storage_of([5; 16], false, None)
}

/// The same, and its packs get parity.
pub(crate) fn encrypted_storage_with_parity() -> SimulatedStorage {
    storage_of([5; 16], true, None)
}

/// An empty repository of this id; an encrypted one without a key for the chunker.
pub(crate) fn storage_of(id: [u8; 16], parity: bool, chunker_key: Option<[u8; 32]>) -> SimulatedStorage {
    let storage = SimulatedStorage::new();
    let parameters = Parameters {
        chunk_sizes: (1024, 4096, 16384),
        chunker_key,
        pack_bytes: 1 << 16,
        parity,
        exclusive_create: true,
    };
    let config = Config::new(RepositoryId::from_bytes(id), time(0), &parameters).expect("sound parameters");
    config::create(&storage, &config).expect("an empty storage");
    if config.is_encrypted() {
        let read = config::read(&storage).expect("just made");
        let keys = Keys::unlocked(&storage, &read, &TestKeys { role: Role::Read }).expect("own keys");
        storage.read_lists_with(move |name, object| {
            document::open(&keys, DocumentKind::Condemned, name, object).ok().map(|opened| opened.body)
        });
    }
    storage
}

/// Opens it with an index of its own; an encrypted one with all keys.
pub(crate) fn open(storage: &SimulatedStorage) -> Repo {
    open_as(storage, Role::Admin).expect("a sound repository")
}

/// As [`open`], with the keys of a role.
pub(crate) fn open_as(storage: &SimulatedStorage, role: Role) -> crate::error::Result<Repo> {
    let unlock = TestKeys { role };
    Repo::open_storage_with(Arc::new(storage.clone()), &Cache::Memory, &unlock, &Silent)
}

/// The keys of every encrypted repository of the tests.
pub(crate) struct TestKeys {
    pub(crate) role: Role,
}

impl Unlock for TestKeys {
    fn is_given(&self) -> bool {
        false
    }

    fn unlock(&self, storage: &dyn Storage, _repository: RepositoryId) -> crate::error::Result<Bundle> {
        let hash = config::read(storage)?.body_hash;
        Ok(Bundle::derive(&Key::from_bytes([6; 32]), 1, self.role, hash))
    }
}

pub(crate) fn time(seconds: i64) -> FileTime {
    FileTime { seconds, nanoseconds: 0 }
}

pub(crate) fn writer() -> WriterRecord {
    WriterRecord { host: "here".to_owned(), process: 1, started: 0, boot: "boot".to_owned(), signed: None }
}

/// The length of every [`version`].
const VERSION_BYTES: usize = 4000;

/// Bytes that look random and follow from the seed.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut out = vec![0; bytes];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// Everything below one root `/data`, the root itself added in front.
pub(crate) fn save(repo: &Repo, seconds: i64, nodes: &[(&str, Node)]) -> Snapshot {
    save_roots(repo, seconds, &[("/data", nodes)])
}

pub(crate) fn save_roots(repo: &Repo, seconds: i64, roots: &[(&str, &[(&str, Node)])]) -> Snapshot {
    let transaction = Transaction::begin(repo, &writer()).expect("begins");
    let snapshot = write(&transaction, seconds, roots);
    let saved = transaction.commit(snapshot).expect("commits");
    repo.refresh(&Silent).expect("refreshes");
    saved
}

/// Stores everything but the snapshot itself.
pub(crate) fn write(transaction: &Transaction<'_>, seconds: i64, roots: &[(&str, &[(&str, Node)])]) -> Snapshot {
    try_write(transaction, seconds, roots).expect("durable")
}

/// As [`write`], where packs may not become durable.
pub(crate) fn try_write(
    transaction: &Transaction<'_>,
    seconds: i64,
    roots: &[(&str, &[(&str, Node)])],
) -> Result<Snapshot> {
    let mut data = Packer::new(transaction, PackKind::Data);
    let mut trees = Packer::new(transaction, PackKind::Tree);
    let mut builder = TreeBuilder::default();
    let mut totals = Totals::default();
    for (root, (_, nodes)) in (0u32..).zip(roots) {
        let mut sorted: BTreeMap<Vec<u8>, Node> = nodes.iter().map(|(p, n)| (order_key(p), n.clone())).collect();
        if !nodes.iter().any(|(path, _)| path.is_empty()) {
            sorted.insert(Vec::new(), Node::Directory);
        }
        for (key, node) in sorted {
            let path = key.iter().map(|&b| if b == 1 { b'/' } else { b }).collect();
            let entry = entry(root, path, &node, &mut data, &mut trees);
            totals.files += u64::from(entry.is_file());
            totals.directories += u64::from(entry.is_directory());
            totals.others += u64::from(!entry.is_file() && !entry.is_directory());
            totals.bytes += entry.metadata.size;
            builder.push(&entry, &mut |chunk| Ok(trees.store(chunk))).expect("in order");
        }
    }
    let tree = builder.finish(&mut |chunk| Ok(trees.store(chunk))).expect("fits");
    data.finish()?;
    trees.finish()?;
    Ok(Snapshot {
        id: transaction.id(),
        started: time(seconds),
        finished: time(seconds + 1),
        host: "here".to_owned(),
        source: None,
        roots: roots.iter().map(|(root, _)| root.as_bytes().to_vec()).collect(),
        tags: BTreeSet::new(),
        meta: BTreeMap::new(),
        tree,
        parent: None::<SnapshotId>,
        totals,
        problems: 0,
        program: "ckpt test".to_owned(),
        checkpoints: Vec::new(),
        audit: Some(super::audit::head(transaction.repo()).expect("a readable log")),
    })
}

/// Stores chunks in one pack, each in a frame of its own, coded against the contents named with it.
pub(crate) fn store_pack(transaction: &Transaction<'_>, chunks: &[(&[u8], &[&[u8]])]) -> PackSummary {
    let mut pack = transaction.create_pack(PackKind::Data).expect("a pack");
    for &(chunk, bases) in chunks {
        let (record, frame) = frame_of(transaction.repo(), chunk, bases);
        pack.append(&frame, &[record]).expect("appends");
    }
    transaction.finish_pack(pack).expect("durable")
}

/// As [`store_pack`], in a transaction of its own that leaves no snapshot.
pub(crate) fn store(repo: &Repo, chunks: &[(&[u8], &[&[u8]])]) -> PackSummary {
    let transaction = Transaction::begin(repo, &writer()).expect("begins");
    let summary = store_pack(&transaction, chunks);
    transaction.commit_repacked().expect("commits");
    summary
}

/// A chunk coded against these contents.
pub(crate) fn frame_of(repo: &Repo, chunk: &[u8], bases: &[&[u8]]) -> (FrameRecord, Vec<u8>) {
    let mut encoder = Encoder::new(Compression::Auto).expect("an encoder");
    let mut frame = Vec::new();
    let codec = if bases.is_empty() {
        encoder.encode(chunk, &mut frame).expect("encodes")
    } else {
        let content = bases.concat();
        let base = Base {
            content: &content,
            chunks: bases.len() as u8,
            relation: Relation::Text,
            stored_bytes_max: chunk.len(),
        };
        let encoded = encoder.encode_against(chunk, &base, &mut frame).expect("encodes");
        // What shares nothing with its base is stored as it is, and needs the base all the same by its record.
        let is_version = chunk.len() == VERSION_BYTES && bases.iter().all(|base| base.len() == VERSION_BYTES);
        assert!(encoded.needs_base || !is_version, "versions are alike");
        encoded.codec
    };
    let ids = bases.iter().map(|base| repo.chunk_id(base)).collect();
    let record = FrameRecord::delta(repo.chunk_id(chunk), chunk.len(), frame.len(), codec.code(), ids);
    (record.expect("a record"), frame)
}

/// One file's worth of numbered versions of the same bytes, each a chunk and a little different from the others.
pub(crate) fn version(number: u64) -> Vec<u8> {
    let mut bytes = noise(1000, VERSION_BYTES);
    bytes[..100].copy_from_slice(&noise(number, 100));
    bytes
}

/// Stores versions in one pack, coded against others as told, and saves a snapshot of some versions, each a file.
pub(crate) fn save_versions(repo: &Repo, seconds: i64, stored: &[(u64, &[u64])], files: &[u64]) -> Snapshot {
    let transaction = Transaction::begin(repo, &writer()).expect("begins");
    store_versions(&transaction, stored);
    let names: Vec<(String, Node)> = files.iter().map(|&n| (format!("v{n}"), Node::File(version(n)))).collect();
    let nodes: Vec<(&str, Node)> = names.iter().map(|(name, node)| (name.as_str(), node.clone())).collect();
    let snapshot = write(&transaction, seconds, &[("/data", &nodes)]);
    let saved = transaction.commit(snapshot).expect("commits");
    repo.refresh(&Silent).expect("refreshes");
    saved
}

/// Stores versions in one pack, coded against others as told.
pub(crate) fn store_versions(transaction: &Transaction<'_>, stored: &[(u64, &[u64])]) -> Option<PackSummary> {
    let contents = |numbers: &[u64]| numbers.iter().map(|&n| version(n)).collect::<Vec<_>>();
    let stored: Vec<_> = stored.iter().map(|&(number, bases)| (version(number), contents(bases))).collect();
    let bases: Vec<Vec<&[u8]>> = stored.iter().map(|(_, b)| b.iter().map(Vec::as_slice).collect()).collect();
    let chunks: Vec<(&[u8], &[&[u8]])> =
        stored.iter().zip(&bases).map(|((chunk, _), bases)| (chunk.as_slice(), bases.as_slice())).collect();
    (!chunks.is_empty()).then(|| store_pack(transaction, &chunks))
}

/// The content of every file of the snapshot by its path, all of it read and verified.
pub(crate) fn contents(repo: &Repo, snapshot: &Snapshot) -> crate::error::Result<BTreeMap<String, Vec<u8>>> {
    let fetch = |id| repo.read_chunk(id);
    let mut found = BTreeMap::new();
    for entry in repo.entries(&fetch, snapshot.tree) {
        let entry = entry?;
        let mut bytes = Vec::new();
        if let Some(content) = entry.content {
            for child in repo.content_chunks(&fetch, content) {
                let child = child?;
                if child.id == ChunkId::HOLE {
                    bytes.resize(bytes.len() + child.bytes as usize, 0);
                } else {
                    bytes.extend(repo.read_chunk(child.id)?);
                }
            }
        }
        found.insert(String::from_utf8_lossy(&entry.path).into_owned(), bytes);
    }
    Ok(found)
}

/// Sorts as entries do.
fn order_key(path: &str) -> Vec<u8> {
    path.bytes().map(|b| if b == b'/' { 1 } else { b }).collect()
}

fn entry(root: u32, path: Vec<u8>, node: &Node, data: &mut Packer<'_>, trees: &mut Packer<'_>) -> Entry {
    let (kind, mode, content) = match node {
        Node::Directory => (FileKind::Directory, 0o755, None),
        Node::Link(target) => (FileKind::Symlink { target: target.as_bytes().to_vec() }, 0o777, None),
        Node::File(bytes) => (FileKind::Regular, 0o644, stream(&[(bytes, 0)], data, trees)),
        Node::Sparse(front, hole, back) => {
            (FileKind::Regular, 0o644, stream(&[(front, *hole), (back, 0)], data, trees))
        }
    };
    Entry {
        root,
        path,
        metadata: Metadata {
            kind,
            mode,
            uid: 0,
            gid: 0,
            size: content.map_or(0, |c| c.bytes),
            mtime: time(1000),
            ctime: time(1000),
            inode: 1,
            link_group: None,
            xattrs: Vec::new(),
        },
        content,
        changed_while_read: false,
    }
}

fn stream(runs: &[(&Vec<u8>, u64)], data: &mut Packer<'_>, trees: &mut Packer<'_>) -> Option<StreamRef> {
    let mut nodes = NodeBuilder::default();
    for (bytes, hole) in runs {
        for chunk in bytes.chunks(CHUNK_BYTES) {
            let child = Child { id: data.store(chunk.to_vec()), bytes: chunk.len() as u64 };
            nodes.push(child, &mut |node| Ok(trees.store(node))).expect("fits");
        }
        if *hole > 0 {
            let child = Child { id: ChunkId::HOLE, bytes: *hole };
            nodes.push(child, &mut |node| Ok(trees.store(node))).expect("fits");
        }
    }
    nodes.finish(&mut |node| Ok(trees.store(node))).expect("fits")
}

struct Packer<'t> {
    transaction: &'t Transaction<'t>,
    kind: PackKind,
    encoder: Encoder,
    pending: Vec<(ChunkId, Vec<u8>)>,
    pack: Option<PackWriter>,
    failure: Option<Error>,
}

impl<'t> Packer<'t> {
    fn new(transaction: &'t Transaction<'t>, kind: PackKind) -> Self {
        let encoder = Encoder::new(Compression::Auto).expect("an encoder");
        Packer { transaction, kind, encoder, pending: Vec::new(), pack: None, failure: None }
    }

    fn store(&mut self, chunk: Vec<u8>) -> ChunkId {
        let id = self.transaction.repo().chunk_id(&chunk);
        if self.transaction.claim(&[id]).expect("claims") == [Claim::New] {
            self.pending.push((id, chunk));
            if self.pending.iter().map(|(_, c)| c.len()).sum::<usize>() >= FRAME_BYTES {
                self.end_frame();
            }
        }
        id
    }

    fn end_frame(&mut self) {
        let pending = std::mem::take(&mut self.pending);
        let raw: Vec<u8> = pending.iter().flat_map(|(_, chunk)| chunk.iter().copied()).collect();
        if raw.is_empty() {
            return;
        }
        let mut frame = Vec::new();
        let codec = self.encoder.encode(&raw, &mut frame).expect("encodes");
        let record = FrameRecord {
            offset: 0,
            stored_bytes: frame.len() as u32,
            raw_bytes: raw.len() as u32,
            codec: codec.code(),
            bases: vec![],
            chunks: pending.iter().map(|(id, chunk)| (*id, chunk.len() as u32)).collect(),
        };
        let transaction = self.transaction;
        let kind = self.kind;
        let pack = self.pack.get_or_insert_with(|| transaction.create_pack(kind).expect("a pack"));
        pack.append(&frame, &[record]).expect("appends");
        if pack.bytes() >= PACK_BYTES {
            self.end_pack();
        }
    }

    fn end_pack(&mut self) {
        if let Some(pack) = self.pack.take() {
            self.failure = self.failure.take().or(self.transaction.finish_pack(pack).err());
        }
    }

    fn finish(mut self) -> Result<()> {
        self.end_frame();
        self.end_pack();
        self.failure.map_or(Ok(()), Err)
    }
}
