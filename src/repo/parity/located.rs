//! Finding shards in an object that is damaged: where it lost or gained bytes, what follows stands elsewhere.
//!
//! Looked for are the places counted from the front and those counted from the end, which finds everything around one
//! place where bytes are missing or too many. What cannot be read is not there; after as many failures as cost more than
//! any parity can mend, nothing more is asked of the storage.

use crate::bytes::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::storage::{ObjectName, Storage};

/// How much is read at once.
const WINDOW_BYTES: u64 = 4 << 20;
/// After so many failed reads an object is given up: no pack has more parity shards.
const FAILURES_MAX: u32 = 300;

/// An object of which some may not be readable.
pub(super) struct Source<'a> {
    storage: &'a dyn Storage,
    pub(super) name: ObjectName,
    /// False if there is none; then it has no bytes.
    pub(super) exists: bool,
    /// Its length as found.
    pub(super) bytes: u64,
    failures: u32,
    failure: Option<Error>,
}

impl<'a> Source<'a> {
    pub(super) fn open(storage: &'a dyn Storage, name: ObjectName) -> Result<Source<'a>> {
        let found = storage.size(&name)?;
        let (exists, bytes) = (found.is_some(), found.unwrap_or(0));
        Ok(Source { storage, name, exists, bytes, failures: 0, failure: None })
    }

    /// These bytes, if they can be read.
    pub(super) fn read(&mut self, offset: u64, len: usize) -> Option<Vec<u8>> {
        let range = ByteRange::new(offset, len as u64).ok().filter(|range| range.end() <= self.bytes)?;
        if self.failures >= FAILURES_MAX {
            return None;
        }
        let mut bytes = Vec::new();
        match self.storage.read_range(&self.name, range, &mut bytes) {
            Ok(()) => Some(bytes),
            Err(error) => {
                self.failures += 1;
                self.failure = Some(error);
                None
            }
        }
    }

    /// The last failure to read that says nothing about what is stored.
    pub(super) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take().filter(|error| matches!(error.kind(), Kind::Unreachable | Kind::Denied))
    }

    /// For each of `count` shards where it was found to be right: at its place, or `shift` bytes behind it.
    pub(super) fn locate(
        &mut self,
        count: usize,
        place: &dyn Fn(usize) -> (u64, usize),
        shift: i64,
        is_right: &dyn Fn(usize, &[u8]) -> bool,
    ) -> Vec<Option<u64>> {
        let mut found = vec![None; count];
        for shift in if shift == 0 { vec![0] } else { vec![0, shift] } {
            let here = |shard: usize| {
                let (at, len) = place(shard);
                let at = at.checked_add_signed(shift)?;
                (at.checked_add(len as u64)? <= self.bytes).then_some((at, len))
            };
            let wanted: Vec<(usize, u64, usize)> = (0..count)
                .filter(|&shard| found[shard].is_none())
                .filter_map(|shard| here(shard).map(|(at, len)| (shard, at, len)))
                .collect();
            for run in runs(&wanted) {
                self.check_run(run, is_right, &mut found);
            }
        }
        found
    }

    /// Looks at shards that lie back to back: together, or one by one if they cannot be read together.
    fn check_run(
        &mut self,
        run: &[(usize, u64, usize)],
        is_right: &dyn Fn(usize, &[u8]) -> bool,
        found: &mut [Option<u64>],
    ) {
        let Some(&(_, first, _)) = run.first() else { return };
        let whole = self.read(first, run.iter().map(|(_, _, len)| len).sum());
        for &(shard, at, len) in run {
            let alone;
            let bytes = match &whole {
                Some(whole) => {
                    let from = usize::try_from(at - first).unwrap_or(usize::MAX);
                    whole.get(from..from.saturating_add(len)).unwrap_or_default()
                }
                None => {
                    alone = self.read(at, len).unwrap_or_default();
                    &alone
                }
            };
            if bytes.len() == len && is_right(shard, bytes) {
                found[shard] = Some(at);
            }
        }
    }
}

/// Divides shards into runs that lie back to back and are not too long to be read at once.
fn runs(wanted: &[(usize, u64, usize)]) -> Vec<&[(usize, u64, usize)]> {
    let mut runs = Vec::new();
    let mut rest = wanted;
    while let Some(&(_, first, _)) = rest.first() {
        let mut end = first;
        let goes_on = |&&(_, at, len): &&(usize, u64, usize)| {
            let is_next = at == end && (at == first || at + len as u64 - first <= WINDOW_BYTES);
            end = at + len as u64;
            is_next
        };
        let count = rest.iter().take_while(goes_on).count();
        let (run, others) = rest.split_at(count);
        runs.push(run);
        rest = others;
    }
    runs
}
