//! A finished checkpoint, or none: backups beside a trainer that is writing, steps as selectors, pointers on the way back.
//!
//! Writers and backups wait for each other by channels and events, never by time.

use crate::support::noise;
use crate::support::program::{Place, documents, expect};
use crate::support::runs::{self, backup_options, restore_options};
use crate::support::trees::Tree;
use ckpt::events::{Event, Observer};
use ckpt::ops::backup::{BackupOptions, BackupReport, Input, Unfinished, backup};
use ckpt::ops::restore::restore;
use ckpt::repo::Repo;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use tempfile::TempDir;

/// A safetensors file with one tensor of so many bytes.
fn safetensors(seed: u64, bytes: usize) -> Vec<u8> {
    let header = format!(r#"{{"t":{{"dtype":"U8","shape":[{bytes}],"data_offsets":[0,{bytes}]}}}}"#);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend(noise(seed, bytes));
    file
}

/// The files of a checkpoint of the Trainer in the order in which they are written, each shard of so many bytes.
fn trainer_files(step: u64, shards: usize, shard_bytes: usize) -> Vec<(String, Vec<u8>)> {
    let name = |n: usize| format!("model-{n:05}-of-{shards:05}.safetensors");
    let map: Vec<String> = (1..=shards).map(|n| format!(r#""t{n}":"{}""#, name(n))).collect();
    let mut files = vec![("config.json".to_owned(), b"{}".to_vec())];
    // It says that a state of the trainer will follow. An old pickle, of which nothing can be told.
    files.push(("training_args.bin".to_owned(), b"\x80\x02}q\x00.".to_vec()));
    files.extend((1..=shards).map(|n| (name(n), safetensors(step * 100 + n as u64, shard_bytes))));
    files
        .push(("model.safetensors.index.json".to_owned(), format!(r#"{{"weight_map":{{{}}}}}"#, map.join(",")).into()));
    files.push(("trainer_state.json".to_owned(), format!(r#"{{"global_step":{step}}}"#).into()));
    files
}

fn write_checkpoint(run: &Path, step: u64, shards: usize, shard_bytes: usize) -> PathBuf {
    let folder = run.join(format!("checkpoint-{step}"));
    fs::create_dir_all(&folder).expect("a folder");
    for (name, content) in trainer_files(step, shards, shard_bytes) {
        fs::write(folder.join(name), content).expect("a file");
    }
    folder
}

fn shorten(path: &Path) {
    let file = fs::File::options().write(true).open(path).expect("there");
    let bytes = file.metadata().expect("a length").len();
    file.set_len(bytes / 2).expect("shortened");
}

fn last(text: &str) -> Value {
    documents(text).pop().expect("a document")
}

/// The steps in the newest snapshot, and those of them that are marked as unfinished.
fn steps(place: &Place) -> (Vec<u64>, Vec<u64>) {
    let document = last(&place.succeed(&["snapshots", "--json"]));
    let newest = document["data"]["snapshots"].as_array().expect("a list").last().expect("a snapshot").clone();
    let listed = newest["checkpoints"].as_array().expect("a list").clone();
    let step = |item: &Value| item["step"].as_u64().expect("a step");
    let unfinished = listed.iter().filter(|item| !item["unfinished"].is_null()).map(step).collect();
    (listed.iter().map(step).collect(), unfinished)
}

fn run_with(place: &Place, code: i32, arguments: &[&str]) -> (String, String) {
    expect(place.command(arguments), code)
}

#[test]
fn finished_checkpoints_are_stored_and_the_others_are_named() {
    let place = Place::with_repository();
    let run = place.path("run");
    for step in [100, 200, 300] {
        write_checkpoint(&run, step, 2, 5000);
    }
    shorten(&run.join("checkpoint-300/model-00002-of-00002.safetensors"));
    let arguments = ["backup", &place.text("run"), "--settle", "0", "--json"];
    let dry = run_with(&place, 3, &[&arguments[..], &["--dry-run"]].concat());
    assert!(place.snapshots().is_empty());
    let (out, err) = run_with(&place, 3, &arguments);
    for (out, err) in [&dry, &(out.clone(), err.clone())] {
        let problem = documents(out).into_iter().find(|d| d["type"] == "problem").expect("a problem");
        let message = problem["data"]["message"].as_str().expect("text").to_owned();
        assert!(message.contains("left out: model-00002-of-00002.safetensors has"), "{message}");
        assert_eq!(problem["data"]["path"], Value::from(place.text("run/checkpoint-300")));
        assert!(err.contains("1 unfinished checkpoint left out"), "{err}");
    }
    let summary = last(&out)["data"].clone();
    assert_eq!(summary["checkpoints_left_out"], 1);
    assert_eq!(summary["checkpoints"].as_array().map(Vec::len), Some(2));
    assert_eq!(summary["files_new"], 12, "nothing of the third is in it: {summary}");
    assert_eq!(steps(&place), (vec![100, 200], vec![]));
    assert!(place.succeed(&["snapshots"]).contains("[steps 100, 200]"));
    let listed = place.succeed(&["ls", "latest"]);
    assert!(listed.contains("checkpoint-200/  [step 200, hf-trainer, 2 shards, 2 tensors]"), "{listed}");
    assert!(place.succeed(&["info"]).contains("2, steps 100, 200"));
    // The next one is mended, and only it is read.
    write_checkpoint(&run, 300, 2, 5000);
    let (out, _) = run_with(&place, 0, &arguments);
    assert_eq!(last(&out)["data"]["problems"], 0);
    assert_eq!(steps(&place).0, [100, 200, 300]);
}

#[test]
fn a_step_is_a_selector_wherever_a_snapshot_is_named() {
    let place = Place::with_repository();
    let run = place.path("run");
    let backup = |place: &Place| place.succeed(&["backup", &place.text("run"), "--settle", "0"]);
    let first = write_checkpoint(&run, 100, 2, 5000);
    let wanted = Tree::read(&first);
    backup(&place);
    fs::remove_dir_all(&first).expect("rotated away");
    write_checkpoint(&run, 200, 2, 5000);
    backup(&place);
    place.succeed(&["restore", "step:100", "--target", &place.text("back")]);
    Tree::read(&place.path("back")).normal().assert_is(&wanted.normal(), "a step that is only in an older snapshot");
    assert_eq!(place.succeed(&["dump", "step:100:trainer_state.json"]), r#"{"global_step":100}"#);
    assert_eq!(place.succeed(&["dump", "step:200", "trainer_state.json"]), r#"{"global_step":200}"#);
    let listed = place.succeed(&["ls", "step:200"]);
    assert!(listed.contains("checkpoint-200/config.json") && !listed.contains("checkpoint-100"), "{listed}");
    let diff = place.succeed(&["diff", "step:100", "step:200"]);
    assert!(diff.contains("M model-00001-of-00002.safetensors"), "{diff}");
    place.succeed(&["verify", "step:100", "--against", &place.text("back")]);
    for arguments in [&["ls", "step:150"][..], &["restore", "step:150", "--target", &place.text("no")]] {
        let (_, err) = run_with(&place, 15, arguments);
        assert!(err.contains("step 150") && err.contains("steps 100, 200"), "{err}");
    }
    let (_, err) = run_with(&place, 15, &["ls", "step:100", "--tag", "none"]);
    assert!(err.contains("step 100"), "{err}");
    place.succeed(&["ls", "step:100", "--host", "testhost", "--path", &place.text("run")]);
    let dry = place.succeed(&["forget", "--keep-every-steps", "100", "--dry-run"]);
    assert!(dry.contains("step 100") && dry.contains("step 200") && !dry.contains("forget  "), "{dry}");
    let dry = place.succeed(&["forget", "--keep-every-steps", "200", "--dry-run", "--json"]);
    assert_eq!(last(&dry)["data"]["forgotten"].as_array().map(Vec::len), Some(1), "{dry}");
}

#[test]
fn beside_a_writer_a_backup_takes_the_checkpoint_only_when_it_is_finished() {
    let place = Place::with_repository();
    let run = place.path("run");
    write_checkpoint(&run, 1, 1, 2000);
    let files = trainer_files(2, 3, 4000);
    let folder = run.join("checkpoint-2");
    let (written_sender, written) = channel();
    let (go_on, may_go_on) = channel::<()>();
    let count = files.len();
    let arguments = ["backup", &place.text("run"), "--settle", "0"];
    std::thread::scope(|scope| {
        // Dropped when a check fails, so that the writer ends.
        let (written, go_on) = (written, go_on);
        scope.spawn(move || {
            fs::create_dir(&folder).expect("a folder");
            for (name, content) in files {
                // Half of the file, then the whole of it.
                for bytes in [content.len() / 2, content.len()] {
                    fs::write(folder.join(&name), &content[..bytes]).expect("a file");
                    written_sender.send(()).expect("somebody waits");
                    may_go_on.recv().expect("somebody says so");
                }
            }
        });
        for stage in 1..2 * count {
            written.recv().expect("the writer goes on");
            let (_, err) = run_with(&place, 3, &arguments);
            assert!(err.contains("checkpoint-2") && err.contains("unfinished"), "stage {stage}: {err}");
            assert_eq!(steps(&place), (vec![1], vec![]), "stage {stage}");
            go_on.send(()).expect("the writer waits");
        }
        written.recv().expect("the writer ends");
        run_with(&place, 0, &arguments);
        go_on.send(()).expect("the writer waits");
    });
    assert_eq!(steps(&place), (vec![1, 2], vec![]));
    place.succeed(&["restore", "step:2", "--target", &place.text("back")]);
    let wanted = Tree::read(&run.join("checkpoint-2")).normal();
    Tree::read(&place.path("back")).normal().assert_is(&wanted, "what the writer has finished");
}

#[test]
fn where_nothing_is_finished_there_is_no_snapshot() {
    let place = Place::with_repository();
    let run = place.path("run");
    let torn = write_checkpoint(&run, 5, 2, 3000);
    fs::write(run.join("latest"), "checkpoint-5").expect("a pointer");
    fs::remove_file(torn.join("trainer_state.json")).expect("not written yet");
    for path in ["run", "run/checkpoint-5"] {
        let (_, err) = run_with(&place, 1, &["backup", &place.text(path), "--settle", "0"]);
        assert!(err.contains("no snapshot was made") && err.contains("trainer_state.json is not there"), "{err}");
    }
    assert!(place.snapshots().is_empty());
    // Whole, but written just now.
    fs::write(torn.join("trainer_state.json"), "{}").expect("written");
    let (_, err) = run_with(&place, 1, &["backup", &place.text("run/checkpoint-5")]);
    assert!(err.contains("was modified") && err.contains("60 s"), "{err}");
    let (_, err) = run_with(&place, 0, &["backup", &place.text("run"), "--unfinished", "keep"]);
    assert!(err.contains("stored all the same"), "{err}");
    assert_eq!(steps(&place), (vec![5], vec![5]));
    assert!(place.succeed(&["snapshots"]).contains("[1 unfinished]"));
    let (_, err) = run_with(&place, 15, &["ls", "step:5"]);
    assert!(err.contains("none at all"), "only finished ones are found: {err}");
    // Something else to save makes a snapshot.
    fs::write(run.join("train.log"), "loss").expect("a log");
    run_with(&place, 3, &["backup", &place.text("run")]);
    assert_eq!(steps(&place), (vec![], vec![]));
    run_with(&place, 0, &["backup", &place.text("run"), "--settle", "0"]);
    assert_eq!(steps(&place), (vec![5], vec![]));
}

#[test]
fn a_pointer_to_what_was_left_out_is_told() {
    let place = Place::with_repository();
    let run = place.path("run");
    write_checkpoint(&run, 1, 1, 2000);
    let torn = write_checkpoint(&run, 2, 1, 2000);
    fs::write(run.join("latest"), "checkpoint-2").expect("a pointer");
    let arguments = ["backup", &place.text("run"), "--settle", "0"];
    run_with(&place, 0, &arguments);
    shorten(&torn.join("model-00001-of-00001.safetensors"));
    let (_, err) = run_with(&place, 3, &arguments);
    assert!(err.contains("latest") && err.contains("names checkpoint-2, which was left out"), "{err}");
    fs::remove_dir_all(&torn).expect("rotated away");
    let (_, err) = run_with(&place, 3, &arguments);
    assert!(err.contains("names checkpoint-2, which is not in the snapshot"), "{err}");
}

/// Acts once, in the middle of reading: the first time that bytes are reported.
struct Acting<'a>(Mutex<Option<Box<dyn FnOnce() + Send + 'a>>>);

impl<'a> Acting<'a> {
    fn new(action: impl FnOnce() + Send + 'a) -> Acting<'a> {
        Acting(Mutex::new(Some(Box::new(action))))
    }
}

impl Observer for Acting<'_> {
    fn on_event(&self, event: &Event<'_>) {
        if matches!(event, Event::Progress { bytes: 1.., .. })
            && let Some(action) = self.0.lock().expect("not poisoned").take()
        {
            action();
        }
    }

    fn is_interrupted(&self) -> bool {
        false
    }
}

/// A run of two checkpoints, the second too large to be read before the first bytes are reported.
fn large_run() -> (TempDir, PathBuf) {
    let folder = crate::support::disk_folder();
    write_checkpoint(folder.path(), 1, 1, 6 << 20);
    let second = write_checkpoint(folder.path(), 2, 3, 12 << 20);
    fs::write(folder.path().join("train.log"), "loss").expect("a log");
    (folder, second)
}

fn backup_while(repo: &Repo, path: &Path, options: &BackupOptions<'_>, action: impl FnOnce() + Send) -> BackupReport {
    let report = backup(repo, Input::Paths(vec![path.to_owned()]), options, &Acting::new(action)).expect("saved");
    repo.refresh(&ckpt::events::Silent).expect("refreshed");
    report
}

/// All paths in the snapshot of the report, each on a line.
fn listing(repo: &Repo, report: &BackupReport) -> String {
    let snapshot = repo.snapshot(report.snapshot.expect("saved")).expect("listed");
    let mut paths = Vec::new();
    let visit = &mut |entry: &ckpt::repo::entry::Entry| {
        paths.push(String::from_utf8_lossy(&entry.path).into_owned());
        Ok(())
    };
    ckpt::ops::list::list(repo, &snapshot, None, true, visit).expect("listed");
    paths.join("\n")
}

fn steps_of(report: &BackupReport) -> Vec<(u64, bool)> {
    report.checkpoints.iter().filter_map(|(_, r)| Some((r.step?, r.unfinished.is_none()))).collect()
}

#[test]
fn a_checkpoint_that_changes_or_vanishes_while_it_is_read_is_left_out_whole() {
    type Action = fn(&Path);
    let actions: [(Action, &str); 4] = [
        (|second| fs::write(second.join("trainer_state.json"), "{}").expect("changed"), "trainer_state.json changed"),
        (|second| fs::write(second.join("late.json"), "{}").expect("added"), "its directory changed"),
        (
            |second| shorten(&second.join("model-00003-of-00003.safetensors")),
            "model-00003-of-00003.safetensors changed",
        ),
        (
            |second| fs::remove_file(second.join("model-00003-of-00003.safetensors")).expect("removed"),
            "model-00003-of-00003.safetensors could not be read",
        ),
    ];
    for (act, reason) in actions {
        let (folder, second) = large_run();
        let storage = runs::simulated(1 << 20);
        let repo = runs::open(&storage).expect("opens");
        let report = backup_while(&repo, folder.path(), &backup_options(1), || act(&second));
        assert_eq!(report.problems.count, 1, "{:?}", report.problems);
        let error = report.problems.kept[0].error.to_string();
        assert!(error.contains("left out") && error.contains(reason), "{error}");
        assert_eq!(steps_of(&report), [(1, true)]);
        let snapshot = repo.snapshot(report.snapshot.expect("saved")).expect("listed");
        let text = listing(&repo, &report);
        assert!(
            text.contains("checkpoint-1") && text.contains("train.log") && !text.contains("checkpoint-2"),
            "{text}"
        );
        assert_eq!(snapshot.totals.files, 6, "what was held back is not counted");
    }
}

#[test]
fn with_keep_a_checkpoint_that_changes_is_stored_and_marked() {
    let (folder, second) = large_run();
    let storage = runs::simulated(1 << 20);
    let repo = runs::open(&storage).expect("opens");
    let options = BackupOptions { unfinished: Unfinished::Keep, ..backup_options(1) };
    let change = || fs::write(second.join("trainer_state.json"), "{}").expect("changed");
    let report = backup_while(&repo, folder.path(), &options, change);
    assert_eq!(steps_of(&report), [(1, true), (2, false)]);
    assert_eq!(report.problems.count, 1, "{:?}", report.problems);
}

#[test]
fn a_checkpoint_that_appears_during_the_run_is_left_to_the_next_one() {
    let (folder, _) = large_run();
    // More entries than are looked at in advance, by the scan and by the feed (2,500), stand before the directory in which it
    // appears.
    fs::create_dir_all(folder.path().join("m")).expect("a folder");
    (0..4000).for_each(|n| fs::write(folder.path().join(format!("m/{n}")), "x").expect("a file"));
    fs::create_dir_all(folder.path().join("z/later")).expect("a folder");
    let storage = runs::simulated(1 << 20);
    let repo = runs::open(&storage).expect("opens");
    let appear = || {
        write_checkpoint(&folder.path().join("z"), 9, 1, 1000);
        fs::write(folder.path().join("z/later/best.pt"), b"PK\x03\x04 the beginning of").expect("a file");
    };
    let report = backup_while(&repo, folder.path(), &backup_options(1), appear);
    let told: Vec<String> = report.problems.kept.iter().map(|p| p.error.to_string()).collect();
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(told[0].contains("appeared while the backup ran"), "{told:?}");
    assert!(told[1].contains("best.pt is not whole"), "{told:?}");
    let text = listing(&repo, &report);
    assert!(text.contains("z/later") && !text.contains("checkpoint-9") && !text.contains("best.pt"), "{text}");
}

/// Looks at the target at every event: when the pointer is new, everything else has to be in place.
struct Watching {
    target: PathBuf,
    looks: Mutex<u64>,
}

impl Observer for Watching {
    fn on_event(&self, _event: &Event<'_>) {
        *self.looks.lock().expect("not poisoned") += 1;
        let pointer = fs::read_to_string(self.target.join("a/latest")).unwrap_or_default();
        if pointer == "checkpoint-2" {
            for name in ["a/checkpoint-2/model-00003-of-00003.safetensors", "train.log", "a/zzz"] {
                assert!(self.target.join(name).exists(), "the pointer was there before {name}");
            }
        }
    }

    fn is_interrupted(&self) -> bool {
        false
    }
}

#[test]
fn a_restore_writes_pointers_last() {
    let source = crate::support::disk_folder();
    let run = source.path().join("a");
    write_checkpoint(&run, 2, 3, 1 << 20);
    fs::write(run.join("latest"), "checkpoint-2").expect("a pointer");
    fs::write(run.join("zzz"), noise(1, 1 << 20)).expect("a file");
    fs::write(source.path().join("train.log"), noise(2, 1 << 20)).expect("a log");
    let storage = runs::simulated(1 << 20);
    let repo = runs::open(&storage).expect("opens");
    let snapshot = runs::save(&repo, source.path());
    let target = crate::support::disk_folder();
    fs::create_dir(target.path().join("a")).expect("a folder");
    fs::write(target.path().join("a/latest"), "checkpoint-1").expect("what stood there");
    let watching = Watching { target: target.path().to_owned(), looks: Mutex::new(0) };
    let report = restore(&repo, &snapshot, &restore_options(target.path()), &watching).expect("restored");
    assert!(*watching.looks.lock().expect("not poisoned") > 5, "it was looked at on the way");
    assert_eq!(report.files_restored, 10);
    let wanted = Tree::read(source.path()).normal();
    Tree::read(target.path()).normal().assert_is(&wanted, "the pointer and the times of its directory, too");
}
