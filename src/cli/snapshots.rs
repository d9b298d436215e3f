//! `ckpt snapshots`: list what is saved.

use super::args::NarrowArguments;
use super::context::Context;
use super::exit::Ending;
use super::json::{Body, SnapshotItem, SnapshotsDocument};
use super::render::{self, Side, Table};
use super::selectors;
use ckpt::bytes::ByteCount;
use ckpt::error::Result;
use ckpt::repo::checkpoints::{steps_in_words, steps_of};
use ckpt::repo::snapshots::Snapshot;

/// Options of `snapshots`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt snapshots
  ckpt snapshots --path /data/run7 --tag best
  ckpt snapshots --json | jq -r '.data.snapshots[-1].id'

A snapshot marked `incomplete` lacks files that could not be read, or holds some that \
changed while they were read. `[step 1000..5000 (5)]` says which finished checkpoints it holds.")]
pub struct Arguments {
    #[command(flatten)]
    narrow: NarrowArguments,
}

/// Lists the snapshots, oldest first.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    let narrow = selectors::narrow(&arguments.narrow)?;
    let repo = context.open()?;
    let snapshots: Vec<Snapshot> = repo.snapshots().into_iter().filter(|snapshot| narrow.admits(snapshot)).collect();
    let output = &context.output;
    if output.manners.json {
        let damaged = u64::try_from(repo.damage().len()).unwrap_or(u64::MAX);
        let snapshots = snapshots.iter().map(SnapshotItem::new).collect();
        output.document(Body::Snapshots(SnapshotsDocument { snapshots, damaged }))?;
        return Ok(Ending::Done);
    }
    if snapshots.is_empty() {
        if output.manners.is_watched() {
            output.talk("info", "no snapshots");
        }
        return Ok(Ending::Done);
    }
    table(context, &snapshots).lines().iter().try_for_each(|line| output.line(line))?;
    Ok(Ending::Done)
}

/// The snapshots as a table.
pub fn table(context: &Context, snapshots: &[Snapshot]) -> Table {
    let mut table = Table::new(&[
        ("ID", Side::Left),
        ("TIME", Side::Left),
        ("HOST", Side::Left),
        ("FILES", Side::Right),
        ("SIZE", Side::Right),
        ("TAGS", Side::Left),
        ("WHAT", Side::Left),
    ]);
    for snapshot in snapshots {
        let tags: Vec<&str> = snapshot.tags.iter().map(String::as_str).collect();
        table.row(vec![
            snapshot.id.short(),
            context.time(snapshot.started),
            render::path(snapshot.host.as_bytes()),
            snapshot.totals.files.to_string(),
            ByteCount(snapshot.totals.bytes).to_string(),
            render::path(tags.join(",").as_bytes()),
            what(snapshot),
        ]);
    }
    table
}

/// The source's name and paths, and a mark if something is missing.
fn what(snapshot: &Snapshot) -> String {
    let mut parts = Vec::new();
    if let Some(source) = &snapshot.source {
        parts.push(format!("{}:", render::path(source.as_bytes())));
    }
    parts.extend(snapshot.roots.iter().map(|root| render::path(root)));
    let steps = steps_in_words(&steps_of(std::iter::once(snapshot)));
    if !steps.is_empty() {
        parts.push(format!("[{steps}]"));
    }
    let unfinished = snapshot.checkpoints.iter().filter(|record| record.unfinished.is_some()).count();
    if unfinished > 0 {
        parts.push(format!("[{unfinished} unfinished]"));
    }
    if snapshot.is_incomplete() {
        parts.push(format!("[incomplete: {}]", render::counted(snapshot.problems, "problem", "problems")));
    }
    parts.join(" ")
}
