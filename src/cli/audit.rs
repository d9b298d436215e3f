//! `ckpt audit`: who has forgotten, deleted, repaired or changed keys, and whether the log of it is whole.

use super::context::Context;
use super::exit::Ending;
use super::json::{AuditDocument, AuditItem, AuditSummary, Body, Summary};
use super::render::{self, Side, Table};
use ckpt::error::Result;
use ckpt::metadata::FileTime;
use ckpt::ops::audit::{list, verify};
use ckpt::repo::audit::AuditRecord;

/// Options of `audit`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

/// What to do with the log.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// List what was done, oldest first
    #[command(after_help = "\
Examples:
  ckpt audit list
  ckpt audit list --action forget --last 20
  ckpt audit list --json | jq -r '.data.records[] | [.time, .host, .action] | @tsv'

A record is written before its action begins; an action that was cut short has one, too.")]
    List {
        /// Only records of this action: forget, prune, repair, or one of keys
        #[arg(long, value_name = "NAME")]
        action: Option<String>,
        /// Only the newest N
        #[arg(long, value_name = "N")]
        last: Option<usize>,
    },
    /// Check that no record was changed or taken away (exit 5 if so)
    #[command(after_help = "\
Examples:
  ckpt audit verify
  ckpt audit verify --json

Records are chained by their hashes, and snapshots, markers and lists name the record that was the newest for them. A log \
that was cut off at its end shows if anything was done or saved since, or if this host has seen what is missing.")]
    Verify {},
}

/// Does it.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    match &arguments.what {
        What::List { action, last } => run_list(context, action.as_deref(), *last),
        What::Verify {} => run_verify(context),
    }
}

fn run_list(context: &Context, action: Option<&str>, last: Option<usize>) -> Result<Ending> {
    let repo = context.open()?;
    let mut list = list(&repo)?;
    list.records.retain(|record| action.is_none_or(|action| record.action == action));
    let skipped = last.map_or(0, |last| list.records.len().saturating_sub(last));
    let records = &list.records[skipped..];
    let output = &context.output;
    for text in &list.damage {
        output.warning(text);
    }
    if output.manners.json {
        let damaged = u64::try_from(list.damage.len()).unwrap_or(u64::MAX);
        let records = records.iter().map(AuditItem::new).collect();
        output.document(Body::Audit(AuditDocument { records, damaged }))?;
        return Ok(Ending::Done);
    }
    if records.is_empty() {
        if output.manners.is_watched() {
            output.talk("info", "the audit log holds no such record");
        }
        return Ok(Ending::Done);
    }
    table(context, records).lines().iter().try_for_each(|line| output.line(line))?;
    Ok(Ending::Done)
}

fn table(context: &Context, records: &[AuditRecord]) -> Table {
    let mut table = Table::new(&[
        ("NUMBER", Side::Right),
        ("TIME", Side::Left),
        ("HOST", Side::Left),
        ("USER", Side::Right),
        ("ACTION", Side::Left),
        ("WHAT", Side::Left),
    ]);
    for record in records {
        table.row(vec![
            record.number.to_string(),
            context.time(FileTime { seconds: record.seconds, nanoseconds: 0 }),
            render::path(record.host.as_bytes()),
            record.user.to_string(),
            render::path(record.action.as_bytes()),
            render::path(what(record).as_bytes()),
        ]);
    }
    table
}

/// A few of the objects, and all details.
fn what(record: &AuditRecord) -> String {
    const SHOWN: usize = 3;
    let short = |object: &String| object.chars().take(16).collect::<String>();
    let mut parts: Vec<String> = record.details.iter().map(|(name, value)| format!("{name} {value}")).collect();
    parts.extend(record.objects.iter().take(SHOWN).map(short));
    if record.objects.len() > SHOWN {
        parts.push(format!("and {} more", record.objects.len() - SHOWN));
    }
    parts.join(", ")
}

fn run_verify(context: &Context) -> Result<Ending> {
    let repo = context.open()?;
    let report = verify(&repo, &context.reporter)?;
    context.reporter.end_phase();
    let output = &context.output;
    if output.manners.json {
        let summary = AuditSummary {
            records: report.records,
            heads_checked: report.heads,
            problems: report.problems.clone(),
            problems_count: report.problems_count,
            seconds_elapsed: context.seconds_elapsed(),
        };
        output.closing(output.document(Body::Summary(Summary::Audit(summary))))?;
    } else {
        for problem in &report.problems {
            output.line(&render::prose(problem))?;
        }
        if output.manners.is_watched() {
            let records = render::counted(report.records, "record", "records");
            output
                .talk("info", &format!("{records} read, {} looked up", render::counted(report.heads, "head", "heads")));
        }
    }
    if report.problems_count == 0 {
        return Ok(Ending::Done);
    }
    let problems = render::counted(report.problems_count, "problem", "problems");
    let hint =
        "find out who could write to the repository; compare with a copy of it; snapshots are not touched by this";
    Ok(Ending::Damage(format!("the audit log is not whole: {problems}"), Some(hint)))
}
