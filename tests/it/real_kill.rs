//! The program killed by SIGKILL at pseudo-random moments of a backup.
//!
//! After each kill `ckpt snapshots` works; at the end every snapshot verifies and restores. The usual run kills 30 times;
//! `CKPT_TEST_KILLS=200` is the long one, `CKPT_TEST_SEED` chooses other moments. The moments are spread over the time
//! that a whole backup took, so on a busy machine some runs end before they are killed: they count as well, since their
//! snapshots have to be there.

use crate::support::program::{Place, documents, expect};
use crate::support::trees::Tree;
use crate::support::weights::{Tensor, narrow, safetensors, weights};
use crate::support::{Chance, noise, say, seed, setting};
use std::fs;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

const FILES: u64 = 12;
/// The first of them hold a tensor: what changes is coded against what it was.
const TENSOR_FILES: u64 = 4;
const FILE_BYTES: usize = 5 << 20;
const CHANGED_BYTES: usize = 1_000_000;
/// How many kills pass between two looks at what a backup makes of the leftovers.
const BATCH: u64 = 10;

fn path(place: &Place, number: u64) -> PathBuf {
    let extension = if number < TENSOR_FILES { ".safetensors" } else { "" };
    place.path(&format!("data/{number}{extension}"))
}

fn write_source(place: &Place) {
    fs::create_dir(place.path("data")).expect("a folder");
    for number in 0..FILES {
        let content = match number < TENSOR_FILES {
            true => safetensors(&[Tensor::new("w", "BF16", narrow(&weights(number, FILE_BYTES / 2)))], 0),
            false => noise(number, FILE_BYTES),
        };
        fs::write(path(place, number), content).expect("a file");
    }
}

/// Some new content in each file, so that there is as much to read as in the first backup.
fn change_source(place: &Place, round: u64) {
    for number in 0..FILES {
        let file = fs::File::options().read(true).write(true).open(path(place, number)).expect("a file");
        let offset = match number < TENSOR_FILES {
            true => 1000 + round * 100_000 % (FILE_BYTES - CHANGED_BYTES) as u64,
            false => (round * 7 + number) % (FILE_BYTES - CHANGED_BYTES) as u64,
        };
        let mut changed = noise(round * 100 + number, CHANGED_BYTES);
        if number < TENSOR_FILES {
            file.read_exact_at(&mut changed, offset).expect("read");
            // The lower bits of every third number.
            changed.iter_mut().step_by(6).for_each(|byte| *byte ^= 1 + (round & 1) as u8);
        }
        file.write_all_at(&changed, offset).expect("written");
    }
}

/// Begins a backup and kills it after `delay`; true if it was killed before its end, and what it had reported if not.
fn kill_after(place: &Place, delay: Duration) -> Option<String> {
    let mut command = place.command(&["backup", &place.text("data"), "--json"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
    // The moment is the point of this test, and not waited for by any of its checks.
    std::thread::park_timeout(delay);
    child.kill().expect("ours, and not waited for yet");
    let output = child.wait_with_output().expect("it ends");
    if output.status.signal() == Some(9) {
        return None;
    }
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let summary = documents(&String::from_utf8_lossy(&output.stdout)).pop().expect("a summary");
    Some(summary["data"]["snapshot"].as_str().expect("a snapshot").to_owned())
}

#[test]
fn killed_backups_leave_everything_whole_and_need_no_hand() {
    let kills = setting("CKPT_TEST_KILLS", 30);
    let place = Place::with_repository();
    write_source(&place);
    let mut saved = vec![(place.backup("data"), Tree::read(&place.path("data")))];
    // The time of a backup like those that are to be killed.
    change_source(&place, kills);
    let begun = Instant::now();
    saved.push((place.backup("data"), Tree::read(&place.path("data"))));
    let whole = begun.elapsed();
    let mut chance = Chance(seed());
    let (mut killed, mut ended) = (0, 0);
    for number in 0..kills {
        change_source(&place, number);
        let micros = u64::try_from(whole.as_micros()).expect("a short time");
        // Every part of the run in turn, at a random moment of that part.
        let part = micros / kills;
        let delay = Duration::from_micros(part * (number * 7 % kills) + chance.below(part.max(1)));
        match kill_after(&place, delay) {
            None => killed += 1,
            Some(id) => {
                ended += 1;
                saved.push((id, Tree::read(&place.path("data"))));
            }
        }
        let listed = place.snapshots();
        let why = format!("seed {}, kill {number} after {delay:?}", seed());
        for (id, _) in &saved {
            assert!(listed.contains(id), "{why}: {id} is gone");
        }
        // A kill after the commit and before the report: whole, and unknown to us.
        for id in listed.iter().filter(|id| saved.iter().all(|(saved, _)| saved != *id)).cloned().collect::<Vec<_>>() {
            saved.push((id, Tree::read(&place.path("data"))));
        }
        if number % BATCH == BATCH - 1 {
            saved.push((place.backup("data"), Tree::read(&place.path("data"))));
            keep_few(&place, &mut saved);
        }
    }
    saved.push((place.backup("data"), Tree::read(&place.path("data"))));
    expect(place.command(&["verify", "--read-data"]), 0);
    for (id, wanted) in &saved {
        let target = place.path("target");
        expect(place.command(&["restore", id, "--target", target.to_str().expect("text")]), 0);
        Tree::read(&target).assert_is(wanted, &format!("snapshot {id}, seed {}", seed()));
        fs::remove_dir_all(&target).expect("removed");
    }
    say(&format!("real_kill: {killed} of {kills} backups killed, {ended} ended before, seed {}", seed()));
    assert!(killed * 3 > kills, "more runs have to be killed: {killed} of {kills}");
}

/// Forgets and prunes, so that long runs need no more room than short ones; what killed runs left goes, too.
fn keep_few(place: &Place, saved: &mut Vec<(String, Tree)>) {
    while saved.len() > 4 {
        let (id, _) = saved.remove(1);
        expect(place.command(&["forget", &id]), 0);
    }
    expect(place.command(&["prune", "--max-unused", "0", "--delete-delay", "0"]), 0);
}
