//! What differs between the tensors of two snapshots, or of two parts of one.
//!
//! Files are paired by path, or by the names of their tensors where a path stands on one side only; tensors by name. What
//! lies in the same chunks on both sides is the same and not read. The rest is read block by block on several threads.

mod compare;
mod numbers;
mod pairs;

use super::Resources;
use super::tensors::{Look, Part, StoredFile, TensorFile, TensorFilter, Walked, tensor_bytes};
use crate::bytes::ByteRange;
use crate::error::{Error, Result};
use crate::events::{Event, Observer};
use crate::repo::Repo;
use crate::repo::pack::PackKind;
use crate::source::layout::{Dtype, Tensor};
use compare::{Compared, Comparer};
use pairs::{Candidate, Pair};

/// How a tensor differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorChangeKind {
    /// Only in the second.
    Added,
    /// Only in the first.
    Removed,
    /// Other elements.
    Changed,
    /// Another shape or type.
    Reshaped,
    /// The elements of one side are not contiguous or missing, so nothing is known about them.
    NotCompared,
}

/// What a file says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Described {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions.
    pub shape: Vec<u64>,
    /// Its bytes, if they can be told.
    pub bytes: Option<u64>,
}

/// How much of a tensor changed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Numbers {
    /// Elements; bytes where the elements are of no known size.
    pub elements: u64,
    /// Those of other bits.
    pub elements_changed: u64,
    /// The L2 norm of the change, over elements that are finite on both sides; none if these are no numbers, or the norm is
    /// larger than a number can be.
    pub norm_change: Option<f64>,
    /// The L2 norm of what was before, over finite elements.
    pub norm_before: Option<f64>,
    /// Elements that were infinite or no number.
    pub nonfinite_before: u64,
    /// Elements that are infinite or no number now.
    pub nonfinite_after: u64,
}

impl Numbers {
    /// The share of elements that changed, 0 to 1.
    pub fn share_changed(&self) -> f64 {
        self.elements_changed as f64 / self.elements.max(1) as f64
    }

    /// The norm of the change by the norm of what was before; none if that is 0 or unknown.
    pub fn norm_relative(&self) -> Option<f64> {
        let relative = self.norm_change? / self.norm_before.filter(|norm| *norm > 0.0)?;
        Some(relative).filter(|relative| relative.is_finite())
    }
}

/// A tensor that differs.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorChange {
    /// Its name.
    pub name: String,
    /// How it differs.
    pub kind: TensorChangeKind,
    /// As it is in the first, if it is.
    pub before: Option<Described>,
    /// As it is in the second, if it is.
    pub after: Option<Described>,
    /// For [`TensorChangeKind::Changed`].
    pub numbers: Option<Numbers>,
    places: Option<(ByteRange, ByteRange)>,
}

/// Two files, or one without a counterpart, and the tensors that differ.
#[derive(Debug)]
pub struct ComparedFile {
    /// The file in the first.
    pub before: Option<StoredFile>,
    /// The file in the second.
    pub after: Option<StoredFile>,
    /// In the order of the second file; what is only in the first comes last.
    pub changes: Vec<TensorChange>,
    /// Tensors that are the same.
    pub unchanged: u64,
}

/// The differences in numbers.
#[derive(Debug, Default)]
pub struct DiffTensorsReport {
    /// Pairs of files.
    pub files_compared: u64,
    /// Files only in the second.
    pub files_added: u64,
    /// Files only in the first.
    pub files_removed: u64,
    /// Tensors that are the same.
    pub unchanged: u64,
    /// Tensors with other elements.
    pub changed: u64,
    /// Tensors only in the second.
    pub added: u64,
    /// Tensors only in the first.
    pub removed: u64,
    /// Tensors of another shape or type.
    pub reshaped: u64,
    /// Tensors that could not be compared.
    pub not_compared: u64,
    /// Bytes of tensors that were read.
    pub bytes_read: u64,
    /// What was met in the first beside its files of tensors.
    pub walked_before: Walked,
    /// What was met in the second.
    pub walked_after: Walked,
}

/// Calls `visit` for every pair of files, in the order of paths, those without any difference too.
///
/// [`Kind::Damaged`](crate::error::Kind::Damaged) if a tensor that must be read cannot be.
pub fn diff_tensors(
    repo: &Repo,
    (before, after): (Part<'_>, Part<'_>),
    filter: &TensorFilter,
    resources: Resources,
    observer: &dyn Observer,
    visit: &mut dyn FnMut(&ComparedFile) -> Result<()>,
) -> Result<DiffTensorsReport> {
    repo.keys().require(PackKind::Tree)?;
    repo.keys().require(PackKind::Data)?;
    observer.on_event(&Event::Phase { name: "comparing", bytes_total: None, files_total: None });
    let (old, walked_before) = pairs::candidates(repo, before, observer)?;
    let (new, walked_after) = pairs::candidates(repo, after, observer)?;
    let mut report = DiffTensorsReport { walked_before, walked_after, ..DiffTensorsReport::default() };
    let comparer = Comparer::new(repo, filter, observer, resources.threads)?;
    for pair in pairs::pair(old, new) {
        let compared = compare_pair(&comparer, &pair)?;
        report.count(&pair, &compared);
        visit(&ComparedFile {
            before: pair.before.map(|candidate| candidate.file),
            after: pair.after.map(|candidate| candidate.file),
            changes: compared.changes,
            unchanged: compared.unchanged,
        })?;
        observer.on_event(&Event::Progress { bytes: 0, files: 1 });
    }
    report.bytes_read = comparer.bytes_read();
    Ok(report)
}

fn compare_pair(comparer: &Comparer<'_>, pair: &Pair) -> Result<Compared> {
    match (&pair.before, &pair.after) {
        (Some(before), Some(after)) if before.file.entry.content == after.file.entry.content => {
            // The same content: what a filter leaves out is not worth reading the headers again, unless there is one.
            if comparer.filter.is_everything() {
                return Ok(Compared { changes: Vec::new(), unchanged: before.tensors });
            }
            comparer.compare(&open(comparer, before)?, &open(comparer, after)?)
        }
        (Some(before), Some(after)) => comparer.compare(&open(comparer, before)?, &open(comparer, after)?),
        (Some(before), None) => Ok(comparer.alone(&open(comparer, before)?, true)),
        (None, Some(after)) => Ok(comparer.alone(&open(comparer, after)?, false)),
        (None, None) => Ok(Compared::default()),
    }
}

fn open(comparer: &Comparer<'_>, candidate: &Candidate) -> Result<TensorFile> {
    let path = String::from_utf8_lossy(&candidate.file.path);
    match candidate.file.look(&comparer.frames).map_err(|error| error.while_doing(&path))? {
        Look::Tensors(opened) => Ok(*opened),
        // It was read a moment ago, and content does not change.
        Look::Malformed(_) | Look::Plain => Err(Error::damaged(format!("{path} reads differently than before"))),
    }
}

impl DiffTensorsReport {
    fn count(&mut self, pair: &Pair, compared: &Compared) {
        match (&pair.before, &pair.after) {
            (Some(_), None) => self.files_removed += 1,
            (None, Some(_)) => self.files_added += 1,
            _ => self.files_compared += 1,
        }
        self.unchanged += compared.unchanged;
        for change in &compared.changes {
            *match change.kind {
                TensorChangeKind::Added => &mut self.added,
                TensorChangeKind::Removed => &mut self.removed,
                TensorChangeKind::Changed => &mut self.changed,
                TensorChangeKind::Reshaped => &mut self.reshaped,
                TensorChangeKind::NotCompared => &mut self.not_compared,
            } += 1;
        }
    }
}

impl Described {
    fn new(tensor: &Tensor) -> Described {
        Described { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes: tensor_bytes(tensor) }
    }
}

#[cfg(test)]
mod tests;
