//! `ckpt init`: create a repository.

use super::context::Context;
use super::exit::Ending;
use super::json::{Body, InitDocument};
use super::render;
use super::secrets::{self, CostArguments};
use ckpt::codec::stretch::Secret;
use ckpt::error::{Error, Kind, Result};
use ckpt::ops::init::{FirstKey, InitOptions, PACK_BYTES_DEFAULT, init};
use std::path::PathBuf;

/// Options of `init`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt init -r /mnt/backup/models
  CKPT_REPO=/mnt/backup/models ckpt init
  ckpt init -r /mnt/backup/models --encrypt --generate /root/models.key
  ckpt init -r /mnt/backup/models --encrypt --key-command 'pass show backup/models'

The folder is created if it does not exist; one that holds anything else is refused.

With --encrypt everything that is stored is encrypted. The first key is an admin's: keep it where the repository is \
not, since without a key nobody can read anything. `ckpt key add` makes keys that may do less.")]
pub struct Arguments {
    /// Encrypt everything that is stored; the key comes from --key-file, --key-command, --generate or a question
    #[arg(long)]
    encrypt: bool,

    /// Write a random key to this new file, readable by its owner only
    #[arg(long, value_name = "FILE", requires = "encrypt", conflicts_with_all = ["key_file", "key_command"])]
    generate: Option<PathBuf>,

    /// What the first key is called
    #[arg(long, value_name = "TEXT", requires = "encrypt", default_value = "first")]
    label: String,

    #[command(flatten)]
    cost: CostArguments,

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
    let secret = first_secret(context, arguments)?;
    let cost = arguments.cost.cost()?;
    let first = secret.as_ref().map(|secret| FirstKey {
        secret,
        cost: cost.unwrap_or_default(),
        label: arguments.label.clone(),
    });
    let mut report = init(&options, first.as_ref())?;
    let output = &context.output;
    report.notes.iter().for_each(|note| output.warning(note));
    if report.slot.is_some() {
        let where_it_is = arguments.generate.as_ref().map_or_else(String::new, |path| format!(" ({})", path.display()));
        let keep = format!(
            "keep the key{where_it_is} apart from the repository, and a copy of it in a safe place: without it nothing \
             that is stored here can be read, by anybody"
        );
        if output.manners.is_watched() {
            output.talk("info", &keep);
        }
        report.notes.push(keep);
    }
    if output.manners.json {
        let document = InitDocument {
            repository: report.id.to_hex(),
            location: report.location,
            exclusive_create: report.exclusive_create,
            key_slot: report.slot.map(|slot| slot.to_hex()),
            notes: report.notes,
        };
        output.closing(output.document(Body::Init(document)))?;
        return Ok(Ending::Done);
    }
    if output.manners.is_talkative() {
        let encrypted = report.slot.map_or_else(String::new, |slot| format!(", encrypted; key slot {}", slot.short()));
        output.closing(output.line(&format!(
            "repository {} created at {}{encrypted}",
            report.id,
            render::prose(&report.location)
        )))?;
    }
    Ok(Ending::Done)
}

/// The secret of the first key, if there is to be one.
fn first_secret(context: &Context, arguments: &Arguments) -> Result<Option<Secret>> {
    let key = context.key()?;
    if !arguments.encrypt {
        // Whoever names a key expects it to be of use.
        return match key {
            None => Ok(None),
            Some(_) => Err(Error::new(Kind::Usage, "a key is given, but --encrypt is not")
                .with_hint("add --encrypt, or leave the key out (CKPT_KEY_FILE, CKPT_KEY_COMMAND)")),
        };
    }
    match (&arguments.generate, key) {
        (Some(path), _) => secrets::generate(path).map(Some),
        (None, Some(source)) => source.read(&context.output).map(Some),
        (None, None) => secrets::ask_for_new(&context.output).map(Some),
    }
}
