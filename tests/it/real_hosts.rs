//! Several processes of the program on one directory, as several hosts: with index caches, and where it is permitted host
//! names, of their own.
//!
//! Whether a writer is dead for certain is told by host, boot and process, so both are looked at: processes that name one
//! host, and processes that name several. A backup that is stopped for as long as two prunes take ends as a whole snapshot
//! or as none. Nothing waits for time to pass: what is waited for can be seen, and has a deadline.
//!
//! Other hosts need root (`unshare --uts`); otherwise that part says NOT RUN.

use crate::support::program::{Place, documents, expect, runs};
use crate::support::trees::Tree;
use crate::support::{Chance, noise, not_run, say, seed, setting};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::Write;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const HOSTS: usize = 3;
const FILES: u64 = 6;
const FILE_BYTES: usize = 400_000;
const PATIENCE: Duration = Duration::from_secs(120);

/// The program as it runs on host `number`.
fn on_host(place: &Place, number: usize, has_own_name: bool, arguments: &[&str]) -> Command {
    let mut command = match has_own_name {
        false => place.command(arguments),
        true => {
            let mut command = Command::new("unshare");
            let script = format!("hostname host-{number} && exec \"$@\"");
            command.args(["--uts", "sh", "-c", &script, "sh"]);
            place.command_by(command, arguments)
        }
    };
    command.env("CKPT_CACHE_DIR", place.path(&format!("cache-{number}")));
    command.env("CKPT_HOST", format!("host-{number}"));
    command
}

fn may_name_hosts() -> bool {
    runs("unshare", &["--uts", "sh", "-c", "hostname some-name"])
}

/// Waits until `holds`, and fails if it takes too long.
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::yield_now();
    }
}

/// True if a transaction is announced; its unfinished announcement is none.
fn is_any_open(place: &Place) -> bool {
    let listed = fs::read_dir(place.path("repository/transactions")).into_iter().flatten();
    listed.flatten().any(|item| !item.file_name().to_string_lossy().starts_with("tmp-"))
}

fn source(number: usize) -> String {
    format!("source-{number}")
}

/// New content, content of others, and content that only forgotten snapshots held.
fn change_source(place: &Place, number: usize, chance: &mut Chance) {
    let folder = place.path(&source(number));
    fs::create_dir_all(&folder).expect("a folder");
    for _ in 0..2 {
        let bytes = noise(chance.below(12), FILE_BYTES);
        fs::write(folder.join(chance.below(FILES).to_string()), bytes).expect("a file");
    }
}

fn spawn(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts")
}

fn end(child: Child, codes: &[i32], why: &str) -> Output {
    let output = child.wait_with_output().expect("it ends");
    let code = output.status.code().unwrap_or(-1);
    assert!(codes.contains(&code), "{why}: {code}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn saved(output: &Output) -> Option<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let summary = output.status.success().then(|| documents(&text).pop().expect("a summary"))?;
    Some(summary["data"]["snapshot"].as_str().expect("a snapshot").to_owned())
}

fn assert_restores(place: &Place, id: &str, wanted: &Tree, why: &str) {
    let target = place.path("target");
    expect(place.command(&["restore", id, "--target", target.to_str().expect("text")]), 0);
    Tree::read(&target).assert_is(wanted, why);
    fs::remove_dir_all(&target).expect("removed");
}

fn rounds(has_own_names: bool) {
    let place = Place::with_repository();
    let mut chance = Chance(seed());
    let mut live: Vec<(String, Tree)> = Vec::new();
    let (mut backups, mut prunes) = (0, 0);
    for round in 0..setting("CKPT_TEST_ROUNDS", 4) {
        let why = format!("seed {}, round {round}", seed());
        let host = |number, arguments: &[&str]| spawn(on_host(&place, number, has_own_names, arguments));
        let mut writers = Vec::new();
        for number in 0..HOSTS {
            change_source(&place, number, &mut chance);
            writers.push(host(number, &["backup", &place.text(&source(number)), "--settle", "0", "--json"]));
        }
        let pruners: Vec<_> = (0..2).map(|n| host(HOSTS + n, PRUNE)).collect();
        let reader = live.first().map(|(id, _)| {
            let target = place.text("beside");
            host(HOSTS + 2, &["restore", id, "--target", &target])
        });
        for pruner in pruners {
            prunes += u64::from(end(pruner, &[0, 11], &format!("{why}: prune")).status.success());
        }
        if let Some(reader) = reader {
            end(reader, &[0], &format!("{why}: restore"));
            Tree::read(&place.path("beside")).assert_is(&live[0].1, &why);
            fs::remove_dir_all(place.path("beside")).expect("removed");
        }
        for (number, writer) in writers.into_iter().enumerate() {
            let output = end(writer, &[0, 11], &format!("{why}: backup of host {number}"));
            live.extend(saved(&output).map(|id| (id, Tree::read(&place.path(&source(number))))));
        }
        backups += live.len();
        for (id, wanted) in &live {
            assert_restores(&place, id, wanted, &why);
        }
        for (id, _) in live.drain(..live.len().min(2)) {
            expect(place.command(&["forget", &id]), 0);
        }
        backups -= live.len();
    }
    expect(place.command(PRUNE), 0);
    expect(place.command(&["verify", "--read-data"]), 0);
    for (id, wanted) in &live {
        assert_restores(&place, id, wanted, "at last");
    }
    backups += live.len();
    let names = if has_own_names { "several hosts" } else { "one host" };
    say(&format!("real_hosts: {names}: {backups} backups, {prunes} prunes beside them, seed {}", seed()));
}

/// What is unneeded goes at once.
const PRUNE: &[&str] = &["prune", "--max-unused", "0", "--delete-delay", "0"];

#[test]
fn processes_of_one_host_back_up_prune_and_restore_at_once() {
    rounds(false);
}

#[test]
fn processes_of_several_hosts_back_up_prune_and_restore_at_once() {
    match may_name_hosts() {
        true => rounds(true),
        false => not_run("several hosts at once", "unshare --uts is not permitted"),
    }
}

fn signal(child: &Child, signal: Signal) {
    let process = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(process, signal).expect("ours, and not waited for yet");
}

/// A backup of what a forgotten snapshot held is stopped when it has found that, and two prunes run meanwhile.
fn stopped(has_own_names: bool) {
    let place = Place::with_repository();
    let known = noise(1, 3 << 20);
    fs::create_dir(place.path("data")).expect("a folder");
    fs::write(place.path("data/known"), &known).expect("a file");
    let forgotten = place.backup("data");
    fs::write(place.path("data/known"), noise(2, 1 << 20)).expect("a file");
    let kept = (place.backup("data"), Tree::read(&place.path("data")));
    expect(place.command(&["forget", &forgotten]), 0);
    let mut command = on_host(&place, 0, has_own_names, &["backup", "--stdin", "stream", "--json"]);
    command.stdin(Stdio::piped());
    let mut writer = spawn(command);
    let mut stream = writer.stdin.take().expect("piped");
    // All but what fits into a pipe has been read when this returns.
    stream.write_all(&known).expect("read");
    wait_until("an open transaction", || is_any_open(&place));
    signal(&writer, Signal::STOP);
    let prune = |number| end(spawn(on_host(&place, number, has_own_names, PRUNE)), &[0, 11], "prune").status.code();
    let codes = [prune(1), prune(2)];
    signal(&writer, Signal::CONT);
    // The pipe breaks if the writer has seen that it was revoked.
    let _ = stream.write_all(&noise(3, 1 << 20));
    drop(stream);
    let output = end(writer, &[0, 11], "the stopped backup");
    let why = format!("stopped while prunes ended with {codes:?}");
    match saved(&output) {
        Some(id) => {
            let target = place.path("target");
            expect(place.command(&["restore", &id, "--target", target.to_str().expect("text")]), 0);
            let found = fs::read(target.join("stream")).expect("the file");
            assert!(found == [known, noise(3, 1 << 20)].concat(), "{why}: other bytes");
            fs::remove_dir_all(&target).expect("removed");
        }
        None => assert_eq!(place.snapshots(), [kept.0.as_str()], "{why}"),
    }
    assert_restores(&place, &kept.0, &kept.1, &why);
    expect(place.command(PRUNE), 0);
    expect(place.command(&["verify", "--read-data"]), 0);
    say(&format!("real_hosts: {why}, the backup ended with {:?}", output.status.code()));
}

#[test]
fn a_backup_stopped_while_its_own_host_prunes_is_whole_or_none() {
    stopped(false);
}

#[test]
fn a_backup_stopped_while_other_hosts_prune_is_whole_or_none() {
    match may_name_hosts() {
        true => stopped(true),
        false => not_run("a backup stopped while other hosts prune", "unshare --uts is not permitted"),
    }
}
