//! `ckpt prune`: free the space of what no snapshot needs any more.

use super::context::Context;
use super::exit::Ending;
use super::json::{Body, PruneSummary, Summary};
use super::render;
use super::sizes::{self, UnusedArgument};
use ckpt::bytes::ByteCount;
use ckpt::error::Result;
use ckpt::ops::prune::{MaxUnused, PruneOptions, PruneReport, prune};
use ckpt::repo::Repo;
use ckpt::repo::records::WriterRecord;

/// Options of `prune`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt prune --dry-run
  ckpt prune --max-unused 10G

While a backup runs, prune ends with exit code 11 and deletes nothing; run it again later. A prune that was killed \
is finished by the next one.")]
pub struct Arguments {
    #[command(flatten)]
    choices: Choices,

    /// Say what would be freed, and change nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
}

/// Options that `forget --prune` has too.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Choices {
    /// How much unused space may stay: a share (5%), a size (10G), or unlimited (delete only packs without any used
    /// content) [default: 5%]
    #[arg(long, value_name = "HOW MUCH", value_parser = sizes::parse_unused)]
    max_unused: Option<UnusedArgument>,

    /// End backups that seem to be running, on any host: only when you know that none is
    #[arg(long)]
    assume_alone: bool,
}

impl Choices {
    /// True if anything was chosen.
    pub fn is_given(&self) -> bool {
        self.max_unused.is_some() || self.assume_alone
    }
}

/// Prunes the repository.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    let repo = context.open_fresh()?;
    execute(context, &repo, arguments.choices, arguments.dry_run)
}

/// Prunes `repo` and shows the result.
pub fn execute(context: &Context, repo: &Repo, choices: Choices, dry_run: bool) -> Result<Ending> {
    let max_unused = match choices.max_unused.unwrap_or(UnusedArgument::Percent(5.0)) {
        UnusedArgument::Percent(percent) => MaxUnused::Percent(percent),
        UnusedArgument::Bytes(bytes) => MaxUnused::Bytes(bytes),
        UnusedArgument::Unlimited => MaxUnused::Unlimited,
    };
    let options = PruneOptions {
        dry_run,
        max_unused,
        resources: context.resources(),
        now: context.started(),
        writer: WriterRecord::of_this_process(context.started()),
        assume_alone: choices.assume_alone,
    };
    let report = prune(repo, &options, &context.reporter)?;
    context.reporter.end_phase();
    let output = &context.output;
    if output.manners.json {
        let summary = Summary::Prune(summary(context, &report, dry_run));
        output.closing(output.document(Body::Summary(summary)))?;
    } else if dry_run {
        output.closing(output.line(&counts(context, &report, "a prune now would mean: ")))?;
    } else if output.manners.is_watched() {
        output.talk("info", &counts(context, &report, ""));
    }
    Ok(Ending::Done)
}

fn counts(context: &Context, report: &PruneReport, before: &str) -> String {
    format!(
        "{before}{} deleted, {} packed again ({}), {} stay; {} freed, {} unused left; {}",
        render::counted(report.packs_deleted, "pack", "packs"),
        report.packs_repacked,
        ByteCount(report.bytes_repacked),
        report.packs_kept,
        ByteCount(report.bytes_freed),
        ByteCount(report.bytes_unused_left),
        render::duration(context.seconds_elapsed()),
    )
}

fn summary(context: &Context, report: &PruneReport, dry_run: bool) -> PruneSummary {
    PruneSummary {
        dry_run,
        packs_kept: report.packs_kept,
        packs_deleted: report.packs_deleted,
        packs_repacked: report.packs_repacked,
        bytes_freed: report.bytes_freed,
        bytes_repacked: report.bytes_repacked,
        bytes_unused_left: report.bytes_unused_left,
        index_objects_merged: report.index_objects_merged,
        transactions_ended: report.transactions_ended,
        temporary_bytes_freed: report.temporary_bytes_freed,
        seconds_elapsed: context.seconds_elapsed(),
    }
}
