//! Small packs and their parity, damaged in every way.

use super::*;
use crate::codec::parity::ParityEncoder;
use crate::repo::test_support::{self, Node, noise, open};
use crate::storage::simulated::{Fault, Operation, SimulatedStorage};
use std::sync::{Mutex, PoisonError};

/// A repository with one snapshot, its largest pack and what the snapshot holds.
fn sample() -> (SimulatedStorage, PackId, Vec<u8>) {
    let storage = test_support::storage_with_parity();
    let repo = open(&storage);
    test_support::save(&repo, 10, &[("big", Node::File(noise(1, 50_000))), ("small", Node::File(noise(2, 30)))]);
    let packs = storage.objects().into_iter().filter_map(|(name, bytes)| Some((names::pack_id(&name)?, bytes)));
    let (pack, bytes) = packs.max_by_key(|(_, bytes)| bytes.len()).expect("a pack");
    (storage, pack, bytes)
}

fn assert_reads(storage: &SimulatedStorage, why: &str) {
    let repo = open(storage);
    let snapshot = repo.snapshots().remove(0);
    let contents = test_support::contents(&repo, &snapshot).unwrap_or_else(|e| panic!("{why}: {e}"));
    assert!(contents["big"] == noise(1, 50_000) && contents["small"] == noise(2, 30), "{why}");
}

fn pack_name(pack: PackId) -> ObjectName {
    names::pack(pack).expect("a name")
}

fn parity_name(pack: PackId) -> ObjectName {
    names::parity(pack).expect("a name")
}

#[test]
fn every_pack_gets_parity_of_the_described_length_and_only_where_asked_for() {
    let (storage, _, _) = sample();
    let repo = open(&storage);
    let objects = storage.objects();
    let packs: Vec<_> = objects.iter().filter_map(|(name, b)| Some((names::pack_id(name)?, b.len() as u64))).collect();
    assert_eq!(packs.len(), 2);
    for (pack, bytes) in packs {
        let shape = Shape::of(bytes).expect("a pack");
        assert_eq!(objects[&parity_name(pack)].len() as u64, sidecar::object_bytes(&shape));
        assert_eq!(check(&repo, pack, Some(bytes), true).expect("readable"), ParityState::Sound);
        assert!(matches!(check(&repo, pack, Some(bytes + 1), false), Ok(ParityState::Damaged(_))));
        // Made again from the stored pack it is the same.
        assert!(storage.remove(&parity_name(pack)));
        assert_eq!(check(&repo, pack, Some(bytes), true).expect("readable"), ParityState::Absent);
        create(&repo, pack).expect("the pack is sound");
        assert_eq!(storage.objects()[&parity_name(pack)], objects[&parity_name(pack)]);
        create(&repo, pack).expect("what is there stays");
    }
    let plain = test_support::storage();
    test_support::save(&open(&plain), 10, &[("big", Node::File(noise(1, 50_000)))]);
    assert!(plain.names().iter().all(|name| names::parity_id(name).is_none()));
}

#[test]
fn what_is_lost_at_any_place_is_mended_up_to_the_number_of_parity_shards() {
    let (storage, pack, bytes) = sample();
    let shape = Shape::of(bytes.len() as u64).expect("a pack");
    assert_eq!((shape.shard_bytes, shape.parity_shards), (256, 7));
    let damaged: Vec<(String, Vec<u8>, bool)> = [
        ("a byte in seven shards", (0..7).map(|n| (n * 7000, 1)).collect::<Vec<_>>(), true),
        ("a byte in eight shards", (0..8).map(|n| (n * 6000, 1)).collect(), false),
        ("the header", vec![(0, 64)], true),
        ("table and trailer", vec![(bytes.len() - 800, 800)], true),
        ("a hole", vec![(20_000, 6 * 256)], true),
        ("a wider hole", vec![(20_000, 8 * 256)], false),
    ]
    .into_iter()
    .map(|(why, holes, is_mendable)| {
        let mut changed = bytes.clone();
        holes.iter().for_each(|&(at, len)| changed[at..at + len].iter_mut().for_each(|byte| *byte ^= 0x5a));
        (why.to_owned(), changed, is_mendable)
    })
    .chain([
        ("cut short".to_owned(), bytes[..bytes.len() - 6 * 256].to_vec(), true),
        ("cut too short".to_owned(), bytes[..bytes.len() / 2].to_vec(), false),
        ("empty".to_owned(), vec![], false),
        ("too long".to_owned(), [&bytes[..], &[7; 5000]].concat(), true),
        ("a byte too many inside".to_owned(), [&bytes[..20_001], &[7], &bytes[20_001..]].concat(), true),
        ("bytes missing inside".to_owned(), [&bytes[..20_001], &bytes[21_000..]].concat(), true),
        ("the front missing".to_owned(), bytes[700..].to_vec(), true),
    ])
    .collect();
    for (why, changed, is_mendable) in damaged {
        storage.insert(pack_name(pack), changed);
        let repo = open(&storage);
        match mend(&repo, pack) {
            Ok(mended) => assert!(is_mendable && mended.bytes == bytes, "{why}"),
            Err(error) => assert!(!is_mendable && error.kind() == Kind::Damaged, "{why}: {error}"),
        }
        if is_mendable {
            assert_reads(&storage, &why);
        }
    }
}

#[test]
fn rot_in_the_parity_itself_costs_only_the_shards_that_it_hits() {
    let (storage, pack, bytes) = sample();
    let whole = storage.objects()[&parity_name(pack)].clone();
    let mut hurt = bytes.clone();
    hurt[30_000] ^= 1;
    for at in (0..whole.len()).step_by(61).chain([whole.len() - 1, whole.len() - 160]) {
        let mut rotten = whole.clone();
        rotten[at] ^= 0x10;
        storage.insert(parity_name(pack), rotten);
        storage.insert(pack_name(pack), bytes.clone());
        let state = check(&open(&storage), pack, Some(bytes.len() as u64), true).expect("readable");
        assert!(matches!(state, ParityState::Damaged(_)), "byte {at}: {state:?}");
        storage.insert(pack_name(pack), hurt.clone());
        assert_eq!(mend(&open(&storage), pack).expect("within parity").bytes, bytes, "byte {at}");
    }
    // Both headers; all of the front; all of the end; everything but one shard of parity.
    let table = 8 * Shape::of(bytes.len() as u64).expect("a pack").shards();
    let len = whole.len();
    let holes = [
        [0..160, len - 160..len],
        [0..160, 160..160 + table],
        [len - 160 - table..len - 160, len - 160..len],
        [0..0, 160 + table..160 + table + 6 * 256],
    ];
    for hole in holes {
        let mut rotten = whole.clone();
        hole.iter().for_each(|range| rotten[range.clone()].fill(0xee));
        storage.insert(parity_name(pack), rotten);
        assert_eq!(mend(&open(&storage), pack).expect("within parity").bytes, bytes, "{hole:?}");
    }
    for kept in [&whole[..len - 500], &whole[300..], &[&whole[..900], &[1, 2, 3], &whole[900..]].concat()] {
        storage.insert(parity_name(pack), kept.to_vec());
        assert_eq!(mend(&open(&storage), pack).expect("within parity").bytes, bytes, "{} bytes", kept.len());
        let state = check(&open(&storage), pack, Some(bytes.len() as u64), false).expect("readable");
        assert!(matches!(state, ParityState::Damaged(_)), "{state:?}");
    }
}

#[test]
fn the_parity_of_another_pack_or_repository_is_of_no_use_and_does_no_harm() {
    let (storage, pack, bytes) = sample();
    let objects = storage.objects();
    let other = objects.keys().filter_map(names::pack_id).find(|id| *id != pack).expect("two packs");
    storage.insert(parity_name(pack), objects[&parity_name(other)].clone());
    assert!(matches!(check(&open(&storage), pack, Some(bytes.len() as u64), false), Ok(ParityState::Damaged(_))));
    assert!(storage.corrupt(&pack_name(pack), 1000, 1));
    assert_eq!(mend(&open(&storage), pack).expect_err("nothing to mend with").kind(), Kind::Damaged);
    assert!(storage.remove(&parity_name(pack)));
    assert_eq!(mend(&open(&storage), pack).expect_err("nothing to mend with").kind(), Kind::Missing);
    assert_eq!(create(&open(&storage), pack).expect_err("not of a damaged pack").kind(), Kind::Damaged);
    assert!(!storage.names().contains(&parity_name(pack)));
}

#[test]
fn a_header_that_claims_too_much_is_refused_before_anything_is_made_of_it() {
    let (storage, pack, _) = sample();
    let repo = open(&storage);
    for claimed in [1u64 << 31, 1 << 30, u64::MAX, 0, (1 << 31) + 1] {
        let shape = Shape { pack_bytes: claimed, shard_bytes: 512 << 10, data_shards: 4096, parity_shards: 128 };
        let mut header = sidecar::header(repo.id(), pack, &shape, &[]).expect("a header");
        let forged = [&header[..], &header[..]].concat();
        storage.insert(parity_name(pack), forged);
        assert_eq!(mend(&repo, pack).expect_err("refused").kind(), Kind::Damaged, "{claimed}");
        assert!(matches!(check(&repo, pack, None, true), Ok(ParityState::Damaged(_))));
        // A newer version is said so only if its checksum is right.
        header[8] = 2;
        let hash = blake3::hash(&header[..128]);
        header[128..].copy_from_slice(hash.as_bytes());
        storage.insert(parity_name(pack), header);
        assert_eq!(mend(&repo, pack).expect_err("refused").kind(), Kind::FormatTooNew);
    }
}

#[test]
fn ranges_that_cannot_be_read_count_as_lost_and_a_storage_that_fails_is_no_damage() {
    let (storage, pack, bytes) = sample();
    // Whatever touches the sixth shard fails, also when it is read with others.
    let hurt = ByteRange::new(5 * 256, 1).expect("a range");
    let seen = std::sync::Arc::new(Mutex::new(0u64));
    let is_pack = pack_name(pack).to_string();
    let repo = open(&storage);
    // The script sees no offsets: the first read, of all shards together, fails, and then that of the sixth.
    let counted = std::sync::Arc::clone(&seen);
    let fails = move |operation: Operation, name: &str| {
        let is_read = operation == Operation::ReadRange && name == is_pack;
        let mut count = counted.lock().unwrap_or_else(PoisonError::into_inner);
        *count += u64::from(is_read);
        is_read && (*count == 1 || *count == 7)
    };
    storage.fail(0..u64::MAX, fails, Fault::Error(Kind::Unreachable));
    let mended = mend(&repo, pack).expect("one shard is within parity");
    assert_eq!((mended.bytes == bytes, mended.shards_bad), (true, 1), "{hurt:?}");
    storage.heal();
    let is_pack = pack_name(pack).to_string();
    storage.fail(0..u64::MAX, move |_, name| name == is_pack, Fault::Error(Kind::Unreachable));
    assert_eq!(mend(&repo, pack).expect_err("nothing is read").kind(), Kind::Unreachable);
}

#[test]
fn a_damaged_pack_is_mended_once_and_said_so() {
    struct Listener(Mutex<Vec<String>>);
    impl crate::events::Observer for Listener {
        fn on_event(&self, event: &crate::events::Event<'_>) {
            if let crate::events::Event::Warning { text } = event {
                self.0.lock().unwrap_or_else(PoisonError::into_inner).push((*text).to_owned());
            }
        }
        fn is_interrupted(&self) -> bool {
            false
        }
    }
    let (storage, pack, _) = sample();
    for at in [100, 20_000, 40_000] {
        assert!(storage.corrupt(&pack_name(pack), at, 1));
    }
    let repo = open(&storage);
    let listener = std::sync::Arc::new(Listener(Mutex::new(Vec::new())));
    repo.report_mended_to(listener.clone());
    let snapshot = repo.snapshots().remove(0);
    storage.clear_calls();
    for _ in 0..2 {
        let contents = test_support::contents(&repo, &snapshot).expect("within parity");
        assert_eq!(contents["big"], noise(1, 50_000));
    }
    assert_eq!(repo.mended_packs(), [pack]);
    let told = listener.0.lock().expect("whole").clone();
    assert!(told.len() == 1 && told[0].contains(&pack.to_hex()) && told[0].contains("`ckpt repair`"), "{told:?}");
    let sizes = storage.calls().iter().filter(|call| call.operation == Operation::Size).count();
    assert_eq!(sizes, 2, "the pack and its parity were looked at once");
}

#[test]
fn a_pack_of_any_length_and_number_of_pieces_is_whole_and_gets_the_parity_that_its_bytes_have() {
    for (storage, what) in
        [(test_support::storage_with_parity(), "plain"), (test_support::encrypted_storage_with_parity(), "encrypted")]
    {
        for (seed, pieces_of) in [(1, 4096), (2, 64 << 10), (3, 8 << 20)] {
            check_packs_in_pieces_of(&storage, seed, pieces_of, what);
        }
    }
}

fn check_packs_in_pieces_of(storage: &SimulatedStorage, seed: u64, pieces_of: usize, what: &str) {
    let repo = open(storage);
    let usual = u64::from(repo.config().pack_bytes);
    let transaction = crate::repo::transaction::Transaction::begin(&repo, &test_support::writer()).expect("begins");
    let transaction = transaction.with_pieces_of(pieces_of);
    let mut packs = Vec::new();
    // Shorter than usual packs are; as long; so long that they are divided in another way.
    for bytes in [4000, 20_000, usual + 1, usual + 5000, 2 * usual + 100_000] {
        let contents: Vec<_> = (0u64..)
            .zip((0..bytes).step_by(250_000))
            .map(|(n, at)| {
                noise(seed * 100_000 + bytes * 10 + n, usize::try_from((bytes - at).min(250_000)).expect("small"))
            })
            .collect();
        let chunks: Vec<(&[u8], &[&[u8]])> = contents.iter().map(|c| (c.as_slice(), &[][..])).collect();
        packs.push((test_support::store_pack(&transaction, &chunks), contents));
    }
    transaction.commit_repacked().expect("commits");
    for (pack, contents) in packs {
        let what = format!("{what}, {} bytes in pieces of {pieces_of}", pack.bytes);
        assert!(crate::repo::pack::matches_its_name(repo.storage(), pack.id, pack.bytes).expect("readable"), "{what}");
        for content in contents {
            let read = repo.read_chunk(repo.chunk_id(&content)).expect("readable");
            assert!(read == content, "{what}");
        }
        let state = check(&repo, pack.id, Some(pack.bytes), true).expect("readable");
        assert_eq!(state, ParityState::Sound, "{what}");
        let written = storage.objects()[&parity_name(pack.id)].clone();
        assert!(storage.remove(&parity_name(pack.id)));
        create(&repo, pack.id).expect("the pack is sound");
        assert!(storage.objects()[&parity_name(pack.id)] == written, "{what}");
    }
}

#[test]
fn parity_of_a_pack_that_is_read_again_piece_by_piece_is_that_of_the_whole_pack() {
    let storage = test_support::storage_with_parity();
    let repo = open(&storage);
    for bytes in [1, 100, 129, 5000, 70_000, READ_BYTES, READ_BYTES + 12_345, 3 * READ_BYTES - 1] {
        let whole = noise(bytes as u64, bytes);
        let pack = PackId::from_bytes(*blake3::hash(&whole).as_bytes());
        storage.insert(pack_name(pack), whole.clone());
        create(&repo, pack).expect("the pack is sound");
        let (shape, mut parity) = (Shape::of(bytes as u64).expect("a pack"), Vec::new());
        ParityEncoder::default().encode(&whole, &shape, &mut parity).expect("encodes");
        let table = whole.chunks(shape.shard_bytes).flat_map(checksum).collect();
        let (header, table) = front(repo.id(), pack, &shape, table, &parity).expect("fits");
        let expected = [header.as_slice(), &table, &parity, &table, &header].concat();
        assert!(storage.objects()[&parity_name(pack)] == expected, "{bytes} bytes");
        // Nothing is made of what is not the pack.
        assert!(storage.remove(&parity_name(pack)) && storage.corrupt(&pack_name(pack), bytes / 2, 1));
        assert_eq!(create(&repo, pack).expect_err("damaged").kind(), Kind::Damaged);
    }
}

#[test]
fn tables_of_damaged_packs_are_found_when_all_index_objects_are_lost() {
    let (storage, pack, bytes) = sample();
    for name in storage.names().iter().filter(|name| names::index_id(name).is_some()) {
        assert!(storage.remove(name));
    }
    assert!(storage.truncate(&pack_name(pack), bytes.len() - 100));
    assert_reads(&storage, "without index and trailer");
}

#[test]
fn packs_are_worked_through_in_columns_if_they_are_long() {
    let shape = |bytes| Shape::of(bytes).expect("a pack");
    let widths = |bytes| column_ranges(&shape(bytes)).map(|(_, width)| width).collect::<Vec<_>>();
    assert_eq!(widths(66 << 20), [16 << 10]);
    assert_eq!(widths(1000), [64]);
    let long = widths(1 << 30);
    assert_eq!(long.iter().sum::<usize>(), 256 << 10);
    assert!(long.iter().all(|&width| width * 4096 <= WORK_BYTES_MAX && width.is_multiple_of(64)), "{long:?}");
}

#[test]
fn what_forged_parity_makes_of_a_pack_is_not_taken_for_it() {
    let (storage, pack, bytes) = sample();
    let repo = open(&storage);
    let mut other = bytes;
    other[20_000] ^= 1;
    let shape = Shape::of(other.len() as u64).expect("a pack");
    let mut parity = Vec::new();
    ParityEncoder::default().encode(&other, &shape, &mut parity).expect("fits");
    let shards = other.chunks(shape.shard_bytes).flat_map(checksum).collect();
    let (header, table) = front(repo.id(), pack, &shape, shards, &parity).expect("fits");
    storage.insert(parity_name(pack), [&header[..], &table, &parity, &table, &header].concat());
    // All of it fits together, but for the name.
    for lost in [None, Some(30_000)] {
        lost.into_iter().for_each(|at: usize| other[at] ^= 1);
        storage.insert(pack_name(pack), other.clone());
        let error = mend(&open(&storage), pack).expect_err("not the pack of this name");
        assert_eq!(error.kind(), Kind::Damaged, "{error}");
    }
}
