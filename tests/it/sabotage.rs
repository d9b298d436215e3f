//! The defects that can be planted (`src/sabotage.rs`): the table and the source tell of the same ones, and the tests that the
//! table names are there. That each is caught, `tests/sabotage` shows, which takes too long for every run.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A line of the table.
struct Defect {
    id: String,
    /// `lib` or `it`, and the filter of its tests.
    tests: Vec<(String, String)>,
    what: String,
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn table() -> Vec<Defect> {
    let text = fs::read_to_string(project().join("tests/sabotage.list")).expect("the table");
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let defect = |line: &str| {
        let fields: Vec<&str> = line.split('|').map(str::trim).collect();
        let [id, tests, what] = fields[..] else { panic!("three fields: {line}") };
        let pair = |pair: &str| {
            let (suite, filter) = pair.trim().split_once(' ').unwrap_or_else(|| panic!("suite and filter: {line}"));
            (suite.to_owned(), filter.to_owned())
        };
        Defect { id: id.to_owned(), tests: tests.split(',').map(pair).collect(), what: what.to_owned() }
    };
    lines.map(defect).collect()
}

/// Every Rust file beneath a folder of the project, with its path.
fn files(folder: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut ahead = vec![project().join(folder)];
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(folder).expect("a folder of the project").flatten() {
            let path = entry.path();
            if path.is_dir() {
                ahead.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a file of the project");
                found.push((path, text));
            }
        }
    }
    found
}

#[test]
fn the_table_and_the_source_have_the_same_defects() {
    let mut planted: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for (path, text) in files("src").into_iter().filter(|(path, _)| !path.ends_with("src/sabotage.rs")) {
        for rest in text.split("is_planted(\"").skip(1) {
            let id = rest.split('"').next().expect("the end of a text").to_owned();
            planted.entry(id).or_default().push(path.clone());
        }
    }
    let table = table();
    let listed: Vec<&str> = table.iter().map(|defect| defect.id.as_str()).collect();
    for id in &listed {
        assert!(planted.contains_key(*id), "{id} is listed and planted nowhere");
        assert_eq!(listed.iter().filter(|other| *other == id).count(), 1, "{id} is listed twice");
    }
    for (id, paths) in &planted {
        assert!(listed.contains(&id.as_str()), "{id} is planted and not listed");
        assert!(paths.iter().all(|path| *path == paths[0]), "{id} is planted in several files: {paths:?}");
    }
    assert!(table.len() >= 50, "{} defects", table.len());
}

#[test]
fn the_tests_that_the_table_names_are_there() {
    let sources: Vec<String> = files("src").into_iter().chain(files("tests/it")).map(|(_, text)| text).collect();
    for Defect { id, tests, what } in table() {
        assert!(!what.is_empty(), "{id} says nothing of what is broken");
        for (suite, filter) in tests {
            assert!(["lib", "it"].contains(&suite.as_str()), "{id}: {suite}");
            let name = filter.rsplit("::").find(|part| !part.is_empty()).expect("a filter");
            let is_there =
                |text: &String| text.contains(&format!("fn {name}(")) || text.contains(&format!("mod {name}"));
            assert!(sources.iter().any(is_there), "{id}: no test or module is called {name}");
        }
    }
}

/// The program of an ordinary build heeds no defect, and one that was built to be broken says so.
#[test]
fn an_ordinary_program_cannot_be_broken() {
    let home = tempfile::tempdir().expect("a folder");
    let run = |defect: Option<&str>| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ckpt"));
        command.arg("snapshots").arg("--repo").arg(home.path()).env_clear();
        command.envs(defect.map(|defect| ("CKPT_SABOTAGE", defect)));
        String::from_utf8(command.output().expect("it runs").stderr).expect("text")
    };
    assert_eq!(run(None).contains("BUILT TO BE BROKEN"), cfg!(feature = "sabotage"));
    assert!(!run(Some("none")).contains("BUILT TO BE BROKEN"));
}
