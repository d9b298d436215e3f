//! What the pickle of a `torch.save` says of tensors: name, type, shape, and which elements of which storage they are.
//!
//! Every collection is walked once, by whichever path comes first, and depth, names and tensors are
//! bounded: a pickle that shares and nests without end is a small one. What PyTorch would build from an object of an
//! unknown class is not known; tensors among its arguments and in its state are found all the same.

use super::pickle::{Node, Object, Pickle, Value};
use crate::source::layout::Dtype;
use std::collections::HashMap;

/// A tensor of a pickle.
#[derive(Debug)]
pub(super) struct Found {
    /// The keys that lead to it, joined by dots; empty if the pickle is the tensor.
    pub(super) name: String,
    /// The type of its elements, and the bytes of one if they are whole bytes.
    pub(super) elements: (Dtype, Option<u64>),
    /// Its dimensions.
    pub(super) shape: Vec<u64>,
    /// Where its elements lie; none if it has none that are stored.
    pub(super) view: Option<View>,
    /// True for a storage by itself, whose shape is unknown.
    pub(super) is_storage: bool,
}

/// Elements of a storage.
#[derive(Debug)]
pub(super) struct View {
    /// The name of the storage in the archive, a text of the pickle.
    pub(super) storage: Node,
    /// Elements in front of the first.
    pub(super) offset: u64,
    /// True if they lie one behind the other, the last dimension first.
    pub(super) is_contiguous: bool,
}

const DEPTH_MAX: usize = 200;
const NAME_BYTES_MAX: usize = 4 << 10;
/// What names and tensors may take in memory, roughly.
const FOUND_BYTES_MAX: usize = 64 << 20;
const FOUND_BYTES: usize = 128;
const DIMENSIONS_MAX: usize = 64;
/// So many wrappers around a tensor at most.
const WRAPPERS_MAX: usize = 8;

/// All tensors of a pickle, in its order.
pub(super) fn tensors(pickle: &Pickle) -> Vec<Found> {
    let seen = vec![false; pickle.len()];
    let mut walk = Walk { pickle, seen, name: String::new(), found_bytes: 0, found: Vec::new() };
    walk.visit(pickle.root, 0);
    walk.found
}

/// The bytes of every storage that a pickle names.
pub(super) fn storage_bytes(pickle: &Pickle) -> HashMap<&str, u64> {
    let bytes = |node: Node| {
        let (name, (_, element_bytes)) = storage_of(pickle, node)?;
        let Value::Persistent(id) = pickle.value(node) else { return None };
        let elements = u64::try_from(pickle.as_int(*pickle.as_sequence(*id)?.get(4)?)?).ok()?;
        Some((pickle.as_text(name)?, elements.checked_mul(element_bytes?)?))
    };
    (0..pickle.len()).filter_map(|node| bytes(Node::try_from(node).ok()?)).collect()
}

struct Walk<'a> {
    pickle: &'a Pickle,
    /// Collections that have been walked.
    seen: Vec<bool>,
    /// The keys that lead to where the walk is.
    name: String,
    found_bytes: usize,
    found: Vec<Found>,
}

impl Walk<'_> {
    fn visit(&mut self, node: Node, depth: usize) {
        let pickle = self.pickle;
        match pickle.value(node) {
            Value::Object(_) | Value::Persistent(_) => {
                if let Some(found) = tensor(pickle, node) {
                    return self.add(found);
                }
            }
            Value::Dict(_) | Value::List(_) | Value::Tuple(_) => {}
            _ => return,
        }
        let Some(seen) = self.seen.get_mut(node as usize) else { return };
        if depth > DEPTH_MAX || std::mem::replace(seen, true) {
            return;
        }
        match pickle.value(node) {
            Value::Dict(items) => self.items(items, depth),
            Value::List(elements) | Value::Tuple(elements) => self.elements(elements, depth),
            Value::Object(object) => {
                self.visit(object.arguments, depth + 1);
                self.items(&object.items, depth);
                self.elements(&object.elements, depth);
                match object.state.map(|state| (state, pickle.value(state))) {
                    // Attributes of `__dict__` and of `__slots__`.
                    Some((_, Value::Tuple(parts))) => parts.iter().for_each(|part| self.visit(*part, depth + 1)),
                    Some((state, _)) => self.visit(state, depth + 1),
                    None => {}
                }
            }
            _ => {}
        }
    }

    fn items(&mut self, items: &[(Node, Node)], depth: usize) {
        for (at, (key, value)) in items.iter().enumerate() {
            if self.is_leaf(*value) {
                continue;
            }
            match self.pickle.value(*key) {
                Value::Text(text) => self.named(self.pickle.text(text), *value, depth),
                Value::Int(number) => self.named(&number.to_string(), *value, depth),
                _ => self.named(&at.to_string(), *value, depth),
            }
        }
    }

    fn elements(&mut self, elements: &[Node], depth: usize) {
        for (at, element) in elements.iter().enumerate() {
            if !self.is_leaf(*element) {
                self.named(&at.to_string(), *element, depth);
            }
        }
    }

    /// True for what neither is nor holds a tensor.
    fn is_leaf(&self, node: Node) -> bool {
        matches!(
            self.pickle.value(node),
            Value::None | Value::Int(_) | Value::Text(_) | Value::Global(..) | Value::Opaque
        )
    }

    fn named(&mut self, key: &str, node: Node, depth: usize) {
        let before = self.name.len();
        // Every step costs, so that a collection in many places is not asked for ever.
        self.found_bytes += 1 + key.len();
        if self.found_bytes < FOUND_BYTES_MAX && before + key.len() < NAME_BYTES_MAX {
            if before > 0 {
                self.name.push('.');
            }
            self.name.push_str(key);
            self.visit(node, depth + 1);
            self.name.truncate(before);
        }
    }

    fn add(&mut self, mut found: Found) {
        self.found_bytes += FOUND_BYTES + self.name.len() + found.shape.len() * size_of::<u64>();
        if self.found_bytes <= FOUND_BYTES_MAX {
            found.name.push_str(&self.name);
            self.found.push(found);
        }
    }
}

/// The tensor or storage that an object is, without its name.
fn tensor(pickle: &Pickle, mut node: Node) -> Option<Found> {
    for _ in 0..WRAPPERS_MAX {
        let object = match pickle.value(node) {
            Value::Object(object) => object,
            Value::Persistent(_) => return alone(pickle, node),
            _ => return None,
        };
        let arguments = arguments(pickle, object)?;
        node = match pickle.as_global(object.class)? {
            (
                "torch._utils",
                "_rebuild_parameter" | "_rebuild_parameter_with_state" | "_rebuild_device_tensor_from_cpu_tensor",
            ) => *arguments.first()?,
            ("torch._tensor", "_rebuild_from_type_v2") => {
                let inner = pickle.as_sequence(*arguments.get(2)?)?;
                return rebuilt(pickle, pickle.as_global(*arguments.first()?)?, inner);
            }
            function => return rebuilt(pickle, function, arguments),
        };
    }
    None
}

fn arguments<'a>(pickle: &'a Pickle, object: &Object) -> Option<&'a [Node]> {
    match pickle.value(object.arguments) {
        Value::Tuple(arguments) => Some(arguments),
        _ => None,
    }
}

/// The tensor that a function of PyTorch makes.
fn rebuilt(pickle: &Pickle, function: (&str, &str), arguments: &[Node]) -> Option<Found> {
    let argument = |at: usize| arguments.get(at).copied();
    let (storage, first, dtype) = match function {
        ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_qtensor") => (argument(0), 1, None),
        ("torch._utils", "_rebuild_tensor_v3") => (argument(0), 1, Some(dtype_of(pickle, argument(6)?)?)),
        ("torch._utils", "_rebuild_meta_tensor_no_storage") => (None, 0, Some(dtype_of(pickle, argument(0)?)?)),
        _ => return None,
    };
    let storage = match storage {
        Some(node) => Some(storage_of(pickle, node)?),
        None => None,
    };
    let offset = if storage.is_some() { u64::try_from(pickle.as_int(argument(first)?)?).ok()? } else { 0 };
    let shape = numbers(pickle, argument(first + 1)?)?;
    let strides = numbers(pickle, argument(first + 2)?)?;
    let elements = dtype.or(storage.as_ref().map(|(_, elements)| *elements))?;
    let is_contiguous = is_contiguous(&shape, &strides);
    let view = storage.map(|(storage, _)| View { storage, offset, is_contiguous });
    Some(Found { name: String::new(), elements, shape, view, is_storage: false })
}

/// A storage that no tensor stands around.
fn alone(pickle: &Pickle, node: Node) -> Option<Found> {
    let (storage, elements) = storage_of(pickle, node)?;
    let view = Some(View { storage, offset: 0, is_contiguous: true });
    Some(Found { name: String::new(), elements, shape: Vec::new(), view, is_storage: true })
}

/// The name and the type of a storage: the persistent id `("storage", class, name, device, elements)`.
fn storage_of(pickle: &Pickle, node: Node) -> Option<(Node, (Dtype, Option<u64>))> {
    let Value::Persistent(id) = pickle.value(node) else { return None };
    let id = pickle.as_sequence(*id)?;
    if pickle.as_text(*id.first()?)? != "storage" {
        return None;
    }
    let (_, class) = pickle.as_global(*id.get(1)?)?;
    Some((*id.get(2)?, elements_of_storage(class)?))
}

fn numbers(pickle: &Pickle, node: Node) -> Option<Vec<u64>> {
    let nodes = pickle.as_sequence(node).filter(|nodes| nodes.len() <= DIMENSIONS_MAX)?;
    nodes.iter().map(|&node| u64::try_from(pickle.as_int(node)?).ok()).collect()
}

fn is_contiguous(shape: &[u64], strides: &[u64]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut expected = 1u64;
    shape.len() == strides.len()
        && shape.iter().zip(strides).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == expected;
            expected = expected.saturating_mul(n);
            fits
        })
}

/// The type that a value like `torch.float16` is.
fn dtype_of(pickle: &Pickle, node: Node) -> Option<(Dtype, Option<u64>)> {
    match pickle.as_global(node)? {
        ("torch", name) => elements_of_dtype(name),
        _ => None,
    }
}

/// The type of the elements of a storage class.
fn elements_of_storage(class: &str) -> Option<(Dtype, Option<u64>)> {
    elements_of_dtype(match class.strip_suffix("Storage")? {
        "Double" => "float64",
        "Float" => "float32",
        "Half" => "float16",
        "BFloat16" => "bfloat16",
        "Long" => "int64",
        "Int" => "int32",
        "Short" => "int16",
        "Char" => "int8",
        "Byte" | "Untyped" => "uint8",
        "Bool" => "bool",
        "ComplexDouble" => "complex128",
        "ComplexFloat" => "complex64",
        "QInt8" => "qint8",
        "QInt32" => "qint32",
        "QUInt8" => "quint8",
        "QUInt4x2" => "quint4x2",
        "QUInt2x4" => "quint2x4",
        _ => return None,
    })
}

/// A type by its name in PyTorch, and the bytes of an element if they are whole ones.
fn elements_of_dtype(name: &str) -> Option<(Dtype, Option<u64>)> {
    let dtype = match name {
        "float64" | "double" => Dtype::F64,
        "float32" | "float" => Dtype::F32,
        "float16" | "half" => Dtype::F16,
        "bfloat16" => Dtype::Bf16,
        "float8_e4m3fn" => Dtype::F8E4m3,
        "float8_e5m2" => Dtype::F8E5m2,
        "int64" | "long" => Dtype::I64,
        "int32" | "int" | "qint32" => Dtype::I32,
        "int16" | "short" => Dtype::I16,
        "int8" | "qint8" => Dtype::I8,
        "uint64" => Dtype::U64,
        "uint32" => Dtype::U32,
        "uint16" => Dtype::U16,
        "uint8" | "quint8" => Dtype::U8,
        "bool" => Dtype::Bool,
        "complex64" | "cfloat" => Dtype::C64,
        "complex128" | "cdouble" => Dtype::C128,
        "complex32" | "chalf" => Dtype::Other(4),
        "bits16" => Dtype::Other(2),
        "bits8" | "bits1x8" | "bits2x4" | "bits4x2" => Dtype::Other(1),
        // Of one byte each, in types that other containers have by these names.
        "float8_e4m3fnuz" => return Some((Dtype::Blocks("F8_E4M3FNUZ"), Some(1))),
        "float8_e5m2fnuz" => return Some((Dtype::Blocks("F8_E5M2FNUZ"), Some(1))),
        "float8_e8m0fnu" => return Some((Dtype::Blocks("F8_E8M0"), Some(1))),
        "float4_e2m1fn_x2" => return Some((Dtype::Blocks("F4_X2"), Some(1))),
        "quint4x2" => Dtype::Blocks("QUINT4X2"),
        "quint2x4" => Dtype::Blocks("QUINT2X4"),
        _ => return None,
    };
    Some((dtype, dtype.element_bytes()))
}
