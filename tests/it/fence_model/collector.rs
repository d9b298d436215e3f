//! A prune, storage operation by storage operation. Deletion stands in `search`: what is on a final list, anyone may delete.

use super::defects::Defect;
use super::search::Successors;
use super::world::{
    Bits, MERGED_INDEX, NUMBERS, Outcome, REPACKED, REPACKED_INDEX, REPACKING, Scene, State, WRITER_PACK,
};

/// What the collector does next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Step {
    /// Between two prunes, or before the first step of one.
    #[default]
    Begin,
    AnnounceRepacking,
    CopyPack,
    CopyIndex,
    EndRepacking,
    Mark,
    Condemn,
    ListTransactions,
    Wait,
    ListSnapshots,
    ListIndex,
    ReadIndex,
    End,
    ListMerged,
    WriteMerged,
    DeleteMerged,
    /// Of defects: it deletes by itself.
    Delete,
}

/// What the collector knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collector {
    pub step: Step,
    /// Prunes that it may still begin.
    pub passes: u8,
    /// True once it has repacked.
    has_repacked: bool,
    number: u8,
    /// What it condemns, then what it means to delete, then what its merged index lists.
    list: Bits,
    /// Packs of final lists, when it began.
    ended: Bits,
    /// Transactions that it waits for; index objects.
    names: Bits,
    /// Chunks that live snapshots need.
    live: Bits,
    /// Of a defect: the packs that it has seen.
    present: Bits,
}

impl Collector {
    pub fn bytes(&self) -> [u8; 9] {
        let first = [self.step as u8, self.passes, u8::from(self.has_repacked), self.number, self.list];
        let [a, b, c, d, e] = first;
        [a, b, c, d, e, self.ended, self.names, self.live, self.present]
    }

    /// Between two prunes, whatever it was at.
    fn at_rest(&self) -> Collector {
        let Collector { passes, has_repacked, .. } = *self;
        Collector { passes, has_repacked, ..Collector::default() }
    }

    /// A prune at `step`.
    fn at(&self, step: Step) -> Collector {
        Collector { step, ..*self }
    }
}

fn who(g: usize) -> &'static str {
    ["collector 0", "collector 1"][g]
}

/// All that collector `g` may do now.
pub fn act(state: &State, g: usize, scene: &Scene, defect: Defect, out: &mut Successors) {
    let own = state.collectors[g];
    let mut next = *state;
    match own.step {
        Step::Begin => begin(state, g, scene, defect, out),
        Step::AnnounceRepacking | Step::CopyPack | Step::CopyIndex | Step::EndRepacking => repack(state, g, out),
        Step::Mark => mark(state, g, scene, defect, out),
        Step::Condemn => condemn(state, g, defect, out),
        Step::ListTransactions => {
            let names = if defect == Defect::TransactionsNotListed { 0 } else { state.open };
            next.collectors[g] = after_waiting(Collector { names, ..own }, defect);
            out.add(who(g), "lists transactions", next);
        }
        Step::Wait => wait(state, g, defect, out),
        Step::ListSnapshots => {
            next.collectors[g] = Collector { live: state.live(scene), ..own.at(Step::ListIndex) };
            out.add(who(g), "lists snapshots", next);
        }
        Step::ListIndex => {
            next.collectors[g] = Collector { names: state.index, ..own.at(Step::ReadIndex) };
            out.add(who(g), "lists index objects", next);
        }
        Step::ReadIndex => decide(state, g, defect, out),
        Step::End => end(state, g, scene, defect, out),
        Step::ListMerged | Step::WriteMerged | Step::DeleteMerged => merge(state, g, defect, out),
        Step::Delete => {
            let pack = own.list.trailing_zeros();
            next.packs &= !(1 << pack);
            let list = own.list & (own.list - 1);
            let step = if defect == Defect::DeletesBeforeTheEnd { Step::End } else { Step::Delete };
            next.collectors[g] = if list == 0 { own.at_rest() } else { Collector { list, ..own.at(step) } };
            out.add(who(g), "deletes a pack", next);
        }
    }
    if scene.crashes && own.step != Step::Begin {
        let mut dead = *state;
        dead.collectors[g] = own.at_rest();
        out.add(who(g), "dies", dead);
    }
}

fn begin(state: &State, g: usize, scene: &Scene, defect: Defect, out: &mut Successors) {
    let own = state.collectors[g];
    if own.passes == 0 {
        return;
    }
    let is_ended = |n: u8| {
        let is_abandoned = defect == Defect::AbandonedListsStayOpen && state.ends[usize::from(n)] == 0;
        state.end_names & 1 << n != 0 && !is_abandoned
    };
    let mut made = (0..NUMBERS as u8).filter(|n| state.condemned_names & 1 << n != 0);
    let open = made.clone().find(|n| !is_ended(*n)).filter(|_| defect != Defect::OpenNumberPassedOver);
    let begun = Collector { passes: own.passes - 1, ended: state.ended(), ..own };
    let mut next = *state;
    if let Some(number) = open {
        let list = state.condemned[usize::from(number)];
        next.collectors[g] = Collector { number, list, ..begun.at(Step::ListTransactions) };
        out.add(who(g), "begins: goes on with the open list", next);
        next.collectors[g] = Collector { number, list: 0, ..begun.at(Step::End) };
        return out.add(who(g), "begins: means to abandon the open list", next);
    }
    let number = made.next_back().map_or(0, |n| n + 1);
    if number >= scene.numbers {
        next.collectors[g] = Collector { passes: 0, ..own.at_rest() };
        return out.add(who(g), "begins: there are enough lists", next);
    }
    next.collectors[g] = Collector { number, ..begun.at(Step::Mark) };
    out.add(who(g), "begins", next);
    if scene.repacks & 1 << g != 0 && !own.has_repacked {
        next.collectors[g] = Collector { number, has_repacked: true, ..begun.at(Step::AnnounceRepacking) };
        out.add(who(g), "begins, and is to repack", next);
    }
}

/// Copies `B` as it is into a pack of its own, as a transaction that ends before anything is condemned.
fn repack(state: &State, g: usize, out: &mut Successors) {
    let (own, number) = (state.collectors[g], g as u8);
    let mut next = *state;
    let (step, what) = match own.step {
        Step::AnnounceRepacking => {
            next.open |= 1 << (REPACKING + number);
            (Step::CopyPack, "creates transactions/R")
        }
        Step::CopyPack => {
            next.create_pack(REPACKED + number);
            (Step::CopyIndex, "writes a pack of copies")
        }
        Step::CopyIndex => {
            next.create_index(REPACKED_INDEX + number, 1 << (REPACKED + number));
            (Step::EndRepacking, "writes index/R")
        }
        _ => match next.end(REPACKING + number, Outcome::Repacked) {
            true => (Step::Mark, "creates snapshots/R = REPACKED"),
            false => (Step::Begin, "finds snapshots/R taken"),
        },
    };
    next.collectors[g] = if step == Step::Begin { own.at_rest() } else { own.at(step) };
    out.add(who(g), what, next);
}

/// Steps 1 and 3 in one look: whatever it sees wrongly, step 5 has to see.
fn mark(state: &State, g: usize, scene: &Scene, defect: Defect, out: &mut Successors) {
    let own = state.collectors[g];
    let owners = (0..4u8).filter(|u| state.open & 1 << u != 0);
    let owned = owners.fold(0, |all, u| all | 1 << (WRITER_PACK + u));
    let found = if defect == Defect::ListedPacksNotLookedFor { state.listed() } else { state.packs };
    let usable = found & state.listed() & !own.ended;
    let mut next = *state;
    let lists = spared(state, state.packs & !own.ended & !owned, usable, state.live(scene), defect);
    if lists.is_empty() {
        next.collectors[g] = own.at_rest();
        return out.add(who(g), "finds a live chunk without a home, and refuses", next);
    }
    for list in lists {
        next.collectors[g] = match list {
            // Nothing to delete, and yet the dead have to be ended, or what they left would stay for ever.
            0 => after_waiting(Collector { names: state.open, ..own }, defect),
            _ => Collector { list, ..own.at(Step::Condemn) },
        };
        out.add(who(g), "marks", next);
    }
}

fn condemn(state: &State, g: usize, defect: Defect, out: &mut Successors) {
    let own = state.collectors[g];
    let (mut next, at) = (*state, usize::from(own.number));
    let is_taken = state.condemned_names & 1 << at != 0;
    if is_taken && defect != Defect::NumberTakenIgnored {
        next.collectors[g] = own.at_rest();
        return out.add(who(g), "finds condemned/n taken", next);
    }
    if !is_taken {
        next.condemned_names |= 1 << at;
        next.condemned[at] = own.list;
    }
    let present = if defect == Defect::MergeDropsWhatIsNotFound { state.packs } else { 0 };
    next.collectors[g] = Collector { present, ..own.at(Step::ListTransactions) };
    out.add(who(g), "creates condemned/n", next);
}

/// Each transaction that was open ends, or is revoked; how long it was waited for makes no difference.
fn wait(state: &State, g: usize, defect: Defect, out: &mut Successors) {
    let own = state.collectors[g];
    for transaction in (0..4u8).filter(|u| own.names & 1 << u != 0) {
        let mut next = *state;
        let is_over = state.outcomes[usize::from(transaction)] != Outcome::None;
        let what = match defect {
            Defect::RevokedOnTheQuiet => "takes a transaction for dead",
            Defect::DeadWritersWaitedFor if !is_over => continue,
            Defect::AnnouncementRemovedFirst if state.open & 1 << transaction != 0 => {
                next.open &= !(1 << transaction);
                out.add(who(g), "removes transactions/U", next);
                continue;
            }
            Defect::RevocationOverwrites => {
                next.outcomes[usize::from(transaction)] = Outcome::Revoked;
                next.open &= !(1 << transaction);
                "writes snapshots/U = REVOKED over what is there"
            }
            _ if is_over => "sees that a transaction has ended",
            _ => {
                next.end(transaction, Outcome::Revoked);
                "creates snapshots/U = REVOKED"
            }
        };
        next.collectors[g] = after_waiting(Collector { names: own.names & !(1 << transaction), ..own }, defect);
        out.add(who(g), what, next);
    }
}

fn after_waiting(own: Collector, defect: Defect) -> Collector {
    match (own.names, defect) {
        (0, _) if own.list == 0 => own.at_rest(),
        (0, Defect::SecondMarkIgnored) => own.at(Step::End),
        (0, _) => own.at(Step::ListSnapshots),
        _ => own.at(Step::Wait),
    }
}

/// The last operation of step 5: reads what index objects are still there, lists the packs, and chooses.
fn decide(state: &State, g: usize, defect: Defect, out: &mut Successors) {
    let own = state.collectors[g];
    let listed = state.listed_by(own.names & state.index);
    let usable = match defect {
        Defect::EarlierListsCountAsHomes => state.packs & listed,
        Defect::ListedPacksNotLookedFor => listed & !own.ended,
        _ => state.packs & listed & !own.ended,
    };
    let lists = spared(state, own.list, usable, own.live, defect);
    let mut next = *state;
    let at_end = Collector { names: 0, live: 0, list: 0, ..own.at(Step::End) };
    if lists.is_empty() {
        next.collectors[g] = Collector { names: 0, live: 0, ..own.at(Step::ListSnapshots) };
        out.add(who(g), "finds a live chunk without a home, and reads again", next);
        next.collectors[g] = at_end;
        out.add(who(g), "finds a live chunk without a home, and means to abandon", next);
    }
    for list in lists {
        next.collectors[g] = Collector { list, ..at_end };
        out.add(who(g), "marks again", next);
    }
}

/// The greatest parts of `list` without which `usable` still holds everything live; none if it does not even so.
fn spared(state: &State, list: Bits, usable: Bits, live: Bits, defect: Defect) -> Vec<Bits> {
    let holds = |packs| match defect {
        Defect::BasesNotKept => state.founded_without_bases(packs),
        _ => state.founded(packs),
    };
    let mut found: Vec<Bits> = Vec::new();
    // Greater numbers first: every set comes before its parts.
    for part in (0..=list).rev().filter(|part| part & !list == 0) {
        let is_known = found.iter().any(|greater| part & !greater == 0);
        if !is_known && live & !holds(usable & !part) == 0 {
            found.push(part);
        }
    }
    found
}

fn end(state: &State, g: usize, scene: &Scene, defect: Defect, out: &mut Successors) {
    let own = state.collectors[g];
    let (mut next, at) = (*state, usize::from(own.number));
    let own = Collector { number: 0, names: 0, live: 0, ..own };
    if defect == Defect::DeletesBeforeTheEnd && own.list & state.packs != 0 {
        let mut early = *state;
        early.packs &= !(own.list & state.packs);
        out.add(who(g), "deletes packs", early);
    }
    if state.end_names & 1 << at != 0 {
        let goes_on = defect == Defect::EndTakenIgnored && own.list != 0;
        next.collectors[g] = if goes_on { own.at(Step::Delete) } else { own.at_rest() };
        return out.add(who(g), "finds condemned/n.end taken", next);
    }
    next.end_names |= 1 << at;
    next.ends[at] = own.list;
    let may_merge = scene.merges && state.index_ever & 1 << (MERGED_INDEX + g as u8) == 0;
    let merging = Collector { ended: own.ended | own.list, list: 0, ..own.at(Step::ListMerged) };
    next.collectors[g] = if may_merge { merging } else { own.at_rest() };
    out.add(who(g), if own.list == 0 { "ends n as ABANDONED" } else { "creates condemned/n.end" }, next);
}

fn merge(state: &State, g: usize, defect: Defect, out: &mut Successors) {
    let own = state.collectors[g];
    let (mut next, merged) = (*state, MERGED_INDEX + g as u8);
    let what = match own.step {
        Step::ListMerged => {
            let unfound = if defect == Defect::MergeDropsWhatIsNotFound { !own.present } else { 0 };
            let list = state.listed() & !own.ended & !unfound;
            let begun = Collector { list, names: state.index, ended: 0, present: 0, ..own };
            let step = if defect == Defect::MergedIndexWrittenLast { Step::DeleteMerged } else { Step::WriteMerged };
            let is_useless = state.index.count_ones() < 2;
            next.collectors[g] = if is_useless { own.at_rest() } else { begun.at(step) };
            "reads the index objects to merge"
        }
        Step::WriteMerged => {
            next.create_index(merged, own.list);
            let is_last = defect == Defect::MergedIndexWrittenLast;
            let rest = Collector { list: 0, ..own.at(Step::DeleteMerged) };
            next.collectors[g] = if is_last { own.at_rest() } else { rest };
            "writes a merged index object"
        }
        _ => {
            let inputs = match defect {
                Defect::MergeDeletesWhatItDidNotRead => state.index & !(1 << merged),
                _ => own.names & state.index,
            };
            let input = 1 << inputs.trailing_zeros().min(7);
            next.index &= !input;
            let names = inputs & !input;
            next.collectors[g] = match (names, defect) {
                (0, Defect::MergedIndexWrittenLast) => Collector { names, ..own.at(Step::WriteMerged) },
                (0, _) => own.at_rest(),
                _ => Collector { names, ..own },
            };
            "deletes an index object that it has merged"
        }
    };
    out.add(who(g), what, next);
}
