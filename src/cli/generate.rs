//! `ckpt generate` and `ckpt schema`: what is derived from the program itself.

use super::args::CommandLine;
use super::context::Context;
use super::exit::Ending;
use super::{json, render};
use ckpt::error::{Error, Kind, Result};
use clap::CommandFactory;
use clap_complete::Shell;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Options of `generate`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    what: What,
}

/// What to write.
#[derive(Debug, clap::Subcommand)]
enum What {
    /// Write man pages, one for each command
    #[command(after_help = "\
Examples:
  ckpt generate man /usr/local/share/man/man1
  ckpt generate man - | man -l -")]
    Man {
        /// The directory to write them into; `-` writes the main page to standard output
        #[arg(value_name = "DIR|-")]
        directory: PathBuf,
    },
    /// Write a completion script to standard output
    #[command(after_help = "\
Examples:
  ckpt generate completions bash > /etc/bash_completion.d/ckpt
  ckpt generate completions zsh > \"${fpath[1]}/_ckpt\"
  ckpt generate completions fish > ~/.config/fish/completions/ckpt.fish")]
    Completions {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: Shell,
    },
}

/// Writes what was asked for.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    let mut text = Vec::new();
    match &arguments.what {
        What::Man { directory } if directory.as_os_str() == "-" => {
            let page = clap_mangen::Man::new(CommandLine::command());
            page.render(&mut text).map_err(|e| Error::io("writing a man page", e))?;
        }
        What::Man { directory } => return write_pages(directory).map(|()| Ending::Done),
        What::Completions { shell } => {
            clap_complete::generate(*shell, &mut CommandLine::command(), "ckpt", &mut text);
        }
    }
    context.output.bytes(&text)?;
    Ok(Ending::Done)
}

/// Prints the JSON Schema.
pub fn run_schema(context: &Context) -> Result<Ending> {
    let schema = json::schema();
    let text = serde_json::to_string_pretty(&schema)
        .map_err(|e| Error::new(Kind::Failed, "writing the JSON Schema").with_source(e))?;
    context.output.line(&text)?;
    Ok(Ending::Done)
}

fn write_pages(directory: &Path) -> Result<()> {
    let shown = render::path(directory.as_os_str().as_bytes());
    let failed = |e: io::Error| {
        let error = Error::io(format!("writing man pages into {shown}"), e);
        // A folder that is not there is a mistake in the argument, not damage of a repository.
        if error.kind() == Kind::Missing { error.with_kind(Kind::Usage) } else { error }
    };
    fs::create_dir_all(directory).map_err(failed)?;
    clap_mangen::generate_to(CommandLine::command(), directory).map_err(failed)
}
