//! What every command needs: settings, streams, the clock, the repository.

use super::args::Global;
use super::cache;
use super::output::Output;
use super::progress::Reporter;
use super::secrets::{KeySource, Secrets};
use ckpt::error::{Error, Kind, Result};
use ckpt::events::Observer;
use ckpt::metadata::FileTime;
use ckpt::ops::Resources;
use ckpt::repo::keys::Unlock;
use ckpt::repo::unlock::SlotKeys;
use ckpt::repo::{Cache, Repo};
use jiff::Zoned;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// A run of a command.
pub struct Context {
    /// The options of every command.
    pub global: Global,
    /// Both streams.
    pub output: Arc<Output>,
    /// What the library reports to.
    pub reporter: Reporter,
    /// When the run began, in the user's time zone.
    pub now: Zoned,
    /// The same on the clock that only goes forward.
    pub began: Instant,
}

impl Context {
    /// Opens the repository with an index made anew: for what deletes by it.
    pub fn open_fresh(&self) -> Result<Repo> {
        self.open_by(Repo::open_fresh_with)
    }

    /// Opens the repository.
    pub fn open(&self) -> Result<Repo> {
        self.open_by(Repo::open_with)
    }

    fn open_by(&self, open: impl FnOnce(&str, &Cache, &dyn Unlock, &dyn Observer) -> Result<Repo>) -> Result<Repo> {
        let secrets = self.secrets()?;
        let slots = SlotKeys::new(&secrets, &self.reporter);
        let repo = open(&self.location()?, &self.cache()?, &slots, &self.reporter)?;
        repo.report_mended_to(self.reporter.warnings());
        self.reporter.end_phase();
        Ok(repo)
    }

    /// Does `work` with the means to unlock the repository, which is not opened.
    pub fn unlocking<T>(&self, work: impl FnOnce(&SlotKeys<'_>) -> Result<T>) -> Result<T> {
        let secrets = self.secrets()?;
        work(&SlotKeys::new(&secrets, &self.reporter))
    }

    /// The key that was named for this run, if any.
    pub fn key(&self) -> Result<Option<KeySource>> {
        let Global { key_file, key_command, .. } = &self.global;
        let environment = (std::env::var_os("CKPT_KEY_FILE"), std::env::var_os("CKPT_KEY_COMMAND"));
        KeySource::choose((key_file.as_deref(), key_command.as_deref()), environment)
    }

    /// Where the key of the repository comes from, if one is needed.
    fn secrets(&self) -> Result<Secrets<'_>> {
        Ok(Secrets { given: self.key()?, output: &self.output })
    }

    /// Where the repository stands: an absolute path.
    pub fn location(&self) -> Result<String> {
        let usage = |text: String, hint: &str| Err(Error::new(Kind::Usage, text).with_hint(hint));
        let Some(given) = self.global.repo.as_ref().filter(|repo| !repo.is_empty()) else {
            return usage("no repository is named".to_owned(), "give its path with -r/--repo or in CKPT_REPO");
        };
        let Some(text) = given.to_str() else {
            return usage(format!("{given:?} is not UTF-8"), "a repository's path must be UTF-8");
        };
        let path = match text.split_once("://") {
            Some(("file", path)) => path,
            Some((scheme, _)) if scheme.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                return usage(
                    format!("no storage is called {scheme:?}"),
                    "a repository is a directory, local or mounted",
                );
            }
            _ => text,
        };
        let absolute =
            std::path::absolute(path).map_err(|e| Error::io(format!("finding the repository {path:?}"), e))?;
        absolute
            .into_os_string()
            .into_string()
            .or_else(|path| usage(format!("{path:?} is not UTF-8"), "use another folder"))
    }

    /// Where this host keeps its index.
    pub fn cache(&self) -> Result<Cache> {
        let asked = self.global.cache_dir.as_deref().filter(|folder| !folder.is_empty()).map(Path::new);
        let chosen = cache::choose(asked, std::env::var_os("XDG_CACHE_HOME"), std::env::var_os("HOME"))?;
        if let Some(warning) = chosen.warning {
            self.output.warning(&warning);
        }
        Ok(chosen.cache)
    }

    /// How much of the machine this run may use.
    pub fn resources(&self) -> Resources {
        // One more: each waits for the disk at times. On two processors backups take a seventh less by it, warm and cold.
        let threads = || std::thread::available_parallelism().map_or(1, usize::from) + 1;
        Resources { threads: self.global.threads.unwrap_or_else(threads), memory_bytes: self.global.memory }
    }

    /// When the run began, as the library counts time.
    pub fn started(&self) -> FileTime {
        super::times::file_time(self.now.timestamp())
    }

    /// Seconds since the run began, in whole milliseconds.
    pub fn seconds_elapsed(&self) -> f64 {
        (self.began.elapsed().as_secs_f64() * 1_000.0).round() / 1_000.0
    }

    /// A time for people.
    pub fn time(&self, time: FileTime) -> String {
        super::render::time(time, self.now.time_zone())
    }

    /// Shows what a report kept of `problems`, unless they were shown while they happened.
    pub fn show_problems(&self, problems: &ckpt::ops::Problems) {
        if self.reporter.problems() > 0 {
            return;
        }
        for problem in &problems.kept {
            self.output.problem(&problem.path, &problem.error);
        }
        let kept = u64::try_from(problems.kept.len()).unwrap_or(u64::MAX);
        if problems.count > kept {
            self.output.warning(&format!("{} more problems are not shown", problems.count - kept));
        }
    }
}
