//! Plans of made-up repositories, carried out on paper: everything is delivered once, read once, and little is kept.

use super::chains::Lookup;
use super::*;
use crate::error::Result;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Bytes of the content of a frame, unless a test says otherwise.
const RAW_BYTES: u32 = 2000;
const AMPLE_BYTES: u64 = 16 << 20;

/// Chunks by number, each in a frame of its own.
#[derive(Debug, Default)]
struct World {
    homes: HashMap<ChunkId, Home>,
    bases: HashMap<(ChunkId, PackId), Vec<ChunkId>>,
    ends: BTreeMap<PackId, u64>,
}

impl Lookup for World {
    fn bases(&self, chunks: &[(ChunkId, PackId)]) -> Result<Vec<Vec<ChunkId>>> {
        Ok(chunks.iter().map(|key| self.bases.get(key).cloned().unwrap_or_default()).collect())
    }

    fn homes(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Home>>> {
        Ok(ids.iter().map(|id| self.homes.get(id).copied().into_iter().collect()).collect())
    }
}

fn id(chunk: u32) -> ChunkId {
    ChunkId::of(&chunk.to_le_bytes())
}

impl World {
    /// Adds a chunk behind what the pack holds so far.
    fn add(&mut self, pack: u8, chunk: u32, stored: u32, bases: &[u32]) {
        let pack = PackId::from_bytes([pack; 32]);
        let end = self.ends.entry(pack).or_insert(64);
        let home = Home {
            pack,
            frame_offset: *end,
            frame_stored: stored,
            frame_raw: RAW_BYTES,
            at: 0,
            bytes: RAW_BYTES,
            codec: 0,
            base_count: u8::try_from(bases.len()).expect("few"),
        };
        *end += u64::from(stored);
        self.homes.insert(id(chunk), home);
        if !bases.is_empty() {
            self.bases.insert((id(chunk), pack), bases.iter().map(|&base| id(base)).collect());
        }
    }

    /// Chunk after chunk of a file.
    fn wanted(&self, job: u32, chunks: impl IntoIterator<Item = u32>) -> Vec<(Home, Want)> {
        let wanted = (0u64..).zip(chunks).map(|(at, chunk)| {
            let want = Want { job, bytes: RAW_BYTES, offset: at * u64::from(RAW_BYTES), id: id(chunk) };
            (self.homes[&id(chunk)], want)
        });
        wanted.collect()
    }

    /// How many frames a chunk stands on.
    fn closure(&self, chunk: ChunkId) -> u64 {
        let mut found = HashSet::new();
        let mut open = vec![chunk];
        while let Some(chunk) = open.pop() {
            let bases = self.bases.get(&(chunk, self.homes[&chunk].pack)).into_iter().flatten();
            open.extend(bases.filter(|base| found.insert(**base)));
        }
        u64::try_from(found.len()).expect("few")
    }

    fn plan(&self, wanted: &[(Home, Want)], kept_bytes_max: u64) -> Carried {
        let chains = Chains::follow(wanted, self).expect("looks up");
        let units = plan(wanted.to_vec(), &chains, kept_bytes_max);
        let carried = self.carry_out(units);
        let mut expected: Vec<Want> = wanted.iter().map(|(_, want)| *want).collect();
        let mut delivered = carried.delivered.clone();
        delivered.extend(carried.units.iter().flat_map(|unit| &unit.elsewhere));
        for list in [&mut expected, &mut delivered] {
            list.sort_by_key(|want| (want.job, want.offset));
        }
        assert_eq!(delivered, expected, "every chunk goes everywhere it belongs, once");
        carried
    }

    /// Does on paper what is done with units, and checks that every frame finds the bases that it needs.
    fn carry_out(&self, units: Vec<Unit>) -> Carried {
        let chunks: HashMap<(PackId, u64), ChunkId> =
            self.homes.iter().map(|(id, home)| ((home.pack, home.frame_offset), *id)).collect();
        let mut carried = Carried::default();
        for unit in &units {
            let mut kept: BTreeMap<u32, (ChunkId, u32)> = BTreeMap::new();
            for read in &unit.reads {
                assert!(read.bytes() <= READ_BYTES_MAX);
                *carried.ranges.entry((read.pack, read.offset(), read.bytes())).or_default() += 1;
                for frame in &read.frames {
                    let chunk = chunks[&(read.pack, frame.offset)];
                    let found: Vec<ChunkId> = frame.bases.iter().map(|base| kept[&base.slot].0).collect();
                    assert_eq!(found, self.bases.get(&(chunk, read.pack)).cloned().unwrap_or_default());
                    for base in &frame.bases {
                        let times = &mut kept.get_mut(&base.slot).expect("kept").1;
                        *times -= 1;
                        if *times == 0 {
                            kept.remove(&base.slot);
                        }
                    }
                    if let Some(keep) = frame.keep {
                        assert!(keep.times > 0 && kept.insert(keep.slot, (chunk, keep.times)).is_none());
                    }
                    carried.delivered.extend(frame.uses.iter().map(|found| found.want));
                    *carried.times_read.entry(chunk).or_default() += 1;
                    carried.kept_max = carried.kept_max.max(kept.len() as u64 * u64::from(RAW_BYTES));
                }
            }
            assert!(kept.is_empty(), "what is kept is used up");
        }
        carried.units = units;
        carried
    }
}

#[derive(Default)]
struct Carried {
    units: Vec<Unit>,
    delivered: Vec<Want>,
    times_read: HashMap<ChunkId, u32>,
    ranges: BTreeMap<(PackId, u64, u64), u32>,
    kept_max: u64,
}

impl Carried {
    fn frames_read(&self) -> u32 {
        self.times_read.values().sum()
    }

    fn reads(&self) -> usize {
        self.units.iter().map(|unit| unit.reads.len()).sum()
    }

    fn elsewhere(&self) -> usize {
        self.units.iter().map(|unit| unit.elsewhere.len()).sum()
    }

    /// True if no byte of any pack is read twice.
    fn is_read_once(&self) -> bool {
        let mut end = None;
        self.ranges.iter().all(|(&(pack, offset, bytes), &times)| {
            let is_apart = end.is_none_or(|end| end <= (pack, offset));
            end = Some((pack, offset + bytes));
            is_apart && times == 1
        })
    }
}

fn alone(pack: u8, frame: u64, at: u32, job: u32, offset: u64) -> (Home, Want) {
    let home = Home {
        pack: PackId::from_bytes([pack; 32]),
        frame_offset: frame,
        frame_stored: 1000,
        frame_raw: RAW_BYTES,
        at,
        bytes: 500,
        codec: 0,
        base_count: 0,
    };
    (home, Want { job, bytes: 500, offset, id: ChunkId::of(&[pack]) })
}

fn reads(wanted: Vec<(Home, Want)>) -> Vec<PlannedRead> {
    let units = plan(wanted, &Chains::default(), AMPLE_BYTES);
    assert!(units.iter().all(|unit| unit.reads.len() == 1 && unit.elsewhere.is_empty()));
    units.into_iter().flat_map(|unit| unit.reads).collect()
}

#[test]
fn every_want_is_planned_once_and_every_frame_is_read_once() {
    let list = vec![
        alone(2, 64, 0, 1, 0),
        alone(1, 1064, 0, 0, 500),
        alone(1, 64, 0, 0, 0),
        alone(1, 64, 500, 0, 1000),
        alone(1, 64, 0, 7, 0),
    ];
    let reads = reads(list);
    assert_eq!(reads.len(), 2);
    assert_eq!((reads[0].offset(), reads[0].bytes(), reads[0].frames.len()), (64, 2000, 2));
    assert_eq!(reads[0].frames[0].uses.len(), 3);
    assert_eq!(reads.iter().flat_map(|r| &r.frames).map(|f| f.uses.len()).sum::<usize>(), 5);
    assert!(reads.iter().flat_map(|r| &r.frames).all(|f| f.bases.is_empty() && f.keep.is_none()));
}

#[test]
fn far_frames_and_long_ranges_are_read_apart() {
    let far = 64 + 1000 + GAP_BYTES_MAX;
    assert_eq!(reads(vec![alone(1, 64, 0, 0, 0), alone(1, far, 0, 0, 500)]).len(), 1);
    assert_eq!(reads(vec![alone(1, 64, 0, 0, 0), alone(1, far + 1, 0, 0, 500)]).len(), 2);
    let dense = (0..20_000).map(|i| alone(1, 64 + i * 1000, 0, 0, i * 500)).collect();
    let reads = reads(dense);
    assert!(reads.len() == 4 && reads.iter().all(|r| r.bytes() <= READ_BYTES_MAX));
}

#[test]
fn a_read_alternates_if_files_would_be_written_in_many_pieces() {
    let read = |list: Vec<(Home, Want)>| reads(list).remove(0);
    let file = |job: u32, from: u64| move |n: u64| alone(1, 64 + n * 1000, 0, job, (n - from) * 500);
    let one: Vec<_> = (0..100).map(file(0, 0)).collect();
    assert!(!read(one.clone()).alternates());
    // The next file behind it; and another that shares all chunks.
    assert!(!read([one.clone(), (100..150).map(file(1, 100)).collect()].concat()).alternates());
    assert!(read([one, (0..100).map(file(1, 0)).collect()].concat()).alternates());
    // Two parts of a file in turns.
    let in_turns = (0..100).map(|n| alone(1, 64 + n * 1000, 0, 0, (n / 2 + n % 2 * 50) * 500)).collect();
    assert!(read(in_turns).alternates());
    // Small files stay small.
    assert!(
        !read((0..100).map(|n| alone(1, 64 + n / 10 * 1000, 0, u32::try_from(n).expect("small"), 0)).collect())
            .alternates()
    );
}

#[test]
fn versions_of_a_file_are_read_with_what_they_stand_on() {
    let mut world = World::default();
    (0..100).for_each(|n| world.add(1, n, 100_000, &[]));
    (1..10).for_each(|version| (0..100).for_each(|n| world.add(2, version * 100 + n, 30_000, &[n])));
    let all: Vec<_> = (0..10).flat_map(|version| world.wanted(version, version * 100..version * 100 + 100)).collect();
    let carried = world.plan(&all, AMPLE_BYTES);
    assert_eq!((carried.units.len(), carried.frames_read(), carried.elsewhere()), (2, 1000, 0));
    assert!(carried.is_read_once());
    // One read of each version for each unit: what is for one file comes in one piece.
    assert_eq!(carried.reads(), 20);
    // Of one version only: the first is read for the sake of it.
    let last = world.wanted(0, 900..1000);
    let carried = world.plan(&last, AMPLE_BYTES);
    assert_eq!((carried.units.len(), carried.reads(), carried.frames_read()), (2, 4, 200));
    assert!(carried.is_read_once());
}

#[test]
fn chains_are_read_from_the_bottom() {
    let mut world = World::default();
    (0..4).for_each(|n| world.add(3, n, 1000, &[]));
    (0..4).for_each(|n| world.add(2, 10 + n, 1000, &[n]));
    // Numbers of four bytes on numbers of two bytes: two chunks on each, as there are twice as many bytes.
    (0..8).for_each(|n| world.add(1, 20 + n, 1000, &[10 + n / 2]));
    let wanted = [world.wanted(0, 20..28), world.wanted(1, 10..14)].concat();
    let carried = world.plan(&wanted, AMPLE_BYTES);
    assert_eq!((carried.units.len(), carried.reads(), carried.frames_read()), (1, 3, 16));
    assert!(carried.is_read_once());
    assert_eq!(carried.units[0].reads.iter().map(|r| r.pack.as_bytes()[0]).collect::<Vec<_>>(), [3, 2, 1]);
}

#[test]
fn a_base_that_two_units_need_is_read_in_both_and_delivered_in_one() {
    let mut world = World::default();
    let many = u32::try_from(READ_BYTES_MAX / 100_000).expect("few");
    (0..2 * many).for_each(|n| world.add(1, n, 100_000, &[]));
    // Text that has moved a little: each chunk lies on two.
    (0..2 * many - 1).for_each(|n| world.add(2, 1000 + n, 100, &[n, n + 1]));
    let wanted = [world.wanted(0, 0..2 * many), world.wanted(1, 1000..1000 + 2 * many - 1)].concat();
    let carried = world.plan(&wanted, AMPLE_BYTES);
    assert_eq!((carried.units.len(), carried.elsewhere()), (2, 0));
    let twice: Vec<_> = carried.times_read.iter().filter(|(_, times)| **times > 1).collect();
    assert_eq!(twice, [(&id(many), &2)]);
}

#[test]
fn what_cannot_be_planned_is_left_to_the_reading_of_single_chunks() {
    let mut world = World::default();
    world.add(1, 0, 1000, &[]);
    world.add(1, 1, 1000, &[0, 99]);
    world.add(1, 2, 1000, &[1]);
    // A circle, one that stands on it, and one that stands on itself.
    world.add(1, 10, 1000, &[11]);
    world.add(1, 11, 1000, &[12]);
    world.add(1, 12, 1000, &[10]);
    world.add(1, 13, 1000, &[0, 10]);
    world.add(1, 14, 1000, &[14]);
    // A table that names fewer bases than it counts.
    world.add(1, 15, 1000, &[0]);
    world.homes.get_mut(&id(15)).expect("added").base_count = 2;
    let wanted = world.wanted(0, [0, 1, 2, 10, 11, 13, 14, 15]);
    let carried = world.plan(&wanted, AMPLE_BYTES);
    assert_eq!((carried.frames_read(), carried.elsewhere()), (1, 7));
}

#[test]
fn chains_are_followed_so_far_and_no_further() {
    let mut world = World::default();
    world.add(1, 0, 1000, &[]);
    (1..=200).for_each(|n| world.add(1, n, 1000, &[n - 1]));
    let carried = world.plan(&world.wanted(0, [64]), AMPLE_BYTES);
    assert_eq!((carried.frames_read(), carried.elsewhere(), carried.kept_max), (65, 0, u64::from(RAW_BYTES)));
    let carried = world.plan(&world.wanted(0, [65]), AMPLE_BYTES);
    assert_eq!((carried.frames_read(), carried.elsewhere()), (0, 1));
    // Nothing is read for the sake of what cannot be planned.
    let carried = world.plan(&world.wanted(0, [200, 0]), AMPLE_BYTES);
    assert_eq!((carried.frames_read(), carried.elsewhere()), (1, 1));
}

#[test]
fn a_large_family_is_read_in_groups_and_little_is_kept() {
    let mut world = World::default();
    let kept_bytes_max = 20 * u64::from(RAW_BYTES);
    world.add(1, 0, 1000, &[]);
    for n in 0..500 {
        world.add(2, 1000 + n, 1000, &[0]);
        world.add(3, 2000 + n, 1000, &[1000 + n]);
        world.add(3, 3000 + n, 1000, &[1000 + n]);
    }
    let wanted = world.wanted(0, (0..1).chain(1000..1500).chain(2000..2500).chain(3000..3500));
    let carried = world.plan(&wanted, kept_bytes_max);
    assert_eq!((carried.units.len(), carried.frames_read()), (1, 1501));
    assert!(carried.is_read_once());
    assert!(carried.kept_max <= kept_bytes_max, "{}", carried.kept_max);
    // Without dependents of their own, fifty on one anchor are read as one level.
    let carried = world.plan(&world.wanted(0, 1000..1050), kept_bytes_max);
    assert_eq!((carried.units.len(), carried.reads(), carried.kept_max), (1, 2, u64::from(RAW_BYTES)));
}

#[test]
fn frames_among_others_that_are_read_at_another_time_are_not_read_along() {
    let mut world = World::default();
    let many = u32::try_from(READ_BYTES_MAX / 100_000).expect("few");
    (0..2 * many).for_each(|n| world.add(1, n, 100_000, &[]));
    // What stands on the two units lies in turns.
    (0..many).for_each(|n| [n, many + n].into_iter().for_each(|n| world.add(2, 1000 + n, 1000, &[n])));
    let carried = world.plan(&world.wanted(0, 1000..1000 + 2 * many), AMPLE_BYTES);
    assert_eq!(carried.units.len(), 2);
    assert!(carried.is_read_once());
}

/// Layers of chunks, each frame on up to three of the layer below, in packs that do not follow the order of the layers.
fn worlds() -> impl Strategy<Value = World> {
    let layers = prop::collection::vec(prop::collection::vec(prop::collection::vec(0u32..40, 1..4), 0..60), 0..5);
    (layers, 1u32..60, any::<[u8; 8]>()).prop_map(|(layers, roots, packs)| {
        let mut world = World::default();
        let pack = |n: u32| packs[usize::try_from(n % 8).expect("small")] % 4;
        (0..roots).for_each(|n| world.add(pack(n / 10), n, 90_000 + n, &[]));
        let mut below = 0..roots;
        let mut next = roots;
        for layer in layers {
            for bases in &layer {
                let mut bases: Vec<u32> = bases.iter().map(|n| below.start + n % (below.end - below.start)).collect();
                bases.dedup();
                world.add(pack(next / 7), next, 5000 + next, &bases);
                next += 1;
            }
            if !layer.is_empty() {
                below = next - u32::try_from(layer.len()).expect("few")..next;
            }
        }
        world
    })
}

proptest! {
    #[test]
    fn whatever_stands_on_what_everything_is_delivered_once_and_little_is_kept(
        world in worlds(),
        chosen in prop::collection::vec((0u32..4, 0u32..300), 1..200),
        kept_frames in 1u64..60,
    ) {
        let chunks = u32::try_from(world.homes.len()).expect("few");
        let mut files: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (job, chunk) in chosen {
            files.entry(job).or_default().push(chunk % chunks);
        }
        let wanted: Vec<_> = files.iter().flat_map(|(&job, list)| world.wanted(job, list.iter().copied())).collect();
        let carried = world.plan(&wanted, kept_frames * u64::from(RAW_BYTES));
        prop_assert_eq!(carried.elsewhere(), 0);
        // Of a unit every frame is read once.
        let units = u32::try_from(carried.units.len()).expect("few");
        prop_assert!(carried.times_read.values().all(|&times| times <= units));
        // Second bases may draw in a part of the unit ahead of its turn.
        let deepest = wanted.iter().map(|(_, want)| world.closure(want.id)).max().expect("some");
        prop_assert!(carried.kept_max <= (kept_frames + 5 * deepest) * u64::from(RAW_BYTES));
    }

    #[test]
    fn frames_that_stand_alone_are_planned_in_one_pass(
        list in prop::collection::vec((0u8..3, 0u64..20_000, 0u32..5), 0..300),
    ) {
        let wanted = list.iter().map(|&(pack, frame, job)| alone(pack, 64 + frame * 1000, 0, job, frame)).collect();
        let found: Vec<_> = reads(wanted).iter().map(|read| (read.pack, read.offset(), read.bytes())).collect();
        let mut frames: Vec<_> = list.iter().map(|&(pack, n, _)| (PackId::from_bytes([pack; 32]), 64 + n * 1000)).collect();
        frames.sort_unstable();
        frames.dedup();
        let mut expected: Vec<(PackId, u64, u64)> = Vec::new();
        for (pack, offset) in frames {
            match expected.last_mut() {
                Some((last, from, bytes))
                    if *last == pack
                        && offset - (*from + *bytes) <= GAP_BYTES_MAX
                        && offset + 1000 - *from <= READ_BYTES_MAX => *bytes = offset + 1000 - *from,
                _ => expected.push((pack, offset, 1000)),
            }
        }
        prop_assert_eq!(found, expected);
    }
}
