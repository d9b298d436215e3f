//! Differences between small files, held against numbers that are known.

use super::*;
use crate::events::Silent;
use crate::ops::tensors::tests::safetensors;
use crate::repo::snapshots::Snapshot;
use crate::repo::test_support::{self, Node, noise};

type Found = Vec<(String, TensorChangeKind, Option<Numbers>)>;

fn differences(repo: &Repo, a: (&Snapshot, &str), b: (&Snapshot, &str), threads: usize) -> (Found, DiffTensorsReport) {
    let mut found = Vec::new();
    let mut visit = |file: &ComparedFile| {
        found.extend(file.changes.iter().map(|change| (change.name.clone(), change.kind, change.numbers)));
        Ok(())
    };
    let before = Part { snapshot: a.0, subpath: Some(a.1.as_bytes()) };
    let after = Part { snapshot: b.0, subpath: Some(b.1.as_bytes()) };
    let resources = Resources { threads, memory_bytes: 1 << 20 };
    let filter = TensorFilter::new(&[]).expect("no patterns");
    let report = diff_tensors(repo, (before, after), &filter, resources, &Silent, &mut visit).expect("sound");
    (found, report)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn tensors_are_told_apart_by_name_shape_and_elements() {
    let repo = test_support::open(&test_support::storage());
    let (same, gone) = (noise(1, 50_000), noise(2, 100));
    let old = [
        ("same", "U8", &[50_000u64][..], &same[..]),
        ("changed", "F32", &[4], &floats(&[3.0, 4.0, 0.0, f32::NAN])),
        ("gone", "U8", &[100], &gone),
        ("shaped", "U8", &[100], &gone),
    ];
    let new = [
        ("new", "U8", &[100u64][..], &gone[..]),
        ("changed", "F32", &[4], &floats(&[3.0, 4.0, 2.0, f32::NAN])),
        ("same", "U8", &[50_000], &same),
        ("shaped", "I8", &[10, 10], &gone),
    ];
    let nodes = [
        ("100", Node::Directory),
        ("100/m", Node::File(safetensors(&old, ""))),
        ("200", Node::Directory),
        ("200/m", Node::File(safetensors(&new, ""))),
    ];
    let snapshot = test_support::save(&repo, 10, &nodes);
    let (found, report) = differences(&repo, (&snapshot, "100"), (&snapshot, "200"), 2);
    let numbers = Numbers {
        elements: 4,
        elements_changed: 1,
        norm_change: Some(2.0),
        norm_before: Some(5.0),
        nonfinite_before: 1,
        nonfinite_after: 1,
    };
    let expected = [
        ("new", TensorChangeKind::Added, None),
        ("changed", TensorChangeKind::Changed, Some(numbers)),
        ("shaped", TensorChangeKind::Reshaped, None),
        ("gone", TensorChangeKind::Removed, None),
    ];
    assert_eq!(found, expected.map(|(name, kind, numbers)| (name.to_owned(), kind, numbers)));
    assert_eq!((numbers.share_changed(), numbers.norm_relative()), (0.25, Some(0.4)));
    assert_eq!((report.files_compared, report.unchanged), (1, 1));
}

#[test]
fn what_lies_in_the_same_chunks_is_not_read() {
    let repo = test_support::open(&test_support::storage());
    let (kept, old, new) = (noise(1, 200_000), noise(2, 8), noise(3, 8));
    let file = |last: &[u8]| safetensors(&[("kept", "F32", &[50_000], &kept), ("last", "F32", &[2], last)], "");
    let a = test_support::save(&repo, 10, &[("m", Node::File(file(&old)))]);
    let b = test_support::save(&repo, 20, &[("m", Node::File(file(&new)))]);
    let (found, report) = differences(&repo, (&a, ""), (&b, ""), 1);
    assert_eq!(found.len(), 1);
    // The chunk in which both meet is another one, so the first is read as well: by blocks.
    assert!(report.bytes_read < 500_000, "{}", report.bytes_read);
    let (found, report) = differences(&repo, (&a, ""), (&a, ""), 1);
    assert_eq!((found.len(), report.unchanged, report.bytes_read), (0, 2, 0));
}

#[test]
fn numbers_are_those_of_a_simple_reference_whatever_the_threads() {
    let repo = test_support::open(&test_support::storage());
    let values = |seed: u64| -> Vec<f32> {
        noise(seed, 3_000_000).chunks_exact(2).map(|b| f32::from(i16::from_le_bytes([b[0], b[1]])) / 777.0).collect()
    };
    let old = values(1);
    let mut new = old.clone();
    new.iter_mut().zip(values(2)).step_by(3).for_each(|(value, other)| *value += other / 50.0);
    let file = |values: &[f32]| safetensors(&[("w", "F32", &[1_500_000], &floats(values))], "");
    let a = test_support::save(&repo, 10, &[("m", Node::File(file(&old)))]);
    let b = test_support::save(&repo, 20, &[("m", Node::File(file(&new)))]);
    let (found, _) = differences(&repo, (&a, ""), (&b, ""), 1);
    let numbers = found[0].2.expect("compared");
    let changed = old.iter().zip(&new).filter(|(x, y)| x.to_bits() != y.to_bits()).count() as u64;
    let square = |x: f64| x * x;
    let change: f64 = old.iter().zip(&new).map(|(x, y)| square(f64::from(*y) - f64::from(*x))).sum();
    let before: f64 = old.iter().map(|x| square(f64::from(*x))).sum();
    assert_eq!((numbers.elements, numbers.elements_changed), (1_500_000, changed));
    let is_near = |found: Option<f64>, squares: f64| found.is_some_and(|f| (f / squares.sqrt() - 1.0).abs() < 1e-12);
    assert!(is_near(numbers.norm_change, change) && is_near(numbers.norm_before, before), "{numbers:?}");
    let (again, _) = differences(&repo, (&a, ""), (&b, ""), 4);
    assert_eq!(again, found, "bit for bit");
}

#[test]
fn files_that_were_asked_for_themselves_are_a_pair() {
    let repo = test_support::open(&test_support::storage());
    let file = |byte: u8| Node::File(safetensors(&[("w", "U8", &[3], &[byte; 3])], ""));
    let snapshot = test_support::save(&repo, 10, &[("a", file(1)), ("b", file(2)), ("c", file(1))]);
    let (found, _) = differences(&repo, (&snapshot, "a"), (&snapshot, "b"), 1);
    assert_eq!(found[0].2.map(|numbers| numbers.elements_changed), Some(3));
    let (found, report) = differences(&repo, (&snapshot, "a"), (&snapshot, "c"), 1);
    assert_eq!((found.len(), report.unchanged), (0, 1));
}
