//! `ckpt forget`: forget snapshots, by id or by policy.

use super::args::NarrowArguments;
use super::context::Context;
use super::exit::Ending;
use super::json::{Body, ForgetSummary, KeptItem, Summary};
use super::prune;
use super::render::{self, Side, Table};
use super::selectors::{self, Base};
use super::times;
use ckpt::error::{Error, Kind, Result};
use ckpt::ids::SnapshotId;
use ckpt::ops::forget::{ForgetOptions, ForgetReport, forget};
use ckpt::ops::retention::Policy;
use ckpt::repo::audit::Actor;
use ckpt::repo::snapshots::{Narrow, SelectorBase, Snapshot, select};
use jiff::Span;
use std::ffi::OsString;

/// Options of `forget`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt forget 4f1c 77a0
  ckpt forget --keep-daily 7 --keep-weekly 5 --keep-monthly 12 --dry-run
  ckpt forget --keep-last 3 --keep-tag best --prune
  ckpt forget --keep-last 3 --keep-every-steps 10000 --dry-run

A policy holds for each source by itself (host and paths, or the name given with `backup --source`). \
A snapshot is kept if any rule keeps it. Forgetting frees no space: `prune` does, or --prune here.")]
pub struct Arguments {
    /// The first digits (at least 4) of the ids of snapshots to forget
    #[arg(value_name = "ID")]
    ids: Vec<OsString>,

    /// Keep the newest N snapshots
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Policy")]
    keep_last: Option<u32>,

    /// Keep the newest snapshot of each of the last N hours that have one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Policy")]
    keep_hourly: Option<u32>,

    /// Keep the newest snapshot of each of the last N days that have one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Policy")]
    keep_daily: Option<u32>,

    /// Keep the newest snapshot of each of the last N weeks that have one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Policy")]
    keep_weekly: Option<u32>,

    /// Keep the newest snapshot of each of the last N months that have one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Policy")]
    keep_monthly: Option<u32>,

    /// Keep the newest snapshot of each of the last N years that have one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Policy")]
    keep_yearly: Option<u32>,

    /// Keep everything made within this time before the newest snapshot of the source: 36h, 14d, 6mo, 1y6mo
    #[arg(long, value_name = "SPAN", value_parser = times::parse_span, help_heading = "Policy")]
    keep_within: Option<Span>,

    /// Keep everything with this tag; may be given several times
    #[arg(long, value_name = "TAG", value_parser = selectors::parse_tag, help_heading = "Policy")]
    keep_tag: Vec<String>,

    /// Keep the newest snapshot that holds each finished checkpoint whose step is a multiple of N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Policy")]
    keep_every_steps: Option<u64>,

    #[command(flatten)]
    narrow: NarrowArguments,

    /// Show what would be forgotten, and why the rest is kept
    #[arg(long, short = 'n')]
    dry_run: bool,

    /// Then free the space, as `prune` does
    #[arg(long)]
    prune: bool,

    #[command(flatten)]
    choices: prune::Choices,
}

/// Forgets snapshots, and prunes if asked.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    let policy = arguments.policy();
    let narrow = selectors::narrow(&arguments.narrow)?;
    arguments.check(policy.is_some(), &narrow)?;
    let prefixes = arguments.ids.iter().map(id_prefix).collect::<Result<Vec<SelectorBase>>>()?;
    let repo = if arguments.prune { context.open_fresh()? } else { context.open()? };
    let snapshots = repo.snapshots();
    let find = |prefix: &SelectorBase| match prefix {
        // A snapshot that is damaged beyond reading is not in the list; its whole id still names it.
        SelectorBase::Id(digits) if SnapshotId::from_hex(digits).is_ok() => SnapshotId::from_hex(digits),
        prefix => select(&snapshots, prefix, &Narrow::default()).map(|snapshot| snapshot.id),
    };
    let ids = prefixes.iter().map(find).collect::<Result<Vec<SnapshotId>>>()?;
    let options = ForgetOptions {
        ids,
        policy,
        narrow,
        dry_run: arguments.dry_run,
        now: context.started(),
        actor: Actor::of_this_process(),
        time_zone: context.now.time_zone().clone(),
    };
    let report = forget(&repo, &options, &context.reporter)?;
    context.reporter.end_phase();
    show(context, arguments, &snapshots, &report)?;
    match (arguments.prune, arguments.dry_run) {
        (false, _) => Ok(Ending::Done),
        (true, false) => prune::execute(context, &repo, arguments.choices, false),
        (true, true) => {
            context.output.warning("a dry run forgets nothing, so what pruning would free is not known yet");
            Ok(Ending::Done)
        }
    }
}

impl Arguments {
    /// The policy; none if no rule is given.
    fn policy(&self) -> Option<Policy> {
        let counts =
            [self.keep_last, self.keep_hourly, self.keep_daily, self.keep_weekly, self.keep_monthly, self.keep_yearly];
        if counts.iter().all(Option::is_none)
            && self.keep_within.is_none()
            && self.keep_tag.is_empty()
            && self.keep_every_steps.is_none()
        {
            return None;
        }
        Some(Policy {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: self.keep_within,
            tags: self.keep_tag.clone(),
            every_steps: self.keep_every_steps,
        })
    }

    fn check(&self, has_policy: bool, narrow: &Narrow) -> Result<()> {
        let usage = |text: &str, hint: &str| Err(Error::new(Kind::Usage, text).with_hint(hint));
        if self.choices.is_given() && !self.prune {
            return usage("--max-unused and --assume-alone are about pruning", "give --prune, too, or leave them out");
        }
        match (self.ids.is_empty(), has_policy) {
            (true, false) => usage(
                "neither a snapshot nor a policy is named",
                "give ids, or what to keep: for example --keep-daily 7 --keep-weekly 5; --dry-run shows the effect",
            ),
            (false, true) => usage("ids and a policy exclude each other", "run forget twice"),
            (false, false) if *narrow != Narrow::default() => {
                usage("--host, --source, --path and --tag narrow a policy, not ids", "leave them out")
            }
            _ => Ok(()),
        }
    }
}

fn id_prefix(text: &OsString) -> Result<SelectorBase> {
    match selectors::parse(text)? {
        selectors::Parsed { base: Some(Base::Id(prefix)), subpath: None } => Ok(SelectorBase::Id(prefix)),
        _ => Err(Error::new(Kind::Usage, "forget takes ids, so that a newer snapshot is never forgotten by mistake")
            .with_hint("`ckpt snapshots` lists the ids")),
    }
}

fn show(context: &Context, arguments: &Arguments, snapshots: &[Snapshot], report: &ForgetReport) -> Result<()> {
    let output = &context.output;
    if output.manners.json {
        let kept = report.kept.iter().map(|kept| KeptItem { id: kept.id.to_hex(), reasons: kept.reasons.clone() });
        let summary = ForgetSummary {
            dry_run: arguments.dry_run,
            kept: kept.collect(),
            forgotten: report.forgotten.iter().map(|id| id.to_hex()).collect(),
            seconds_elapsed: context.seconds_elapsed(),
        };
        return output.closing(output.document(Body::Summary(Summary::Forget(summary))));
    }
    if arguments.dry_run || output.manners.is_talkative() {
        output.closing(table(context, snapshots, report).lines().iter().try_for_each(|line| output.line(line)))?;
    }
    if output.manners.is_watched() {
        let count = u64::try_from(report.forgotten.len()).unwrap_or(u64::MAX);
        let verb = if arguments.dry_run { "would be forgotten" } else { "forgotten" };
        output.talk("info", &format!("{} {verb}", render::counted(count, "snapshot", "snapshots")));
    }
    Ok(())
}

/// Every snapshot in question, oldest first, with what happens to it and why.
fn table(context: &Context, snapshots: &[Snapshot], report: &ForgetReport) -> Table {
    let mut table = Table::new(&[
        ("", Side::Left),
        ("ID", Side::Left),
        ("TIME", Side::Left),
        ("SOURCE", Side::Left),
        ("WHY", Side::Left),
    ]);
    for snapshot in snapshots {
        let kept = report.kept.iter().find(|kept| kept.id == snapshot.id);
        let (action, why) = match kept {
            Some(kept) => ("keep", kept.reasons.join(", ")),
            None if report.forgotten.contains(&snapshot.id) => ("forget", String::new()),
            None => continue,
        };
        table.row(vec![
            action.to_owned(),
            snapshot.id.short(),
            context.time(snapshot.started),
            render::path(snapshot.source_key().as_bytes()),
            render::prose(&why),
        ]);
    }
    table
}
