//! The rules that every layout obeys, enforced in one place.
//!
//! [`finish`] is the last step of every parser. Afterwards: the runs are in order, none overlaps another, all lie within the file,
//! none is shorter than [`RUN_BYTES_MIN`]; no tensor has a place outside the file.

use super::header_reader::{Refusal, shown};
use crate::bytes::ByteRange;
use crate::source::layout::{Cut, Layout, Run, Tensor};

/// Shorter runs are left out, so that neighbouring small tensors and the headers between them share a chunk: a chunk
/// costs about 100 bytes of tables and a look-up, which small ones would not earn back.
pub(super) const RUN_BYTES_MIN: u64 = 1 << 10;

/// Sorts the runs of `layout`, clips them to a file of `file_bytes` bytes, and marks the layout as truncated if
/// anything lies beyond. Of runs at the very same place the first stays; others that overlap make the file malformed.
pub(super) fn finish(mut layout: Layout, file_bytes: u64) -> Result<Layout, Refusal> {
    for tensor in &mut layout.tensors {
        if tensor.place.is_some_and(|place| place.end() > file_bytes) {
            tensor.place = None;
            layout.is_truncated = true;
        }
    }
    layout.runs.sort_by_key(|run| run.range);
    layout.runs.dedup_by_key(|run| run.range);
    for pair in layout.runs.windows(2) {
        if let [before, after] = pair
            && before.range.end() > after.range.offset()
        {
            let (before, after) = (shown(&before.key), shown(&after.key));
            return Err(Refusal::malformed(format!("{before} and {after} lie over each other")));
        }
    }
    for run in &mut layout.runs {
        if run.range.end() > file_bytes {
            layout.is_truncated = true;
            let begin = run.range.offset().min(file_bytes);
            run.range = ByteRange::new(begin, file_bytes - begin).map_err(|_| Refusal::Unreadable)?;
        }
    }
    layout.runs.retain(|run| run.range.len() >= RUN_BYTES_MIN);
    layout.runs.shrink_to_fit();
    layout.tensors.shrink_to_fit();
    Ok(layout)
}

/// The run of a tensor that lies in one piece and is long enough for one: shorter ones would be left out anyway, and need no copy
/// of the name until then.
pub(super) fn run_of(tensor: &Tensor) -> Option<Run> {
    let range = tensor.place.filter(|place| place.len() >= RUN_BYTES_MIN)?;
    Some(Run { range, key: tensor.name.clone(), dtype: Some(tensor.dtype), cut: Cut::Fixed })
}

/// A name that is there more than once.
pub(super) fn name_twice<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names.windows(2).find(|pair| pair.first() == pair.last()).and_then(|pair| pair.first().copied())
}

/// What [`finish`] promises, for tests of every parser: panics where it does not hold.
#[cfg(test)]
pub(super) fn assert_obeys(layout: &Layout, file_bytes: u64) {
    let mut at = 0;
    for run in &layout.runs {
        assert!(run.range.offset() >= at, "{run:?} begins before {at}");
        assert!(run.range.len() >= RUN_BYTES_MIN, "{run:?} is too short");
        at = run.range.end();
    }
    assert!(at <= file_bytes, "the last run ends at {at} of {file_bytes}");
    for tensor in &layout.tensors {
        assert!(tensor.place.is_none_or(|place| place.end() <= file_bytes), "{tensor:?} beyond {file_bytes}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::layout::{Container, Dtype};
    use proptest::prelude::*;

    fn layout(places: &[(u64, u64)]) -> Layout {
        let place = |&(offset, len): &(u64, u64)| ByteRange::new(offset, len).expect("small");
        let tensor = |at: &(u64, u64)| Tensor {
            name: "t".to_owned(),
            dtype: Dtype::U8,
            shape: vec![at.1],
            place: Some(place(at)),
        };
        let run =
            |at: &(u64, u64)| Run { range: place(at), key: "t".to_owned(), dtype: Some(Dtype::U8), cut: Cut::Fixed };
        Layout {
            container: Container::Safetensors,
            tensors: places.iter().map(tensor).collect(),
            runs: places.iter().map(run).collect(),
            metadata: Vec::new(),
            is_truncated: false,
        }
    }

    #[test]
    fn runs_are_sorted_clipped_and_the_short_ones_left_out() {
        let finished = finish(layout(&[(9000, 5000), (100, 2000), (2100, 1023), (100, 2000), (20_000, 9)]), 12_000);
        let finished = finished.expect("no overlap");
        let ranges: Vec<_> = finished.runs.iter().map(|run| (run.range.offset(), run.range.len())).collect();
        assert_eq!(ranges, [(100, 2000), (9000, 3000)]);
        assert!(finished.is_truncated);
        let is_there: Vec<bool> = finished.tensors.iter().map(|tensor| tensor.place.is_some()).collect();
        assert_eq!(is_there, [false, true, true, true, false]);
        assert!(finish(layout(&[(0, 2000), (1999, 2000)]), 12_000).is_err());
    }

    proptest! {
        #[test]
        fn any_layout_is_refused_or_obeys_the_rules(
            places in prop::collection::vec((0u64..60_000, 0u64..6000), 0..12),
            file_bytes in 0u64..70_000,
        ) {
            if let Ok(finished) = finish(layout(&places), file_bytes) {
                assert_obeys(&finished, file_bytes);
                let is_beyond = places.iter().any(|(offset, len)| offset + len > file_bytes);
                prop_assert_eq!(finished.is_truncated, is_beyond);
            }
        }
    }
}
