//! Repositories and targets on small disks: full at every stage of a run, without inodes, read-only in the middle.
//!
//! The disks are loop-mounted images, which only root can mount: without it, or where the kernel forbids, NOT RUN.

use crate::support::mounted::Mounted;
use crate::support::program::{Place, expect};
use crate::support::trees::Tree;
use crate::support::{noise, not_run, say};
use std::fs;
use std::path::PathBuf;

const MIB: u64 = 1 << 20;

/// Bytes left on a full disk: from nothing to more than the run needs.
const LEFT: [u64; 10] = [0, 4 << 10, 12 << 10, 40 << 10, 100 << 10, 300 << 10, 700 << 10, MIB, 2 * MIB, 4 * MIB];

struct Small {
    place: Place,
    disk: Mounted,
    saved: Vec<(String, Tree)>,
}

impl Small {
    /// A repository on a small disk with two snapshots and a source that has changed since.
    fn new(check: &str, more: &[&str]) -> Option<Small> {
        let place = Place::new();
        let arguments = [&["-m", "0", "-b", "4096"], more].concat();
        let disk = Mounted::new(&place, "repository", 24 * MIB, &arguments, check)?;
        expect(place.command(&["init"]), 0);
        let mut small = Small { place, disk, saved: Vec::new() };
        fs::create_dir(small.data()).expect("a folder");
        for turn in 0..2 {
            small.change(turn);
            small.saved.push((small.place.backup("data"), Tree::read(&small.data())));
        }
        small.change(2);
        Some(small)
    }

    fn data(&self) -> PathBuf {
        self.place.path("data")
    }

    fn change(&self, turn: u64) {
        for number in 0..3 {
            let content = noise(10 * turn + number, 500_000);
            fs::write(self.data().join(number.to_string()), content).expect("a file");
        }
    }

    /// Runs a command on a full disk: it succeeds, or says 14 and names the repository.
    fn run_full(&self, arguments: &[&str], left: u64) -> bool {
        let output = self.place.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => return true,
            Some(14) => {}
            code => panic!("{arguments:?} with {left} bytes left: {code:?}, {said}"),
        }
        assert!(said.contains(&self.place.text("repository")), "{arguments:?}: the repository is named: {said}");
        assert!(!said.contains("source unreadable"), "{arguments:?}: {said}");
        false
    }

    /// Every snapshot that was saved restores bit by bit, and nothing is damaged.
    fn assert_whole(&self) {
        for (id, wanted) in &self.saved {
            let target = self.place.path("whole");
            expect(self.place.command(&["restore", id, "--target", target.to_str().expect("text")]), 0);
            Tree::read(&target).assert_is(wanted, id);
            fs::remove_dir_all(&target).expect("removed");
        }
        expect(self.place.command(&["verify", "--read-data"]), 0);
    }
}

#[test]
fn a_disk_that_fills_up_at_any_stage_of_a_run_is_named_and_the_next_run_succeeds() {
    let check = "a_disk_that_fills_up_at_any_stage_of_a_run_is_named_and_the_next_run_succeeds";
    let Some(mut small) = Small::new(check, &[]) else { return };
    let mut full = 0;
    for (turn, left) in (3..).zip(LEFT) {
        let data = small.place.text("data");
        let oldest = small.saved[0].0.clone();
        small.disk.fill(left);
        let backed_up = small.run_full(&["backup", &data, "--settle", "0"], left);
        let tagged = small.run_full(&["tag", &small.saved[1].0, "--add", "kept"], left);
        let forgotten = small.run_full(&["forget", &oldest], left);
        full += [backed_up, tagged, forgotten].iter().filter(|done| !**done).count();
        // Looking at it needs no room.
        small.place.snapshots();
        small.disk.empty();
        // Whatever failed succeeds now.
        let id = small.place.backup("data");
        small.saved.push((id, Tree::read(&small.data())));
        if !forgotten {
            expect(small.place.command(&["forget", &oldest]), 0);
        }
        small.saved.remove(0);
        expect(small.place.command(&["prune", "--max-unused", "0", "--delete-delay", "0"]), 0);
        small.assert_whole();
        small.change(turn);
    }
    say(&format!("small_disks: {full} of {} runs met a full disk", 3 * LEFT.len()));
    assert!(full >= 9, "the disk has to be full more often than {full} times");
}

#[test]
fn a_prune_on_a_full_disk_frees_space_or_says_that_its_record_needs_some() {
    let check = "a_prune_on_a_full_disk_frees_space_or_says_that_its_record_needs_some";
    let Some(mut small) = Small::new(check, &[]) else { return };
    let (oldest, _) = small.saved.remove(0);
    expect(small.place.command(&["forget", &oldest]), 0);
    small.disk.fill(0);
    let free = || rustix::fs::statvfs(&small.disk.at).expect("a file system").f_bavail;
    let before = free();
    let output = small.place.run(&["prune", "--max-unused", "0", "--delete-delay", "0"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(0) => assert!(free() > before, "{} blocks free before and {} after: {said}", before, free()),
        // Without room for the record of the decision it can only say so.
        code => {
            assert!(code == Some(14) && said.contains("no room even"), "{code:?}, {before} blocks: {said}");
            small.disk.give_back(64 << 10);
            expect(small.place.command(&["prune", "--max-unused", "0", "--delete-delay", "0"]), 0);
            assert!(free() > 16, "{} blocks are free", free());
        }
    }
    say(&format!(
        "small_disks: prune with {before} free blocks ended with {:?}, {} free",
        output.status.code(),
        free()
    ));
    small.disk.empty();
    expect(small.place.command(&["prune", "--max-unused", "0", "--delete-delay", "0"]), 0);
    small.assert_whole();
}

#[test]
fn a_prune_works_on_a_disk_without_inodes() {
    let check = "a_prune_works_on_a_disk_without_inodes";
    let Some(mut small) = Small::new(check, &["-N", "128"]) else { return };
    let (oldest, _) = small.saved.remove(0);
    expect(small.place.command(&["forget", &oldest]), 0);
    let fillers = small.disk.at.join("lost+found");
    let taken = (0..).take_while(|n| fs::File::create(fillers.join(format!("inode-{n}"))).is_ok()).count();
    assert!(taken < 128, "inodes are limited");
    let data = small.place.text("data");
    let output = small.place.run(&["backup", &data, "--settle", "0"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(14), "{said}");
    assert!(said.contains("inodes") && said.contains(&small.place.text("repository")), "{said}");
    let pruned = small.place.run(&["prune", "--max-unused", "0", "--delete-delay", "0"]);
    let said = String::from_utf8_lossy(&pruned.stderr).into_owned();
    assert!(matches!(pruned.status.code(), Some(0 | 14)), "{said}");
    (0..taken).for_each(|n| fs::remove_file(fillers.join(format!("inode-{n}"))).expect("removed"));
    expect(small.place.command(&["prune", "--max-unused", "0", "--delete-delay", "0"]), 0);
    small.saved.push((small.place.backup("data"), Tree::read(&small.data())));
    small.assert_whole();
}

#[test]
fn a_target_that_fills_up_at_any_stage_of_a_restore_is_named_and_the_next_run_goes_on() {
    let check = "a_target_that_fills_up_at_any_stage_of_a_restore_is_named_and_the_next_run_goes_on";
    let place = Place::with_repository();
    let Some(disk) = Mounted::new(&place, "target", 12 * MIB, &["-m", "0"], check) else { return };
    fs::create_dir(place.path("data")).expect("a folder");
    (0..6u64).for_each(|n| fs::write(place.path(&format!("data/{n}")), noise(n, 400_000)).expect("a file"));
    place.backup("data");
    let into = disk.at.join("into");
    let restore = || place.command(&["restore", "latest", "--target", into.to_str().expect("text")]);
    let mut full = 0;
    for left in LEFT {
        disk.fill(left);
        let output = restore().output().expect("the program starts");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.code() != Some(0) {
            assert_eq!(output.status.code(), Some(14), "{left} bytes left: {said}");
            assert!(said.contains(disk.at.to_str().expect("text")), "the target is named: {said}");
            full += 1;
        }
        disk.empty();
        expect(restore(), 0);
        Tree::read(&into).assert_is(&Tree::read(&place.path("data")), "restored in two runs");
        fs::remove_dir_all(&into).expect("removed");
    }
    assert!(full >= 4, "the target has to be full more often than {full} times");
}

#[test]
fn a_disk_that_becomes_read_only_in_the_middle_is_told_as_such() {
    let check = "a_disk_that_becomes_read_only_in_the_middle_is_told_as_such";
    let Some(small) = Small::new(check, &[]) else { return };
    (0..40u64).for_each(|n| fs::write(small.data().join(format!("more-{n}")), noise(n, 100_000)).expect("a file"));
    let data = small.place.text("data");
    // Slow enough that the disk changes while it runs.
    let mut command = small.place.command(&["backup", &data, "--settle", "0", "--limit-read", "2MB"]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("the program starts");
    while fs::read_dir(small.disk.at.join("transactions")).expect("a folder").flatten().count() == 0 {
        std::thread::yield_now();
    }
    // A kernel refuses while a file is open for writing; `-f` of umount does not help, the emergency way does not either.
    let mut is_read_only = false;
    while !is_read_only && child.try_wait().expect("ours").is_none() {
        is_read_only = small.disk.remount("ro");
    }
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if is_read_only {
        assert!(matches!(output.status.code(), Some(13 | 17)), "{:?}: {said}", output.status);
        assert!(said.contains(&small.place.text("repository")), "the repository is named: {said}");
    } else {
        not_run(check, "the disk was in use for writing until the end");
    }
    assert!(small.disk.remount("rw"), "it can be written again");
    let mut small = small;
    small.saved.push((small.place.backup("data"), Tree::read(&small.data())));
    small.assert_whole();
}
