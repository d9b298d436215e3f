//! Writes the content of one file of a snapshot to a stream.
//!
//! Chunks are read and decoded ahead by several threads and written in order, each verified before a byte of it is
//! written. Holes are written as zeros. Memory stays bounded whatever the size of the file.

use super::Resources;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::ChunkId;
use crate::metadata::FileKind;
use crate::repo::entry::Entry;
use crate::repo::frame_cache::FrameCache;
use crate::repo::snapshots::Snapshot;
use crate::repo::stream::{Child, StreamRef};
use crate::repo::{Repo, paths};
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::collections::VecDeque;
use std::io::Write;

/// Zeros are written in pieces of this many bytes.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The most bytes of content that are read ahead.
const AHEAD_BYTES_MAX: u64 = 256 << 20;

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

/// A piece of the file on its way: a hole, or a chunk that a thread is reading.
enum Piece {
    Hole(u64),
    Chunk(u64, Receiver<Result<Vec<u8>>>),
}

struct Job {
    id: ChunkId,
    done: Sender<Result<Vec<u8>>>,
}

fn copy(
    repo: &Repo,
    content: StreamRef,
    out: &mut dyn Write,
    resources: Resources,
    observer: &dyn Observer,
) -> Result<u64> {
    let ahead_max = (resources.memory_bytes / 4).min(AHEAD_BYTES_MAX);
    let (send, jobs) = unbounded::<Job>();
    let frames = &FrameCache::new(repo);
    std::thread::scope(|scope| {
        for _ in 0..resources.threads.max(1) {
            let jobs = jobs.clone();
            scope.spawn(move || {
                for job in jobs {
                    // Nobody listens any more once the run has failed elsewhere.
                    let _ = job.done.send(frames.read(job.id));
                }
            });
        }
        // Dropped with this closure, however it ends: that is what lets the threads end.
        let send = send;
        let fetch = |id| frames.read(id);
        let mut ahead = VecDeque::new();
        let mut ahead_bytes = 0;
        let mut written = 0;
        for child in repo.content_chunks(&fetch, content) {
            let piece = start(child?, &send);
            ahead_bytes += piece.memory_bytes();
            ahead.push_back(piece);
            while ahead_bytes > ahead_max
                && let Some(piece) = ahead.pop_front()
            {
                ahead_bytes -= piece.memory_bytes();
                written += write_piece(piece, out, observer)?;
            }
        }
        for piece in ahead {
            written += write_piece(piece, out, observer)?;
        }
        Ok(written)
    })
}

fn start(child: Child, send: &Sender<Job>) -> Piece {
    if child.id == ChunkId::HOLE {
        return Piece::Hole(child.bytes);
    }
    let (done, result) = bounded(1);
    // The threads live as long as this sender does.
    let _ = send.send(Job { id: child.id, done });
    Piece::Chunk(child.bytes, result)
}

impl Piece {
    fn memory_bytes(&self) -> u64 {
        match self {
            // Also a hole takes its place in the queue.
            Piece::Hole(_) => 64,
            Piece::Chunk(bytes, _) => bytes.saturating_add(64),
        }
    }
}

fn write_piece(piece: Piece, out: &mut dyn Write, observer: &dyn Observer) -> Result<u64> {
    let to_out = |e| Error::io("writing the content out", e);
    let bytes = match piece {
        Piece::Hole(bytes) => {
            let mut left = bytes;
            while left > 0 {
                check_interrupt(observer)?;
                let now = usize::try_from(left).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
                out.write_all(&ZEROS[..now]).map_err(to_out)?;
                left -= now as u64;
            }
            bytes
        }
        Piece::Chunk(bytes, result) => {
            check_interrupt(observer)?;
            let read = result.recv().map_err(|_| Error::new(Kind::Failed, "a thread that reads chunks has ended"))?;
            let content = read?;
            if content.len() as u64 != bytes {
                return Err(Error::damaged(format!("a chunk has {} bytes, not {bytes}", content.len())));
            }
            out.write_all(&content).map_err(to_out)?;
            bytes
        }
    };
    observer.on_event(&Event::Progress { bytes, files: 0 });
    Ok(bytes)
}

fn check_interrupt(observer: &dyn Observer) -> Result<()> {
    if observer.is_interrupted() {
        return Err(Error::new(Kind::Interrupted, "interrupted while writing the content out"));
    }
    Ok(())
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
