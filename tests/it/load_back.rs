//! Restored files load in the libraries that wrote them, with the tensors that they had: `tests/load_back.py`.
//!
//! Needs `CKPT_TEST_PYTHON`, an interpreter with numpy, safetensors, gguf and pyarrow, which `tests/run` provides. PyTorch is
//! too large for that: `tests/load_back_torch` is run by hand, as docs/TESTING.md says.

use crate::support::containers::{copy_containers, expected, folder};
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

/// Of each container one file, and what numpy and safetensors can hold of it.
const FILES_OF_TENSORS: &[&str] = &[
    "safetensors/model.safetensors",
    "torch/nested.ckpt",
    "dcp/checkpoint/__0_0.distcp",
    "gguf/model.gguf",
    "numpy/rows.npy",
];
const TYPES_OF_NUMPY: &[&str] = &["F64", "F32", "F16", "I64", "I32", "U8", "BOOL", "C64"];

#[test]
fn single_tensors_load_in_numpy_and_safetensors() {
    let Some(python) = python() else { return };
    let place = Place::with_repository();
    copy_containers(&place.path("data"));
    place.backup("data");
    let expected = expected();
    let mut number = 0;
    for file in FILES_OF_TENSORS {
        let mut pairs = Vec::new();
        for tensor in expected.files[*file].tensors.iter().filter(|t| t.is_plain && !t.shape.contains(&0)) {
            let is_for_numpy = TYPES_OF_NUMPY.contains(&tensor.dtype.as_str());
            let is_for_all = !tensor.dtype.starts_with('Q') && tensor.dtype != "C64";
            for (kind, _) in [("raw", true), ("npy", is_for_numpy), ("safetensors", is_for_all)].iter().filter(|k| k.1)
            {
                number += 1;
                let path = place.text(&format!("{number}.{kind}"));
                write_tensor(&place, file, &tensor.name, kind, &path);
                pairs.push(format!("{}={path}", tensor.name));
            }
        }
        let path = expected_path();
        let mut arguments = vec!["--tensors", &path, file];
        arguments.extend(pairs.iter().map(String::as_str));
        load_back(&python, &arguments);
    }
    assert!(number > 40, "{number} tensors were written");
}

/// Has the program write one tensor of a stored file.
fn write_tensor(place: &Place, file: &str, name: &str, kind: &str, path: &str) {
    if kind == "safetensors" {
        place.succeed(&["restore", &format!("latest:{file}"), "--tensor", name, "--target", path]);
        return;
    }
    let output = place.run(&["dump", "latest", file, "--tensor", name, "--format", kind]);
    assert!(output.status.success(), "{file}, {name}: {}", String::from_utf8_lossy(&output.stderr));
    std::fs::write(path, output.stdout).expect("written");
}
