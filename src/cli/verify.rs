//! `ckpt verify`: check that what is stored can be restored.

use super::args::{AtArgument, NarrowArguments};
use super::context::Context;
use super::exit::Ending;
use super::json::{
    AgainstSummary, Body, DamageItem, DamagedFile, DifferenceItem, Summary, VerifySummary, path_text, time_text,
};
use super::sizes::{self, SubsetArgument};
use super::{render, selectors};
use ckpt::bytes::ByteCount;
use ckpt::error::{Error, Kind, Result};
use ckpt::ops::verify::{Damage, Subset, VerifyOptions, VerifyReport, verify};
use ckpt::ops::verify_against::{AgainstReport, verify_against};
use ckpt::repo::snapshots::Snapshot;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Options of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt verify                             the structure: snapshots, listings, presence of every chunk
  ckpt verify --read-data                 read and check every byte
  ckpt verify --read-data --subset 3/30   the third of thirty parts: all of them, once a month
  ckpt verify --read-data --subset 10m    for ten minutes, what was not read for longest first
  ckpt verify latest --against /data/run7 compare a directory with a snapshot

Damage, or a difference, is exit code 5; each damaged object is listed with files that need it.")]
pub struct Arguments {
    /// The snapshot that --against compares with; `SELECTOR:SUBPATH` compares a part of it
    #[arg(value_name = "SELECTOR", requires = "against")]
    selector: Option<OsString>,

    /// Read the data, too, and check every byte
    #[arg(long)]
    read_data: bool,

    /// Read a part only: a part of all (3/30), a share (5%), a size (200G) or a time (10m is ten minutes)
    #[arg(long, value_name = "PART", requires = "read_data", value_parser = sizes::parse_subset)]
    subset: Option<SubsetArgument>,

    /// Compare this directory with a snapshot
    #[arg(long, value_name = "DIR", conflicts_with = "read_data")]
    against: Option<PathBuf>,

    #[command(flatten)]
    at: AtArgument,

    #[command(flatten)]
    narrow: NarrowArguments,
}

/// Verifies the repository, or a directory against it.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    match &arguments.against {
        Some(directory) => run_against(context, arguments, directory),
        None => run_repository(context, arguments),
    }
}

fn run_repository(context: &Context, arguments: &Arguments) -> Result<Ending> {
    let narrow = selectors::narrow(&arguments.narrow)?;
    if arguments.at.at.is_some() || narrow != ckpt::repo::snapshots::Narrow::default() {
        return Err(Error::new(Kind::Usage, "a choice of snapshots needs --against")
            .with_hint("without --against the whole repository is verified"));
    }
    let repo = context.open()?;
    let read_data = arguments.read_data.then_some(match arguments.subset {
        None => Subset::All,
        Some(SubsetArgument::Part { part, of }) => Subset::Part { part, of },
        Some(SubsetArgument::Percent(percent)) => Subset::Percent(percent),
        Some(SubsetArgument::Bytes(bytes)) => Subset::Bytes(bytes),
        Some(SubsetArgument::Duration(duration)) => Subset::Duration(duration),
    });
    let options = VerifyOptions { read_data, resources: context.resources(), now: context.started() };
    let report = verify(&repo, &options, &context.reporter)?;
    context.reporter.end_phase();
    let output = &context.output;
    if output.manners.json {
        let summary = Summary::Verify(summary(context, &report));
        output.closing(output.document(Body::Summary(summary)))?;
    } else {
        output.closing(report.damage.iter().try_for_each(|damage| show_damage(context, damage)))?;
        if output.manners.is_watched() {
            output.talk("info", &counts(context, &report));
        }
    }
    if report.packs_without_parity > 0 {
        let packs = render::counted(report.packs_without_parity, "pack has", "packs have");
        context.output.warning(&format!("{packs} no parity and cannot be mended; `ckpt repair` makes it"));
    }
    if report.damage_count == 0 {
        return Ok(Ending::Done);
    }
    let what = render::counted(report.damage_count, "object is", "objects are");
    let is_mendable = report.damage.iter().any(|damage| damage.is_mendable);
    let hint = match (is_mendable, report.damage.iter().any(|damage| !damage.files.is_empty())) {
        (true, false) => "everything can still be restored; `ckpt repair` puts right what parity can mend",
        (true, true) => "`ckpt repair` puts right what parity can mend; what is not named above can still be restored",
        _ => "what is not named above can still be restored",
    };
    Ok(Ending::Damage(format!("{what} damaged"), Some(hint)))
}

pub fn show_damage(context: &Context, damage: &Damage) -> Result<()> {
    context.output.line(&format!("damaged {}: {}", render::prose(&damage.object), render::prose(&damage.what)))?;
    for (snapshot, path) in &damage.files {
        let what = match path.as_slice() {
            b"" => "a part of its list of files".to_owned(),
            path => render::path(path),
        };
        context.output.line(&format!("  needed by snapshot {}: {what}", snapshot.short()))?;
    }
    Ok(())
}

fn counts(context: &Context, report: &VerifyReport) -> String {
    let read = if report.packs_read > 0 {
        format!(", {} of {} read ({})", report.packs_read, report.packs_total, ByteCount(report.bytes_read))
    } else {
        String::new()
    };
    let never = if report.packs_never_read > 0 {
        format!("; {} never read so far", render::counted(report.packs_never_read, "pack", "packs"))
    } else {
        report.oldest_read.map_or_else(String::new, |time| format!("; every pack read since {}", context.time(time)))
    };
    let result = if report.damage_count == 0 { "no damage" } else { "damage" };
    format!(
        "{result} found: {}, {}, {} checked{read}{never}; {}",
        render::counted(report.snapshots_checked, "snapshot", "snapshots"),
        render::counted(report.packs_checked, "pack", "packs"),
        render::counted(report.chunks_checked, "chunk", "chunks"),
        render::duration(context.seconds_elapsed()),
    )
}

fn summary(context: &Context, report: &VerifyReport) -> VerifySummary {
    VerifySummary {
        snapshots_checked: report.snapshots_checked,
        packs_checked: report.packs_checked,
        packs_read: report.packs_read,
        bytes_read: report.bytes_read,
        chunks_checked: report.chunks_checked,
        packs_total: report.packs_total,
        packs_unlisted: report.packs_unlisted,
        packs_without_parity: report.packs_without_parity,
        packs_set_aside: report.packs_quarantined,
        packs_never_read: report.packs_never_read,
        oldest_read: report.oldest_read.and_then(time_text),
        damage_count: report.damage_count,
        damage: report.damage.iter().map(damage_item).collect(),
        seconds_elapsed: context.seconds_elapsed(),
    }
}

/// A damaged object for programs.
pub fn damage_item(damage: &Damage) -> DamageItem {
    let file = |(snapshot, path): &(ckpt::ids::SnapshotId, Vec<u8>)| {
        let (path, path_bytes) = path_text(path);
        DamagedFile { snapshot: snapshot.to_hex(), path, path_bytes }
    };
    DamageItem {
        object: damage.object.clone(),
        what: damage.what.clone(),
        files: damage.files.iter().map(file).collect(),
        mendable: damage.is_mendable,
    }
}

fn run_against(context: &Context, arguments: &Arguments, directory: &Path) -> Result<Ending> {
    let shown = render::path(directory.as_os_str().as_bytes());
    if let Err(error) = std::fs::read_dir(directory) {
        let kind = if error.kind() == std::io::ErrorKind::PermissionDenied { Kind::Denied } else { Kind::Usage };
        return Err(Error::io(format!("reading the directory {shown}"), error).with_kind(kind));
    }
    let narrow = selectors::narrow(&arguments.narrow)?;
    let wanted = selectors::wanted(context, arguments.selector.as_deref(), &arguments.at)?;
    let repo = context.open()?;
    let snapshot = wanted.find(&repo.snapshots(), &narrow)?;
    let subpath = wanted.part(&snapshot, &narrow)?;
    let subpath = subpath.as_deref();
    let report = verify_against(&repo, &snapshot, directory, subpath, context.resources(), &context.reporter)?;
    context.reporter.end_phase();
    context.show_problems(&report.damaged);
    let output = &context.output;
    if output.manners.json {
        let summary = Summary::VerifyAgainst(against_summary(context, &snapshot, directory, &report));
        output.closing(output.document(Body::Summary(summary)))?;
    } else {
        output.closing(report.differences.iter().try_for_each(|difference| {
            output.line(&format!("{}: {}", render::path(&difference.path), render::prose(&difference.what)))
        }))?;
        if output.manners.is_watched() {
            let files = render::counted(report.files_checked, "file", "files");
            output.talk("info", &format!("{files} compared ({})", ByteCount(report.bytes_checked)));
        }
    }
    if report.difference_count > 0 {
        let what = render::counted(report.difference_count, "difference", "differences");
        return Ok(Ending::Damage(format!("{shown} differs from snapshot {}: {what}", snapshot.id.short()), None));
    }
    if !report.damaged.is_empty() {
        let what = render::counted(report.damaged.count, "file is", "files are");
        return Ok(Ending::Damage(
            format!("{what} damaged in the repository and could not be compared"),
            Some("`ckpt verify --read-data` lists all damage"),
        ));
    }
    Ok(Ending::Done)
}

fn against_summary(context: &Context, snapshot: &Snapshot, directory: &Path, report: &AgainstReport) -> AgainstSummary {
    let differences = report.differences.iter().map(|difference| {
        let (path, path_bytes) = path_text(&difference.path);
        DifferenceItem { path, path_bytes, what: difference.what.clone() }
    });
    AgainstSummary {
        snapshot: snapshot.id.to_hex(),
        directory: directory.to_string_lossy().into_owned(),
        files_checked: report.files_checked,
        bytes_checked: report.bytes_checked,
        difference_count: report.difference_count,
        differences: differences.collect(),
        damaged: report.damaged.count,
        seconds_elapsed: context.seconds_elapsed(),
    }
}
