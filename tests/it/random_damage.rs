//! Random damage to packs and to their parity, several kinds of it at once.
//!
//! What parity can mend is counted here by comparing with what was there before, not by checksums: then every file must
//! be restored on the fly. Beyond that no byte may ever be wrong, and whatever is lost must be named. The cases follow from
//! `CKPT_TEST_SEED`, their number is `CKPT_TEST_DAMAGE`.

use crate::support::program::{Place, documents, expect};
use crate::support::runs::{self, PACK_BYTES_MIN, contents};
use crate::support::trees::Tree;
use crate::support::weights::{Tensor, narrow, safetensors, trained, weights};
use crate::support::{Chance, in_parallel, noise, quick_folder, say, seed, setting};
use ckpt::codec::parity::Shape;
use ckpt::error::Kind;
use ckpt::ids::PackId;
use ckpt::repo::snapshots::Snapshot;
use ckpt::repo::{Repo, names, parity};
use ckpt::storage::ObjectName;
use ckpt::storage::simulated::SimulatedStorage;
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where checksums begin in an object of parity, and how many bytes each has.
const HEADER: usize = 160;
const CHECKSUM: usize = 8;

/// A repository of some packs, and what its snapshots hold.
struct Sample {
    objects: BTreeMap<ObjectName, Vec<u8>>,
    packs: Vec<PackId>,
    live: Vec<(Snapshot, Tree)>,
}

impl Sample {
    fn new(is_encrypted: bool) -> Sample {
        let folder = quick_folder();
        let source = folder.path().join("source");
        fs::create_dir_all(source.join("many")).expect("folders");
        let storage = runs::simulated_as(is_encrypted, PACK_BYTES_MIN);
        let repo = runs::open(&storage).expect("a new repository");
        let numbers = weights(seed(), 60_000);
        let model = |numbers: &[f32]| safetensors(&[Tensor::new("w", "BF16", narrow(numbers))], 0);
        let mut live = Vec::new();
        for (step, numbers) in [numbers.clone(), trained(&numbers, 1)].iter().enumerate() {
            fs::write(source.join("noise"), noise(step as u64, 90_000)).expect("a file");
            fs::write(source.join("model.safetensors"), model(numbers)).expect("a file");
            for number in 0..20 {
                let small = noise(100 * step as u64 + number, 700);
                fs::write(source.join(format!("many/{step}-{number}")), small).expect("a file");
            }
            live.push((runs::save(&repo, &source), Tree::read(&source)));
        }
        let objects = storage.objects();
        let packs: Vec<PackId> = objects.keys().filter_map(names::pack_id).collect();
        assert!(packs.len() >= 4, "{} packs", packs.len());
        assert_eq!(objects.keys().filter_map(names::parity_id).count(), packs.len(), "each has its parity");
        Sample { objects, packs, live }
    }

    fn check(&self, number: u64) -> u64 {
        let mut chance = Chance(seed() ^ number.wrapping_mul(0x9e37_79b9));
        let storage = SimulatedStorage::holding(self.objects.clone());
        let mut why = format!("seed {}, case {number}:", seed());
        let heavy = chance.below(3) == 0;
        for _ in 0..1 + chance.below(4) {
            let pack = self.packs[chance.index(self.packs.len())];
            let is_parity = chance.below(3) == 0;
            let name = if is_parity { names::parity(pack) } else { names::pack(pack) }.expect("a name");
            let mut bytes = storage.objects()[&name].clone();
            why.push_str(&format!(" {} {}", &name.as_str()[..15], hurt(&mut bytes, heavy, &mut chance)));
            storage.insert(name, bytes);
        }
        let objects = storage.objects();
        let is_within = self.packs.iter().all(|pack| self.is_within(&objects, *pack));
        let is_changed = objects != self.objects;
        let repo = runs::open(&storage).unwrap_or_else(|e| panic!("{why}: {e}"));
        for &pack in &self.packs {
            self.check_mending(&repo, &objects, pack, &why);
        }
        for (snapshot, tree) in &self.live {
            match contents(&repo, snapshot) {
                Ok(found) => found.assert_is(tree, &why),
                Err(error) => assert!(!is_within && error.kind() == Kind::Damaged, "{why}: {error}"),
            }
        }
        if !is_within || number.is_multiple_of(16) {
            self.check_restores(&storage, is_within, &why);
        }
        if number.is_multiple_of(4) {
            let report =
                runs::verify_all(&runs::open(&storage).expect("opens")).unwrap_or_else(|e| panic!("{why}: {e}"));
            assert_eq!(report.damage_count > 0, is_changed, "{why}: {:?}", report.damage);
            let is_lost = report.damage.iter().any(|damage| !damage.files.is_empty());
            assert!(!(is_lost && is_within), "{why}: {:?}", report.damage);
        }
        u64::from(is_within)
    }

    /// True if enough is left of the pack and its parity together.
    fn is_within(&self, objects: &BTreeMap<ObjectName, Vec<u8>>, pack: PackId) -> bool {
        let (pack, parity) = (names::pack(pack).expect("a name"), names::parity(pack).expect("a name"));
        let (pack_was, pack_is) = (&self.objects[&pack], &objects[&pack]);
        let (parity_was, parity_is) = (&self.objects[&parity], &objects[&parity]);
        let shape = Shape::of(pack_was.len() as u64).expect("a pack");
        // A stretch is there if it stands where it did, from the front or from the end.
        let stands = |was: &[u8], is: &[u8], range: Range<usize>| {
            let from_end = (range.start + is.len()).checked_sub(was.len()).map(|at| at..at + range.len());
            let at = |place: Range<usize>| is.get(place) == Some(&was[range.clone()]);
            at(range.clone()) || from_end.is_some_and(at)
        };
        let tables = HEADER + shape.shards() * CHECKSUM;
        let end = parity_was.len() - tables;
        // Of what stands twice, one must be where it belongs: the first from the front, the second from the end.
        let is_known = |shard: usize| {
            let (first, second) = (HEADER + shard * CHECKSUM, end + shard * CHECKSUM);
            let back = (second + parity_is.len()).checked_sub(parity_was.len());
            parity_is.get(first..first + CHECKSUM) == Some(&parity_was[first..first + CHECKSUM])
                || back
                    .is_some_and(|at| parity_is.get(at..at + CHECKSUM) == Some(&parity_was[second..second + CHECKSUM]))
        };
        let data = |shard: usize| {
            let (at, len) = shape.place(shard);
            let at = usize::try_from(at).expect("small");
            stands(pack_was, pack_is, at..at + len) && is_known(shard)
        };
        let computed = |n: usize| {
            let at = tables + n * shape.shard_bytes;
            stands(parity_was, parity_is, at..at + shape.shard_bytes) && is_known(shape.data_shards + n)
        };
        let header = parity_is.starts_with(&parity_was[..HEADER]) || parity_is.ends_with(&parity_was[..HEADER]);
        let is_shape_known = header || (pack_is.len() == pack_was.len() && parity_is.len() == parity_was.len());
        let lost = (0..shape.data_shards).filter(|&shard| !data(shard)).count();
        pack_was == pack_is || is_shape_known && lost <= (0..shape.parity_shards).filter(|&n| computed(n)).count()
    }

    fn check_mending(&self, repo: &Repo, objects: &BTreeMap<ObjectName, Vec<u8>>, pack: PackId, why: &str) {
        let name = names::pack(pack).expect("a name");
        if objects[&name] == self.objects[&name] {
            return;
        }
        match parity::mend(repo, pack) {
            Ok(mended) => assert!(mended.bytes == self.objects[&name], "{why}: wrong bytes of {pack}"),
            Err(error) => {
                assert!(!self.is_within(objects, pack), "{why}: {error}");
                assert_eq!(error.kind(), Kind::Damaged, "{why}: {error}");
            }
        }
    }

    /// Every file is right, or absent and named.
    fn check_restores(&self, storage: &SimulatedStorage, is_within: bool, why: &str) {
        let repo = runs::open(storage).unwrap_or_else(|e| panic!("{why}: {e}"));
        for (snapshot, wanted) in &self.live {
            let target = quick_folder();
            let restored = runs::restore(&repo, snapshot, target.path());
            let found = Tree::read(target.path());
            let named = match &restored {
                Ok(report) => report.damaged.count + report.failed.count,
                Err(error) => u64::from(error.kind() == Kind::Damaged),
            };
            assert!(named == 0 || !is_within, "{why}: {restored:?}");
            if named == 0 {
                found.assert_is(wanted, why);
            }
            for (path, seen) in found.entries.iter().filter(|(_, seen)| seen.content.is_some()) {
                let right = wanted.entries.get(path).and_then(|wanted| wanted.content);
                let is_part = path.ends_with(b".ckpt-part");
                assert!(is_part || seen.content == right, "{why}: wrong bytes in {}", String::from_utf8_lossy(path));
            }
        }
    }
}

/// Damages an object in one way and says how.
fn hurt(bytes: &mut Vec<u8>, is_heavy: bool, chance: &mut Chance) -> String {
    let len = bytes.len();
    if len < 2 {
        return "left alone".to_owned();
    }
    let reach = if is_heavy { len } else { len / 60 + 2 };
    let at = chance.index(len);
    let span = (1 + chance.index(reach)).min(len - at);
    match chance.below(8) {
        0 | 1 => {
            let flips = 1 + chance.below(if is_heavy { 60 } else { 4 });
            for _ in 0..flips {
                bytes[chance.index(len)] ^= 1 << chance.below(8);
            }
            format!("{flips} bits flipped")
        }
        2 => {
            bytes[at..at + span].fill(0);
            format!("{span} bytes at {at} zero")
        }
        3 => {
            bytes[at..at + span].copy_from_slice(&noise(chance.below(u64::MAX), span));
            format!("{span} bytes at {at} overwritten")
        }
        4 => {
            bytes.splice(at..at, noise(chance.below(u64::MAX), span));
            format!("{span} bytes too many at {at}")
        }
        5 => {
            bytes.drain(at..at + span);
            format!("{span} bytes missing at {at}")
        }
        6 => {
            bytes.truncate(len - span);
            format!("cut to {}", bytes.len())
        }
        _ => {
            bytes.extend(noise(chance.below(u64::MAX), span));
            format!("{span} bytes behind the end")
        }
    }
}

#[test]
fn what_parity_covers_is_restored_and_beyond_it_nothing_is_wrong() {
    check_cases(&Sample::new(false), setting("CKPT_TEST_DAMAGE", 500));
}

#[test]
fn sealed_packs_and_their_parity_withstand_the_same() {
    check_cases(&Sample::new(true), setting("CKPT_TEST_DAMAGE", 500).div_ceil(4));
}

fn check_cases(sample: &Sample, count: u64) {
    let within = AtomicU64::new(0);
    in_parallel(count, |number| {
        within.fetch_add(sample.check(number), Ordering::Relaxed);
        1
    });
    let within = within.into_inner();
    say(&format!("random_damage: {count} cases, {within} of them within parity, seed {}", seed()));
    assert!(within > count / 3 && within < count - count / 20, "{within} of {count}: both sides are to be seen");
}

#[test]
fn the_program_restores_through_parity_with_a_warning_and_says_how_to_mend() {
    let place = Place::new();
    for (parity, is_mended) in [("default", true), ("none", false)] {
        let _ = fs::remove_dir_all(place.path("repository"));
        place.succeed(&["init", "--parity", parity]);
        fs::create_dir_all(place.path("data")).expect("a folder");
        fs::write(place.path("data/a"), noise(5, 900_000)).expect("a file");
        place.backup("data");
        let objects = |folder: &str| {
            let inner = fs::read_dir(place.path(folder)).map(|all| all.flatten().map(|e| e.path()).collect::<Vec<_>>());
            let objects = inner.unwrap_or_default().into_iter().filter_map(|folder| fs::read_dir(folder).ok());
            objects.flat_map(|all| all.flatten().map(|e| e.path())).collect::<Vec<_>>()
        };
        let packs = objects("repository/packs");
        assert_eq!(objects("repository/parity").len(), if is_mended { packs.len() } else { 0 });
        let largest = packs.into_iter().max_by_key(|path| fs::metadata(path).map_or(0, |m| m.len())).expect("a pack");
        let mut bytes = fs::read(&largest).expect("a pack");
        bytes[300_000..310_000].fill(0);
        fs::remove_file(&largest).expect("removed");
        fs::write(&largest, bytes).expect("written");
        let code = if is_mended { 0 } else { 5 };
        let target = place.text(parity);
        let (_, err) = expect(place.command(&["restore", "latest", "--target", &target]), code);
        let name = largest.file_name().and_then(|name| name.to_str()).expect("text").to_owned();
        assert_eq!(err.contains("run `ckpt repair`") && err.contains(&name), is_mended, "{err}");
        let restored = fs::read(place.path(parity).join("a")).ok();
        assert_eq!(restored.as_deref() == Some(&noise(5, 900_000)[..]), is_mended);
        let (out, err) = expect(place.command(&["verify", "--read-data"]), 5);
        assert!(out.contains(&name) && out.contains("needed by") != is_mended, "{out}");
        assert_eq!(out.contains("its parity can mend it") && err.contains("`ckpt repair`"), is_mended, "{out}{err}");
        let stats = documents(&place.succeed(&["stats", "--json"])).remove(0);
        assert_eq!(stats["data"]["parity_bytes"].as_u64().is_some_and(|bytes| bytes > 0), is_mended, "{stats}");
    }
}
