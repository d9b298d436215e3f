//! `ckpt restore`: write a snapshot, or a part of it, back to disk.

use super::args::{AtArgument, NarrowArguments};
use super::context::Context;
use super::exit::Ending;
use super::json::{self, Body, RestoreSummary, Summary, path_text};
use super::render::{self, Side, Table};
use super::{restore_tensors, selectors};
use ckpt::bytes::ByteCount;
use ckpt::error::{Error, Kind, Result};
use ckpt::ops::Problems;
use ckpt::ops::restore::{Destination, Overwrite, RestoreOptions, RestoreReport, restore};
use ckpt::ops::restore_tensors::{Existing, RestoreTensorsOptions};
use ckpt::ops::tensors::{Part, TensorFilter};
use ckpt::repo::snapshots::Snapshot;
use clap::ValueEnum;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Options of `restore`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt restore latest --target /data/run7
  ckpt restore --at \"yesterday 14:00\" --path /data/run7 --target /tmp/run7
  ckpt restore tag:best:checkpoint-12000 --target /data/checkpoint-12000
  ckpt restore step:12000 --target /data/checkpoint-12000
  ckpt restore latest --in-place --dry-run
  ckpt restore latest:model.safetensors --tensor 'lm_head.*' --target head.safetensors

The contents of the one directory that was backed up, or of the directory named by SUBPATH, land directly in DIR; \
several paths land there each under its last name. What is right already is not written again, so an \
interrupted restore is continued by running the command again. Every byte is verified. If something is damaged, \
everything else is restored, the damaged files are listed, and the exit code is 5.")]
pub struct Arguments {
    /// The snapshot: latest, tag:NAME, step:N or the first digits of an id; `SELECTOR:SUBPATH` restores a part of it
    #[arg(value_name = "SELECTOR", required_unless_present = "at")]
    selector: Option<OsString>,

    #[command(flatten)]
    at: AtArgument,

    #[command(flatten)]
    narrow: NarrowArguments,

    /// The directory to restore into; created if it does not exist
    #[arg(
        long,
        short,
        alias = "to",
        value_name = "DIR",
        required_unless_present = "in_place",
        help_heading = "What to restore, and where to"
    )]
    target: Option<PathBuf>,

    /// Restore to where the files were backed up
    #[arg(long, conflicts_with = "target", help_heading = "What to restore, and where to")]
    in_place: bool,

    /// Restore only what matches; the syntax of .gitignore; may be given several times
    #[arg(long, short, value_name = "PATTERN", help_heading = "What to restore, and where to")]
    include: Vec<String>,

    /// Leave out what matches
    #[arg(long, short, value_name = "PATTERN", help_heading = "What to restore, and where to")]
    exclude: Vec<String>,

    /// Restore only tensors whose name matches, as safetensors files; `*` matches dots too; may be given several times.
    /// A target that ends in .safetensors is one file of all of them
    #[arg(
        long,
        value_name = "GLOB",
        conflicts_with_all = ["in_place", "delete"],
        help_heading = "What to restore, and where to"
    )]
    tensor: Vec<String>,

    /// What to do with files that exist: leave them, write them if size or time differ, or compare the content of every one
    #[arg(long, value_name = "WHEN", default_value = "if-changed", help_heading = "How to restore")]
    overwrite: OverwriteArgument,

    /// Delete what is in the target and not in the snapshot
    #[arg(long, help_heading = "How to restore")]
    delete: bool,

    /// Say what would be done, and write nothing
    #[arg(long, short = 'n', help_heading = "How to restore")]
    dry_run: bool,
}

/// What to do with files that exist: leave them, write them if size or time differ, compare the content of every one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OverwriteArgument {
    Never,
    IfChanged,
    Always,
}

/// Restores.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    let target = match &arguments.target {
        Some(target) if target.as_os_str().is_empty() => {
            return Err(Error::new(Kind::Usage, "--target is empty").with_hint("check for a variable that is not set"));
        }
        Some(target) => Destination::Directory(
            std::path::absolute(target).map_err(|e| Error::io(format!("finding the target {}", shown(target)), e))?,
        ),
        None => Destination::InPlace,
    };
    let tensors = tensor_options(context, arguments, &target)?;
    let narrow = selectors::narrow(&arguments.narrow)?;
    let wanted = selectors::wanted(context, arguments.selector.as_deref(), &arguments.at)?;
    let repo = context.open()?;
    let snapshot = wanted.find(&repo.snapshots(), &narrow)?;
    let subpath = wanted.part(&snapshot, &narrow)?;
    if let Some(options) = tensors {
        let part = Part { snapshot: &snapshot, subpath: subpath.as_deref() };
        return restore_tensors::run(context, &repo, part, &options);
    }
    let options = RestoreOptions {
        target,
        subpath,
        includes: arguments.include.clone(),
        excludes: arguments.exclude.clone(),
        overwrite: match arguments.overwrite {
            OverwriteArgument::Never => Overwrite::Never,
            OverwriteArgument::IfChanged => Overwrite::IfChanged,
            OverwriteArgument::Always => Overwrite::Always,
        },
        delete: arguments.delete,
        dry_run: arguments.dry_run,
        resources: context.resources(),
    };
    let chosen = format!("restoring snapshot {} of {}", snapshot.id.short(), context.time(snapshot.started));
    if context.output.manners.is_watched() {
        context.output.talk("info", &chosen);
    }
    let report = restore(&repo, &snapshot, &options, &context.reporter)?;
    context.reporter.end_phase();
    conclude(context, arguments, &snapshot, &report)
}

/// How to restore tensors instead of files, if that is asked for.
fn tensor_options(
    context: &Context,
    arguments: &Arguments,
    target: &Destination,
) -> Result<Option<RestoreTensorsOptions>> {
    let Destination::Directory(target) = target else { return Ok(None) };
    if arguments.tensor.is_empty() {
        return Ok(None);
    }
    Ok(Some(RestoreTensorsOptions {
        target: restore_tensors::destination(target.clone()),
        filter: TensorFilter::new(&arguments.tensor)?,
        includes: arguments.include.clone(),
        excludes: arguments.exclude.clone(),
        existing: match arguments.overwrite {
            OverwriteArgument::Never => Existing::Keep,
            OverwriteArgument::IfChanged => Existing::ReplaceIfChanged,
            OverwriteArgument::Always => Existing::Replace,
        },
        dry_run: arguments.dry_run,
        resources: context.resources(),
    }))
}

fn conclude(context: &Context, arguments: &Arguments, snapshot: &Snapshot, report: &RestoreReport) -> Result<Ending> {
    if context.reporter.problems() == 0 {
        context.show_problems(&report.damaged);
        context.show_problems(&report.failed);
    }
    let output = &context.output;
    if output.manners.json {
        let summary = Summary::Restore(summary(context, arguments, snapshot, report));
        output.closing(output.document(Body::Summary(summary)))?;
    } else {
        show_metadata_issues(context, &report.metadata_issues);
        if let Some(planned) = &report.planned {
            output.closing(show_plan(context, planned))?;
        }
        if arguments.dry_run {
            output.closing(output.line(&counts(context, report)))?;
        } else if output.manners.is_watched() {
            output.talk("info", &counts(context, report));
        }
    }
    if !report.damaged.is_empty() {
        let what = render::counted(report.damaged.count, "file is", "files are");
        let hint = "`ckpt verify --read-data` lists all damage; another snapshot may hold an undamaged state";
        return Ok(Ending::Damage(
            format!("{what} damaged in the repository and left out; everything else was restored"),
            Some(hint),
        ));
    }
    if !report.failed.is_empty() {
        let what = render::counted(report.failed.count, "file", "files");
        return Err(Error::new(
            common_kind(&report.failed),
            format!("{what} could not be written; the rest was restored"),
        )
        .with_hint("mend what the lines above name, then run the same command again; what is right stays as it is"));
    }
    Ok(Ending::Done)
}

/// The kind of all failures if they share one.
pub fn common_kind(failed: &Problems) -> Kind {
    let mut kinds = failed.kept.iter().map(|problem| problem.error.kind());
    match kinds.next() {
        Some(first @ (Kind::Denied | Kind::NoSpace)) if kinds.all(|kind| kind == first) => first,
        _ => Kind::Failed,
    }
}

/// Shows what metadata could not be set: the first in a line, all with `-v`.
pub fn show_metadata_issues(context: &Context, issues: &[String]) {
    if let Some(first) = issues.first() {
        let more =
            if issues.len() > 1 { format!(" (and {} more; -v lists them)", issues.len() - 1) } else { String::new() };
        context.output.warning(&format!("{first}{more}"));
    }
    for issue in issues.iter().skip(1) {
        context.output.detail(issue);
    }
}

fn show_plan(context: &Context, planned: &[ckpt::ops::restore::PlannedItem]) -> Result<()> {
    let mut table = Table::new(&[("ACTION", Side::Left), ("SIZE", Side::Right), ("PATH", Side::Left)]);
    for item in planned {
        table.row(vec![item.action.to_owned(), ByteCount(item.bytes).to_string(), render::path(&item.path)]);
    }
    table.lines().iter().try_for_each(|line| context.output.line(line))
}

fn counts(context: &Context, report: &RestoreReport) -> String {
    format!(
        "{} restored, {} right already, {} kept, {} deleted; {} of {} written, {} fetched; {}",
        render::counted(report.files_restored, "file", "files"),
        report.files_unchanged,
        report.files_kept,
        report.deleted,
        ByteCount(report.bytes_written),
        ByteCount(report.bytes_total),
        ByteCount(report.bytes_fetched),
        render::duration(context.seconds_elapsed()),
    )
}

fn summary(context: &Context, arguments: &Arguments, snapshot: &Snapshot, report: &RestoreReport) -> RestoreSummary {
    let planned = report.planned.as_ref().map(|items| {
        let item = |item: &ckpt::ops::restore::PlannedItem| {
            let (path, path_bytes) = path_text(&item.path);
            json::PlannedItem { path, path_bytes, action: item.action.to_owned(), bytes: item.bytes }
        };
        items.iter().map(item).collect()
    });
    RestoreSummary {
        snapshot: snapshot.id.to_hex(),
        target: arguments.target.as_ref().map(|target| target.to_string_lossy().into_owned()),
        dry_run: arguments.dry_run,
        files_restored: report.files_restored,
        files_unchanged: report.files_unchanged,
        files_kept: report.files_kept,
        directories: report.directories,
        others: report.others,
        deleted: report.deleted,
        bytes_total: report.bytes_total,
        bytes_fetched: report.bytes_fetched,
        bytes_written: report.bytes_written,
        bytes_reused: report.bytes_reused,
        damaged: report.damaged.count,
        failed: report.failed.count,
        metadata_issues: report.metadata_issues.clone(),
        planned,
        seconds_elapsed: context.seconds_elapsed(),
    }
}

fn shown(path: &std::path::Path) -> String {
    render::path(path.as_os_str().as_bytes())
}
