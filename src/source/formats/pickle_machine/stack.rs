//! The stack of the machine that runs a pickle, and what is counted: work and memory.
//!
//! Nothing is taken from below a mark. Deliberately not here: what opcodes do.

use super::super::pickle::{Node, Object, Value};
use super::{HEIGHT_MAX, MARKS_MAX, Machine, NONE, OPAQUE, PUSHES_MAX, VALUES_BYTES_MAX, VALUES_MAX};

impl Machine<'_> {
    /// Counts work; none if it has become too much.
    pub(super) fn charge(&mut self, steps: usize) -> Option<()> {
        self.pushes = self.pushes.saturating_add(steps);
        (self.pushes <= PUSHES_MAX).then_some(())
    }

    /// Counts memory; none if it has become too much.
    pub(super) fn charge_bytes(&mut self, bytes: usize) -> Option<()> {
        self.values_bytes = self.values_bytes.saturating_add(bytes);
        (self.values_bytes <= VALUES_BYTES_MAX).then_some(())
    }

    pub(super) fn mark(&mut self) -> Option<()> {
        if self.marks.len() >= MARKS_MAX {
            return None;
        }
        self.marks.push(self.stack.len());
        self.charge(1)
    }

    pub(super) fn value(&self, node: Node) -> Option<&Value> {
        self.values.get(node as usize)
    }

    pub(super) fn push(&mut self, value: Value) -> Option<()> {
        let node = match value {
            Value::None => NONE,
            Value::Opaque => OPAQUE,
            value => {
                let node = Node::try_from(self.values.len()).ok().filter(|_| self.values.len() < VALUES_MAX)?;
                self.charge_bytes(size_of::<Value>() + held_bytes(&value))?;
                self.values.push(value);
                node
            }
        };
        self.push_node(node)
    }

    pub(super) fn push_node(&mut self, node: Node) -> Option<()> {
        if self.stack.len() >= HEIGHT_MAX {
            return None;
        }
        self.stack.push(node);
        self.charge(1)
    }

    /// The value on top; none if a mark lies there.
    pub(super) fn peek(&self) -> Option<Node> {
        let floor = self.marks.last().copied().unwrap_or_default();
        self.stack.get(floor..)?.last().copied()
    }

    pub(super) fn pop(&mut self) -> Option<Node> {
        self.peek()?;
        self.stack.pop()
    }

    /// Takes away the value or mark on top.
    pub(super) fn discard(&mut self) -> Option<()> {
        match self.pop() {
            Some(_) => Some(()),
            None => self.marks.pop().map(drop),
        }
    }

    pub(super) fn pop_to_mark(&mut self) -> Option<Vec<Node>> {
        let at = self.marks.pop()?;
        self.pop_from(at)
    }

    pub(super) fn pop_from(&mut self, at: usize) -> Option<Vec<Node>> {
        let floor = self.marks.last().copied().unwrap_or_default();
        // Not `split_off`, which may hand on all that the stack has room for.
        (floor <= at && at <= self.stack.len()).then(|| self.stack.drain(at..).collect())
    }
}

/// What a value holds beside itself, roughly.
fn held_bytes(value: &Value) -> usize {
    match value {
        Value::Tuple(elements) | Value::List(elements) => list_bytes(elements.len()),
        Value::Dict(items) => list_bytes(2 * items.len()),
        Value::Object(_) => size_of::<Object>(),
        _ => 0,
    }
}

/// A list of so many values: it may have grown to twice that, and nothing is shorter than 16 bytes.
pub(super) fn list_bytes(elements: usize) -> usize {
    if elements == 0 { 0 } else { 16 + 2 * size_of::<Node>() * elements }
}
