//! The command line: what every command shares, and the list of commands.
//!
//! The options of a command stand in that command's file. Environment variables are read here and in
//! [`super::context`] alone.

use super::progress::Mode;
use super::{
    audit, backup, diff, dump, find, forget, generate, info, init, key, ls, prune, repair, restore, sizes, snapshots,
    stats, tag, verify,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

const ABOUT: &str = "Keep model weights, training checkpoints and datasets safe: deduplicated, verified end to end, \
                     restorable to any point in time";

const AFTER_HELP: &str = "\
Examples:
  export CKPT_REPO=/mnt/backup/models
  ckpt init                                         create the repository
  ckpt backup /data/run7                            save a directory
  ckpt snapshots                                    list what is saved
  ckpt restore latest --target /data/run7           restore the newest state
  ckpt restore --at \"yesterday 14:00\" --target old  restore an older state
  ckpt verify --read-data --subset 10m              check backups for ten minutes

Selectors:
  latest, tag:NAME, or the first digits of an id (at least 4); `SELECTOR:SUBPATH` takes a part of a snapshot.

Exit codes:
   0 done                    10 no repository             15 snapshot or path not found
   1 failed                  11 busy                      16 repository format too new
   2 usage                   12 wrong key                 17 permission denied or read-only
   3 saved, but incomplete   13 storage unreachable      130 interrupted (143: by SIGTERM)
   5 damage found            14 no space
   6 damage found and mended";

/// Keep model weights, training checkpoints and datasets safe.
#[derive(Debug, Parser)]
#[command(
    name = "ckpt",
    version,
    about = ABOUT,
    after_help = AFTER_HELP,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct CommandLine {
    /// What every command understands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The repository: a directory
    #[arg(short, long, global = true, env = "CKPT_REPO", hide_env_values = true, value_name = "PATH")]
    pub repo: Option<OsString>,

    /// The folder of this host's index; on a local disk [default: the user's cache folder]
    #[arg(long, global = true, env = "CKPT_CACHE_DIR", hide_env_values = true, value_name = "DIR")]
    pub cache_dir: Option<OsString>,

    /// The key of an encrypted repository is the content of this file [env: CKPT_KEY_FILE]
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "key_command")]
    pub key_file: Option<OsString>,

    /// The key of an encrypted repository is what this command prints [env: CKPT_KEY_COMMAND]
    #[arg(long, global = true, value_name = "COMMAND")]
    pub key_command: Option<OsString>,

    /// Write results as JSON (`ckpt schema` describes it)
    #[arg(long, global = true)]
    pub json: bool,

    /// Show progress: as a bar if stderr is a terminal, as JSON lines on stderr, or not at all
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub progress: ProgressArgument,

    /// How messages on stderr are written
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,

    /// Say more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// The memory to stay under, whatever the size of files or repository
    #[arg(long, global = true, value_name = "SIZE", default_value = "512M", value_parser = sizes::parse_memory)]
    pub memory: u64,

    /// Let everything else on this machine go first: lowest priority for processors and disks
    #[arg(long, global = true)]
    pub background: bool,

    /// Threads that compute [default: one more than there are processors]
    #[arg(long, global = true, value_name = "N", value_parser = sizes::parse_threads)]
    pub threads: Option<usize>,
}

/// When to show progress: a bar if stderr is a terminal, JSON lines on stderr, never.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressArgument {
    // Plain comments here and below: documented values would stretch `--help` over many screens.
    Auto,
    Json,
    None,
}

/// How talk is written: sentences, or a JSON document a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

impl ProgressArgument {
    /// What to show on this stderr.
    pub fn mode(self, stderr_is_terminal: bool) -> Mode {
        match self {
            ProgressArgument::Json => Mode::Json,
            ProgressArgument::Auto if stderr_is_terminal => Mode::Bar,
            ProgressArgument::Auto | ProgressArgument::None => Mode::Silent,
        }
    }
}

/// Options that narrow which snapshots are meant.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which snapshots")]
pub struct NarrowArguments {
    /// Only snapshots of this host
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,

    /// Only snapshots of this source: a name given with `backup --source`
    #[arg(long, value_name = "NAME")]
    pub source: Option<String>,

    /// Only snapshots that hold this path
    #[arg(long, value_name = "PATH")]
    pub path: Option<PathBuf>,

    /// Only snapshots with this tag; given several times, with all of them
    #[arg(long, value_name = "TAG", value_parser = super::selectors::parse_tag)]
    pub tag: Vec<String>,
}

/// The option that stands in a selector's place.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Which snapshots")]
pub struct AtArgument {
    /// The newest snapshot at or before this time: "2026-11-19 14:00" (local), 2026-11-19 (its end), RFC 3339, 2h (ago),
    /// "yesterday 14:00"
    #[arg(long, value_name = "TIME")]
    pub at: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
#[command(disable_help_subcommand = false)]
pub enum Command {
    /// Create a repository
    Init(init::Arguments),
    /// Save files and directories as a snapshot
    Backup(Box<backup::Arguments>),
    /// Write a snapshot, or a part of it, back to disk
    Restore(Box<restore::Arguments>),
    /// Write the content of one file to standard output
    Dump(dump::Arguments),
    /// List snapshots
    Snapshots(snapshots::Arguments),
    /// List the files of a snapshot
    Ls(ls::Arguments),
    /// Show what differs between two snapshots
    Diff(diff::Arguments),
    /// Find files by name in all snapshots
    Find(find::Arguments),
    /// Show how much is stored
    Stats(stats::Arguments),
    /// Show what kind of repository this is
    Info(info::Arguments),
    /// Add or remove tags of snapshots
    Tag(tag::Arguments),
    /// Check that what is stored can be restored
    Verify(verify::Arguments),
    /// Mend what is damaged, and say what cannot be
    Repair(repair::Arguments),
    /// Forget snapshots, by id or by policy
    Forget(Box<forget::Arguments>),
    /// Free the space of what no snapshot needs any more
    Prune(prune::Arguments),
    /// Show who forgot, deleted, repaired or changed keys, and check the log of it
    Audit(audit::Arguments),
    /// Add, list, renew and remove the keys of an encrypted repository
    Key(key::Arguments),
    /// Print the JSON Schema of all JSON documents
    Schema,
    /// Write man pages or shell completions
    Generate(generate::Arguments),
}
