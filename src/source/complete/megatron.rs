//! Megatron-LM: a directory for each model-parallel rank, or a distributed checkpoint beside `common.pt`.

use super::folder::{Folder, Verdict, name_of};
use super::names;
use std::collections::BTreeSet;

/// Every rank up to the highest of each kind is there, each with the same files.
pub(super) fn check(folder: &Folder) -> Verdict {
    let ranks: Vec<(Vec<u64>, &Folder)> =
        folder.folders.iter().filter_map(|below| Some((rank_of(&below.name)?, below))).collect();
    let Some((first, _)) = ranks.first() else { return Ok(()) };
    let dimensions = first.len();
    let present: BTreeSet<&Vec<u64>> = ranks.iter().map(|(rank, _)| rank).collect();
    let values = |dimension: usize| -> BTreeSet<u64> {
        ranks.iter().filter_map(|(rank, _)| rank.get(dimension).copied()).collect()
    };
    for dimension in 0..dimensions {
        let seen = values(dimension);
        if let Some(missing) = seen.last().and_then(|&last| (0..last).find(|number| !seen.contains(number))) {
            return Err(format!("no directory is there for rank {missing} of those called mp_rank_..."));
        }
    }
    let grid: usize = (0..dimensions).map(|dimension| values(dimension).len()).product();
    if present.len() != grid {
        return Err(format!("{} of {grid} directories mp_rank_... are there", present.len()));
    }
    let names_of = |folder: &Folder| -> BTreeSet<Vec<u8>> {
        let files = folder.files.iter().map(|file| name_of(file).to_vec());
        files.chain(folder.others.iter().cloned()).filter(|name| names::is_weights(name)).collect()
    };
    let all: BTreeSet<Vec<u8>> = ranks.iter().flat_map(|(_, below)| names_of(below)).collect();
    // Only the first data-parallel rank of each writes the model; all of them are asked for what every other one has.
    let common = |name: &&Vec<u8>| ranks.iter().filter(|(_, below)| below.has(name)).count() * 2 > ranks.len();
    for name in all.iter().filter(common) {
        if let Some((_, below)) = ranks.iter().find(|(_, below)| !below.has(name)) {
            let (folder, name) = (String::from_utf8_lossy(&below.name), String::from_utf8_lossy(name));
            return Err(format!("{folder}/{name} is not there"));
        }
    }
    match ranks.iter().find(|(_, below)| names_of(below).is_empty()) {
        Some((_, below)) => Err(format!("{} holds no weights", String::from_utf8_lossy(&below.name))),
        None => Ok(()),
    }
}

/// The numbers of `mp_rank_01_003`: tensor parallel, then pipeline, then expert.
fn rank_of(name: &[u8]) -> Option<Vec<u64>> {
    let numbers = name.strip_prefix(b"mp_rank_")?.split(|&b| b == b'_').map(names::number);
    numbers.collect::<Option<Vec<u64>>>().filter(|numbers| numbers.len() <= 4)
}
