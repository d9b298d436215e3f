//! Which file of one side is compared with which of the other: by path, else by the names of their tensors.

use crate::error::Result;
use crate::events::Observer;
use crate::ops::tensors::{Part, StoredFile, TensorFile, Walked, for_each_tensor_file};
use crate::repo::Repo;
use std::collections::{BTreeMap, HashMap};

/// A file of one side; its layout is read again when it is compared.
#[derive(Debug, Clone)]
pub(super) struct Candidate {
    pub(super) file: StoredFile,
    /// How many tensors it has.
    pub(super) tensors: u64,
    /// Stands for the names of its tensors.
    signature: [u8; 32],
}

/// What is compared: one file at least.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) before: Option<Candidate>,
    pub(super) after: Option<Candidate>,
}

/// The files of tensors of one side.
pub(super) fn candidates(repo: &Repo, part: Part<'_>, observer: &dyn Observer) -> Result<(Vec<Candidate>, Walked)> {
    let mut found = Vec::new();
    let walked = for_each_tensor_file(repo, part, observer, &mut |opened| {
        found.push(Candidate {
            signature: signature(&opened),
            tensors: opened.layout.tensors.len() as u64,
            file: opened.file,
        });
        Ok(())
    })?;
    Ok((found, walked))
}

fn signature(file: &TensorFile) -> [u8; 32] {
    let mut names: Vec<&str> = file.layout.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    let mut hasher = blake3::Hasher::new();
    for name in names {
        hasher.update(&(name.len() as u64).to_le_bytes()).update(name.as_bytes());
    }
    hasher.finalize().into()
}

/// Files of the same path belong together; of the rest, one of each side if they alone have these names of tensors. Two
/// files that were asked for themselves belong together whatever they are called. In the order of paths.
pub(super) fn pair(before: Vec<Candidate>, after: Vec<Candidate>) -> Vec<Pair> {
    if let ([a], [b]) = (before.as_slice(), after.as_slice())
        && a.file.is_named
        && b.file.is_named
    {
        return vec![Pair { before: Some(a.clone()), after: Some(b.clone()) }];
    }
    let mut by_path: BTreeMap<Vec<u8>, Pair> = BTreeMap::new();
    for candidate in before {
        by_path.insert(candidate.file.path.clone(), Pair { before: Some(candidate), after: None });
    }
    for candidate in after {
        let pair = by_path.entry(candidate.file.path.clone());
        pair.or_insert(Pair { before: None, after: None }).after = Some(candidate);
    }
    let (mut left, mut right): (Lonely, Lonely) = (HashMap::new(), HashMap::new());
    for (path, pair) in &by_path {
        match (&pair.before, &pair.after) {
            (Some(a), None) => left.entry(a.signature).or_default().push(path.clone()),
            (None, Some(b)) => right.entry(b.signature).or_default().push(path.clone()),
            _ => {}
        }
    }
    for (signature, paths) in left {
        if let ([from], Some([to])) = (paths.as_slice(), right.get(&signature).map(Vec::as_slice))
            && let Some(Pair { before: Some(moved), .. }) = by_path.remove(from)
            && let Some(pair) = by_path.get_mut(to)
        {
            pair.before = Some(moved);
        }
    }
    by_path.into_values().collect()
}

/// Paths of files of one side alone, by the names of their tensors.
type Lonely = HashMap<[u8; 32], Vec<Vec<u8>>>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tensors::tests::stored_file;

    fn side(files: &[(&str, u8)]) -> Vec<Candidate> {
        let candidate =
            |&(path, names): &(&str, u8)| Candidate { file: stored_file(path), tensors: 1, signature: [names; 32] };
        files.iter().map(candidate).collect()
    }

    fn paired(before: &[(&str, u8)], after: &[(&str, u8)]) -> Vec<(Option<String>, Option<String>)> {
        let path = |side: &Option<Candidate>| {
            side.as_ref().map(|candidate| String::from_utf8_lossy(&candidate.file.path).into_owned())
        };
        pair(side(before), side(after)).iter().map(|pair| (path(&pair.before), path(&pair.after))).collect()
    }

    fn some(path: &str) -> Option<String> {
        Some(path.to_owned())
    }

    #[test]
    fn a_path_on_both_sides_comes_before_names() {
        let pairs = paired(&[("a", 1), ("b", 2)], &[("a", 2), ("b", 1)]);
        assert_eq!(pairs, [(some("a"), some("a")), (some("b"), some("b"))]);
    }

    #[test]
    fn files_that_moved_are_found_by_names_if_only_one_will_do() {
        let pairs = paired(&[("step-100/m", 1)], &[("step-200/m", 1)]);
        assert_eq!(pairs, [(some("step-100/m"), some("step-200/m"))]);
        let pairs = paired(&[("100/m", 1), ("100/n", 1)], &[("200/m", 1)]);
        assert_eq!(pairs, [(some("100/m"), None), (some("100/n"), None), (None, some("200/m"))]);
        assert_eq!(paired(&[("a", 1)], &[("b", 2)]), [(some("a"), None), (None, some("b"))]);
    }
}
