//! Distributed checkpoints of PyTorch: files of items, and one file `.metadata` that says what lies where.
//!
//! An item is a tensor, a shard of one, or an object, each a complete archive of `torch.save`; they follow one another
//! without gaps. Of an item that is something else, compressed for instance, only the place is known. Without `.metadata`
//! the items are found from the end of the file, one end record after the other, and have numbers instead of names.

use super::finish::finish;
use super::header_reader::{HeaderReader, Refusal};
use super::pickle::{Node, Pickle, Value};
use super::torch::{self, Contents};
use super::zip::{Archive, End};
use crate::bytes::ByteRange;
use crate::read_at::ReadAt;
use crate::source::layout::{Container, Cut, Layout, Run};
use std::collections::{BTreeMap, HashSet};

/// What the file `.metadata` of a distributed checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DcpMetadata {
    /// The files of the checkpoint, by name.
    pub files: Vec<DcpFile>,
    /// How many tensors it has; those in several shards count once.
    pub tensors: usize,
}

/// A file of a distributed checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DcpFile {
    /// Its path, relative to `.metadata`.
    pub name: String,
    /// What its items need: it must have at least so many bytes.
    pub bytes: u64,
}

const DIMENSIONS_MAX: usize = 64;
/// What the items of a checkpoint may take in memory, roughly.
const ITEMS_BYTES_MAX: usize = 256 << 20;
const ITEM_BYTES: usize = 100;

/// Reads `.metadata`; an error says why it is not understood.
pub fn dcp_metadata(file: &dyn ReadAt) -> Result<DcpMetadata, String> {
    let metadata = Metadata::read(file).map_err(|refusal| match refusal {
        Refusal::Malformed(reason) => reason,
        Refusal::CutShort => "it ends too early".to_owned(),
        Refusal::Unreadable => "it cannot be read".to_owned(),
    })?;
    let mut files: BTreeMap<&str, u64> = BTreeMap::new();
    for item in &metadata.items {
        let bytes = files.entry(&item.file).or_default();
        *bytes = (*bytes).max(item.place.end());
    }
    let files = files.into_iter().map(|(name, bytes)| DcpFile { name: name.to_owned(), bytes }).collect();
    Ok(DcpMetadata { files, tensors: metadata.tensors })
}

/// The layout of one file of items called `name`, which `companion` describes.
pub(super) fn parse(file: &dyn ReadAt, name: &[u8], companion: Option<&dyn ReadAt>) -> Result<Layout, Refusal> {
    let mut items = match companion.map(Metadata::read) {
        Some(Ok(metadata)) => metadata.of_file(name),
        // Whoever reads the companion itself is told what is wrong with it.
        Some(Err(_)) | None => Vec::new(),
    };
    let mut reader = HeaderReader::new(file);
    if items.is_empty() {
        items = numbered(&mut reader)?;
    }
    let mut layout = Layout {
        container: Container::Dcp,
        tensors: Vec::new(),
        runs: Vec::new(),
        metadata: Vec::new(),
        is_truncated: false,
    };
    let mut at = 0;
    for item in items {
        if item.place.end() > file.bytes() {
            layout.is_truncated = true;
        } else if item.place.offset() >= at {
            at = item.place.end();
            add(&mut reader, item, &mut layout)?;
        }
    }
    finish(layout, file.bytes())
}

/// Puts what an item holds into the layout.
fn add(reader: &mut HeaderReader<'_>, item: Item, layout: &mut Layout) -> Result<(), Refusal> {
    match contents(reader, item.place) {
        Ok(Some(contents)) => {
            let under = |outer: &str, inner: &str| match inner {
                "" => outer.to_owned(),
                inner => format!("{outer}.{inner}"),
            };
            for mut tensor in contents.tensors {
                tensor.name = under(&item.name, &tensor.name);
                layout.tensors.push(tensor);
            }
            for mut run in contents.runs {
                run.key = under(&item.key, &run.key);
                layout.runs.push(run);
            }
        }
        Err(Refusal::Unreadable) => return Err(Refusal::Unreadable),
        Ok(None) | Err(_) => {
            layout.runs.push(Run { range: item.place, key: item.key, dtype: None, cut: Cut::Content });
        }
    }
    Ok(())
}

/// What the archive in `place` holds; none if there is no archive of PyTorch.
fn contents(reader: &mut HeaderReader<'_>, place: ByteRange) -> Result<Option<Contents>, Refusal> {
    let Some(archive) = Archive::open(reader, place)? else { return Ok(None) };
    match torch::prefix(&archive) {
        Some(prefix) => torch::contents(reader, &archive, prefix).map(Some),
        None => Ok(None),
    }
}

/// The archives of a file that nothing describes, in their order.
fn numbered(reader: &mut HeaderReader<'_>) -> Result<Vec<Item>, Refusal> {
    let mut places = Vec::new();
    let mut end = reader.file_bytes();
    while end > 0 {
        let place = ByteRange::new(0, end).map_err(|_| Refusal::Unreadable)?;
        match End::find(reader, place, 0) {
            Ok(Some(found)) => {
                places.push(ByteRange::new(found.start, end - found.start).map_err(|_| Refusal::Unreadable)?);
                end = found.start;
            }
            Err(Refusal::Unreadable) => return Err(Refusal::Unreadable),
            Ok(None) | Err(_) => break,
        }
    }
    if places.is_empty() {
        return Err(Refusal::CutShort);
    }
    let item = |(number, place): (usize, &ByteRange)| {
        let name = format!("item{number}");
        Item { file: String::new(), key: name.clone(), name, place: *place }
    };
    Ok(places.iter().rev().enumerate().map(item).collect())
}

/// An entry of `.metadata`.
#[derive(Debug)]
struct Item {
    /// The path of the file that has it.
    file: String,
    /// The name of the tensor or object.
    name: String,
    /// The name, and which shard it is.
    key: String,
    place: ByteRange,
}

/// All entries of `.metadata`.
struct Metadata {
    items: Vec<Item>,
    tensors: usize,
}

impl Metadata {
    fn read(file: &dyn ReadAt) -> Result<Metadata, Refusal> {
        let mut reader = HeaderReader::new(file);
        let pickle = Pickle::read(reader.read(0, file.bytes())?).map_err(Refusal::Malformed)?;
        let wrong = || Refusal::malformed("it is not the metadata of a distributed checkpoint");
        let part = |name| pickle.attribute(pickle.root, name).and_then(|node| pickle.as_dict(node)).ok_or_else(wrong);
        let values = part("state_dict_metadata")?;
        let is_tensor = |node: &Node| matches!(class_name(&pickle, *node), Some("TensorStorageMetadata"));
        let tensors = values.iter().filter(|(_, value)| is_tensor(value)).count();
        let is_sharded = |node: Node| {
            let chunks = pickle.attribute(node, "chunks").and_then(|chunks| pickle.as_sequence(chunks));
            chunks.is_some_and(|chunks| chunks.len() > 1)
        };
        let sharded: HashSet<&str> =
            values.iter().filter(|(_, value)| is_sharded(*value)).filter_map(|(key, _)| pickle.as_text(*key)).collect();
        let mut items = Vec::new();
        let mut names_bytes = 0;
        for (index, info) in part("storage_data")? {
            let item = Item::read(&pickle, &sharded, *index, *info).ok_or_else(wrong)?;
            names_bytes += item.file.len() + item.name.len() + item.key.len() + ITEM_BYTES;
            if names_bytes > ITEMS_BYTES_MAX {
                return Err(Refusal::malformed("it has too many items"));
            }
            items.push(item);
        }
        Ok(Metadata { items, tensors })
    }

    /// The items of a file, in their order.
    fn of_file(self, name: &[u8]) -> Vec<Item> {
        let is_here = |item: &Item| item.file.rsplit('/').next().is_some_and(|last| last.as_bytes() == name);
        let mut items: Vec<Item> = self.items.into_iter().filter(is_here).collect();
        items.sort_by_key(|item| item.place);
        items
    }
}

impl Item {
    /// The item that an index stands for, stored as `info` says.
    fn read(pickle: &Pickle, sharded: &HashSet<&str>, index: Node, info: Node) -> Option<Item> {
        let number = |name| u64::try_from(pickle.as_int(pickle.attribute(info, name)?)?).ok();
        let name = pickle.as_text(pickle.attribute(index, "fqn")?)?;
        let mut key = name.to_owned();
        if sharded.contains(name) {
            let offsets = pickle.as_sequence(pickle.attribute(index, "offset")?)?.iter().take(DIMENSIONS_MAX);
            let offsets: Vec<String> = offsets.filter_map(|&n| pickle.as_int(n)).map(|n| n.to_string()).collect();
            key = format!("{name}[{}]", offsets.join(","));
        }
        Some(Item {
            file: pickle.as_text(pickle.attribute(info, "relative_path")?)?.to_owned(),
            name: name.to_owned(),
            key,
            place: ByteRange::new(number("offset")?, number("length")?).ok()?,
        })
    }
}

/// The name of the class of an object.
fn class_name(pickle: &Pickle, node: Node) -> Option<&str> {
    match pickle.value(node) {
        Value::Object(object) => Some(pickle.as_global(object.class)?.1),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
