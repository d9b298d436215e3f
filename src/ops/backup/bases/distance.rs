//! How far two paths are apart, for finding earlier versions: digits count as numbers, so that step directories are near.

use std::cmp::Ordering;

/// A distance; the smaller, the more likely is one file a version of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Distance {
    /// Components that differ in more than numbers.
    pub(crate) words: u32,
    /// The sum of the differences between numbers in the other components.
    pub(crate) numbers: u64,
}

/// The distance between two paths, component by component from the end.
pub(crate) fn distance(a: &[u8], b: &[u8]) -> Distance {
    let mut result = Distance { words: 0, numbers: 0 };
    let (mut a, mut b) = (a.rsplit(|&byte| byte == b'/'), b.rsplit(|&byte| byte == b'/'));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return result,
            (Some(x), Some(y)) if x == y => {}
            (Some(x), Some(y)) => match numbers_apart(x, y) {
                Some(apart) => result.numbers = result.numbers.saturating_add(apart),
                None => result.words += 1,
            },
            _ => result.words += 1,
        }
    }
}

/// A component with every run of digits replaced by `#`: what versions of a name have in common.
pub(crate) fn shape(component: &[u8]) -> Vec<u8> {
    let mut shape = Vec::with_capacity(component.len());
    for &byte in component {
        match byte {
            b'0'..=b'9' if shape.last() == Some(&b'#') => {}
            b'0'..=b'9' => shape.push(b'#'),
            _ => shape.push(byte),
        }
    }
    shape
}

/// The last component of a path.
pub(crate) fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|&byte| byte == b'/').next().unwrap_or_default()
}

/// How far the numbers in two components of one shape are apart; none if the shapes differ.
fn numbers_apart(a: &[u8], b: &[u8]) -> Option<u64> {
    if shape(a).cmp(&shape(b)) != Ordering::Equal {
        return None;
    }
    let (left, right) = (numbers(a), numbers(b));
    Some(left.iter().zip(&right).fold(0u64, |sum, (x, y)| sum.saturating_add(x.abs_diff(*y))))
}

fn numbers(component: &[u8]) -> Vec<u64> {
    component
        .split(|byte| !byte.is_ascii_digit())
        .filter(|digits| !digits.is_empty())
        .map(|digits| digits.iter().fold(0u64, |n, digit| n.saturating_mul(10).saturating_add(u64::from(digit - b'0'))))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_near_and_other_names_are_far() {
        let from = b"/run/checkpoint-1000/model.safetensors";
        let near = distance(from, b"/run/checkpoint-900/model.safetensors");
        let far = distance(from, b"/run/checkpoint-200/model.safetensors");
        let other = distance(from, b"/run/best/model.safetensors");
        assert!(distance(from, from) < near && near < far && far < other);
        assert_eq!(near, Distance { words: 0, numbers: 100 });
        assert_eq!(distance(b"a/b", b"b"), Distance { words: 1, numbers: 0 });
        assert_eq!(distance(b"step9", b"step99999999999999999999999").numbers, u64::MAX - 9);
    }

    #[test]
    fn a_shape_has_no_digits() {
        assert_eq!(shape(b"model-00001-of-00002.bin"), b"model-#-of-#.bin");
        assert_eq!(file_name(b"/a/b"), b"b");
    }
}
