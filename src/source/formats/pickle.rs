//! A small interpreter of pickles, protocol 2 to 5, that executes nothing.
//!
//! It builds a tree of values; whatever a pickle would import or call is kept as an opaque object that remembers what
//! it was made of. Values are numbered nodes of an arena: sharing and rings cost nothing, and who walks
//! the tree has to mind them. Every opcode makes at most one node and pushes at most one number, both counted, so a
//! pickle costs memory in proportion to its length. Not done: protocols 0 and 1, extension codes, buffers out of band.

use super::pickle_machine::interpret;
use std::ops::Range;

/// The number of a value in its [`Pickle`].
pub(super) type Node = u32;

/// A value.
#[derive(Debug)]
pub(super) enum Value {
    None,
    /// A whole number; those of more than 64 bits are [`Value::Opaque`].
    Int(i64),
    /// Where its bytes lie in the pickle; those too long for a name are [`Value::Opaque`].
    Text(Range<u32>),
    Tuple(Vec<Node>),
    List(Vec<Node>),
    /// Keys and values in their order; also `collections.OrderedDict` and `defaultdict`.
    Dict(Vec<(Node, Node)>),
    /// A class or function: where module and name lie in the pickle.
    Global(Range<u32>, Range<u32>),
    /// What a persistent id names.
    Persistent(Node),
    /// What a call made.
    Object(Box<Object>),
    /// What nobody asks for: truth values, numbers with a point, bytes, sets.
    Opaque,
}

/// What came out of a call of something unknown.
#[derive(Debug)]
pub(super) struct Object {
    /// What was called.
    pub(super) class: Node,
    /// With what.
    pub(super) arguments: Node,
    /// The state that was given to it afterwards.
    pub(super) state: Option<Node>,
    /// What was put into it as into a dictionary.
    pub(super) items: Vec<(Node, Node)>,
    /// What was put into it as into a list.
    pub(super) elements: Vec<Node>,
}

/// What a pickle holds.
#[derive(Debug)]
pub(super) struct Pickle {
    bytes: Vec<u8>,
    values: Vec<Value>,
    /// The outermost value.
    pub(super) root: Node,
}

/// The classes whose attributes are asked for have fewer.
const STATE_ITEMS_MAX: usize = 16;

impl Pickle {
    /// Interprets `bytes` up to the opcode that stops; an error says what is wrong.
    pub(super) fn read(bytes: Vec<u8>) -> Result<Pickle, String> {
        let (values, root) = interpret(&bytes).map_err(|at| format!("its pickle is not understood at byte {at}"))?;
        Ok(Pickle { bytes, values, root })
    }

    /// A value.
    pub(super) fn value(&self, node: Node) -> &Value {
        self.values.get(node as usize).unwrap_or(&Value::None)
    }

    /// The number of values.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Bytes of the pickle as text; empty if they are none.
    pub(super) fn text(&self, range: &Range<u32>) -> &str {
        let bytes = self.bytes.get(range.start as usize..range.end as usize).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    /// The text that a value is.
    pub(super) fn as_text(&self, node: Node) -> Option<&str> {
        match self.value(node) {
            Value::Text(range) => Some(self.text(range)),
            _ => None,
        }
    }

    /// The number that a value is.
    pub(super) fn as_int(&self, node: Node) -> Option<i64> {
        match self.value(node) {
            Value::Int(number) => Some(*number),
            _ => None,
        }
    }

    /// Module and name of the class or function that a value is.
    pub(super) fn as_global(&self, node: Node) -> Option<(&str, &str)> {
        match self.value(node) {
            Value::Global(module, name) => Some((self.text(module), self.text(name))),
            _ => None,
        }
    }

    /// The elements of a tuple or list; of `torch.Size` and its like, those of what it was made from.
    pub(super) fn as_sequence(&self, node: Node) -> Option<&[Node]> {
        match self.value(node) {
            Value::Tuple(elements) | Value::List(elements) => Some(elements),
            Value::Object(object) if matches!(self.as_global(object.class), Some(("torch", "Size"))) => {
                match self.value(object.arguments) {
                    Value::Tuple(arguments) => match self.value(*arguments.first()?) {
                        Value::Tuple(elements) | Value::List(elements) => Some(elements),
                        _ => None,
                    },
                    _ => None,
                }
            }
            _ => None,
        }
    }

    /// Keys and values of a dictionary.
    pub(super) fn as_dict(&self, node: Node) -> Option<&[(Node, Node)]> {
        match self.value(node) {
            Value::Dict(items) => Some(items),
            _ => None,
        }
    }

    /// The value of a text key in a dictionary.
    fn get(&self, node: Node, key: &str) -> Option<Node> {
        let is_key = |node: Node| match self.value(node) {
            Value::Text(range) => self.bytes.get(range.start as usize..range.end as usize) == Some(key.as_bytes()),
            _ => false,
        };
        self.as_dict(node)?.iter().rev().find(|(node, _)| is_key(*node)).map(|(_, value)| *value)
    }

    /// An attribute of an object: what its state has under `name`.
    pub(super) fn attribute(&self, node: Node, name: &str) -> Option<Node> {
        match self.value(node) {
            Value::Object(object) => {
                let state =
                    object.state.filter(|state| self.as_dict(*state).is_some_and(|d| d.len() <= STATE_ITEMS_MAX));
                self.get(state?, name)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
