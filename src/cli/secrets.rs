//! Where keys come from: a file, a command, a terminal. Never an argument, which every user of the machine can read.
//!
//! A flag comes before the environment. Nobody is asked unless standard input and standard error are terminals, so a
//! cron job fails at once instead of waiting.

use super::output::Output;
use super::prompt;
use super::{render, sizes};
use ckpt::codec::stretch::{Cost, SECRET_BYTES_MAX, Secret};
use ckpt::error::{Error, Kind, Result};
use ckpt::repo::unlock::SecretSource;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use zeroize::Zeroizing;

/// How often somebody is asked for the key of a repository.
const ATTEMPTS_MAX: u32 = 3;

/// What is read at most: a line end may stand behind the longest secret.
const READ_BYTES_MAX: usize = SECRET_BYTES_MAX + 2;

/// Bytes of randomness in a key file that is made here.
const GENERATED_BYTES: usize = 32;

/// One way to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeySource {
    /// The content of a file.
    File(PathBuf),
    /// What a command prints.
    Command(OsString),
}

/// Options for a key that is to be added.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "The new key")]
pub struct NewKeyArguments {
    /// The new key is the content of this file
    #[arg(long, value_name = "FILE", conflicts_with_all = ["new_key_command", "generate"])]
    new_key_file: Option<PathBuf>,

    /// The new key is what this command prints
    #[arg(long, value_name = "COMMAND", conflicts_with = "generate")]
    new_key_command: Option<OsString>,

    /// Write a random key to this new file, readable by its owner only
    #[arg(long, value_name = "FILE")]
    generate: Option<PathBuf>,
}

/// Options for what stretching a secret costs.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
#[command(next_help_heading = "The new key")]
pub struct CostArguments {
    /// Memory that Argon2id uses on the key, 8M to 1G: less on hosts that have little [default: 64M, or as the key in use]
    #[arg(long, value_name = "SIZE", value_parser = sizes::parse_bytes)]
    kdf_memory: Option<u64>,

    /// Passes of Argon2id over that memory, 1 to 16 [default: 3, or as the key in use]
    #[arg(long, value_name = "N")]
    kdf_passes: Option<u32>,
}

impl CostArguments {
    /// The cost where something was chosen.
    pub fn cost(&self) -> Result<Option<Cost>> {
        if self.kdf_memory.is_none() && self.kdf_passes.is_none() {
            return Ok(None);
        }
        let usual = Cost::default();
        let memory_kib =
            self.kdf_memory.map_or(usual.memory_kib, |bytes| u32::try_from(bytes >> 10).unwrap_or(u32::MAX));
        let cost = Cost { memory_kib, passes: self.kdf_passes.unwrap_or(usual.passes), ..usual };
        cost.check().map_err(|e| e.with_kind(Kind::Usage).with_hint("see --kdf-memory and --kdf-passes"))?;
        Ok(Some(cost))
    }
}

/// The secrets of a run.
pub struct Secrets<'a> {
    /// The key that was named, if any.
    pub given: Option<KeySource>,
    /// Where to warn.
    pub output: &'a Output,
}

impl KeySource {
    /// The key named by flags, else by the environment.
    pub fn choose(
        flags: (Option<&OsStr>, Option<&OsStr>),
        environment: (Option<OsString>, Option<OsString>),
    ) -> Result<Option<KeySource>> {
        let is_set = |text: &OsString| !text.is_empty();
        let file = |text: &OsStr| Some(KeySource::File(PathBuf::from(text)));
        let command = |text: &OsStr| Some(KeySource::Command(text.to_owned()));
        match flags {
            (Some(path), _) => return Ok(file(path)),
            (_, Some(text)) => return Ok(command(text)),
            (None, None) => {}
        }
        match (environment.0.filter(is_set), environment.1.filter(is_set)) {
            (Some(_), Some(_)) => Err(Error::new(Kind::Usage, "both CKPT_KEY_FILE and CKPT_KEY_COMMAND are set")
                .with_hint("unset one of them, or say which with --key-file or --key-command")),
            (Some(path), None) => Ok(file(&path)),
            (None, Some(text)) => Ok(command(&text)),
            (None, None) => Ok(None),
        }
    }

    /// Fetches the key.
    pub fn read(&self, output: &Output) -> Result<Secret> {
        match self {
            KeySource::File(path) => read_file(path, output),
            KeySource::Command(command) => run_command(command),
        }
    }
}

impl NewKeyArguments {
    /// The new key: from where the options say, else typed twice.
    pub fn read(&self, output: &Output) -> Result<Secret> {
        match (&self.new_key_file, &self.new_key_command, &self.generate) {
            (Some(path), _, _) => KeySource::File(path.clone()).read(output),
            (_, Some(command), _) => KeySource::Command(command.clone()).read(output),
            (_, _, Some(path)) => generate(path),
            (None, None, None) => ask_for_new(output),
        }
    }
}

impl SecretSource for Secrets<'_> {
    fn is_given(&self) -> bool {
        self.given.is_some()
    }

    fn secret(&self, attempt: u32, slots: usize) -> Result<Option<Secret>> {
        if let Some(source) = &self.given {
            let secret = if attempt == 1 { Some(source.read(self.output)?) } else { None };
            return Ok(secret);
        }
        if !can_ask() || attempt > ATTEMPTS_MAX {
            return Ok(None);
        }
        if attempt > 1 {
            self.output.talk("info", "that key opens nothing here");
        }
        let question = match slots {
            1 => "key of the repository: ".to_owned(),
            slots => format!("key of the repository ({slots} slots): "),
        };
        prompt::ask(&question)?.map(Secret::new).transpose().map_err(|e| e.with_kind(Kind::WrongKey))
    }
}

fn can_ask() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// A key that is typed twice.
pub fn ask_for_new(output: &Output) -> Result<Secret> {
    if !can_ask() {
        return Err(Error::new(Kind::WrongKey, "no new key is given, and nobody can be asked for one").with_hint(
            "name a key file or a command that prints the key, have one made with --generate, or run this in a terminal",
        ));
    }
    output.talk("info", "choose a key: whoever has it can read what it allows, and without it nobody can");
    let ask = |question: &str| -> Result<Secret> {
        let typed = prompt::ask(question)?;
        Secret::new(typed.ok_or_else(|| Error::new(Kind::Usage, "no key was typed"))?)
    };
    let first = ask("new key: ")?;
    if !first.is_same(&ask("the same again: ")?) {
        return Err(Error::new(Kind::Usage, "the two keys are not the same").with_hint("run the command again"));
    }
    Ok(first)
}

fn read_file(path: &Path, output: &Output) -> Result<Secret> {
    let shown = render::path(path.as_os_str().as_bytes());
    let failure = |error| Error::io(format!("reading the key file {shown}"), error).with_kind(Kind::WrongKey);
    let file = File::open(path).map_err(failure)?;
    let metadata = file.metadata().map_err(failure)?;
    if metadata.is_file() && metadata.mode() & 0o044 != 0 {
        let text = format!("the key file {shown} can be read by others; `chmod 600` closes it");
        output.warning(&text);
    }
    let bytes = read_bounded(file).map_err(failure)?;
    Secret::new(bytes).map_err(|e| e.while_doing(format!("the key file {shown}")).with_kind(Kind::WrongKey))
}

fn run_command(command: &OsStr) -> Result<Secret> {
    let failure = |error| Error::io("running the key command", error).with_kind(Kind::WrongKey);
    // Its standard input is not ours, which may be content to be saved.
    let mut child = Command::new("sh")
        .arg("-c")
        .arg(command)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failure)?;
    let bytes = child.stdout.take().map_or_else(|| Ok(Zeroizing::default()), read_bounded);
    if bytes.as_ref().is_ok_and(|bytes| bytes.len() > READ_BYTES_MAX) {
        // It may go on for ever.
        let _ = child.kill();
    }
    let status = child.wait().map_err(failure)?;
    let bytes = bytes.map_err(failure)?;
    if bytes.len() <= READ_BYTES_MAX && !status.success() {
        return Err(Error::new(Kind::WrongKey, format!("the key command failed with {status}"))
            .with_hint("run it by itself to see why; it must print the key and end with 0"));
    }
    Secret::new(bytes).map_err(|e| e.while_doing("the key command").with_kind(Kind::WrongKey))
}

/// What `reader` gives, at most one byte more than a secret may have.
fn read_bounded(mut reader: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    // Grown by hand: a vector that grows by itself leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    let mut part = Zeroizing::new([0u8; 4096]);
    while bytes.len() <= READ_BYTES_MAX {
        let read = match reader.read(&mut *part) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if bytes.len() + read > bytes.capacity() {
            let mut larger = Zeroizing::new(Vec::with_capacity(bytes.capacity() * 2));
            larger.extend_from_slice(&bytes);
            bytes = larger;
        }
        bytes.extend_from_slice(&part[..read]);
    }
    Ok(bytes)
}

/// Writes a random key to a file that does not exist yet.
pub fn generate(path: &Path) -> Result<Secret> {
    let failure = |error: io::Error| {
        let shown = render::path(path.as_os_str().as_bytes());
        let hint = match error.kind() {
            io::ErrorKind::AlreadyExists => "a key is never written over another file: name a new one",
            _ => "name a file in a folder that you can write to",
        };
        Error::io(format!("writing the key file {shown}"), error).with_hint(hint)
    };
    let mut random = Zeroizing::new([0u8; GENERATED_BYTES]);
    getrandom::fill(&mut *random).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
    // Digits, so that it can be printed, and typed in again from paper.
    let mut text = Zeroizing::new(Vec::with_capacity(2 * GENERATED_BYTES + 1));
    for byte in random.iter() {
        write!(text, "{byte:02x}").map_err(failure)?;
    }
    text.push(b'\n');
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failure)?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failure)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A repository must not outlive a power cut that its only key does not.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failure)?;
    Secret::new(text)
}
