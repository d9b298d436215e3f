//! `ckpt diff --tensors`: the lines and the document.

use super::context::Context;
use super::exit::Ending;
use super::json::{DiffTensorsHead, DiffTensorsTail, TensorChangeItem};
use super::output::LazyDocument;
use super::render::{self, Side};
use super::tensors::{ending, name, rows, shape};
use ckpt::bytes::ByteCount;
use ckpt::error::Result;
use ckpt::ops::diff_tensors::{
    ComparedFile, Described, DiffTensorsReport, TensorChange, TensorChangeKind, diff_tensors,
};
use ckpt::ops::tensors::{Part, StoredFile, TensorFilter};
use ckpt::repo::Repo;
use ckpt::repo::snapshots::Snapshot;

/// Shows what differs between the tensors of two parts.
pub fn show(
    context: &Context,
    repo: &Repo,
    (before, after): (Part<'_>, Part<'_>),
    filter: &TensorFilter,
) -> Result<Ending> {
    let output = &context.output;
    let resources = context.resources();
    let report = if output.manners.json {
        let head = DiffTensorsHead { before: before.snapshot.id.to_hex(), after: after.snapshot.id.to_hex() };
        let mut stream = LazyDocument::new(output, "diff_tensors", head, "changes");
        let mut add = |file: &ComparedFile| {
            let (old, new) = paths(before.snapshot, after.snapshot, file);
            let item = |change| TensorChangeItem::new(old.as_deref(), new.as_deref(), change);
            file.changes.iter().try_for_each(|change| stream.item(&item(change)))
        };
        let report = diff_tensors(repo, (before, after), filter, resources, &context.reporter, &mut add)?;
        stream.end(&tail(&report))?;
        report
    } else {
        let mut add = |file: &ComparedFile| {
            if file.changes.is_empty() {
                return Ok(());
            }
            lines(before.snapshot, after.snapshot, file).iter().try_for_each(|line| output.line(line))?;
            output.line("")
        };
        let report = diff_tensors(repo, (before, after), filter, resources, &context.reporter, &mut add)?;
        output.line(&counts(&report))?;
        report
    };
    context.reporter.end_phase();
    let first = ending(&report.walked_before);
    Ok(if first == Ending::Done { ending(&report.walked_after) } else { first })
}

fn paths(before: &Snapshot, after: &Snapshot, file: &ComparedFile) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
    let path = |snapshot, file: &Option<StoredFile>| file.as_ref().map(|file| super::ls::path(snapshot, &file.entry));
    (path(before, &file.before), path(after, &file.after))
}

fn lines(before: &Snapshot, after: &Snapshot, file: &ComparedFile) -> Vec<String> {
    let title = match paths(before, after, file) {
        (Some(old), Some(new)) if old == new => render::path(&new),
        (Some(old), Some(new)) => format!("{} -> {}", render::path(&old), render::path(&new)),
        (Some(old), None) => format!("{}, only in the first", render::path(&old)),
        (None, new) => format!("{}, only in the second", render::path(&new.unwrap_or_default())),
    };
    let all = file.changes.len() as u64 + file.unchanged;
    let mut lines = vec![format!("{title}: {} of {}", file.changes.len(), render::counted(all, "tensor", "tensors"))];
    let columns = [
        ("", Side::Left),
        ("DIFFERS", Side::Right),
        ("CHANGE", Side::Right),
        ("RELATIVE", Side::Right),
        ("DTYPE", Side::Left),
        ("SHAPE", Side::Left),
    ];
    lines.extend(rows(&columns, file.changes.iter().map(row).collect(), ""));
    lines
}

fn row(change: &TensorChange) -> (Vec<String>, String) {
    let mark = match change.kind {
        TensorChangeKind::Added => "+",
        TensorChangeKind::Removed => "-",
        TensorChangeKind::Changed => "M",
        TensorChangeKind::Reshaped => "R",
        TensorChangeKind::NotCompared => "?",
    };
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.3e}"));
    let numbers = change.numbers;
    let both = |of: fn(&Described) -> String| {
        let (old, new) = (change.before.as_ref().map(of), change.after.as_ref().map(of));
        match (old, new) {
            (Some(old), Some(new)) if old != new => format!("{old}->{new}"),
            (old, new) => new.or(old).unwrap_or_default(),
        }
    };
    let mut name = name(&change.name);
    if let Some(numbers) = numbers.filter(|numbers| numbers.nonfinite_before + numbers.nonfinite_after > 0) {
        name = format!("{name}  [not finite: {} -> {}]", numbers.nonfinite_before, numbers.nonfinite_after);
    }
    let cells = vec![
        mark.to_owned(),
        numbers.map_or_else(|| "-".to_owned(), |numbers| percent(numbers.share_changed())),
        number(numbers.and_then(|numbers| numbers.norm_change)),
        number(numbers.and_then(|numbers| numbers.norm_relative())),
        both(|described| render::prose(described.dtype.name())),
        both(|described| shape(&described.shape)),
    ];
    (cells, name)
}

/// A share of more than nothing is never shown as nothing, nor one of less than all as all.
fn percent(share: f64) -> String {
    match share {
        share if share <= 0.0 || share >= 1.0 => format!("{:.0}%", share * 100.0),
        share if share < 0.0001 => "<0.01%".to_owned(),
        share if share > 0.9999 => ">99.99%".to_owned(),
        share => format!("{:.2}%", share * 100.0),
    }
}

fn counts(report: &DiffTensorsReport) -> String {
    let unknown = match report.not_compared {
        0 => String::new(),
        count => format!(", {count} not compared"),
    };
    format!(
        "tensors: {} changed, {} added, {} removed, {} reshaped, {} unchanged{unknown}; {} compared; {} read",
        report.changed,
        report.added,
        report.removed,
        report.reshaped,
        report.unchanged,
        render::counted(report.files_compared, "pair of files", "pairs of files"),
        ByteCount(report.bytes_read),
    )
}

fn tail(report: &DiffTensorsReport) -> DiffTensorsTail {
    DiffTensorsTail {
        files_compared: report.files_compared,
        files_added: report.files_added,
        files_removed: report.files_removed,
        unchanged: report.unchanged,
        changed: report.changed,
        added: report.added,
        removed: report.removed,
        reshaped: report.reshaped,
        not_compared: report.not_compared,
        bytes_read: report.bytes_read,
        damaged: report.walked_before.damaged.count + report.walked_after.damaged.count,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_not_rounded_to_nothing_or_all() {
        let shown = [0.0, 1e-9, 0.125, 0.999_999, 1.0].map(percent);
        assert_eq!(shown, ["0%", "<0.01%", "12.50%", ">99.99%", "100%"]);
    }
}
