//! A model of the commit fence (`docs/FORMAT.md`, "Write order"), searched through whole.
//!
//! It is made from the text of the protocol and shares nothing with the code: two writers and two collectors on a storage
//! of a few packs, of which one holds a chunk coded against another, one chunk lies in two, and one is needed by nobody
//! until a writer wants it. Every storage operation is one step, every order of them is looked at, and actors die, go
//! on with what another has begun, and revoke whom they like, whenever they like: no clock decides. In every state all
//! chunks of every snapshot that is not forgotten have homes that stay, no name is written twice, no success is reported
//! without a snapshot; and whatever has happened, one more prune brings all to an end and leaves nothing unneeded.
//!
//! The search has to find each of the planted defects, or it could not be trusted to find one in the protocol.
//!
//! Deliberately not here: power cuts (`hosts`, `power_cut.rs` have them), and whether the code does what the text says.

mod collector;
mod defects;
mod search;
mod world;
mod writer;

use crate::support::{in_parallel, say};
use defects::Defect;
use search::search;
use std::time::Instant;
use world::{A, B, D, Scene, X};

/// Nothing happens here.
const STILL: Scene = Scene {
    name: "",
    wants: [0, 0],
    passes: [0, 0],
    forgettable: 0,
    forgotten: 0,
    lost: 0,
    is_mixed: false,
    repacks: 0,
    merges: false,
    crashes: false,
    is_unclear: false,
    numbers: 2,
};

/// What the usual run looks at, the quickest first.
fn scenes() -> Vec<Scene> {
    let forgotten = 0b0010;
    vec![
        Scene {
            name: "lost packs",
            wants: [X | A, 0],
            passes: [2, 1],
            forgotten,
            lost: 0b1000,
            crashes: true,
            ..STILL
        },
        Scene { name: "a lost home", passes: [1, 1], lost: 0b0001, ..STILL },
        Scene { name: "merging", wants: [X, 0], passes: [1, 1], forgotten, merges: true, crashes: true, ..STILL },
        Scene {
            name: "a delta that stays without its base",
            wants: [B, 0],
            passes: [1, 1],
            forgotten: 0b0001,
            is_mixed: true,
            crashes: true,
            ..STILL
        },
        Scene { name: "writers who want the same", wants: [X, X], passes: [2, 0], forgotten, crashes: true, ..STILL },
        Scene { name: "two writers, two collectors", wants: [X, D], passes: [1, 1], forgotten, ..STILL },
        Scene { name: "repacking", wants: [B, 0], passes: [1, 1], forgotten, repacks: 0b11, ..STILL },
        Scene {
            name: "all that is wanted may be forgotten, everybody may die",
            wants: [X, 0],
            passes: [2, 2],
            forgettable: 0b0110,
            crashes: true,
            is_unclear: true,
            ..STILL
        },
        Scene {
            name: "a delta of a delta's base",
            wants: [B | D, 0],
            passes: [2, 2],
            forgettable: 0b0001,
            forgotten,
            ..STILL
        },
    ]
}

/// What takes minutes and gigabytes.
fn long_scenes() -> Vec<Scene> {
    let everything = Scene { forgettable: 0b1111, crashes: true, is_unclear: true, ..STILL };
    vec![
        Scene { name: "long: two writers", wants: [X | B, D | B], passes: [2, 1], ..everything },
        Scene { name: "long: merging", wants: [X, D], passes: [2, 1], merges: true, forgotten: 0b0010, ..everything },
        Scene { name: "long: repacking", wants: [X, B], passes: [1, 1], repacks: 0b11, ..everything },
        Scene { name: "long: three lists", wants: [X | B, 0], passes: [3, 3], numbers: 3, ..everything },
    ]
}

#[test]
fn the_protocol_keeps_its_promises_in_every_order() {
    let is_long = std::env::var("CKPT_TEST_MODEL").is_ok_and(|value| value == "full");
    let scenes = if is_long { [scenes(), long_scenes()].concat() } else { scenes() };
    let begun = Instant::now();
    let states = in_parallel(scenes.len() as u64, |number| {
        let scene = &scenes[number as usize];
        let begun = Instant::now();
        let found = search(scene, Defect::None);
        say(&format!("fence_model: {}: {} states, {:.1?}", scene.name, found.states, begun.elapsed()));
        if let Some((wrong, trace)) = found.violation {
            panic!("{}: {wrong}\n{}", scene.name, trace.join("\n"));
        }
        found.states as u64
    });
    say(&format!("fence_model: {states} states in {:.1?}", begun.elapsed()));
}

#[test]
fn every_planted_defect_is_found() {
    let scenes = scenes();
    in_parallel(Defect::PLANTED.len() as u64, |number| {
        let defect = Defect::PLANTED[number as usize];
        let begun = Instant::now();
        let mut states = 0;
        // It takes two passes of two collectors; without a hint all smaller scenes are searched in whole before.
        let is_deep = |scene: &&Scene| defect == Defect::NumberTakenIgnored && scene.passes == [2, 2];
        let hinted = scenes.iter().rev().filter(is_deep);
        for scene in hinted.chain(scenes.iter().filter(|scene| !is_deep(scene))) {
            let found = search(scene, defect);
            states += found.states;
            if let Some((wrong, trace)) = found.violation {
                let (steps, took) = (trace.len() - 1, begun.elapsed());
                say(&format!("fence_model: {defect:?}: {wrong} after {steps} steps; {states} states, {took:.1?}"));
                return 1;
            }
        }
        panic!("{defect:?} is not found in {states} states");
    });
}
