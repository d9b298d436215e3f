//! The program around the library: arguments, settings, the clock, rendering.
//!
//! [`run`] is the whole program short of the process. The library reports and never prints; everything that people or
//! programs see is written here, through [`output::Output`] alone.

mod args;
mod audit;
mod background;
mod backup;
mod cache;
mod context;
mod diff;
mod diff_tensors;
mod dump;
mod exit;
mod find;
mod forget;
mod generate;
mod info;
mod init;
mod json;
mod key;
mod ls;
mod output;
mod progress;
mod prompt;
mod prune;
mod render;
mod repair;
mod restore;
mod restore_tensors;
mod secrets;
mod selector_text;
mod selectors;
mod signals;
mod sizes;
mod snapshots;
mod sources;
mod stats;
mod tag;
mod tensors;
mod times;
mod verify;

use args::{Command, CommandLine, LogFormat, ProgressArgument};
use ckpt::error::Result;
use clap::Parser;
use clap::error::ErrorKind;
use context::Context;
use exit::Ending;
use jiff::Zoned;
use output::{Manners, Output};
use progress::{Mode, Reporter};
use signals::{Manner, Signals};
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Instant;

/// Runs the program with these arguments and returns its exit code.
pub fn run(arguments: &[OsString]) -> u8 {
    let began = Instant::now();
    match CommandLine::try_parse_from(arguments) {
        Ok(command_line) => run_command(command_line, began),
        Err(error) => explain(arguments, &error),
    }
}

fn run_command(command_line: CommandLine, began: Instant) -> u8 {
    let CommandLine { global, command } = command_line;
    // Whoever reads progress as JSON can do nothing with other lines among it.
    let log_json = global.log_format == LogFormat::Json || global.progress == ProgressArgument::Json;
    let output = Arc::new(Output::new(Manners::detect(global.json, log_json, global.verbose)));
    // Whoever sets the variable knows.
    if cfg!(feature = "sabotage") && std::env::var_os("CKPT_SABOTAGE").is_none() {
        output
            .warning("THIS PROGRAM WAS BUILT TO BE BROKEN by tests (feature `sabotage`): never store anything with it");
    }
    // Before any thread is started: they inherit it.
    if global.background {
        background::enter(&output);
    }
    let signals = match Signals::install(manner(&command)) {
        Ok(signals) => signals,
        Err(error) => return exit::conclude(&output, &Signals::default(), Err(error)),
    };
    let mode = match global.progress {
        // A bar beside lines that a program reads would spoil them.
        ProgressArgument::Auto if output.manners.log_json => Mode::Silent,
        progress => progress.mode(output.manners.stderr_is_terminal),
    };
    let reporter = Reporter::new(Arc::clone(&output), mode, signals.clone());
    let context = Context { global, output: Arc::clone(&output), reporter, now: Zoned::now(), began };
    let result = dispatch(&context, &command, &signals);
    // The bar goes before the last word comes.
    drop(context);
    exit::conclude(&output, &signals, result)
}

fn dispatch(context: &Context, command: &Command, signals: &Signals) -> Result<Ending> {
    match command {
        Command::Init(arguments) => init::run(context, arguments),
        Command::Backup(arguments) => backup::run(context, arguments, signals),
        Command::Restore(arguments) => restore::run(context, arguments),
        Command::Dump(arguments) => dump::run(context, arguments),
        Command::Snapshots(arguments) => snapshots::run(context, arguments),
        Command::Ls(arguments) => ls::run(context, arguments),
        Command::Diff(arguments) => diff::run(context, arguments),
        Command::Find(arguments) => find::run(context, arguments),
        Command::Stats(arguments) => stats::run(context, arguments),
        Command::Info(arguments) => info::run(context, arguments),
        Command::Tag(arguments) => tag::run(context, arguments),
        Command::Verify(arguments) => verify::run(context, arguments),
        Command::Repair(arguments) => repair::run(context, arguments),
        Command::Forget(arguments) => forget::run(context, arguments),
        Command::Prune(arguments) => prune::run(context, arguments),
        Command::Key(arguments) => key::run(context, arguments),
        Command::Audit(arguments) => audit::run(context, arguments),
        Command::Schema => generate::run_schema(context),
        Command::Generate(arguments) => generate::run(context, arguments),
    }
}

/// Commands that only look may end anywhere.
fn manner(command: &Command) -> Manner {
    match command {
        Command::Init(_)
        | Command::Backup(_)
        | Command::Restore(_)
        | Command::Tag(_)
        | Command::Verify(_)
        | Command::Repair(_)
        | Command::Forget(_)
        | Command::Prune(_)
        | Command::Key(_) => Manner::Orderly,
        Command::Dump(_)
        | Command::Snapshots(_)
        | Command::Ls(_)
        | Command::Diff(_)
        | Command::Find(_)
        | Command::Stats(_)
        | Command::Info(_)
        | Command::Audit(_)
        | Command::Schema
        | Command::Generate(_) => Manner::AtOnce,
    }
}

/// Shows the help that was asked for, or what is wrong with the arguments.
fn explain(arguments: &[OsString], error: &clap::Error) -> u8 {
    let given = || arguments.iter().skip(1).take_while(|argument| *argument != "--");
    let json = given().any(|argument| argument == "--json");
    let asks_for_json = |flag: &str| {
        given().any(|argument| argument.to_str() == Some(&format!("{flag}=json")))
            || given().zip(given().skip(1)).any(|(name, value)| name == flag && value == "json")
    };
    let log_json = asks_for_json("--log-format") || asks_for_json("--progress");
    let output = Output::new(Manners::detect(json, log_json, 0));
    let text = |terminal: bool| {
        let rendered = error.render();
        if terminal && output.manners.colour { rendered.ansi().to_string() } else { rendered.to_string() }
    };
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        let shown = output.bytes(text(output.manners.stdout_is_terminal).as_bytes());
        return exit::conclude(&output, &Signals::default(), shown.map(|()| Ending::Done));
    }
    let (code, kind) = exit::code_and_name(ckpt::error::Kind::Usage);
    if output.manners.log_json {
        let plain = text(false);
        let message = plain.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let hint = plain.lines().map(str::trim).find_map(|line| line.strip_prefix("tip: "));
        exit::say(&output, code, kind, message, hint.or(Some("`ckpt COMMAND --help` explains every option")));
    } else {
        output.talk_text(text(output.manners.stderr_is_terminal).trim_end());
    }
    code
}
