//! Directories that may be checkpoints: indexes and states in JSON, metadata, ends of archives.

use ckpt::metadata::FileTime;
use ckpt::source::complete::{self, JudgeOptions, is_pointer, is_step_directory, pointer_target, survey};
use ckpt::source::scan::ScanOptions;
use std::cell::RefCell;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// The files that a rule reads, by the byte that stands before their content.
const NAMES: &[&str] = &[
    "model.safetensors.index.json",
    "model-00001-of-00002.safetensors",
    "model-00002-of-00002.safetensors",
    "trainer_state.json",
    "config.json",
    "pytorch_model.bin",
    "optimizer.pt",
    ".metadata",
    "__0_0.distcp",
    "mp_rank_00_model_states.pt",
    "latest",
    "common.pt",
    "metadata.json",
    "epoch=1-step=2.ckpt",
];

thread_local! {
    static FOLDER: RefCell<Option<tempfile::TempDir>> = const { RefCell::new(None) };
}

/// A directory called like a step: for each file the number of its name, the length of its content (`u16`), the content.
pub fn folder(bytes: &[u8]) -> bool {
    FOLDER.with_borrow_mut(|folder| {
        let memory = Path::new("/dev/shm");
        let made = || if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let folder = folder.get_or_insert_with(|| made().expect("a folder"));
        look(&folder.path().join("checkpoint-2"), bytes)
    })
}

fn look(step: &Path, mut bytes: &[u8]) -> bool {
    fs::create_dir_all(step).expect("a folder");
    while let Some((name, rest)) = bytes.split_first() {
        let (content, rest) = super::split(rest);
        bytes = rest;
        fs::write(step.join(NAMES[usize::from(*name) % NAMES.len()]), content).expect("written");
    }
    let options = JudgeOptions { now: FileTime { seconds: 8_000_000_000, nanoseconds: 0 }, settle: Duration::ZERO };
    let root = step.parent().expect("a folder").to_owned();
    let found: complete::Survey =
        survey(&[root], &ScanOptions::default(), &options, &|| Ok(())).expect("the folder is there");
    let mut is_finished = false;
    for checkpoint in &found.checkpoints {
        assert!(checkpoint.unfinished.as_ref().is_none_or(|why| why.len() < 10_000), "{checkpoint:?}");
        is_finished |= checkpoint.unfinished.is_none();
    }
    fs::remove_dir_all(step).expect("removed");
    is_finished
}

/// The name of a pointer, then its content.
pub fn pointer(bytes: &[u8]) -> bool {
    let (name, content) = super::split(bytes);
    let _ = (is_pointer(name), is_step_directory(name));
    match pointer_target(name, content) {
        Some(target) => {
            assert!(!target.contains(&b'/') && !target.contains(&0) && target != b"..", "{target:?}");
            true
        }
        None => false,
    }
}
