//! What the model's storage holds, as one small value: names, and the contents that matter.
//!
//! Packs, chunks, index objects and transactions are bits of a byte. A state is compared and hashed by its bytes, so
//! whatever no longer matters to anybody is set to zero by those who leave it.
//!
//! Deliberately not here: what the actors do.

use super::collector::Collector;
use super::writer::Writer;

/// A set of packs, chunks, transactions, index objects or snapshots, one bit each.
pub type Bits = u8;

/// The base.
pub const A: Bits = 1;
/// Coded against `A` in the pack that held it first.
pub const B: Bits = 2;
/// In a pack that nothing else is in.
pub const X: Bits = 4;
/// In no pack yet.
pub const D: Bits = 8;

/// Packs 0 to 3 are there at the beginning; then one of each writer, then one of each collector's repacking.
pub const WRITER_PACK: u8 = 4;
/// The pack into which a collector copies.
pub const REPACKED: u8 = 6;
/// Index object 0 lists the first packs; then one of each writer, of each repacking, and of each merging.
pub const WRITER_INDEX: u8 = 1;
/// The index object of a repacking.
pub const REPACKED_INDEX: u8 = 3;
/// A merged index object.
pub const MERGED_INDEX: u8 = 5;
/// Transactions 0 and 1 are the writers', then come those of the collectors' repackings.
pub const REPACKING: u8 = 2;
/// Snapshots 0 and 1 are there at the beginning, the others are those of transactions 0 and 1.
pub const WRITER_SNAPSHOT: u8 = 2;
/// More condemned lists than these are never made.
pub const NUMBERS: usize = 5;

/// What stands under `snapshots/U`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    #[default]
    None,
    Saved,
    Revoked,
    Repacked,
}

/// Everything there is at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// The packs that exist.
    pub packs: Bits,
    /// As in the scene.
    pub is_mixed: bool,
    /// Packs whose name has been taken once.
    pub packs_ever: Bits,
    /// What each writer's pack holds.
    pub stored: [Bits; 2],
    /// The chunks in it that are coded against `A`.
    pub deltas: [Bits; 2],
    /// The index objects that exist.
    pub index: Bits,
    /// Index objects whose name has been taken once.
    pub index_ever: Bits,
    /// The packs that each index object lists.
    pub lists: [Bits; 7],
    /// `transactions/U`.
    pub open: Bits,
    /// `snapshots/U`.
    pub outcomes: [Outcome; 4],
    /// `forgotten/U`, by snapshots.
    pub forgotten: Bits,
    /// `condemned/n`, by numbers, and what it holds.
    pub condemned_names: Bits,
    pub condemned: [Bits; NUMBERS],
    /// `condemned/n.end`.
    pub end_names: Bits,
    pub ends: [Bits; NUMBERS],
    /// A name was given again after its object had gone, or while it was there.
    pub is_twice: bool,
    /// Writers that have reported success.
    pub reported: Bits,
    pub writers: [Writer; 2],
    pub collectors: [Collector; 2],
}

/// A beginning, and what may happen from there.
#[derive(Clone, Copy, Debug)]
pub struct Scene {
    pub name: &'static str,
    /// The chunks that each writer's source holds; nothing: no such writer.
    pub wants: [Bits; 2],
    /// How many prunes each collector may begin.
    pub passes: [u8; 2],
    /// Snapshots that may be forgotten at any time.
    pub forgettable: Bits,
    /// Snapshots that are forgotten before everything else.
    pub forgotten: Bits,
    /// Packs that are listed and lost.
    pub lost: Bits,
    /// The pack of `B` holds `X`, too.
    pub is_mixed: bool,
    /// Collectors that repack: `B` is copied as it is, coded against `A`.
    pub repacks: Bits,
    pub merges: bool,
    /// Actors may die at every step.
    pub crashes: bool,
    /// Answers to the creation of `snapshots/U` may be unclear.
    pub is_unclear: bool,
    /// How many condemned lists may be made.
    pub numbers: u8,
}

impl State {
    pub fn new(scene: &Scene) -> State {
        let mut state = State {
            packs: 0b1111 & !scene.lost,
            packs_ever: 0b1111,
            is_mixed: scene.is_mixed,
            index: 1,
            index_ever: 1,
            lists: [0b1111, 0, 0, 0, 0, 0, 0],
            forgotten: scene.forgotten,
            ..State::default()
        };
        for (collector, passes) in state.collectors.iter_mut().zip(scene.passes) {
            collector.passes = passes;
        }
        state
    }

    /// The chunks that snapshot `number` needs; none if it was never saved.
    pub fn needs(&self, scene: &Scene, number: u8) -> Bits {
        match number {
            0 => B,
            1 => X,
            _ if self.outcomes[usize::from(number - WRITER_SNAPSHOT)] == Outcome::Saved => {
                scene.wants[usize::from(number - WRITER_SNAPSHOT)]
            }
            _ => 0,
        }
    }

    /// The chunks of all snapshots that are saved and not forgotten.
    pub fn live(&self, scene: &Scene) -> Bits {
        (0..4).filter(|n| self.forgotten & 1 << n == 0).fold(0, |live, n| live | self.needs(scene, n))
    }

    /// The chunks of a pack that need no other, and those that need `A`.
    pub fn content(&self, pack: u8) -> (Bits, Bits) {
        match pack {
            0 | 2 => (A, 0),
            1 => (if self.is_mixed { X } else { 0 }, B),
            3 => (X, 0),
            4 | 5 => {
                let (stored, deltas) = (self.stored[usize::from(pack - 4)], self.deltas[usize::from(pack - 4)]);
                (stored & !deltas, deltas)
            }
            _ => (0, B),
        }
    }

    /// The chunks that can be read from these packs, with the bases that they need.
    pub fn founded(&self, packs: Bits) -> Bits {
        let contents = || (0..8).filter(|pack| packs & 1 << pack != 0).map(|pack| self.content(pack));
        let alone = contents().fold(0, |all, (alone, _)| all | alone);
        let coded = contents().fold(0, |all, (_, deltas)| all | deltas);
        if alone & A != 0 { alone | coded } else { alone }
    }

    /// The same, if bases were not thought of.
    pub fn founded_without_bases(&self, packs: Bits) -> Bits {
        let contents = (0..8).filter(|pack| packs & 1 << pack != 0).map(|pack| self.content(pack));
        contents.fold(0, |all, (alone, deltas)| all | alone | deltas)
    }

    /// The packs that some index object lists.
    pub fn listed(&self) -> Bits {
        self.listed_by(self.index)
    }

    pub fn listed_by(&self, objects: Bits) -> Bits {
        (0..7).filter(|object| objects & 1 << object != 0).fold(0, |all, object| all | self.lists[object])
    }

    /// The packs of every final list.
    pub fn ended(&self) -> Bits {
        self.ends.iter().fold(0, |all, list| all | list)
    }

    /// The packs of every list without an end.
    pub fn undecided(&self) -> Bits {
        let numbers = (0..NUMBERS).filter(|n| self.end_names & 1 << n == 0);
        numbers.fold(0, |all, n| all | self.condemned[n])
    }

    /// Ends a transaction unless it has ended: true if this did it. The announcement goes with it, which nobody can tell
    /// from its going later.
    pub fn end(&mut self, transaction: u8, outcome: Outcome) -> bool {
        let standing = &mut self.outcomes[usize::from(transaction)];
        let is_free = *standing == Outcome::None;
        if is_free {
            *standing = outcome;
        }
        self.open &= !(1 << transaction);
        is_free
    }

    /// Creates a pack, unless it is there.
    pub fn create_pack(&mut self, pack: u8) {
        self.is_twice |= self.packs_ever & !self.packs & 1 << pack != 0;
        self.packs |= 1 << pack;
        self.packs_ever |= 1 << pack;
    }

    /// Creates an index object.
    pub fn create_index(&mut self, object: u8, packs: Bits) {
        self.is_twice |= self.index_ever & 1 << object != 0;
        self.index |= 1 << object;
        self.index_ever |= 1 << object;
        self.lists[usize::from(object)] = packs;
    }

    /// What is wrong, if anything is: a promise of the repository that does not hold in this state.
    pub fn violation(&self, scene: &Scene) -> Option<&'static str> {
        // What is on a final list may go at any time.
        let lasting = self.packs & self.listed() & !self.ended();
        if self.live(scene) & !self.founded(lasting) != 0 {
            return Some("a chunk of a live snapshot has no home that stays");
        }
        if self.is_twice {
            return Some("a name is written twice");
        }
        let is_false = |w: u8| self.reported & 1 << w != 0 && self.outcomes[usize::from(w)] != Outcome::Saved;
        if (0..2).any(is_false) {
            return Some("a backup reported success and there is no snapshot");
        }
        None
    }

    /// A number that states that differ hardly ever share: two do in some 10^19 pairs.
    pub fn fingerprint(&self) -> u64 {
        let mut bytes = [0u8; 80];
        let mut at = 0;
        let mut put = |value: u8| {
            bytes[at] = value;
            at += 1;
        };
        let whole = [self.packs, self.packs_ever, self.index, self.index_ever, self.open, self.forgotten];
        whole.into_iter().for_each(&mut put);
        [self.condemned_names, self.end_names, self.reported].into_iter().for_each(&mut put);
        self.stored.iter().chain(&self.deltas).chain(&self.lists).copied().for_each(&mut put);
        self.condemned.iter().chain(&self.ends).copied().for_each(&mut put);
        self.outcomes.iter().for_each(|outcome| put(*outcome as u8));
        self.writers.iter().flat_map(Writer::bytes).for_each(&mut put);
        self.collectors.iter().flat_map(Collector::bytes).for_each(&mut put);
        bytes.as_chunks::<8>().0.iter().fold(0x9e37_79b9_7f4a_7c15, |hash, word| {
            let mixed = (hash ^ u64::from_le_bytes(*word)).wrapping_mul(0xff51_afd7_ed55_8ccd);
            let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
            mixed ^ (mixed >> 29)
        })
    }
}
