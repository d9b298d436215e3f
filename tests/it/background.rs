//! `--background`: the whole program steps behind everything else on the machine.

use crate::support::not_run;
use crate::support::program::{Place, runs};
use std::fs;

/// Prints nice and the class for disks of every thread of its parent, once that has started some.
const ASK: &str = "while [ $(ls /proc/$PPID/task | wc -l) -lt 4 ]; do :; done; \
                   for task in /proc/$PPID/task/*; do \
                   echo $(cut -d' ' -f19 $task/stat) $(ionice -p ${task##*/}); done";

/// What the threads of a backup say that stores this answer.
fn threads(place: &Place, options: &[&str]) -> Vec<String> {
    let command = ["--threads", "2", "--stdin", "answer", "--stdin-from-command", "--", "sh", "-c", ASK];
    place.succeed(&[&["backup"], options, &command].concat());
    // A thread that has ended while it was asked about says nothing, or half of it.
    let answer = place.succeed(&["dump", "latest", "answer"]);
    answer.lines().filter(|line| line.contains(' ')).map(str::to_owned).collect()
}

#[test]
fn every_thread_of_a_run_in_the_background_has_the_lowest_priorities() {
    if !runs("ionice", &["-p", "1"]) {
        return not_run("priorities in the background", "there is no ionice, or it may not ask");
    }
    let place = Place::with_repository();
    let usual = threads(&place, &[]);
    let background = threads(&place, &["--background"]);
    assert!(usual.len() >= 4 && background.len() >= 4, "{usual:?} {background:?}");
    assert!(background.iter().all(|thread| thread == "19 idle"), "{background:?}");
    assert!(usual.iter().all(|thread| thread != "19 idle"), "{usual:?}");
}

#[test]
fn every_command_that_moves_data_can_run_in_the_background() {
    let place = Place::with_repository();
    fs::create_dir(place.path("data")).expect("a folder");
    fs::write(place.path("data/f"), "content").expect("a file");
    place.backup("data");
    let target = place.text("restored");
    for command in [
        &["restore", "latest", "--target", &target][..],
        &["verify", "--read-data"],
        &["dump", "latest", "f"],
        &["repair", "--dry-run"],
        &["prune"],
    ] {
        place.succeed(&[command, &["--background"]].concat());
    }
    assert_eq!(fs::read(place.path("restored/f")).expect("restored"), b"content");
}
