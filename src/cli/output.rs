//! The only way to stdout and stderr.
//!
//! stdout carries data, stderr talk. A reader of stdout that goes away is not an error: [`Output::is_of_closing`] tells,
//! and the run ends quietly. Nobody reading stderr is ignored. Talk is text, or one JSON document a line with
//! `--log-format json` or `--json`.

use super::json::{Body, Envelope, Log, ProblemDocument};
use super::render;
use ckpt::error::{Error, Result};
use serde::Serialize;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How this run speaks.
#[derive(Debug, Clone, Default)]
pub struct Manners {
    /// `--json`.
    pub json: bool,
    /// `--log-format json`.
    pub log_json: bool,
    /// How often `-v` was given.
    pub verbose: u8,
    /// stdout is a terminal.
    pub stdout_is_terminal: bool,
    /// stderr is a terminal.
    pub stderr_is_terminal: bool,
    /// Colours are wanted: neither NO_COLOR nor a dumb terminal says otherwise.
    pub colour: bool,
}

/// Both streams of the process.
pub struct Output {
    /// How to speak.
    pub manners: Manners,
    /// What every JSON document carries.
    pub envelope: Envelope,
    stdout: Mutex<BufWriter<Box<dyn Write + Send>>>,
    closed: AtomicBool,
}

impl Manners {
    /// Asks the streams and the environment.
    pub fn detect(json: bool, log_json: bool, verbose: u8) -> Manners {
        let is_set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Manners {
            json,
            log_json: log_json || json,
            verbose,
            stdout_is_terminal: io::stdout().is_terminal(),
            stderr_is_terminal: io::stderr().is_terminal(),
            colour: !dumb && !is_set("NO_COLOR"),
        }
    }

    /// True if a command that worked says so on stdout: a person reads it, or asked.
    pub fn is_talkative(&self) -> bool {
        !self.json && (self.stdout_is_terminal || self.verbose > 0)
    }

    /// True if a command that worked says so on stderr.
    pub fn is_watched(&self) -> bool {
        !self.json && (self.stderr_is_terminal || self.verbose > 0)
    }
}

impl Output {
    /// The streams of this process.
    pub fn new(manners: Manners) -> Output {
        // Not `io::stdout()`: that buffers lines, and `ls` of a million files would write a million times.
        let stdout: Box<dyn Write + Send> = match rustix::stdio::stdout().try_clone_to_owned() {
            Ok(descriptor) => Box::new(File::from(descriptor)),
            Err(_) => Box::new(io::stdout()),
        };
        Output {
            manners,
            envelope: Envelope::new(),
            stdout: Mutex::new(BufWriter::with_capacity(64 << 10, stdout)),
            closed: AtomicBool::new(false),
        }
    }

    /// A line of data.
    pub fn line(&self, text: &str) -> Result<()> {
        let mut stdout = self.stdout();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.write_all(b"\n"));
        self.checked(written)
    }

    /// Bytes of data as they are.
    pub fn bytes(&self, bytes: &[u8]) -> Result<()> {
        let written = self.stdout().write_all(bytes);
        self.checked(written)
    }

    /// A whole JSON document as a line of data, at once.
    pub fn document(&self, body: Body) -> Result<()> {
        self.line(&json_text(&self.envelope.document(body)))?;
        self.flush()
    }

    /// Sends what is buffered.
    pub fn flush(&self) -> Result<()> {
        let flushed = self.stdout().flush();
        self.checked(flushed)
    }

    /// True if `error` says no more than that the reader of stdout went away.
    pub fn is_of_closing(&self, error: &Error) -> bool {
        self.closed.load(Ordering::Relaxed) && error.os_code() == Some(rustix::io::Errno::PIPE.raw_os_error())
    }

    /// A result of a command whose work is done: its reader may be gone.
    pub fn closing(&self, result: Result<()>) -> Result<()> {
        match result {
            Err(error) if self.is_of_closing(&error) => Ok(()),
            other => other,
        }
    }

    /// Something the user should know.
    pub fn warning(&self, text: &str) {
        self.talk("warning", text);
    }

    /// Detail, shown with `-v`.
    pub fn detail(&self, text: &str) {
        if self.manners.verbose > 0 {
            self.talk("detail", text);
        }
    }

    /// A line about the run.
    pub fn talk(&self, level: &'static str, text: &str) {
        if self.manners.log_json {
            self.talk_document(Body::Log(Log { level: level.to_owned(), text: text.to_owned() }));
        } else if level == "warning" {
            self.talk_text(&format!("{}: {}", self.coloured("33", "warning"), render::prose(text)));
        } else {
            self.talk_text(&render::prose(text));
        }
    }

    /// A file that could not be handled: data in `--json`, else talk.
    pub fn problem(&self, path: &[u8], error: &Error) {
        let document = || Body::Problem(ProblemDocument::new(path, error));
        if self.manners.json {
            // If nobody reads any more, the run goes on all the same.
            let _ = self.document(document());
        } else if self.manners.log_json {
            self.talk_document(document());
        } else {
            let (path, error) = (render::path(path), render::prose(&error.to_string()));
            let text = if error.contains(&path) { error } else { format!("{path}: {error}") };
            self.talk_text(&format!("{}: {text}", self.coloured("33", "problem")));
        }
    }

    /// A JSON document as a line of talk.
    pub fn talk_document(&self, body: Body) {
        self.talk_text(&json_text(&self.envelope.document(body)));
    }

    /// A line of talk that is already fit to be shown.
    pub fn talk_text(&self, line: &str) {
        // One write, so that lines of several processes on one terminal or in one log do not mix.
        let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
    }

    /// `text` in a colour of the terminal, where colours are wanted.
    pub fn coloured(&self, colour: &str, text: &str) -> String {
        if self.manners.colour && self.manners.stderr_is_terminal {
            format!("\x1b[1;{colour}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    fn stdout(&self) -> MutexGuard<'_, BufWriter<Box<dyn Write + Send>>> {
        self.stdout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn checked(&self, written: io::Result<()>) -> Result<()> {
        let Err(error) = written else { return Ok(()) };
        if error.kind() == io::ErrorKind::BrokenPipe {
            self.closed.store(true, Ordering::Relaxed);
            return Err(Error::io("nobody reads the output any more", error));
        }
        Err(Error::io("writing to standard output", error))
    }
}

/// stdout as a writer, for content.
pub struct DataWriter<'a>(pub &'a Output);

impl Write for DataWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.0.stdout().write(bytes);
        self.note(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.0.stdout().flush();
        self.note(flushed)
    }
}

impl DataWriter<'_> {
    fn note<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            self.0.closed.store(true, Ordering::Relaxed);
        }
        result
    }
}

/// A [`DocumentStream`] that begins with its first item, so that a command which fails before that writes no document.
pub struct LazyDocument<'a, H> {
    output: &'a Output,
    kind: &'static str,
    head: H,
    list: &'static str,
    begun: Option<DocumentStream<'a>>,
}

impl<'a, H: Serialize> LazyDocument<'a, H> {
    /// See [`DocumentStream::begin`].
    pub fn new(output: &'a Output, kind: &'static str, head: H, list: &'static str) -> Self {
        LazyDocument { output, kind, head, list, begun: None }
    }

    /// Adds an item.
    pub fn item(&mut self, item: &impl Serialize) -> Result<()> {
        let stream = match self.begun.take() {
            Some(stream) => stream,
            None => DocumentStream::begin(self.output, self.kind, &self.head, self.list)?,
        };
        self.begun.insert(stream).item(item)
    }

    /// Ends the document, which may have no items.
    pub fn end(self, tail: &impl Serialize) -> Result<()> {
        match self.begun {
            Some(stream) => stream.end(tail),
            None => DocumentStream::begin(self.output, self.kind, &self.head, self.list)?.end(tail),
        }
    }
}

/// One JSON document whose list may be longer than memory: a head, the list's items one by one, a tail.
pub struct DocumentStream<'a> {
    output: &'a Output,
    items: u64,
}

impl<'a> DocumentStream<'a> {
    /// Begins a document of type `kind` whose data are the fields of `head`, then the list `list`, then the fields of the tail.
    pub fn begin(output: &'a Output, kind: &str, head: &impl Serialize, list: &str) -> Result<Self> {
        let head = json_text(head);
        let fields = head.strip_prefix('{').and_then(|head| head.strip_suffix('}')).unwrap_or_default();
        let comma = if fields.is_empty() { "" } else { "," };
        let start = output.envelope.open_document(kind);
        output.bytes(format!("{start}{{{fields}{comma}\"{list}\":[").as_bytes())?;
        Ok(DocumentStream { output, items: 0 })
    }

    /// Adds an item.
    pub fn item(&mut self, item: &impl Serialize) -> Result<()> {
        let comma = if self.items == 0 { "\n" } else { ",\n" };
        self.items += 1;
        self.output.bytes(comma.as_bytes())?;
        self.output.bytes(json_text(item).as_bytes())
    }

    /// Ends the list and the document with the fields of `tail`.
    pub fn end(self, tail: &impl Serialize) -> Result<()> {
        let tail = json_text(tail);
        let fields = tail.strip_prefix('{').unwrap_or("}");
        let comma = if fields == "}" { "" } else { "," };
        self.output.line(&format!("]{comma}{fields}}}"))?;
        self.output.flush()
    }
}

/// The document as one line of JSON.
pub fn json_text(document: &impl Serialize) -> String {
    // Documents hold strings, numbers and lists of them: nothing that could fail to serialise.
    serde_json::to_string(document).unwrap_or_else(|error| format!("{{\"unserialisable\":{:?}}}", error.to_string()))
}
