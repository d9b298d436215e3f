//! Restored files load in the libraries that wrote them, with the tensors that they had: `tests/load_back.py`.
//!
//! Needs `CKPT_TEST_PYTHON`, an interpreter with numpy, safetensors, gguf and pyarrow, which `tests/run` provides. PyTorch is
//! too large for that: `tests/load_back_torch` is run by hand, as docs/TESTING.md says.

use crate::support::containers::{copy_containers, folder};
use crate::support::not_run;
use crate::support::program::{Place, runs};
use std::path::Path;
use std::process::Command;

/// The interpreter; none, with that said, if there is none with the libraries.
fn python() -> Option<String> {
    let check = "loading restored files in the libraries that wrote them";
    let Some(python) = std::env::var("CKPT_TEST_PYTHON").ok() else {
        not_run(check, "CKPT_TEST_PYTHON is not set; tests/run sets it");
        return None;
    };
    let has_all = runs(&python, &["-c", "import numpy, safetensors, gguf, pyarrow"]);
    if !has_all {
        not_run(check, "numpy, safetensors, gguf or pyarrow is missing; tests/run installs them");
    }
    has_all.then_some(python)
}

/// Runs the script, which must succeed; what it says.
fn load_back(python: &str, arguments: &[&str]) -> String {
    let output = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/load_back.py"))
        .args(arguments)
        .output()
        .expect("the interpreter of CKPT_TEST_PYTHON starts");
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "load_back.py {arguments:?}: {out}{error}");
    out.into_owned()
}

fn expected_path() -> String {
    folder().join("expected.json").to_str().expect("text").to_owned()
}

#[test]
fn restored_files_load_in_the_libraries_that_wrote_them() {
    let Some(python) = python() else { return };
    let place = Place::with_repository();
    copy_containers(&place.path("data"));
    place.backup("data");
    place.succeed(&["restore", "latest", "--target", &place.text("restored")]);
    let said = load_back(&python, &[&place.text("restored"), &expected_path()]);
    let count: u32 = said.split(' ').next().and_then(|first| first.parse().ok()).expect("a number of files");
    assert!(count >= 20, "{said}");
}
