//! What the names of files and directories say: the step, a temporary name, a pointer. Pure.

/// How a directory calls its step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepStyle {
    /// `checkpoint-500`.
    Checkpoint,
    /// `global_step500`.
    GlobalStep,
    /// `iter_0000500`.
    Iteration,
    /// `step-500`, `epoch=3-step=500`.
    Step,
    /// `name.ckpt`, a directory; its step only if it says one.
    Ckpt,
}

/// Extensions of files of weights.
const WEIGHTS: [&[u8]; 6] = [b".safetensors", b".bin", b".pt", b".pth", b".ckpt", b".distcp"];
/// Extensions of files that `torch.save` writes.
const TORCH: [&[u8]; 4] = [b".pt", b".pth", b".bin", b".ckpt"];
const TEMPORARY_BEGINNINGS: [&[u8]; 4] = [b".tmp-", b".tmp_", b"tmp-", b"tmp_"];
const TEMPORARY_ENDS: [&[u8]; 5] = [b".tmp", b".incomplete", b".partial", b".part", b"-tmp"];
/// The number in the name is believed up to so many digits.
const DIGITS_MAX: usize = 18;

/// The style and the step of a directory's name, if it is one of a step.
pub(super) fn step_directory(name: &[u8]) -> Option<(StepStyle, Option<u64>)> {
    let numbered: [(&[u8], StepStyle); 9] = [
        (b"checkpoint-", StepStyle::Checkpoint),
        (b"checkpoint_", StepStyle::Checkpoint),
        (b"global_step_", StepStyle::Step),
        (b"global_step", StepStyle::GlobalStep),
        (b"iter_", StepStyle::Iteration),
        (b"step-", StepStyle::Step),
        (b"step_", StepStyle::Step),
        (b"step=", StepStyle::Step),
        (b"step", StepStyle::Step),
    ];
    // What DeepSpeed converts for other numbers of ranks: thousands of small files, one checkpoint.
    // Its step is left to the directory it was made from.
    let made_from = name.strip_suffix(b"_universal").and_then(|name| name.strip_prefix(b"global_step"));
    if made_from.and_then(number).is_some() {
        return Some((StepStyle::GlobalStep, None));
    }
    for (beginning, style) in numbered {
        if let Some(step) = name.strip_prefix(beginning).and_then(number) {
            return Some((style, Some(step)));
        }
    }
    if let Some(stem) = name.strip_suffix(b".ckpt").filter(|stem| !stem.is_empty()) {
        return Some((StepStyle::Ckpt, named_step(stem)));
    }
    (name.starts_with(b"epoch=") && named_step(name).is_some()).then(|| (StepStyle::Step, named_step(name)))
}

/// The step that the name of a file of weights says: behind `step`, `iter` or `checkpoint`.
pub(super) fn step_of_file(name: &[u8]) -> Option<u64> {
    let stem = name.rsplitn(2, |&b| b == b'.').last().unwrap_or(name);
    named_step(stem)
}

/// The number behind the last of the words that announce a step.
fn named_step(stem: &[u8]) -> Option<u64> {
    let words: [&[u8]; 3] = [b"step", b"iter", b"checkpoint"];
    let mut found = None;
    for (at, _) in stem.iter().enumerate() {
        let Some(rest) = words.iter().find_map(|word| stem.get(at..)?.strip_prefix(*word)) else { continue };
        let rest = rest.strip_prefix(b"=").or(rest.strip_prefix(b"_")).or(rest.strip_prefix(b"-")).unwrap_or(rest);
        let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
        found = rest.get(..digits).and_then(number).or(found);
    }
    found
}

/// True for a file that Lightning names by epoch and step.
pub(super) fn is_lightning(name: &[u8]) -> bool {
    let has = |part: &[u8]| name.windows(part.len()).any(|window| window == part);
    name.ends_with(b".ckpt") && (has(b"epoch=") || has(b"step="))
}

/// True for the extensions of files of weights.
pub(super) fn is_weights(name: &[u8]) -> bool {
    WEIGHTS.iter().any(|end| name.ends_with(end))
}

/// True for the extensions of files that `torch.save` writes.
pub(super) fn is_torch(name: &[u8]) -> bool {
    TORCH.iter().any(|end| name.ends_with(end))
}

/// The name behind a temporary one: `checkpoint-5` for `tmp-checkpoint-5`.
pub(super) fn without_temporary(name: &[u8]) -> Option<&[u8]> {
    let stripped = TEMPORARY_BEGINNINGS.iter().find_map(|mark| name.strip_prefix(*mark));
    let stripped = stripped.or_else(|| TEMPORARY_ENDS.iter().find_map(|mark| name.strip_suffix(*mark)));
    stripped.filter(|rest| !rest.is_empty())
}

/// True for the name of a file that says which checkpoint is the newest.
pub fn is_pointer(name: &[u8]) -> bool {
    matches!(name, b"latest" | b"latest_universal" | b"latest_checkpointed_iteration.txt")
}

/// The name, beside the pointer called `pointer`, that its content names; none if it is not the name of a checkpoint.
pub fn pointer_target(pointer: &[u8], content: &[u8]) -> Option<Vec<u8>> {
    let text = content.trim_ascii();
    if pointer == b"latest_checkpointed_iteration.txt" {
        return match (text, number(text)) {
            (b"release", _) => Some(text.to_vec()),
            (_, Some(iteration)) => Some(format!("iter_{iteration:07}").into_bytes()),
            _ => None,
        };
    }
    step_directory(text).map(|_| text.to_vec())
}

/// `00002` and `00003` of `model-00002-of-00003.safetensors`, with what stands before and behind.
pub(super) fn numbered(name: &[u8]) -> Option<Numbered<'_>> {
    let of = name.windows(4).rposition(|window| window == b"-of-")?;
    let (front, behind) = (&name[..of], &name[of + 4..]);
    let digits = behind.iter().take_while(|b| b.is_ascii_digit()).count();
    let (total, end) = behind.split_at(digits);
    let dash = front.iter().rposition(|&b| b == b'-')?;
    let (stem, mine) = (&front[..dash], &front[dash + 1..]);
    Some(Numbered { stem, index: number(mine)?, total: number(total)?, digits: mine.len(), end })
}

/// See [`numbered`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbered<'a> {
    pub(super) stem: &'a [u8],
    pub(super) index: u64,
    pub(super) total: u64,
    /// How many digits the numbers have.
    pub(super) digits: usize,
    /// The extension, with its dot.
    pub(super) end: &'a [u8],
}

/// A number of digits and nothing else.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > DIGITS_MAX || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_of_steps_are_known_by_their_names() {
        let of = |name: &str| step_directory(name.as_bytes());
        assert_eq!(of("checkpoint-500"), Some((StepStyle::Checkpoint, Some(500))));
        assert_eq!(of("global_step12"), Some((StepStyle::GlobalStep, Some(12))));
        assert_eq!(of("global_step12_universal"), Some((StepStyle::GlobalStep, None)));
        assert_eq!(of("global_step_12"), Some((StepStyle::Step, Some(12))));
        assert_eq!(of("iter_0000100"), Some((StepStyle::Iteration, Some(100))));
        assert_eq!(of("epoch=3-step=1200.ckpt"), Some((StepStyle::Ckpt, Some(1200))));
        assert_eq!(of("last.ckpt"), Some((StepStyle::Ckpt, None)));
        for other in ["checkpoint", "checkpoint-", "checkpoint-5x", "steps", "step", "iter_1_old", ".ckpt", "data"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    #[test]
    fn files_say_their_step() {
        let of = |name: &str| step_of_file(name.as_bytes());
        assert_eq!(of("epoch=3-step=1200.ckpt"), Some(1200));
        assert_eq!(of("epoch=3-step=1200-v1.ckpt"), Some(1200));
        assert_eq!(of("model_step_77.pt"), Some(77));
        assert_eq!(of("checkpoint-5.pth"), Some(5));
        assert_eq!(of("model_best.pt"), None);
        assert_eq!(of("step99999999999999999999.pt"), None);
    }

    #[test]
    fn temporary_names_show_what_they_will_be() {
        for name in ["tmp-checkpoint-5", "checkpoint-5.tmp", ".tmp-checkpoint-5", "checkpoint-5.incomplete"] {
            assert_eq!(without_temporary(name.as_bytes()), Some(&b"checkpoint-5"[..]), "{name}");
        }
        assert_eq!(without_temporary(b"checkpoint-5"), None);
        assert_eq!(without_temporary(b".tmp"), None);
    }

    #[test]
    fn pointers_name_a_neighbour_or_nothing() {
        assert_eq!(pointer_target(b"latest", b"global_step5\n"), Some(b"global_step5".to_vec()));
        assert_eq!(pointer_target(b"latest", b"../../etc/passwd"), None);
        assert_eq!(pointer_target(b"latest", b"a log line"), None);
        let tracker = b"latest_checkpointed_iteration.txt";
        assert_eq!(pointer_target(tracker, b"100"), Some(b"iter_0000100".to_vec()));
        assert_eq!(pointer_target(tracker, b"release"), Some(b"release".to_vec()));
        assert_eq!(pointer_target(tracker, b""), None);
    }

    #[test]
    fn numbered_shards_are_taken_apart() {
        let found = numbered(b"model-00002-of-00003.safetensors").expect("numbered");
        assert_eq!((found.stem, found.index, found.total), (&b"model"[..], 2, 3));
        assert_eq!((found.digits, found.end), (5, &b".safetensors"[..]));
        assert_eq!(numbered(b"one-of-many.bin"), None);
        assert_eq!(numbered(b"-of-"), None);
    }
}
