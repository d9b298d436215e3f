//! Faults of system calls: the program under `strace`, which lets the n-th call of a kind fail, kill, or wait.
//!
//! A run is recorded first; the calls that concern a folder are the places where faults can be put. strace counts the calls
//! of each thread by themselves: the n-th call of *every* thread is hit, which is told by the log of the run itself.
//! What the log says about a call (its arguments with the paths of descriptors) is looked at as text.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// The calls that touch storage: what a run of the program asks of file systems, but for questions about metadata that the
/// loader and the C library ask in large numbers.
pub const STORAGE_CALLS: &[&str] = &[
    "open",
    "openat",
    "openat2",
    "creat",
    "close",
    "read",
    "pread64",
    "readv",
    "preadv",
    "write",
    "pwrite64",
    "writev",
    "pwritev",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "syncfs",
    "ftruncate",
    "fallocate",
    "fchmod",
    "fchmodat",
    "fchown",
    "utimensat",
    "link",
    "linkat",
    "rename",
    "renameat",
    "renameat2",
    "mkdir",
    "mkdirat",
    "rmdir",
    "unlink",
    "unlinkat",
    "symlinkat",
    "getdents64",
    "stat",
    "lstat",
    "fstat",
    "newfstatat",
    "statx",
    "statfs",
    "fstatfs",
    "lseek",
    "flock",
    "copy_file_range",
];

/// One call of a run.
#[derive(Debug, Clone)]
pub struct Call {
    pub thread: u32,
    pub name: String,
    /// The arguments and the result.
    pub text: String,
    pub is_injected: bool,
}

/// What happens at the chosen calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    Kill,
    /// The call is not carried out and returns the error.
    Error(&'static str),
}

/// A fault at the `number`-th call of the name in each thread, or at that and all later ones.
#[derive(Debug, Clone)]
pub struct Injection {
    pub call: String,
    pub fault: Fault,
    pub number: u64,
    pub is_lasting: bool,
}

impl Injection {
    fn expression(&self) -> String {
        let what = match self.fault {
            Fault::Kill => "signal=KILL".to_owned(),
            Fault::Error(code) => format!("error={code}"),
        };
        format!("inject={}:{what}:when={}{}", self.call, self.number, if self.is_lasting { "+" } else { "" })
    }
}

/// Why faults cannot be injected here, if they cannot.
pub fn missing() -> Option<&'static str> {
    let arguments =
        ["-f", "-qq", "-o", "/dev/null", "-e", "trace=close", "-e", "inject=close:error=EIO:when=500", "true"];
    match Command::new("strace").args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status() {
        Ok(status) if status.success() => None,
        Ok(_) => Some("strace may not trace here"),
        Err(_) => Some("strace is missing"),
    }
}

/// The same command under strace with these faults; the log of its calls is written to `log`.
pub fn traced(command: &Command, injections: &[Injection], log: &Path) -> Command {
    let mut wrapped = Command::new("strace");
    wrapped.args(["-f", "-qq", "-y", "-s", "0", "-o"]).arg(log);
    wrapped.arg("-e").arg(format!("trace={}", STORAGE_CALLS.join(",")));
    for injection in injections {
        wrapped.arg("-e").arg(injection.expression());
    }
    wrapped.arg(command.get_program()).args(command.get_args()).env_clear().stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        wrapped.env(name, value.unwrap_or_default());
    }
    wrapped
}

/// The same command, ended after so many seconds: a fault must not hang the tests. Exits with 124 then.
pub fn limited(command: &Command, seconds: u64) -> Command {
    let mut wrapped = Command::new("timeout");
    wrapped
        .arg(seconds.to_string())
        .arg(command.get_program())
        .args(command.get_args())
        .env_clear()
        .stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        wrapped.env(name, value.unwrap_or_default());
    }
    wrapped
}

/// The calls in a log, in the order in which they began.
pub fn calls(log: &Path) -> Vec<Call> {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut calls: Vec<Call> = Vec::new();
    let mut unfinished: HashMap<u32, usize> = HashMap::new();
    for line in text.lines() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let (Ok(thread), rest) = (thread.parse(), rest.trim_start()) else { continue };
        if rest.starts_with("<... ") {
            if let Some(at) = unfinished.remove(&thread) {
                calls[at].is_injected |= rest.contains("(INJECTED)");
                calls[at].text.push_str(rest);
            }
            continue;
        }
        let Some((name, rest)) = rest.split_once('(') else { continue };
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            continue;
        }
        if rest.contains("<unfinished ...>") {
            unfinished.insert(thread, calls.len());
        }
        let is_injected = rest.contains("(INJECTED)");
        calls.push(Call { thread, name: name.to_owned(), text: rest.to_owned(), is_injected });
    }
    calls
}

/// For each kind of call, the numbers (within its thread) of those that are `wanted`.
pub fn numbers(calls: &[Call], wanted: impl Fn(&Call) -> bool) -> BTreeMap<String, Vec<u64>> {
    let mut seen: HashMap<(u32, &str), u64> = HashMap::new();
    let mut found: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for call in calls {
        let number = seen.entry((call.thread, &call.name)).or_default();
        *number += 1;
        if wanted(call) {
            found.entry(call.name.clone()).or_default().insert(*number);
        }
    }
    found.into_iter().map(|(name, numbers)| (name, numbers.into_iter().collect())).collect()
}
