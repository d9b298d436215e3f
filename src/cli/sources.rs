//! What `backup` reads: paths made absolute and clean, or a stream.

use super::render;
use super::signals::Signals;
use ckpt::error::{Error, Kind, Result};
use ckpt::source::excludes::Excludes;
use crossbeam_channel::{Receiver, RecvTimeoutError};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// What decides whether a path within another one is needed besides it.
#[derive(Debug)]
pub struct Rules {
    /// `--exclude` and `--exclude-from`.
    pub excludes: Excludes,
    /// `--one-file-system`.
    pub one_file_system: bool,
}

/// The paths to back up: absolute, clean, sorted, each once, and none that another one brings along anyway.
///
/// A path within another one stays if the other would leave it out: excluded, or on another file system.
pub fn paths(given: &[PathBuf], rules: &Rules) -> Result<Vec<PathBuf>> {
    let mut paths = given.iter().map(|path| clean(path)).collect::<Result<Vec<_>>>()?;
    paths.sort();
    paths.dedup();
    // What cannot be looked at is not absent: the backup says why.
    let is_absent = |path: &PathBuf| path.symlink_metadata().is_err_and(|e| e.kind() == ErrorKind::NotFound);
    if paths.iter().all(is_absent) {
        let names: Vec<_> = paths.iter().map(|path| shown(path)).collect();
        let text = if names.len() == 1 { "does not exist" } else { "do not exist" };
        return Err(Error::new(Kind::Usage, format!("{} {text}", names.join(", ")))
            .with_hint("check the spelling, and that the disk is mounted; no snapshot was made"));
    }
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in paths {
        // Sorted, so that whatever holds this path came before it.
        if !kept.iter().any(|outer| path.starts_with(outer) && brings_along(outer, &path, rules)) {
            kept.push(path);
        }
    }
    Ok(kept)
}

/// `path` made absolute, without `.`, `..` and doubled slashes.
///
/// An error if `..` follows a symbolic link, so that the clean path would mean something else.
pub fn clean(path: &Path) -> Result<PathBuf> {
    if path.as_os_str().is_empty() {
        return Err(Error::new(Kind::Usage, "a path is empty").with_hint("check for a variable that is not set"));
    }
    let absolute = std::path::absolute(path).map_err(|e| Error::io(format!("finding {}", shown(path)), e))?;
    let mut clean = PathBuf::new();
    for component in absolute.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    let identity = |path: &Path| path.symlink_metadata().ok().map(|found| (found.dev(), found.ino()));
    let has_parent = absolute.components().any(|component| component == Component::ParentDir);
    if has_parent && identity(&absolute) != identity(&clean) {
        return Err(Error::new(
            Kind::Usage,
            format!("{} leads through a symbolic link and back with `..`", shown(path)),
        )
        .with_hint("write the path without `..`"));
    }
    Ok(clean)
}

fn brings_along(outer: &Path, inner: &Path, rules: &Rules) -> bool {
    let device = |path: &Path| path.symlink_metadata().map(|found| found.dev()).ok();
    if rules.one_file_system && device(outer) != device(inner) {
        return false;
    }
    if outer.symlink_metadata().is_ok_and(|found| found.is_symlink()) {
        return false;
    }
    // The walk of `outer` comes this way unless something on the way is excluded.
    let Ok(relative) = inner.strip_prefix(outer) else { return false };
    let mut way = PathBuf::new();
    !relative.components().any(|component| {
        way.push(component);
        let is_directory = outer.join(&way).is_dir();
        rules.excludes.excludes(way.as_os_str().as_bytes(), is_directory)
    })
}

fn shown(path: &Path) -> String {
    render::path(path.as_os_str().as_bytes())
}

/// The output of a command, as content.
pub struct CommandStream {
    child: Child,
    name: String,
}

impl CommandStream {
    /// Starts `command`; its standard output is returned as a reader.
    pub fn start(command: &[OsString], signals: &Signals) -> Result<(CommandStream, PatientReader)> {
        let Some((program, arguments)) = command.split_first() else {
            return Err(Error::new(Kind::Usage, "no command follows --stdin-from-command")
                .with_hint("write it behind two dashes: `ckpt backup --stdin-from-command -- CMD ARG...`"));
        };
        let name = render::path(program.as_bytes());
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| Error::io(format!("starting the command {name}"), e).with_kind(Kind::Usage))?;
        let stdout = child.stdout.take();
        let stream = CommandStream { child, name };
        match stdout {
            Some(stdout) => Ok((stream, PatientReader::new(stdout, signals.clone())?)),
            None => Err(Error::new(Kind::Failed, format!("the command {} has no output", stream.name))),
        }
    }

    /// Waits for the command; an error if it failed.
    pub fn finish(mut self) -> Result<()> {
        let status = self.child.wait().map_err(|e| Error::io(format!("waiting for the command {}", self.name), e))?;
        if status.success() {
            return Ok(());
        }
        Err(Error::new(Kind::Failed, format!("the command {} failed ({status}); no snapshot was made", self.name)))
    }
}

impl Drop for CommandStream {
    fn drop(&mut self) {
        // After `finish` the command is gone and both calls do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A reader of a pipe that notices a signal while it waits.
pub struct PatientReader {
    blocks: Receiver<io::Result<Vec<u8>>>,
    block: Vec<u8>,
    taken: usize,
    signals: Signals,
}

impl PatientReader {
    const BLOCK_BYTES: usize = 1 << 20;

    /// A reader of `source`.
    pub fn new(mut source: impl Read + Send + 'static, signals: Signals) -> Result<PatientReader> {
        let (sender, blocks) = crossbeam_channel::bounded(2);
        let pump = move || {
            loop {
                let mut block = Vec::with_capacity(Self::BLOCK_BYTES);
                let limit = Self::BLOCK_BYTES as u64;
                let read = source.by_ref().take(limit).read_to_end(&mut block);
                let ends = read.is_err() || block.is_empty();
                let sent = sender.send(read.map(|_| block));
                if ends || sent.is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(pump)
            .map_err(|e| Error::io("starting a thread that reads", e))?;
        Ok(PatientReader { blocks, block: Vec::new(), taken: 0, signals })
    }
}

impl Read for PatientReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.block.len() {
            match self.blocks.recv_timeout(Duration::from_millis(100)) {
                Ok(block) => {
                    (self.block, self.taken) = (block?, 0);
                    if self.block.is_empty() {
                        return Ok(0);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
                Err(RecvTimeoutError::Timeout) if self.signals.is_interrupted() => {
                    return Err(io::Error::other(Signals::interrupted()));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        let count = into.len().min(self.block.len() - self.taken);
        into[..count].copy_from_slice(&self.block[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn rules() -> Rules {
        Rules { excludes: Excludes::none(), one_file_system: false }
    }

    #[test]
    fn paths_are_absolute_clean_and_each_once() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().canonicalize().expect("its path");
        fs::create_dir_all(root.join("a/b")).expect("folders");
        let given = [root.join("a/./b/../b"), root.join("a//b/"), root.join("missing")];
        let paths = paths(&given, &rules()).expect("one exists");
        assert_eq!(paths, [root.join("a/b"), root.join("missing")]);
        assert_eq!(clean(Path::new("/../x")).expect("the root's parent is the root"), Path::new("/x"));
    }

    #[test]
    fn what_another_path_brings_along_is_left_out() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().canonicalize().expect("its path");
        fs::create_dir_all(root.join("a/skip/b")).expect("folders");
        fs::create_dir_all(root.join("ab")).expect("folders");
        let given = [root.join("a/skip/b"), root.join("a"), root.join("ab")];
        assert_eq!(paths(&given, &rules()).expect("exist"), [root.join("a"), root.join("ab")]);
        let excludes = Excludes::new(&["skip".to_owned()], &[]).expect("a pattern");
        let rules = Rules { excludes, ..rules() };
        assert_eq!(paths(&given, &rules).expect("exist"), [root.join("a"), root.join("a/skip/b"), root.join("ab")]);
    }

    #[test]
    fn nothing_there_is_a_usage_error() {
        let error = paths(&[PathBuf::from("/nonexistent/a"), PathBuf::from("/nonexistent/b")], &rules());
        assert_eq!(error.expect_err("nothing exists").kind(), Kind::Usage);
        assert_eq!(clean(Path::new("")).expect_err("empty").kind(), Kind::Usage);
    }

    #[test]
    fn a_way_back_through_a_symbolic_link_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let root = folder.path().canonicalize().expect("its path");
        fs::create_dir_all(root.join("far/deep")).expect("folders");
        fs::create_dir(root.join("x")).expect("a folder");
        fs::create_dir(root.join("far/x")).expect("a folder");
        std::os::unix::fs::symlink(root.join("far/deep"), root.join("link")).expect("a link");
        assert_eq!(clean(&root.join("link/../x")).expect_err("ambiguous").kind(), Kind::Usage);
    }

    #[test]
    fn a_stream_is_passed_on_whole() {
        let content: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let source = io::Cursor::new(content.clone());
        let mut reader = PatientReader::new(source, Signals::default()).expect("a thread");
        let mut read = Vec::new();
        reader.read_to_end(&mut read).expect("no error");
        assert!(read == content);
        assert_eq!(reader.read(&mut [0; 8]).expect("still at the end"), 0);
    }

    #[test]
    fn a_command_that_fails_is_an_error() {
        let command = |text: &str| [OsString::from("sh"), OsString::from("-c"), OsString::from(text)];
        for (script, works) in [("echo hi", true), ("echo hi; exit 3", false)] {
            let (stream, mut reader) = CommandStream::start(&command(script), &Signals::default()).expect("sh starts");
            let mut read = String::new();
            reader.read_to_string(&mut read).expect("output");
            assert_eq!((read.as_str(), stream.finish().is_ok()), ("hi\n", works));
        }
        let missing = [OsString::from("/nonexistent/command")];
        assert!(CommandStream::start(&missing, &Signals::default()).is_err_and(|e| e.kind() == Kind::Usage));
    }
}
