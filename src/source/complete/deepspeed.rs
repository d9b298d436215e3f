//! DeepSpeed: one file for each rank, all of which have to be there.

use super::Tally;
use super::folder::{Folder, Verdict, name_of, read_front};
use super::names;
use std::collections::{BTreeMap, BTreeSet};

/// How far a file of model states is searched for the number of ranks.
const SEARCHED_BYTES_MAX: u64 = 8 << 20;
/// The key behind which that number stands, and the instructions of a pickle that may stand between.
const RANKS_KEY: &[u8] = b"dp_world_size";
const RANKS_MAX: u64 = 1 << 20;

/// What the name of a rank's file says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    /// What is in it and how it is called: all of the name but the number of the data-parallel rank.
    series: (Vec<u8>, Vec<u8>),
    data_parallel: u64,
}

/// True for the files of ranks.
pub(super) fn is_member(name: &[u8]) -> bool {
    name.ends_with(b"_model_states.pt") || name.ends_with(b"_optim_states.pt")
}

/// True for a directory that holds such files.
pub(super) fn is_deepspeed(folder: &Folder) -> bool {
    folder.files.iter().any(|file| is_member(name_of(file)))
}

/// The files of every rank are there.
pub(super) fn check(folder: &Folder, tally: &mut Tally) -> Verdict {
    if !is_deepspeed(folder) {
        return Ok(());
    }
    let mut series: BTreeMap<(Vec<u8>, Vec<u8>), BTreeSet<u64>> = BTreeMap::new();
    for file in &folder.files {
        if let Some(rank) = rank_of(name_of(file)) {
            series.entry(rank.series).or_default().insert(rank.data_parallel);
        }
    }
    let announced = ranks_announced(folder, tally)?;
    let highest = series.values().filter_map(BTreeSet::last).max();
    let ranks = highest.map_or(0, |highest| highest + 1).max(announced.unwrap_or(0)).min(RANKS_MAX);
    for ((front, behind), present) in &series {
        let missing = (0..ranks).find(|rank| !present.contains(rank));
        let name = |rank: u64| [front.as_slice(), rank.to_string().as_bytes(), behind].concat();
        if let Some(rank) = missing.filter(|rank| !folder.has(&name(*rank))) {
            return Err(format!("{} is not there, one of {ranks} ranks", String::from_utf8_lossy(&name(rank))));
        }
    }
    let is_model = |name: &[u8]| name.starts_with(b"mp_rank_") && name.ends_with(b"_model_states.pt");
    let models: BTreeSet<u64> =
        folder.files.iter().map(name_of).filter(|name| is_model(name)).filter_map(model_parallel).collect();
    if let Some(missing) = models.last().and_then(|&last| (0..last).find(|rank| !models.contains(rank))) {
        return Err(format!("mp_rank_{missing:02}_model_states.pt is not there"));
    }
    let has_optimizer = |model: u64| series.keys().any(|(_, behind)| model_parallel(behind) == Some(model));
    if !series.is_empty()
        && let Some(model) = models.iter().find(|&&model| !has_optimizer(model))
    {
        return Err(format!("the optimizer states of mp_rank_{model:02} are not there"));
    }
    Ok(())
}

/// `zero_pp_rank_3_mp_rank_01_optim_states.pt`, also with `bf16_` before it.
fn rank_of(name: &[u8]) -> Option<Rank> {
    let mark = b"zero_pp_rank_";
    let at = name.windows(mark.len()).position(|window| window == mark)? + mark.len();
    let digits = name.get(at..)?.iter().take_while(|b| b.is_ascii_digit()).count();
    let data_parallel = names::number(&name[at..at + digits]).filter(|&rank| rank < RANKS_MAX)?;
    Some(Rank { series: (name[..at].to_vec(), name[at + digits..].to_vec()), data_parallel })
}

/// The number behind `mp_rank_`.
fn model_parallel(name: &[u8]) -> Option<u64> {
    let mark = b"mp_rank_";
    let at = name.windows(mark.len()).position(|window| window == mark)? + mark.len();
    let digits = name.get(at..)?.iter().take_while(|b| b.is_ascii_digit()).count();
    names::number(&name[at..at + digits]).filter(|&rank| rank < RANKS_MAX)
}

/// How many data-parallel ranks there are, as a file of model states says.
fn ranks_announced(folder: &Folder, tally: &Tally) -> Result<Option<u64>, String> {
    let first = folder.files.iter().find(|file| name_of(file).ends_with(b"_model_states.pt"));
    let Some(first) = first else { return Ok(None) };
    let front = read_front(first, tally, SEARCHED_BYTES_MAX)?;
    Ok(number_behind(&front, RANKS_KEY).filter(|&ranks| ranks > 0 && ranks <= RANKS_MAX))
}

/// The number that follows a key in a pickle, with the key's place in the memo between them.
fn number_behind(pickle: &[u8], key: &[u8]) -> Option<u64> {
    let at = pickle.windows(key.len()).position(|window| window == key)? + key.len();
    let rest = match pickle.get(at..)? {
        [b'q', _, rest @ ..] | [b'r', _, _, _, _, rest @ ..] | [0x94, rest @ ..] => rest,
        rest => rest,
    };
    match rest {
        [b'K', n, ..] => Some(u64::from(*n)),
        [b'M', a, b, ..] => Some(u64::from(u16::from_le_bytes([*a, *b]))),
        [b'J', a, b, c, d, ..] => Some(u64::from(u32::from_le_bytes([*a, *b, *c, *d]))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_pickles_say_the_ranks() {
        let rank = rank_of(b"bf16_zero_pp_rank_12_mp_rank_03_optim_states.pt").expect("a rank");
        assert_eq!(rank.data_parallel, 12);
        assert_eq!(model_parallel(&rank.series.1), Some(3));
        assert_eq!(rank_of(b"mp_rank_00_model_states.pt"), None);
        assert_eq!(number_behind(b"..X\x0d\0\0\0dp_world_sizeq\x18K\x08X", RANKS_KEY), Some(8));
        assert_eq!(number_behind(b"dp_world_sizer\0\0\0\x01M\x00\x02", RANKS_KEY), Some(512));
        assert_eq!(number_behind(b"dp_world_size", RANKS_KEY), None);
    }
}
