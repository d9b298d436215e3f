//! Which directories and files are checkpoints, and the rules that each kind has to pass.

use super::folder::{Folder, Verdict, name_of, shown};
use super::names::{StepStyle, step_directory, step_of_file, without_temporary};
use super::{Checkpoint, Framework, JudgeOptions, Members, Tally, is_file, names, stamp_of};
use super::{dcp, deepspeed, hugging_face, lightning, megatron, torch, weights};
use crate::metadata::FileTime;
use crate::source::scan::Found;

/// A directory with more files of `torch.save` than this is a dataset: none of them is judged.
const TORCH_FILES_MAX: usize = 256;
/// A pointer is a short text.
const POINTER_BYTES_MAX: u64 = 4096;

/// Tells the files of a checkpoint from its neighbours by their names.
type IsMember = fn(&[u8]) -> bool;

/// Finds and judges the checkpoints in a directory and beneath it.
pub(super) fn judge_tree(root: u32, folder: &Folder, options: &JudgeOptions, found: &mut Vec<Checkpoint>) {
    if let Some(framework) = framework_of(folder) {
        return found.push(judge_directory(root, folder, framework, options));
    }
    judge_flat(root, folder, options, found);
    folder.folders.iter().for_each(|below| judge_tree(root, below, options, found));
}

/// The style and step of a directory's name, a temporary one too; and whether it is temporary.
pub(super) fn style_of(name: &[u8]) -> Option<(StepStyle, Option<u64>, bool)> {
    if let Some(rest) = without_temporary(name)
        && let Some((style, step)) = step_directory(rest)
    {
        return Some((style, step, true));
    }
    step_directory(name).map(|(style, step)| (style, step, false))
}

/// Who writes a directory of this name with such content; none if it is no checkpoint of its own.
fn framework_of(folder: &Folder) -> Option<Framework> {
    let (style, _, is_temporary) = style_of(&folder.name)?;
    let is_config = |name: &[u8]| matches!(name, b"config.json" | b"adapter_config.json" | b"generation_config.json");
    let has_weights = folder.any_file(|name| names::is_weights(name) || name == b".metadata");
    let is_begun = match style {
        StepStyle::Checkpoint => folder.is_empty() || folder.any_file(is_config) || hugging_face::is_trainer(folder),
        StepStyle::GlobalStep | StepStyle::Iteration => folder.is_empty(),
        StepStyle::Step | StepStyle::Ckpt => is_temporary && folder.is_empty(),
    };
    if !has_weights && !is_begun {
        return None;
    }
    Some(match style {
        _ if hugging_face::is_trainer(folder) => Framework::HuggingFace,
        StepStyle::Ckpt => Framework::Lightning,
        StepStyle::Iteration => Framework::Megatron,
        StepStyle::GlobalStep => Framework::DeepSpeed,
        _ if deepspeed::is_deepspeed(folder) => Framework::DeepSpeed,
        _ if folder.all().iter().any(|below| dcp::is_dcp(below)) => Framework::Dcp,
        StepStyle::Checkpoint | StepStyle::Step => Framework::Weights,
    })
}

/// Judges a directory that is a checkpoint with all beneath it.
fn judge_directory(root: u32, folder: &Folder, framework: Framework, options: &JudgeOptions) -> Checkpoint {
    let mut tally = Tally { path_bytes: folder.path.len(), ..Tally::default() };
    let all = folder.all();
    let step = style_of(&folder.name).and_then(|(_, step, _)| step);
    let files = || all.iter().flat_map(|below| &below.files);
    let mut warning = None;
    let verdict = directory_rules(folder, framework, options, &mut tally, &mut warning);
    let mut stamps: Vec<u64> = all.iter().map(|below| below.stamp).chain(files().map(stamp_of)).collect();
    stamps.sort_unstable();
    Checkpoint {
        root,
        path: folder.path.clone(),
        framework,
        step: step.or(tally.step),
        shards: tally.shards,
        tensors: tally.tensors,
        bytes: files().fold(0, |sum, file| sum.saturating_add(file.metadata.size)),
        unfinished: verdict.err(),
        warning,
        members: Members::Subtree,
        stamps,
    }
}

fn directory_rules(
    folder: &Folder,
    framework: Framework,
    options: &JudgeOptions,
    tally: &mut Tally,
    warning: &mut Option<String>,
) -> Verdict {
    if style_of(&folder.name).is_some_and(|(_, _, is_temporary)| is_temporary) {
        return Err("it still has a temporary name".to_owned());
    }
    let all = folder.all();
    if let Some(problem) = all.iter().find_map(|below| below.problem.as_ref()) {
        return Err(problem.clone());
    }
    if folder.is_empty() {
        return Err("it is empty".to_owned());
    }
    let files: Vec<&Found> = all.iter().flat_map(|below| &below.files).collect();
    let newest_folder = all.iter().map(|below| below.mtime).max();
    settled(&files, newest_folder, options, tally, warning)?;
    for below in &all {
        content_rules(below, tally)?;
    }
    match framework {
        Framework::HuggingFace => hugging_face::check(folder, tally),
        // A name of the Trainer without its files: weights that somebody keeps by step.
        Framework::Weights if step_directory(&folder.name).is_some_and(|(s, _)| s == StepStyle::Checkpoint) => {
            hugging_face::check(folder, tally)
        }
        Framework::Lightning => lightning::check(folder),
        Framework::Megatron => megatron::check(folder),
        _ => Ok(()),
    }
}

/// What holds for every directory of a checkpoint.
fn content_rules(folder: &Folder, tally: &mut Tally) -> Verdict {
    weights::check(folder, tally)?;
    dcp::check(folder, tally)?;
    deepspeed::check(folder, tally)?;
    for file in folder.files.iter().filter(|file| names::is_pointer(name_of(file))) {
        if file.metadata.size > POINTER_BYTES_MAX {
            continue;
        }
        let content = super::folder::read_front(file, tally, POINTER_BYTES_MAX)?;
        if let Some(target) = names::pointer_target(name_of(file), &content)
            && !folder.has(&target)
        {
            let target = String::from_utf8_lossy(&target).into_owned();
            return Err(format!("{} names {target}, which is not there", shown(file, tally)));
        }
    }
    Ok(())
}

/// Nothing was modified within the settling time. What is dated further ahead than that has a wrong clock, and counts as settled.
fn settled(
    files: &[&Found],
    folders: Option<FileTime>,
    options: &JudgeOptions,
    tally: &Tally,
    warning: &mut Option<String>,
) -> Verdict {
    let settle_seconds = options.settle.as_secs_f64();
    let age_seconds = |time: FileTime| {
        let between = |a: i64, b: i64| a.saturating_sub(b) as f64;
        between(options.now.seconds, time.seconds)
            + (f64::from(options.now.nanoseconds) - f64::from(time.nanoseconds)) / 1e9
    };
    let is_fresh = |time: FileTime| age_seconds(time).abs() < settle_seconds;
    let is_ahead = |time: FileTime| age_seconds(time) < 0.0 && !is_fresh(time);
    let newest = files.iter().filter(|file| is_fresh(file.metadata.mtime)).max_by_key(|file| file.metadata.mtime);
    if let Some(file) = newest {
        let age = age_seconds(file.metadata.mtime).max(0.0);
        return Err(format!(
            "{} was modified {age:.0} s ago, and it counts as settled after {settle_seconds:.0} s",
            shown(file, tally)
        ));
    }
    if folders.is_some_and(is_fresh) {
        return Err(format!("a file came, went or was renamed less than {settle_seconds:.0} s ago"));
    }
    if let Some(file) = files.iter().find(|file| is_ahead(file.metadata.mtime)) {
        *warning = Some(format!("{} has a modification time in the future, and counts as settled", shown(file, tally)));
    }
    Ok(())
}

/// Judges what lies directly in a directory that is no checkpoint by its name.
pub(super) fn judge_flat(root: u32, folder: &Folder, options: &JudgeOptions, found: &mut Vec<Checkpoint>) {
    let kinds: [(Framework, bool, IsMember); 3] = [
        (Framework::DeepSpeed, deepspeed::is_deepspeed(folder), deepspeed::is_member),
        (Framework::Dcp, dcp::is_dcp(folder), dcp::is_member),
        (Framework::Weights, weights::is_model(folder), weights::is_member),
    ];
    for (framework, is_it, is_member) in kinds {
        if is_it {
            return found.push(judge_members(root, folder, framework, is_member, options));
        }
    }
    let is_single = |file: &&Found| {
        let name = name_of(file);
        names::is_torch(without_temporary(name).unwrap_or(name))
    };
    let files: Vec<&Found> = folder.files.iter().filter(is_single).collect();
    if files.len() <= TORCH_FILES_MAX {
        found.extend(files.into_iter().filter_map(|file| judge_file(root, file)));
    }
}

/// Judges a directory of which only some files are the checkpoint.
fn judge_members(
    root: u32,
    folder: &Folder,
    framework: Framework,
    is_member: IsMember,
    options: &JudgeOptions,
) -> Checkpoint {
    let mut tally = Tally { path_bytes: folder.path.len(), ..Tally::default() };
    let mut warning = None;
    let files: Vec<&Found> = folder
        .files
        .iter()
        .filter(|file| is_member(without_temporary(name_of(file)).unwrap_or(name_of(file))))
        .collect();
    let verdict = settled(&files, None, options, &tally, &mut warning).and_then(|()| content_rules(folder, &mut tally));
    let mut stamps: Vec<u64> = files.iter().map(|file| stamp_of(file)).collect();
    stamps.sort_unstable();
    let mut paths: Vec<Vec<u8>> = files.iter().map(|file| file.path.clone()).collect();
    paths.sort_unstable();
    Checkpoint {
        root,
        path: folder.path.clone(),
        framework,
        step: tally.step.or_else(|| style_of(&folder.name).and_then(|(_, step, _)| step)),
        shards: tally.shards,
        tensors: tally.tensors,
        bytes: files.iter().fold(0, |sum, file| sum.saturating_add(file.metadata.size)),
        unfinished: verdict.err(),
        warning,
        members: Members::Files(paths),
        stamps,
    }
}

/// Judges a single file of `torch.save`; none if it is something else.
pub(super) fn judge_file(root: u32, file: &Found) -> Option<Checkpoint> {
    if !is_file(file) {
        return None;
    }
    let name = name_of(file);
    let tally = Tally { path_bytes: file.path.len().saturating_sub(name.len()), ..Tally::default() };
    let is_temporary = without_temporary(name).is_some();
    // Many things are called `.bin`, and many of them may be empty.
    if file.metadata.size == 0 && (name.ends_with(b".bin") || is_temporary) {
        return None;
    }
    let (tensors, unfinished) = match torch::check(file, &tally) {
        Ok(None) => return None,
        Ok(Some(_)) if is_temporary => (0, Some(format!("{} still has a temporary name", shown(file, &tally)))),
        Ok(Some(tensors)) => (tensors, None),
        Err(reason) => (0, Some(reason)),
    };
    Some(Checkpoint {
        root,
        path: file.path.clone(),
        framework: if names::is_lightning(name) { Framework::Lightning } else { Framework::Torch },
        step: step_of_file(name),
        shards: 1,
        tensors,
        bytes: file.metadata.size,
        unfinished,
        warning: None,
        members: Members::Files(vec![file.path.clone()]),
        stamps: vec![stamp_of(file)],
    })
}
