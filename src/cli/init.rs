//! `ckpt init`: create a repository.

use super::context::Context;
use super::exit::Ending;
use super::json::{Body, InitDocument};
use super::render;
use ckpt::bytes::MIB;
use ckpt::error::Result;
use ckpt::ops::init::{InitOptions, init};

/// Options of `init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt init -r /mnt/backup/models
  CKPT_REPO=/mnt/backup/models ckpt init

The folder is created if it does not exist; one that holds anything else is refused.")]
pub struct Arguments {}

/// Creates the repository.
pub fn run(context: &Context, _arguments: &Arguments) -> Result<Ending> {
    let options = InitOptions {
        location: context.location()?,
        cache: context.cache()?,
        chunk_sizes: None,
        pack_bytes: 64 * MIB,
        zstd_level: 3,
    };
    let report = init(&options, &context.reporter)?;
    context.reporter.end_phase();
    let output = &context.output;
    if output.manners.json {
        let document = InitDocument {
            repository: report.id.to_hex(),
            location: report.location,
            exclusive_create: report.exclusive_create,
            notes: report.notes,
        };
        output.closing(output.document(Body::Init(document)))?;
        return Ok(Ending::Done);
    }
    for note in &report.notes {
        output.warning(note);
    }
    if output.manners.is_talkative() {
        output.closing(output.line(&format!(
            "repository {} created at {}",
            report.id,
            render::prose(&report.location)
        )))?;
    }
    Ok(Ending::Done)
}
