//! Tests of the judgement: checkpoints of every kind, whole and in each half-written state.

use super::*;
use crate::source::excludes::Excludes;
use crate::source::scan::ScanOptions;
use std::fs;
use std::path::{Path, PathBuf};

/// A directory that checkpoints are made in.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("inside the directory")).expect("created");
        fs::write(path, bytes).expect("written");
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).expect("removed");
    }

    fn shorten(&self, name: &str) {
        let file = fs::File::options().write(true).open(self.path(name)).expect("there");
        let bytes = file.metadata().expect("a length").len();
        file.set_len(bytes - 1).expect("shortened");
    }

    fn judge_with(&self, options: &ScanOptions, settle_seconds: u64, ahead_seconds: i64) -> Vec<Checkpoint> {
        let status = fs::metadata(self.0.path()).expect("there");
        let now = std::os::unix::fs::MetadataExt::mtime(&status).max(newest(self.0.path())) + ahead_seconds;
        let judging = JudgeOptions {
            now: FileTime { seconds: now, nanoseconds: 999_999_999 },
            settle: Duration::from_secs(settle_seconds),
        };
        let roots = [self.0.path().to_owned()];
        let mut found = survey(&roots, options, &judging, &|| Ok(())).expect("walked").checkpoints;
        found.sort_by(|a, b| a.path.cmp(&b.path));
        found
    }

    fn judge(&self) -> Vec<Checkpoint> {
        self.judge_with(&ScanOptions::default(), 0, 0)
    }

    /// The reason why the only checkpoint is not finished.
    fn reason(&self) -> String {
        let found = self.judge();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].unfinished.clone().expect("unfinished")
    }

    /// The only checkpoint, which is finished.
    fn finished(&self) -> Checkpoint {
        let mut found = self.judge();
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].unfinished, None);
        found.remove(0)
    }
}

/// The newest modification time in the tree, in seconds.
fn newest(folder: &Path) -> i64 {
    let of = |path: &Path| fs::symlink_metadata(path).map_or(0, |m| std::os::unix::fs::MetadataExt::mtime(&m));
    let entries = fs::read_dir(folder).expect("a directory").flatten();
    let below = entries.map(|e| if e.path().is_dir() { newest(&e.path()).max(of(&e.path())) } else { of(&e.path()) });
    below.max().unwrap_or(0)
}

fn set_mtime(path: &Path, time: std::time::SystemTime) {
    fs::File::open(path).expect("there").set_modified(time).expect("set");
}

/// A safetensors file of `tensors` tensors.
fn safetensors(tensors: usize) -> Vec<u8> {
    let entry =
        |n: usize| format!(r#""t{n}":{{"dtype":"F32","shape":[4],"data_offsets":[{},{}]}}"#, n * 16, n * 16 + 16);
    let entries: Vec<String> = (0..tensors).map(entry).collect();
    let header = format!(r#"{{"__metadata__":{{"format":"pt"}},{}}}"#, entries.join(","));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + tensors * 16, 7);
    file
}

/// An archive as `torch.save` writes it, as far as the rules look: stored entries, a directory, an end; long or not.
fn torch_file(pickle: &[u8], tensors: usize, is_long: bool) -> Vec<u8> {
    let mut entries = vec![("archive/data.pkl".to_owned(), pickle.to_vec())];
    entries.extend((0..tensors).map(|n| (format!("archive/data/{n}"), vec![5; 64])));
    entries.push(("archive/version".to_owned(), b"3\n".to_vec()));
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let count = entries.len() as u16;
    for (name, content) in entries {
        let mut common = vec![0; 16];
        common.extend_from_slice(&(content.len() as u32).to_le_bytes());
        common.extend_from_slice(&(content.len() as u32).to_le_bytes());
        common.extend_from_slice(&(name.len() as u16).to_le_bytes());
        common.extend_from_slice(&[0, 0]);
        let at = file.len() as u32;
        file.extend_from_slice(b"PK\x03\x04");
        file.extend_from_slice(&common[2..]);
        file.extend_from_slice(name.as_bytes());
        file.extend_from_slice(&content);
        directory.extend_from_slice(b"PK\x01\x02");
        directory.extend_from_slice(&common);
        directory.extend_from_slice(&[0; 10]);
        directory.extend_from_slice(&at.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let (offset, bytes) = (file.len() as u64, directory.len() as u64);
    file.extend_from_slice(&directory);
    let (mut short_bytes, mut short_offset) = (bytes as u32, offset as u32);
    if is_long {
        let long_at = file.len() as u64;
        file.extend_from_slice(b"PK\x06\x06");
        file.extend_from_slice(&[0; 36]);
        file.extend_from_slice(&bytes.to_le_bytes());
        file.extend_from_slice(&offset.to_le_bytes());
        file.extend_from_slice(b"PK\x06\x07\0\0\0\0");
        file.extend_from_slice(&long_at.to_le_bytes());
        file.extend_from_slice(&[1, 0, 0, 0]);
        (short_bytes, short_offset) = (u32::MAX, u32::MAX);
    }
    file.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    file.extend_from_slice(&[count.to_le_bytes(), count.to_le_bytes()].concat());
    file.extend_from_slice(&short_bytes.to_le_bytes());
    file.extend_from_slice(&short_offset.to_le_bytes());
    file.extend_from_slice(&[0, 0]);
    file
}

/// `.metadata` of a distributed checkpoint in the words of Python 3's fourth protocol: files with offset and length.
fn dcp_metadata(files: &[(&str, u8, u16)]) -> Vec<u8> {
    let text = |text: &str| [&[0x8c, text.len() as u8], text.as_bytes(), &[0x94]].concat();
    let mut pickle = b"\x80\x04}\x94(".to_vec();
    pickle.extend(text("properties"));
    for (name, offset, length) in files {
        pickle.extend_from_slice(b")\x81\x94}\x94(");
        pickle.extend(text("relative_path"));
        pickle.extend(text(name));
        pickle.extend(text("offset"));
        pickle.extend_from_slice(&[b'K', *offset]);
        pickle.extend(text("length"));
        pickle.extend_from_slice(&[&b"M"[..], &length.to_le_bytes(), b"ub"].concat());
    }
    pickle.extend_from_slice(b"u.");
    pickle
}

const INDEX: &str = r#"{"metadata":{"total_size":64},"weight_map":{
    "a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;

/// A checkpoint of the Trainer with two shards.
fn trainer(place: &Place, folder: &str, step: u64) {
    place.write(&format!("{folder}/config.json"), "{}");
    place.write(&format!("{folder}/model-00001-of-00002.safetensors"), safetensors(3));
    place.write(&format!("{folder}/model-00002-of-00002.safetensors"), safetensors(2));
    place.write(&format!("{folder}/model.safetensors.index.json"), INDEX);
    place.write(&format!("{folder}/training_args.bin"), torch_file(b"x", 0, true));
    place.write(&format!("{folder}/optimizer.pt"), torch_file(b"x", 4, true));
    place.write(&format!("{folder}/rng_state.pth"), torch_file(b"x", 1, false));
    place.write(&format!("{folder}/trainer_state.json"), format!(r#"{{"global_step": {step}, "epoch": 1.0}}"#));
}

#[test]
fn a_checkpoint_of_the_trainer_is_finished_when_all_of_it_is_there() {
    let place = Place::new();
    trainer(&place, "run/checkpoint-500", 500);
    let found = place.finished();
    assert_eq!((found.framework, found.step), (Framework::HuggingFace, Some(500)));
    assert_eq!((found.shards, found.tensors), (2, 10));
    assert_eq!(found.path, b"run/checkpoint-500");
    assert!(found.holds(b"run/checkpoint-500/config.json") && !found.holds(b"run/checkpoint-5000"));
    assert!(found.bytes > 400 && found.entries() == 9);
}

#[test]
fn every_half_written_state_of_the_trainer_is_told() {
    let shard = "checkpoint-5/model-00002-of-00002.safetensors";
    type Break = fn(&Place, &str);
    let states: [(&str, Break, &str); 8] = [
        (shard, |p, f| p.shorten(f), "model-00002-of-00002.safetensors has"),
        (shard, |p, f| p.remove(f), "names model-00002-of-00002.safetensors, which is not there"),
        ("checkpoint-5/model.safetensors.index.json", |p, f| p.remove(f), "model.safetensors.index.json is not there"),
        ("checkpoint-5/model.safetensors.index.json", |p, f| p.shorten(f), "model.safetensors.index.json is not whole"),
        ("checkpoint-5/optimizer.pt", |p, f| p.shorten(f), "optimizer.pt is not whole"),
        ("checkpoint-5/trainer_state.json", |p, f| p.remove(f), "trainer_state.json is not there"),
        ("checkpoint-5/trainer_state.json", |p, f| p.shorten(f), "trainer_state.json is not whole"),
        (
            "checkpoint-5/model.safetensors.tmp",
            |p, f| p.write(f, b"x"),
            "model.safetensors.tmp still has a temporary name",
        ),
    ];
    for (file, make, expected) in states {
        let place = Place::new();
        trainer(&place, "checkpoint-5", 5);
        make(&place, file);
        let reason = place.reason();
        assert!(reason.contains(expected), "{file}: {reason}");
    }
}

#[test]
fn a_checkpoint_that_has_just_been_begun_is_unfinished() {
    let place = Place::new();
    fs::create_dir(place.path("checkpoint-7")).expect("created");
    assert_eq!(place.reason(), "it is empty");
    place.write("checkpoint-7/config.json", "{}");
    assert_eq!(place.reason(), "no file of weights is there");
    place.write("checkpoint-7/model.safetensors", b"");
    assert!(place.reason().contains("model.safetensors has 0 bytes"), "{}", place.reason());
    place.write("checkpoint-7/model.safetensors", safetensors(1));
    assert_eq!(place.finished().framework, Framework::Weights);
    place.write("checkpoint-7/training_args.bin", torch_file(b"x", 0, true));
    assert_eq!(place.reason(), "trainer_state.json is not there");
}

#[test]
fn an_index_that_was_written_before_its_shards_does_not_help() {
    let place = Place::new();
    place.write("m/model.safetensors.index.json", INDEX);
    assert!(place.reason().contains("names model-00001-of-00002.safetensors"), "{}", place.reason());
    place.write("m/model-00001-of-00002.safetensors", safetensors(1));
    assert!(place.reason().contains("model-00002-of-00002.safetensors"), "{}", place.reason());
    place.write("m/model-00002-of-00002.safetensors", safetensors(1));
    let found = place.finished();
    assert_eq!((found.framework, found.step, found.shards, found.tensors), (Framework::Weights, None, 2, 2));
    assert_eq!(found.files().map(<[_]>::len), Some(3), "what else is there does not belong to it");
}

#[test]
fn a_model_beside_its_configuration_is_judged_and_loose_files_are_not() {
    let place = Place::new();
    place.write("cache/shard-1.safetensors", b"torn");
    place.write("cache/tokens.bin", b"torn");
    place.write("data/model.safetensors", b"torn");
    assert_eq!(place.judge(), [], "a directory that merely holds such files is left alone");
    place.write("data/config.json", "{}");
    assert!(place.reason().contains("model.safetensors has 4 bytes"));
}

#[test]
fn temporary_directories_are_never_finished() {
    for name in ["tmp-checkpoint-500", "checkpoint-500.tmp", "checkpoint-500.incomplete", "global_step5.part"] {
        let place = Place::new();
        trainer(&place, name, 500);
        assert_eq!(place.reason(), "it still has a temporary name", "{name}");
    }
    let place = Place::new();
    place.write("scratch.tmp/notes.txt", "x");
    assert_eq!(place.judge(), []);
}

#[test]
fn deepspeed_needs_the_files_of_every_rank() {
    let place = Place::new();
    let states = torch_file(b"..X\x0d\0\0\0dp_world_sizeq\x18K\x03X", 2, true);
    place.write("out/latest", "global_step10");
    place.write("out/global_step10/mp_rank_00_model_states.pt", &states);
    for rank in 0..2 {
        let name = format!("out/global_step10/bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt");
        place.write(&name, torch_file(b"x", 1, true));
    }
    assert!(
        place.reason().contains("bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt is not there"),
        "{}",
        place.reason()
    );
    place.write("out/global_step10/bf16_zero_pp_rank_2_mp_rank_00_optim_states.pt", torch_file(b"x", 1, true));
    let found = place.finished();
    assert_eq!((found.framework, found.step, found.tensors), (Framework::DeepSpeed, Some(10), 5));
    place.remove("out/global_step10/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt");
    assert!(place.reason().contains("zero_pp_rank_0"));
}

#[test]
fn a_pointer_inside_a_checkpoint_needs_its_target() {
    let place = Place::new();
    trainer(&place, "checkpoint-10", 10);
    place.write("checkpoint-10/latest", "global_step10");
    assert_eq!(place.reason(), "latest names global_step10, which is not there");
    place.write("checkpoint-10/global_step10/mp_rank_00_model_states.pt", torch_file(b"x", 1, true));
    let found = place.finished();
    assert_eq!((found.framework, found.path.as_slice()), (Framework::HuggingFace, &b"checkpoint-10"[..]));
}

#[test]
fn a_distributed_checkpoint_needs_its_metadata_and_what_that_names() {
    let place = Place::new();
    place.write("step-40/__0_0.distcp", [0; 300]);
    assert_eq!(place.reason(), ".metadata is not there");
    let metadata = dcp_metadata(&[("__0_0.distcp", 0, 300), ("__1_0.distcp", 20, 400)]);
    place.write("step-40/.metadata", &metadata[..metadata.len() - 5]);
    assert_eq!(place.reason(), ".metadata is not whole");
    place.write("step-40/.metadata", &metadata);
    assert_eq!(place.reason(), "__1_0.distcp is not there, and .metadata names it");
    place.write("step-40/__1_0.distcp", [0; 419]);
    assert_eq!(place.reason(), "__1_0.distcp has 419 bytes, and .metadata says 420");
    place.write("step-40/__1_0.distcp", [0; 420]);
    let found = place.finished();
    assert_eq!((found.framework, found.step, found.shards, found.tensors), (Framework::Dcp, Some(40), 2, 1));
}

#[test]
fn lightning_writes_files_and_directories() {
    let place = Place::new();
    let whole = torch_file(b"x", 3, true);
    place.write("epoch=1-step=20.ckpt", &whole);
    let found = place.finished();
    assert_eq!((found.framework, found.step, found.tensors), (Framework::Lightning, Some(20), 3));
    assert_eq!(found.files().map(<[_]>::len), Some(1));
    place.write("epoch=1-step=20.ckpt", &whole[..whole.len() / 2]);
    assert!(place.reason().contains("epoch=1-step=20.ckpt is not whole"));
    place.write("epoch=1-step=20.ckpt", b"");
    assert_eq!(place.reason(), "epoch=1-step=20.ckpt is empty");
    place.remove("epoch=1-step=20.ckpt");
    place.write("epoch=2-step=40.ckpt/__0_0.distcp", [0; 30]);
    place.write("epoch=2-step=40.ckpt/.metadata", dcp_metadata(&[("__0_0.distcp", 0, 30)]));
    assert_eq!(place.reason(), "meta.pt is not there");
    place.write("epoch=2-step=40.ckpt/meta.pt", torch_file(b"x", 0, true));
    assert_eq!((place.finished().framework, place.finished().step), (Framework::Lightning, Some(40)));
}

#[test]
fn megatron_needs_all_model_parallel_ranks() {
    let place = Place::new();
    place.write("latest_checkpointed_iteration.txt", "100");
    for rank in ["00_000", "00_001", "01_000"] {
        place.write(&format!("iter_0000100/mp_rank_{rank}/model_optim_rng.pt"), torch_file(b"x", 2, true));
    }
    assert_eq!(place.reason(), "3 of 4 directories mp_rank_... are there");
    fs::create_dir(place.path("iter_0000100/mp_rank_01_001")).expect("created");
    assert!(place.reason().contains("mp_rank_01_001/model_optim_rng.pt is not there"), "{}", place.reason());
    place.write("iter_0000100/mp_rank_01_001/model_optim_rng.pt", torch_file(b"x", 2, true));
    let found = place.finished();
    assert_eq!((found.framework, found.step, found.shards), (Framework::Megatron, Some(100), 4));
}

#[test]
fn single_files_are_judged_by_their_end() {
    let place = Place::new();
    let whole = torch_file(b"x", 2, false);
    place.write("best.pt", &whole);
    assert_eq!((place.finished().framework, place.finished().tensors), (Framework::Torch, 2));
    for cut in [5, whole.len() / 2, whole.len() - 1] {
        place.write("best.pt", &whole[..cut]);
        assert!(place.reason().contains("best.pt is not whole"));
    }
    place.write("best.pt", b"\x80\x02 an old pickle");
    place.write("firmware.bin", b"");
    assert_eq!(place.judge(), [], "nothing can be told about these");
    place.write("best.pt.tmp", &whole);
    assert!(place.reason().contains("temporary name"));
    place.remove("best.pt.tmp");
    (0..300).for_each(|n| place.write(&format!("{n}.pt"), b"PK\x03\x04"));
    assert_eq!(place.judge(), [], "so many are a dataset");
}

#[test]
fn what_was_modified_lately_is_not_settled() {
    let place = Place::new();
    trainer(&place, "checkpoint-5", 5);
    let judge = |settle, ahead| place.judge_with(&ScanOptions::default(), settle, ahead).remove(0);
    let reason = judge(60, 10).unfinished.expect("fresh");
    assert!(reason.contains("was modified") && reason.contains("after 60 s"), "{reason}");
    assert_eq!(judge(60, 61).unfinished, None);
    assert_eq!(judge(0, 0).unfinished, None);
    let ahead = std::time::SystemTime::now() + Duration::from_secs(500_000);
    set_mtime(&place.path("checkpoint-5/config.json"), ahead);
    let status = place.judge_with(&ScanOptions::default(), 60, -400_000).remove(0);
    assert_eq!(status.unfinished, None, "a time in the future counts as settled");
    assert!(status.warning.expect("said").contains("config.json has a modification time in the future"));
}

#[test]
fn what_is_excluded_counts_as_there() {
    let place = Place::new();
    trainer(&place, "checkpoint-5", 5);
    place.shorten("checkpoint-5/model-00002-of-00002.safetensors");
    let excludes = Excludes::new(&["model-00002*".to_owned()], &[]).expect("a pattern");
    let options = ScanOptions { excludes, ..ScanOptions::default() };
    assert_eq!(place.judge_with(&options, 0, 0)[0].unfinished, None);
    let excludes = Excludes::new(&["checkpoint-*".to_owned()], &[]).expect("a pattern");
    let options = ScanOptions { excludes, ..ScanOptions::default() };
    assert_eq!(place.judge_with(&options, 0, 0), []);
}

#[test]
fn a_run_with_a_final_model_and_checkpoints_has_one_judgement_for_each() {
    let place = Place::new();
    trainer(&place, "checkpoint-5", 5);
    trainer(&place, "checkpoint-10", 10);
    place.write("config.json", "{}");
    place.write("model.safetensors", &safetensors(2)[..40]);
    place.write("logs/events", "x");
    let found = place.judge();
    let state: Vec<_> = found.iter().map(|c| (c.path.as_slice(), c.unfinished.is_none())).collect();
    assert_eq!(state, [(&b""[..], false), (b"checkpoint-10", true), (b"checkpoint-5", true)]);
    assert_eq!(found[0].files().expect("some files"), [b"model.safetensors".to_vec()]);
}

#[test]
fn a_change_after_the_judgement_is_noticed() {
    let place = Place::new();
    trainer(&place, "checkpoint-5", 5);
    let judged = place.finished();
    let look = |name: &str| {
        let status = fs::metadata(place.path(name)).expect("there");
        let status = crate::source::stat::FileStatus::from_std(&status);
        judged.knows(name.as_bytes(), status.size, status.mtime, status.ctime, status.inode)
    };
    assert!(look("checkpoint-5/config.json"));
    place.write("checkpoint-5/config.json", "{ }");
    assert!(!look("checkpoint-5/config.json"));
    place.write("checkpoint-5/late", "");
    assert!(!look("checkpoint-5/late"));
}

#[test]
fn damaged_headers_of_any_kind_do_no_harm() {
    let place = Place::new();
    let mut huge = u64::MAX.to_le_bytes().to_vec();
    huge.extend_from_slice(b"{}");
    for bytes in [&huge[..], b"\x02\0\0\0\0\0\0\0[]", b"\x02\0\0\0\0\0\0\0{x", b"\x01\0\0"] {
        place.write("checkpoint-1/model.safetensors", bytes);
        place.write("checkpoint-1/trainer_state.json", "{}");
        assert!(place.reason().contains("model.safetensors"), "{bytes:?}");
    }
    place.write("checkpoint-1/model.safetensors", safetensors(1));
    let metadata = dcp_metadata(&[("__0_0.distcp", 0, 300)]);
    place.write("checkpoint-1/__0_0.distcp", [0; 300]);
    for at in 0..metadata.len() {
        for byte in [0u8, 0x95, b'B', 0xff] {
            let mut broken = metadata.clone();
            broken[at] = byte;
            place.write("checkpoint-1/.metadata", &broken);
            assert_eq!(place.judge().len(), 1);
        }
    }
}
