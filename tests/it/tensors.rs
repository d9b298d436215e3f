//! The program and tensors: `ls --tensors`, `diff --tensors`, `dump --tensor`, `restore --tensor`.

use crate::support::noise;
use crate::support::program::{Place, documents, expect};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// A tensor: name, type, shape, bytes.
type Tensor = (String, &'static str, Vec<u64>, Vec<u8>);

fn tensor(name: &str, dtype: &'static str, shape: &[u64], bytes: Vec<u8>) -> Tensor {
    (name.to_owned(), dtype, shape.to_vec(), bytes)
}

/// A safetensors file, put together by hand.
fn safetensors(tensors: &[Tensor], metadata: &str) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    if !metadata.is_empty() {
        header.insert("__metadata__".to_owned(), serde_json::from_str(metadata).expect("JSON"));
    }
    let mut at = 0;
    for (name, dtype, shape, bytes) in tensors {
        let end = at + bytes.len();
        header.insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [at, end]}));
        at = end;
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    tensors.iter().for_each(|(_, _, _, bytes)| file.extend_from_slice(bytes));
    file
}

/// The header of a safetensors file, and each tensor's bytes by its name; panics if the file is not exactly one.
fn taken_apart(file: &[u8]) -> (Value, Vec<(String, Vec<u8>)>) {
    let length = u64::from_le_bytes(file[..8].try_into().expect("8 bytes")) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).expect("a header of JSON");
    let content = &file[8 + length..];
    let mut covered = 0;
    let mut tensors = Vec::new();
    for (name, entry) in header.as_object().expect("an object").iter().filter(|(name, _)| *name != "__metadata__") {
        let at = |number: usize| entry["data_offsets"][number].as_u64().expect("an offset") as usize;
        covered += at(1) - at(0);
        tensors.push((name.clone(), content[at(0)..at(1)].to_vec()));
    }
    assert_eq!(covered, content.len(), "tensors cover the content");
    (header, tensors)
}

/// A model of several tensors; `step` changes one of them.
fn model(step: u8) -> Vec<Tensor> {
    let mut moving: Vec<u8> = (0..4096u32).flat_map(|i| (i as f32 / 100.0).to_le_bytes()).collect();
    moving[..4].copy_from_slice(&(f32::from(step) * 3.0).to_le_bytes());
    vec![
        tensor("embed.weight", "BF16", &[300, 500], noise(1, 300_000)),
        tensor("layers.0.weight", "F32", &[64, 64], moving),
        tensor("layers.1.weight", "F16", &[1024, 700], noise(3, 1_433_600)),
        tensor("scale", "F32", &[], 0.5f32.to_le_bytes().to_vec()),
    ]
}

/// A place with a backup of two checkpoints and a file that is none.
fn place() -> Place {
    let place = Place::with_repository();
    for (step, folder) in [(1, "checkpoint-100"), (2, "checkpoint-200")] {
        let folder = place.path("data").join(folder);
        fs::create_dir_all(&folder).expect("a folder");
        let file = safetensors(&model(step), "{\"format\":\"pt\"}");
        fs::write(folder.join("model.safetensors"), file).expect("a file");
        fs::write(folder.join("config.json"), b"{}").expect("a file");
    }
    place.backup("data");
    place
}

fn validated(place: &Place, text: &str, kind: &str) -> Value {
    let schema: Value = serde_json::from_str(&place.succeed(&["schema"])).expect("the schema is JSON");
    let validator = jsonschema::validator_for(&schema).expect("the schema is one");
    let document = documents(text).pop().expect("a document");
    if let Err(error) = validator.validate(&document) {
        panic!("{error}: {document}");
    }
    assert_eq!(document["type"].as_str(), Some(kind), "{document}");
    document["data"].clone()
}

fn fails(place: &Place, code: i32, arguments: &[&str]) -> String {
    let (_, said) = expect(place.command(arguments), code);
    assert!(!said.is_empty() && !said.contains("panicked"), "{said}");
    said
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn tensors_are_listed_in_lines_and_as_a_document() {
    let place = place();
    let listed = place.succeed(&["ls", "latest:checkpoint-100", "--tensors"]);
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines[0].starts_with("checkpoint-100/model.safetensors: safetensors, 4 tensors, "), "{listed}");
    let row = lines.iter().find(|line| line.ends_with("layers.1.weight")).expect("a row");
    assert!(row.starts_with("F16 ") && row.contains(" 1024x700 "), "{listed}");
    assert!(lines.iter().any(|line| line.contains(" scalar ")) && !listed.contains('\t'), "{listed}");
    assert!(lines.last().is_some_and(|line| line.starts_with("total: 4 tensors in 1 file, ")), "{listed}");
    let name_at = lines[1].find("NAME").expect("a heading");
    assert!(lines[2..6].iter().all(|line| line.as_bytes()[name_at - 1] == b' '), "{listed}");

    let data = validated(&place, &place.succeed(&["ls", "latest", "--tensors", "--json"]), "ls_tensors");
    assert_eq!((data["files_total"].as_u64(), data["tensors_total"].as_u64()), (Some(2), Some(8)));
    assert_eq!(data["files_passed_over"].as_u64(), Some(2));
    let first = &data["files"][0];
    assert_eq!(first["path"].as_str(), Some("checkpoint-100/model.safetensors"));
    assert_eq!(first["tensors"][1]["shape"], json!([64, 64]));
    assert_eq!(first["tensors"][2]["bytes"].as_u64(), Some(1_433_600));
    let few = ["ls", "latest", "--tensors", "--json", "--tensor", "layers.*", "--tensor", "scale"];
    assert_eq!(validated(&place, &place.succeed(&few), "ls_tensors")["tensors_total"].as_u64(), Some(6));
    assert!(fails(&place, 2, &["ls", "latest:checkpoint-100/config.json", "--tensors"]).contains("config.json"));
    fails(&place, 15, &["ls", "latest:nothing", "--tensors"]);
    fails(&place, 2, &["ls", "latest", "--tensor", "x"]);
    fails(&place, 2, &["ls", "latest", "--tensors", "--tensor", "[x"]);
}

#[test]
fn a_tensor_is_dumped_by_its_name_and_all_of_them_are_the_content() {
    let place = place();
    let path = "checkpoint-200/model.safetensors";
    let mut all = Vec::new();
    for (name, _, _, bytes) in model(2) {
        let output = place.run(&["dump", "latest", path, "--tensor", &name]);
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(output.stdout, bytes, "{name}");
        all.extend_from_slice(&output.stdout);
    }
    let file = read(&place.path("data").join(path));
    assert_eq!(all, file[file.len() - all.len()..]);
    let said = fails(&place, 15, &["dump", "latest", path, "--tensor", "layer.0.weight"]);
    assert!(said.contains("layers.0.weight"), "{said}");
    fails(&place, 2, &["dump", "latest", "checkpoint-200", "--tensor", "scale"]);
    fails(&place, 2, &["dump", "latest", path, "--format", "raw"]);
}

#[test]
fn tensors_of_two_checkpoints_are_compared() {
    let place = place();
    let sides = ["latest:checkpoint-100", "latest:checkpoint-200"];
    let shown = place.succeed(&["diff", sides[0], sides[1], "--tensors"]);
    let row = shown.lines().find(|line| line.ends_with("layers.0.weight")).expect("a row");
    assert!(row.starts_with("M ") && row.contains(" 0.02% ") && row.contains(" 3.000e0 "), "{shown}");
    let last = shown.lines().last().expect("a line");
    assert!(last.starts_with("tensors: 1 changed, 0 added, 0 removed, 0 reshaped, 3 unchanged"), "{shown}");

    let text = place.succeed(&["diff", sides[0], sides[1], "--tensors", "--json"]);
    let data = validated(&place, &text, "diff_tensors");
    let change = &data["changes"][0];
    assert_eq!(change["path_before"].as_str(), Some("checkpoint-100/model.safetensors"));
    assert_eq!(change["numbers"]["elements_changed"].as_u64(), Some(1));
    assert_eq!(change["numbers"]["norm_change"].as_f64(), Some(3.0));
    let before: f64 = (1..4096u32).map(|i| f64::from(i as f32 / 100.0).powi(2)).sum::<f64>() + 9.0;
    let relative = change["numbers"]["norm_relative"].as_f64().expect("a number");
    assert!((relative * before.sqrt() / 3.0 - 1.0).abs() < 1e-12);
    // Two files on the left have the names of the one on the right: none of them is taken for its counterpart.
    let text = place.succeed(&["diff", "latest", sides[1], "--tensors", "--json", "--tensor", "scale"]);
    assert_eq!(validated(&place, &text, "diff_tensors")["changes"].as_array().map(Vec::len), Some(3));
}

#[test]
fn tensors_are_restored_as_safetensors_files() {
    let place = place();
    let target = place.text("target");
    let arguments = ["restore", "latest", "--tensor", "layers.*", "--target", &target];
    let planned = place.succeed(&[&arguments[..], &["--dry-run", "--json"]].concat());
    let data = validated(&place, &planned, "summary");
    assert_eq!((data["command"].as_str(), data["tensors"].as_u64()), (Some("restore_tensors"), Some(4)));
    assert_eq!(data["planned"][0]["action"].as_str(), Some("create"));
    assert!(!place.path("target").exists());

    validated(&place, &place.succeed(&[&arguments[..], &["--json"]].concat()), "summary");
    for (step, folder) in [(1, "checkpoint-100"), (2, "checkpoint-200")] {
        let (header, mut found) = taken_apart(&read(&place.path("target").join(folder).join("model.safetensors")));
        found.sort();
        let wanted = model(step).into_iter().filter(|(name, ..)| name.starts_with("layers."));
        assert_eq!(found, wanted.map(|(name, _, _, bytes)| (name, bytes)).collect::<Vec<_>>());
        assert_eq!(header["__metadata__"], json!({"format": "pt"}));
        assert_eq!(header["layers.1.weight"]["shape"], json!([1024, 700]));
    }
    let again = validated(&place, &place.succeed(&[&arguments[..], &["--json"]].concat()), "summary");
    assert_eq!((again["files_restored"].as_u64(), again["files_unchanged"].as_u64()), (Some(0), Some(2)));
    let others = ["restore", "latest", "--tensor", "scale", "--target", &target, "--overwrite", "never", "--json"];
    assert_eq!(validated(&place, &place.succeed(&others), "summary")["files_kept"].as_u64(), Some(2));
}

#[test]
fn tensors_of_several_files_go_into_one_only_under_different_names() {
    let place = place();
    let one = place.text("one.safetensors");
    let from = "latest:checkpoint-100/model.safetensors";
    place.succeed(&["restore", from, "--tensor", "scale", "--tensor", "embed.*", "--target", &one]);
    let (_, mut found) = taken_apart(&read(&place.path("one.safetensors")));
    found.sort();
    assert_eq!(found.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["embed.weight", "scale"]);
    let two = place.text("two.safetensors");
    let said = fails(&place, 2, &["restore", "latest", "--tensor", "scale", "--target", &two]);
    assert!(said.contains("checkpoint-100/model.safetensors and checkpoint-200/model.safetensors"), "{said}");
    assert!(!place.path("two.safetensors").exists());
    fails(&place, 15, &["restore", "latest", "--tensor", "nothing.*", "--target", &two]);
    let narrow = ["restore", "latest", "--tensor", "scale", "--exclude", "checkpoint-100", "--target", &two];
    place.succeed(&narrow);
    assert!(place.path("two.safetensors").exists());
    fails(&place, 2, &["restore", "latest", "--tensor", "*", "--in-place"]);
}

#[test]
fn names_of_tensors_cannot_reach_the_terminal() {
    let place = Place::with_repository();
    let file = safetensors(&[tensor("a\u{1b}[2J\nb", "U8", &[1], vec![1])], "");
    fs::create_dir_all(place.path("data")).expect("a folder");
    fs::write(place.path("data/m.safetensors"), file).expect("a file");
    place.backup("data");
    let listed = place.succeed(&["ls", "latest", "--tensors"]);
    assert!(listed.contains("a\\x1b[2J\\nb") && !listed.contains('\u{1b}'), "{listed}");
}

/// What the script that wrote the samples of PyTorch says is in them: name, type, shape, whether contiguous, offset and length.
type Expected = (String, String, Vec<u64>, bool, Option<(usize, usize)>);

#[test]
fn tensors_of_pytorch_are_listed_dumped_and_restored() {
    let samples = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/torch");
    let place = Place::with_repository();
    place.succeed(&["backup", "--settle", "0", samples.to_str().expect("text")]);
    let expected = serde_json::from_slice::<BTreeMap<String, Vec<Expected>>>(&read(&samples.join("expected.json")));
    let target = place.text("target");
    expect(place.command(&["restore", "latest", "--tensor", "*", "--target", &target]), 3);
    let expected = expected.expect("as the script wrote it");
    for (path, tensors) in expected.into_iter().filter(|(path, _)| !path.ends_with(".npz")) {
        let file = read(&samples.join(&path));
        let text = place.succeed(&["ls", &format!("latest:{path}"), "--tensors", "--json"]);
        let data = validated(&place, &text, "ls_tensors");
        assert_eq!(data["files"][0]["tensors"].as_array().map(Vec::len), Some(tensors.len()), "{path}");
        let restored = place.path("target").join(&path).with_extension("safetensors");
        let (header, found) = taken_apart(&read(&restored));
        let found: BTreeMap<String, Vec<u8>> = found.into_iter().collect();
        for (name, dtype, shape, is_contiguous, lies) in tensors {
            // A tensor that is all of a file has a name all the same.
            let name = if name.is_empty() { "tensor".to_owned() } else { name };
            let arguments = ["dump", "latest", &path, "--tensor", &name];
            if !is_contiguous {
                assert!(!found.contains_key(&name), "{path}: {name}");
                fails(&place, 2, &arguments);
                continue;
            }
            let (offset, bytes) = lies.unwrap_or_default();
            let content = &file[offset..offset + bytes];
            if dtype == "C128" {
                assert!(!found.contains_key(&name) && place.run(&arguments).stdout == content, "{path}: {name}");
                continue;
            }
            assert_eq!(found.get(&name).map(Vec::as_slice), Some(content), "{path}: {name}");
            let described = (header[&name]["dtype"].as_str(), &header[&name]["shape"]);
            assert_eq!(described, (Some(dtype.as_str()), &json!(shape)), "{path}: {name}");
        }
    }
    let norm = place.run(&["dump", "latest", "types.pt", "--tensor", "bf16", "--format", "npy"]);
    assert!(norm.stdout.starts_with(b"\x93NUMPY\x01\x00"));
    assert!(String::from_utf8_lossy(&norm.stderr).contains("uint16"));
}

#[test]
fn an_array_that_was_dumped_is_understood_again() {
    let place = place();
    let model_path = place.text("data");
    let arguments = ["dump", "latest", "checkpoint-100/model.safetensors", "--path", &model_path, "--tensor"];
    fs::create_dir_all(place.path("arrays")).expect("a folder");
    for (name, _, shape, bytes) in model(1) {
        let output = place.run(&[&arguments[..], &[&name, "--format", "npy"]].concat());
        assert_eq!(output.status.code(), Some(0));
        fs::write(place.path("arrays/x.npy"), &output.stdout).expect("a file");
        place.backup("arrays");
        let path = place.text("arrays");
        let listed = place.succeed(&["ls", "latest:x.npy", "--tensors", "--json", "--path", &path]);
        let tensor = &validated(&place, &listed, "ls_tensors")["files"][0]["tensors"][0];
        assert_eq!(tensor["shape"], json!(shape), "{name}");
        let found = tensor["name"].as_str().expect("a name");
        let raw = place.run(&["dump", "latest", "x.npy", "--path", &path, "--tensor", found]);
        assert_eq!(raw.stdout, bytes, "{name}");
        let target = place.text(&format!("{name}.safetensors"));
        place.succeed(&["restore", "latest", "--path", &path, "--tensor", "*", "--target", &target]);
        assert_eq!(taken_apart(&read(Path::new(&target))).1, [(found.to_owned(), bytes)]);
    }
}
