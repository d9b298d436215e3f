//! The program as a process, with a repository, a cache and a home of its own.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// A folder for a test in which the program runs.
pub struct Place {
    folder: TempDir,
}

impl Place {
    /// A place with an empty repository of usual parameters.
    pub fn with_repository() -> Place {
        let place = Place::new();
        place.succeed(&["init"]);
        place
    }

    /// A place with nothing in it.
    pub fn new() -> Place {
        Place { folder: super::disk_folder() }
    }

    /// A place with nothing in it, in memory if there is room: for tests that make very many.
    pub fn in_memory() -> Place {
        Place { folder: super::quick_folder() }
    }

    /// A path in the place.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("a path of text").to_owned()
    }

    /// The program with these arguments and nothing of the environment of the test.
    pub fn command(&self, arguments: &[&str]) -> Command {
        self.prepared(Command::new(env!("CARGO_BIN_EXE_ckpt")), arguments)
    }

    /// As [`Place::command`], as another user: `groups` are its first and its further ones. With a cache of its own.
    pub fn command_as(&self, user: u32, group: u32, arguments: &[&str]) -> Command {
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={user}")).arg(format!("--regid={group}")).arg("--clear-groups");
        let mut command = self.prepared_with(command, self.program_for_all(), arguments);
        let cache = self.path(&format!("cache-{user}"));
        fs::create_dir_all(&cache).expect("a folder");
        std::os::unix::fs::chown(&cache, Some(user), Some(group)).expect("root may give it away");
        command.env("CKPT_CACHE_DIR", cache);
        command
    }

    /// As [`Place::command`], run by `command`, which takes the program and its arguments behind its own.
    pub fn command_by(&self, mut command: Command, arguments: &[&str]) -> Command {
        command.arg(env!("CARGO_BIN_EXE_ckpt"));
        self.prepared(command, arguments)
    }

    /// The program where every user may run it: its own folder may be closed to others.
    fn program_for_all(&self) -> PathBuf {
        let copy = self.path("ckpt");
        if !copy.exists() {
            fs::copy(env!("CARGO_BIN_EXE_ckpt"), &copy).expect("copied");
            open_to_all(self.folder.path());
            open_to_all(&copy);
        }
        copy
    }

    fn prepared_with(&self, mut command: Command, program: PathBuf, arguments: &[&str]) -> Command {
        command.arg(program);
        self.prepared(command, arguments)
    }

    fn prepared(&self, mut command: Command, arguments: &[&str]) -> Command {
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("TZ", "UTC")
            .env("CKPT_REPO", self.path("repository"))
            .env("CKPT_CACHE_DIR", self.path("cache"))
            .env("CKPT_HOST", "testhost")
            // Heeded only by a build that can be broken (`tests/sabotage`).
            .envs(std::env::var_os("CKPT_SABOTAGE").map(|defect| ("CKPT_SABOTAGE", defect)))
            .stdin(Stdio::null());
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    /// Runs the program, which must succeed; what it wrote to stdout.
    pub fn succeed(&self, arguments: &[&str]) -> String {
        expect(self.command(arguments), 0).0
    }

    /// The ids of all snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<String> {
        let text = self.succeed(&["snapshots", "--json"]);
        let document = documents(&text).pop().expect("a document");
        let listed = document["data"]["snapshots"].as_array().expect("a list");
        listed.iter().map(|snapshot| snapshot["id"].as_str().expect("an id").to_owned()).collect()
    }

    /// Backs up a folder of the place; the id of the snapshot.
    pub fn backup(&self, name: &str) -> String {
        let text = self.succeed(&["backup", &self.text(name), "--settle", "0", "--json"]);
        let summary = documents(&text).pop().expect("a summary");
        summary["data"]["snapshot"].as_str().expect("a snapshot").to_owned()
    }
}

/// Runs the command, which must end with `code`; what it wrote to stdout and stderr.
pub fn expect(mut command: Command, code: i32) -> (String, String) {
    let output = command.output().expect("the program starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{command:?}: {out}{err}");
    (out, err)
}

/// The JSON documents of an output, one for each line.
pub fn documents(text: &str) -> Vec<Value> {
    match serde_json::from_str::<Value>(text) {
        Ok(document) => vec![document],
        Err(_) => {
            text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
        }
    }
}

/// Lets everybody read and enter or run it.
pub fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
}

/// True if the command runs and succeeds; what it says is thrown away.
pub fn runs(program: &str, arguments: &[&str]) -> bool {
    let quiet = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    quiet.is_ok_and(|status| status.success())
}
