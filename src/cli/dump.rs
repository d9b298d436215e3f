//! `ckpt dump`: write the content of one file to standard output.

use super::args::{AtArgument, NarrowArguments};
use super::context::Context;
use super::exit::Ending;
use super::output::DataWriter;
use super::selectors;
use ckpt::error::{Error, Kind, Result};
use ckpt::ops::dump::dump;
use ckpt::ops::dump_tensor::{TensorFormat, dump_tensor};
use ckpt::repo::snapshots::SelectorBase;
use clap::ValueEnum;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

/// Options of `dump`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "ckpt dump [OPTIONS] SELECTOR PATH\n       ckpt dump [OPTIONS] SELECTOR:PATH\n       \
                      ckpt dump [OPTIONS] --at TIME PATH",
    after_help = "\
Examples:
  ckpt dump latest config.json
  ckpt dump tag:best:model.safetensors > model.safetensors
  ckpt dump step:12000:trainer_state.json | jq .global_step
  ckpt dump --at \"yesterday 14:00\" logs/train.log | tail
  ckpt dump latest model.safetensors --tensor lm_head.weight > lm_head.raw

PATH is relative to the one directory that was backed up, or absolute. \
Every byte is verified before it is written."
)]
pub struct Arguments {
    /// The snapshot, and the file in it
    #[arg(value_name = "SELECTOR> <PATH", num_args = 1..=2, required = true)]
    what: Vec<OsString>,

    #[command(flatten)]
    at: AtArgument,

    #[command(flatten)]
    narrow: NarrowArguments,

    /// Write the bytes of this tensor alone
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,

    /// How to write the tensor: its bytes alone, or with the header of a numpy array
    #[arg(long, value_name = "FORMAT", default_value = "raw", requires = "tensor")]
    format: FormatArgument,
}

/// How a tensor is written: its bytes alone, or as a numpy array.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FormatArgument {
    Raw,
    Npy,
}

/// Writes the content.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    let (selector, path) = arguments.take_apart()?;
    let narrow = selectors::narrow(&arguments.narrow)?;
    let wanted = selectors::wanted(context, selector, &arguments.at)?;
    if path.is_none() && wanted.subpath.is_none() && !matches!(wanted.base, SelectorBase::Step(_)) {
        return Err(Error::new(Kind::Usage, "no file is named")
            .with_hint("write `ckpt dump SELECTOR PATH` or `ckpt dump SELECTOR:PATH`"));
    }
    let repo = context.open()?;
    let snapshot = wanted.find(&repo.snapshots(), &narrow)?;
    let path = match (path, wanted.part(&snapshot, &narrow)?) {
        (Some(path), None) => path.as_bytes().to_vec(),
        (None, Some(subpath)) => subpath,
        (Some(path), Some(mut subpath)) => {
            subpath.push(b'/');
            subpath.extend_from_slice(path.as_bytes());
            subpath
        }
        (None, None) => Vec::new(),
    };
    let mut writer = DataWriter(&context.output);
    match &arguments.tensor {
        None => dump(&repo, &snapshot, &path, &mut writer, context.resources(), &context.reporter)?,
        Some(name) => {
            let format = match arguments.format {
                FormatArgument::Raw => TensorFormat::Raw,
                FormatArgument::Npy => TensorFormat::Npy,
            };
            let what = (path.as_slice(), name.as_str());
            dump_tensor(&repo, &snapshot, what, format, &mut writer, context.resources(), &context.reporter)?
        }
    };
    context.output.flush()?;
    Ok(Ending::Done)
}

impl Arguments {
    /// The selector and the path: with `--at`, one word alone is the path unless it begins with `:` or is a selector with one.
    fn take_apart(&self) -> Result<(Option<&OsStr>, Option<&OsStr>)> {
        match (self.what.as_slice(), &self.at.at) {
            ([selector, path], _) => Ok((Some(selector), Some(path))),
            ([one], Some(_)) if !one.as_bytes().starts_with(b":") && !one.as_bytes().starts_with(b"latest:") => {
                Ok((None, Some(one)))
            }
            ([one], _) => Ok((Some(one), None)),
            _ => Err(Error::new(Kind::Usage, "a selector and a path are expected")),
        }
    }
}
