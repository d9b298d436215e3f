//! A backup, storage operation by storage operation.

use super::defects::Defect;
use super::search::Successors;
use super::world::{A, B, Bits, D, Outcome, Scene, State, WRITER_INDEX, WRITER_PACK, X};

/// What the writer does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    #[default]
    Announce,
    /// Of the defect that reads the lists first.
    AnnounceLate,
    ReadLists,
    ReadIndex,
    WritePack,
    WriteIndex,
    LookAgain,
    Name,
    /// The answer was unclear.
    ReadBack,
    GiveUp,
    /// Ended, however, or dead.
    Over,
}

/// What the writer knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Writer {
    pub step: Step,
    /// Packs of lists, which it must not rely on.
    absent: Bits,
    /// Packs of others that its snapshot needs.
    relied: Bits,
    /// Those of them that no index object lists.
    adopted: Bits,
}

impl Writer {
    pub fn bytes(&self) -> [u8; 4] {
        [self.step as u8, self.absent, self.relied, self.adopted]
    }

    const fn over() -> Writer {
        Writer { step: Step::Over, absent: 0, relied: 0, adopted: 0 }
    }
}

/// All that writer `w` may do now.
pub fn act(state: &State, w: usize, scene: &Scene, defect: Defect, out: &mut Successors) {
    if scene.wants[w] == 0 || state.writers[w].step == Step::Over {
        return;
    }
    let (number, mut next) = (w as u8, *state);
    match state.writers[w].step {
        Step::Announce if defect == Defect::ListsReadBeforeTheAnnouncement => {
            next.writers[w] = Writer { step: Step::AnnounceLate, absent: absent(state, defect), relied: 0, adopted: 0 };
            out.add(who(w), "reads the condemned lists", next);
        }
        step @ (Step::Announce | Step::AnnounceLate) => {
            next.open |= 1 << w;
            next.writers[w].step = if step == Step::Announce { Step::ReadLists } else { Step::ReadIndex };
            out.add(who(w), "creates transactions/U", next);
        }
        Step::ReadLists => {
            next.writers[w].absent = absent(state, defect);
            next.writers[w].step = Step::ReadIndex;
            out.add(who(w), "reads the condemned lists", next);
        }
        Step::ReadIndex => decide(state, w, scene, defect, out),
        Step::WritePack => {
            next.create_pack(own_pack(state, w, defect));
            let is_early = defect == Defect::SnapshotBeforeItsIndex;
            next.writers[w].step = if is_early { Step::LookAgain } else { Step::WriteIndex };
            out.add(who(w), "writes its pack", next);
        }
        Step::WriteIndex => {
            let own = if state.stored[w] == 0 { 0 } else { 1 << own_pack(state, w, defect) };
            let adopted = if defect == Defect::AdoptedPacksNotListed { 0 } else { state.writers[w].adopted };
            next.create_index(WRITER_INDEX + number, own | adopted);
            next.writers[w].step = match defect {
                Defect::SnapshotBeforeItsIndex => Step::Over,
                Defect::ReliedPacksNotLookedAt => Step::Name,
                _ => Step::LookAgain,
            };
            out.add(who(w), "writes index/U", next);
        }
        Step::LookAgain => {
            let is_whole = state.packs & state.writers[w].relied == state.writers[w].relied;
            next.writers[w] = Writer { step: if is_whole { Step::Name } else { Step::GiveUp }, ..Writer::over() };
            out.add(who(w), "looks again at what it relies on", next);
        }
        Step::Name => name(state, w, scene, defect, out),
        Step::ReadBack => {
            let is_own = state.outcomes[w] == Outcome::Saved;
            next.reported |= u8::from(is_own || defect == Defect::UnclearAnswerIsSuccess) << w;
            next.writers[w] = Writer::over();
            out.add(who(w), "reads snapshots/U back", next);
        }
        Step::GiveUp => {
            next.end(number, Outcome::Revoked);
            next.writers[w] = Writer::over();
            out.add(who(w), "gives up: creates snapshots/U = REVOKED", next);
        }
        Step::Over => {}
    }
    if scene.crashes && state.writers[w].step != Step::Announce {
        let mut dead = *state;
        dead.writers[w] = Writer::over();
        out.add(who(w), "dies", dead);
    }
}

/// Names carry the id of the transaction, so that each has its own.
fn own_pack(state: &State, w: usize, defect: Defect) -> u8 {
    let is_like_the_first = defect == Defect::PacksNamedByContent && state.stored[w] == X;
    if is_like_the_first { 3 } else { WRITER_PACK + w as u8 }
}

fn who(w: usize) -> &'static str {
    ["writer 0", "writer 1"][w]
}

/// What the lists say now.
fn absent(state: &State, defect: Defect) -> Bits {
    match defect {
        Defect::EndedListsNotAbsent => state.undecided(),
        Defect::OpenListsNotAbsent => state.ended(),
        _ => state.undecided() | state.ended(),
    }
}

/// Reads the index and the names of packs, and finds for each chunk a pack to rely on, or stores it. What it remembers from
/// before counts as well: every host may have an old index of its own.
fn decide(state: &State, w: usize, scene: &Scene, defect: Defect, out: &mut Successors) {
    let own = 1 << (WRITER_PACK + w as u8);
    let listed = state.listed() | state.lists[0];
    let known = (listed | state.packs) & !own;
    let usable = known & !state.writers[w].absent;
    let for_bases = if defect == Defect::AbsentBasesCount { known } else { usable };
    let mut choices: Vec<(Bits, Bits)> = vec![(0, 0)];
    let mut deltas = 0;
    for chunk in [A, B, X, D].into_iter().filter(|chunk| scene.wants[w] & chunk != 0) {
        let mut ways = self::ways(state, chunk, usable, for_bases);
        if ways.is_empty() && chunk == D {
            // New content, coded against the base if that may be relied on.
            ways = self::ways(state, A, usable, usable).into_iter().map(|(packs, _)| (packs, D)).collect();
            deltas |= if ways.is_empty() { 0 } else { D };
        }
        if ways.is_empty() {
            ways.push((0, chunk));
        }
        let with = |(relied, stored): (Bits, Bits)| ways.iter().map(move |way| (relied | way.0, stored | way.1));
        choices = choices.iter().copied().flat_map(with).collect();
    }
    choices.sort_unstable();
    choices.dedup();
    for (relied, stored) in choices {
        let mut next = *state;
        let adopted = relied & !listed;
        let step = match (stored != 0, adopted != 0) {
            (true, _) => Step::WritePack,
            (false, true) => Step::WriteIndex,
            (false, false) => Step::LookAgain,
        };
        let step = match step {
            Step::LookAgain if defect == Defect::ReliedPacksNotLookedAt => Step::Name,
            step => step,
        };
        let relied = if step == Step::Name { 0 } else { relied };
        next.writers[w] = Writer { step, absent: 0, relied, adopted };
        (next.stored[w], next.deltas[w]) = (stored, stored & deltas);
        out.add(who(w), "reads the index and decides", next);
    }
}

/// The sets of packs from which the chunk can be had; nothing of it is stored.
fn ways(state: &State, chunk: Bits, usable: Bits, for_bases: Bits) -> Vec<(Bits, Bits)> {
    let packs = |of: Bits| (0..8u8).filter(move |pack| of & 1 << pack != 0);
    let alone = packs(usable).filter(|pack| state.content(*pack).0 & chunk != 0).map(|pack| (1 << pack, 0));
    let coded = packs(usable).filter(|pack| state.content(*pack).1 & chunk != 0);
    let bases = || packs(for_bases).filter(|pack| state.content(*pack).0 & A != 0);
    alone.chain(coded.flat_map(|pack| bases().map(move |base| (1 << pack | 1 << base, 0)))).collect()
}

fn name(state: &State, w: usize, scene: &Scene, defect: Defect, out: &mut Successors) {
    let mut next = *state;
    if defect == Defect::WriterRemovesItsAnnouncementFirst && state.open & 1 << w != 0 {
        next.open &= !(1 << w);
        return out.add(who(w), "removes transactions/U", next);
    }
    let is_saved = next.end(w as u8, Outcome::Saved);
    if scene.is_unclear {
        let mut unclear = next;
        unclear.writers[w] = Writer { step: Step::ReadBack, ..Writer::over() };
        out.add(who(w), "creates snapshots/U, and the answer is unclear", unclear);
    }
    next.reported |= u8::from(is_saved) << w;
    next.writers[w] = match defect == Defect::SnapshotBeforeItsIndex && is_saved && state.stored[w] != 0 {
        true => Writer { step: Step::WriteIndex, ..state.writers[w] },
        false => Writer::over(),
    };
    out.add(who(w), if is_saved { "creates snapshots/U" } else { "finds snapshots/U taken" }, next);
}
