//! What a simulated storage holds: objects, temporary files, hosts, the log and the script, and what a power cut leaves.
//!
//! Guarantees: durable is exactly what a sync has covered; the same calls and the same seed leave the same.
//!
//! Deliberately not here: the steps of operations, locking.

use crate::error::{Error, Kind, Result};
use crate::storage::ObjectName;
use crate::storage::simulated::{Call, Fault, Operation};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

pub(super) type Matching = Box<dyn Fn(Operation, &str) -> bool + Send>;
pub(super) type Gate = Arc<dyn Fn(&Call) + Send + Sync>;

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
        let mut survived = Memory { temporaries_made: self.temporaries_made, ..Memory::default() };
        for (name, stored) in &self.objects {
            if stored.durable || chance.coin() {
                survived.objects.insert(name.clone(), Stored { durable: true, ..stored.clone() });
            } else if let Some(old) = self.replaced.get(name) {
                survived.objects.insert(name.clone(), Stored { bytes: Arc::clone(old), durable: true });
            } else if chance.coin() {
                survived.abandon(Temporary { bytes: Arc::clone(&stored.bytes), synced: true });
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
                survived.abandon(Temporary { bytes: Arc::new(bytes), synced: true });
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
