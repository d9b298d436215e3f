//! Files of weights as Hugging Face writes them: shards with their index, safetensors files, each whole or not.

use super::folder::{Folder, Verdict, name_of, open, read_json, shown, unreadable};
use super::{Tally, names, torch};
use crate::source::scan::Found;
use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use std::collections::BTreeSet;
use std::fmt;

/// A longer header of a safetensors file is not believed; the format itself allows 100 MB.
const HEADER_BYTES_MAX: u64 = 100_000_000;
/// Shards that a name may announce.
const SHARDS_MAX: u64 = 100_000;
/// Names whose shards always have an index.
const INDEXED: [&[u8]; 4] = [b"model", b"pytorch_model", b"diffusion_pytorch_model", b"adapter_model"];

/// True for a directory that holds a model by itself, whatever it is called: an index, or a model beside its configuration.
pub(super) fn is_model(folder: &Folder) -> bool {
    let has_config = ["config.json", "adapter_config.json"].iter().any(|name| folder.has(name.as_bytes()));
    let is_model_file = |name: &[u8]| {
        (name.ends_with(b".safetensors") || name.ends_with(b".bin"))
            && INDEXED.iter().any(|stem| name.starts_with(stem))
    };
    folder.files.iter().map(name_of).any(|name| is_index(name) || (has_config && is_model_file(name)))
}

/// True for the files of such a model: weights and indexes.
pub(super) fn is_member(name: &[u8]) -> bool {
    is_index(name) || (names::is_weights(name) && !name.ends_with(b".distcp"))
}

fn is_index(name: &[u8]) -> bool {
    name.ends_with(b".safetensors.index.json") || name.ends_with(b".bin.index.json")
}

/// The shards of every index and of every numbered series are there, and every file of weights is whole.
pub(super) fn check(folder: &Folder, tally: &mut Tally) -> Verdict {
    for file in &folder.files {
        if names::without_temporary(name_of(file)).is_some_and(|rest| names::is_weights(rest) || is_index(rest)) {
            return Err(format!("{} still has a temporary name", shown(file, tally)));
        }
    }
    for file in folder.files.iter().filter(|file| is_index(name_of(file))) {
        check_index(folder, file, tally)?;
    }
    check_series(folder, tally)?;
    for file in &folder.files {
        let name = name_of(file);
        if name.ends_with(b".safetensors") {
            tally.shards += 1;
            tally.tensors += check_safetensors(file, tally)?;
        } else if names::is_torch(name) {
            tally.shards += u64::from(is_part_of_model(name));
            tally.tensors += torch::check(file, tally)?.unwrap_or(0);
        }
    }
    Ok(())
}

/// Optimizers, schedulers and random states are part of a checkpoint, but no shards.
fn is_part_of_model(name: &[u8]) -> bool {
    let beginnings: [&[u8]; 7] =
        [b"optimizer", b"scheduler", b"scaler", b"rng_state", b"training_args", b"random_states", b"meta.pt"];
    !beginnings.iter().any(|beginning| name.starts_with(beginning))
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: Shards,
}

/// The files that an index names, each once; the tensors are passed over.
struct Shards(BTreeSet<String>);

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = Shards;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from tensors to files")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shards, A::Error> {
                let mut shards = BTreeSet::new();
                while let Some((_, shard)) = map.next_entry::<IgnoredAny, String>()? {
                    shards.insert(shard);
                }
                Ok(Shards(shards))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

fn check_index(folder: &Folder, file: &Found, tally: &Tally) -> Verdict {
    let Some(index) = read_json::<Index>(file, tally)? else { return Ok(()) };
    for shard in index.weight_map.0 {
        // A shard in another directory is not this one's business.
        if !shard.contains('/') && !folder.has(shard.as_bytes()) {
            return Err(format!("{} names {shard}, which is not there", shown(file, tally)));
        }
    }
    Ok(())
}

fn check_series(folder: &Folder, tally: &Tally) -> Verdict {
    for file in &folder.files {
        let Some(mine) = names::numbered(name_of(file)).filter(|n| names::is_weights(n.end)) else { continue };
        if mine.total > SHARDS_MAX {
            continue;
        }
        let (stem, end, digits) = (mine.stem, mine.end, mine.digits);
        let name_at =
            |index: u64| [stem, format!("-{index:0digits$}-of-{:0digits$}", mine.total).as_bytes(), end].concat();
        // Every member knows its successor: together they find every gap, and the first also looks for the index.
        if mine.index < mine.total && !folder.has(&name_at(mine.index + 1)) {
            return Err(format!("{} is not there", in_words(file, tally, &name_at(mine.index + 1))));
        }
        if mine.index > 1 && !folder.has(&name_at(1)) {
            return Err(format!("{} is not there", in_words(file, tally, &name_at(1))));
        }
        let index = [stem, end, b".index.json"].concat();
        if mine.total > 1 && INDEXED.contains(&stem) && !folder.has(&index) {
            return Err(format!("{} is not there", in_words(file, tally, &index)));
        }
    }
    Ok(())
}

/// The path of a sibling of `file`, for a sentence.
fn in_words(file: &Found, tally: &Tally, name: &[u8]) -> String {
    let own = shown(file, tally);
    let name = String::from_utf8_lossy(name);
    match own.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/{name}"),
        None => name.into_owned(),
    }
}

#[derive(serde::Deserialize)]
struct Tensor {
    data_offsets: (u64, u64),
}

/// How many tensors a header describes, and where the last ends. Nothing else of it is kept.
#[derive(Default)]
struct Extent {
    tensors: u64,
    end: u64,
}

impl<'de> Deserialize<'de> for Extent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items;
        impl<'de> Visitor<'de> for Items {
            type Value = Extent;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Extent, A::Error> {
                let mut extent = Extent::default();
                while let Some(key) = map.next_key::<String>()? {
                    if key == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    extent.tensors += 1;
                    extent.end = extent.end.max(map.next_value::<Tensor>()?.data_offsets.1);
                }
                Ok(extent)
            }
        }
        deserializer.deserialize_map(Items)
    }
}

/// The header says where the data end, and that is where the file ends; returns the number of tensors.
fn check_safetensors(file: &Found, tally: &Tally) -> Result<u64, String> {
    let name = || shown(file, tally);
    let source = open(file, tally)?;
    let read = |offset, buffer: &mut [u8]| source.read_at(offset, buffer).map_err(|e| unreadable(file, tally, &e));
    let mut front = [0; 8];
    let size = file.metadata.size;
    if size < 8 || read(0, &mut front)? < 8 {
        return Err(format!("{} has {size} bytes, fewer than any header", name()));
    }
    let header_bytes = u64::from_le_bytes(front);
    if header_bytes > HEADER_BYTES_MAX || header_bytes.saturating_add(8) > size {
        return Err(format!("{} has {size} bytes, and its header alone should have {header_bytes}", name()));
    }
    let mut header = vec![0; usize::try_from(header_bytes).unwrap_or(0)];
    if read(8, &mut header)? < header.len() {
        return Err(format!("{} ends within its header", name()));
    }
    let Extent { tensors, end } =
        serde_json::from_slice(&header).map_err(|_| format!("{} has a header that is not whole", name()))?;
    let expected = end.saturating_add(8).saturating_add(header_bytes);
    if expected != size {
        return Err(format!("{} has {size} bytes, and its header says {expected}", name()));
    }
    Ok(tensors)
}
