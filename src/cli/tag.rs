//! `ckpt tag`: add or remove tags of snapshots.

use super::args::NarrowArguments;
use super::context::Context;
use super::exit::Ending;
use super::json::{Body, TagDocument};
use super::render;
use super::selectors::{self, Wanted};
use ckpt::error::{Error, Kind, Result};
use ckpt::ids::SnapshotId;
use ckpt::ops::tag::tag;
use std::ffi::OsString;

/// Options of `tag`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt tag latest --add best
  ckpt tag 4f1c 77a0 --remove nightly --add keep
  ckpt tag tag:best --set archive")]
pub struct Arguments {
    /// The snapshots: latest, tag:NAME or the first digits of an id
    #[arg(value_name = "SELECTOR", required = true)]
    selectors: Vec<OsString>,

    /// Add a tag
    #[arg(long, value_name = "TAG", value_delimiter = ',', value_parser = selectors::parse_tag)]
    add: Vec<String>,

    /// Remove a tag
    #[arg(long, value_name = "TAG", value_delimiter = ',', value_parser = selectors::parse_tag)]
    remove: Vec<String>,

    /// Have these tags and no others
    #[arg(
        long,
        value_name = "TAG",
        value_delimiter = ',',
        value_parser = selectors::parse_tag,
        conflicts_with_all = ["add", "remove"]
    )]
    set: Vec<String>,

    #[command(flatten)]
    narrow: NarrowArguments,
}

/// Changes the tags.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    if arguments.add.is_empty() && arguments.remove.is_empty() && arguments.set.is_empty() {
        return Err(Error::new(Kind::Usage, "nothing to change").with_hint("give --add, --remove or --set"));
    }
    let narrow = selectors::narrow(&arguments.narrow)?;
    let wanted = |selector: &OsString| selectors::wanted_whole(context, selector, "leave out `:SUBPATH`");
    let wanted = arguments.selectors.iter().map(wanted).collect::<Result<Vec<Wanted>>>()?;
    let repo = context.open()?;
    let snapshots = repo.snapshots();
    let find = |wanted: &Wanted| wanted.find(&snapshots, &narrow).map(|snapshot| snapshot.id);
    let mut ids = wanted.iter().map(find).collect::<Result<Vec<SnapshotId>>>()?;
    ids.sort();
    ids.dedup();
    let set = if arguments.set.is_empty() { None } else { Some(arguments.set.as_slice()) };
    let report = tag(&repo, &ids, &arguments.add, &arguments.remove, set)?;
    let output = &context.output;
    if output.manners.json {
        output.closing(output.document(Body::Tag(TagDocument { changed: report.changed })))?;
    } else if output.manners.is_watched() {
        output.talk("info", &format!("{} changed", render::counted(report.changed, "snapshot", "snapshots")));
    }
    Ok(Ending::Done)
}
