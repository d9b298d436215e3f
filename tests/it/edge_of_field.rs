//! Where repositories stand in the field: shared by users, read-only, without rights, on full disks; and what is
//! promised about pace.
//!
//! Other users and small file systems need root; without it, or where the kernel forbids, a check says NOT RUN.

use crate::support::mounted::Mounted;
use crate::support::program::{Place, documents, expect, open_to_all, runs};
use crate::support::trees::Tree;
use crate::support::{is_root, noise, not_run};
use serde_json::Value;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

const USERS: [u32; 2] = [50_001, 50_002];
const GROUP: u32 = 50_100;
/// The user of a squashed root, by old custom.
const NOBODY: u32 = 65_534;

/// True if other users can be played; says NOT RUN if not.
fn can_be_others(check: &str) -> bool {
    if !is_root() {
        not_run(check, "only root can start programs as other users");
        return false;
    }
    if !runs("setpriv", &["--reuid=65534", "--regid=65534", "--clear-groups", "true"]) {
        not_run(check, "setpriv is missing or not allowed");
        return false;
    }
    true
}

fn write_data(place: &Place, name: &str, seed: u64) -> PathBuf {
    let data = place.path(name);
    fs::create_dir_all(&data).expect("a folder");
    fs::write(data.join("a"), noise(seed, 700_000)).expect("a file");
    fs::write(data.join("b"), noise(seed + 1, 10)).expect("a file");
    open_to_all(&data);
    data
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).expect("a mode");
}

/// The command under a mask that takes all rights from others.
fn with_private_mask(command: &Command) -> Command {
    let mut wrapped = Command::new("sh");
    wrapped.args(["-c", "umask 077; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
    wrapped.env_clear();
    for (name, value) in command.get_envs() {
        wrapped.env(name, value.unwrap_or_default());
    }
    wrapped.stdin(Stdio::null());
    wrapped
}

#[test]
fn users_of_one_group_share_a_repository_whatever_their_mask() {
    if !can_be_others("users_of_one_group_share_a_repository_whatever_their_mask") {
        return;
    }
    let place = Place::new();
    let repository = place.path("repository");
    fs::create_dir(&repository).expect("a folder");
    chown(&repository, Some(USERS[0]), Some(GROUP)).expect("root may");
    set_mode(&repository, 0o2770);
    let data = USERS.map(|user| write_data(&place, &format!("data-{user}"), u64::from(user)));
    expect(with_private_mask(&place.command_as(USERS[0], GROUP, &["init"])), 0);
    for (user, data) in USERS.iter().zip(&data) {
        let data = data.to_str().expect("text");
        expect(with_private_mask(&place.command_as(*user, GROUP, &["backup", data, "--host", &user.to_string()])), 0);
    }
    for (reader, writer) in [(USERS[0], 1), (USERS[1], 0)] {
        let target = place.path(&format!("target-{reader}"));
        fs::create_dir(&target).expect("a folder");
        chown(&target, Some(reader), Some(GROUP)).expect("root may");
        let (host, text) = (USERS[writer].to_string(), target.to_str().expect("text"));
        let arguments = ["restore", "latest", "--host", &host, "--target", text];
        expect(with_private_mask(&place.command_as(reader, GROUP, &arguments)), 0);
        let contents =
            |root: &Path| Tree::read(root).entries.into_values().map(|seen| seen.content).collect::<Vec<_>>();
        assert_eq!(contents(&target), contents(&data[writer]));
    }
    expect(place.command_as(USERS[1], GROUP, &["verify", "--read-data"]), 0);
    expect(with_private_mask(&place.command_as(USERS[1], GROUP, &["prune"])), 0);
}

#[test]
fn a_squashed_root_backs_up_what_it_can_read_and_says_the_rest() {
    if !can_be_others("a_squashed_root_backs_up_what_it_can_read_and_says_the_rest") {
        return;
    }
    let place = Place::new();
    let repository = place.path("repository");
    fs::create_dir(&repository).expect("a folder");
    chown(&repository, Some(NOBODY), Some(NOBODY)).expect("root may");
    set_mode(&repository, 0o700);
    let data = write_data(&place, "data", 1);
    set_mode(&data.join("b"), 0o600);
    let text = data.to_str().expect("text");
    expect(place.command_as(NOBODY, NOBODY, &["init"]), 0);
    let (_, said) = expect(place.command_as(NOBODY, NOBODY, &["backup", text]), 3);
    assert!(said.contains("data/b"), "the file is named: {said}");
    // Root's files come back as those of the one who restores: nothing has to be given away.
    let target = place.path("target");
    fs::create_dir(&target).expect("a folder");
    chown(&target, Some(NOBODY), Some(NOBODY)).expect("root may");
    let arguments = ["restore", "latest", "--target", target.to_str().expect("text")];
    expect(place.command_as(NOBODY, NOBODY, &arguments), 0);
    assert_eq!(fs::read(target.join("a")).expect("restored"), noise(1, 700_000));
    assert!(!target.join("b").exists());
}

#[test]
fn a_directory_that_may_not_be_entered_costs_a_restore_only_what_is_in_it() {
    if !can_be_others("a_directory_that_may_not_be_entered_costs_a_restore_only_what_is_in_it") {
        return;
    }
    let place = Place::with_repository();
    let data = write_data(&place, "data", 1);
    fs::create_dir(data.join("closed")).expect("a folder");
    fs::write(data.join("closed/f"), b"f").expect("a file");
    set_mode(&data.join("closed"), 0o600);
    place.backup("data");
    assert!(runs("chmod", &["-R", "a+rX", &place.text("repository")]));
    let target = place.path("target");
    fs::create_dir(&target).expect("a folder");
    chown(&target, Some(NOBODY), Some(NOBODY)).expect("root may");
    let arguments = ["restore", "latest", "--delete", "--target", target.to_str().expect("text")];
    // The second time it is as the first has left it: closed, and ours to open.
    for _ in 0..2 {
        expect(place.command_as(NOBODY, NOBODY, &arguments), 0);
        assert_eq!(fs::read(target.join("closed/f")).expect("restored"), b"f");
    }
    chown(target.join("closed"), Some(0), Some(0)).expect("root may");
    fs::write(target.join("a"), b"other").expect("a file");
    chown(target.join("a"), Some(NOBODY), Some(NOBODY)).expect("root may");
    let (_, said) = expect(place.command_as(NOBODY, NOBODY, &arguments), 17);
    assert!(said.contains("closed/f"), "it is named: {said}");
    assert_eq!(fs::read(target.join("a")).expect("restored"), noise(1, 700_000));
    expect(place.command_as(NOBODY, NOBODY, &[&arguments[..], &["--dry-run"]].concat()), 17);
}

#[test]
fn a_repository_that_may_not_be_written_still_serves() {
    if !can_be_others("a_repository_that_may_not_be_written_still_serves") {
        return;
    }
    let place = Place::with_repository();
    let data = write_data(&place, "data", 1);
    let text = data.to_str().expect("text").to_owned();
    place.backup("data");
    assert!(runs("chmod", &["-R", "a+rX", &place.text("repository")]));
    let user = |arguments: &[&str]| place.command_as(USERS[0], GROUP, arguments);
    check_reading(&place, &user);
    let (_, said) = expect(user(&["backup", &text]), 17);
    assert!(said.contains(&place.text("repository")), "the repository is named: {said}");
}

/// Listing, restoring and verifying work.
fn check_reading(place: &Place, command: &dyn Fn(&[&str]) -> Command) {
    let target = place.path("target-of-reader");
    fs::create_dir(&target).expect("a folder");
    chown(&target, Some(USERS[0]), Some(GROUP)).expect("root may");
    let (listed, _) = expect(command(&["snapshots", "--json"]), 0);
    assert_eq!(documents(&listed)[0]["data"]["snapshots"].as_array().map(Vec::len), Some(1));
    expect(command(&["restore", "latest", "--target", target.to_str().expect("text")]), 0);
    assert_eq!(fs::read(target.join("a")).expect("restored"), noise(1, 700_000));
    expect(command(&["verify"]), 0);
    expect(command(&["verify", "--read-data"]), 0);
    expect(command(&["stats"]), 0);
}

#[test]
fn a_read_only_mount_serves_and_a_backup_says_that_it_is_one() {
    let check = "a_read_only_mount_serves_and_a_backup_says_that_it_is_one";
    let place = Place::new();
    let Some(mounted) = Mounted::new(&place, "repository", 32 << 20, &[], check) else { return };
    expect(place.command(&["init"]), 0);
    let data = write_data(&place, "data", 1);
    place.backup("data");
    let at = mounted.at.to_str().expect("text");
    assert!(runs("mount", &["-o", "remount,ro", at]));
    check_reading(&place, &|arguments| place.command(arguments));
    let (_, said) = expect(place.command(&["backup", data.to_str().expect("text")]), 17);
    assert!(said.contains(at), "the repository is named: {said}");
}

#[test]
fn a_full_repository_is_named_and_goes_on_once_there_is_room() {
    let check = "a_full_repository_is_named_and_goes_on_once_there_is_room";
    let place = Place::new();
    let Some(mounted) = Mounted::new(&place, "repository", 24 << 20, &["-m", "0"], check) else { return };
    expect(place.command(&["init"]), 0);
    write_data(&place, "data", 1);
    place.backup("data");
    let wanted = Tree::read(&place.path("data"));
    fs::create_dir(place.path("large")).expect("a folder");
    for number in 0..10 {
        fs::write(place.path(&format!("large/{number}")), noise(number, 4 << 20)).expect("a file");
    }
    let at = mounted.at.to_str().expect("text");
    let (_, said) = expect(place.command(&["backup", &place.text("large")]), 14);
    assert!(said.contains(at), "the repository is named: {said}");
    assert!(!said.contains("/large"), "the source is not to blame: {said}");
    assert_eq!(place.snapshots().len(), 1);
    expect(place.command(&["restore", "latest", "--target", &place.text("target")]), 0);
    Tree::read(&place.path("target")).assert_is(&wanted, "restored from a full repository");
    // What the failed run left goes, and with it comes room for something smaller.
    expect(place.command(&["prune", "--delete-delay", "0"]), 0);
    (3..10).for_each(|number| fs::remove_file(place.path(&format!("large/{number}"))).expect("removed"));
    place.backup("large");
    expect(place.command(&["verify", "--read-data"]), 0);
}

#[test]
fn a_repository_without_inodes_is_named() {
    let check = "a_repository_without_inodes_is_named";
    let place = Place::new();
    let Some(mounted) = Mounted::new(&place, "repository", 24 << 20, &["-N", "48"], check) else { return };
    expect(place.command(&["init"]), 0);
    write_data(&place, "data", 1);
    let mut said = None;
    for number in 0..40 {
        fs::write(place.path("data/a"), noise(number, 1000)).expect("a file");
        let output = place.run(&["backup", &place.text("data")]);
        if output.status.code() != Some(0) {
            assert_eq!(output.status.code(), Some(14), "{output:?}");
            said = Some(String::from_utf8_lossy(&output.stderr).into_owned());
            break;
        }
    }
    let said = said.expect("40 backups take more than 48 inodes");
    assert!(said.contains(mounted.at.to_str().expect("text")), "the repository is named: {said}");
    expect(place.command(&["verify", "--read-data"]), 0);
}

#[test]
fn a_full_target_is_named_before_and_while_it_is_written() {
    let check = "a_full_target_is_named_before_and_while_it_is_written";
    let place = Place::with_repository();
    let Some(mounted) = Mounted::new(&place, "target", 16 << 20, &["-m", "0"], check) else { return };
    fs::create_dir(place.path("data")).expect("a folder");
    (0..5u64).for_each(|n| fs::write(place.path(&format!("data/{n}")), noise(n, 4 << 20)).expect("a file"));
    place.backup("data");
    let at = mounted.at.to_str().expect("text");
    let restore = || place.command(&["restore", "latest", "--target", at]);
    let (_, said) = expect(restore(), 14);
    assert!(said.contains("target"), "the target is named: {said}");
    assert!(!mounted.at.join("0").exists(), "nothing was begun");
    // Many tiny files: their bytes would fit, their inodes and blocks do not.
    fs::remove_dir_all(place.path("data")).expect("removed");
    fs::create_dir(place.path("data")).expect("a folder");
    (0..6_000).for_each(|n| fs::write(place.path(&format!("data/{n}")), b"x").expect("a file"));
    place.backup("data");
    let (_, said) = expect(restore(), 14);
    assert!(said.contains("target"), "the target is named: {said}");
}

/// Runs a backup and returns what it wrote to stderr, and the seconds it took.
fn timed_backup(place: &Place, more: &[&str]) -> (String, f64) {
    let data = place.text("data");
    let command = place.command(&[&["backup", data.as_str()], more].concat());
    let begun = Instant::now();
    let (_, said) = expect(command, 0);
    (said, begun.elapsed().as_secs_f64())
}

/// A statement about time is judged up to three times: a busy machine may spoil one run, not the property.
fn judged(judge: impl Fn() -> Result<(), String>) {
    let failures: Vec<String> = (0..3).map_while(|_| judge().err()).collect();
    assert!(failures.len() < 3, "{failures:?}");
}

#[test]
fn a_limit_on_reading_is_kept_within_a_tenth() {
    judged(|| {
        let place = Place::with_repository();
        fs::create_dir(place.path("data")).expect("a folder");
        (0..5u64).for_each(|n| fs::write(place.path(&format!("data/{n}")), noise(n, 2_400_000)).expect("a file"));
        // 12 MB at 6 MB a second, far less than a busy machine can do without optimisation.
        let (_, seconds) = timed_backup(&place, &["--limit-read", "6MB"]);
        if (1.8..2.2).contains(&seconds) { Ok(()) } else { Err(format!("12 MB at 6 MB/s took {seconds} s")) }
    });
}

#[test]
fn the_time_left_is_predicted_within_a_fifth_after_the_first_tenth() {
    judged(|| {
        let place = Place::with_repository();
        fs::create_dir(place.path("data")).expect("a folder");
        (0..80u64).for_each(|n| fs::write(place.path(&format!("data/{n}")), noise(n, 1_000_000)).expect("a file"));
        let (said, seconds) = timed_backup(&place, &["--limit-read", "16MB", "--progress", "json"]);
        judge_predictions(&said, seconds)
    });
}

fn judge_predictions(said: &str, seconds: f64) -> Result<(), String> {
    let progress: Vec<Value> = documents(said).into_iter().filter(|document| document["type"] == "progress").collect();
    let mut judged = 0;
    for data in progress.iter().map(|document| &document["data"]).filter(|data| data["phase"] == "backing up") {
        let elapsed = data["seconds_elapsed"].as_f64().expect("a number");
        if elapsed < seconds / 10.0 || elapsed > seconds * 0.95 {
            continue;
        }
        let left = data["eta_seconds"].as_f64().ok_or_else(|| format!("no time left is told: {data}"))?;
        let predicted = elapsed + left;
        if (predicted / seconds - 1.0).abs() >= 0.2 {
            return Err(format!("at {elapsed} s: {predicted} s predicted, {seconds} s taken"));
        }
        judged += 1;
    }
    if judged >= 5 { Ok(()) } else { Err(format!("{judged} lines of progress: {said}")) }
}

#[test]
fn tests_of_rights_leave_what_they_expect() {
    // The helper that plays other users must not be fooled by rights of its own.
    if !can_be_others("tests_of_rights_leave_what_they_expect") {
        return;
    }
    let place = Place::with_repository();
    let data = write_data(&place, "data", 1);
    assert_eq!(fs::metadata(&data).expect("there").mode() & 0o777, 0o755);
    set_mode(&place.path("repository"), 0o700);
    expect(place.command_as(USERS[0], GROUP, &["snapshots"]), 17);
}
