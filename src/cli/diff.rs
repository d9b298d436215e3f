//! `ckpt diff`: show what differs between two snapshots.

use super::args::{AtArgument, NarrowArguments};
use super::context::Context;
use super::exit::Ending;
use super::json::{DiffChange, DiffHead, DiffTail, path_text};
use super::output::DocumentStream;
use super::selectors::Wanted;
use super::{diff_tensors, render, selectors};
use ckpt::bytes::ByteCount;
use ckpt::error::{Error, Result};
use ckpt::ops::diff::{Change, ChangeKind, DiffReport, diff, diff_parts};
use ckpt::ops::tensors::{Part, TensorFilter};
use ckpt::repo::Repo;
use ckpt::repo::snapshots::Snapshot;
use std::ffi::{OsStr, OsString};

/// Options of `diff`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt diff 4f1c latest
  ckpt diff tag:before tag:after --path /data/run7
  ckpt diff step:11000 step:12000
  ckpt diff latest:checkpoint-500 latest:checkpoint-1000 --tensors

Parts of snapshots are compared with each other, and paths are relative to them.

Each line begins with + (added), - (removed), M (content differs), m (metadata alone differs) \
or T (another kind of entry).
Differences are not an error: the exit code is 0.")]
pub struct Arguments {
    /// The snapshot on the left
    #[arg(value_name = "A")]
    before: OsString,

    /// The snapshot on the right
    #[arg(value_name = "B")]
    after: OsString,

    #[command(flatten)]
    narrow: NarrowArguments,

    /// Compare the tensors in files: which elements differ, and by how much; A and B may be `SELECTOR:SUBPATH` then
    #[arg(long)]
    tensors: bool,

    /// Only tensors whose name matches; `*` matches dots too; may be given several times
    #[arg(long, value_name = "GLOB", requires = "tensors")]
    tensor: Vec<String>,
}

/// Shows the differences.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    let narrow = selectors::narrow(&arguments.narrow)?;
    let wanted = |selector: &OsStr| selectors::wanted(context, Some(selector), &AtArgument::default());
    let filter = TensorFilter::new(&arguments.tensor)?;
    let (before, after) = (wanted(&arguments.before)?, wanted(&arguments.after)?);
    let repo = context.open()?;
    let snapshots = repo.snapshots();
    let find = |wanted: Wanted| {
        let snapshot = wanted.find(&snapshots, &narrow)?;
        let part = wanted.part(&snapshot, &narrow)?;
        Ok::<Side, Error>((snapshot, part))
    };
    let (before, after) = (find(before)?, find(after)?);
    if arguments.tensors {
        let before = Part { snapshot: &before.0, subpath: before.1.as_deref() };
        let after = Part { snapshot: &after.0, subpath: after.1.as_deref() };
        return diff_tensors::show(context, &repo, (before, after), &filter);
    }
    if context.output.manners.json {
        write_json(context, &repo, &before, &after)?;
    } else {
        let report = compare(&repo, &before, &after, &mut |change| context.output.line(&line(change)))?;
        if context.output.manners.is_watched() {
            context.output.flush()?;
            context.output.talk("info", &counts(&report));
        }
    }
    Ok(Ending::Done)
}

/// A snapshot and the part of it that is meant.
type Side = (Snapshot, Option<Vec<u8>>);

fn compare(
    repo: &Repo,
    before: &Side,
    after: &Side,
    visit: &mut dyn FnMut(&Change) -> Result<()>,
) -> Result<DiffReport> {
    match (&before.1, &after.1) {
        (None, None) => diff(repo, &before.0, &after.0, visit),
        (a, b) => diff_parts(repo, (&before.0, a.as_deref()), (&after.0, b.as_deref()), visit),
    }
}

fn write_json(context: &Context, repo: &Repo, before: &Side, after: &Side) -> Result<()> {
    let head = DiffHead { before: before.0.id.to_hex(), after: after.0.id.to_hex() };
    let mut stream = DocumentStream::begin(&context.output, "diff", &head, "changes")?;
    let report = compare(repo, before, after, &mut |change| stream.item(&item(change)))?;
    stream.end(&DiffTail {
        added: report.added,
        removed: report.removed,
        modified: report.modified,
        metadata_only: report.metadata_only,
        unchanged: report.unchanged,
        bytes_added: report.bytes_added,
        bytes_removed: report.bytes_removed,
    })
}

fn line(change: &Change) -> String {
    let mark = match change.kind {
        ChangeKind::Added => '+',
        ChangeKind::Removed => '-',
        ChangeKind::Modified => 'M',
        ChangeKind::MetadataOnly => 'm',
        ChangeKind::TypeChanged => 'T',
    };
    format!("{mark} {}", render::path(&change.path))
}

fn item(change: &Change) -> DiffChange {
    let (path, path_bytes) = path_text(&change.path);
    let name = match change.kind {
        ChangeKind::Added => "added",
        ChangeKind::Removed => "removed",
        ChangeKind::Modified => "modified",
        ChangeKind::MetadataOnly => "metadata_only",
        ChangeKind::TypeChanged => "type_changed",
    };
    DiffChange {
        path,
        path_bytes,
        change: name.to_owned(),
        bytes_before: change.before.as_ref().map(|entry| entry.metadata.size),
        bytes_after: change.after.as_ref().map(|entry| entry.metadata.size),
    }
}

fn counts(report: &DiffReport) -> String {
    format!(
        "{} added ({}), {} removed ({}), {} modified, {} with other metadata, {} unchanged",
        report.added,
        ByteCount(report.bytes_added),
        report.removed,
        ByteCount(report.bytes_removed),
        report.modified,
        report.metadata_only,
        report.unchanged,
    )
}
