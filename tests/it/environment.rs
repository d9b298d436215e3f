//! What surrounds the program: little memory, a wrong clock, a storage that freezes, a source that changes while it is read.

use crate::support::mounted::Mounted;
use crate::support::program::{Place, expect, runs};
use crate::support::trees::Tree;
use crate::support::{is_root, noise, not_run, say};
use std::fs;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The command run by a shell after these lines, with the same environment.
fn after(lines: &str, command: &Command) -> Command {
    let mut wrapped = Command::new("sh");
    wrapped.arg("-c").arg(format!("{lines}\nexec \"$@\"")).arg("sh");
    wrapped.arg(command.get_program()).args(command.get_args()).env_clear().stdin(Stdio::null());
    for (name, value) in command.get_envs() {
        wrapped.env(name, value.unwrap_or_default());
    }
    wrapped
}

fn write_files(place: &Place, count: u64, bytes: usize) {
    fs::create_dir_all(place.path("data")).expect("a folder");
    (0..count).for_each(|n| fs::write(place.path(&format!("data/{n}")), noise(n, bytes)).expect("a file"));
}

fn assert_restores(place: &Place, id: &str, wanted: &Tree, why: &str) {
    let target = place.path("restored");
    expect(place.command(&["restore", id, "--target", target.to_str().expect("text")]), 0);
    Tree::read(&target).assert_is(wanted, why);
    fs::remove_dir_all(&target).expect("removed");
}

/// A group of processes with bounded memory, for as long as this lives.
struct MemoryGroup {
    folder: PathBuf,
}

impl MemoryGroup {
    /// None if the kernel or the machine does not let us.
    fn new(bytes: usize) -> Option<MemoryGroup> {
        let name = format!("ckpt-test-{}-{bytes}", std::process::id());
        for (parent, limit) in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")] {
            let folder = Path::new(parent).join(&name);
            if fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = MemoryGroup { folder };
            if fs::write(group.folder.join(limit), bytes.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }

    fn command(&self, command: &Command) -> Command {
        after(&format!("echo $$ > {}/cgroup.procs", self.folder.display()), command)
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

#[test]
fn the_budget_of_memory_is_kept_by_every_command() {
    let check = "the_budget_of_memory_is_kept_by_every_command";
    if !is_root() {
        return not_run(check, "only root can bound the memory of a group");
    }
    // The budget, and as much again for the program itself, stacks and pages of files under way.
    let Some(group) = MemoryGroup::new(256 * MIB) else { return not_run(check, "no memory controller can be used") };
    let place = Place::with_repository();
    write_files(&place, 5, 60 * MIB);
    let (data, target) = (place.text("data"), place.text("target"));
    let run = |arguments: &[&str]| {
        let command = place.command(&[arguments, &["--memory", "128M", "--threads", "2"]].concat());
        expect(group.command(&command), 0);
    };
    run(&["backup", &data, "--settle", "0"]);
    run(&["restore", "latest", "--target", &target]);
    Tree::read(&place.path("target")).assert_is(&Tree::read(&place.path("data")), "restored in little memory");
    run(&["verify", "--read-data"]);
    let first = place.snapshots();
    fs::remove_file(place.path("data/0")).expect("removed");
    run(&["backup", &data, "--settle", "0"]);
    run(&["forget", &first[0]]);
    run(&["prune", "--max-unused", "0", "--delete-delay", "0"]);
}

#[test]
fn out_of_memory_is_like_a_kill() {
    let check = "out_of_memory_is_like_a_kill";
    if !runs("sh", &["-c", "ulimit -v 4000000"]) {
        return not_run(check, "the shell cannot bound memory");
    }
    let place = Place::with_repository();
    write_files(&place, 3, 3 * MIB);
    let wanted = Tree::read(&place.path("data"));
    let id = place.backup("data");
    fs::write(place.path("data/new"), noise(9, 5 * MIB)).expect("a file");
    let (data, target) = (place.text("data"), place.text("target"));
    let (mut died, mut ended) = (0, 0);
    for mebibytes in [24, 48, 64, 80, 96, 128, 160, 200, 300, 400] {
        let jobs: [&[&str]; 4] = [
            &["backup", &data, "--settle", "0"],
            &["restore", &id, "--target", &target],
            &["verify", "--read-data"],
            &["prune", "--max-unused", "0", "--delete-delay", "0"],
        ];
        for arguments in jobs {
            let why = format!("{arguments:?} in {mebibytes} MiB");
            let command = place.command(&[arguments, &["--threads", "2"]].concat());
            let output = after(&format!("ulimit -v {}", mebibytes * 1024), &command).output().expect("a shell");
            match output.status.code() {
                Some(0) if arguments[0] == "restore" => {
                    Tree::read(&place.path("target")).assert_is(&wanted, &why);
                    ended += 1;
                }
                Some(0) => ended += 1,
                Some(5) => panic!("{why}: nothing is damaged: {}", said(&output)),
                _ => died += 1,
            }
            let _ = fs::remove_dir_all(place.path("target"));
        }
        assert!(place.snapshots().contains(&id), "{mebibytes} MiB");
    }
    assert_restores(&place, &id, &wanted, "after runs without memory");
    place.backup("data");
    expect(place.command(&["prune", "--max-unused", "0", "--delete-delay", "0"]), 0);
    expect(place.command(&["verify", "--read-data"]), 0);
    say(&format!("environment: {died} runs died of memory, {ended} had enough"));
    assert!(died >= 4, "some have to die: {died}");
}

/// Shifts what the C library says the time is.
const CLOCK: &str = r#"#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    const char *shift = getenv("CKPT_TEST_CLOCK_SHIFT");
    if (result == 0 && clock == CLOCK_REALTIME && shift) now->tv_sec += atoll(shift);
    return result;
}
"#;

#[test]
fn a_clock_that_is_ten_years_off_loses_nothing() {
    let check = "a_clock_that_is_ten_years_off_loses_nothing";
    let place = Place::with_repository();
    let (source, library) = (place.text("clock.c"), place.text("clock.so"));
    fs::write(&source, CLOCK).expect("written");
    if !runs("gcc", &["-shared", "-fPIC", "-O1", "-o", &library, &source]) {
        return not_run(check, "gcc is missing");
    }
    const TEN_YEARS: i64 = 315_576_000;
    let at = |shift: i64, arguments: &[&str]| {
        let mut command = place.command(arguments);
        command.env("LD_PRELOAD", &library).env("CKPT_TEST_CLOCK_SHIFT", shift.to_string());
        expect(command, 0).0
    };
    let data = place.text("data");
    let mut saved: Vec<(String, Tree)> = Vec::new();
    for (turn, shift) in [0, TEN_YEARS, -TEN_YEARS, 0, -TEN_YEARS, TEN_YEARS].into_iter().enumerate() {
        write_files(&place, 3, 200_000 + turn * 10_000);
        at(shift, &["backup", &data, "--settle", "0"]);
        let known: Vec<String> = saved.iter().map(|(id, _)| id.clone()).collect();
        let id = place.snapshots().into_iter().find(|id| !known.contains(id)).expect("a new snapshot");
        saved.push((id, Tree::read(&place.path("data"))));
        // The next one finds everything unchanged or reads it; either is right.
        if turn >= 2 {
            let (gone, _) = saved.remove(turn % 2);
            at(-shift, &["forget", &gone]);
            at(shift, &["prune", "--max-unused", "0", "--delete-delay", "0"]);
            at(-shift, &["prune", "--max-unused", "0", "--delete-delay", "0"]);
        }
        for (id, wanted) in &saved {
            assert_restores(&place, id, wanted, &format!("turn {turn}, shift {shift}"));
        }
    }
    let listed = place.succeed(&["snapshots", "--json"]);
    // The document itself is of today.
    let years: Vec<i64> = listed
        .match_indices("\"started\":")
        .filter_map(|(at, _)| listed[at + 10..].trim_start_matches([' ', '"']).get(..4)?.parse().ok())
        .collect();
    let spread = years.iter().max().zip(years.iter().min()).map(|(max, min)| max - min);
    assert!(spread.is_some_and(|years| years >= 10), "the clock was not shifted: {listed}");
    expect(place.command(&["verify", "--read-data"]), 0);
}

fn is_running(child: &mut std::process::Child) -> bool {
    child.try_wait().expect("ours").is_none()
}

fn signal(child: &std::process::Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).expect("ours, and not waited for yet");
}

#[test]
fn a_run_waits_for_a_frozen_file_system_and_goes_on_or_ends_by_a_signal() {
    let check = "a_run_waits_for_a_frozen_file_system_and_goes_on_or_ends_by_a_signal";
    let place = Place::new();
    let Some(disk) = Mounted::new(&place, "repository", 48 << 20, &["-m", "0"], check) else { return };
    let at = disk.at.to_str().expect("text").to_owned();
    expect(place.command(&["init"]), 0);
    write_files(&place, 4, 2 * MIB);
    let first = place.backup("data");
    let wanted = Tree::read(&place.path("data"));
    for interrupts in [0, 1, 2] {
        fs::write(place.path("data/0"), noise(100 + interrupts, 2 * MIB)).expect("a file");
        if !runs("fsfreeze", &["-f", &at]) {
            return not_run(check, "file systems cannot be frozen here");
        }
        let mut command = place.command(&["backup", &place.text("data"), "--settle", "0"]);
        let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
        let begun = Instant::now();
        let mut sent = 0;
        while begun.elapsed() < Duration::from_millis(1500) {
            assert!(is_running(&mut child), "it waits");
            if sent < interrupts && begun.elapsed() > Duration::from_millis(500 * (sent + 1)) {
                signal(&child, rustix::process::Signal::INT);
                sent += 1;
                // What the kernel itself does not give up ends with the thaw.
                if sent == 2 {
                    break;
                }
            }
            std::thread::yield_now();
        }
        assert!(runs("fsfreeze", &["-u", &at]));
        let output = child.wait_with_output().expect("it ends");
        let wanted_code = if interrupts == 0 { 0 } else { 130 };
        assert_eq!(output.status.code(), Some(wanted_code), "{interrupts} signals: {}", said(&output));
        assert_restores(&place, &first, &wanted, "after a frozen run");
        let id = place.backup("data");
        assert_restores(&place, &id, &Tree::read(&place.path("data")), "the next run");
    }
}

const BLOCK_BYTES: usize = 64 << 10;
const BLOCKS: u64 = 96;

fn block(version: u8) -> Vec<u8> {
    vec![version; BLOCK_BYTES]
}

/// Changes the files without a pause until told to end; returns how often each was changed.
fn keep_changing(data: &Path, is_over: &AtomicBool) -> u64 {
    let open = |name: &str| fs::File::options().read(true).write(true).open(data.join(name)).expect("a file");
    let mut version = 1u8;
    let mut changes = 0;
    while !is_over.load(Ordering::Relaxed) {
        version = version.wrapping_add(1);
        let (rewritten, cut) = (open("rewritten"), open("cut"));
        for number in 0..BLOCKS {
            rewritten.write_all_at(&block(version), number * BLOCK_BYTES as u64).expect("written");
            if is_over.load(Ordering::Relaxed) {
                break;
            }
        }
        cut.set_len(BLOCK_BYTES as u64).expect("cut");
        cut.set_len(BLOCKS * BLOCK_BYTES as u64 / 8).expect("made longer");
        fs::File::options()
            .append(true)
            .open(data.join("log"))
            .and_then(|mut f| f.write_all(&[version; 100]))
            .expect("appended");
        fs::write(data.join("beside"), block(version).repeat(4)).expect("a file");
        fs::rename(data.join("beside"), data.join("replaced")).expect("renamed");
        let _ = fs::remove_file(data.join("passing"));
        fs::write(data.join("passing"), block(version)).expect("a file");
        changes += 1;
    }
    changes
}

#[test]
fn a_file_that_changes_while_it_is_read_is_whole_or_marked() {
    let place = Place::with_repository();
    fs::create_dir(place.path("data")).expect("a folder");
    let data = place.path("data");
    let whole = block(1).repeat(usize::try_from(BLOCKS).expect("small"));
    fs::write(data.join("rewritten"), &whole).expect("a file");
    fs::write(data.join("cut"), &whole[..whole.len() / 8]).expect("a file");
    fs::write(data.join("log"), b"begun").expect("a file");
    fs::write(data.join("replaced"), block(1).repeat(4)).expect("a file");
    fs::write(data.join("still"), noise(1, MIB)).expect("a file");
    let (mut torn, mut marked) = (0, 0);
    for turn in 0..3 {
        let is_over = AtomicBool::new(false);
        let (output, changes) = std::thread::scope(|scope| {
            let writer = scope.spawn(|| keep_changing(&data, &is_over));
            // A second for the big file: long enough that nothing can stand still meanwhile.
            let arguments = ["backup", data.to_str().expect("text"), "--settle", "0", "--limit-read", "6MB"];
            let output = place.run(&arguments);
            is_over.store(true, Ordering::Relaxed);
            (output, writer.join().expect("it changes files"))
        });
        let why = format!("turn {turn}, {changes} changes: {}", said(&output));
        assert!(changes > 0, "{why}");
        assert!(matches!(output.status.code(), Some(0 | 3)), "{why}");
        let target = place.path("target");
        expect(place.command(&["restore", "latest", "--target", target.to_str().expect("text")]), 0);
        let read = |name: &str| fs::read(target.join(name)).unwrap_or_default();
        assert_eq!(read("still"), noise(1, MIB), "{why}");
        let is_uniform = |bytes: &[u8]| bytes.windows(2).all(|pair| pair[0] == pair[1]);
        for (name, is_whole) in [
            ("rewritten", is_uniform(&read("rewritten")) && read("rewritten").len() == whole.len()),
            ("replaced", is_uniform(&read("replaced")) && read("replaced").len() == 4 * BLOCK_BYTES),
        ] {
            let is_marked = output.status.code() == Some(3) && said(&output).contains(name);
            assert!(is_whole || is_marked, "{name} is torn and nobody was told: {why}");
            torn += u64::from(!is_whole);
            marked += u64::from(is_marked);
        }
        fs::remove_dir_all(&target).expect("removed");
    }
    say(&format!("environment: {torn} files torn by their writer, {marked} marked"));
    assert!(marked >= 1, "the writer has to be met");
    // Once it is quiet, everything is saved as it is.
    let id = place.backup("data");
    assert_restores(&place, &id, &Tree::read(&data), "the source at rest");
}

#[test]
fn a_stopped_backup_does_not_let_a_prune_take_what_it_relies_on() {
    let place = Place::with_repository();
    write_files(&place, 6, MIB);
    let first = place.backup("data");
    (0..3u64).for_each(|n| fs::write(place.path(&format!("data/new-{n}")), noise(50 + n, MIB)).expect("a file"));
    let mut command = place.command(&["backup", &place.text("data"), "--settle", "0", "--limit-read", "2MB"]);
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the program starts");
    let transactions = place.path("repository/transactions");
    let is_announced = |entry: fs::DirEntry| !entry.file_name().to_string_lossy().starts_with("tmp-");
    let is_begun = || fs::read_dir(&transactions).is_ok_and(|within| within.flatten().any(is_announced));
    while !is_begun() {
        assert!(is_running(&mut child), "it begins before it ends");
        std::thread::yield_now();
    }
    // Asleep, as on a host that is suspended, while others forget and prune.
    signal(&child, rustix::process::Signal::STOP);
    expect(place.command(&["forget", &first]), 0);
    for _ in 0..2 {
        let output = place.run(&["prune", "--max-unused", "0", "--delete-delay", "0"]);
        assert!(matches!(output.status.code(), Some(0 | 11)), "{}", said(&output));
    }
    signal(&child, rustix::process::Signal::CONT);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.signal().is_none(), "{:?}", output.status);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let id = place.snapshots().pop().expect("a snapshot");
    assert_restores(&place, &id, &Tree::read(&place.path("data")), "after its sleep");
    expect(place.command(&["prune", "--max-unused", "0", "--delete-delay", "0"]), 0);
    expect(place.command(&["verify", "--read-data"]), 0);
}
