//! `ckpt find`: find files by name in all snapshots.

use super::args::NarrowArguments;
use super::context::Context;
use super::exit::Ending;
use super::json::{EntryItem, FindHead, FindMatch, FindTail};
use super::ls;
use super::output::DocumentStream;
use super::selectors::{self, Wanted};
use ckpt::error::Result;
use ckpt::ops::find::{FindOptions, find};
use ckpt::repo::snapshots::Snapshot;
use std::ffi::OsString;

/// Options of `find`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt find model.safetensors
  ckpt find '*.bin' 'optimizer*' --host node3
  ckpt find 'checkpoint-*/config.json' --snapshot latest

A pattern is a glob (*, ?, [a-z]) for the last name of the path, or for the whole path if it holds \
a `/`. Each line shows the snapshot and then the entry.")]
pub struct Arguments {
    /// What to look for
    #[arg(value_name = "PATTERN", required = true)]
    patterns: Vec<String>,

    /// Take upper and lower case as the same
    #[arg(long, short)]
    ignore_case: bool,

    /// Only in this snapshot; may be given several times
    #[arg(long, short, value_name = "SELECTOR", help_heading = "Which snapshots")]
    snapshot: Vec<OsString>,

    #[command(flatten)]
    narrow: NarrowArguments,
}

/// Finds the files.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    let narrow = selectors::narrow(&arguments.narrow)?;
    let hint = "leave out `:SUBPATH`, and put the path into the pattern instead";
    let wanted = |selector: &OsString| selectors::wanted_whole(context, selector, hint);
    let wanted = arguments.snapshot.iter().map(wanted).collect::<Result<Vec<Wanted>>>()?;
    let repo = context.open()?;
    let all = repo.snapshots();
    let snapshots: Vec<Snapshot> = if wanted.is_empty() {
        all.into_iter().filter(|snapshot| narrow.admits(snapshot)).collect()
    } else {
        wanted.iter().map(|wanted| wanted.find(&all, &narrow)).collect::<Result<_>>()?
    };
    let options = FindOptions { patterns: arguments.patterns.clone(), ignore_case: arguments.ignore_case };
    let output = &context.output;
    let report = if output.manners.json {
        let snapshots_searched = u64::try_from(snapshots.len()).unwrap_or(u64::MAX);
        let head = FindHead { patterns: arguments.patterns.clone(), snapshots_searched };
        let mut stream = DocumentStream::begin(output, "find", &head, "matches")?;
        let report = find(&repo, &snapshots, &options, &mut |snapshot, entry| {
            stream.item(&FindMatch { snapshot: snapshot.id.to_hex(), entry: EntryItem::new(snapshot, entry) })
        })?;
        stream.end(&FindTail { matches_total: report.matches, damaged: report.damaged })?;
        report
    } else {
        find(&repo, &snapshots, &options, &mut |snapshot, entry| {
            output.line(&format!("{}  {}", snapshot.id.short(), ls::line(context, snapshot, entry, true)))
        })?
    };
    if report.damaged > 0 {
        return Ok(Ending::Damage(
            "parts of lists of files cannot be read because they are damaged".to_owned(),
            Some("`ckpt verify` says more"),
        ));
    }
    Ok(Ending::Done)
}
