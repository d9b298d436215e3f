//! Lists the tensors of files of a snapshot: what they are, what they take, and how they are stored.
//!
//! Only headers are read; how chunks are stored comes from the index. Files are visited one by one, in the order of paths.

use super::tensors::{Part, TensorFile, TensorFilter, Walked, check_interrupt, for_each_tensor_file, tensor_bytes};
use crate::codec::Codec;
use crate::error::Result;
use crate::events::Observer;
use crate::ids::ChunkId;
use crate::repo::Repo;
use crate::repo::index::Home;
use crate::repo::pack::PackKind;
use crate::source::layout::Tensor;
use std::collections::{BTreeSet, HashMap, HashSet};

/// Looked up in the index together.
const LOOKUP_CHUNKS: usize = 4096;
/// So many bases of a tensor are named.
const BASES_MAX: usize = 4;

/// A tensor and how it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedTensor {
    /// What the file says of it.
    pub tensor: Tensor,
    /// Its bytes; none if they cannot be told.
    pub bytes: Option<u64>,
    /// The bytes that its chunks take in the repository, in proportion where a chunk holds more than it, each
    /// once. Chunks that other tensors share count in full. None if the tensor has no place, or one of its chunks none.
    pub stored_bytes: Option<u64>,
    /// The names of the codecs of its chunks, sorted.
    pub codecs: Vec<&'static str>,
    /// How many chunks it lies in; holes are none.
    pub segments: u64,
    /// How many of them are coded against others.
    pub segments_with_base: u64,
    /// The first of the chunks that they are coded against.
    pub bases: Vec<ChunkId>,
}

/// A file with the tensors that are meant.
#[derive(Debug)]
pub struct ListedFile {
    /// The file.
    pub file: TensorFile,
    /// Its tensors, in the order of the file.
    pub tensors: Vec<ListedTensor>,
    /// Bytes of these, as far as known.
    pub bytes: u64,
    /// The bytes that they take in the repository, as far as known.
    pub stored_bytes: u64,
}

/// The sums over all files.
#[derive(Debug, Default)]
pub struct ListTensorsReport {
    /// Files with tensors that are meant.
    pub files: u64,
    /// Tensors.
    pub tensors: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The bytes that they take in the repository; a chunk of several tensors counts for each.
    pub stored_bytes: u64,
    /// What was met beside them.
    pub walked: Walked,
}

/// Calls `visit` for each file of `part` with tensors that `filter` means.
///
/// [`Kind::NotFound`](crate::error::Kind::NotFound) if nothing is there, [`Kind::Usage`](crate::error::Kind::Usage) if the
/// part is a file without tensors.
pub fn list_tensors(
    repo: &Repo,
    part: Part<'_>,
    filter: &TensorFilter,
    observer: &dyn Observer,
    visit: &mut dyn FnMut(&ListedFile) -> Result<()>,
) -> Result<ListTensorsReport> {
    repo.keys().require(PackKind::Tree)?;
    repo.keys().require(PackKind::Data)?;
    let mut report = ListTensorsReport::default();
    report.walked = for_each_tensor_file(repo, part, observer, &mut |file| {
        let listed = list_file(repo, file, filter, observer)?;
        if listed.tensors.is_empty() && !filter.is_everything() {
            return Ok(());
        }
        report.files += 1;
        report.tensors += listed.tensors.len() as u64;
        report.bytes = report.bytes.saturating_add(listed.bytes);
        report.stored_bytes = report.stored_bytes.saturating_add(listed.stored_bytes);
        visit(&listed)
    })?;
    Ok(report)
}

/// How a chunk is stored.
struct Storing {
    home: Home,
    bases: Vec<ChunkId>,
}

fn list_file(repo: &Repo, file: TensorFile, filter: &TensorFilter, observer: &dyn Observer) -> Result<ListedFile> {
    let meant: Vec<Tensor> = file.layout.tensors.iter().filter(|t| filter.matches(&t.name)).cloned().collect();
    let ids: BTreeSet<ChunkId> = meant
        .iter()
        .filter_map(|tensor| tensor.place)
        .flat_map(|place| file.stretches(place))
        .map(|stretch| stretch.id)
        .filter(|id| *id != ChunkId::HOLE)
        .collect();
    let storing = storing_of(repo, ids.into_iter().collect(), observer)?;
    let mut listed = ListedFile { tensors: Vec::with_capacity(meant.len()), bytes: 0, stored_bytes: 0, file };
    for tensor in meant {
        check_interrupt(observer)?;
        let row = list_tensor(&listed.file, tensor, &storing);
        listed.bytes = listed.bytes.saturating_add(row.bytes.unwrap_or(0));
        listed.stored_bytes = listed.stored_bytes.saturating_add(row.stored_bytes.unwrap_or(0));
        listed.tensors.push(row);
    }
    Ok(listed)
}

fn storing_of(repo: &Repo, ids: Vec<ChunkId>, observer: &dyn Observer) -> Result<HashMap<ChunkId, Storing>> {
    let mut found = HashMap::with_capacity(ids.len());
    for batch in ids.chunks(LOOKUP_CHUNKS) {
        check_interrupt(observer)?;
        // The first home is the one that is read.
        let homes = batch.iter().zip(repo.locate(batch)?);
        let homes: Vec<(ChunkId, Home)> = homes.filter_map(|(id, homes)| Some((*id, *homes.first()?))).collect();
        for ((id, home), bases) in homes.iter().zip(repo.index().bases_at(&homes)?) {
            found.insert(*id, Storing { home: *home, bases });
        }
    }
    Ok(found)
}

/// What `bytes` of a chunk take of its frame.
fn share(home: &Home, bytes: u64) -> u64 {
    u64::from(home.frame_stored).saturating_mul(bytes) / u64::from(home.frame_raw.max(1))
}

fn list_tensor(file: &TensorFile, tensor: Tensor, storing: &HashMap<ChunkId, Storing>) -> ListedTensor {
    let mut codecs = BTreeSet::new();
    let mut bases: Vec<ChunkId> = Vec::new();
    let (mut segments, mut segments_with_base) = (0, 0);
    let mut counted = HashSet::new();
    let mut stored_bytes = tensor.place.map(|_| 0u64);
    for stretch in tensor.place.into_iter().flat_map(|place| file.stretches(place)) {
        if stretch.id == ChunkId::HOLE {
            continue;
        }
        segments += 1;
        let Some(Storing { home, bases: needed }) = storing.get(&stretch.id) else {
            stored_bytes = None;
            continue;
        };
        if counted.insert(stretch.id) {
            stored_bytes = stored_bytes.map(|sum| sum.saturating_add(share(home, stretch.bytes)));
        }
        codecs.insert(Codec::from_code(home.codec).map_or("unknown", Codec::name));
        segments_with_base += u64::from(home.base_count > 0);
        for base in needed {
            if bases.len() < BASES_MAX && !bases.contains(base) {
                bases.push(*base);
            }
        }
    }
    let bytes = tensor_bytes(&tensor);
    let codecs = codecs.into_iter().collect();
    ListedTensor { bytes, stored_bytes, codecs, segments, segments_with_base, bases, tensor }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Silent;
    use crate::ops::tensors::tests::safetensors;
    use crate::repo::test_support::{self, Node, noise};

    fn listed(repo: &Repo, part: Part<'_>, patterns: &[&str]) -> (Vec<ListedTensor>, ListTensorsReport) {
        let patterns: Vec<String> = patterns.iter().map(|&pattern| pattern.to_owned()).collect();
        let filter = TensorFilter::new(&patterns).expect("patterns");
        let mut found = Vec::new();
        let mut visit = |file: &ListedFile| {
            found.extend(file.tensors.iter().cloned());
            Ok(())
        };
        let report = list_tensors(repo, part, &filter, &Silent, &mut visit).expect("sound");
        (found, report)
    }

    #[test]
    fn tensors_come_with_what_they_take_in_the_repository() {
        let repo = test_support::open(&test_support::storage());
        let (noisy, even) = (noise(1, 40_000), vec![0u8; 40_000]);
        let file = safetensors(&[("a.noise", "U8", &[200, 200], &noisy), ("b.even", "F32", &[10_000], &even)], "");
        let snapshot = test_support::save(&repo, 10, &[("m.safetensors", Node::File(file))]);
        let part = Part { snapshot: &snapshot, subpath: None };
        let (found, report) = listed(&repo, part, &[]);
        assert_eq!(found.iter().map(|t| t.tensor.name.as_str()).collect::<Vec<_>>(), ["a.noise", "b.even"]);
        let stored = |number: usize| found[number].stored_bytes.expect("all there");
        assert!((34_000..42_000).contains(&stored(0)), "{}", stored(0));
        // A frame with both in it is shared by bytes.
        assert!(stored(1) < 8_000, "{}", stored(1));
        assert_eq!((report.files, report.tensors, report.bytes), (1, 2, 80_000));
        assert_eq!(report.stored_bytes, stored(0) + stored(1));
        assert_eq!((found[0].segments, found[0].segments_with_base), (10, 0));
        assert!(!found[0].codecs.is_empty());
        assert_eq!(listed(&repo, part, &["b*"]).0.len(), 1);
        assert_eq!(listed(&repo, part, &["nothing"]).1.files, 0);
    }

    #[test]
    fn chunks_coded_against_others_are_counted_and_name_them() {
        let repo = test_support::open(&test_support::storage());
        let tensor = test_support::version(2);
        let file = safetensors(&[("a", "U8", &[4000], &tensor)], "");
        let base = [&test_support::version(1)[..], &[0; 96]].concat();
        test_support::store(&repo, &[(&base, &[]), (&file, &[&base])]);
        let snapshot = test_support::save(&repo, 10, &[("m", Node::File(file.clone()))]);
        let (found, _) = listed(&repo, Part { snapshot: &snapshot, subpath: None }, &[]);
        assert_eq!((found[0].segments_with_base, &found[0].bases[..]), (1, &[ChunkId::of(&base)][..]));
    }
}
