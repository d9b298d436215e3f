//! The restore half: packs to files.

use crate::code::{Coder, PIECE_BYTES};
use crate::direct::{self, AlignedBuffer, TRANSFER_BYTES};
use crate::store::{self, Source, Unit};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Writes the files that `units` describe from the packs in `packs` into `target`, every piece checked; durable.
pub fn run(sources: &[Source], units: &[Unit], packs: &Path, target: &Path, threads: usize) -> io::Result<()> {
    let pack_count = units.iter().map(|unit| unit.pack + 1).max().unwrap_or(0);
    let pack_files =
        (0..pack_count).map(|pack| direct::open(&store::pack_path(packs, pack))).collect::<io::Result<Vec<File>>>()?;
    let targets = sources
        .iter()
        .enumerate()
        .map(|(i, source)| direct::create(&target.join(format!("file-{i:04}")), direct::aligned(source.len)))
        .collect::<io::Result<Vec<File>>>()?;
    let next = AtomicUsize::new(0);
    let worker = || -> io::Result<()> {
        // Room for the unit, for piece that did not shrink, and for the ends that alignment adds.
        let mut stored = AlignedBuffer::new(TRANSFER_BYTES + TRANSFER_BYTES / 8);
        let (mut content, mut coder) = (AlignedBuffer::new(TRANSFER_BYTES), Coder::new()?);
        while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
            let len = decode_unit(unit, &pack_files[unit.pack], &mut stored, &mut content, &mut coder)?;
            let end = direct::aligned(len as u64) as usize;
            targets[unit.source].write_all_at(&content.bytes()[..end], unit.offset)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| io::Error::other("a thread panicked"))?)
    })?;
    for (file, source) in targets.iter().zip(sources) {
        file.set_len(source.len)?;
        file.sync_all()?;
    }
    File::open(target)?.sync_all()
}

/// Reads, decodes and checks a unit into the begin of `content`; the bytes it has.
fn decode_unit(
    unit: &Unit,
    pack: &File,
    stored: &mut AlignedBuffer,
    content: &mut AlignedBuffer,
    coder: &mut Coder,
) -> io::Result<usize> {
    let begin = unit.pack_offset / direct::ALIGNMENT as u64 * direct::ALIGNMENT as u64;
    let end = direct::aligned(unit.pack_offset + store::stored_len(unit));
    direct::read_full(pack, &mut stored.bytes_mut()[..(end - begin) as usize], begin)?;
    let mut rest = &stored.bytes()[(unit.pack_offset - begin) as usize..];
    for (piece, out) in unit.pieces.iter().zip(content.bytes_mut().chunks_mut(PIECE_BYTES)) {
        let out = &mut out[..piece.len];
        let (encoded, behind) = rest.split_at(piece.encoded_len);
        let (mantissas, behind) = behind.split_at(piece.len / 2);
        let (odd, behind) = behind.split_at(piece.len % 2);
        coder.decode(encoded, mantissas, out)?;
        out[piece.len / 2 * 2..].copy_from_slice(odd);
        if blake3::hash(out) != piece.hash {
            return Err(io::Error::other("a restored piece is not what was stored"));
        }
        rest = behind;
    }
    Ok(unit.pieces.iter().map(|piece| piece.len).sum())
}
