//! `ckpt stats`: show how much is stored.

use super::context::Context;
use super::exit::Ending;
use super::json::{Body, CodecItem, StatsDocument};
use super::render::{Side, Table};
use ckpt::bytes::ByteCount;
use ckpt::error::Result;
use ckpt::ops::stats::{StatsReport, stats};

/// Options of `stats`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt stats
  ckpt stats --json | jq .data.repository_bytes")]
pub struct Arguments {}

/// Shows the figures.
pub fn run(context: &Context, _arguments: &Arguments) -> Result<Ending> {
    let repo = context.open()?;
    let report = stats(&repo, &context.reporter)?;
    context.reporter.end_phase();
    if context.output.manners.json {
        context.output.document(Body::Stats(document(&report)))?;
        return Ok(Ending::Done);
    }
    let mut table = Table::new(&[("", Side::Left), ("", Side::Right), ("", Side::Left)]);
    let mut row = |name: &str, value: String, note: String| table.row(vec![name.to_owned(), value, note]);
    let size = |bytes| ByteCount(bytes).to_string();
    row("snapshots", report.snapshots.to_string(), String::new());
    row("content of all snapshots", size(report.logical_bytes), String::new());
    row(
        "distinct content",
        size(report.unique_bytes),
        ratio(report.logical_bytes, report.unique_bytes, "less by sharing"),
    );
    row("stored as", size(report.stored_bytes), ratio(report.unique_bytes, report.stored_bytes, "less by coding"));
    row("packs", size(report.pack_bytes), format!("in {} packs, {} chunks", report.packs, report.chunks));
    row("parity", size(report.parity_bytes), String::new());
    row("whole repository", size(report.repository_bytes), String::new());
    table.lines().iter().skip(1).try_for_each(|line| context.output.line(line))?;
    if !report.by_codec.is_empty() {
        context.output.line("")?;
        codecs(&report).lines().iter().try_for_each(|line| context.output.line(line))?;
    }
    Ok(Ending::Done)
}

fn codecs(report: &StatsReport) -> Table {
    let mut table =
        Table::new(&[("CODEC", Side::Left), ("FRAMES", Side::Right), ("RAW", Side::Right), ("STORED", Side::Right)]);
    for codec in &report.by_codec {
        let size = |bytes| ByteCount(bytes).to_string();
        table.row(vec![codec.codec.clone(), codec.frames.to_string(), size(codec.raw_bytes), size(codec.stored_bytes)]);
    }
    table
}

/// `2.50 times less by sharing`; nothing where there is nothing to divide.
fn ratio(before: u64, after: u64, words: &str) -> String {
    if before == 0 || after == 0 {
        return String::new();
    }
    let hundredths = u128::from(before) * 100 / u128::from(after);
    format!("{}.{:02} times {words}", hundredths / 100, hundredths % 100)
}

fn document(report: &StatsReport) -> StatsDocument {
    let by_codec = report.by_codec.iter().map(|codec| CodecItem {
        codec: codec.codec.clone(),
        frames: codec.frames,
        raw_bytes: codec.raw_bytes,
        stored_bytes: codec.stored_bytes,
    });
    StatsDocument {
        snapshots: report.snapshots,
        logical_bytes: report.logical_bytes,
        unique_bytes: report.unique_bytes,
        stored_bytes: report.stored_bytes,
        pack_bytes: report.pack_bytes,
        parity_bytes: report.parity_bytes,
        repository_bytes: report.repository_bytes,
        packs: report.packs,
        chunks: report.chunks,
        by_codec: by_codec.collect(),
    }
}
