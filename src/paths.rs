//! Relative paths as the project keeps them: bytes, components joined by `/`, empty for the root itself.
//!
//! Nothing here touches a file system.

use std::cmp::Ordering;

/// The order of paths in a snapshot and in a scan: component by component, by bytes, a directory before what it holds.
///
/// It differs from the order of the plain bytes where a name holds a byte below `/`: `a/b` comes before `a-b`.
pub fn compare_paths(a: &[u8], b: &[u8]) -> Ordering {
    // The end of a component sorts before every byte of a longer name; 0 is kept for it, so that no byte collides.
    let rank = |byte: u8| if byte == b'/' { 0 } else { u16::from(byte) + 1 };
    match a.iter().zip(b).position(|(x, y)| x != y) {
        Some(index) => rank(a[index]).cmp(&rank(b[index])),
        None => a.len().cmp(&b.len()),
    }
}

/// True if `path` is `folder` itself or lies beneath it; everything lies beneath the empty path.
pub fn is_beneath(path: &[u8], folder: &[u8]) -> bool {
    match path.strip_prefix(folder) {
        Some(rest) => folder.is_empty() || rest.is_empty() || rest[0] == b'/' || folder == b"/",
        None => false,
    }
}

/// True for a path that cannot lead out of its root: no empty component, no `.` or `..`, no zero byte.
pub fn is_confined(path: &[u8]) -> bool {
    let is_sound = |part: &[u8]| !part.is_empty() && part != b"." && part != b".." && !part.contains(&0);
    path.is_empty() || path.split(|&b| b == b'/').all(is_sound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_components() {
        let mut paths = ["a-b", "a/z", "a", "a.b/c", "a/b/c", "", "b", "a/b"].map(str::as_bytes);
        paths.sort_by(|a, b| compare_paths(a, b));
        assert_eq!(paths, ["", "a", "a/b", "a/b/c", "a/z", "a-b", "a.b/c", "b"].map(str::as_bytes));
    }

    #[test]
    fn beneath_means_by_whole_components() {
        assert!(is_beneath(b"a/b", b"a") && is_beneath(b"a", b"a") && !is_beneath(b"ab", b"a"));
        assert!(is_beneath(b"/a", b"/") && is_beneath(b"a", b""));
        assert!(is_confined(b"a/b") && !is_confined(b"a/../b") && !is_confined(b"/a"));
    }
}
