//! `ckpt prune`: free the space of what no snapshot needs any more.

use super::context::Context;
use super::exit::Ending;
use super::json::{Body, PruneSummary, PrunedPack, Summary};
use super::progress::SIGN_INTERVAL;
use super::render;
use super::sizes::{self, UnusedArgument};
use super::times;
use ckpt::bytes::ByteCount;
use ckpt::error::Result;
use ckpt::metadata::FileTime;
use ckpt::ops::prune::{MaxUnused, PackVerdict, PruneOptions, PruneReport, Verdict, prune};
use ckpt::repo::Repo;
use ckpt::repo::records::WriterRecord;
use std::time::Duration;

/// How long what was decided to go stays, unless told otherwise.
const DELETE_DELAY: Duration = Duration::from_secs(72 * 3600);
/// Three signs of life that did not come.
const SILENCE: Duration = Duration::from_secs(3 * SIGN_INTERVAL.as_secs());

/// Options of `prune`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt prune --dry-run
  ckpt prune --max-unused 10G

Backups, restores and other prunes may run meanwhile, on any host. Where a backup that runs may need what is to go, \
prune records how far it came and ends with exit code 11; run it again later: it goes on from there, as after a kill.")]
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

    /// How long what no snapshot needs any more stays for restores that run; 0 frees the space at once [default: 3d]
    #[arg(long, value_name = "DURATION", value_parser = times::parse_settle)]
    delete_delay: Option<Duration>,

    /// End backups that seem to be running, on any host: only when you know that none is
    #[arg(long)]
    assume_alone: bool,
}

impl Choices {
    /// True if anything was chosen.
    pub fn is_given(&self) -> bool {
        self.max_unused.is_some() || self.delete_delay.is_some() || self.assume_alone
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
        delete_delay: choices.delete_delay.unwrap_or(DELETE_DELAY),
        silence: SILENCE,
    };
    let report = prune(repo, &options, &context.reporter)?;
    context.reporter.end_phase();
    let output = &context.output;
    if output.manners.json {
        let summary = Summary::Prune(summary(context, &report, dry_run));
        output.closing(output.document(Body::Summary(summary)))?;
    } else if dry_run {
        output.closing(output.line(&counts(context, &report, true)))?;
    } else if output.manners.is_watched() {
        output.talk("info", &counts(context, &report, false));
    }
    Ok(Ending::Done)
}

fn counts(context: &Context, report: &PruneReport, dry_run: bool) -> String {
    let mut parts = vec![format!(
        "{} without anything needed, {} packed again ({}), {} stay; {} freed by that, {} unused left",
        render::counted(report.packs_deleted, "pack", "packs"),
        report.packs_repacked,
        ByteCount(report.bytes_repacked),
        report.packs_kept,
        ByteCount(report.bytes_freed),
        ByteCount(report.bytes_unused_left),
    )];
    let of = |packs, bytes| format!("{} ({})", render::counted(packs, "pack", "packs"), ByteCount(bytes));
    if report.packs_of_writers > 0 {
        let which = of(report.packs_of_writers, report.bytes_of_writers);
        parts.push(format!("{which} kept for backups that have not ended"));
    }
    if report.packs_removed > 0 {
        parts.push(format!("{} deleted", of(report.packs_removed, report.bytes_removed)));
    }
    if report.packs_due > 0 {
        parts.push(format!("{} decided on earlier, to be deleted now", of(report.packs_due, report.bytes_due)));
    }
    if let Some(until) = report.waiting_until {
        let at = render::time(FileTime { seconds: until, nanoseconds: 0 }, context.now.time_zone());
        let which = of(report.packs_waiting, report.bytes_waiting);
        parts.push(format!("{which} to be deleted by a prune from {at} on (--delete-delay 0: at once)"));
    }
    let before = if dry_run { "a prune now would mean: " } else { "" };
    format!("{before}{}; {}", parts.join("; "), render::duration(context.seconds_elapsed()))
}

fn summary(context: &Context, report: &PruneReport, dry_run: bool) -> PruneSummary {
    let item = |verdict: &PackVerdict| PrunedPack {
        pack: verdict.id.to_hex(),
        bytes: verdict.bytes,
        bytes_used: verdict.bytes_used,
        goes: !matches!(verdict.verdict, Verdict::Stays | Verdict::OfWriter),
        reason: verdict.verdict.text().to_owned(),
    };
    PruneSummary {
        dry_run,
        packs_kept: report.packs_kept,
        packs_deleted: report.packs_deleted,
        packs_repacked: report.packs_repacked,
        bytes_freed: report.bytes_freed,
        bytes_repacked: report.bytes_repacked,
        bytes_unused_left: report.bytes_unused_left,
        packs_of_writers: report.packs_of_writers,
        bytes_of_writers: report.bytes_of_writers,
        packs_removed: report.packs_removed + report.packs_due,
        bytes_removed: report.bytes_removed + report.bytes_due,
        packs_waiting: report.packs_waiting,
        bytes_waiting: report.bytes_waiting,
        waiting_until: report
            .waiting_until
            .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
            .map(|at| at.to_string()),
        index_objects_merged: report.index_objects_merged,
        transactions_ended: report.transactions_ended,
        temporary_bytes_freed: report.temporary_bytes_freed,
        packs: report.verdicts.iter().map(item).collect(),
        seconds_elapsed: context.seconds_elapsed(),
    }
}
