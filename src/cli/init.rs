//! `ckpt init`: create a repository.

use super::context::Context;
use super::exit::Ending;
use super::json::{Body, InitDocument};
use super::render;
use ckpt::error::Result;
use ckpt::ops::init::{InitOptions, PACK_BYTES_DEFAULT, init};

/// Options of `init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt init -r /mnt/backup/models
  CKPT_REPO=/mnt/backup/models ckpt init

The folder is created if it does not exist; one that holds anything else is refused.")]
pub struct Arguments {
    /// What is stored beside each pack to mend it: `default`, about 3 %, or `none`
    #[arg(long, value_name = "PARITY", value_enum, default_value = "default")]
    parity: ParityArgument,
}

/// How much parity packs get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum ParityArgument {
    /// About 3 % of a pack: as much of it may be lost
    Default,
    /// None: what is damaged has to be stored again
    None,
}

/// Creates the repository.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    let options = InitOptions {
        location: context.location()?,
        chunk_sizes: None,
        pack_bytes: PACK_BYTES_DEFAULT,
        parity: arguments.parity == ParityArgument::Default,
        now: context.started(),
    };
    let report = init(&options)?;
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
