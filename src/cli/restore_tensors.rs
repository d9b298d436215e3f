//! `ckpt restore --tensor`: what was done, in lines and as a document.

use super::context::Context;
use super::exit::Ending;
use super::json::{Body, PlannedTensorFileItem, RestoreTensorsSummary, Summary, path_text};
use super::render::{self, Side, Table};
use super::restore::{common_kind, show_metadata_issues};
use ckpt::bytes::ByteCount;
use ckpt::error::{Error, Result};
use ckpt::ops::restore_tensors::{
    Destination, PlannedFile, RestoreTensorsOptions, RestoreTensorsReport, restore_tensors,
};
use ckpt::ops::tensors::Part;
use ckpt::repo::Repo;
use std::ffi::OsStr;
use std::path::PathBuf;

/// The target as the user means it: a name of a safetensors file is one, unless a directory stands there.
pub fn destination(target: PathBuf) -> Destination {
    let is_file = target.extension() == Some(OsStr::new("safetensors")) && !target.is_dir();
    if is_file { Destination::File(target) } else { Destination::Directory(target) }
}

/// Restores tensors.
pub fn run(context: &Context, repo: &Repo, part: Part<'_>, options: &RestoreTensorsOptions) -> Result<Ending> {
    let report = restore_tensors(repo, part, options, &context.reporter)?;
    context.reporter.end_phase();
    if context.reporter.problems() == 0 {
        [&report.damaged, &report.failed, &report.skipped].into_iter().for_each(|list| context.show_problems(list));
    }
    let output = &context.output;
    if output.manners.json {
        let summary = Summary::RestoreTensors(summary(context, part, options, &report));
        output.closing(output.document(Body::Summary(summary)))?;
    } else {
        show_metadata_issues(context, &report.metadata_issues);
        if let Some(planned) = &report.planned {
            output.closing(show_plan(context, planned))?;
            output.closing(output.line(&planned_counts(&report, planned)))?;
        } else if output.manners.is_watched() {
            output.talk("info", &counts(context, &report));
        }
    }
    ending(&report)
}

fn ending(report: &RestoreTensorsReport) -> Result<Ending> {
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
        let text = format!("{what} could not be written; the rest was restored");
        return Err(Error::new(common_kind(&report.failed), text)
            .with_hint("mend what the lines above name, then run the same command again"));
    }
    match report.skipped.count {
        0 => Ok(Ending::Done),
        count => Ok(Ending::Partial(
            format!(
                "{} left out, because safetensors cannot hold what is named above; the rest was restored",
                render::counted(count, "tensor was", "tensors were")
            ),
            "`ckpt dump SELECTOR PATH` brings their files as they are",
        )),
    }
}

fn show_plan(context: &Context, planned: &[PlannedFile]) -> Result<()> {
    let columns = [("ACTION", Side::Left), ("SIZE", Side::Right), ("TENSORS", Side::Right), ("PATH", Side::Left)];
    let mut table = Table::new(&columns);
    for file in planned {
        let (size, tensors) = (ByteCount(file.bytes).to_string(), file.tensors.to_string());
        table.row(vec![file.action.to_owned(), size, tensors, render::path(&file.path)]);
    }
    table.lines().iter().try_for_each(|line| context.output.line(line))
}

fn planned_counts(report: &RestoreTensorsReport, planned: &[PlannedFile]) -> String {
    let files = render::counted(planned.len() as u64, "file", "files");
    let tensors = render::counted(report.tensors, "tensor", "tensors");
    format!("{tensors} in {files}, {}; nothing was written", ByteCount(report.bytes_total))
}

fn counts(context: &Context, report: &RestoreTensorsReport) -> String {
    format!(
        "{} in {}, {} right already, {} kept; {} of {} written; {}",
        render::counted(report.tensors, "tensor", "tensors"),
        render::counted(report.files_restored, "file restored", "files restored"),
        report.files_unchanged,
        report.files_kept,
        ByteCount(report.bytes_written),
        ByteCount(report.bytes_total),
        render::duration(context.seconds_elapsed()),
    )
}

fn summary(
    context: &Context,
    part: Part<'_>,
    options: &RestoreTensorsOptions,
    report: &RestoreTensorsReport,
) -> RestoreTensorsSummary {
    let (Destination::Directory(target) | Destination::File(target)) = &options.target;
    let item = |file: &PlannedFile| {
        let (path, path_bytes) = path_text(&file.path);
        let action = file.action.to_owned();
        PlannedTensorFileItem { path, path_bytes, action, bytes: file.bytes, tensors: file.tensors }
    };
    RestoreTensorsSummary {
        snapshot: part.snapshot.id.to_hex(),
        target: target.to_string_lossy().into_owned(),
        dry_run: options.dry_run,
        files_restored: report.files_restored,
        files_unchanged: report.files_unchanged,
        files_kept: report.files_kept,
        tensors: report.tensors,
        tensors_skipped: report.skipped.count,
        bytes_total: report.bytes_total,
        bytes_written: report.bytes_written,
        damaged: report.damaged.count,
        failed: report.failed.count,
        metadata_issues: report.metadata_issues.clone(),
        planned: report.planned.as_ref().map(|planned| planned.iter().map(item).collect()),
        seconds_elapsed: context.seconds_elapsed(),
    }
}
