//! Which files are written and what goes into each: paths, headers, places.

use super::PlannedFile;
use super::write::Action;
use crate::bytes::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ops::tensors::{TensorFile, place_of};
use crate::source::layout::{Container, Tensor};
use crate::source::safetensors::{self, Header, Item};
use std::collections::{BTreeMap, HashMap};

/// What safetensors files are called.
const EXTENSION: &[u8] = b".safetensors";
/// So many names that are there twice are named.
const NAMES_MAX: usize = 5;

/// A file that is to be written.
pub(super) struct Output<'s> {
    /// Relative to the target.
    pub(super) path: Vec<u8>,
    /// What it begins with, and how long it is.
    pub(super) header: Header,
    /// The tensors in the order of the new file: the number of the source, and the place there.
    pub(super) content: Vec<(usize, ByteRange)>,
    /// The first source: the new file takes after it.
    pub(super) first: &'s TensorFile,
}

impl Output<'_> {
    /// Bytes of the file.
    pub(super) fn bytes(&self) -> u64 {
        self.header.file_bytes
    }

    /// Tensors in it.
    pub(super) fn tensors(&self) -> u64 {
        self.content.len() as u64
    }

    /// What a dry run says of it.
    pub(super) fn planned(&self, action: &Action) -> PlannedFile {
        let action = match action {
            Action::Create => "create",
            Action::Update { .. } => "update",
            Action::Keep | Action::Unchanged => "keep",
        };
        PlannedFile { path: self.path.clone(), action, bytes: self.bytes(), tensors: self.tensors() }
    }
}

/// Why safetensors cannot hold the tensor, if it cannot.
pub(super) fn refusal(tensor: &Tensor) -> Option<Error> {
    let place = match place_of(tensor) {
        Ok(place) => place,
        Err(error) => return Some(error),
    };
    let item = [item(tensor, place)];
    safetensors::header(&item, &[]).err()
}

fn item(tensor: &Tensor, place: ByteRange) -> Item<'_> {
    Item { name: &tensor.name, dtype: tensor.dtype, shape: &tensor.shape, bytes: place.len() }
}

/// The files to write for `sources`: each becomes one, or all become the one called `file`.
pub(super) fn outputs<'s>(
    sources: &'s [TensorFile],
    file: Option<&[u8]>,
    observer: &dyn Observer,
) -> Result<Vec<Output<'s>>> {
    let paths = match file {
        Some(name) => vec![name.to_vec(); sources.len()],
        None => paths(sources),
    };
    let mut by_path: BTreeMap<Vec<u8>, Vec<usize>> = BTreeMap::new();
    for (number, path) in paths.into_iter().enumerate() {
        by_path.entry(path).or_default().push(number);
    }
    by_path.into_iter().map(|(path, numbers)| output(sources, path, &numbers, observer)).collect()
}

/// The path of each source with the extension of what it becomes; with both extensions where two would meet.
fn paths(sources: &[TensorFile]) -> Vec<Vec<u8>> {
    let own: Vec<Vec<u8>> = sources.iter().map(|source| cleaned(&source.file.path)).collect();
    let replaced: Vec<Vec<u8>> = own.iter().map(|path| replaced_extension(path)).collect();
    let mut uses: HashMap<&[u8], u64> = HashMap::new();
    replaced.iter().for_each(|path| *uses.entry(path).or_default() += 1);
    let is_alone = |path: &Vec<u8>| uses.get(path.as_slice()) == Some(&1);
    let choose = |(own, replaced): (&Vec<u8>, &Vec<u8>)| match is_alone(replaced) || own == replaced {
        true => replaced.clone(),
        false => [own, EXTENSION].concat(),
    };
    own.iter().zip(&replaced).map(choose).collect()
}

/// Without what cannot be in a path below a target.
fn cleaned(path: &[u8]) -> Vec<u8> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b"." && *part != b"..");
    parts.collect::<Vec<_>>().join(&b'/')
}

fn replaced_extension(path: &[u8]) -> Vec<u8> {
    let name_begin = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (folder, name) = path.split_at(name_begin);
    // A dot in front makes a name hidden; it begins no extension.
    let stem = name.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0).map_or(name, |dot| &name[..dot]);
    [folder, stem, EXTENSION].concat()
}

fn output<'s>(
    sources: &'s [TensorFile],
    path: Vec<u8>,
    numbers: &[usize],
    observer: &dyn Observer,
) -> Result<Output<'s>> {
    let chosen = || numbers.iter().filter_map(|&number| Some((number, sources.get(number)?)));
    refuse_same_names(&path, chosen().map(|(_, source)| source))?;
    let first = chosen().next().map(|(_, source)| source);
    let first = first.ok_or_else(|| Error::new(Kind::Failed, "a file of no tensors was planned"))?;
    let mut items = Vec::new();
    let mut places = Vec::new();
    for (number, source) in chosen() {
        for tensor in &source.layout.tensors {
            let place = place_of(tensor)?;
            items.push(item(tensor, place));
            places.push((number, place));
        }
    }
    let notes = notes(&path, chosen().map(|(_, source)| source), observer);
    let header =
        safetensors::header(&items, &notes).map_err(|error| error.while_doing(String::from_utf8_lossy(&path)))?;
    let content = header.order.iter().filter_map(|&number| places.get(number).copied()).collect();
    Ok(Output { path, header, content, first })
}

/// One name of two tensors that would go into one file is an error that says where both are.
fn refuse_same_names<'s>(path: &[u8], sources: impl Iterator<Item = &'s TensorFile>) -> Result<()> {
    let mut known: HashMap<&str, &TensorFile> = HashMap::new();
    let mut twice = Vec::new();
    let mut count = 0u64;
    for source in sources {
        for tensor in &source.layout.tensors {
            let Some(other) = known.insert(&tensor.name, source) else { continue };
            count += 1;
            if twice.len() < NAMES_MAX {
                let shown = |file: &TensorFile| String::from_utf8_lossy(&file.file.path).into_owned();
                twice.push(format!("{} (in {} and {})", tensor.name, shown(other), shown(source)));
            }
        }
    }
    if count == 0 {
        return Ok(());
    }
    let more = match count - twice.len() as u64 {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let path = String::from_utf8_lossy(path);
    let text = format!("tensors of one name would go into {path}: {}{more}", twice.join(", "));
    Err(Error::new(Kind::Usage, text).with_hint("restore to a directory, or narrow with SELECTOR:SUBPATH or --include"))
}

/// The notes of all sources; of two with one key the first stays. What torch saved is marked as libraries expect it.
fn notes<'s>(
    path: &[u8],
    sources: impl Iterator<Item = &'s TensorFile>,
    observer: &dyn Observer,
) -> Vec<(String, String)> {
    let mut kept: BTreeMap<String, String> = BTreeMap::new();
    let mut differs = false;
    for source in sources {
        let own = match source.layout.container {
            Container::Torch | Container::Dcp => vec![("format".to_owned(), "pt".to_owned())],
            Container::Safetensors => source.layout.metadata.clone(),
            _ => Vec::new(),
        };
        for (key, value) in own {
            differs |= kept.get(&key).is_some_and(|known| *known != value);
            kept.entry(key).or_insert(value);
        }
    }
    if differs {
        let text =
            format!("{}: its sources have different notes; the first of each stays", String::from_utf8_lossy(path));
        observer.on_event(&Event::Warning { text: &text });
    }
    kept.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Silent;
    use crate::ops::tensors::tests::tensor_file;
    use crate::source::layout::Dtype;

    fn planned(sources: &[TensorFile], file: Option<&str>) -> Result<Vec<String>> {
        let outputs = outputs(sources, file.map(str::as_bytes), &Silent)?;
        Ok(outputs.iter().map(|output| String::from_utf8_lossy(&output.path).into_owned()).collect())
    }

    #[test]
    fn what_safetensors_cannot_hold_is_refused_with_its_reason() {
        let sound = &tensor_file("m", Container::Gguf, &["t"]).layout.tensors[0];
        assert!(refusal(sound).is_none());
        let reason = |tensor: Tensor| refusal(&tensor).expect("refused").to_string();
        assert!(reason(Tensor { dtype: Dtype::Blocks("Q4_K"), ..sound.clone() }).contains("Q4_K"));
        assert!(reason(Tensor { place: None, ..sound.clone() }).contains("one behind the other"));
        assert!(reason(Tensor { shape: vec![3], ..sound.clone() }).contains("10 bytes"));
    }

    #[test]
    fn files_that_would_meet_keep_their_whole_names() {
        let file = |path: &str| tensor_file(path, Container::Torch, &["t"]);
        let paths = planned(&[file("a/m.bin"), file("b/m.bin")], None).expect("apart");
        assert_eq!(paths, ["a/m.safetensors", "b/m.safetensors"]);
        let paths = planned(&[file("m.bin"), file("m.pt"), file("m.safetensors")], None).expect("apart");
        assert_eq!(paths, ["m.bin.safetensors", "m.pt.safetensors", "m.safetensors"]);
    }

    #[test]
    fn names_that_are_there_twice_are_listed_with_their_files() {
        let file = |path: &str, names: &[&str]| tensor_file(path, Container::Safetensors, names);
        let sources = [file("x", &["a", "b"]), file("y", &["b", "c"])];
        let error = planned(&sources, Some("all.safetensors")).expect_err("b is there twice");
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().contains("b (in x and y)"), "{error}");
        assert_eq!(planned(&sources[..1], Some("all.safetensors")).expect("one"), ["all.safetensors"]);
        assert!(planned(&[file("x", &["a", "a"])], None).is_err(), "within one file too");
    }

    #[test]
    fn notes_are_those_of_the_sources_and_the_first_stays() {
        let file = |path: &str, container| tensor_file(path, container, &[]);
        let of = |sources: &[TensorFile]| notes(b"x", sources.iter(), &Silent);
        let both = of(&[file("x", Container::Safetensors), file("y", Container::Safetensors)]);
        assert_eq!(both, [("key".to_owned(), "x".to_owned())]);
        assert_eq!(of(&[file("x", Container::Torch)]), [("format".to_owned(), "pt".to_owned())]);
        assert_eq!(of(&[file("x", Container::Gguf)]), []);
    }

    #[test]
    fn extensions_are_replaced_in_the_last_component_only() {
        let replaced = |path: &str| String::from_utf8(replaced_extension(path.as_bytes())).expect("text");
        assert_eq!(replaced("a.b/model.bin"), "a.b/model.safetensors");
        assert_eq!(replaced("model.safetensors"), "model.safetensors");
        assert_eq!(replaced("a.b/model"), "a.b/model.safetensors");
        assert_eq!(replaced("a/.hidden"), "a/.hidden.safetensors");
        assert_eq!(cleaned(b"/data//x/../m"), b"data/x/m");
    }
}
