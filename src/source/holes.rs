//! Making holes in a file that has other content there.
//!
//! Where the file system cannot tell holes from data, all is data; where it cannot make holes, zeros are written.

use crate::bytes::ByteRange;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// So much is compared with zeros, and written, at once. A stretch no longer than this is left alone if it is zero already:
/// the edges of most holes lie within blocks.
const PIECE_BYTES: u64 = 64 << 10;

/// The first stretch of data in `range` that is not known to read as zeros.
pub(super) fn next_data(file: &File, range: ByteRange) -> io::Result<Option<ByteRange>> {
    let mut at = range.offset();
    while at < range.end() {
        let begin = match seek(file, SeekFrom::Data(at))? {
            Some(begin) if begin < range.end() => begin.max(at),
            _ => return Ok(None),
        };
        // An answer that makes no sense: the rest is data.
        let end = seek(file, SeekFrom::Hole(begin))?.filter(|end| *end > begin).unwrap_or(range.end()).min(range.end());
        if end - begin > PIECE_BYTES || !is_zero(file, begin, end)? {
            let data = ByteRange::new(begin, end - begin).map_err(io::Error::other)?;
            return Ok(Some(data));
        }
        at = end;
    }
    Ok(None)
}

/// Makes all of `range` read as zeros.
pub(super) fn clear(file: &File, range: ByteRange) -> io::Result<()> {
    if punch(file, range)? {
        return Ok(());
    }
    let zeros = vec![0; usize::try_from(PIECE_BYTES).map_err(io::Error::other)?];
    let mut at = range.offset();
    while at < range.end() {
        let end = range.end().min(at + PIECE_BYTES);
        if !is_zero(file, at, end)? {
            file.write_all_at(&zeros[..usize::try_from(end - at).map_err(io::Error::other)?], at)?;
        }
        at = end;
    }
    Ok(())
}

/// False if the file system cannot make holes.
#[cfg(target_os = "linux")]
fn punch(file: &File, range: ByteRange) -> io::Result<bool> {
    use rustix::fs::FallocateFlags;
    loop {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(file, flags, range.offset(), range.len()) {
            Ok(()) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::PERM) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn punch(_file: &File, _range: ByteRange) -> io::Result<bool> {
    Ok(false)
}

/// Where the next data or hole begins; none if there is none. A file system that cannot tell has data everywhere.
fn seek(file: &File, position: SeekFrom) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, position) {
        Ok(offset) => Ok(Some(offset)),
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOTTY) => match position {
            SeekFrom::Data(at) => Ok(Some(at)),
            _ => Ok(None),
        },
        Err(error) => Err(error.into()),
    }
}

/// True if there is nothing but zeros, also where the file has ended. At most [`PIECE_BYTES`].
fn is_zero(file: &File, begin: u64, end: u64) -> io::Result<bool> {
    let mut piece = vec![0; usize::try_from(end - begin).map_err(io::Error::other)?];
    let mut filled = 0;
    while filled < piece.len() {
        match file.read_at(&mut piece[filled..], begin + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(piece.iter().all(|&byte| byte == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_reads_as_zeros_afterwards_and_nothing_else_has_changed() {
        for (begin, end) in [(0, 300_000), (5, 4095), (4096, 8192), (100_001, 250_003), (299_000, 400_000)] {
            let file = tempfile::tempfile().expect("a file");
            file.write_all_at(&[7; 300_000], 0).expect("written");
            let range = ByteRange::new(begin, end - begin).expect("a range");
            while let Some(data) = next_data(&file, range).expect("found") {
                assert!(range.contains(data));
                clear(&file, data).expect("cleared");
            }
            let mut content = vec![1; 300_000];
            file.read_exact_at(&mut content, 0).expect("as long as before");
            let is_right = |(at, byte): (u64, &u8)| *byte == if begin <= at && at < end { 0 } else { 7 };
            assert!((0..).zip(&content).all(is_right), "{begin} to {end}");
        }
    }
}
