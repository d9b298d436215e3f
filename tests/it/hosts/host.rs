//! One host: a source of its own that changes, an index of its own that it may lose, a clock that jumps, and what it runs.

use super::ledger::Ledger;
use super::turns::Turns;
use crate::support::keys::KeysOf;
use crate::support::runs;
use crate::support::trees::Tree;
use crate::support::weights::{Tensor, narrow, safetensors, trained, weights};
use crate::support::{Chance, noise};
use ckpt::error::{Error, Kind, Result};
use ckpt::events::Silent;
use ckpt::ids::SnapshotId;
use ckpt::metadata::FileTime;
use ckpt::ops::backup::{BackupOptions, Input, backup};
use ckpt::ops::forget::{ForgetOptions, forget};
use ckpt::ops::prune::{MaxUnused, PruneOptions, prune};
use ckpt::ops::verify::{Subset, VerifyOptions, verify};
use ckpt::repo::audit::Actor;
use ckpt::repo::keys::Role;
use ckpt::repo::records::WriterRecord;
use ckpt::repo::snapshots::{Narrow, Snapshot};
use ckpt::repo::{Cache, Repo};
use ckpt::storage::simulated::SimulatedStorage;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

const TEN_YEARS: u64 = 10 * 365 * 86_400;
/// Versions of each tensor.
const VERSIONS: u64 = 4;

/// What all hosts of a history share.
pub struct Shared<'a> {
    pub seed: u64,
    pub storage: SimulatedStorage,
    /// True if everything is sealed; then hosts have roles.
    pub is_encrypted: bool,
    pub turns: &'a Turns,
    pub ledger: &'a Mutex<Ledger>,
    /// Snapshots whose backups have reported success.
    pub reported: &'a Mutex<BTreeSet<SnapshotId>>,
}

/// A host.
pub struct Host {
    number: usize,
    folder: PathBuf,
    chance: Chance,
    changes: u64,
}

/// The bytes of a tensor that moves a little with each version: made once, since that takes longer than to back it up.
fn tensor(family: u64, version: u64) -> &'static [u8] {
    static MADE: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    let make = || {
        let file = |numbers: &[f32]| safetensors(&[Tensor::new("w", "BF16", narrow(numbers))], 0);
        let versions = |family| {
            let first = weights(family, 8_000);
            (0..VERSIONS).map(move |v| file(&if v == 0 { first.clone() } else { trained(&first, v) }))
        };
        (0..2).flat_map(versions).collect()
    };
    &MADE.get_or_init(make)[usize::try_from(family * VERSIONS + version).expect("small")]
}

impl Host {
    pub fn new(number: usize, folder: &Path, seed: u64) -> Host {
        let folder = folder.join(format!("host-{number}"));
        fs::create_dir_all(folder.join("source")).expect("a folder");
        Host { number, folder, chance: Chance(seed ^ (number as u64 + 1) << 32), changes: 0 }
    }

    fn source(&self) -> PathBuf {
        self.folder.join("source")
    }

    /// Some steps away from what it was, to content that others have as well.
    fn change_source(&mut self) {
        for _ in 0..=self.chance.below(3) {
            self.changes += 1;
            let name = ["a", "b", "sub/c", "w.safetensors"][self.chance.index(4)];
            let place = self.source().join(name);
            fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
            if self.chance.below(6) == 0 {
                let _ = fs::remove_file(&place);
                continue;
            }
            let content = match name {
                "w.safetensors" => tensor(self.chance.below(2), self.chance.below(VERSIONS)).to_vec(),
                _ => noise(self.chance.below(6), 3_000 + 9_000 * self.chance.index(3)),
            };
            fs::write(&place, content).expect("a file");
            // Changes follow each other faster than the clock of the file system ticks.
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + 100 * self.changes);
            let file = fs::File::options().write(true).open(&place).expect("a file");
            file.set_modified(time).expect("a time");
        }
    }

    /// What the clock of this host says: anything within ten years of the right time.
    fn clock(&mut self) -> FileTime {
        let right = 1_700_000_000;
        let seconds = match self.chance.below(3) {
            0 => right,
            _ => {
                right - i64::try_from(TEN_YEARS).expect("small")
                    + i64::try_from(self.chance.below(2 * TEN_YEARS)).expect("small")
            }
        };
        FileTime { seconds, nanoseconds: 0 }
    }

    /// Of an encrypted repository few hosts have all keys.
    fn role(&self, shared: &Shared<'_>) -> Role {
        let roles = [Role::Admin, Role::Put, Role::Prune, Role::Put, Role::Read];
        if shared.is_encrypted { roles[self.number % roles.len()] } else { Role::Admin }
    }

    /// True if the host's role allows it; only the structure is verified by a role that reads lists alone.
    fn may(&self, shared: &Shared<'_>, what: &str) -> bool {
        match self.role(shared) {
            Role::Put => what == "backup",
            Role::Read => what == "restore" || what == "verify",
            Role::Prune => what != "restore" && what != "verify",
            Role::Admin => true,
        }
    }

    /// Hosts share three machines.
    fn writer(&self, now: FileTime) -> WriterRecord {
        WriterRecord { host: format!("machine-{}", self.number % 3), ..WriterRecord::of_this_process(now) }
    }

    fn cache(&mut self) -> Cache {
        if !self.number.is_multiple_of(3) {
            return Cache::Memory;
        }
        let folder = self.folder.join("cache");
        if self.chance.below(5) == 0 {
            let _ = fs::remove_dir_all(&folder);
        }
        Cache::Folder(folder)
    }

    /// Runs one process after the other.
    pub fn work(&mut self, shared: &Shared<'_>, processes: u64) {
        for _ in 0..processes {
            let process = shared.storage.another_host();
            if !shared.turns.begin(self.number, &process) {
                return;
            }
            if self.chance.below(8) == 0 {
                process.crash_at(self.chance.below(120));
            }
            let (what, result) = self.run(shared, &process);
            shared.turns.end(self.number);
            let how = match &result {
                _ if process.is_dead() => "killed".to_owned(),
                Ok(how) => (*how).to_owned(),
                Err(error) => format!("{:?}", error.kind()),
            };
            shared.ledger.lock().expect("no panic").count(format!("{what}: {how}"));
            let why = format!("seed {}: {what} of host {}", shared.seed, self.number);
            match result {
                Err(error) if error.kind() == Kind::WrongKey => assert!(!self.may(shared, what), "{why}: {error}"),
                Err(error) if !process.is_dead() && !is_expected(what, &error) => {
                    panic!("{why}: {error} ({:?}, {:?})", error.kind(), error.hint())
                }
                _ => {}
            }
            if what == "prune" || self.chance.below(6) == 0 {
                shared.ledger.lock().expect("no panic").check(&shared.storage, &format!("after {why}"));
            }
        }
    }

    fn run(&mut self, shared: &Shared<'_>, process: &SimulatedStorage) -> (&'static str, Result<&'static str>) {
        let cache = self.cache();
        let what = ["backup", "backup", "backup", "backup", "prune", "prune", "forget", "restore", "verify"];
        let what = what[self.chance.index(what.len())];
        let keys = KeysOf(self.role(shared));
        let repo = match Repo::open_storage_with(Arc::new(process.clone()), &cache, &keys, &Silent) {
            Ok(repo) => repo,
            Err(error) => return (what, Err(error)),
        };
        let result = match what {
            "backup" => self.back_up(shared, &repo),
            "prune" => self.prune(&repo),
            "forget" => self.forget(shared, &repo),
            "restore" => self.restore(shared, &repo, process),
            _ => self.verify(shared, &repo, process),
        };
        (what, result)
    }

    fn back_up(&mut self, shared: &Shared<'_>, repo: &Repo) -> Result<&'static str> {
        self.change_source();
        let tag = shared.ledger.lock().expect("no panic").begin(Tree::read(&self.source()));
        let now = self.clock();
        let clock = move || now;
        let options = BackupOptions {
            host: format!("host-{}", self.number % 3),
            source: Some("shared".to_owned()),
            tags: vec![tag.clone()],
            started: now,
            now: &clock,
            writer: self.writer(now),
            ..runs::backup_options(1)
        };
        let report = backup(repo, Input::Paths(vec![self.source()]), &options, &Silent)?;
        assert!(report.problems.is_empty(), "seed {}: {:?}", shared.seed, report.problems);
        let id = report.snapshot.expect("a snapshot was made");
        shared.reported.lock().expect("no panic").insert(id);
        shared.ledger.lock().expect("no panic").save(id, &tag);
        Ok(if report.retried_after_revocation { "saved at the second attempt" } else { "saved" })
    }

    fn prune(&mut self, repo: &Repo) -> Result<&'static str> {
        let now = self.clock();
        let usual = runs::prune_options();
        // All writers are this process: whoever on their machine says to be it takes them for dead, process 1 for living.
        let process = [std::process::id(), 1][self.chance.index(2)];
        let writer = WriterRecord { process, ..self.writer(now) };
        let max_unused = [MaxUnused::Bytes(0), MaxUnused::Percent(30.0), MaxUnused::Unlimited][self.chance.index(3)];
        let dry_run = self.chance.below(10) == 0;
        let delete_delay = Duration::from_secs([0, 72 * 3600][self.chance.index(2)]);
        let silence = Duration::from_secs([0, 3600][self.chance.index(2)]);
        let options = PruneOptions { now, writer, max_unused, dry_run, delete_delay, silence, ..usual };
        let report = prune(repo, &options, &Silent)?;
        Ok(match (report.packs_deleted + report.packs_repacked, report.packs_removed) {
            _ if dry_run => "tried",
            (0, 0) => "nothing to do",
            (_, 0) => "decided",
            _ => "deleted",
        })
    }

    fn any_snapshot(&mut self, repo: &Repo) -> Option<Snapshot> {
        let mut live = repo.snapshots();
        (!live.is_empty()).then(|| live.swap_remove(self.chance.index(live.len())))
    }

    fn forget(&mut self, shared: &Shared<'_>, repo: &Repo) -> Result<&'static str> {
        let Some(snapshot) = self.any_snapshot(repo) else { return Ok("nothing there") };
        shared.ledger.lock().expect("no panic").doom(snapshot.id);
        let options = ForgetOptions {
            ids: vec![snapshot.id],
            policy: None,
            narrow: Narrow::default(),
            dry_run: false,
            actor: Actor { host: "host".to_owned(), process: 1, user: 0 },
            now: self.clock(),
            time_zone: jiff::tz::TimeZone::UTC,
        };
        forget(repo, &options, &Silent).map(|_| "forgotten")
    }

    /// Right bytes, or an error that says what is missing, and that only if the snapshot was forgotten meanwhile.
    fn restore(&mut self, shared: &Shared<'_>, repo: &Repo, process: &SimulatedStorage) -> Result<&'static str> {
        let Some(snapshot) = self.any_snapshot(repo) else { return Ok("nothing there") };
        let target = self.folder.join("target");
        let restored = runs::restore(repo, &snapshot, &target);
        let found = target.is_dir().then(|| Tree::read(&target));
        let _ = fs::remove_dir_all(&target);
        let ledger = shared.ledger.lock().expect("no panic");
        let report = match restored {
            Err(error) if ledger.is_doomed(snapshot.id) && error.kind() == Kind::Damaged => {
                return Ok("forgotten meanwhile");
            }
            other => other?,
        };
        if process.is_dead() {
            return Ok("killed");
        }
        if !report.damaged.is_empty() || !report.failed.is_empty() {
            let why = format!("seed {}: restore of {}: {report:?}", shared.seed, snapshot.id);
            assert!(ledger.is_doomed(snapshot.id), "{why}");
            return Ok("forgotten meanwhile");
        }
        let why = format!("seed {}: restore of {}", shared.seed, snapshot.id);
        found.expect("a target").assert_is(ledger.wanted(&snapshot), &why);
        Ok("restored")
    }

    /// Nothing is damaged, whatever runs beside it.
    fn verify(&mut self, shared: &Shared<'_>, repo: &Repo, process: &SimulatedStorage) -> Result<&'static str> {
        let read_data = (self.chance.below(2) == 0).then_some(Subset::All);
        let options = VerifyOptions { read_data, resources: runs::resources(1), now: self.clock() };
        let report = verify(repo, &options, &Silent)?;
        if !process.is_dead() {
            assert_eq!(report.damage_count, 0, "seed {}: verify: {:?}", shared.seed, report.damage);
        }
        Ok("sound")
    }
}

/// What may befall a run that nobody has killed: that it has to wait, or has lost its name, or has slept over a small record
/// until two prunes had met it unfinished.
fn is_expected(what: &str, error: &Error) -> bool {
    match error.kind() {
        Kind::Busy => what == "backup" || what == "prune",
        Kind::Unreachable => error.to_string().contains("temporary file has been taken away"),
        _ => false,
    }
}
