//! What `torch.save` writes since version 1.6: a zip archive with a pickle, and one entry for each storage.
//!
//! A run is a storage, named after the first tensor in it; a tensor has a place if its elements lie one behind the other.
//! If the pickle is not understood the runs remain, under the names of their entries. Archives of TorchScript
//! are read the same way. Numbers of a big-endian machine have no type and no place: nothing here would read them right.
//! Files of older versions, which are no archives, are not read.

use super::finish::finish;
use super::header_reader::{HeaderReader, Refusal};
use super::pickle::Pickle;
use super::torch_objects::{Found, storage_bytes, tensors};
use super::zip::{Archive, Entry, STORED};
use super::zip_walk::walk;
use crate::bytes::ByteRange;
use crate::source::layout::{Container, Cut, Layout, Run, Tensor};
use std::collections::HashMap;

const PICKLE: &[u8] = b"data.pkl";
const STORAGES: &[u8] = b"data/";
/// Tensors of TorchScript that the code names.
const CONSTANTS: &[u8] = b"constants/";
const BYTE_ORDER: &[u8] = b"byteorder";

/// The name of a tensor that was saved alone.
const LONE_TENSOR: &str = "tensor";

/// What an archive holds.
#[derive(Debug)]
pub(super) struct Contents {
    /// In the order of the file; the name is empty if the tensor was saved alone.
    pub(super) tensors: Vec<Tensor>,
    /// In the order of the file.
    pub(super) runs: Vec<Run>,
}

/// The path in front of the names that PyTorch gives its entries; none if it has not written the archive.
pub(super) fn prefix(archive: &Archive) -> Option<&[u8]> {
    let names = archive.entries.iter().map(|entry| entry.name.as_slice());
    names.filter_map(|name| name.strip_suffix(PICKLE)).find(|prefix| prefix.is_empty() || prefix.ends_with(b"/"))
}

/// The layout of an archive that fills the file.
pub(super) fn layout(reader: &mut HeaderReader<'_>, archive: &Archive, prefix: &[u8]) -> Result<Layout, Refusal> {
    let Contents { mut tensors, mut runs } = contents(reader, archive, prefix)?;
    let names = tensors.iter_mut().map(|tensor| &mut tensor.name).chain(runs.iter_mut().map(|run| &mut run.key));
    names.filter(|name| name.is_empty()).for_each(|name| name.push_str(LONE_TENSOR));
    let layout =
        Layout { container: Container::Torch, tensors, runs, metadata: Vec::new(), is_truncated: archive.is_truncated };
    finish(layout, reader.file_bytes())
}

/// Reads pickle and storages.
pub(super) fn contents(reader: &mut HeaderReader<'_>, archive: &Archive, prefix: &[u8]) -> Result<Contents, Refusal> {
    let mut storages = Vec::new();
    let pickle = pickle(reader, &archive.entries, prefix)?;
    let mut is_big_endian = false;
    for entry in archive.entries.iter().filter(|entry| entry.method == STORED) {
        let Some(name) = entry.name.strip_prefix(prefix) else { continue };
        if name == BYTE_ORDER && entry.bytes <= 16 {
            let payload = entry.payload(reader)?;
            is_big_endian = reader.read(payload.offset(), payload.len())? == b"big";
        } else if name.starts_with(STORAGES) || name.starts_with(CONSTANTS) {
            storages.push(Storage { name, payload: entry.payload(reader)?, tensor: None });
        }
    }
    let found = pickle.as_ref().map(tensors).unwrap_or_default();
    let tensors = pickle.map(|pickle| placed(&pickle, &found, &mut storages, is_big_endian)).unwrap_or_default();
    let run = |storage: &Storage<'_>| {
        let first = storage.tensor.and_then(|at| found.get(at));
        let entry = || String::from_utf8_lossy(storage.name).into_owned();
        Run {
            range: storage.payload,
            key: first.map_or_else(entry, |first| first.name.clone()),
            dtype: first.map(|first| first.elements.0).filter(|_| !is_big_endian),
            cut: Cut::Fixed,
        }
    };
    let runs = storages.iter().filter(|storage| !storage.payload.is_empty()).map(run).collect();
    Ok(Contents { tensors, runs })
}

/// The pickle of an archive; none if it is not understood.
pub(super) fn pickle(
    reader: &mut HeaderReader<'_>,
    entries: &[Entry],
    prefix: &[u8],
) -> Result<Option<Pickle>, Refusal> {
    let is_pickle = |entry: &&Entry| entry.method == STORED && entry.name.strip_prefix(prefix) == Some(PICKLE);
    let Some(entry) = entries.iter().find(is_pickle) else { return Ok(None) };
    let payload = entry.payload(reader)?;
    match reader.read(payload.offset(), payload.len()) {
        Ok(bytes) => Ok(Pickle::read(bytes).ok()),
        // Too long to be read: the storages are there all the same.
        Err(Refusal::Malformed(_) | Refusal::CutShort) => Ok(None),
        Err(Refusal::Unreadable) => Err(Refusal::Unreadable),
    }
}

/// The archive of a file that was cut off: the pickle in front says how long the storages behind it are.
pub(super) fn cut_archive(reader: &mut HeaderReader<'_>) -> Result<Archive, Refusal> {
    let mut sizes: Option<HashMap<Vec<u8>, u64>> = None;
    walk(reader, |reader, entries, name| {
        let is_storage = |at: usize| at == 0 || name.get(at - 1) == Some(&b'/');
        let at = name.windows(STORAGES.len()).rposition(|part| part == STORAGES).filter(|at| is_storage(*at))?;
        let (prefix, key) = (name.get(..at)?, name.get(at + STORAGES.len()..)?);
        let sizes = sizes.get_or_insert_with(|| {
            let pickle = pickle(reader, entries, prefix).ok().flatten();
            let owned = |(name, bytes): (&str, u64)| (name.as_bytes().to_vec(), bytes);
            pickle.map(|pickle| storage_bytes(&pickle).into_iter().map(owned).collect()).unwrap_or_default()
        });
        sizes.get(key).copied()
    })
}

/// An entry with elements of tensors.
struct Storage<'a> {
    /// Without the prefix.
    name: &'a [u8],
    payload: ByteRange,
    /// The first tensor in it.
    tensor: Option<usize>,
}

/// Finds the storage of every tensor, and puts the tensors into the order of the file.
fn placed(pickle: &Pickle, found: &[Found], storages: &mut [Storage<'_>], is_big_endian: bool) -> Vec<Tensor> {
    let named: HashMap<&[u8], usize> = storages
        .iter()
        .enumerate()
        .filter_map(|(at, storage)| Some((storage.name.strip_prefix(STORAGES)?, at)))
        .collect();
    let mut placed = Vec::with_capacity(found.len());
    for (at, found) in found.iter().enumerate() {
        let view = found.view.as_ref();
        let key = view.and_then(|view| pickle.as_text(view.storage));
        let storage = key.and_then(|key| named.get(key.as_bytes())).and_then(|&at| storages.get_mut(at));
        let (mut begins, mut place) = (u64::MAX, None);
        if let Some((view, storage)) = view.zip(storage) {
            storage.tensor.get_or_insert(at);
            let element_bytes = found.elements.1.unwrap_or(1);
            begins = storage.payload.offset().saturating_add(view.offset.saturating_mul(element_bytes));
            if view.is_contiguous && !is_big_endian {
                place = place_of(found, view.offset, storage.payload);
            }
        }
        if !found.is_storage {
            let (name, shape) = (found.name.clone(), found.shape.clone());
            placed.push((begins, Tensor { name, dtype: found.elements.0, shape, place }));
        }
    }
    placed.sort_by_key(|(begins, _)| *begins);
    placed.into_iter().map(|(_, tensor)| tensor).collect()
}

/// Where a contiguous tensor lies; none if that is not within its storage.
fn place_of(found: &Found, offset: u64, storage: ByteRange) -> Option<ByteRange> {
    let element_bytes = found.elements.1?;
    let elements = found.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))?;
    let begins = storage.offset().checked_add(offset.checked_mul(element_bytes)?)?;
    let place = ByteRange::new(begins, elements.checked_mul(element_bytes)?).ok()?;
    storage.contains(place).then_some(place)
}

#[cfg(test)]
mod tests;
