//! The program under faults of single system calls: SIGKILL, EIO, ENOSPC and others at the n-th call of each kind.
//!
//! Each case begins with a copy of the same small repository, runs one command under strace with one fault, and looks at what
//! is there afterwards: all committed snapshots bit by bit, the new one whole or absent, the exit code, the object in the
//! message, no descriptor synced again after it failed, and the next runs, which succeed without a hand.
//! Cases are spread over all kinds of calls and over the whole run. `CKPT_TEST_SYSCALLS` says how many;
//! `CKPT_TEST_SEED` moves them. A case counts as hit if its log shows the fault.

use crate::support::program::{Place, expect};
use crate::support::strace::{self, Call, Fault, Injection};
use crate::support::trees::Tree;
use crate::support::weights::{Tensor, narrow, safetensors, weights};
use crate::support::{Chance, in_parallel, noise, not_run, runs, say, seed, setting};
use ckpt::events::Silent;
use ckpt::repo::{Cache, Repo};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What is run under faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Job {
    Init,
    Backup,
    Forget,
    Tag,
    Prune,
    Restore,
    Verify,
}

const JOBS: [Job; 7] = [Job::Init, Job::Backup, Job::Forget, Job::Tag, Job::Prune, Job::Restore, Job::Verify];

/// Whose file a call was about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whose {
    Repository,
    Cache,
    Source,
    Target,
    Other,
}

/// The repository that every case begins with, and what it holds.
struct Base {
    place: Place,
    /// All snapshots; the first of them is the one to be forgotten.
    saved: Vec<(String, Tree)>,
    /// The source as it is now.
    source: Tree,
}

impl Base {
    fn new() -> Base {
        let place = Place::in_memory();
        place.succeed(&["init"]);
        fs::create_dir_all(place.path("data/folder")).expect("folders");
        let tensor = |seed: u64| safetensors(&[Tensor::new("w", "BF16", narrow(&weights(seed, 100_000)))], 0);
        fs::write(place.path("data/w.safetensors"), tensor(1)).expect("a file");
        fs::write(place.path("data/folder/big"), noise(2, 2_300_000)).expect("a file");
        (0..4).for_each(|n| fs::write(place.path(&format!("data/folder/{n}")), noise(n, 9_000)).expect("a file"));
        std::os::unix::fs::symlink("folder/0", place.path("data/link")).expect("a link");
        // One more that is forgotten now, so that a prune has work.
        fs::write(place.path("data/gone"), noise(5, 1_500_000)).expect("a file");
        let first = place.backup("data");
        fs::remove_file(place.path("data/gone")).expect("removed");
        fs::write(place.path("data/folder/1"), noise(11, 60_000)).expect("a file");
        let mut saved = vec![(place.backup("data"), Tree::read(&place.path("data")))];
        fs::write(place.path("data/folder/2"), noise(12, 70_000)).expect("a file");
        saved.push((place.backup("data"), Tree::read(&place.path("data"))));
        place.succeed(&["forget", &first]);
        fs::write(place.path("data/folder/3"), noise(13, 300_000)).expect("a file");
        fs::write(place.path("data/new"), noise(14, 1_200_000)).expect("a file");
        let source = Tree::read(&place.path("data"));
        Base { place, saved, source }
    }

    fn data(&self) -> String {
        self.place.text("data")
    }

    /// A place of its own with a copy of the repository and its index.
    fn copy(&self, job: Job) -> Place {
        let copy = Place::in_memory();
        if job != Job::Init {
            let (repository, cache) = (self.place.path("repository"), self.place.path("cache"));
            expect(command_of("cp", &["-a", text(&repository), text(&cache), &copy.text("")]), 0);
        }
        copy
    }

    fn command(&self, job: Job, place: &Place) -> Command {
        let (data, target) = (self.data(), place.text("target"));
        let threads = ["--threads", "2"];
        let arguments: Vec<&str> = match job {
            Job::Init => vec!["init"],
            Job::Backup => vec!["backup", &data, "--settle", "0"],
            Job::Forget => vec!["forget", &self.saved[0].0],
            Job::Tag => vec!["tag", &self.saved[1].0, "--add", "kept"],
            Job::Prune => vec!["prune", "--max-unused", "0", "--delete-delay", "0"],
            Job::Restore => vec!["restore", &self.saved[1].0, "--target", &target],
            Job::Verify => vec!["verify", "--read-data"],
        };
        place.command(&[&arguments[..], &threads].concat())
    }

    /// The calls of a job without any fault, and where it ran.
    fn record(&self, job: Job) -> (Place, Vec<Call>) {
        let place = self.copy(job);
        let log = place.path("log");
        expect(strace::traced(&self.command(job, &place), &[], &log), 0);
        (place, strace::calls(&log))
    }

    fn folder(&self, place: &Place, whose: Whose) -> String {
        match whose {
            Whose::Repository => place.text("repository"),
            Whose::Cache => place.text("cache"),
            Whose::Source => self.place.text("data"),
            Whose::Target => place.text("target"),
            Whose::Other => String::new(),
        }
    }

    fn whose(&self, place: &Place, call: &Call) -> Whose {
        let all = [Whose::Repository, Whose::Cache, Whose::Source, Whose::Target];
        let found = all.into_iter().find(|&whose| call.text.contains(&self.folder(place, whose)));
        found.unwrap_or(Whose::Other)
    }
}

fn text(path: &std::path::Path) -> &str {
    path.to_str().expect("a path of text")
}

fn command_of(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

/// The kinds of faults, as often as they are to be met.
const FAULTS: [(Fault, bool); 11] = [
    (Fault::Kill, false),
    (Fault::Kill, false),
    (Fault::Kill, false),
    (Fault::Error("EIO"), false),
    (Fault::Error("EIO"), false),
    (Fault::Error("EIO"), true),
    (Fault::Error("ENOSPC"), false),
    (Fault::Error("ENOSPC"), true),
    (Fault::Error("ENOSPC"), true),
    (Fault::Error("ESTALE"), false),
    (Fault::Error("EINTR"), false),
];

/// True if a file system may answer this call with this error.
fn can_be(base: &Base, place: &Place, call: &Call, fault: Fault) -> bool {
    let whose = base.whose(place, call);
    let allocates =
        ["write", "pwrite64", "fsync", "fdatasync", "syncfs", "ftruncate", "fallocate", "renameat", "renameat2"];
    let creates = ["linkat", "mkdir", "mkdirat", "symlinkat"];
    let name = call.name.as_str();
    let is_kind = match fault {
        Fault::Kill => true,
        Fault::Error("ENOSPC") => allocates.contains(&name) || creates.contains(&name) || call.text.contains("O_CREAT"),
        // Whether it was closed is unknown after an interruption; nobody may do it again.
        Fault::Error("EINTR") => whose == Whose::Repository && name != "close",
        Fault::Error("ESTALE") => whose != Whose::Cache,
        Fault::Error(_) => true,
    };
    is_kind && whose != Whose::Other
}

/// So many cases, spread over jobs, kinds of faults and the places where they can be.
fn choose(base: &Base, count: u64) -> Vec<(Job, Injection)> {
    let mut chance = Chance(seed());
    let mut strata = Vec::new();
    for job in JOBS {
        let (place, calls) = base.record(job);
        for (fault, is_lasting) in FAULTS {
            let found = strace::numbers(&calls, |call| can_be(base, &place, call, fault));
            let flat = found.iter().flat_map(|(call, numbers)| numbers.iter().map(move |&number| (call, number)));
            let all: Vec<(Job, Injection)> =
                flat.map(|(call, number)| (job, Injection { call: call.clone(), fault, number, is_lasting })).collect();
            strata.push(all);
        }
    }
    strata.retain(|stratum| !stratum.is_empty());
    let each = count.div_ceil(strata.len() as u64);
    let mut chosen = Vec::new();
    for turn in 0..each {
        for stratum in &strata {
            // One at a random place of each part of the stratum.
            let (from, to) = (stratum.len() as u64 * turn / each, stratum.len() as u64 * (turn + 1) / each);
            let at = (from + chance.below((to - from).max(1))) as usize;
            chosen.push(stratum[at.min(stratum.len() - 1)].clone());
        }
    }
    chosen.truncate(count as usize);
    chosen
}

/// What a run under a fault left behind.
struct Aftermath<'a> {
    base: &'a Base,
    job: Job,
    place: Place,
    injection: &'a Injection,
    output: Output,
    calls: Vec<Call>,
    why: String,
}

impl Aftermath<'_> {
    fn of<'a>(base: &'a Base, job: Job, injection: &'a Injection) -> Aftermath<'a> {
        let place = base.copy(job);
        let log = place.path("log");
        let command = strace::traced(&base.command(job, &place), std::slice::from_ref(injection), &log);
        let output = strace::limited(&command, 100).output().expect("strace starts");
        let why = format!("seed {}, {job:?}, {injection:?}: {:?}, {}", seed(), output.status, said(&output));
        Aftermath { base, job, place, injection, calls: strace::calls(&log), output, why }
    }

    fn is_killed(&self) -> bool {
        self.output.status.signal() == Some(9)
    }

    fn injected(&self) -> impl Iterator<Item = &Call> {
        self.calls.iter().filter(|call| call.is_injected)
    }

    fn is_hit(&self) -> bool {
        self.is_killed() || self.injected().next().is_some()
    }

    fn is_done(&self) -> bool {
        self.output.status.code() == Some(0)
    }

    fn check_ending(&self) {
        let why = &self.why;
        if self.injection.fault == Fault::Kill {
            return assert!(self.is_killed() || self.is_done(), "{why}");
        }
        let code = self.output.status.code().unwrap_or_else(|| panic!("{why}"));
        // The standard library's listing of directories panics if closing one fails, which no file system lets it. The
        // repository is listed without it.
        let is_of_closing =
            |call: &Call| call.name == "close" && self.base.whose(&self.place, call) != Whose::Repository;
        if self.injected().any(is_of_closing) {
            return;
        }
        assert_ne!(code, 101, "a panic: {why}");
        let whose: BTreeSet<Whose> = self.injected().map(|call| self.base.whose(&self.place, call)).collect();
        let mut allowed = BTreeSet::from([0]);
        for &whose in &whose {
            allowed.extend(self.allowed(whose));
        }
        // Faults of the loader are its own.
        assert!(whose.contains(&Whose::Other) || allowed.contains(&code), "{allowed:?} are allowed: {why}");
        if code == 0 || whose.contains(&Whose::Other) {
            return;
        }
        let said = said(&self.output);
        let names: Vec<String> = whose.iter().map(|&whose| self.base.folder(&self.place, whose)).collect();
        assert!(names.iter().any(|name| said.contains(name)), "one of {names:?} is to be named: {why}");
        if code == 14 {
            assert!(!said.contains("source"), "the source has nothing to do with it: {why}");
        }
    }

    fn allowed(&self, whose: Whose) -> Vec<i32> {
        let is_read = matches!(self.job, Job::Restore | Job::Verify);
        match (whose, self.injection.fault) {
            (Whose::Repository, Fault::Error("EINTR")) => vec![],
            (Whose::Repository, Fault::Error("ENOSPC")) => vec![14],
            // What cannot be read is damage to those who read, who go on with the rest and list it.
            (Whose::Repository, _) if is_read => vec![13, 5],
            (Whose::Repository, _) => vec![13],
            // SQLite has words of its own, and those who read cannot tell a chunk that is not found from a damaged one.
            (Whose::Cache, _) if is_read => vec![1, 5, 13, 14, 17],
            (Whose::Cache, _) => vec![1, 13, 14, 17],
            // Nothing is saved if nothing could be read.
            (Whose::Source, _) => vec![3, 1],
            (Whose::Target, Fault::Error("ENOSPC")) => vec![14],
            (Whose::Target, _) => vec![1, 13],
            (Whose::Other, _) => vec![],
        }
    }

    /// A kernel that failed to write a page back may report the next sync of that descriptor as a success.
    fn check_syncs(&self) {
        let mut failed: BTreeSet<&str> = BTreeSet::new();
        for call in &self.calls {
            // Number and path of the descriptor.
            let Some(descriptor) = call.text.split_inclusive('>').next() else { continue };
            let is_sync = matches!(call.name.as_str(), "fsync" | "fdatasync" | "sync_file_range" | "syncfs");
            if call.name == "close" {
                failed.remove(descriptor);
            } else if is_sync && self.base.whose(&self.place, call) != Whose::Cache {
                assert!(!failed.contains(descriptor), "{descriptor} is synced again: {}", self.why);
                // Interrupted is not failed: nothing was lost.
                if call.is_injected && self.injection.fault != Fault::Error("EINTR") {
                    failed.insert(descriptor);
                }
            }
        }
    }

    /// What is there now, and what the run reported.
    fn check_repository(&self) {
        let (place, why) = (&self.place, &self.why);
        if self.job == Job::Init {
            let again = place.run(&["init"]);
            let code = again.status.code();
            let is_there = code == Some(1) && said(&again).contains("is a repository already");
            assert!(code == Some(0) || is_there, "{}: {why}", said(&again));
            assert!(!self.is_done() || is_there, "a success that is not there: {why}");
            expect(place.command(&["snapshots"]), 0);
            return;
        }
        let repo = self.open();
        let listed = repo.snapshots();
        let mut missing: Vec<usize> = (0..self.base.saved.len()).collect();
        let mut more = 0;
        for snapshot in &listed {
            let known = self.base.saved.iter().position(|(id, _)| *id == snapshot.id.to_string());
            missing.retain(|&at| Some(at) != known);
            more += usize::from(known.is_none());
            let wanted = known.map_or(&self.base.source, |at| &self.base.saved[at].1);
            let found = runs::contents(&repo, snapshot).unwrap_or_else(|e| panic!("{e}: {why}"));
            if known.is_some() || self.output.status.code() != Some(3) {
                found.assert_is(wanted, why);
            } else {
                assert_part_of(&found, wanted, why);
            }
        }
        let (is_backup, is_forget) = (self.job == Job::Backup, self.job == Job::Forget);
        assert!(missing.is_empty() || (is_forget && missing == [0]), "snapshots {missing:?} are lost: {why}");
        assert!(more <= usize::from(is_backup), "{more} unknown snapshots: {why}");
        let is_saved = self.is_done() || self.output.status.code() == Some(3);
        assert!(!is_backup || !is_saved || more == 1, "a success that is not there: {why}");
        assert!(!is_forget || !self.is_done() || missing == [0], "a success that is not there: {why}");
        if self.job == Job::Tag && self.is_done() {
            let tagged = listed.iter().find(|snapshot| snapshot.id.to_string() == self.base.saved[1].0);
            assert!(tagged.is_some_and(|s| s.tags.contains("kept")), "a success that is not there: {why}");
        }
    }

    fn open(&self) -> Repo {
        let location = self.place.text("repository");
        Repo::open(&location, &Cache::Memory, &Silent).unwrap_or_else(|e| panic!("{e}: {}", self.why))
    }

    /// The next runs do what they are for, with the index that the faulty one left.
    fn check_goes_on(&self) {
        let (place, why) = (&self.place, &self.why);
        let run = |command: Command| {
            let mut command = command;
            let output = command.output().expect("the program starts");
            assert_eq!(output.status.code(), Some(0), "{command:?}: {}: {why}", said(&output));
        };
        if self.job == Job::Restore {
            let target = place.path("target");
            if self.is_done() {
                Tree::read(&target).assert_is(&self.base.saved[1].1, why);
            }
            run(self.base.command(Job::Restore, place));
            let mut found = Tree::read(&target);
            // A link is made under a random name: a kill before its renaming leaves that beside it.
            found.entries.retain(|path, _| !path.ends_with(b".ckpt-part"));
            found.assert_is(&self.base.saved[1].1, why);
        }
        run(self.base.command(Job::Backup, place));
        run(self.base.command(Job::Prune, place));
        let repo = self.open();
        let newest = repo.snapshots().pop().expect("a snapshot");
        runs::contents(&repo, &newest).unwrap_or_else(|e| panic!("{e}: {why}")).assert_is(&self.base.source, why);
        let verified = runs::verify_all(&repo).unwrap_or_else(|e| panic!("{e}: {why}"));
        // An `init` that ended between the copies of the parameters leaves fewer of them; verify says so, and one serves.
        let is_copy = |text: &str| self.job == Job::Init && text.contains("config/");
        let more: Vec<String> =
            verified.damage.iter().map(|d| format!("{d:?}")).filter(|text| !is_copy(text)).collect();
        assert!(more.is_empty(), "{more:?}: {why}");
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What is there is as it should be, and something may be left out.
fn assert_part_of(found: &Tree, wanted: &Tree, why: &str) {
    for (path, seen) in &found.entries {
        let wanted = wanted.entries.get(path).unwrap_or_else(|| panic!("{path:?} is invented: {why}"));
        assert_eq!(seen.content, wanted.content, "{path:?}: {why}");
    }
}

#[test]
fn a_fault_at_any_system_call_costs_nothing_that_was_committed() {
    let check = "a_fault_at_any_system_call_costs_nothing_that_was_committed";
    if let Some(reason) = strace::missing() {
        return not_run(check, reason);
    }
    let base = Base::new();
    let cases = choose(&base, setting("CKPT_TEST_SYSCALLS", 240));
    let hits: Mutex<BTreeMap<String, u64>> = Mutex::default();
    let failures = AtomicU64::new(0);
    let hit = in_parallel(cases.len() as u64, |number| {
        let (job, injection) = &cases[usize::try_from(number).expect("a small number")];
        let aftermath = Aftermath::of(&base, *job, injection);
        // All failures of a run are worth seeing; each has been printed by its panic.
        let checked = catch_unwind(AssertUnwindSafe(|| {
            aftermath.check_ending();
            aftermath.check_syncs();
            aftermath.check_repository();
            aftermath.check_goes_on();
        }));
        failures.fetch_add(u64::from(checked.is_err()), Ordering::Relaxed);
        if aftermath.is_hit() {
            let fault = match injection.fault {
                Fault::Kill => "SIGKILL",
                Fault::Error(code) => code,
            };
            *hits.lock().expect("no check panics with it").entry(fault.to_owned()).or_default() += 1;
        }
        u64::from(aftermath.is_hit())
    });
    let hits = hits.into_inner().expect("no check panics with it");
    say(&format!("syscalls: {hit} faults hit in {} cases, {hits:?}, seed {}", cases.len(), seed()));
    assert_eq!(failures.into_inner(), 0, "cases failed, each printed above");
    assert!(hit * 10 > cases.len() as u64 * 8, "most faults have to be met: {hit} of {}", cases.len());
}
