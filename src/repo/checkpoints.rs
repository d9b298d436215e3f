//! The checkpoints that a snapshot lists: what was known about each when it was saved, and how one is found by its step.

use super::snapshots::{Narrow, Snapshot};
use crate::error::{Error, Kind, Result};
use crate::paths::is_beneath;
use minicbor::{Decode, Encode};
use std::collections::BTreeSet;

/// The most checkpoints that a snapshot lists.
pub const RECORDS_MAX: usize = 65_536;
/// The longest path, name or reason in a record.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// A checkpoint in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// The index of the root that holds it.
    pub root: u32,
    /// Relative to the root: its directory, or the file that it is; empty for the root itself.
    pub path: Vec<u8>,
    /// Its step, if that is known.
    pub step: Option<u64>,
    /// Who wrote it: `hf-trainer`, `deepspeed` and so on.
    pub framework: String,
    /// Files that hold weights.
    pub shards: u64,
    /// Tensors in them, as far as headers tell.
    pub tensors: u64,
    /// Bytes of all its files.
    pub bytes: u64,
    /// Why it is not finished, if it was stored all the same.
    pub unfinished: Option<String>,
}

impl CheckpointRecord {
    /// Where it lay when it was backed up.
    pub fn absolute_path(&self, snapshot: &Snapshot) -> Vec<u8> {
        let root = usize::try_from(self.root).ok().and_then(|n| snapshot.roots.get(n));
        let mut path = root.cloned().unwrap_or_default();
        if !self.path.is_empty() {
            if path.last() != Some(&b'/') {
                path.push(b'/');
            }
            path.extend_from_slice(&self.path);
        }
        path
    }
}

/// The record as it is stored.
#[derive(Debug, Encode, Decode)]
#[cbor(map)]
pub(super) struct StoredRecord {
    #[n(0)]
    root: u32,
    #[cbor(n(1), with = "minicbor::bytes")]
    path: Vec<u8>,
    #[n(2)]
    step: Option<u64>,
    #[n(3)]
    framework: String,
    #[n(4)]
    shards: u64,
    #[n(5)]
    tensors: u64,
    #[n(6)]
    bytes: u64,
    #[n(7)]
    unfinished: Option<String>,
}

/// The list to store; none if it is empty.
pub(super) fn to_stored(records: &[CheckpointRecord]) -> Option<Vec<StoredRecord>> {
    let stored = |record: &CheckpointRecord| StoredRecord {
        root: record.root,
        path: record.path.clone(),
        step: record.step,
        framework: record.framework.clone(),
        shards: record.shards,
        tensors: record.tensors,
        bytes: record.bytes,
        unfinished: record.unfinished.as_deref().map(shortened),
    };
    (!records.is_empty()).then(|| records.iter().take(RECORDS_MAX).map(stored).collect())
}

/// The list that was stored. One that breaks the bounds is damage.
pub(super) fn from_stored(stored: Vec<StoredRecord>, roots: usize) -> Result<Vec<CheckpointRecord>> {
    let is_sound = |record: &StoredRecord| {
        let lengths = [record.path.len(), record.framework.len(), record.unfinished.as_ref().map_or(0, String::len)];
        usize::try_from(record.root).is_ok_and(|root| root < roots) && lengths.iter().all(|&n| n <= TEXT_BYTES_MAX)
    };
    if stored.len() > RECORDS_MAX || !stored.iter().all(is_sound) {
        return Err(Error::damaged("the list of checkpoints of a snapshot breaks its bounds"));
    }
    let record = |r: StoredRecord| CheckpointRecord {
        root: r.root,
        path: r.path,
        step: r.step,
        framework: r.framework,
        shards: r.shards,
        tensors: r.tensors,
        bytes: r.bytes,
        unfinished: r.unfinished,
    };
    Ok(stored.into_iter().map(record).collect())
}

fn shortened(text: &str) -> String {
    let mut end = text.len().min(1024);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// The finished checkpoint of `step` in `snapshot` that lies beneath the path of `narrow`; none if there is none.
///
/// [`Kind::Usage`] if there are several: a step of another run must not be taken for the one that is meant.
pub fn checkpoint_of_step<'a>(
    snapshot: &'a Snapshot,
    step: u64,
    narrow: &Narrow,
) -> Result<Option<&'a CheckpointRecord>> {
    let fitting = of_step(snapshot, step, narrow);
    match fitting.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(one)),
        several => {
            let paths: Vec<_> =
                several.iter().map(|r| String::from_utf8_lossy(&r.absolute_path(snapshot)).into_owned()).collect();
            let text = format!("snapshot {} holds several of step {step}: {}", snapshot.id.short(), paths.join("; "));
            Err(Error::new(Kind::Usage, text).with_hint("say which with --path"))
        }
    }
}

/// True if `snapshot` holds a finished checkpoint of `step`.
pub(super) fn holds_step(snapshot: &Snapshot, step: u64, narrow: &Narrow) -> bool {
    !of_step(snapshot, step, narrow).is_empty()
}

fn of_step<'a>(snapshot: &'a Snapshot, step: u64, narrow: &Narrow) -> Vec<&'a CheckpointRecord> {
    let is_meant = |record: &&CheckpointRecord| {
        let is_there = |path: &Vec<u8>| is_beneath(&record.absolute_path(snapshot), path);
        // The path may also be a directory in the checkpoint, or say no more than which root is meant.
        let is_in = |path: &Vec<u8>| is_beneath(path, &record.absolute_path(snapshot));
        narrow.path.as_ref().is_none_or(|path| is_there(path) || is_in(path))
    };
    let is_finished = |record: &&CheckpointRecord| record.step == Some(step) && record.unfinished.is_none();
    snapshot.checkpoints.iter().filter(is_finished).filter(is_meant).collect()
}

/// The steps of the finished checkpoints in these snapshots.
pub fn steps_of<'a>(snapshots: impl Iterator<Item = &'a Snapshot>) -> BTreeSet<u64> {
    let finished = snapshots.flat_map(|s| &s.checkpoints).filter(|record| record.unfinished.is_none());
    finished.filter_map(|record| record.step).collect()
}

/// `step 500`, `steps 500, 700`, `step 1000..5000 (5)`; nothing for no steps.
pub fn steps_in_words(steps: &BTreeSet<u64>) -> String {
    match (steps.first(), steps.last()) {
        (Some(only), Some(_)) if steps.len() == 1 => format!("step {only}"),
        (Some(first), Some(last)) if steps.len() == 2 => format!("steps {first}, {last}"),
        (Some(first), Some(last)) => format!("step {first}..{last} ({})", steps.len()),
        _ => String::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::repo::keys::Keys;
    use crate::repo::snapshots::tests::snapshot;
    use crate::repo::snapshots::{Outcome, SelectorBase, select};

    pub(crate) fn record(path: &str, step: u64) -> CheckpointRecord {
        CheckpointRecord {
            root: 0,
            path: path.as_bytes().to_vec(),
            step: Some(step),
            framework: "hf-trainer".to_owned(),
            shards: 2,
            tensors: 30,
            bytes: 4000,
            unfinished: None,
        }
    }

    fn holding(n: u8, seconds: i64, steps: &[u64]) -> Snapshot {
        let checkpoints = steps.iter().map(|step| record(&format!("checkpoint-{step}"), *step)).collect();
        Snapshot { checkpoints, ..snapshot(n, "h", seconds) }
    }

    #[test]
    fn records_round_trip_and_their_bounds_are_kept() {
        let mut saved = holding(1, 5, &[1, 2]);
        saved.checkpoints[1].unfinished = Some("a shard is not there".to_owned());
        saved.checkpoints[1].step = None;
        let object = Outcome::Saved(Box::new(saved.clone())).seal(&Keys::plain(), saved.id).expect("small");
        assert_eq!(
            Outcome::open(&Keys::plain(), saved.id, &object).expect("own bytes"),
            (Outcome::Saved(Box::new(saved.clone())), true)
        );
        saved.checkpoints[0].root = 7;
        let object = Outcome::Saved(Box::new(saved.clone())).seal(&Keys::plain(), saved.id).expect("small");
        assert_eq!(Outcome::open(&Keys::plain(), saved.id, &object).expect_err("no such root").kind(), Kind::Damaged);
    }

    #[test]
    fn a_step_is_found_in_the_newest_snapshot_that_holds_it_finished() {
        let mut all = [holding(1, 10, &[100, 200]), holding(2, 20, &[200, 300]), holding(3, 30, &[300, 400])];
        all[2].checkpoints[0].unfinished = Some("no".to_owned());
        let pick = |step| select(&all, &SelectorBase::Step(step), &Narrow::default()).map(|s| s.id.as_bytes()[0]);
        assert_eq!(pick(100).expect("there"), 1);
        assert_eq!(pick(200).expect("there"), 2);
        assert_eq!(pick(300).expect("the newer one is unfinished"), 2);
        let error = pick(999).expect_err("absent");
        assert_eq!(error.kind(), Kind::NotFound);
        assert!(error.to_string().contains("step 100..400 (4)"), "{error}");
    }

    #[test]
    fn a_step_of_two_runs_has_to_be_told_apart() {
        let mut both = holding(1, 10, &[]);
        both.checkpoints = vec![record("a/checkpoint-5", 5), record("b/checkpoint-5", 5)];
        let error = checkpoint_of_step(&both, 5, &Narrow::default()).expect_err("two");
        assert!(error.kind() == Kind::Usage && error.to_string().contains("/data/b/checkpoint-5"), "{error}");
        let narrow = Narrow { path: Some(b"/data/b".to_vec()), ..Narrow::default() };
        let found = checkpoint_of_step(&both, 5, &narrow).expect("one").expect("there");
        assert_eq!(found.absolute_path(&both), b"/data/b/checkpoint-5");
        let other = Snapshot { host: "other".into(), ..holding(2, 20, &[5]) };
        let all = [holding(1, 10, &[5]), other];
        assert_eq!(select(&all, &SelectorBase::Step(5), &Narrow::default()).expect_err("two").kind(), Kind::Usage);
    }

    #[test]
    fn steps_are_told_briefly() {
        let words = |steps: &[u64]| steps_in_words(&steps.iter().copied().collect());
        assert_eq!(words(&[]), "");
        assert_eq!(words(&[5]), "step 5");
        assert_eq!(words(&[7, 5]), "steps 5, 7");
        assert_eq!(words(&[1000, 2000, 3000, 4000, 5000]), "step 1000..5000 (5)");
    }
}
