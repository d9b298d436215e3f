//! The backup half: source files to packs.

use crate::code::{Coder, PIECE_BYTES};
use crate::direct::{self, AlignedBuffer, TRANSFER_BYTES};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The length of a full pack.
pub const PACK_BYTES: u64 = 64 << 20;

/// One file to store.
pub struct Source {
    pub path: PathBuf,
    pub file: File,
    pub len: u64,
}

/// Eight pieces that stand one behind the other in a file and in a pack; what one thread takes at a time.
pub struct Unit {
    pub source: usize,
    pub offset: u64,
    pub pack: usize,
    pub pack_offset: u64,
    pub pieces: Vec<Piece>,
}

/// Where a piece lies and what it must be: all that an index would say of it.
pub struct Piece {
    pub encoded_len: usize,
    pub len: usize,
    pub hash: blake3::Hash,
}

/// The path of a pack.
pub fn pack_path(directory: &Path, pack: usize) -> PathBuf {
    directory.join(format!("pack-{pack:04}"))
}

/// Stores all of `sources` into packs in `directory`; the units, in no particular order.
pub fn run(sources: &[Source], directory: &Path, threads: usize) -> io::Result<Vec<Unit>> {
    let plan: Vec<(usize, u64)> = sources
        .iter()
        .enumerate()
        .flat_map(|(i, source)| (0..source.len).step_by(TRANSFER_BYTES).map(move |offset| (i, offset)))
        .collect();
    let (next_unit, next_pack) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let worker = || -> io::Result<Vec<Unit>> {
        let mut pack = PackWriter::new(directory, &next_pack);
        let (mut coder, mut piece, mut units) = (Coder::new()?, vec![0; PIECE_BYTES], Vec::new());
        while let Some(&(source, offset)) = plan.get(next_unit.fetch_add(1, Ordering::Relaxed)) {
            units.push(store_unit(sources, source, offset, &mut pack, &mut coder, &mut piece)?);
        }
        pack.finish()?;
        Ok(units)
    };
    let units = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let mut units = Vec::new();
        for worker in workers {
            units.extend(worker.join().map_err(|_| io::Error::other("a thread panicked"))??);
        }
        io::Result::Ok(units)
    })?;
    File::open(directory)?.sync_all()?;
    Ok(units)
}

fn store_unit(
    sources: &[Source],
    source: usize,
    offset: u64,
    pack: &mut PackWriter,
    coder: &mut Coder,
    buffer: &mut [u8],
) -> io::Result<Unit> {
    let end = sources[source].len.min(offset + TRANSFER_BYTES as u64);
    let (number, pack_offset) = pack.begin_unit()?;
    let mut pieces = Vec::with_capacity(TRANSFER_BYTES / PIECE_BYTES);
    for at in (offset..end).step_by(PIECE_BYTES) {
        let piece = &mut buffer[..(end - at).min(PIECE_BYTES as u64) as usize];
        sources[source].file.read_exact_at(piece, at)?;
        let hash = blake3::hash(piece);
        let (encoded, mantissas) = coder.encode(piece)?;
        pack.write(encoded)?;
        pack.write(mantissas)?;
        pack.write(&piece[mantissas.len() * 2..])?;
        pieces.push(Piece { encoded_len: encoded.len(), len: piece.len(), hash });
    }
    Ok(Unit { source, offset, pack: number, pack_offset, pieces })
}

/// Writes one pack after another: gathers bytes, hashes them, writes them directly, makes each pack durable.
struct PackWriter<'a> {
    directory: &'a Path,
    next_pack: &'a AtomicUsize,
    /// The pack under way, its number and the hash of what was written to it.
    pack: Option<(File, usize, blake3::Hasher)>,
    buffer: AlignedBuffer,
    filled: usize,
    written: u64,
}

impl<'a> PackWriter<'a> {
    fn new(directory: &'a Path, next_pack: &'a AtomicUsize) -> Self {
        let buffer = AlignedBuffer::new(TRANSFER_BYTES);
        PackWriter { directory, next_pack, pack: None, buffer, filled: 0, written: 0 }
    }

    /// The number of the pack that takes the next bytes, and their offset in it. A unit is never split between packs.
    fn begin_unit(&mut self) -> io::Result<(usize, u64)> {
        let offset = self.written + self.filled as u64;
        if offset + TRANSFER_BYTES as u64 > PACK_BYTES {
            self.finish()?;
        }
        if let Some((_, number, _)) = &self.pack {
            return Ok((*number, offset));
        }
        let number = self.next_pack.fetch_add(1, Ordering::Relaxed);
        let file = direct::create(&pack_path(self.directory, number), PACK_BYTES)?;
        self.pack = Some((file, number, blake3::Hasher::new()));
        Ok((number, 0))
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = &mut self.buffer.bytes_mut()[self.filled..];
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.filled += now.len();
            bytes = later;
            if self.filled == TRANSFER_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Writes what was gathered, with zeros up to the alignment behind it.
    fn flush(&mut self) -> io::Result<()> {
        let Some((file, _, hasher)) = &mut self.pack else { return Ok(()) };
        let end = direct::aligned(self.filled as u64) as usize;
        self.buffer.bytes_mut()[self.filled..end].fill(0);
        hasher.update(&self.buffer.bytes()[..self.filled]);
        file.write_all_at(&self.buffer.bytes()[..end], self.written)?;
        self.written += self.filled as u64;
        self.filled = 0;
        Ok(())
    }

    /// Ends the pack under way, if there is one: exact length, durable.
    fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        if let Some((file, _, hasher)) = self.pack.take() {
            std::hint::black_box(hasher.finalize());
            file.set_len(self.written)?;
            file.sync_all()?;
        }
        self.written = 0;
        Ok(())
    }
}

/// The bytes of a unit in its pack.
pub fn stored_len(unit: &Unit) -> u64 {
    unit.pieces.iter().map(|piece| (piece.encoded_len + piece.len - piece.len / 2) as u64).sum()
}
