//! The layout of a file of tensors: what lies where in it.
//!
//! A layout is read from the headers of a known container, with bounds on everything that is read, and serves two ends: it
//! says where a file is cut, so that the same tensor is stored once wherever it stands, and it tells people what
//! is in a file. It never decides what bytes mean to a reader of the repository: a wrong layout costs space, not data.

use super::formats;
use crate::bytes::ByteRange;
use crate::read_at::ReadAt;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The file beside those of a distributed checkpoint that describes them.
pub const COMPANION: &str = ".metadata";
/// A longer one is not read.
const COMPANION_BYTES_MAX: u64 = 64 << 20;

/// How the names of files with a layout end.
const EXTENSIONS: [&[u8]; 10] =
    [b"safetensors", b"pt", b"pth", b"bin", b"ckpt", b"gguf", b"npy", b"npz", b"distcp", b"parquet"];

/// True if the name promises a layout.
pub fn has_layout_name(name: &[u8]) -> bool {
    let extension = name.rsplit(|&byte| byte == b'.').next().unwrap_or_default();
    EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

/// The kinds of file that are understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Container {
    /// `model.safetensors`.
    Safetensors,
    /// What `torch.save` writes since version 1.6: `.pt`, `.pth`, `.bin`, `.ckpt`.
    Torch,
    /// A file of a distributed checkpoint of PyTorch: `.distcp`.
    Dcp,
    /// `.gguf`, version 2 and 3.
    Gguf,
    /// One numpy array.
    Npy,
    /// Several numpy arrays in an archive, stored.
    Npz,
    /// Apache Parquet.
    Parquet,
}

impl Container {
    /// The name for people and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Container::Safetensors => "safetensors",
            Container::Torch => "torch",
            Container::Dcp => "dcp",
            Container::Gguf => "gguf",
            Container::Npy => "npy",
            Container::Npz => "npz",
            Container::Parquet => "parquet",
        }
    }
}

/// The type of the elements of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// IEEE 754 binary64.
    F64,
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// The upper half of a binary32.
    Bf16,
    /// 8 bits: 4 of exponent, 3 of mantissa.
    F8E4m3,
    /// 8 bits: 5 of exponent, 2 of mantissa.
    F8E5m2,
    /// Signed integers.
    I64,
    /// 32 bits.
    I32,
    /// 16 bits.
    I16,
    /// 8 bits.
    I8,
    /// Unsigned integers.
    U64,
    /// 32 bits.
    U32,
    /// 16 bits.
    U16,
    /// 8 bits.
    U8,
    /// One byte each.
    Bool,
    /// Two binary32.
    C64,
    /// Two binary64.
    C128,
    /// Blocks of quantised numbers, in a type that only its container knows; the name is the container's.
    Blocks(&'static str),
    /// Something else, of so many bytes each.
    Other(u16),
}

impl Dtype {
    /// The name as safetensors has it, where it has one.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F64 => "F64",
            Dtype::F32 => "F32",
            Dtype::F16 => "F16",
            Dtype::Bf16 => "BF16",
            Dtype::F8E4m3 => "F8_E4M3",
            Dtype::F8E5m2 => "F8_E5M2",
            Dtype::I64 => "I64",
            Dtype::I32 => "I32",
            Dtype::I16 => "I16",
            Dtype::I8 => "I8",
            Dtype::U64 => "U64",
            Dtype::U32 => "U32",
            Dtype::U16 => "U16",
            Dtype::U8 => "U8",
            Dtype::Bool => "BOOL",
            Dtype::C64 => "C64",
            Dtype::C128 => "C128",
            Dtype::Blocks(name) => name,
            Dtype::Other(_) => "OTHER",
        }
    }

    /// Bytes of one element; none for blocks.
    pub const fn element_bytes(self) -> Option<u64> {
        Some(match self {
            Dtype::C128 => 16,
            Dtype::F64 | Dtype::I64 | Dtype::U64 | Dtype::C64 => 8,
            Dtype::F32 | Dtype::I32 | Dtype::U32 => 4,
            Dtype::F16 | Dtype::Bf16 | Dtype::I16 | Dtype::U16 => 2,
            Dtype::F8E4m3 | Dtype::F8E5m2 | Dtype::I8 | Dtype::U8 | Dtype::Bool => 1,
            Dtype::Other(bytes) => bytes as u64,
            Dtype::Blocks(_) => return None,
        })
    }

    /// True for numbers with sign, exponent and mantissa.
    pub const fn is_float(self) -> bool {
        matches!(
            self,
            Dtype::F64
                | Dtype::F32
                | Dtype::F16
                | Dtype::Bf16
                | Dtype::F8E4m3
                | Dtype::F8E5m2
                | Dtype::C64
                | Dtype::C128
        )
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the file; for nested dictionaries of `torch.save`, the keys joined by `.`.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions; none for a scalar.
    pub shape: Vec<u64>,
    /// Where its elements lie, row by row; none if they are not contiguous, or lie in a part of the file that is missing.
    pub place: Option<ByteRange>,
}

impl Tensor {
    /// The number of elements; none if that is more than 64 bits hold.
    pub fn elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n))
    }
}

/// How a run of bytes is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Cut {
    /// Into segments of one length: numbers.
    Fixed,
    /// By content: what may shift inside.
    Content,
}

/// Bytes that belong together: they begin with a cut, and end with one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// Where they lie.
    pub range: ByteRange,
    /// What the same data is called in another version of the file, or in another file: the name of the tensor.
    pub key: String,
    /// What they are made of, if they are numbers.
    pub dtype: Option<Dtype>,
    /// How they are cut.
    pub cut: Cut,
}

/// What lies where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The kind of file.
    pub container: Container,
    /// The tensors, in the order of the file.
    pub tensors: Vec<Tensor>,
    /// Where to cut: in order, without overlap, within the file. What lies between runs is headers.
    pub runs: Vec<Run>,
    /// Notes of the file itself that a copy of it should carry: the `__metadata__` of safetensors.
    pub metadata: Vec<(String, String)>,
    /// True if the file ends before its layout does: what is there is used all the same.
    pub is_truncated: bool,
}

/// What a look at the headers has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A known container.
    Layout(Box<Layout>),
    /// It begins like this container but is not one; the sentence says why.
    Malformed(Container, String),
    /// Nothing that is known.
    Plain,
}

/// Reads the headers of a file.
///
/// What it is shows in the first bytes; `name`, the last component of its path, is asked only where these leave it open.
/// `companion` is the file beside it that describes it: the `.metadata` of a distributed checkpoint. A file that cannot be read is plain.
pub fn parse(file: &dyn ReadAt, name: &[u8], companion: Option<&dyn ReadAt>) -> Parsed {
    formats::parse(file, name, companion)
}

/// As [`parse`], for a file of this host: its companion stands beside it.
pub fn parse_beside(file: &dyn ReadAt, path: &Path) -> Parsed {
    let name = path.file_name().unwrap_or_default().as_bytes();
    if !name.ends_with(b".distcp") {
        return parse(file, name, None);
    }
    let companion = path.with_file_name(COMPANION);
    let small =
        std::fs::metadata(&companion).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= COMPANION_BYTES_MAX);
    let bytes = if small { std::fs::read(&companion).ok() } else { None };
    let companion = bytes.as_deref();
    parse(file, name, companion.as_ref().map(|bytes| bytes as _))
}
