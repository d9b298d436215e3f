//! The index against a simple model, by random operations: what it answers does not depend on where rows lie, on who
//! brought them together when, or on a filter.

use super::*;
use crate::events::Silent;
use crate::ids::SnapshotId;
use crate::repo::pack::{PackKind, TRAILER_BYTES};
use crate::repo::pack_table::{self, FrameRecord};
use merge::Merge;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

pub(super) const REPOSITORY: RepositoryId = RepositoryId::from_bytes([4; 16]);
/// So few that chunks come to have several homes.
const CHUNKS: u64 = 120;

/// Numbers that follow from a seed.
struct Dice(blake3::OutputReader);

impl Dice {
    fn new(seed: u64) -> Dice {
        Dice(blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof())
    }

    fn below(&mut self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % end
    }
}

fn chunk(number: u64) -> ChunkId {
    ChunkId::of(&number.to_le_bytes())
}

/// A pack of a few frames, some of several chunks, some with bases.
fn pack(number: u64, dice: &mut Dice) -> PackSummary {
    let mut table = Vec::new();
    let mut bytes = 64 + TRAILER_BYTES;
    for _ in 0..1 + dice.below(6) {
        let stored = 10 + usize::try_from(dice.below(90)).expect("small");
        let first = dice.below(CHUNKS);
        let base = chunk((first + 1 + dice.below(CHUNKS - 1)) % CHUNKS);
        let frame = match dice.below(3) {
            0 => FrameRecord::delta(chunk(first), 100, stored, 4, vec![base]),
            1 => FrameRecord::group((0..3).map(|n| (chunk((first + n) % CHUNKS), 7)).collect(), stored, 2),
            _ => FrameRecord::single(chunk(first), 100, stored, 3),
        };
        let frame = frame.expect("a record");
        pack_table::append(&mut table, &frame).expect("adds up");
        bytes += u64::from(frame.stored_bytes);
    }
    bytes += table.len() as u64;
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.to_le_bytes());
    let transaction = SnapshotId::from_bytes([8; 16]);
    PackSummary { id: PackId::from_bytes(id), bytes, kind: PackKind::Data, transaction, is_sealed: false, table }
}

/// The pack of this number.
pub(super) fn pack_of(number: u64) -> PackSummary {
    pack(number, &mut Dice::new(number))
}

/// A build of an index that nobody else has open.
pub(super) fn begun(index: &Index) -> Build<'_> {
    match index.begin_build(&Silent).expect("locks") {
        Beginning::Build(build) => *build,
        _ => panic!("it is empty, and nobody else has it open"),
    }
}

pub(super) fn is_declined(index: &Index) -> bool {
    matches!(index.begin_build(&Silent).expect("locks"), Beginning::Declined)
}

/// A run that the user ends.
pub(super) struct Ended;

impl Observer for Ended {
    fn on_event(&self, _event: &Event<'_>) {}

    fn is_interrupted(&self) -> bool {
        true
    }
}

/// A merge that makes a filter of however few rows.
fn filtering<'a>() -> Merge<'a> {
    Merge { filtered_rows_min: 0, slice_rows: 7, go_on: Box::leak(Box::new(|| true)) }
}

/// What should be known.
#[derive(Default)]
struct Model {
    packs: BTreeMap<PackId, (PackSummary, bool, BTreeSet<IndexId>)>,
}

/// A home in an order of its own.
fn key(home: &Home) -> (PackId, u64, u32, u32, u32, u32, u8, u8) {
    let Home { pack, frame_offset, frame_stored, frame_raw, at, bytes, codec, base_count } = *home;
    (pack, frame_offset, at, frame_stored, frame_raw, bytes, codec, base_count)
}

impl Model {
    fn homes(&self, id: ChunkId) -> Vec<(Home, Vec<ChunkId>)> {
        let mut homes = Vec::new();
        for (pack, _, _) in self.packs.values() {
            for frame in pack.frames().expect("sound") {
                for (_, at, bytes) in with_positions(&frame).filter(|(found, ..)| *found == id) {
                    let home = Home {
                        pack: pack.id,
                        frame_offset: frame.offset,
                        frame_stored: frame.stored_bytes,
                        frame_raw: frame.raw_bytes,
                        at,
                        bytes,
                        codec: frame.codec,
                        base_count: u8::try_from(frame.bases.len()).expect("few"),
                    };
                    homes.push((home, frame.bases.clone()));
                }
            }
        }
        homes.sort_by_key(|(home, _)| key(home));
        homes
    }

    fn is_dead(&self, pack: PackId) -> bool {
        self.packs[&pack].1
    }

    /// Every question has the answer that it should have.
    fn check(&self, index: &Index, doing: &str) {
        let known = index.packs().expect("an index");
        let expected = self.packs.values().filter(|(_, is_dead, _)| !is_dead);
        let listed = |pack: &KnownPack| (pack.id, pack.bytes, pack.is_listed);
        let expected: Vec<_> = expected.map(|(pack, _, by)| (pack.id, pack.bytes, !by.is_empty())).collect();
        assert_eq!(known.iter().map(listed).collect::<Vec<_>>(), expected, "{doing}");
        let ids: Vec<ChunkId> = (0..CHUNKS + 5).map(chunk).collect();
        let (homes, likely) = (index.homes(&ids).expect("an index"), index.likely_homes(&ids).expect("an index"));
        let standing = index.standing(u64::MAX, u64::MAX).expect("an index").expect("no bound");
        for ((id, homes), likely) in ids.iter().zip(homes).zip(likely) {
            let expected = self.homes(*id);
            let alone = expected.iter().filter(|(home, _)| home.base_count == 0 && !self.is_dead(home.pack));
            let alone: Vec<_> = alone.map(|(home, _)| home.pack).collect();
            let told = standing.pack_of(id);
            assert_eq!(told.is_some(), !alone.is_empty(), "{doing}: {id}");
            assert!(told.is_none_or(|pack| alone.contains(&pack)), "{doing}: {id}");
            for found in [&homes, &likely] {
                assert!(found.is_sorted_by_key(|h| (self.is_dead(h.pack), h.base_count > 0)), "{doing}");
                let mut found: Vec<_> = found.iter().map(key).collect();
                found.sort_unstable();
                assert_eq!(found, expected.iter().map(|(home, _)| key(home)).collect::<Vec<_>>(), "{doing}: {id}");
            }
            let asked: Vec<_> = expected.iter().map(|(home, _)| (*id, *home)).collect();
            let bases: Vec<_> = expected.into_iter().map(|(_, bases)| bases).collect();
            assert_eq!(index.bases_at(&asked).expect("an index"), bases, "{doing}");
        }
    }

    /// What is added up over everything; this brings all rows together.
    fn check_totals(&self, index: &Index, doing: &str) {
        let living = |homes: Vec<(Home, Vec<ChunkId>)>| homes.into_iter().filter(|(h, _)| !self.is_dead(h.pack));
        let mut expected: Vec<_> = (0..CHUNKS)
            .flat_map(|n| living(self.homes(chunk(n))).map(move |(home, _)| (chunk(n), key(&home))))
            .collect();
        let mut found = Vec::new();
        index.for_each_chunk(&mut |id, home| found.push((id, key(&home)))).expect("an index");
        expected.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, expected, "{doing}");
        let different: BTreeSet<_> = expected.iter().map(|(id, _)| *id).collect();
        assert_eq!(index.unique_chunks().expect("an index").0, different.len() as u64, "{doing}");
        let frames: u64 = index.codec_totals().expect("an index").iter().map(|codec| codec.frames).sum();
        let packs = self.packs.values().filter(|(_, is_dead, _)| !is_dead);
        assert_eq!(frames, packs.map(|(pack, ..)| pack.frames().expect("sound").len() as u64).sum::<u64>(), "{doing}");
    }
}

/// A host with a second run that has the database open all the time, or not.
struct Scene {
    folder: tempfile::TempDir,
    dice: Dice,
    model: Model,
    packs_made: u64,
}

impl Scene {
    fn open(&self) -> Index {
        Index::open(self.folder.path(), REPOSITORY, &Silent).expect("opens")
    }

    fn some_packs(&mut self) -> Vec<PackId> {
        let ids: Vec<PackId> = self.model.packs.keys().copied().collect();
        ids.into_iter().filter(|_| self.dice.below(4) == 0).collect()
    }

    /// One operation on the index and on the model; what it was.
    fn step(&mut self, index: &mut Index) -> &'static str {
        match self.dice.below(10) {
            0..4 => {
                let count = 1 + self.dice.below(3);
                let packs: Vec<_> =
                    (self.packs_made..self.packs_made + count).map(|n| pack(n, &mut self.dice)).collect();
                self.packs_made += count;
                let by = (self.dice.below(2) == 0).then(|| IndexId::from_bytes([1; 16]));
                index.add_packs(&packs, by).expect("added");
                index.add_packs(&packs[..1], by).expect("known already");
                self.model.packs.extend(packs.into_iter().map(|p| (p.id, (p, false, by.into_iter().collect()))));
                "adding"
            }
            4 => {
                let gone = self.some_packs();
                index.remove_packs_keeping(&gone, 3).expect("removed");
                self.model.packs.retain(|id, _| !gone.contains(id));
                "removing"
            }
            5 => {
                let dead = self.some_packs();
                index.mark_dead(&dead).expect("marked");
                dead.iter().for_each(|id| self.model.packs.get_mut(id).expect("known").1 = true);
                "marking as dead"
            }
            6 => {
                index.remove_index_objects(&[1, 2].map(|n| IndexId::from_bytes([n; 16]))).expect("removed");
                self.model.packs.values_mut().for_each(|(.., by)| by.clear());
                "removing index objects"
            }
            7 => {
                let filtered_rows_min = [0, 1 << 20][usize::from(self.dice.below(3) == 0)];
                // Sometimes it is killed half way.
                let go_on = &mut || self.dice.below(8) > 0;
                index.merge(Merge { filtered_rows_min, slice_rows: 7, go_on }).expect("merged");
                "merging"
            }
            8 => {
                *index = self.open();
                "opening"
            }
            _ => {
                self.make_anew(index);
                "making anew"
            }
        }
    }

    /// As after the index was lost: a build that dies, then one that does not.
    fn make_anew(&mut self, index: &mut Index) {
        index.remove().expect("removed");
        *index = self.open();
        let object = IndexId::from_bytes([2; 16]);
        index.add_snapshots(&[(SnapshotId::from_bytes([3; 16]), [5])]).expect("kept");
        for is_killed in [true, false] {
            let mut build = begun(index);
            build.filtered_rows_min = self.dice.below(2) << 20;
            let packs = self.model.packs.values_mut();
            for (pack, is_dead, by) in packs {
                build.add(pack, object).expect("added");
                build.add(pack, object).expect("known already");
                (*is_dead, *by) = (false, [object].into());
            }
            build.finish_index_object(object).expect("recorded");
            if is_killed {
                let ended = build.finish(&Ended);
                assert!(ended.is_err() || self.model.packs.is_empty());
                if ended.is_err() {
                    assert!(index.is_empty().expect("an index"), "nothing is taken for complete");
                    fs::write(index.path().with_extension("building-7"), "left by a kill").expect("written");
                } else {
                    return;
                }
            } else {
                build.finish(&Silent).expect("made");
            }
        }
        assert_eq!(index.index_objects().expect("an index"), [object].into());
        assert_eq!(index.snapshots().expect("an index").len(), 1, "what comes from elsewhere is kept");
    }
}

#[test]
fn whatever_is_done_to_it_the_index_answers_as_a_simple_model() {
    let mut counts = BTreeMap::new();
    for seed in 0..12 {
        let folder = tempfile::tempdir().expect("a folder");
        let mut scene = Scene { folder, dice: Dice::new(seed), model: Model::default(), packs_made: 0 };
        let mut index = scene.open();
        let mut doing = format!("seed {seed}");
        for _ in 0..20 {
            let done = scene.step(&mut index);
            *counts.entry(done).or_insert(0) += 1;
            doing = format!("{doing}, {done}");
            scene.model.check(&index, &doing);
        }
        scene.model.check_totals(&index, &doing);
        scene.model.check(&index, &doing);
    }
    assert_eq!(counts.len(), 7, "each operation was done: {counts:?}");
}

#[test]
fn a_run_that_had_it_open_before_sees_what_another_merges() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut scene = Scene { folder, dice: Dice::new(99), model: Model::default(), packs_made: 0 };
    let (one, other) = (scene.open(), scene.open());
    for round in 0..6 {
        let new = pack(round, &mut scene.dice);
        one.add_packs(std::slice::from_ref(&new), None).expect("added");
        scene.model.packs.insert(new.id, (new, false, BTreeSet::new()));
        scene.model.check(&other, "added");
        one.merge(filtering()).expect("merged");
        // The other run holds the filter of an earlier state.
        scene.model.check(&other, "merged");
        assert!(one.filter_path().is_some_and(|path| path.exists()));
    }
    // Without the filter, or with a damaged one, answers are the same.
    let path = one.filter_path().expect("a file");
    fs::write(&path, b"damaged").expect("written");
    scene.model.check(&scene.open(), "damaged");
    fs::remove_file(&path).expect("removed");
    scene.model.check(&scene.open(), "removed");
}

#[test]
fn while_rows_are_brought_over_others_add_bring_over_and_find_everything() {
    for seed in 0..4 {
        let folder = tempfile::tempdir().expect("a folder");
        let mut scene = Scene { folder, dice: Dice::new(seed), model: Model::default(), packs_made: 0 };
        let (one, other) = (scene.open(), scene.open());
        let (mut number, mut slices) = (0, 0);
        for _ in 0..3 {
            let mut add = |scene: &mut Scene| {
                number += 1;
                let new = pack(number, &mut scene.dice);
                other.add_packs(std::slice::from_ref(&new), None).expect("nobody holds the database for long");
                scene.model.packs.insert(new.id, (new, false, BTreeSet::new()));
            };
            (0..6).for_each(|_| add(&mut scene));
            let go_on = &mut || {
                slices += 1;
                scene.model.check(&other, "between two slices");
                add(&mut scene);
                if scene.dice.below(4) == 0 {
                    other.merge(filtering()).expect("merged");
                    scene.model.check(&other, "another has merged");
                }
                // The last of a run that is killed, sometimes.
                scene.dice.below(9) > 0
            };
            one.merge(Merge { filtered_rows_min: 0, slice_rows: 5, go_on }).expect("merged");
            scene.model.check(&other, "merged");
            scene.model.check(&one, "merged");
        }
        assert!(slices > 3, "{slices}");
        // When all is quiet there is a filter again, and all rows are where it looks.
        one.merge(filtering()).expect("merged");
        other.merge(filtering()).expect("nothing to do");
        let levels = one.query(levels::levels).expect("an index");
        assert!(levels.recent == 0 && levels.mark.is_some(), "{levels:?}");
        scene.model.check(&scene.open(), "opened");
        scene.model.check_totals(&one, "merged");
    }
}

/// Adds chunks that were never there, in a pack.
fn add_fresh(index: &Index, number: u64, count: u64, ids: &mut Vec<ChunkId>) {
    let mut table = Vec::new();
    for n in 0..count {
        let id = chunk(1_000 * number + n);
        pack_table::append(&mut table, &FrameRecord::single(id, 100, 10, 3).expect("a record")).expect("adds up");
        ids.push(id);
    }
    let id = PackId::from_bytes(*chunk(number).as_bytes());
    let bytes = 64 + TRAILER_BYTES + 10 * count + table.len() as u64;
    let transaction = SnapshotId::from_bytes([8; 16]);
    let pack = PackSummary { id, bytes, kind: PackKind::Data, transaction, is_sealed: false, table };
    index.add_packs(&[pack], None).expect("added");
}

/// How many of these a backup would store again.
fn overlooked(index: &Index, ids: &[ChunkId]) -> usize {
    index.likely_homes(ids).expect("an index").iter().filter(|homes| homes.is_empty()).count()
}

#[test]
fn a_filter_that_lacks_what_another_has_brought_over_is_given_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let [one, other] = [(); 2].map(|()| Index::open(folder.path(), REPOSITORY, &Silent).expect("opens"));
    let mut ids = Vec::new();
    add_fresh(&one, 1, 800, &mut ids);
    one.merge(filtering()).expect("merged");
    // So few that the filter has room for them.
    add_fresh(&one, 2, 60, &mut ids);
    let mut number = 3;
    let go_on = &mut || {
        if number < 6 {
            add_fresh(&other, number, 10, &mut ids);
            other.merge(filtering()).expect("merged");
            // There is more to do for the first.
            add_fresh(&other, 10 + number, 100, &mut ids);
            number += 1;
        }
        true
    };
    one.merge(Merge { filtered_rows_min: 0, slice_rows: 10, go_on }).expect("merged");
    assert_eq!(overlooked(&one, &ids), 0);
}

#[test]
fn a_filter_made_while_another_brings_rows_over_gets_no_mark() {
    let folder = tempfile::tempdir().expect("a folder");
    let [one, other] = [(); 2].map(|()| Index::open(folder.path(), REPOSITORY, &Silent).expect("opens"));
    let mut ids = Vec::new();
    add_fresh(&one, 1, 400, &mut ids);
    let (told, tell) = std::sync::mpsc::channel();
    let (proceed, may_proceed) = std::sync::mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let merging = scope.spawn(move || {
            let go_on = &mut || told.send(()).is_ok() && may_proceed.recv().is_ok();
            other.merge(Merge { filtered_rows_min: 0, slice_rows: 5, go_on }).expect("merged");
        });
        tell.recv().expect("a slice of the other");
        let mut number = 2;
        let go_on = &mut || {
            // Whatever this run has seen, the other brings more over.
            add_fresh(&one, number, 50, &mut ids);
            number += 1;
            proceed.send(()).is_ok() && tell.recv().is_ok()
        };
        one.merge(Merge { filtered_rows_min: 0, slice_rows: 1 << 10, go_on }).expect("merged");
        assert_eq!(overlooked(&one, &ids), 0, "the other is half way");
        drop((proceed, tell));
        merging.join().expect("no panic");
    });
    assert_eq!(overlooked(&one, &ids), 0);
}

#[test]
fn a_writer_brings_rows_over_only_if_they_are_many() {
    let index = Index::in_memory().expect("memory");
    index.add_packs(&[pack_of(1)], None).expect("added");
    let recent = index.query(levels::levels).expect("an index").recent;
    let pretend = |settled: u64, recent: u64| {
        index.query(|db| db.execute("UPDATE levels SET settled = ?, recent = ?", [settled as i64, recent as i64]))
    };
    let stays = || {
        index.merge_recent_if_large().expect("an index");
        let count = |db: &Connection| db.query_row("SELECT count(*) FROM recent", [], |row| row.get::<_, i64>(0));
        index.query(count).expect("an index") == i64::try_from(recent).expect("few")
    };
    for (settled, recent) in [(0, 10), (0, 1 << 18), (50_000_000, 6_000_000)] {
        pretend(settled, recent).expect("an index");
        assert!(stays(), "{settled} {recent}");
    }
    pretend(50_000_000, 6_300_000).expect("an index");
    assert!(!stays());
}

#[test]
fn a_filter_spares_the_look_into_the_large_table() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = Index::open(folder.path(), REPOSITORY, &Silent).expect("opens");
    let mut dice = Dice::new(1);
    let packs: Vec<_> = (0..40).map(|number| pack(number, &mut dice)).collect();
    index.add_packs(&packs, None).expect("added");
    index.merge(filtering()).expect("merged");
    let ids: Vec<_> = (0..CHUNKS).map(chunk).collect();
    let known = || index.likely_homes(&ids).expect("an index").iter().filter(|homes| !homes.is_empty()).count();
    assert!(known() > 50);
    // An empty filter of the right state hides everything: it is what is asked.
    let mark = index.query(levels::levels).expect("an index").mark.expect("a filter");
    filter::Filter::for_ids(10, mark).save(&index.filter_path().expect("a file")).expect("written");
    index.lock().filter = levels::Held::Unknown;
    assert_eq!(known(), 0);
    assert!(index.homes(&ids).expect("an index").iter().any(|homes| !homes.is_empty()), "reading never asks it");
}

#[test]
fn who_is_not_alone_or_has_packs_already_does_not_build() {
    let folder = tempfile::tempdir().expect("a folder");
    let index = Index::open(folder.path(), REPOSITORY, &Silent).expect("opens");
    let other = Index::open(folder.path(), REPOSITORY, &Silent).expect("opens");
    assert!(is_declined(&index), "another has it open");
    drop(other);
    drop(begun(&index));
    let other = Index::open(folder.path(), REPOSITORY, &Silent).expect("nobody holds it alone any more");
    drop(other);
    index.add_packs(&[pack(1, &mut Dice::new(1))], None).expect("added");
    assert!(is_declined(&index), "there is something in it");
    assert!(is_declined(&Index::in_memory().expect("memory")));
    // Who goes on with a removed database keeps nobody from making the next one.
    Index::open(folder.path(), REPOSITORY, &Silent).expect("opens").remove().expect("removed");
    let next = Index::open(folder.path(), REPOSITORY, &Silent).expect("opens");
    assert!(begun(&next).finish(&Silent).expect("made"));
    assert!(next.is_empty().expect("an index") && !index.is_empty().expect("an index"));
    assert_eq!(index.packs().expect("an index").len(), 1);
    drop(index);
    next.add_packs(&[pack(2, &mut Dice::new(1))], None).expect("the one that closed took nothing with it");
    let packs = Index::open(folder.path(), REPOSITORY, &Silent).expect("opens").packs();
    assert_eq!(packs.expect("an index").len(), 1);
}
