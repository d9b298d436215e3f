//! `ckpt info`: show what kind of repository this is.

use super::context::Context;
use super::exit::Ending;
use super::json::{Body, InfoDocument, time_text};
use super::render::{self, Side, Table};
use ckpt::bytes::ByteCount;
use ckpt::error::Result;
use ckpt::ops::info::info;
use ckpt::repo::checkpoints::steps_in_words;
use std::os::unix::ffi::OsStrExt;

/// Options of `info`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt info
  ckpt info --json | jq -r .data.repository")]
pub struct Arguments {}

/// Shows the parameters.
pub fn run(context: &Context, _arguments: &Arguments) -> Result<Ending> {
    let repo = context.open()?;
    let report = info(&repo)?;
    if context.output.manners.json {
        let document = InfoDocument {
            repository: report.id.to_hex(),
            location: report.location,
            format_version: report.format_version,
            created: time_text(report.created),
            chunk_bytes_min: report.chunk_min,
            chunk_bytes_average: report.chunk_average,
            chunk_bytes_max: report.chunk_max,
            pack_bytes: report.pack_bytes,
            encrypted: report.encrypted,
            role: report.role.map(|role| role.name().to_owned()),
            key_slot: report.slot.map(|slot| slot.to_hex()),
            key_slots: report.slots,
            parity: report.parity,
            exclusive_create: report.exclusive_create,
            cache_path: report.cache_path.to_string_lossy().into_owned(),
            snapshots: report.snapshots,
            packs: report.packs,
            last_verified: report.last_verified.and_then(time_text),
            packs_never_read: report.packs_never_read,
            checkpoints: report.checkpoints,
            steps: report.steps.iter().copied().collect(),
        };
        context.output.document(Body::Info(document))?;
        return Ok(Ending::Done);
    }
    let yes_or_no = |yes| if yes { "yes" } else { "no" }.to_owned();
    let size = |bytes| ByteCount(bytes).to_string();
    let chunks = [report.chunk_min, report.chunk_average, report.chunk_max].map(size);
    let verified = report.last_verified.map_or_else(|| "never".to_owned(), |time| context.time(time));
    let mut table = Table::new(&[("", Side::Left), ("", Side::Left)]);
    let mut row = |name: &str, value: String| table.row(vec![name.to_owned(), value]);
    row("repository", report.id.to_hex());
    row("location", render::path(report.location.as_bytes()));
    row("format", report.format_version.to_string());
    row("created", context.time(report.created));
    row("snapshots", report.snapshots.to_string());
    let steps = steps_in_words(&report.steps);
    let of = if steps.is_empty() { "" } else { ", " };
    row("checkpoints", format!("{}{of}{steps}", report.checkpoints));
    row("chunks", format!("{} to {}, usually {}", chunks[0], chunks[2], chunks[1]));
    row("packs", size(report.pack_bytes));
    row("encrypted", yes_or_no(report.encrypted));
    if let (Some(role), Some(slot)) = (report.role, report.slot) {
        row("key in use", format!("{} (slot {} of {})", role.name(), slot.short(), report.slots));
    }
    row("parity", yes_or_no(report.parity));
    row("exclusive names", yes_or_no(report.exclusive_create));
    row("index here", render::path(report.cache_path.as_os_str().as_bytes()));
    row("data last verified", verified);
    row("packs never verified", format!("{} of {}", report.packs_never_read, report.packs));
    table.lines().iter().skip(1).try_for_each(|line| context.output.line(line))?;
    Ok(Ending::Done)
}
