//! What `numpy.savez` writes: a zip archive with an array in each entry, stored as it is.
//!
//! Of `numpy.savez_compressed` nothing is understood but stored entries, if it has any; entries that are no arrays are passed over.

use super::finish::finish;
use super::header_reader::{HeaderReader, Refusal};
use super::npy;
use super::zip::{Archive, Entry, STORED};
use crate::source::layout::{Container, Layout, Run, Tensor};

const EXTENSION: &[u8] = b".npy";

/// The layout of an archive that fills the file; none if no array is stored in it.
pub(super) fn layout(reader: &mut HeaderReader<'_>, archive: &Archive) -> Option<Result<Layout, Refusal>> {
    let is_array = |entry: &&Entry| entry.method == STORED && entry.name.ends_with(EXTENSION);
    archive.entries.iter().find(is_array)?;
    let arrays = archive.entries.iter().filter(is_array);
    Some(arrays_of(reader, arrays, archive.is_truncated))
}

fn arrays_of<'a>(
    reader: &mut HeaderReader<'_>,
    entries: impl Iterator<Item = &'a Entry>,
    is_truncated: bool,
) -> Result<Layout, Refusal> {
    let (mut tensors, mut runs) = (Vec::new(), Vec::new());
    for entry in entries {
        match array(reader, entry) {
            Ok((tensor, run)) => {
                tensors.extend(tensor);
                runs.extend(run);
            }
            // Of an archive that was cut off, the entry that its last bytes belong to.
            Err(Refusal::CutShort) if is_truncated => {}
            Err(refusal) => return Err(refusal),
        }
    }
    let layout = Layout { container: Container::Npz, tensors, runs, metadata: Vec::new(), is_truncated };
    finish(layout, reader.file_bytes())
}

/// The array in an entry; nothing if it is none, or reaches beyond its entry.
fn array(reader: &mut HeaderReader<'_>, entry: &Entry) -> Result<(Option<Tensor>, Option<Run>), Refusal> {
    let payload = entry.payload(reader)?;
    let header = match npy::read_header(reader, payload.offset()) {
        Ok(header) => header,
        Err(Refusal::Malformed(_)) => return Ok((None, None)),
        Err(refusal) => return Err(refusal),
    };
    let name = entry.name.strip_suffix(EXTENSION).unwrap_or(&entry.name);
    let (tensor, run) = header.contents(&String::from_utf8_lossy(name), payload.end())?;
    let end = header.data_bytes.map_or(Some(payload.end()), |bytes| header.data_begin.checked_add(bytes));
    if header.data_begin > payload.end() || end.is_none_or(|end| end > payload.end()) {
        return Ok((None, None));
    }
    Ok((tensor, run))
}

#[cfg(test)]
mod tests {
    use super::super::torch_samples::{archive_of, check, part, sample};
    use crate::source::layout::{Layout, Parsed, parse};

    fn layout_of(content: &[u8]) -> Layout {
        match parse(&content, b"arrays.npz", None) {
            Parsed::Layout(layout) => *layout,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_arrays_of_a_real_file_are_where_their_bytes_are() {
        let content = sample("arrays.npz");
        let layout = check("arrays.npz", layout_of(&content), &content);
        let keys: Vec<&str> = layout.runs.iter().map(|run| run.key.as_str()).collect();
        assert_eq!(keys, ["a", "b"]);
        assert!(layout.runs.iter().zip(&layout.tensors).all(|(run, tensor)| Some(run.range) == tensor.place));
    }

    #[test]
    fn of_a_file_that_was_cut_off_the_arrays_in_front_are_there() {
        let content = sample("arrays.npz");
        let cut = layout_of(&content[..4000]);
        assert!(cut.is_truncated);
        let places: Vec<bool> = cut.tensors.iter().map(|tensor| tensor.place.is_some()).collect();
        assert_eq!(places, [true, false], "the second is there in part");
        assert_eq!(cut.runs[1].range.end(), 4000);
    }

    #[test]
    fn only_what_is_stored_is_understood() {
        assert_eq!(parse(&sample("compressed.npz").as_slice(), b"compressed.npz", None), Parsed::Plain);
        let array =
            [b"\x93NUMPY\x01\0\x39\0{'descr': '<f4', 'fortran_order': False, 'shape': (300,)}".to_vec(), vec![7; 1200]]
                .concat();
        let mut parts = vec![part("a.npy", array.clone()), part("b.npy", array.clone()), part("c.npy", "no array")];
        parts[0].method = 8;
        let layout = layout_of(&archive_of(&parts, b""));
        assert_eq!(layout.tensors.iter().map(|tensor| tensor.name.as_str()).collect::<Vec<_>>(), ["b"]);
        // An array that says it is longer than its entry.
        let parts = [part("a.npy", array[..1000].to_vec()), part("b.npy", array)];
        assert_eq!(layout_of(&archive_of(&parts, b"")).tensors.len(), 1);
    }
}
