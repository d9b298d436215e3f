//! What wanted frames stand on: their bases, and the bases of those, looked up in batches, one step at a time.
//!
//! Tables are not believed: a chain is followed for a bounded number of steps, and one that leads in a circle is found
//! where the frames are ordered.

use super::Want;
use crate::error::Result;
use crate::ids::{ChunkId, PackId};
use crate::repo::Repo;
use crate::repo::index::Home;
use std::collections::{HashMap, HashSet};

/// The longest chain of bases that is followed.
pub(super) const DEPTH_MAX: usize = 64;
/// Looked up in the index together.
const LOOKUP_CHUNKS: usize = 4096;

/// A frame: its pack, and where it begins there.
pub(super) type Place = (PackId, u64);

/// What the index knows.
pub(in super::super) trait Lookup {
    /// For each chunk in a pack that needs bases there, their ids in order.
    fn bases(&self, chunks: &[(ChunkId, PackId)]) -> Result<Vec<Vec<ChunkId>>>;

    /// For each chunk, its homes, the best first.
    fn homes(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Home>>>;
}

impl Lookup for Repo {
    fn bases(&self, chunks: &[(ChunkId, PackId)]) -> Result<Vec<Vec<ChunkId>>> {
        self.index().bases(chunks)
    }

    fn homes(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Home>>> {
        self.locate(ids)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(in super::super) struct Chains {
    /// Of each frame that needs bases, their numbers in `homes`; not there if a base is in no pack or too far away.
    bases: HashMap<Place, Vec<u32>>,
    /// The home chosen for each chunk that is a base.
    homes: Vec<Home>,
}

impl Chains {
    /// Follows the chains of everything that is wanted.
    pub(in super::super) fn follow(wanted: &[(Home, Want)], lookup: &dyn Lookup) -> Result<Chains> {
        let mut frontier: Vec<(Home, ChunkId)> =
            wanted.iter().filter(|(home, _)| home.base_count > 0).map(|(home, want)| (*home, want.id)).collect();
        if frontier.is_empty() {
            return Ok(Chains::default());
        }
        let mut search = Search::new(wanted);
        for _ in 0..DEPTH_MAX {
            frontier.retain(|(home, _)| search.seen.insert((home.pack, home.frame_offset)));
            if frontier.is_empty() {
                break;
            }
            let mut ahead = Vec::new();
            for batch in frontier.chunks(LOOKUP_CHUNKS) {
                search.step(batch, lookup, &mut ahead)?;
            }
            frontier = ahead;
        }
        Ok(search.chains)
    }

    /// True if nothing that is wanted needs a base.
    pub(super) fn is_empty(&self) -> bool {
        self.bases.is_empty()
    }

    /// The homes of the bases of a frame; none if they are not all known.
    pub(super) fn bases_of(&self, place: Place) -> Option<impl Iterator<Item = &Home>> {
        let numbers = self.bases.get(&place)?;
        Some(numbers.iter().filter_map(|&number| self.homes.get(usize::try_from(number).ok()?)))
    }

    /// The homes of all bases.
    pub(super) fn homes(&self) -> &[Home] {
        &self.homes
    }
}

struct Search<'w> {
    wanted: &'w [(Home, Want)],
    /// Where in `wanted` a chunk is: a base that is wanted as well is read from the same home.
    by_id: HashMap<ChunkId, u32>,
    /// Bases by their number in `Chains::homes`; none if they have no home.
    numbers: HashMap<ChunkId, Option<u32>>,
    seen: HashSet<Place>,
    chains: Chains,
}

impl<'w> Search<'w> {
    fn new(wanted: &'w [(Home, Want)]) -> Search<'w> {
        let by_id = (0u32..).zip(wanted).map(|(number, (_, want))| (want.id, number)).collect();
        Search { wanted, by_id, numbers: HashMap::new(), seen: HashSet::new(), chains: Chains::default() }
    }

    /// Finds the bases of a batch of frames; those that need bases themselves go `ahead`.
    fn step(&mut self, batch: &[(Home, ChunkId)], lookup: &dyn Lookup, ahead: &mut Vec<(Home, ChunkId)>) -> Result<()> {
        let keys: Vec<(ChunkId, PackId)> = batch.iter().map(|(home, id)| (*id, home.pack)).collect();
        let bases = lookup.bases(&keys)?;
        let mut unknown = HashSet::new();
        for &id in bases.iter().flatten() {
            if self.numbers.contains_key(&id) {
                continue;
            }
            let wanted = self.by_id.get(&id).and_then(|&at| self.wanted.get(usize::try_from(at).ok()?));
            match wanted {
                Some((home, _)) => self.add(id, Some(*home), ahead),
                None => {
                    unknown.insert(id);
                }
            }
        }
        let unknown: Vec<ChunkId> = unknown.into_iter().collect();
        for ids in unknown.chunks(LOOKUP_CHUNKS) {
            for (&id, homes) in ids.iter().zip(lookup.homes(ids)?) {
                self.add(id, homes.first().copied(), ahead);
            }
        }
        for ((home, _), ids) in batch.iter().zip(bases) {
            let numbers: Option<Vec<u32>> = ids.iter().map(|id| self.numbers.get(id).copied().flatten()).collect();
            // As many as the frame says: a table that is at odds with itself is left to the reading of single chunks.
            if let Some(numbers) = numbers.filter(|numbers| numbers.len() == usize::from(home.base_count)) {
                self.chains.bases.insert((home.pack, home.frame_offset), numbers);
            }
        }
        Ok(())
    }

    fn add(&mut self, id: ChunkId, home: Option<Home>, ahead: &mut Vec<(Home, ChunkId)>) {
        let number = home.and_then(|home| {
            let number = u32::try_from(self.chains.homes.len()).ok()?;
            self.chains.homes.push(home);
            if home.base_count > 0 {
                ahead.push((home, id));
            }
            Some(number)
        });
        self.numbers.insert(id, number);
    }
}
