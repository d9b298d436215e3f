//! What only a directory has: modes, leftovers, foreign files, and the order of system calls.
//!
//! These checks run the test program again as a child: under a umask, as another user, and under `strace`, which shows
//! the system calls, makes single ones fail, or kills the process at them.

use super::*;
use ckpt::storage::local::free_bytes;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ROOT: &str = "CKPT_TEST_ROOT";
const BYTES: &str = "CKPT_TEST_BYTES";
const OBJECT: &str = "packs/ab/x";

/// The child's part: publishes one object in the repository that its parent names and leaves the outcome beside it.
/// Run as an ordinary test it uses a directory of its own.
#[test]
fn a_child_publishes_one_object() {
    let told = std::env::var_os(ROOT).map(PathBuf::from);
    // Only without a parent: another user may not be allowed to make one.
    let own = told.is_none().then(|| tempfile::tempdir().expect("a temporary directory"));
    let root = told.unwrap_or_else(|| own.as_ref().expect("just made").path().to_path_buf());
    let len = std::env::var(BYTES).map_or(10, |text| text.parse().expect("a number"));
    let storage = LocalStorage::open(&root).expect("an existing directory");
    let outcome = match create_new(&storage, &name(OBJECT), &content(len)) {
        Ok(published) => format!(
            "{published:?}, refused: direct {}, folder sync {}",
            storage.direct_io_refused(),
            storage.folder_sync_refused()
        ),
        Err(error) => format!("{:?}: {error}", error.kind()),
    };
    // A user without rights cannot leave it anywhere; the parent then reads it here.
    let _ = std::fs::write(root.with_extension("outcome"), &outcome);
    assert!(outcome.starts_with("Created") || std::env::var_os(ROOT).is_some(), "{outcome}");
    if std::env::var_os("CKPT_TEST_DENIED").is_some() {
        assert!(outcome.starts_with("Denied") && outcome.contains("permission"), "{outcome}");
    }
}

/// The child's other part: deletes the object, which is there. Run as an ordinary test it has one of its own.
#[test]
fn a_child_deletes_the_object() {
    let own = tempfile::tempdir().expect("a temporary directory");
    let root = std::env::var_os(ROOT).map_or_else(|| own.path().to_path_buf(), PathBuf::from);
    let storage = LocalStorage::open(&root).expect("an existing directory");
    if std::env::var_os(ROOT).is_none() {
        publish(&storage, OBJECT, b"own");
    }
    assert!(storage.delete(&name(OBJECT)).expect("deleted"));
}

fn run_child(before: &[&str], root: &Path, len: usize, denied: bool) -> Output {
    run_child_that("a_child_publishes_one_object", before, root, len, denied)
}

fn run_child_that(part: &str, before: &[&str], root: &Path, len: usize, denied: bool) -> Output {
    let program = std::env::current_exe().expect("the test program");
    let mut command = Command::new(before[0]);
    command.args(&before[1..]).arg(program);
    command.args(["--exact", &format!("storage_conformance::local::{part}"), "--test-threads=1"]);
    command.env(ROOT, root).env(BYTES, len.to_string());
    if denied {
        command.env("CKPT_TEST_DENIED", "1");
    }
    command.output().expect("the child runs")
}

#[expect(clippy::print_stderr, reason = "a check that could not run must be seen, not pass silently")]
fn not_run(check: &str, reason: &str) {
    eprintln!("NOT RUN: {check}: {reason}");
}

fn has(program: &str) -> bool {
    Command::new(program).arg("-V").output().is_ok_and(|output| output.status.success())
}

fn has_strace(check: &str) -> bool {
    let usable = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    let usable = usable.is_ok_and(|output| output.status.success());
    if !usable {
        not_run(check, "strace is missing or may not trace");
    }
    usable
}

struct Repository {
    around: tempfile::TempDir,
}

impl Repository {
    fn new() -> Self {
        let around = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(around.path().join("repo")).expect("a directory");
        Repository { around }
    }

    fn root(&self) -> PathBuf {
        self.around.path().join("repo")
    }

    fn outcome(&self) -> String {
        std::fs::read_to_string(self.around.path().join("repo.outcome")).unwrap_or_default()
    }

    /// All files and empty directories beneath the root.
    fn leaves(&self) -> Vec<String> {
        let mut leaves = Vec::new();
        let mut open = vec![self.root()];
        while let Some(path) = open.pop() {
            let entries: Vec<_> =
                std::fs::read_dir(&path).expect("listed").map(|entry| entry.expect("an entry").path()).collect();
            for entry in entries {
                if entry.is_dir() {
                    open.push(entry);
                } else {
                    let shown = entry.strip_prefix(self.root()).expect("beneath the root");
                    leaves.push(shown.to_str().expect("text").to_owned());
                }
            }
        }
        leaves
    }

    /// Runs the child with one kind of system call made to fail as `inject` says, and returns the calls it made.
    fn publish_with(&self, inject: &[&str], len: usize) -> String {
        self.trace("a_child_publishes_one_object", inject, len)
    }

    fn trace(&self, part: &str, inject: &[&str], len: usize) -> String {
        let log = self.around.path().join("strace.log");
        let log_text = log.to_str().expect("text");
        let calls = "trace=/^mkdir,/^rename,/^link,/^unlink,pwrite64,ftruncate,fchmod,fsync,fcntl";
        let mut before = vec!["strace", "-f", "-y", "-o", log_text, "-e", calls];
        let injections: Vec<String> = inject.iter().map(|what| format!("inject={what}")).collect();
        injections.iter().for_each(|what| before.extend(["-e", what]));
        run_child_that(part, &before, &self.root(), len, false);
        std::fs::read_to_string(log).expect("a log")
    }
}

fn mode_of(path: &Path) -> u32 {
    std::fs::metadata(path).expect("it exists").permissions().mode() & 0o7777
}

#[test]
fn modes_follow_the_root_and_not_the_umask() {
    for (of_root, of_folder, of_object) in [(0o2770, 0o2770, 0o440), (0o755, 0o755, 0o444), (0o700, 0o700, 0o400)] {
        let repository = Repository::new();
        let root = repository.root();
        std::fs::set_permissions(&root, std::fs::Permissions::from_mode(of_root)).expect("chmod");
        let output = run_child(&["sh", "-c", "umask 077; exec \"$0\" \"$@\""], &root, 10, false);
        assert!(output.status.success(), "{output:?}");
        assert_eq!(mode_of(&root.join("packs")), of_folder);
        assert_eq!(mode_of(&root.join("packs/ab")), of_folder);
        assert_eq!(mode_of(&root.join(OBJECT)), of_object);
    }
}

#[test]
fn a_new_root_is_private_and_its_parents_are_made() {
    let around = tempfile::tempdir().expect("a temporary directory");
    let root = around.path().join("a/b/repo");
    LocalStorage::create_root(&root).expect("made");
    assert_eq!(mode_of(&root), 0o700);
    LocalStorage::create_root(&root).expect("as it was");
    std::fs::write(around.path().join("file"), "x").expect("a file");
    for no_root in ["file", "file/x", "absent"] {
        let error = LocalStorage::open(&around.path().join(no_root)).err().expect("no directory");
        assert_eq!(error.kind(), Kind::NoRepository, "{error}");
    }
    assert!(free_bytes(&root).expect("a file system") > 0);
}

#[test]
fn leftovers_of_killed_writers_are_not_listed_and_can_be_removed() {
    let repository = Repository::new();
    let root = repository.root();
    let storage = LocalStorage::open(&root).expect("an existing directory");
    publish(&storage, OBJECT, b"x");
    let leftovers = ["packs/tmp-17-0123456789abcdef", "packs/ab/tmp-18-0123456789abcdef"];
    leftovers.iter().for_each(|left| std::fs::write(root.join(left), [1; 1000]).expect("written"));
    std::fs::create_dir(root.join("packs/tmp-19-0123456789abcdef")).expect("a directory");
    // What others put there stays: unlike names, and a directory of that name with something in it.
    let others = ["packs/README.txt", "packs/.nfs0001", "packs/tmp-notes", "notes/tmp-1-0123456789abcdef/x"];
    for other in others {
        std::fs::create_dir_all(root.join(other).parent().expect("a parent")).expect("a directory");
        std::fs::write(root.join(other), "x").expect("written");
    }
    assert_eq!(names_in(&storage, "packs"), [OBJECT]);
    assert_eq!(abandoned_bytes(&storage), 2000);
    assert!(leftovers.iter().all(|left| !root.join(left).exists()));
    assert!(!root.join("packs/tmp-19-0123456789abcdef").exists());
    assert!(others.iter().all(|other| root.join(other).exists()));
    assert_eq!(storage.read(&name(OBJECT), 1).expect("readable"), b"x");
}

#[test]
fn only_regular_files_are_objects() {
    let repository = Repository::new();
    let root = repository.root();
    let storage = LocalStorage::open(&root).expect("an existing directory");
    publish(&storage, "keys/a", b"secret");
    std::os::unix::fs::symlink(root.join("keys/a"), root.join("keys/link")).expect("a link");
    std::os::unix::fs::symlink("/", root.join("keys/loop")).expect("a link");
    assert!(Command::new("mkfifo").arg(root.join("keys/pipe")).status().expect("mkfifo runs").success());
    assert_eq!(names_in(&storage, "keys"), ["keys/a"]);
    for odd in ["keys/link", "keys/pipe", "keys"] {
        let error = storage.read(&name(odd), 100).expect_err("not an object");
        assert_eq!(error.kind(), Kind::Damaged, "{error}");
        assert_eq!(storage.size(&name(odd)).expect_err("not an object").kind(), Kind::Damaged);
    }
    let taken = create_new(&storage, &name("keys/link"), b"x").expect("an answer");
    assert_eq!(taken, Published::AlreadyExists);
}

#[test]
fn what_another_process_deletes_or_replaces_is_seen() {
    let repository = Repository::new();
    let file = repository.root().join(OBJECT);
    let storage = LocalStorage::open(&repository.root()).expect("an existing directory");
    publish(&storage, OBJECT, b"first");
    assert_eq!(read_range(&storage, OBJECT, 0, 5).expect("readable"), b"first");
    std::fs::write(file.with_extension("new"), "second").expect("written");
    std::fs::rename(file.with_extension("new"), &file).expect("replaced");
    assert_eq!(read_range(&storage, OBJECT, 0, 6).expect("readable"), b"second");
    std::fs::remove_file(&file).expect("removed");
    assert_eq!(read_range(&storage, OBJECT, 0, 6).expect_err("removed").kind(), Kind::Missing);
    std::fs::remove_dir_all(repository.root().join("packs")).expect("removed");
    publish(&storage, OBJECT, b"again");
}

#[test]
fn a_repository_that_was_moved_away_is_unreachable_and_not_empty() {
    let repository = Repository::new();
    let root = repository.root();
    let storage = LocalStorage::open(&root).expect("an existing directory");
    publish(&storage, OBJECT, b"x");
    let check = |state: &str| {
        let kinds = [
            storage.read(&name("keys/a"), 1).expect_err(state).kind(),
            storage.size(&name("keys/a")).expect_err(state).kind(),
            storage.list("packs").expect_err(state).kind(),
            storage.delete(&name("keys/a")).expect_err(state).kind(),
            storage.sync_folder("packs").expect_err(state).kind(),
            storage.delete_abandoned(&mut |_| Ok(ckpt::storage::Owner::Unknown)).expect_err(state).kind(),
            create_new(&storage, &name("keys/a"), b"x").expect_err(state).kind(),
            create_new(&storage, &name("packs/a"), b"x").expect_err(state).kind(),
        ];
        assert_eq!(kinds, [Kind::Unreachable; 8], "{state}");
    };
    std::fs::rename(&root, repository.around.path().join("elsewhere")).expect("moved");
    check("no directory at all");
    std::fs::create_dir(&root).expect("a directory");
    check("the empty directory beneath a mount");
    assert_eq!(std::fs::read_dir(&root).expect("listed").count(), 0, "nothing goes to the wrong place");
    std::fs::remove_dir(&root).expect("removed");
    std::fs::rename(repository.around.path().join("elsewhere"), &root).expect("moved back");
    assert_eq!(storage.read(&name(OBJECT), 1).expect("readable"), b"x");
}

#[test]
fn a_directory_without_write_permission_is_denied() {
    let check = "publishing as another user";
    if !has("setpriv") {
        return not_run(check, "setpriv is missing");
    }
    let as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let program = std::env::current_exe().expect("the test program");
    let mut probe = Command::new(as_nobody[0]);
    probe.args(&as_nobody[1..]).args(["test", "-x"]).arg(program);
    if !probe.output().is_ok_and(|output| output.status.success()) {
        return not_run(check, "not the superuser, or others may not run the test program");
    }
    let repository = Repository::new();
    for path in [repository.around.path(), &repository.root()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    }
    let output = run_child(&as_nobody, &repository.root(), 10, true);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(repository.leaves(), Vec::<String>::new());
}

#[test]
fn the_bytes_are_synced_before_the_name_and_the_folder_after_it() {
    if !has_strace("the order of system calls") {
        return;
    }
    for len in [10, 9 * MIB + 1] {
        let repository = Repository::new();
        let log = repository.publish_with(&[], len);
        assert_eq!(repository.outcome(), "Created, refused: direct false, folder sync false", "{log}");
        let root = repository.root();
        let root = root.to_str().expect("text");
        let is_temporary = |line: &str| line.contains(&format!("<{root}/packs/tmp-"));
        let is_fsync = |line: &str, of: &str| line.contains("fsync(") && line.contains(&format!("<{of}>"));
        let renamed_to = |line: &str, to: &str| line.contains("rename") && line.contains(&format!("\"{to}\""));
        let mut lines = log.lines();
        let mut expect = |step: &str, matches: &dyn Fn(&str) -> bool| {
            assert!(lines.any(matches), "no {step} where it belongs in:\n{log}");
        };
        expect("naming of the folder", &|line| renamed_to(line, &format!("{root}/packs")));
        expect("sync of the root", &|line| is_fsync(line, root));
        if len < MIB {
            // A large object has bytes written before it has a name, and so before its inner folder is needed.
            expect("naming of the inner folder", &|line| renamed_to(line, &format!("{root}/packs/ab")));
            expect("sync of the folder", &|line| is_fsync(line, &format!("{root}/packs")));
        }
        expect("write", &|line| line.contains("pwrite64") && is_temporary(line));
        expect("sync of the bytes", &|line| line.contains("fsync(") && is_temporary(line));
        expect("naming of the object", &|line| renamed_to(line, &format!("{root}/{OBJECT}")));
        expect("sync of its folder", &|line| is_fsync(line, &format!("{root}/packs/ab")));
        // Nothing changes the bytes after their sync.
        let synced = log.lines().position(|line| line.contains("fsync(") && is_temporary(line)).expect("synced");
        let changes = ["pwrite64", "ftruncate"];
        assert!(!log.lines().skip(synced).any(|line| changes.iter().any(|c| line.contains(c)) && is_temporary(line)));
    }
}

#[test]
fn the_folder_of_a_deleted_object_is_synced() {
    if !has_strace("the order of system calls") {
        return;
    }
    let repository = Repository::new();
    publish(&LocalStorage::open(&repository.root()).expect("an existing directory"), OBJECT, b"x");
    let log = repository.trace("a_child_deletes_the_object", &[], 1);
    let folder = format!("<{}>", repository.root().join("packs/ab").display());
    let deleted = log.lines().position(|line| line.contains("unlink") && line.contains(OBJECT)).expect("deleted");
    let synced = |line: &str| line.contains("fsync(") && line.contains(&folder);
    assert!(log.lines().skip(deleted).any(synced), "{log}");
    assert_eq!(repository.leaves(), Vec::<String>::new());
}

#[test]
fn what_a_file_system_refuses_is_done_another_way() {
    if !has_strace("file systems that refuse an operation") {
        return;
    }
    let large = 9 * MIB + 1;
    for (inject, len, outcome, must_show) in [
        (&["renameat2:error=EINVAL"] as &[&str], 10, "direct false, folder sync false", "link"),
        (&["renameat2:error=ENOSYS"], large, "direct false, folder sync false", "link"),
        (&["fcntl:error=EINVAL"], large, "direct true, folder sync false", "fcntl"),
        (&["pwrite64:error=EINVAL:when=1"], large, "direct true, folder sync false", "pwrite64"),
        (&["fsync:error=EINVAL:when=4"], 10, "direct false, folder sync true", "fsync"),
        (&["fchmod:error=EPERM"], 10, "direct false, folder sync false", "fchmod"),
        (
            &["pwrite64:error=EINTR:when=1+2", "fsync:error=EINTR:when=1+2"],
            large,
            "direct false, folder sync false",
            "EINTR",
        ),
    ] {
        let repository = Repository::new();
        let log = repository.publish_with(inject, len);
        assert_eq!(repository.outcome(), format!("Created, refused: {outcome}"), "{inject:?}\n{log}");
        assert!(log.contains(must_show), "{inject:?}\n{log}");
        assert_eq!(repository.leaves(), [OBJECT], "{inject:?}");
        assert!(std::fs::read(repository.root().join(OBJECT)).expect("readable") == content(len), "{inject:?}");
    }
}

#[test]
fn a_failed_write_or_sync_gives_the_object_up_and_is_not_repeated() {
    if !has_strace("failing system calls") {
        return;
    }
    let large = 9 * MIB + 1;
    for (inject, len, kind, left) in [
        ("pwrite64:error=ENOSPC:when=1", 10, "NoSpace", &[] as &[&str]),
        ("pwrite64:error=ENOSPC:when=2", large, "NoSpace", &[]),
        ("pwrite64:error=EIO:when=1", large, "Unreachable", &[]),
        ("pwrite64:error=EDQUOT:when=2", large, "NoSpace", &[]),
        ("ftruncate:error=EIO", large, "Unreachable", &[]),
        ("fsync:error=EIO:when=1", 10, "Unreachable", &[]),
        ("fsync:error=EIO:when=3", 10, "Unreachable", &[]),
        ("fsync:error=ENOSPC:when=3", large, "NoSpace", &[]),
        // It has its name by then, which others may have seen.
        ("fsync:error=EIO:when=4", 10, "Unreachable", &[OBJECT]),
        ("renameat2:error=EROFS:when=3", 10, "Denied", &[]),
        ("renameat2:error=EIO:when=3", 10, "Unreachable", &[]),
        ("/^mkdir:error=ENOSPC:when=2", 10, "NoSpace", &[]),
    ] {
        let repository = Repository::new();
        let log = repository.publish_with(&[inject], len);
        assert!(repository.outcome().starts_with(kind), "{inject}: {}\n{log}", repository.outcome());
        assert!(repository.outcome().contains(repository.root().to_str().expect("text")), "names the repository");
        assert_eq!(repository.leaves(), left, "{inject}\n{log}");
        let syncs_of_object = log.lines().filter(|line| line.contains("fsync(") && line.contains("/tmp-")).count();
        assert!(syncs_of_object <= 1, "{inject}\n{log}");
    }
}

#[test]
fn a_kill_at_any_call_leaves_the_object_whole_or_absent() {
    if !has_strace("kills at each system call") {
        return;
    }
    for (len, calls_at_least) in [(10, 11), (9 * MIB + 1, 13)] {
        let mut killed = 0;
        // Repetitions are counted for each system call by itself.
        for call in ["/^mkdir", "/^rename", "fcntl", "pwrite64", "ftruncate", "fchmod", "fsync"] {
            for at in 1.. {
                if !kill_at(&format!("{call}:signal=KILL:when={at}"), len) {
                    break;
                }
                killed += 1;
            }
        }
        assert!(killed >= calls_at_least, "{killed} kills");
    }
}

/// Publishes with one kill and checks what is left; false if the child came to its end before.
fn kill_at(inject: &str, len: usize) -> bool {
    let repository = Repository::new();
    let log = repository.publish_with(&[inject], len);
    let was_killed = log.contains("killed by SIGKILL");
    let storage = LocalStorage::open(&repository.root()).expect("an existing directory");
    match storage.read(&name(OBJECT), u64::MAX) {
        Ok(bytes) => assert!(bytes == content(len), "{inject}: torn\n{log}"),
        Err(error) => assert_eq!(error.kind(), Kind::Missing, "{inject}\n{log}"),
    }
    abandoned_bytes(&storage);
    let next = create_new(&storage, &name(OBJECT), &content(len)).expect("the next run works at once");
    assert_eq!(repository.leaves(), [OBJECT], "{inject}\n{log}");
    assert!(was_killed || next == Published::AlreadyExists, "{inject}\n{log}");
    was_killed
}
