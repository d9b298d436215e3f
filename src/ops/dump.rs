//! Writes the content of one file of a snapshot to a stream.
//!
//! Chunks are read and decoded ahead by several threads and written in order, each verified before a byte of it is
//! written. Holes are written as zeros. Memory stays bounded whatever the size of the file.

use super::Resources;
use super::ahead::{Stretch, read_in_order};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::metadata::FileKind;
use crate::repo::entry::Entry;
use crate::repo::frame_cache::FrameCache;
use crate::repo::pack::PackKind;
use crate::repo::snapshots::Snapshot;
use crate::repo::stream::{Child, StreamRef};
use crate::repo::{Repo, paths};
use std::io::Write;

/// Writes the regular file at `path` to `out` and returns how many bytes it has.
///
/// [`Kind::NotFound`] if nothing is there, [`Kind::Usage`] if it is something else than a regular file, [`Kind::Damaged`]
/// if a part of it cannot be read: what comes before that part has been written then.
pub fn dump(
    repo: &Repo,
    snapshot: &Snapshot,
    path: &[u8],
    out: &mut dyn Write,
    resources: Resources,
    observer: &dyn Observer,
) -> Result<u64> {
    repo.keys().require(PackKind::Tree)?;
    repo.keys().require(PackKind::Data)?;
    let entry = paths::find_entry(repo, snapshot, path)?;
    refuse_other_than_file(path, &entry)?;
    let total = entry.metadata.size;
    observer.on_event(&Event::Phase { name: "writing", bytes_total: Some(total), files_total: Some(1) });
    if let Some(content) = entry.content {
        let written = copy(repo, content, out, resources, observer).map_err(|e| e.while_doing(display(path)))?;
        if written != total {
            return Err(Error::damaged(format!("{}: {written} bytes of {total} are listed", display(path))));
        }
    }
    out.flush().map_err(|e| Error::io("writing the content out", e))?;
    Ok(total)
}

fn display(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

fn refuse_other_than_file(path: &[u8], entry: &Entry) -> Result<()> {
    let what = match &entry.metadata.kind {
        FileKind::Regular => return Ok(()),
        FileKind::Directory => "a directory".to_owned(),
        FileKind::Symlink { target } => format!("a symbolic link to {}", display(target)),
        FileKind::Fifo => "a named pipe".to_owned(),
        FileKind::CharDevice { .. } => "a character device".to_owned(),
        FileKind::BlockDevice { .. } => "a block device".to_owned(),
    };
    Err(Error::new(Kind::Usage, format!("{} is {what}, not a regular file", display(path)))
        .with_hint("`ckpt restore` brings back everything"))
}

fn copy(
    repo: &Repo,
    content: StreamRef,
    out: &mut dyn Write,
    resources: Resources,
    observer: &dyn Observer,
) -> Result<u64> {
    let frames = &FrameCache::new(repo);
    let fetch = |id| frames.read(id);
    let whole = |child: Child| Stretch { id: child.id, chunk_bytes: child.bytes, skip: 0, bytes: child.bytes };
    let stretches = repo.content_chunks(&fetch, content).map(|child| child.map(whole));
    let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(|e| Error::io("writing the content out", e));
    read_in_order(frames, stretches, resources, observer, &mut write)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Silent;
    use crate::repo::names;
    use crate::repo::test_support::{self, Node, noise};
    use crate::storage::ObjectName;

    fn dumped(repo: &Repo, snapshot: &Snapshot, path: &str, memory_bytes: u64) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        let resources = Resources { threads: 3, memory_bytes };
        let bytes = dump(repo, snapshot, path.as_bytes(), &mut out, resources, &Silent)?;
        assert_eq!(bytes, out.len() as u64);
        Ok(out)
    }

    #[test]
    fn files_come_out_as_they_were_with_holes_as_zeros() {
        let repo = test_support::open(&test_support::storage());
        let big = noise(1, 2_000_000);
        let nodes = [
            ("big", Node::File(big.clone())),
            ("empty", Node::File(vec![])),
            ("holes", Node::Sparse(noise(2, 5000), 1 << 20, noise(3, 10))),
        ];
        let snapshot = test_support::save(&repo, 10, &nodes);
        for memory_bytes in [0, 1 << 16, 1 << 30] {
            assert_eq!(dumped(&repo, &snapshot, "big", memory_bytes).expect("sound"), big);
        }
        assert_eq!(dumped(&repo, &snapshot, "empty", 1 << 20).expect("sound"), b"");
        let holes = dumped(&repo, &snapshot, "/data/holes", 1 << 20).expect("sound");
        assert_eq!(holes, [noise(2, 5000), vec![0; 1 << 20], noise(3, 10)].concat());
    }

    #[test]
    fn what_is_no_file_or_not_there_is_refused() {
        let repo = test_support::open(&test_support::storage());
        let snapshot = test_support::save(&repo, 10, &[("dir", Node::Directory), ("link", Node::Link("there"))]);
        let refused = |path: &str| dumped(&repo, &snapshot, path, 1 << 20).expect_err("no file");
        assert_eq!(refused("dir").kind(), Kind::Usage);
        assert!(refused("link").to_string().contains("a symbolic link to there"));
        assert_eq!(refused("nothing").kind(), Kind::NotFound);
    }

    #[test]
    fn a_damaged_chunk_ends_the_output_before_it() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        let big = noise(1, 200_000);
        let snapshot = test_support::save(&repo, 10, &[("big", Node::File(big.clone()))]);
        let is_pack = |(name, _): &(ObjectName, Vec<u8>)| names::pack_id(name).is_some();
        let packs = storage.objects().into_iter().filter(is_pack);
        let (name, _) = packs.max_by_key(|(_, bytes)| bytes.len()).expect("a pack of data");
        assert!(storage.corrupt(&name, 2000, 1));
        let mut out = Vec::new();
        let resources = Resources { threads: 2, memory_bytes: 1 << 20 };
        let result = dump(&repo, &snapshot, b"big", &mut out, resources, &Silent);
        assert_eq!(result.map_err(|e| e.kind()), Err(Kind::Damaged));
        assert!(big.starts_with(&out));
    }

    #[test]
    fn a_file_that_was_backed_up_alone_is_found_by_its_name() {
        let repo = test_support::open(&test_support::storage());
        let nodes: &[(&str, Node)] = &[("", Node::File(noise(4, 100)))];
        let snapshot = test_support::save_roots(&repo, 10, &[("/data/x.bin", nodes)]);
        for path in ["x.bin", "/data/x.bin"] {
            assert_eq!(dumped(&repo, &snapshot, path, 1 << 20).expect("there"), noise(4, 100));
        }
    }
}
