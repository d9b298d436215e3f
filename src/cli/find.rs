//! `ckpt find`: find files by name in all snapshots.

use super::args::{AtArgument, NarrowArguments};
use super::context::Context;
use super::exit::Ending;
use super::json::{EntryItem, FindHead, FindMatch, FindTail};
use super::output::DocumentStream;
use super::{ls, selectors};
use ckpt::error::{Error, Kind, Result};
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
    let repo = context.open()?;
    let all = repo.snapshots();
    let snapshots: Vec<Snapshot> = if arguments.snapshot.is_empty() {
        all.into_iter().filter(|snapshot| narrow.admits(snapshot)).collect()
    } else {
        let find = |selector: &OsString| {
            let selected = selectors::find(context, &all, Some(selector), &AtArgument::default(), &narrow)?;
            match selected.subpath {
                None => Ok(selected.snapshot),
                Some(_) => Err(Error::new(Kind::Usage, "find searches whole snapshots")
                    .with_hint("leave out `:SUBPATH`, and put the path into the pattern instead")),
            }
        };
        arguments.snapshot.iter().map(find).collect::<Result<_>>()?
    };
    let options = FindOptions { patterns: arguments.patterns.clone(), ignore_case: arguments.ignore_case };
    let output = &context.output;
    if output.manners.json {
        let snapshots_searched = u64::try_from(snapshots.len()).unwrap_or(u64::MAX);
        let head = FindHead { patterns: arguments.patterns.clone(), snapshots_searched };
        let mut stream = DocumentStream::begin(output, "find", &head, "matches")?;
        let report = find(&repo, &snapshots, &options, &mut |snapshot, entry| {
            stream.item(&FindMatch { snapshot: snapshot.id.to_hex(), entry: EntryItem::new(snapshot, entry) })
        })?;
        stream.end(&FindTail { matches_total: report.matches })?;
    } else {
        find(&repo, &snapshots, &options, &mut |snapshot, entry| {
            output.line(&format!("{}  {}", snapshot.id.short(), ls::line(context, snapshot, entry, true)))
        })?;
    }
    Ok(Ending::Done)
}
