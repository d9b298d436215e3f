//! Whole runs over chunks that are coded against others: backed up, restored, verified, pruned, and stored again when lost.

use crate::support::program::Place;
use crate::support::runs;
use crate::support::trees::Tree;
use crate::support::{noise, quick_folder};
use ckpt::codec::{Base, Compression, Encoder, Relation};
use ckpt::ids::PackId;
use ckpt::ops::prune::prune;
use ckpt::repo::pack::PackKind;
use ckpt::repo::pack_table::FrameRecord;
use ckpt::repo::records::WriterRecord;
use ckpt::repo::snapshots::Snapshot;
use ckpt::repo::transaction::Transaction;
use ckpt::repo::{Repo, names};
use ckpt::storage::simulated::SimulatedStorage;
use std::fs;
use std::path::Path;

/// Less than the smallest chunk, so that a file is one chunk; versions differ in a few bytes.
fn version(number: u64) -> Vec<u8> {
    [noise(number, 60), noise(1000, 1900)].concat()
}

/// Stores a version in a pack of its own, against another or alone.
fn store(repo: &Repo, number: u64, base: Option<u64>) -> PackId {
    let transaction = Transaction::begin(repo, &WriterRecord::of_this_process(runs::now())).expect("begins");
    let (content, mut frame) = (version(number), Vec::new());
    let mut encoder = Encoder::new(Compression::Auto).expect("an encoder");
    let id = repo.chunk_id(&content);
    let record = match base {
        None => {
            let codec = encoder.encode(&content, &mut frame).expect("encodes");
            FrameRecord::single(id, content.len(), frame.len(), codec.code())
        }
        Some(base) => {
            let base_id = repo.chunk_id(&version(base));
            assert_eq!(transaction.rely_on_base(id, &[base_id]).expect("an answer"), [true]);
            let base = version(base);
            let base = Base { content: &base, chunks: 1, relation: Relation::Text, stored_bytes_max: content.len() };
            let encoded = encoder.encode_against(&content, &base, &mut frame).expect("encodes");
            assert!(encoded.needs_base, "versions are alike");
            FrameRecord::delta(id, content.len(), frame.len(), encoded.codec.code(), vec![base_id])
        }
    };
    let mut pack = transaction.create_pack(PackKind::Data).expect("a pack");
    pack.append(&frame, &[record.expect("adds up")]).expect("appends");
    let summary = transaction.finish_pack(pack).expect("durable");
    transaction.commit_repacked().expect("commits");
    summary.id
}

fn assert_restores(storage: &SimulatedStorage, snapshot: &Snapshot, wanted: &Tree, why: &str) {
    let repo = runs::open(storage).expect("opens");
    let target = quick_folder();
    let report = runs::restore(&repo, snapshot, target.path()).expect(why);
    assert!(report.damaged.is_empty() && report.failed.is_empty(), "{why}: {report:?}");
    Tree::read(target.path()).assert_is(wanted, why);
    runs::contents(&repo, snapshot).expect(why).assert_is(wanted, why);
}

fn write_source(source: &Path, numbers: &[u64]) -> Tree {
    fs::create_dir_all(source).expect("a folder");
    for number in numbers {
        fs::write(source.join(format!("v{number}")), version(*number)).expect("a file");
    }
    Tree::read(source)
}

#[test]
fn deltas_are_backed_up_restored_verified_and_pruned_as_everything_else() {
    let folder = quick_folder();
    let source = folder.path().join("source");
    let storage = runs::simulated(runs::PACK_BYTES_MIN);
    let repo = runs::open(&storage).expect("opens");
    let packs = [store(&repo, 0, None), store(&repo, 1, Some(0)), store(&repo, 2, Some(1)), store(&repo, 3, Some(0))];
    let wanted = write_source(&source, &[2, 3]);
    let before = storage.names().iter().filter(|n| names::pack_id(n).is_some()).count();
    let saved = runs::save(&runs::open(&storage).expect("opens"), &source);
    let after = storage.names().iter().filter(|n| names::pack_id(n).is_some()).count();
    assert_eq!(after, before + 1, "nothing but the list of files is new");
    assert_restores(&storage, &saved, &wanted, "as saved");
    let report = runs::verify_all(&runs::open(&storage).expect("opens")).expect("verifies");
    assert_eq!(report.damage, []);
    prune(&runs::open(&storage).expect("opens"), &runs::prune_options(), &ckpt::events::Silent).expect("prunes");
    assert_restores(&storage, &saved, &wanted, "after a prune");
    // Whichever pack is lost, what stands on it is named, and the next backup makes the old snapshot whole, too.
    for (lost, hit) in packs.iter().zip([vec!["v2", "v3"], vec!["v2"], vec!["v2"], vec!["v3"]]) {
        let storage = storage.copy();
        assert!(storage.remove(&names::pack(*lost).expect("a name")));
        let report = runs::verify_all(&runs::open(&storage).expect("opens")).expect("verifies");
        let files: Vec<_> = report.damage.iter().flat_map(|d| &d.files).collect();
        assert_eq!(files.len(), hit.len(), "{files:?}");
        assert!(hit.iter().all(|name| files.iter().any(|(_, path)| path.ends_with(name.as_bytes()))), "{files:?}");
        let again = runs::save(&runs::open(&storage).expect("opens"), &source);
        for snapshot in [&saved, &again] {
            assert_restores(&storage, snapshot, &wanted, "stored again");
        }
    }
}

#[test]
fn versions_without_a_layout_find_each_other_within_one_run() {
    let place = Place::with_repository();
    let mut rows = noise(7, 6 << 20);
    for number in 0..3 {
        // Changed so often that no chunk stays as it was.
        rows.iter_mut().step_by(20_000).for_each(|byte| *byte = byte.wrapping_add(1));
        let folder = place.path(&format!("data/v{number}"));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("rows.txt"), &rows).expect("a file");
    }
    place.backup("data");
    let stats = place.succeed(&["stats", "--json"]);
    let last: serde_json::Value = serde_json::from_str(stats.lines().last().expect("a line")).expect("JSON");
    let stored = last["data"]["stored_bytes"].as_u64().expect("a number");
    assert!(stored < 7 << 20, "{stored} bytes for three versions of 6 MiB");
    place.succeed(&["verify", "--read-data"]);
}
