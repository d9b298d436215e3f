//! Which run of one file is which run of another.

use super::{BaseFile, PlannedRun, RunBase};
use crate::codec::Relation;
use crate::source::layout::{Cut, Dtype, Layout, Run};
use std::collections::HashMap;
use std::sync::Arc;

/// What trainers put before the names of a model when they wrap it.
const WRAPPINGS: [&str; 3] = ["state_dict.", "model_state_dict.", "module."];

/// The name of the data of a run, whatever wraps it.
fn plain_key(run: &Run) -> &str {
    let mut key = run.key.as_str();
    while let Some(inner) = WRAPPINGS.iter().find_map(|wrapping| key.strip_prefix(wrapping)) {
        key = inner;
    }
    key
}

/// An empty plan for every run of `layout`.
pub(super) fn blank(layout: &Layout) -> Vec<Option<PlannedRun>> {
    layout.runs.iter().map(|run| Some(PlannedRun::new(run.range, Vec::new()))).collect()
}

/// Adds to `planned` what stands in `other` at another time: runs of the same name and type.
pub(super) fn pair_versions(planned: &mut [Option<PlannedRun>], layout: &Layout, other: &Layout, file: &Arc<BaseFile>) {
    let by_key: HashMap<_, _> = other.runs.iter().map(|run| ((plain_key(run), run.dtype, run.cut), run)).collect();
    for (run, planned) in layout.runs.iter().zip(planned) {
        let Some(planned) = planned else { continue };
        let is_paired = planned.bases.iter().any(|base| is_version(base.relation));
        let (Some(relation), false) = (version_of(run), is_paired) else { continue };
        if let Some(found) = by_key.get(&(plain_key(run), run.dtype, run.cut)) {
            planned.bases.push(RunBase { file: Arc::clone(file), range: found.range, relation });
        }
    }
}

/// Adds to `planned` what stands in `other` in another precision.
pub(super) fn pair_precisions(
    planned: &mut [Option<PlannedRun>],
    layout: &Layout,
    other: &Layout,
    file: &Arc<BaseFile>,
) {
    let numbers = other.runs.iter().filter(|run| run.cut == Cut::Fixed);
    let by_key: HashMap<_, _> = numbers.map(|run| ((plain_key(run), run.dtype), run)).collect();
    for (run, planned) in layout.runs.iter().zip(planned) {
        let (relation, wanted) = match run.dtype {
            Some(Dtype::F32) => (Relation::Widened, Dtype::Bf16),
            Some(Dtype::Bf16) => (Relation::Narrowed, Dtype::F32),
            _ => continue,
        };
        let Some(planned) = planned.as_mut().filter(|planned| planned.bases.is_empty()) else { continue };
        let Some(found) = by_key.get(&(plain_key(run), Some(wanted))) else { continue };
        let (wide, narrow) = match relation {
            Relation::Widened => (run.range.len(), found.range.len()),
            _ => (found.range.len(), run.range.len()),
        };
        if narrow.checked_mul(2) == Some(wide) {
            planned.bases.push(RunBase { file: Arc::clone(file), range: found.range, relation });
        }
    }
}

/// True if every run that could have an earlier version has one.
pub(super) fn is_complete(planned: &[Option<PlannedRun>], layout: &Layout) -> bool {
    layout.runs.iter().zip(planned).all(|(run, planned)| {
        let is_paired = |planned: &PlannedRun| planned.bases.iter().any(|base| is_version(base.relation));
        version_of(run).is_none() || planned.as_ref().is_none_or(is_paired)
    })
}

/// True if the two files have a run of numbers by the same name.
pub(super) fn have_common_run(a: &Layout, b: &Layout) -> bool {
    let names: std::collections::HashSet<&str> = a.runs.iter().map(plain_key).collect();
    b.runs.iter().any(|run| names.contains(plain_key(run)))
}

fn is_version(relation: Relation) -> bool {
    matches!(relation, Relation::Words { .. } | Relation::Text)
}

/// What an earlier version of the run is to it; none if there is nothing to be gained.
fn version_of(run: &Run) -> Option<Relation> {
    if run.cut == Cut::Content {
        return Some(Relation::Text);
    }
    let dtype = run.dtype?;
    let width_log2 = match dtype {
        Dtype::Blocks(_) | Dtype::Other(_) => return None,
        // Pairs of numbers.
        Dtype::C64 => 2,
        Dtype::C128 => 3,
        _ => dtype.element_bytes()?.checked_ilog2()?,
    };
    Some(Relation::Words { width_log2: u8::try_from(width_log2).ok()?, is_float: dtype.is_float() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::ByteRange;
    use crate::source::layout::Container;

    fn layout(runs: &[(&str, Dtype, u64)]) -> Layout {
        let mut offset = 100;
        let runs = runs.iter().map(|&(key, dtype, len)| {
            let range = ByteRange::new(offset, len).expect("has an end");
            offset += len;
            Run { range, key: key.to_owned(), dtype: Some(dtype), cut: Cut::Fixed }
        });
        Layout {
            container: Container::Torch,
            tensors: vec![],
            runs: runs.collect(),
            metadata: vec![],
            is_truncated: false,
        }
    }

    fn file() -> Arc<BaseFile> {
        Arc::new(BaseFile { chunks: Vec::new() })
    }

    #[test]
    fn runs_meet_by_name_and_type_wherever_they_stand() {
        let new = layout(&[("module.b", Dtype::Bf16, 20), ("a", Dtype::Bf16, 10), ("c", Dtype::F32, 40)]);
        let old = layout(&[("a", Dtype::Bf16, 10), ("b", Dtype::Bf16, 16), ("c", Dtype::F16, 20)]);
        let mut planned = blank(&new);
        pair_versions(&mut planned, &new, &old, &file());
        let at = |n: usize| planned[n].as_ref().and_then(|p| p.bases.first().map(|b| b.range.offset()));
        assert_eq!((at(0), at(1), at(2)), (Some(110), Some(100), None));
        assert!(!is_complete(&planned, &new));
        assert!(have_common_run(&new, &old) && !have_common_run(&new, &layout(&[("x", Dtype::F32, 4)])));
    }

    #[test]
    fn precisions_meet_when_they_hold_the_same_numbers() {
        let wide = layout(&[("a", Dtype::F32, 40), ("b", Dtype::F32, 40)]);
        let narrow = layout(&[("a", Dtype::Bf16, 20), ("b", Dtype::Bf16, 10)]);
        let relation = |layout: &Layout, other: &Layout, n: usize| {
            let mut planned = blank(layout);
            pair_precisions(&mut planned, layout, other, &file());
            planned[n].as_ref().and_then(|p| p.bases.first().map(|b| b.relation))
        };
        assert_eq!(relation(&wide, &narrow, 0), Some(Relation::Widened));
        assert_eq!(relation(&narrow, &wide, 0), Some(Relation::Narrowed));
        assert_eq!(relation(&wide, &narrow, 1), None);
    }
}
