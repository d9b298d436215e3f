//! Replacing an object: on each storage alike, with a power cut at every step, and with a kill at every system call.

use super::*;
use std::path::{Path, PathBuf};
use std::process::Command;

const ROOT: &str = "CKPT_TEST_REPLACE_ROOT";
const OBJECT: &str = "packs/ab/x";

#[test]
fn an_object_is_replaced_whatever_stood_there() {
    on_each(|storage| {
        for len in [0, 10, 9 * MIB + 1] {
            publish(storage, "packs/ab/x", b"old");
            // Open for reading when it is replaced.
            assert_eq!(read_range(storage, "packs/ab/x", 0, 3).expect("readable"), b"old");
            storage.replace(&name("packs/ab/x"), &content(len)).expect("replaced");
            assert!(storage.read(&name("packs/ab/x"), u64::MAX).expect("readable") == content(len));
            assert_eq!(storage.size(&name("packs/ab/x")).expect("there"), Some(len as u64));
            storage.replace(&name("packs/cd/absent"), b"new").expect("put there");
            assert_eq!(read_range(storage, "packs/cd/absent", 0, 3).expect("readable"), b"new");
            assert_eq!(names_in(storage, "packs"), ["packs/ab/x", "packs/cd/absent"]);
            assert_eq!(storage.delete_abandoned().expect("nothing to do"), 0);
            storage.delete(&name("packs/ab/x")).expect("deleted");
            storage.delete(&name("packs/cd/absent")).expect("deleted");
        }
        let again = create_new(storage, &name("packs/ab/x"), b"1").expect("an answer");
        assert_eq!(again, Published::Created, "the name is as free as any that was deleted");
        assert!(storage.replace(&name("packs"), b"x").is_err(), "an object lies in a folder");
    });
}

#[test]
fn a_power_cut_at_any_step_of_replacing_leaves_the_old_or_the_new_object() {
    for was_there in [true, false] {
        let mut outcomes = [0; 3];
        for step in 0..6 {
            let storage = SimulatedStorage::new();
            if was_there {
                publish(&storage, OBJECT, b"old");
            }
            storage.crash_at(storage.steps() + step);
            let reported = storage.replace(&name(OBJECT), &content(10_000));
            assert_eq!(storage.is_dead(), step < 5);
            for seed in 0..64 {
                let after = storage.after_power_cut(seed);
                let found = after.read(&name(OBJECT), u64::MAX);
                let outcome = match &found {
                    Ok(bytes) if *bytes == content(10_000) => 2,
                    Ok(bytes) if bytes == b"old" && was_there => 1,
                    Err(error) if error.kind() == Kind::Missing && !was_there => 0,
                    found => panic!("step {step}, seed {seed}: {found:?}"),
                };
                assert!(reported.is_err() || outcome == 2, "what was reported is there");
                outcomes[outcome] += 1;
            }
        }
        assert!(outcomes[2] > 64 && outcomes[usize::from(was_there)] > 64, "{outcomes:?}");
    }
}

/// The child's part: replaces one object in the repository that its parent names.
#[test]
fn a_child_replaces_one_object() {
    let Some(root) = std::env::var_os(ROOT).map(PathBuf::from) else { return };
    let storage = LocalStorage::open(&root).expect("an existing directory");
    storage.replace(&name(OBJECT), &content(9 * MIB + 1)).expect("replaced");
}

fn replace_with(inject: &str, root: &Path) -> Option<String> {
    let log = root.with_extension("log");
    let output = Command::new("strace")
        .args(["-f", "-o"])
        .arg(&log)
        .args(["-e", "trace=/^mkdir,/^rename,/^unlink,pwrite64,ftruncate,fchmod,fsync,fcntl"])
        .args(["-e", &format!("inject={inject}")])
        .arg(std::env::current_exe().expect("the test program"))
        .args(["--exact", "storage_conformance::replace::a_child_replaces_one_object", "--test-threads=1"])
        .env(ROOT, root)
        .output();
    output.is_ok().then(|| std::fs::read_to_string(&log).unwrap_or_default())
}

#[test]
#[expect(clippy::print_stderr, reason = "a check that could not run must be seen, not pass silently")]
fn a_kill_at_any_call_of_replacing_leaves_the_old_or_the_new_object() {
    let usable = Command::new("strace").args(["-f", "-o", "/dev/null", "true"]).output();
    if !usable.is_ok_and(|output| output.status.success()) {
        eprintln!("NOT RUN: kills while replacing: strace is missing or may not trace");
        return;
    }
    let (mut old, mut new) = (0, 0);
    for call in ["/^rename", "pwrite64", "ftruncate", "fchmod", "fsync"] {
        for at in 1.. {
            let around = tempfile::tempdir().expect("a temporary directory");
            let root = around.path().join("repo");
            std::fs::create_dir(&root).expect("made");
            let storage = LocalStorage::open(&root).expect("an existing directory");
            publish(&storage, OBJECT, b"old");
            let log = replace_with(&format!("{call}:signal=KILL:when={at}"), &root).expect("the child runs");
            let found = storage.read(&name(OBJECT), u64::MAX).expect("never neither");
            assert!(found == b"old" || found == content(9 * MIB + 1), "{call} {at}: torn\n{log}");
            if !log.contains("killed by SIGKILL") {
                assert!(found != b"old", "{call} {at}\n{log}");
                break;
            }
            old += u32::from(found == b"old");
            new += u32::from(found != b"old");
            storage.delete_abandoned().expect("removed");
            storage.replace(&name(OBJECT), b"again").expect("the next run works at once");
        }
    }
    assert!(old >= 4 && new >= 1, "{old} kills before the renaming, {new} after it");
}
