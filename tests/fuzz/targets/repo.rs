//! What a repository holds: documents, records, packs, tables, index objects, trees. Checksums and ids are made right.

use super::held::{Held, REPOSITORY, TRANSACTION, with_repo};
use ckpt::error::{Error, Result};
use ckpt::ids::{ChunkId, IndexId, PackId};
use ckpt::paths::is_confined;
use ckpt::repo::document::{self as documents, DocumentKind};
use ckpt::repo::keys::Keys;
use ckpt::repo::names::CondemnedPart;
use ckpt::repo::snapshots::Outcome;
use ckpt::repo::stream::{RECORD_BYTES, StreamRef, parse_node};
use ckpt::repo::tree::Entries;
use ckpt::repo::{config as parameters, entry as entries, index_object as indexes, names, pack as packs};
use ckpt::storage::ObjectName;

/// A name for what is sealed under none in particular: a plain document does not depend on it.
fn a_name() -> ObjectName {
    names::snapshot(TRANSACTION).expect("a name")
}

const KINDS: [DocumentKind; 10] = [
    DocumentKind::Config,
    DocumentKind::Transaction,
    DocumentKind::Snapshot,
    DocumentKind::Forgotten,
    DocumentKind::Condemned,
    DocumentKind::History,
    DocumentKind::Tags,
    DocumentKind::KeySlot,
    DocumentKind::Quarantine,
    DocumentKind::Audit,
];

/// A whole object with its two copies, as it is and with the checksum of the first copy made right.
pub fn document(bytes: &[u8]) -> bool {
    let mut mended = bytes.to_vec();
    let half = bytes.len() / 2;
    if half >= 48 {
        let sum = blake3::hash(&mended[..half - 32]);
        mended[half - 32..half].copy_from_slice(sum.as_bytes());
    }
    let (keys, name) = (Keys::plain(), a_name());
    let mut is_sound = false;
    for object in [bytes, &mended] {
        for kind in KINDS {
            let Ok(opened) = documents::open(&keys, kind, &name, object) else { continue };
            let again = documents::seal(&keys, kind, &name, &opened.body).expect("it was not too long");
            assert_eq!(documents::open(&keys, kind, &name, &again).expect("own bytes").body, opened.body);
            // Bytes that are not read may differ; with both copies sound there are none but the reserved one.
            assert!(!opened.both_copies_sound || again.len() == object.len());
            is_sound = true;
        }
    }
    is_sound
}

/// The body of the parameters.
pub fn config(bytes: &[u8]) -> bool {
    let Ok(object) = documents::seal(&Keys::plain(), DocumentKind::Config, &a_name(), bytes) else { return false };
    let Ok(read) = parameters::read(&Held::of(names::CONFIG, &object)) else { return false };
    assert!(read.damage.is_empty(), "{:?}", read.damage);
    let again = documents::encode(&read.config)
        .and_then(|body| documents::seal(&Keys::plain(), DocumentKind::Config, &a_name(), &body));
    let again = parameters::read(&Held::of(names::CONFIG, &again.expect("short"))).expect("own bytes");
    assert_eq!(again.config, read.config);
    true
}

/// The body of a snapshot.
pub fn snapshot(bytes: &[u8]) -> bool {
    let Ok(object) = documents::seal(&Keys::plain(), DocumentKind::Snapshot, &a_name(), bytes) else { return false };
    let Ok((outcome, true)) = Outcome::open(&Keys::plain(), TRANSACTION, &object) else { return false };
    if let Outcome::Saved(saved) = &outcome {
        assert!(saved.started.nanoseconds < 1_000_000_000 && saved.finished.nanoseconds < 1_000_000_000);
        let _ = (saved.source_key(), ckpt::repo::checkpoints::steps_of([&**saved].into_iter()));
        for checkpoint in &saved.checkpoints {
            let _ = checkpoint.absolute_path(saved);
        }
        // Long reasons are shortened when they are written.
        if saved.checkpoints.iter().any(|c| c.unfinished.as_ref().is_some_and(|why| why.len() > 1024)) {
            return true;
        }
    }
    let again = outcome.seal(&Keys::plain(), TRANSACTION).expect("it was not too long");
    assert_eq!(Outcome::open(&Keys::plain(), TRANSACTION, &again).expect("own bytes"), (outcome, true));
    true
}

/// A pack, with its trailer's checksum made right.
pub fn pack(bytes: &[u8]) -> bool {
    let mut object = bytes.to_vec();
    if let Some(front) = bytes.len().checked_sub(64).filter(|front| *front >= 64) {
        let field = |at: usize| u64::from_le_bytes(bytes[front + at..front + at + 8].try_into().expect("eight"));
        let begin = usize::try_from(field(0)).unwrap_or(usize::MAX);
        if let Some(table) = bytes.get(begin..front) {
            let mut hasher = blake3::Hasher::new();
            hasher.update(&bytes[..64]).update(table).update(&bytes[front..front + 16]);
            object[front + 16..front + 48].copy_from_slice(hasher.finalize().as_bytes());
        }
    }
    let id = PackId::from_bytes(*blake3::hash(&object).as_bytes());
    let object_bytes = object.len() as u64;
    let whole = packs::summary_of(&Keys::plain(), &object, id, REPOSITORY);
    let read =
        with_repo(false, vec![(names::PACKS.to_owned(), object)], |repo| packs::read_summary(repo, id, object_bytes));
    assert_eq!(whole.as_ref().ok(), read.as_ref().ok(), "both ways to read a pack agree");
    let Ok(summary) = whole else { return false };
    let frames = summary.frames().expect("it was looked at");
    for frame in frames {
        assert!(frame.offset >= 64 && frame.offset + u64::from(frame.stored_bytes) <= object_bytes);
    }
    true
}

pub fn pack_table(bytes: &[u8]) -> bool {
    let Ok((frames, _)) = ckpt::repo::pack_table::parse(bytes, 64) else { return false };
    let mut again = Vec::new();
    for frame in &frames {
        assert!(!frame.chunks.is_empty() && frame.bases.len() <= 8);
        ckpt::repo::pack_table::append(&mut again, frame).expect("what is read can be written");
    }
    assert_eq!(again, bytes);
    true
}

/// An index object, with the checksums of its sections and its own made right.
pub fn index_object(bytes: &[u8]) -> bool {
    let object = mended_index(bytes);
    let mut visited = 0;
    let read = with_repo(false, vec![(names::INDEX.to_owned(), object)], |repo| {
        indexes::read(repo, IndexId::from_bytes([7; 16]), &mut |pack| {
            visited += 1;
            pack.frames().map(drop)
        })
    });
    assert!(visited <= bytes.len() / 94);
    read.is_ok_and(|is_whole| is_whole && visited > 0)
}

fn mended_index(bytes: &[u8]) -> Vec<u8> {
    let mut object = bytes.to_vec();
    let mut at = 64;
    while object.get(at) == Some(&1) {
        let Some(length) = object.get(at + 58..at + 62) else { return object };
        let length = u32::from_le_bytes(length.try_into().expect("four")) as usize;
        let end = at + 62 + length;
        if object.len() < end + 32 {
            return object;
        }
        let sum = blake3::hash(&object[at..end]);
        object[end..end + 32].copy_from_slice(sum.as_bytes());
        at = end + 32;
    }
    if object.len() == at + 37 {
        let sum = blake3::hash(&object[..at + 5]);
        object[at + 5..].copy_from_slice(sum.as_bytes());
    }
    object
}

pub fn node(bytes: &[u8]) -> bool {
    let Ok(children) = parse_node(bytes) else { return false };
    assert_eq!(children.len() * RECORD_BYTES, bytes.len());
    let written: Vec<u8> =
        children.iter().flat_map(|c| [&c.id.as_bytes()[..], &c.bytes.to_le_bytes()].concat()).collect();
    assert_eq!(written, bytes);
    true
}

/// A depth, the bytes of the stream, and chunks with their lengths: the first byte of an id says which chunk it names. So rings and
/// repetitions are easy, and yet the walk has to come to an end.
pub fn tree(bytes: &[u8]) -> bool {
    let Some((head, mut rest)) = bytes.split_first_chunk::<9>() else { return false };
    let mut chunks = Vec::new();
    while !rest.is_empty() && chunks.len() < 256 {
        let (chunk, behind) = super::split(rest);
        chunks.push(chunk);
        rest = behind;
    }
    let fetch = |id: ChunkId| match chunks.get(usize::from(id.as_bytes()[0])) {
        Some(chunk) => Ok(chunk.to_vec()),
        None => Err(Error::damaged("no such chunk")),
    };
    let stream_bytes = u64::from_le_bytes(head[1..].try_into().expect("eight"));
    let stream = StreamRef { root: ChunkId::from_bytes([0; 32]), depth: head[0] % 9, bytes: stream_bytes };
    let (mut found, mut problems) = (0u64, 0u64);
    let mut last: Option<ckpt::repo::entry::Entry> = None;
    for entry in Entries::new(&fetch, Some(stream)) {
        match entry {
            Ok(entry) => {
                assert!(last.as_ref().is_none_or(|last| last.compare(&entry).is_lt()), "in order, each once");
                last = Some(entry);
                found += 1;
            }
            Err(_) => problems += 1,
        }
        assert!(found + problems <= bytes.len() as u64, "no more entries and problems than there are bytes");
    }
    found > 0
}

/// What lies ahead in the walk: the children of one node on each level.
pub fn tree_memory_max(bytes: &[u8]) -> u64 {
    let depth = u64::from(bytes.first().copied().unwrap_or(0) % 9);
    (64 + 8 * depth) * bytes.len() as u64 + (64 << 10)
}

pub fn entry(bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut is_sound = false;
    while !rest.is_empty() {
        let Ok(entry) = entries::take(&mut rest) else { break };
        assert!(is_confined(&entry.path), "{entry:?}");
        assert!(entry.metadata.mtime.nanoseconds < 1_000_000_000 && entry.metadata.mode <= 0o7777);
        let mut again = Vec::new();
        entries::append(&entry, &mut again).expect("it was short enough");
        assert_eq!(entries::take(&mut again.as_slice()).expect("own bytes"), entry);
        is_sound = true;
    }
    is_sound
}

/// Names of objects: what is taken for one is written in the same way.
pub fn object_name(bytes: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else { return false };
    let Ok(name) = ObjectName::new(text) else { return false };
    assert!(
        name.as_str().len() <= 200 && name.as_str().split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
    );
    let same = |made: Result<ObjectName>| assert_eq!(made.expect("a name"), name);
    names::pack_id(&name).into_iter().for_each(|id| same(names::pack(id)));
    names::index_id(&name).into_iter().for_each(|id| same(names::index(id)));
    names::history_id(&name).into_iter().for_each(|id| same(names::history(id)));
    names::tags_change(&name).into_iter().for_each(|(id, n)| same(names::tags(id, n)));
    names::parity_id(&name).into_iter().for_each(|id| same(names::parity(id)));
    names::quarantine_id(&name).into_iter().for_each(|id| same(names::quarantine(id)));
    names::audit_number(&name).into_iter().for_each(|n| same(names::audit(n)));
    names::key_slot_id(&name).into_iter().for_each(|(id, n)| same(names::key_slot(id, n)));
    names::announced(&name).into_iter().for_each(|(id, n)| match n {
        0 => same(names::transaction(id)),
        n => same(names::sign_of_life(id, n)),
    });
    names::condemned_part(&name).into_iter().for_each(|(n, part)| match part {
        CondemnedPart::List => same(names::condemned(n)),
        CondemnedPart::Run(run) => same(names::condemned_run(n, run)),
        CondemnedPart::End => same(names::condemned_end(n)),
    });
    names::snapshot_id(names::SNAPSHOTS, &name).into_iter().for_each(|id| same(names::snapshot(id)));
    true
}
