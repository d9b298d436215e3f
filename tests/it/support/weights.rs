//! Files of tensors, made byte by byte: numbers that follow from a seed, their later versions, and three containers.

use super::Chance;
use serde_json::{Map, Value, json};

/// A tensor of one dimension: its name, its type as safetensors has it, its elements.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: String,
    pub dtype: &'static str,
    pub bytes: Vec<u8>,
}

impl Tensor {
    pub fn new(name: &str, dtype: &'static str, bytes: Vec<u8>) -> Tensor {
        Tensor { name: name.to_owned(), dtype, bytes }
    }

    fn elements(&self) -> usize {
        self.bytes.len() / element_bytes(self.dtype)
    }
}

/// Bytes of an element.
pub fn element_bytes(dtype: &str) -> usize {
    match dtype {
        "F32" => 4,
        "BF16" => 2,
        "U8" => 1,
        other => panic!("{other} is not made here"),
    }
}

/// Numbers as weights are: small, of either sign, most of them near zero.
pub fn weights(seed: u64, count: usize) -> Vec<f32> {
    let mut chance = Chance(seed);
    let mut unit = || chance.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0;
    (0..count).map(|_| (unit() + unit() + unit()) * 0.02).collect()
}

/// The same after some steps of training: every number has moved a little.
pub fn trained(numbers: &[f32], seed: u64) -> Vec<f32> {
    let mut chance = Chance(seed);
    numbers.iter().map(|n| n * (1.0 + (chance.below(2001) as f32 - 1000.0) * 4e-6)).collect()
}

/// fp32.
pub fn wide(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// The bf16 numbers nearest to them, ties to even.
pub fn narrow(numbers: &[f32]) -> Vec<u8> {
    let rounded = |n: &f32| {
        let bits = n.to_bits();
        u16::try_from((bits + 0x7fff + ((bits >> 16) & 1)) >> 16).expect("sixteen bits are left")
    };
    numbers.iter().flat_map(|n| rounded(n).to_le_bytes()).collect()
}

/// A safetensors file that holds the tensors in this order; the header grows by a note of so many bytes.
pub fn safetensors(tensors: &[Tensor], note_bytes: usize) -> Vec<u8> {
    let mut header = Map::new();
    if note_bytes > 0 {
        header.insert("__metadata__".to_owned(), json!({"note": "n".repeat(note_bytes)}));
    }
    let mut at = 0;
    for tensor in tensors {
        let end = at + tensor.bytes.len();
        let entry = json!({"dtype": tensor.dtype, "shape": [tensor.elements()], "data_offsets": [at, end]});
        header.insert(tensor.name.clone(), entry);
        at = end;
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    tensors.iter().for_each(|tensor| file.extend_from_slice(&tensor.bytes));
    file
}

/// What `numpy.savez` writes of tensors that numpy has a type for.
pub fn npz(tensors: &[Tensor]) -> Vec<u8> {
    let entry = |tensor: &Tensor| {
        let descr = if tensor.dtype == "F32" { "<f4" } else { "|u1" };
        let elements = tensor.elements();
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({elements},), }}");
        // With the ten bytes in front of it a multiple of 64.
        let header = format!("{header:<117}\n");
        let mut content = b"\x93NUMPY\x01\x00".to_vec();
        content.extend_from_slice(&u16::try_from(header.len()).expect("short").to_le_bytes());
        content.extend_from_slice(header.as_bytes());
        content.extend_from_slice(&tensor.bytes);
        (format!("{}.npy", tensor.name), content)
    };
    zip(tensors.iter().map(entry).collect())
}

/// What `torch.save` writes of a dictionary of tensors.
pub fn torch(tensors: &[Tensor]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}(".to_vec();
    let text = |pickle: &mut Vec<u8>, text: &str| {
        pickle.push(b'X');
        pickle.extend_from_slice(&u32::try_from(text.len()).expect("short").to_le_bytes());
        pickle.extend_from_slice(text.as_bytes());
    };
    for (number, tensor) in tensors.iter().enumerate() {
        let storage = match tensor.dtype {
            "F32" => "FloatStorage",
            "BF16" => "BFloat16Storage",
            _ => "ByteStorage",
        };
        let elements = i32::try_from(tensor.elements()).expect("few").to_le_bytes();
        text(&mut pickle, &tensor.name);
        pickle.extend_from_slice(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut pickle, "storage");
        pickle.extend_from_slice(format!("ctorch\n{storage}\n").as_bytes());
        text(&mut pickle, &number.to_string());
        text(&mut pickle, "cpu");
        pickle.push(b'J');
        pickle.extend_from_slice(&elements);
        pickle.extend_from_slice(b"tQK\x00(J");
        pickle.extend_from_slice(&elements);
        pickle.extend_from_slice(b"t(K\x01t\x89ccollections\nOrderedDict\n)RtR");
    }
    pickle.extend_from_slice(b"u.");
    let storages = tensors.iter().enumerate().map(|(n, tensor)| (format!("archive/data/{n}"), tensor.bytes.clone()));
    let mut entries = vec![("archive/data.pkl".to_owned(), pickle)];
    entries.extend(storages);
    entries.push(("archive/version".to_owned(), b"3\n".to_vec()));
    zip(entries)
}

/// A zip archive of entries that are stored as they are.
fn zip(entries: Vec<(String, Vec<u8>)>) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    let count = u16::try_from(entries.len()).expect("few");
    for (name, content) in entries {
        let at = u32::try_from(file.len()).expect("small");
        let bytes = u32::try_from(content.len()).expect("small").to_le_bytes();
        let mut common = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
        common.extend_from_slice(&crc32(&content).to_le_bytes());
        common.extend([bytes, bytes].concat());
        common.extend_from_slice(&u16::try_from(name.len()).expect("short").to_le_bytes());
        common.extend_from_slice(&[0, 0]);
        file.extend([b"PK\x03\x04", common.as_slice(), name.as_bytes(), &content].concat());
        directory.extend([b"PK\x01\x02\x14\x00", common.as_slice(), &[0; 10]].concat());
        directory.extend_from_slice(&at.to_le_bytes());
        directory.extend_from_slice(name.as_bytes());
    }
    let (at, bytes) = (u32::try_from(file.len()).expect("small"), u32::try_from(directory.len()).expect("small"));
    file.append(&mut directory);
    file.extend_from_slice(b"PK\x05\x06\x00\x00\x00\x00");
    file.extend([count, count].map(u16::to_le_bytes).concat());
    file.extend([bytes, at].map(u32::to_le_bytes).concat());
    file.extend_from_slice(&[0, 0]);
    file
}

/// The checksum of zip.
fn crc32(content: &[u8]) -> u32 {
    let entry = |n: u32| (0..8).fold(n, |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()));
    let table: Vec<u32> = (0..256).map(entry).collect();
    let step = |crc: u32, byte: &u8| (crc >> 8) ^ table[((crc ^ u32::from(*byte)) & 0xff) as usize];
    !content.iter().fold(!0, step)
}
