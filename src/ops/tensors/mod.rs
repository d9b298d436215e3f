//! Files of tensors in a snapshot: found, opened, and their tensors placed on chunks.
//!
//! Layouts are parsed again from what is stored, by reading the few chunks that the headers lie in. What a layout claims
//! is held against the length of the file before it is used; the bytes of a tensor come from chunks that are verified.

mod filter;
mod near;

pub use filter::TensorFilter;
pub use near::near_names;

use super::ahead::Stretch;
use super::{FileProblem, Problems};
use crate::bytes::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::paths::is_beneath;
use crate::read_at::ReadAt;
use crate::repo::Repo;
use crate::repo::content_reader::{ContentReader, PlacedChunk};
use crate::repo::entry::Entry;
use crate::repo::frame_cache::FrameCache;
use crate::repo::paths::{absolute_path, find_entry, last_component, resolve_subpath};
use crate::repo::snapshots::Snapshot;
use crate::repo::stream::StreamRef;
use crate::source::layout::{self, Layout, Parsed, Tensor};
use std::sync::{Mutex, PoisonError};

/// The file beside those of a distributed checkpoint that describes them.
const COMPANION_NAME: &[u8] = b".metadata";

/// A part of a snapshot: all of it, a directory, a file.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// The snapshot.
    pub snapshot: &'a Snapshot,
    /// What is meant in it; all if none.
    pub subpath: Option<&'a [u8]>,
}

/// A regular file of a snapshot, not looked into yet.
#[derive(Debug, Clone)]
pub struct StoredFile {
    /// The entry.
    pub entry: Entry,
    /// Where it lies below what was asked for; the absolute path if that was several roots. A file that was asked for
    /// itself has its name here.
    pub path: Vec<u8>,
    /// True if it was asked for itself.
    pub is_named: bool,
    name: Vec<u8>,
    companion: Option<StreamRef>,
}

/// A file whose layout is known.
#[derive(Debug, Clone)]
pub struct TensorFile {
    /// The file.
    pub file: StoredFile,
    /// What lies where in it.
    pub layout: Layout,
    chunks: ChunkList,
}

/// The chunks of a file: 48 bytes of memory for each.
#[derive(Debug, Clone, Default)]
pub struct ChunkList(Vec<PlacedChunk>);

/// What a look into a file has shown.
#[derive(Debug)]
pub enum Look {
    /// Tensors.
    Tensors(Box<TensorFile>),
    /// It begins like a file of tensors, but is not one; the sentence says why.
    Malformed(String),
    /// Nothing that is known.
    Plain,
}

/// What was met beside files of tensors.
#[derive(Debug, Default)]
pub struct Walked {
    /// Files of tensors.
    pub files: u64,
    /// Files that hold no tensors, as far as is known.
    pub passed_over: u64,
    /// Parts of the list of files, and files, that could not be read.
    pub damaged: Problems,
}

/// Calls `visit` for every regular file of `part`, in the order of paths; returns what of the list is damaged.
///
/// [`Kind::NotFound`] if nothing is there.
pub fn for_each_stored_file(
    repo: &Repo,
    part: Part<'_>,
    visit: &mut dyn FnMut(StoredFile) -> Result<()>,
) -> Result<Vec<Error>> {
    let Part { snapshot, subpath } = part;
    let wanted = resolve_subpath(snapshot, subpath.unwrap_or_default())?;
    let frames = FrameCache::new(repo);
    let fetch = |id| frames.read(id);
    let mut companions = Companions::default();
    let mut damaged = Vec::new();
    let mut is_there = false;
    for entry in repo.entries(&fetch, snapshot.tree) {
        let entry = match entry {
            Ok(entry) => entry,
            Err(error) if error.kind() == Kind::Damaged => {
                damaged.push(error);
                continue;
            }
            Err(error) => return Err(error),
        };
        companions.pass(&entry);
        let found = wanted.iter().find(|(root, path)| *root == entry.root && is_beneath(&entry.path, path));
        let Some((_, folder)) = found else {
            if is_there && wanted.len() == 1 {
                break;
            }
            continue;
        };
        is_there = true;
        if entry.is_file() {
            let companion = companions.of(&entry);
            visit(StoredFile::new(snapshot, entry, folder, wanted.len() == 1, companion))?;
        }
    }
    if is_there || (damaged.is_empty() && subpath.is_none_or(<[u8]>::is_empty)) {
        return Ok(damaged);
    }
    // Also a backed-up file is found by its own name; otherwise this is the error that says what there is.
    let entry = find_entry(repo, snapshot, subpath.unwrap_or_default())?;
    if entry.is_file() {
        let folder = entry.path.clone();
        visit(StoredFile::new(snapshot, entry, &folder, true, None))?;
    }
    Ok(damaged)
}

/// Calls `visit` for every file of tensors in `part`, in the order of paths. Other files are passed over, unless the part
/// is one of them: then it is an error ([`Kind::Usage`]).
pub fn for_each_tensor_file(
    repo: &Repo,
    part: Part<'_>,
    observer: &dyn Observer,
    visit: &mut dyn FnMut(TensorFile) -> Result<()>,
) -> Result<Walked> {
    let frames = FrameCache::new(repo);
    let mut walked = Walked::default();
    let lost = for_each_stored_file(repo, part, &mut |file| {
        check_interrupt(observer)?;
        let shown = absolute_path(part.snapshot, &file.entry);
        match file.look(&frames) {
            Ok(Look::Tensors(found)) => {
                walked.files += 1;
                return visit(*found);
            }
            Ok(look) if file.is_named => return Err(look.refusal(&shown)),
            Ok(Look::Malformed(reason)) => {
                let text = format!("{}: {reason}", String::from_utf8_lossy(&shown));
                observer.on_event(&Event::Detail { text: &text });
                walked.passed_over += 1;
            }
            Ok(Look::Plain) => walked.passed_over += 1,
            Err(error) if error.kind() == Kind::Damaged && !file.is_named => {
                note_problem(&mut walked.damaged, observer, FileProblem { path: shown, error });
            }
            Err(error) => return Err(error.while_doing(String::from_utf8_lossy(&shown))),
        }
        Ok(())
    })?;
    for error in lost {
        note_problem(&mut walked.damaged, observer, FileProblem { path: LOST_PART.to_vec(), error });
    }
    if walked.passed_over > 0 {
        let text = format!("files without tensors, or of no kind that is known: {}", walked.passed_over);
        observer.on_event(&Event::Detail { text: &text });
    }
    Ok(walked)
}

/// What stands for the path of files that cannot be named.
const LOST_PART: &[u8] = b"(a part of the list of files)";

/// Opens the one file of tensors at `path`.
///
/// [`Kind::NotFound`] if nothing is there, [`Kind::Usage`] if it is something else.
pub fn open_tensor_file(repo: &Repo, snapshot: &Snapshot, path: &[u8], observer: &dyn Observer) -> Result<TensorFile> {
    let mut found = None;
    let part = Part { snapshot, subpath: Some(path) };
    let lost = for_each_stored_file(repo, part, &mut |file| {
        if file.is_named {
            found = Some(file);
        }
        check_interrupt(observer)
    })?;
    let shown = String::from_utf8_lossy(path);
    let Some(file) = found else {
        return Err(lost.into_iter().next().unwrap_or_else(|| {
            Error::new(Kind::Usage, format!("{shown} is not a regular file"))
                .with_hint("`ckpt ls SELECTOR:PATH --tensors` lists all tensors beneath a directory")
        }));
    };
    match file.look(&FrameCache::new(repo)).map_err(|error| error.while_doing(&shown))? {
        Look::Tensors(found) => Ok(*found),
        look => Err(look.refusal(path)),
    }
}

/// [`Kind::Interrupted`] once the user has asked the run to end.
pub fn check_interrupt(observer: &dyn Observer) -> Result<()> {
    match observer.is_interrupted() {
        true => Err(Error::new(Kind::Interrupted, "interrupted while files of tensors were read")),
        false => Ok(()),
    }
}

fn note_problem(problems: &mut Problems, observer: &dyn Observer, problem: FileProblem) {
    observer.on_event(&Event::FileProblem { path: &problem.path, error: &problem.error });
    problems.push(problem.path, problem.error);
}

impl StoredFile {
    fn new(snapshot: &Snapshot, entry: Entry, folder: &[u8], is_one: bool, companion: Option<StreamRef>) -> StoredFile {
        let whole = absolute_path(snapshot, &entry);
        let name = last_component(&whole).to_vec();
        let is_named = entry.path == folder && is_one;
        let beneath = entry.path.get(folder.len()..).unwrap_or_default();
        let beneath = beneath.strip_prefix(b"/").unwrap_or(beneath);
        let path = match (is_named, is_one) {
            (true, _) => name.clone(),
            (false, true) => beneath.to_vec(),
            (false, false) => whole,
        };
        StoredFile { entry, path, is_named, name, companion }
    }

    /// Reads the headers. [`Kind::Damaged`] if they cannot be read.
    pub fn look(&self, frames: &FrameCache<'_>) -> Result<Look> {
        let content = Watched::open(frames, self.entry.content)?;
        // A description that is lost leaves the file itself as good as it is.
        let companion =
            self.companion.map(|companion| Watched::open(frames, Some(companion))).transpose().ok().flatten();
        let parsed = layout::parse(&content, &self.name, companion.as_ref().map(|companion| companion as &dyn ReadAt));
        content.failure()?;
        Ok(match parsed {
            Parsed::Layout(layout) => Look::Tensors(Box::new(TensorFile::new(self.clone(), *layout, content.reader))),
            Parsed::Malformed(container, reason) => {
                Look::Malformed(format!("it begins like a {} file, but {reason}", container.name()))
            }
            Parsed::Plain => Look::Plain,
        })
    }
}

impl Look {
    fn refusal(&self, path: &[u8]) -> Error {
        let path = String::from_utf8_lossy(path);
        let text = match self {
            Look::Malformed(reason) => format!("{path} cannot be read as tensors: {reason}"),
            Look::Tensors(_) | Look::Plain => format!("{path} is no file of tensors of a kind that is known"),
        };
        Error::new(Kind::Usage, text)
            .with_hint("safetensors, torch.save, distributed checkpoints, GGUF, npy, npz and Parquet are understood")
    }
}

impl TensorFile {
    fn new(file: StoredFile, mut layout: Layout, reader: ContentReader<'_>) -> TensorFile {
        let bytes = reader.bytes();
        for tensor in &mut layout.tensors {
            tensor.place = tensor.place.filter(|place| place.end() <= bytes);
        }
        TensorFile { file, layout, chunks: ChunkList(reader.into_chunks()) }
    }

    /// The parts of chunks that make up `range` of the file, in order.
    pub fn stretches(&self, range: ByteRange) -> impl Iterator<Item = Stretch> + '_ {
        self.chunks.stretches(range)
    }

    /// The file without its chunks, to be kept while others are looked into: it has no stretches any more.
    pub fn without_chunks(self) -> TensorFile {
        TensorFile { chunks: ChunkList::default(), ..self }
    }

    /// Reads the list of chunks again.
    pub fn read_chunk_list(&self, frames: &FrameCache<'_>) -> Result<ChunkList> {
        Ok(ChunkList(ContentReader::open(frames, self.file.entry.content)?.into_chunks()))
    }

    /// The tensor of this name.
    ///
    /// [`Kind::NotFound`] with the names nearest to it if there is none.
    pub fn tensor(&self, name: &str) -> Result<&Tensor> {
        let path = String::from_utf8_lossy(&self.file.path);
        self.layout.tensors.iter().find(|tensor| tensor.name == name).ok_or_else(|| {
            let near = near_names(name, self.layout.tensors.iter().map(|tensor| tensor.name.as_str()));
            let hint = match near.is_empty() {
                true => "`ckpt ls SELECTOR:PATH --tensors` lists its tensors".to_owned(),
                false => format!("near names: {}", near.join(", ")),
            };
            Error::new(Kind::NotFound, format!("{path} holds no tensor {name}")).with_hint(hint)
        })
    }
}

impl ChunkList {
    /// The parts of chunks that make up `range` of the file, in order.
    pub fn stretches(&self, range: ByteRange) -> impl Iterator<Item = Stretch> + '_ {
        let ChunkList(chunks) = self;
        let first = chunks.partition_point(|chunk| end_of(chunk) <= range.offset());
        let chunks = chunks.get(first..).unwrap_or_default();
        chunks.iter().take_while(move |chunk| chunk.offset < range.end()).filter_map(move |chunk| {
            let from = chunk.offset.max(range.offset());
            let bytes = end_of(chunk).min(range.end()).checked_sub(from).filter(|bytes| *bytes > 0)?;
            let PlacedChunk { offset, child } = *chunk;
            Some(Stretch { id: child.id, chunk_bytes: child.bytes, skip: from - offset, bytes })
        })
    }
}

/// Where the bytes of a tensor lie; an error ([`Kind::Usage`]) that says why it cannot be written out alone otherwise.
pub fn place_of(tensor: &Tensor) -> Result<ByteRange> {
    tensor.place.ok_or_else(|| {
        let text =
            format!("the elements of {} do not lie one behind the other in the file, or are missing", tensor.name);
        Error::new(Kind::Usage, text)
            .with_hint("`ckpt dump SELECTOR PATH` brings the whole file; load it with its own library")
    })
}

/// Bytes of a tensor: of its place, or what its type and shape come to.
pub fn tensor_bytes(tensor: &Tensor) -> Option<u64> {
    let computed = || tensor.elements()?.checked_mul(tensor.dtype.element_bytes()?);
    tensor.place.map(ByteRange::len).or_else(computed)
}

fn end_of(chunk: &PlacedChunk) -> u64 {
    chunk.offset.saturating_add(chunk.child.bytes)
}

/// The descriptions of distributed checkpoints that may still be needed on a walk: those of the directories above.
#[derive(Default)]
struct Companions(Vec<(u32, Vec<u8>, StreamRef)>);

impl Companions {
    fn pass(&mut self, entry: &Entry) {
        self.0.retain(|(root, folder, _)| *root == entry.root && is_beneath(&entry.path, folder));
        if let Some(content) = entry.content.filter(|_| last_component(&entry.path) == COMPANION_NAME) {
            self.0.push((entry.root, parent(&entry.path).to_vec(), content));
        }
    }

    fn of(&self, entry: &Entry) -> Option<StreamRef> {
        let found = self.0.iter().find(|(_, folder, _)| folder == parent(&entry.path));
        found.map(|(_, _, content)| *content).filter(|_| last_component(&entry.path) != COMPANION_NAME)
    }
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|byte| *byte == b'/').map_or(&[], |end| &path[..end])
}

/// Content whose first failure is remembered: a parser takes what it cannot read for something else.
struct Watched<'r> {
    reader: ContentReader<'r>,
    failure: Mutex<Option<Error>>,
}

impl<'r> Watched<'r> {
    fn open(frames: &'r FrameCache<'r>, content: Option<StreamRef>) -> Result<Watched<'r>> {
        Ok(Watched { reader: ContentReader::open(frames, content)?, failure: Mutex::default() })
    }

    fn failure(&self) -> Result<()> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }
}

impl ReadAt for Watched<'_> {
    fn bytes(&self) -> u64 {
        self.reader.bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.reader.read_at(offset, buffer).map_err(|error| {
            // The parser sees one of the same kind; the caller reports the first.
            let shown = Error::new(error.kind(), error.to_string());
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            shown
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::events::Silent;
    use crate::metadata::{FileKind, FileTime, Metadata};
    use crate::repo::names;
    use crate::repo::test_support::{self, Node, noise};

    /// A file of this kind with bytes of these names, not stored anywhere.
    pub(crate) fn tensor_file(path: &str, container: layout::Container, names: &[&str]) -> TensorFile {
        let tensor = |(number, name): (u64, &&str)| Tensor {
            name: (*name).to_owned(),
            dtype: layout::Dtype::U8,
            shape: vec![10],
            place: ByteRange::new(100 + 10 * number, 10).ok(),
        };
        let layout = Layout {
            container,
            tensors: (0..).zip(names).map(tensor).collect(),
            runs: Vec::new(),
            metadata: vec![("key".to_owned(), path.to_owned())],
            is_truncated: false,
        };
        TensorFile { file: stored_file(path), layout, chunks: ChunkList::default() }
    }

    /// A tensor of a test: name, type, shape, bytes.
    pub(crate) type TestTensor<'a> = (&'a str, &'a str, &'a [u64], &'a [u8]);

    /// A safetensors file of these tensors, put together by hand.
    pub(crate) fn safetensors(tensors: &[TestTensor<'_>], metadata: &str) -> Vec<u8> {
        let mut at = 0;
        let mut fields = if metadata.is_empty() { vec![] } else { vec![format!("\"__metadata__\":{metadata}")] };
        for (name, dtype, shape, bytes) in tensors {
            let end = at + bytes.len();
            let offsets = format!("\"data_offsets\":[{at},{end}]");
            fields.push(format!("{name:?}:{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},{offsets}}}"));
            at = end;
        }
        let header = format!("{{{}}}", fields.join(","));
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend_from_slice(header.as_bytes());
        tensors.iter().for_each(|(_, _, _, bytes)| file.extend_from_slice(bytes));
        file
    }

    /// A file of which only the path is real.
    pub(crate) fn stored_file(path: &str) -> StoredFile {
        let metadata = Metadata {
            kind: FileKind::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: FileTime::default(),
            ctime: FileTime::default(),
            inode: 0,
            link_group: None,
            xattrs: Vec::new(),
        };
        let path = path.as_bytes().to_vec();
        let entry = Entry { root: 0, path: path.clone(), metadata, content: None, changed_while_read: false };
        StoredFile { entry, path, is_named: false, name: Vec::new(), companion: None }
    }

    fn paths(repo: &Repo, snapshot: &Snapshot, subpath: Option<&str>) -> Result<(Vec<String>, u64, u64), Kind> {
        let mut found = Vec::new();
        let part = Part { snapshot, subpath: subpath.map(str::as_bytes) };
        let walked = for_each_tensor_file(repo, part, &Silent, &mut |file| {
            found.push(String::from_utf8_lossy(&file.file.path).into_owned());
            Ok(())
        });
        walked.map(|walked| (found, walked.passed_over, walked.damaged.count)).map_err(|error| error.kind())
    }

    #[test]
    fn files_of_tensors_are_found_below_what_is_asked_for_and_others_passed_over() {
        let repo = test_support::open(&test_support::storage());
        let file = || Node::File(safetensors(&[("a", "F32", &[2], &[0; 8])], ""));
        let nodes = [
            ("d", Node::Directory),
            ("d/x.safetensors", file()),
            ("d/config.json", Node::File(b"{}".to_vec())),
            ("e.safetensors", file()),
            ("empty", Node::File(Vec::new())),
            ("wrong.safetensors", Node::File(b"nothing of the kind".to_vec())),
        ];
        let snapshot = test_support::save(&repo, 10, &nodes);
        let found = |subpath| paths(&repo, &snapshot, subpath);
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert_eq!(found(None), Ok((names(&["d/x.safetensors", "e.safetensors"]), 3, 0)));
        assert_eq!(found(Some("d")), Ok((names(&["x.safetensors"]), 1, 0)));
        assert_eq!(found(Some("d/x.safetensors")), Ok((names(&["x.safetensors"]), 0, 0)));
        assert_eq!(found(Some("d/config.json")), Err(Kind::Usage));
        assert_eq!(found(Some("wrong.safetensors")), Err(Kind::Usage));
        assert_eq!(found(Some("nothing")), Err(Kind::NotFound));
    }

    #[test]
    fn headers_that_cannot_be_read_are_damage_and_not_another_kind_of_file() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        let file = safetensors(&[("a", "U8", &[9000], &noise(1, 9000))], "");
        let snapshot = test_support::save(&repo, 10, &[("x.safetensors", Node::File(file))]);
        let packs = storage.objects().into_iter().filter(|(name, _)| names::pack_id(name).is_some());
        let (name, _) = packs.max_by_key(|(_, bytes)| bytes.len()).expect("a pack of data");
        assert!(storage.corrupt(&name, 2000, 1));
        assert_eq!(paths(&repo, &snapshot, None), Ok((vec![], 0, 1)));
        assert_eq!(paths(&repo, &snapshot, Some("x.safetensors")), Err(Kind::Damaged));
    }

    #[test]
    fn the_stretches_of_any_range_are_its_bytes() {
        let repo = test_support::open(&test_support::storage());
        let content = safetensors(&[("a", "U8", &[20_000], &noise(1, 20_000))], "");
        let snapshot = test_support::save(&repo, 10, &[("x", Node::File(content.clone()))]);
        let file = open_tensor_file(&repo, &snapshot, b"x", &Silent).expect("there");
        let frames = FrameCache::new(&repo);
        for (offset, len) in [(0, content.len()), (4095, 2), (4096, 4096), (5000, 0), (7, 12_345), (20_000, 50)] {
            let mut bytes = Vec::new();
            for stretch in file.stretches(ByteRange::new(offset as u64, len as u64).expect("small")) {
                super::super::ahead::read_stretch(&frames, stretch, &mut bytes).expect("sound");
            }
            assert_eq!(bytes, content[offset..offset + len], "{len} at {offset}");
        }
    }

    #[test]
    fn the_description_of_a_checkpoint_is_that_of_its_own_directory() {
        let mut companions = Companions::default();
        let mut companion_of = |path: &str| {
            let mut entry = stored_file(path).entry;
            entry.content = Some(StreamRef { root: crate::ids::ChunkId::of(path.as_bytes()), depth: 0, bytes: 1 });
            companions.pass(&entry);
            companions.of(&entry).map(|content| content.root)
        };
        let id = |path: &str| Some(crate::ids::ChunkId::of(path.as_bytes()));
        assert_eq!(companion_of("a/.metadata"), None);
        assert_eq!(companion_of("a/0/.metadata"), None);
        assert_eq!(companion_of("a/0/x"), id("a/0/.metadata"));
        assert_eq!(companion_of("a/b/x"), None);
        assert_eq!(companion_of("a/x"), id("a/.metadata"));
        assert_eq!(companion_of("b/x"), None);
    }
}
