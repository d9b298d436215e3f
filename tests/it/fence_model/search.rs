//! Breadth first through every order of the actors' operations, with the shortest way to whatever is wrong.
//!
//! States that were seen are known by their fingerprints, with that of the state before. Once every actor has come to
//! its end, or cannot go on, a last prune with nobody beside it must end everything that is open and leave nothing that
//! is not needed.

use super::defects::Defect;
use super::world::{NUMBERS, Scene, State};
use super::{collector, writer};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// What can follow from a state: who does it, what it does, what is then.
#[derive(Default)]
pub struct Successors(pub Vec<(&'static str, &'static str, State)>);

impl Successors {
    pub fn add(&mut self, who: &'static str, what: &'static str, next: State) {
        self.0.push((who, what, next));
    }
}

/// What a search saw.
pub struct Found {
    pub states: usize,
    /// What is wrong, and how it came to that.
    pub violation: Option<(&'static str, Vec<String>)>,
}

/// Fingerprints are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {}

    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

type Seen = HashMap<u64, u64, BuildHasherDefault<Identity>>;

fn successors(state: &State, scene: &Scene, defect: Defect, out: &mut Successors) {
    out.0.clear();
    (0..2).for_each(|w| writer::act(state, w, scene, defect, out));
    (0..2).for_each(|g| collector::act(state, g, scene, defect, out));
    for number in (0..4u8).filter(|n| scene.forgettable & !state.forgotten & 1 << n != 0) {
        if state.needs(scene, number) != 0 {
            out.add("somebody", "forgets a snapshot", State { forgotten: state.forgotten | 1 << number, ..*state });
        }
    }
    for pack in (0..8).filter(|pack| state.ended() & state.packs & 1 << pack != 0) {
        out.add("somebody", "deletes a pack of a final list", State { packs: state.packs & !(1 << pack), ..*state });
    }
}

/// Looks at every state that can be reached, up to the first that is wrong.
pub fn search(scene: &Scene, defect: Defect) -> Found {
    let first = State::new(scene);
    let mut seen = Seen::default();
    seen.insert(first.fingerprint(), 0);
    let mut level = vec![first];
    let mut out = Successors::default();
    while !level.is_empty() {
        let mut ahead = Vec::new();
        for state in &level {
            successors(state, scene, defect, &mut out);
            let wrong = state.violation(scene).or_else(|| match out.0.is_empty() {
                true => last_prune(state, scene, defect),
                false => None,
            });
            if let Some(wrong) = wrong {
                let trace = trace(scene, defect, &seen, state.fingerprint());
                return Found { states: seen.len(), violation: Some((wrong, trace)) };
            }
            let before = state.fingerprint();
            for (_, _, next) in &out.0 {
                seen.entry(next.fingerprint()).or_insert_with(|| {
                    ahead.push(*next);
                    before
                });
            }
        }
        level = ahead;
    }
    Found { states: seen.len(), violation: None }
}

/// The writers are over or stopped for ever, and one collector begins anew, alone.
fn last_prune(state: &State, scene: &Scene, defect: Defect) -> Option<&'static str> {
    let scene = Scene { passes: [4, 0], crashes: false, numbers: NUMBERS as u8, repacks: 0, merges: false, ..*scene };
    let mut state = State { collectors: State::new(&scene).collectors, ..*state };
    let defect = if defect.is_of_progress() { defect } else { Defect::None };
    let mut out = Successors::default();
    loop {
        out.0.clear();
        collector::act(&state, 0, &scene, defect, &mut out);
        match out.0.first() {
            Some((_, _, next)) => state = *next,
            None if state.collectors[0].passes > 0 || state.collectors[0].step != collector::Step::Begin => {
                return Some("a prune with nobody beside it does not come to its end");
            }
            None => break,
        }
        if let Some(wrong) = state.violation(&scene) {
            return Some(wrong);
        }
    }
    if state.open != 0 || state.undecided() != 0 {
        return Some("a prune with nobody beside it leaves something open");
    }
    let staying = state.packs & !state.ended();
    let live = state.live(&scene);
    let is_unneeded = |pack: u8| staying & 1 << pack != 0 && live & !state.founded(staying & !(1 << pack)) == 0;
    (0..8).any(is_unneeded).then_some("a prune with nobody beside it leaves what nobody needs")
}

/// The operations on the way to the state with this fingerprint.
fn trace(scene: &Scene, defect: Defect, seen: &Seen, last: u64) -> Vec<String> {
    let mut way = vec![last];
    while let Some(before) = seen.get(&way[way.len() - 1]).filter(|before| **before != 0) {
        way.push(*before);
    }
    let mut state = State::new(scene);
    let mut out = Successors::default();
    let mut lines = Vec::new();
    for wanted in way.iter().rev().skip(1) {
        successors(&state, scene, defect, &mut out);
        let step = out.0.iter().find(|(_, _, next)| next.fingerprint() == *wanted);
        let (who, what, next) = step.expect("the search went this way");
        lines.push(format!("{who} {what}"));
        state = *next;
    }
    lines.push(format!("{state:?}"));
    lines
}
