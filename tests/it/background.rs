//! `--background`: the whole program steps behind everything else on the machine.

use crate::support::not_run;
use crate::support::program::{Place, runs};
use std::fs;
use std::process::Command;

/// Prints nice and the class for disks of every thread of its parent, once that has started some, or after some thousand looks.
const ASK: &str = "looks=0; \
                   while [ $(ls /proc/$PPID/task | wc -l) -lt 4 ] && [ $looks -lt 5000 ]; do looks=$((looks + 1)); done; \
                   for task in /proc/$PPID/task/*; do \
                   echo $(cut -d' ' -f19 $task/stat) $(ionice -p ${task##*/}); done";
/// The same of its parent alone.
const ASK_ONE: &str = "echo $(cut -d' ' -f19 /proc/$PPID/stat) $(ionice -p $PPID)";

/// What the threads of a backup say that stores this answer.
fn threads(place: &Place, options: &[&str]) -> Vec<String> {
    let command = ["--threads", "2", "--stdin", "answer", "--stdin-from-command", "--", "sh", "-c", ASK];
    place.succeed(&[&["backup"], options, &command].concat());
    // A thread that has ended while it was asked about says nothing, or half of it.
    let answer = place.succeed(&["dump", "latest", "answer"]);
    answer.lines().filter(|line| line.contains(' ')).map(nice_and_class).collect()
}

/// Without the place within the class.
fn nice_and_class(line: &str) -> String {
    line.split(':').next().unwrap_or_default().trim().to_owned()
}

/// What this process says, whose priorities everything inherits that it starts.
fn own() -> String {
    let output = Command::new("sh").args(["-c", ASK_ONE]).output().expect("a shell");
    nice_and_class(&String::from_utf8(output.stdout).expect("text"))
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
    let own = own();
    assert!(usual.iter().all(|thread| *thread == own), "{usual:?}, not {own}");
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
