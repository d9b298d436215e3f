//! What a simulated storage holds: objects, temporary files, hosts, the log and the script, and what a power cut leaves.
//!
//! Guarantees: durable is exactly what a sync has covered; the same calls and the same seed leave the same.
//!
//! Deliberately not here: the steps of operations, locking.

use crate::error::{Error, Kind, Result};
use crate::ids::{PackId, SnapshotId};
use crate::storage::simulated::{Call, Fault, Operation};
use crate::storage::{ObjectName, Owner};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

pub(super) type Matching = Box<dyn Fn(Operation, &str) -> bool + Send>;
pub(super) type Gate = Arc<dyn Fn(&Call) + Send + Sync>;
pub(super) type ListReader = Arc<dyn Fn(&ObjectName, &[u8]) -> Option<Vec<u8>> + Send + Sync>;

#[derive(Default)]
pub(super) struct Memory {
    pub(super) objects: BTreeMap<ObjectName, Stored>,
    /// Deleted objects whose folder was not synced since.
    pub(super) undone_by_power_cut: BTreeMap<ObjectName, Arc<Vec<u8>>>,
    /// What stood durably under names that were given to others, and whose folder was not synced since.
    pub(super) replaced: BTreeMap<ObjectName, Arc<Vec<u8>>>,
    pub(super) temporaries: BTreeMap<u64, Temporary>,
    pub(super) temporaries_made: u64,
    pub(super) calls: Vec<Call>,
    pub(super) hosts: Vec<Host>,
    pub(super) scripts: Vec<Script>,
    pub(super) gate: Option<Gate>,
    /// What gives the content of final lists where they are sealed.
    pub(super) list_reader: Option<ListReader>,
}

#[derive(Clone)]
pub(super) struct Stored {
    pub(super) bytes: Arc<Vec<u8>>,
    pub(super) durable: bool,
}

#[derive(Clone, Default)]
pub(super) struct Temporary {
    pub(super) bytes: Arc<Vec<u8>>,
    pub(super) synced: bool,
    pub(super) owner: Option<SnapshotId>,
    /// A removal of abandoned objects has met it as it is.
    pub(super) was_met: bool,
}

#[derive(Default)]
pub(super) struct Host {
    pub(super) steps: u64,
    pub(super) crash_at: Option<u64>,
}

pub(super) struct Script {
    pub(super) matching: Matching,
    pub(super) seen: u64,
    pub(super) hit: Range<u64>,
    pub(super) fault: Fault,
}

impl Memory {
    /// What is left after a power cut; `seed` decides what could go either way.
    pub(super) fn after_power_cut(&self, seed: u64) -> Memory {
        let mut chance = Chance(seed);
        let list_reader = self.list_reader.clone();
        let mut survived = Memory { temporaries_made: self.temporaries_made, list_reader, ..Memory::default() };
        for (name, stored) in &self.objects {
            if stored.durable || chance.coin() {
                survived.objects.insert(name.clone(), Stored { durable: true, ..stored.clone() });
            } else if let Some(old) = self.replaced.get(name) {
                survived.objects.insert(name.clone(), Stored { bytes: Arc::clone(old), durable: true });
            } else if chance.coin() {
                let bytes = Arc::clone(&stored.bytes);
                survived.abandon(Temporary { bytes, synced: true, ..Temporary::default() });
            }
        }
        for (name, bytes) in &self.undone_by_power_cut {
            if chance.coin() {
                let undeleted = Stored { bytes: Arc::clone(bytes), durable: true };
                survived.objects.entry(name.clone()).or_insert(undeleted);
            }
        }
        for temporary in self.temporaries.values() {
            if chance.coin() {
                let kept = if temporary.synced { temporary.bytes.len() } else { chance.torn(temporary.bytes.len()) };
                let bytes = temporary.bytes.get(..kept).unwrap_or_default().to_vec();
                survived.abandon(Temporary { bytes: Arc::new(bytes), synced: true, ..temporary.clone() });
            }
        }
        survived
    }

    /// The same content, without log, hosts and scripts.
    pub(super) fn copy(&self) -> Memory {
        Memory {
            objects: self.objects.clone(),
            undone_by_power_cut: self.undone_by_power_cut.clone(),
            replaced: self.replaced.clone(),
            temporaries: self.temporaries.clone(),
            temporaries_made: self.temporaries_made,
            list_reader: self.list_reader.clone(),
            ..Memory::default()
        }
    }

    /// Makes the names durable for which `contains` holds.
    pub(super) fn sync_names(&mut self, contains: impl Fn(&str) -> bool) {
        self.undone_by_power_cut.retain(|name, _| !contains(name.as_str()));
        self.replaced.retain(|name, _| !contains(name.as_str()));
        for (_, stored) in self.objects.iter_mut().filter(|(name, _)| contains(name.as_str())) {
            stored.durable = true;
        }
    }

    pub(super) fn abandon(&mut self, temporary: Temporary) {
        self.temporaries.insert(self.temporaries_made, temporary);
        self.temporaries_made += 1;
    }

    /// Removes the unfinished objects of transactions that have ended, and those of nobody known that were met before.
    pub(super) fn delete_abandoned(&mut self, states: &BTreeMap<SnapshotId, Owner>) -> u64 {
        let mut freed = 0;
        self.temporaries.retain(|_, temporary| {
            let state = temporary.owner.and_then(|id| states.get(&id).copied()).unwrap_or(Owner::Unknown);
            let was_met = std::mem::replace(&mut temporary.was_met, true);
            let stays = state == Owner::Open || (state == Owner::Unknown && !was_met);
            freed += if stays { 0 } else { temporary.bytes.len() as u64 };
            stays
        });
        freed
    }

    /// Panics if the commit fence forbids to delete the object.
    pub(super) fn check_fence(&self, name: &ObjectName) {
        let is_durable = |wanted: String| {
            ObjectName::new(wanted).is_ok_and(|name| self.objects.get(&name).is_some_and(|stored| stored.durable))
        };
        let mut parts = name.as_str().split('/');
        let (folder, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        match (folder, second, third) {
            ("snapshots" | "forgotten" | "condemned", ..) => panic!("the fence: {name} may never be freed"),
            ("transactions", Some(id), None) if SnapshotId::from_hex(id).is_ok() => {
                assert!(is_durable(format!("snapshots/{id}")), "the fence: {name} has not durably ended");
            }
            ("packs", Some(_), Some(id)) => {
                if let Ok(id) = PackId::from_hex(id) {
                    assert!(self.is_in_a_final_list(id), "the fence: {name} is in no durable final list");
                }
            }
            _ => {}
        }
    }

    /// True if a durable end of a condemned list has these bytes in it.
    fn is_in_a_final_list(&self, id: PackId) -> bool {
        let is_end = |name: &ObjectName| name.as_str().starts_with("condemned/") && name.as_str().ends_with(".end");
        let names = |bytes: &[u8]| bytes.windows(PackId::BYTES).any(|window| window == id.as_bytes());
        let holds = |name: &ObjectName, bytes: &[u8]| match &self.list_reader {
            None => names(bytes),
            Some(read) => read(name, bytes).is_some_and(|content| names(&content)),
        };
        self.objects.iter().any(|(name, stored)| is_end(name) && stored.durable && holds(name, &stored.bytes))
    }

    pub(super) fn fault(&mut self, operation: Operation, name: &str) -> Option<Fault> {
        let mut found = None;
        for script in &mut self.scripts {
            if (script.matching)(operation, name) {
                if script.hit.contains(&script.seen) {
                    found = found.or(Some(script.fault));
                }
                script.seen += 1;
            }
        }
        found
    }

    pub(super) fn temporary(&mut self, id: u64) -> Result<&mut Temporary> {
        let gone = || Error::new(Kind::Unreachable, "the temporary file has been taken away");
        self.temporaries.get_mut(&id).ok_or_else(gone)
    }

    pub(super) fn bytes_of(&self, name: &ObjectName) -> Result<Arc<Vec<u8>>> {
        let missing = || Error::new(Kind::Missing, format!("{name} does not exist"));
        self.objects.get(name).map(|stored| Arc::clone(&stored.bytes)).ok_or_else(missing)
    }
}

impl Host {
    pub(super) fn is_dead(&self) -> bool {
        self.crash_at.is_some_and(|step| self.steps > step)
    }

    pub(super) fn check_alive(&self) -> Result<()> {
        if self.is_dead() {
            return Err(Error::new(Kind::Unreachable, "the simulated host is dead"));
        }
        Ok(())
    }

    pub(super) fn begin_step(&mut self) -> Result<()> {
        self.check_alive()?;
        self.steps += 1;
        self.check_alive()
    }
}

/// A stream of choices that follows from its seed (SplitMix64 by Steele, Lea and Flood).
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn coin(&mut self) -> bool {
        self.next() >> 63 == 1
    }

    /// How much is left of an unsynced file of `len` bytes: nothing, a prefix at a sector or page, or all of it.
    fn torn(&mut self, len: usize) -> usize {
        let unit = [1, 512, 4096][(self.next() % 3) as usize];
        let units = len.div_ceil(unit) as u64 + 1;
        ((self.next() % units) as usize * unit).min(len)
    }
}
