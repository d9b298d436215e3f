//! Writes one tensor of a file of a snapshot to a stream, alone.
//!
//! Only the chunks that the headers and the tensor lie in are read, ahead by several threads, and each is verified
//! before a byte of it is written.

use super::Resources;
use super::ahead::read_in_order;
use super::tensors::{open_tensor_file, place_of};
use crate::error::{Error, Result};
use crate::events::{Event, Observer};
use crate::repo::Repo;
use crate::repo::frame_cache::FrameCache;
use crate::repo::snapshots::Snapshot;
use std::io::Write;

/// What stands around the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorFormat {
    /// Nothing.
    Raw,
}

/// Writes the tensor `name` of the file at `path` to `out` and returns how many bytes its elements have.
///
/// [`Kind::NotFound`](crate::error::Kind::NotFound) if there is no such file or tensor; [`Kind::Usage`](crate::error::Kind::Usage)
/// if the file holds no tensors or the elements are not contiguous; [`Kind::Damaged`](crate::error::Kind::Damaged) if a part
/// of it cannot be read: what comes before that part has been written then.
pub fn dump_tensor(
    repo: &Repo,
    snapshot: &Snapshot,
    (path, name): (&[u8], &str),
    format: TensorFormat,
    out: &mut dyn Write,
    resources: Resources,
    observer: &dyn Observer,
) -> Result<u64> {
    let file = open_tensor_file(repo, snapshot, path, observer)?;
    let tensor = file.tensor(name)?;
    let place = place_of(tensor)?;
    observer.on_event(&Event::Phase { name: "writing", bytes_total: Some(place.len()), files_total: Some(1) });
    let to_out = |error| Error::io("writing the tensor out", error);
    match format {
        TensorFormat::Raw => {}
    }
    let frames = FrameCache::new(repo);
    let mut write = |bytes: &[u8]| out.write_all(bytes).map_err(to_out);
    let stretches = file.stretches(place).map(Ok);
    let written = read_in_order(&frames, stretches, resources, observer, &mut write)
        .map_err(|error| error.while_doing(format!("{}, {name}", String::from_utf8_lossy(path))))?;
    if written != place.len() {
        return Err(Error::damaged(format!("{name}: {written} bytes of {} are listed", place.len())));
    }
    out.flush().map_err(to_out)?;
    Ok(written)
}
