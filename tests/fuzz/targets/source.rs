//! Files of tensors: headers in all containers, and pickles.

use ckpt::error::Result;
use ckpt::read_at::ReadAt;
use ckpt::source::layout::{self, Layout, Parsed};
use ckpt::source::torch::{dcp_metadata, torch_facts};
use std::sync::atomic::{AtomicU64, Ordering};

/// No run of a layout is shorter.
const RUN_BYTES_MIN: u64 = 1 << 10;

/// A file that counts what is read of it.
struct Counted<'a> {
    content: &'a [u8],
    read_bytes: AtomicU64,
}

impl ReadAt for Counted<'_> {
    fn bytes(&self) -> u64 {
        self.content.bytes()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let read = self.content.read_at(offset, buffer)?;
        self.read_bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}

/// Parses and holds the layout against its rules, and what was read against the length of the file.
fn look(content: &[u8], name: &str, companion: Option<&[u8]>) -> Option<Layout> {
    let file = Counted { content, read_bytes: AtomicU64::new(0) };
    let beside = companion.map(|content| Counted { content, read_bytes: AtomicU64::new(0) });
    let parsed = layout::parse(&file, name.as_bytes(), beside.as_ref().map(|beside| beside as &dyn ReadAt));
    for file in [Some(&file), beside.as_ref()].into_iter().flatten() {
        let read = file.read_bytes.load(Ordering::Relaxed);
        // The longest way: the end of an archive is sought twice, then it is walked from its front.
        assert!(read <= 200_000 + 12 * file.bytes(), "{read} bytes read of a file of {}", file.bytes());
    }
    match parsed {
        Parsed::Layout(layout) => {
            assert_obeys(&layout, content.len() as u64);
            Some(*layout)
        }
        Parsed::Malformed(_, reason) => {
            assert!(reason.len() < 1000, "{reason}");
            assert!(!reason.contains('\n'), "{reason}");
            None
        }
        Parsed::Plain => None,
    }
}

fn assert_obeys(layout: &Layout, file_bytes: u64) {
    let mut at = 0;
    for run in &layout.runs {
        assert!(run.range.offset() >= at, "{run:?} begins before {at}");
        assert!(run.range.len() >= RUN_BYTES_MIN, "{run:?} is too short");
        at = run.range.end();
    }
    assert!(at <= file_bytes, "the last run ends at {at} of {file_bytes}");
    assert!(layout.tensors.len() as u64 <= file_bytes, "{} tensors in {file_bytes} bytes", layout.tensors.len());
    for tensor in &layout.tensors {
        assert!(tensor.place.is_none_or(|place| place.end() <= file_bytes), "{tensor:?} beyond {file_bytes}");
    }
}

pub fn safetensors(bytes: &[u8]) -> bool {
    look(bytes, "a.safetensors", None).is_some()
}

/// The JSON alone, with its length before it, and as much content behind it as it says.
pub fn safetensors_header(bytes: &[u8]) -> bool {
    let numbers = bytes.split(|byte| !byte.is_ascii_digit()).filter_map(|digits| std::str::from_utf8(digits).ok());
    let ends = numbers.filter_map(|digits| digits.parse::<usize>().ok()).filter(|end| *end < 10_000);
    let content = vec![1; ends.max().unwrap_or_default()];
    let file = [&(bytes.len() as u64).to_le_bytes(), bytes, &content].concat();
    look(&file, "a.safetensors", None).is_some()
}

pub fn gguf(bytes: &[u8]) -> bool {
    look(bytes, "a.gguf", None).is_some()
}

pub fn npy(bytes: &[u8]) -> bool {
    look(bytes, "a.npy", None).is_some()
}

/// The literal alone, in the header of an array.
pub fn npy_header(bytes: &[u8]) -> bool {
    let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
    let length = (bytes.len() as u16).to_le_bytes();
    let file = [&b"\x93NUMPY\x01\x00"[..], &length, bytes, &[0; 2400]].concat();
    look(&file, "a.npy", None).is_some()
}

pub fn npz(bytes: &[u8]) -> bool {
    look(bytes, "a.npz", None).is_some()
}

pub fn torch(bytes: &[u8]) -> bool {
    let facts = torch_facts(&bytes);
    assert!(facts.is_none_or(|facts| facts.integers.len() <= bytes.len()));
    look(bytes, "m.pt", None).is_some()
}

/// The pickle alone: in an archive with one storage, and as the metadata of a distributed checkpoint.
pub fn pickle(bytes: &[u8]) -> bool {
    if let Ok(known) = dcp_metadata(&bytes) {
        assert!(known.files.len() <= bytes.len() && known.tensors <= bytes.len());
    }
    let archive = archive_of(&[("m/data.pkl", bytes), ("m/data/0", &[7; 1600])]);
    let is_known = look(&archive, "m.pt", None).is_some();
    assert!(is_known, "the storage is there, whatever the pickle says");
    torch_facts(&archive.as_slice()).is_some()
}

/// The metadata of a distributed checkpoint, then a file of it.
pub fn dcp(bytes: &[u8]) -> bool {
    let (metadata, file) = super::split(bytes);
    let alone = look(file, "__0_0.distcp", None);
    let described = look(file, "__0_0.distcp", Some(metadata));
    // Without anything in it a file of this name is one that was cut short.
    [alone, described].into_iter().flatten().any(|layout| !layout.runs.is_empty())
}

pub fn parquet(bytes: &[u8]) -> bool {
    look(bytes, "a.parquet", None).is_some()
}

/// The footer alone, behind columns.
pub fn parquet_footer(bytes: &[u8]) -> bool {
    let file = [b"PAR1", &[5; 24_000][..], bytes, &(bytes.len() as u32).to_le_bytes(), b"PAR1"].concat();
    look(&file, "a.parquet", None).is_some()
}

/// A zip archive of stored entries.
pub fn archive_of(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in entries {
        let begin = (file.len() as u32).to_le_bytes();
        let length = (content.len() as u32).to_le_bytes();
        let fields = [&[20, 0, 0, 0, 0, 0][..], &[0; 8], &length, &length, &(name.len() as u16).to_le_bytes(), &[0, 0]];
        let fields = fields.concat();
        file.extend([&b"PK\x03\x04"[..], &fields, name.as_bytes(), content].concat());
        directory.extend([&b"PK\x01\x02\x14\0"[..], &fields, &[0; 10], &begin, name.as_bytes()].concat());
    }
    let (offset, bytes) = ((file.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
    let count = (entries.len() as u16).to_le_bytes();
    file.extend(directory);
    file.extend([&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &bytes, &offset, &[0, 0]].concat());
    file
}
