//! The program as a process: exit codes, streams, JSON, silence, help. What the library does is tested elsewhere.

use serde_json::Value;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A folder for a test with a repository's place, data and a cache of its own.
struct World {
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> World {
        World { folder: tempfile::tempdir().expect("a folder for the test") }
    }

    /// A world with a repository and some data.
    fn with_repository() -> World {
        let world = World::new();
        world.succeed(&["init"]);
        let data = world.path("data");
        fs::create_dir_all(data.join("sub")).expect("folders");
        fs::write(data.join("a.txt"), b"alpha").expect("a file");
        fs::write(data.join("sub/b.bin"), vec![7u8; 300_000]).expect("a file");
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn data(&self) -> String {
        self.path("data").to_str().expect("a path of text").to_owned()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ckpt"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.path("home"))
            .env("TZ", "UTC")
            .env("CKPT_REPO", self.path("repository"))
            .env("CKPT_CACHE_DIR", self.path("cache"))
            .env("CKPT_HOST", "testhost")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    fn succeed(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(code(&output), 0, "{arguments:?}: {}", err(&output));
        out(&output)
    }

    /// Runs a command that must end with `expected` and say why on stderr; returns what it said.
    fn fail(&self, expected: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(code(&output), expected, "{arguments:?}: {}", err(&output));
        let said = err(&output);
        assert!(!said.is_empty(), "{arguments:?} says nothing");
        assert!(!said.contains("panicked"), "{said}");
        said
    }

    /// Saves the data and returns the snapshot's id.
    fn backup(&self, more: &[&str]) -> String {
        let data = self.data();
        let mut arguments = vec!["backup", data.as_str(), "--json"];
        arguments.extend_from_slice(more);
        let text = self.succeed(&arguments);
        let summary = last_document(&text);
        summary["data"]["snapshot"].as_str().expect("a snapshot was saved").to_owned()
    }
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("an exit code, not a signal")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn documents(text: &str) -> Vec<Value> {
    let whole = serde_json::from_str::<Value>(text).map(|document| vec![document]);
    whole.unwrap_or_else(|_| {
        text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
    })
}

fn last_document(text: &str) -> Value {
    documents(text).pop().expect("at least one document")
}

fn wait_for(child: &mut Child) -> i32 {
    child.wait().expect("the program can be waited for").code().expect("an exit code, not a signal")
}

const COMMANDS: [&str; 19] = [
    "init",
    "backup",
    "restore",
    "dump",
    "snapshots",
    "ls",
    "diff",
    "find",
    "stats",
    "info",
    "tag",
    "verify",
    "repair",
    "forget",
    "prune",
    "audit",
    "key",
    "schema",
    "generate",
];

#[test]
fn help_lists_the_commands_that_are_built_and_no_others() {
    let world = World::new();
    let help = world.succeed(&["--help"]);
    let listed: Vec<&str> = help
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert_eq!(listed, COMMANDS);
    for command in COMMANDS {
        assert!(world.succeed(&[command, "--help"]).contains("Usage: ckpt"), "{command}");
    }
    for absent in ["mount", "drill", "copy", "check", "config"] {
        world.fail(2, &[absent]);
    }
}

#[test]
fn a_typo_is_a_usage_error_with_a_suggestion() {
    let world = World::new();
    assert!(world.fail(2, &["snapshotz"]).contains("snapshots"));
    assert!(world.fail(2, &["backup", "--tagg", "x", "/"]).contains("--tag"));
    assert!(world.fail(2, &["verify", "--read-data", "--subset", "31/30"]).contains("31/30"));
    assert!(world.fail(2, &["backup", "/", "--memory", "lots"]).contains("lots"));
    assert!(world.fail(2, &["ls", "--at", "someday"]).contains("someday"), "before the repository is opened");
    let said = last_document(&world.fail(2, &["--json", "backup", "--tagg", "x"]));
    assert_eq!((said["code"].as_u64(), said["kind"].as_str()), (Some(2), Some("usage")));
    assert!(said["hint"].as_str().is_some_and(|hint| hint.contains("--tag")), "{said}");
}

#[test]
fn without_arguments_the_help_is_a_usage_error() {
    let world = World::new();
    assert!(world.fail(2, &[]).contains("Usage: ckpt"));
    let output = world.command(&["snapshots"]).env_remove("CKPT_REPO").output().expect("the program starts");
    assert_eq!(code(&output), 2);
    assert!(err(&output).contains("CKPT_REPO"), "{}", err(&output));
}

#[test]
fn a_place_without_a_repository_is_told_apart() {
    let world = World::new();
    assert!(world.fail(10, &["snapshots"]).contains("ckpt init"), "nothing is there");
    fs::create_dir(world.path("repository")).expect("a folder");
    assert!(world.fail(10, &["snapshots"]).contains("ckpt init"), "an empty folder");
    fs::write(world.path("repository/other"), b"x").expect("a file");
    world.fail(10, &["snapshots"]);
    world.fail(10, &["backup", "/etc/hostname"]);
    assert_eq!(fs::read_dir(world.path("repository")).expect("still there").count(), 1, "nothing was written into it");
    let said = last_document(&world.fail(10, &["snapshots", "--json"]));
    assert_eq!((said["type"].as_str(), said["code"].as_u64()), (Some("error"), Some(10)));
}

#[test]
fn init_is_silent_and_refuses_what_exists() {
    let world = World::new();
    let output = world.run(&["init"]);
    assert_eq!((code(&output), out(&output), err(&output)), (0, String::new(), String::new()));
    world.fail(1, &["init"]);
    world.succeed(&["snapshots"]);
}

#[test]
fn an_empty_variable_is_as_good_as_none() {
    let world = World::with_repository();
    let run = |name: &str, command: &[&str]| world.command(command).env(name, "").output().expect("the program starts");
    assert_eq!(code(&run("CKPT_CACHE_DIR", &["snapshots"])), 0);
    assert_eq!(code(&run("CKPT_HOST", &["backup", &world.data()])), 0);
    assert_eq!(code(&run("CKPT_REPO", &["snapshots"])), 2);
}

#[test]
fn a_selector_that_finds_nothing_is_not_found() {
    let world = World::new();
    world.succeed(&["init"]);
    for arguments in [["ls", "latest"], ["ls", "deadbeef"], ["ls", "tag:none"], ["ls", "nosuch"]] {
        world.fail(15, &arguments);
    }
    world.fail(15, &["restore", "--at", "2h", "--target", world.path("t").to_str().expect("text")]);
    world.fail(2, &["ls", "abc"]);
    world.fail(2, &["ls", "--at", "someday"]);
    world.fail(2, &["restore", "latest"]);
}

#[test]
fn man_pages_and_completions_are_generated() {
    let world = World::new();
    assert!(world.succeed(&["generate", "man", "-"]).contains(".TH ckpt 1"));
    let pages = world.path("man");
    world.succeed(&["generate", "man", pages.to_str().expect("text")]);
    for command in COMMANDS {
        assert!(pages.join(format!("ckpt-{command}.1")).is_file(), "{command}");
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(world.succeed(&["generate", "completions", shell]).contains("snapshots"), "{shell}");
    }
    world.fail(2, &["generate", "completions", "tcsh"]);
    assert_eq!(code(&world.run(&["generate", "man", "/dev/null/x"])), 1);
}

#[test]
fn a_closed_pipe_ends_quietly() {
    let world = World::new();
    for arguments in [&["generate", "completions", "zsh"][..], &["schema"], &["--help"]] {
        let mut child =
            world.command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().expect("stderr").read_to_string(&mut said).expect("text");
        assert_eq!((wait_for(&mut child), said.as_str()), (0, ""), "{arguments:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_behind_stdout_is_an_error() {
    let world = World::new();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("a device that is full");
    let output = world.command(&["schema"]).stdout(full).output().expect("the program starts");
    assert_eq!(code(&output), 14, "{}", err(&output));
}

#[test]
fn nothing_is_coloured_where_nobody_watches() {
    let world = World::new();
    for arguments in [&["--help"][..], &["snapshotz"], &["snapshots"]] {
        for no_color in ["", "1"] {
            let output = world.command(arguments).env("NO_COLOR", no_color).output().expect("the program starts");
            assert!(!output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b), "{arguments:?}");
        }
    }
}

#[test]
fn talk_can_be_json() {
    let world = World::new();
    let said = last_document(&world.fail(10, &["snapshots", "--log-format", "json"]));
    assert_eq!(said["kind"].as_str(), Some("no_repository"));
    let said = last_document(&world.fail(2, &["snapshotz", "--log-format", "json"]));
    assert_eq!(said["kind"].as_str(), Some("usage"));
}

#[test]
fn cron_hears_nothing_when_all_is_well() {
    let world = World::with_repository();
    let (data, target) = (world.data(), world.path("target"));
    let target = target.to_str().expect("text");
    let commands: [&[&str]; 8] = [
        &["backup", &data],
        &["backup", &data, "--skip-if-unchanged"],
        &["verify"],
        &["verify", "--read-data"],
        &["restore", "latest", "--target", target],
        &["verify", "latest", "--against", target],
        &["forget", "--keep-last", "1"],
        &["prune"],
    ];
    for arguments in commands {
        let output = world.run(arguments);
        assert_eq!((code(&output), out(&output), err(&output)), (0, String::new(), String::new()), "{arguments:?}");
    }
}

#[test]
fn backup_names_its_snapshot_when_asked() {
    let world = World::with_repository();
    let said = world.succeed(&["backup", &world.data(), "-v"]);
    let id = said.split_whitespace().find(|word| word.len() == 32).expect("an id").to_owned();
    let listed = last_document(&world.succeed(&["snapshots", "--json"]));
    assert_eq!(listed["data"]["snapshots"][0]["id"].as_str(), Some(id.as_str()));
    assert_eq!(listed["data"]["snapshots"][0]["host"].as_str(), Some("testhost"));
}

#[test]
fn every_document_matches_the_schema() {
    let world = World::with_repository();
    let schema: Value = serde_json::from_str(&world.succeed(&["schema"])).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is one");
    let check = |text: &str, expected: &str| {
        let documents = documents(text);
        for document in &documents {
            if let Err(error) = validator.validate(document) {
                panic!("{error}: {document}");
            }
        }
        let last = documents.last().expect("at least one document");
        assert_eq!(last["type"].as_str(), Some(expected), "{last}");
    };
    let other = World::new();
    check(&other.succeed(&["init", "--json"]), "init");
    check(&other.succeed(&["snapshots", "--json"]), "snapshots");
    check(&other.succeed(&["find", "x", "--json"]), "find");
    check(&other.fail(15, &["ls", "latest", "--json"]), "error");

    let first = world.backup(&["--tag", "one", "--meta", "loss=0.5"]);
    fs::write(world.path("data/a.txt"), b"other").expect("a file");
    fs::write(world.path("data").join(OsStr::from_bytes(b"bad\xffname")), b"x").expect("a file");
    world.backup(&[]);
    let (data, target) = (world.data(), world.path("target"));
    let target = target.to_str().expect("text");
    check(&world.succeed(&["backup", &data, "--json", "--dry-run"]), "summary");
    check(&world.succeed(&["snapshots", "--json"]), "snapshots");
    check(&world.succeed(&["ls", "latest", "-R", "--json"]), "ls");
    check(&world.succeed(&["diff", &first, "latest", "--json"]), "diff");
    check(&world.succeed(&["find", "*.txt", "--json"]), "find");
    check(&world.succeed(&["stats", "--json"]), "stats");
    check(&world.succeed(&["info", "--json"]), "info");
    check(&world.succeed(&["tag", "latest", "--add", "best", "--json"]), "tag");
    check(&world.succeed(&["verify", "--json"]), "summary");
    check(&world.succeed(&["verify", "--read-data", "--json"]), "summary");
    check(&world.succeed(&["restore", "latest", "--target", target, "--dry-run", "--json"]), "summary");
    // What a hand in a hurry types.
    check(&world.succeed(&["restore", "latest", "--to", target, "--dry-run", "--json"]), "summary");
    check(&world.succeed(&["restore", "latest", "--target", target, "--json"]), "summary");
    check(&world.succeed(&["verify", "latest", "--against", target, "--json"]), "summary");
    check(&world.succeed(&["forget", "--keep-last", "1", "--dry-run", "--json"]), "summary");
    check(&world.succeed(&["forget", "--keep-last", "1", "--prune", "--json"]), "summary");
    check(&world.succeed(&["prune", "--dry-run", "--json"]), "summary");
}

#[test]
fn a_name_that_is_not_text_is_exact_in_json_and_harmless_in_text() {
    let world = World::with_repository();
    fs::write(world.path("data").join(OsStr::from_bytes(b"bad\xff\x1b[2J")), b"x").expect("a file");
    world.backup(&[]);
    let document = last_document(&world.succeed(&["ls", "latest", "--json"]));
    let entries = document["data"]["entries"].as_array().expect("a list").clone();
    let bad = entries.iter().find(|entry| !entry["path_bytes"].is_null()).expect("the entry");
    assert_eq!(bad["path_bytes"].as_str(), Some("626164ff1b5b324a"));
    let listed = world.succeed(&["ls", "latest"]);
    assert!(listed.contains("bad\\xff\\x1b[2J") && !listed.contains('\x1b'), "{listed}");
}

#[test]
fn missing_sources_are_exit_2_or_3() {
    let world = World::with_repository();
    let (data, missing) = (world.data(), world.path("missing"));
    let missing = missing.to_str().expect("text");
    assert!(world.fail(2, &["backup", missing]).contains(missing));
    assert!(last_document(&world.succeed(&["snapshots", "--json"]))["data"]["snapshots"] == serde_json::json!([]));
    let said = world.fail(3, &["backup", &data, missing]);
    assert!(said.contains(missing) && said.contains("incomplete"), "{said}");
    let listed = last_document(&world.succeed(&["snapshots", "--json"]));
    assert_eq!(listed["data"]["snapshots"][0]["incomplete"].as_bool(), Some(true));
}

#[test]
fn a_snapshot_is_restored_by_selector_and_time() {
    let world = World::with_repository();
    let id = world.backup(&["--tag", "best"]);
    let restored = |name: &str, selector: &[&str]| {
        let target = world.path(name);
        let mut arguments = vec!["restore"];
        arguments.extend_from_slice(selector);
        arguments.extend_from_slice(&["--target", target.to_str().expect("text")]);
        world.succeed(&arguments);
        target
    };
    let content = |target: &Path, name: &str| fs::read(target.join(name)).expect("restored");
    for (name, selector) in [("t1", "latest"), ("t2", &id[..8]), ("t3", "tag:best")] {
        assert_eq!(content(&restored(name, &[selector]), "a.txt"), b"alpha", "{selector}");
    }
    assert_eq!(content(&restored("t4", &["--at", "now"]), "a.txt"), b"alpha");
    assert_eq!(content(&restored("t5", &["latest:sub"]), "b.bin").len(), 300_000);
    assert_eq!(content(&restored("t6", &["--at", "now", ":sub"]), "b.bin").len(), 300_000);
    assert_eq!(world.succeed(&["dump", "latest", "a.txt"]), "alpha");
    assert_eq!(world.succeed(&["dump", "latest:a.txt"]), "alpha");
    assert_eq!(world.succeed(&["dump", "--at", "now", "a.txt"]), "alpha");
    world.fail(15, &["dump", "latest", "nothing"]);
    world.fail(15, &["restore", "latest:nothing", "--target", world.path("t7").to_str().expect("text")]);
    world.fail(15, &["ls", "--at", "2001-01-01"]);
}

#[test]
fn a_stream_becomes_a_file_and_a_failing_command_nothing() {
    let world = World::with_repository();
    let mut child = world.command(&["backup", "--stdin", "stream"]).stdin(Stdio::piped()).spawn().expect("it starts");
    child.stdin.take().expect("stdin").write_all(b"through a pipe").expect("it reads");
    assert_eq!(wait_for(&mut child), 0);
    assert_eq!(world.succeed(&["dump", "latest", "stream"]), "through a pipe");
    world.succeed(&["backup", "--stdin", "echoed", "--source", "echo", "--stdin-from-command", "--", "echo", "hi"]);
    assert_eq!(world.succeed(&["dump", "latest", "echoed", "--source", "echo"]), "hi\n");
    let count = || documents(&world.succeed(&["snapshots", "--json"]))[0]["data"]["snapshots"].as_array().map(Vec::len);
    assert_eq!(count(), Some(2));
    let said = world.fail(1, &["backup", "--stdin-from-command", "--", "sh", "-c", "echo part; exit 3"]);
    assert!(said.contains("exit status: 3"), "{said}");
    world.fail(2, &["backup", "--stdin-from-command", "--", "/nonexistent/command"]);
    assert_eq!(count(), Some(2));
}

#[test]
fn progress_as_json_names_phase_amounts_and_time_left() {
    let world = World::with_repository();
    let output = world.run(&["backup", &world.data(), "--progress", "json"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    let lines = documents(&err(&output));
    assert!(lines.iter().all(|line| line["type"].as_str() == Some("progress")), "{lines:?}");
    let last = lines.last().expect("at least one line");
    let fields = ["phase", "bytes_done", "bytes_total", "files_done", "files_total", "seconds_elapsed", "eta_seconds"];
    for field in fields {
        assert!(last["data"].get(field).is_some(), "{field}");
    }
}

#[test]
fn a_signal_ends_a_backup_with_its_code() {
    let world = World::with_repository();
    for (signal, expected) in [(rustix::process::Signal::INT, 130), (rustix::process::Signal::TERM, 143)] {
        let mut child = world
            .command(&["backup", "--stdin", "endless", "--progress", "json"])
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        // Its first word shows that it has taken over the signals; it then waits for input that never ends.
        let mut first = [0u8; 1];
        child.stderr.as_mut().expect("stderr").read_exact(&mut first).expect("a line of progress");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).expect("the program runs");
        let mut rest = Vec::new();
        child.stderr.take().expect("stderr").read_to_end(&mut rest).expect("text");
        assert_eq!(wait_for(&mut child), expected, "{}", String::from_utf8_lossy(&rest));
    }
    let listed = last_document(&world.succeed(&["snapshots", "--json"]));
    assert_eq!(listed["data"]["snapshots"], serde_json::json!([]));
    world.succeed(&["verify"]);
}

#[test]
fn forget_needs_ids_or_a_policy_and_explains_itself() {
    let world = World::with_repository();
    let first = world.backup(&[]);
    let second = world.backup(&[]);
    world.fail(2, &["forget"]);
    world.fail(2, &["forget", "latest"]);
    world.fail(2, &["forget", &first, "--keep-last", "1"]);
    world.fail(2, &["forget", "--keep-last", "0"]);
    let shown = world.succeed(&["forget", "--keep-last", "1", "--dry-run"]);
    let line = |id: &str| shown.lines().find(|line| line.contains(&id[..8])).unwrap_or_default().to_owned();
    assert!(line(&first).starts_with("forget") && line(&second).starts_with("keep"), "{shown}");
    world.succeed(&["forget", &first]);
    let listed = last_document(&world.succeed(&["snapshots", "--json"]));
    assert_eq!(listed["data"]["snapshots"].as_array().map(Vec::len), Some(1));
}
