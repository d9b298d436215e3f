//! `ckpt backup`: save files and directories, or a stream, as a snapshot.

use super::context::Context;
use super::exit::Ending;
use super::json::{BackupSummary, Body, CheckpointItem, Summary};
use super::signals::Signals;
use super::sources::{self, CommandStream, PatientReader, Rules};
use super::{render, selectors, sizes, times};
use ckpt::bytes::ByteCount;
use ckpt::codec::Compression;
use ckpt::error::{Error, Kind, Result};
use ckpt::ops::backup::{BackupOptions, BackupReport, Input, Unfinished, backup};
use ckpt::repo::Repo;
use ckpt::repo::checkpoints::steps_in_words;
use ckpt::source::excludes::Excludes;
use clap::ValueEnum;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Options of `backup`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt backup /data/run7 --tag nightly
  ckpt backup /data --exclude '*.tmp' --exclude '/data/cache/' --one-file-system
  ckpt backup /data/run7 --meta loss=0.113 --skip-if-unchanged
  tar c /data | ckpt backup --stdin data.tar
  ckpt backup --stdin db.sql --stdin-from-command -- pg_dump models

A file whose size, times and inode are those of the previous snapshot is not read again. \
Nothing becomes visible in the repository before it is complete; a run that was killed is \
continued by simply running the command again.

A checkpoint is saved when it is finished: all its shards are there and whole, and nothing in its directory was \
modified within --settle. An unfinished one is left out with the reason.

Exit code 3 means: a snapshot was saved, but some files could not be read or changed \
while they were read, or an unfinished checkpoint was left out.")]
pub struct Arguments {
    /// Files and directories to save; behind `--stdin-from-command --`, a command and its arguments
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,

    /// Leave out what matches; the syntax of .gitignore, relative to each PATH
    #[arg(long, short, value_name = "PATTERN", help_heading = "What to save")]
    exclude: Vec<String>,

    /// Leave out what matches a pattern in this file
    #[arg(long, value_name = "FILE", help_heading = "What to save")]
    exclude_from: Vec<PathBuf>,

    /// Do not cross into other file systems
    #[arg(long, short = 'x', help_heading = "What to save")]
    one_file_system: bool,

    /// A checkpoint counts as finished only if nothing in its directory was modified for this long: 60s, 5m, 0
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "60s",
        value_parser = times::parse_settle,
        help_heading = "What to save"
    )]
    settle: Duration,

    /// What to do with unfinished checkpoints: leave them out, or store and mark them
    #[arg(long, value_name = "WHAT", default_value = "skip", help_heading = "What to save")]
    unfinished: UnfinishedArgument,

    /// Save standard input as a file of this name
    #[arg(long, value_name = "NAME", help_heading = "What to save")]
    stdin: Option<String>,

    /// Save the output of a command, given behind `--`; if it fails, no snapshot is made. The file has the name given with
    /// --stdin, else that of the command
    #[arg(long, help_heading = "What to save")]
    stdin_from_command: bool,

    /// A tag for the snapshot; may be given several times
    #[arg(long, value_name = "TAG", value_delimiter = ',', value_parser = selectors::parse_tag, help_heading = "The snapshot")]
    tag: Vec<String>,

    /// A note on the snapshot; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = selectors::parse_meta, help_heading = "The snapshot")]
    meta: Vec<(String, String)>,

    /// The host in the snapshot [default: this host's name]
    #[arg(long, value_name = "NAME", env = "CKPT_HOST", hide_env_values = true, help_heading = "The snapshot")]
    host: Option<String>,

    /// A name for what is saved, which stays the same when host or paths change
    #[arg(long, value_name = "NAME", help_heading = "The snapshot")]
    source: Option<String>,

    /// Make no snapshot if nothing changed since the previous one
    #[arg(long, help_heading = "The snapshot")]
    skip_if_unchanged: bool,

    /// Read all files again, even those that seem unchanged
    #[arg(long, help_heading = "How to save")]
    force: bool,

    /// Say what would be saved, and store nothing
    #[arg(long, short = 'n', help_heading = "How to save")]
    dry_run: bool,

    /// How new content is compressed: auto, off, or a zstd level from 1 to 19
    #[arg(
        long,
        value_name = "HOW",
        default_value = "auto",
        value_parser = sizes::parse_compression,
        help_heading = "How to save"
    )]
    compression: Compression,

    /// Where files are cut: `auto`, at the tensors of files that have some and by content elsewhere; `cdc`, always by content
    #[arg(long, value_name = "HOW", default_value = "auto", value_parser = ["auto", "cdc"], help_heading = "How to save")]
    chunker: String,

    /// What has changed is coded against earlier versions, at most this many steps from one that stands alone; 0 for never.
    /// Numbers are one step from theirs whatever is given, two if they are another precision of others
    #[arg(long, value_name = "STEPS", default_value_t = 4, value_parser = clap::value_parser!(u8).range(0..=8), help_heading = "How to save")]
    delta_depth: u8,

    /// Read at most this much a second
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse_rate, help_heading = "How to save")]
    limit_read: Option<u64>,
}

/// What to do with unfinished checkpoints: leave them out, or store and mark them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum UnfinishedArgument {
    Skip,
    Keep,
}

/// Saves a snapshot.
pub fn run(context: &Context, arguments: &Arguments, signals: &Signals) -> Result<Ending> {
    arguments.check()?;
    let now = || times::file_time(jiff::Timestamp::now());
    let options = BackupOptions {
        host: host_name(arguments.host.as_deref())?,
        source: arguments.source.clone(),
        tags: arguments.tag.clone(),
        meta: arguments.meta.iter().cloned().collect(),
        excludes: arguments.exclude.clone(),
        exclude_from: arguments.exclude_from.clone(),
        one_file_system: arguments.one_file_system,
        dry_run: arguments.dry_run,
        skip_if_unchanged: arguments.skip_if_unchanged,
        reread: arguments.force,
        compression: arguments.compression,
        cuts_by_content: arguments.chunker == "cdc",
        delta_depth: arguments.delta_depth,
        limit_read: arguments.limit_read,
        settle: arguments.settle,
        unfinished: match arguments.unfinished {
            UnfinishedArgument::Skip => Unfinished::Skip,
            UnfinishedArgument::Keep => Unfinished::Keep,
        },
        started: context.started(),
        now: &now,
        resources: context.resources(),
    };
    let report = if arguments.is_stream() {
        let repo = context.open()?;
        save_stream(context, arguments, signals, &repo, &options)?
    } else {
        let given: Vec<PathBuf> = arguments.paths.iter().map(PathBuf::from).collect();
        let excludes = Excludes::new(&arguments.exclude, &arguments.exclude_from)?;
        let rules = Rules { excludes, one_file_system: arguments.one_file_system };
        // Before the repository is opened: a mistake in the paths is told at once.
        let paths = sources::paths(&given, &rules)?;
        backup(&context.open()?, Input::Paths(paths), &options, &context.reporter)?
    };
    context.reporter.end_phase();
    conclude(context, arguments, &report)
}

impl Arguments {
    fn is_stream(&self) -> bool {
        self.stdin.is_some() || self.stdin_from_command
    }

    fn check(&self) -> Result<()> {
        let usage = |text: &str, hint: &str| Err(Error::new(Kind::Usage, text).with_hint(hint));
        if self.stdin_from_command {
            if self.paths.is_empty() {
                let hint = "write it behind two dashes: `ckpt backup --stdin-from-command -- CMD ARG...`";
                return usage("no command follows --stdin-from-command", hint);
            }
        } else if self.stdin.is_some() {
            if !self.paths.is_empty() {
                return usage("--stdin and paths exclude each other", "save them in two runs");
            }
        } else if self.paths.is_empty() {
            return usage("nothing to save is named", "name files or directories: `ckpt backup PATH...`");
        }
        if self.stdin.as_ref().is_some_and(|name| name.is_empty() || name.contains('/') || name == "." || name == "..")
        {
            return usage("--stdin takes the name of a file, without folders", "for example `--stdin model.tar`");
        }
        if self.source.as_ref().is_some_and(String::is_empty) {
            return usage("--source is empty", "leave it out, or give it a name");
        }
        Ok(())
    }

    fn stream_name(&self) -> String {
        let of_command = || {
            let command = self.paths.first().map(Path::new).and_then(Path::file_name);
            command.map_or_else(|| "stdin".to_owned(), |name| name.to_string_lossy().into_owned())
        };
        self.stdin.clone().unwrap_or_else(of_command)
    }
}

/// The name of the host: as given, else what the system says.
pub fn host_name(given: Option<&str>) -> Result<String> {
    if let Some(host) = given.filter(|host| !host.is_empty()) {
        return Ok(host.to_owned());
    }
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() {
        return Err(Error::new(Kind::Usage, "this host has no name").with_hint("give one with --host or CKPT_HOST"));
    }
    Ok(name)
}

fn save_stream(
    context: &Context,
    arguments: &Arguments,
    signals: &Signals,
    repo: &Repo,
    options: &BackupOptions<'_>,
) -> Result<BackupReport> {
    let name = arguments.stream_name();
    let input = if arguments.stdin_from_command {
        let (stream, reader) = CommandStream::start(&arguments.paths, signals)?;
        Input::Stream { name, reader: Box::new(reader), finish: Box::new(move || stream.finish()) }
    } else {
        let reader = PatientReader::new(io::stdin(), signals.clone())?;
        Input::Stream { name, reader: Box::new(reader), finish: Box::new(|| Ok(())) }
    };
    backup(repo, input, options, &context.reporter).map_err(|error| {
        // The reader can only answer with an error of the operating system.
        if signals.is_interrupted() { Signals::interrupted() } else { error }
    })
}

fn conclude(context: &Context, arguments: &Arguments, report: &BackupReport) -> Result<Ending> {
    context.show_problems(&report.problems);
    let output = &context.output;
    if output.manners.json {
        let summary = Summary::Backup(summary(context, arguments, report));
        output.closing(output.document(Body::Summary(summary)))?;
    } else {
        let first_line = match report.snapshot {
            Some(id) => format!("snapshot {id} saved"),
            None if arguments.dry_run => "nothing was stored: this was a dry run".to_owned(),
            None => "nothing changed: no snapshot was made".to_owned(),
        };
        if output.manners.is_talkative() || arguments.dry_run {
            output.closing(output.line(&first_line))?;
        }
        if arguments.dry_run {
            output.closing(output.line(&counts(context, report)))?;
        } else if output.manners.is_watched() {
            output.talk("info", &counts(context, report));
        }
    }
    if report.problems.is_empty() {
        return Ok(Ending::Done);
    }
    let problems = report.problems.count;
    let mut whats = Vec::new();
    if report.checkpoints_left_out > 0 {
        let what = render::counted(report.checkpoints_left_out, "unfinished checkpoint", "unfinished checkpoints");
        whats.push(format!("{what} left out"));
    }
    if problems > report.checkpoints_left_out {
        let what = render::counted(problems - report.checkpoints_left_out, "file", "files");
        whats
            .push(format!("{what} could not be {} as asked", if report.snapshot.is_some() { "saved" } else { "read" }));
    }
    let what = whats.join(", ");
    Ok(Ending::Incomplete(match report.snapshot {
        Some(id) => format!("snapshot {} was saved, but is incomplete: {what}", id.short()),
        None => what,
    }))
}

fn counts(context: &Context, report: &BackupReport) -> String {
    let read = report.files_new + report.files_changed + report.files_unchanged;
    let finished = report.checkpoints.iter().filter(|(_, record)| record.unfinished.is_none());
    let steps = steps_in_words(&finished.filter_map(|(_, record)| record.step).collect());
    format!(
        "{} ({} new, {} changed), {}: {} read, {} new, stored as {}; {}{}{}",
        render::counted(read, "file", "files"),
        report.files_new,
        report.files_changed,
        ByteCount(report.bytes_logical),
        ByteCount(report.bytes_read),
        ByteCount(report.bytes_new),
        ByteCount(report.bytes_stored),
        steps,
        if steps.is_empty() { "" } else { "; " },
        render::duration(context.seconds_elapsed()),
    )
}

fn summary(context: &Context, arguments: &Arguments, report: &BackupReport) -> BackupSummary {
    BackupSummary {
        snapshot: report.snapshot.map(|id| id.to_hex()),
        parent: report.parent.map(|id| id.to_hex()),
        dry_run: arguments.dry_run,
        files_new: report.files_new,
        files_changed: report.files_changed,
        files_unchanged: report.files_unchanged,
        directories: report.directories,
        others: report.others,
        sockets_skipped: report.sockets_skipped,
        entries_excluded: report.entries_excluded,
        bytes_logical: report.bytes_logical,
        bytes_read: report.bytes_read,
        bytes_new: report.bytes_new,
        bytes_stored: report.bytes_stored,
        chunks_new: report.chunks_new,
        problems: report.problems.count,
        checkpoints: report.checkpoints.iter().map(|(path, record)| CheckpointItem::at(path, record)).collect(),
        checkpoints_left_out: report.checkpoints_left_out,
        retried_after_revocation: report.retried_after_revocation,
        seconds_elapsed: context.seconds_elapsed(),
    }
}
