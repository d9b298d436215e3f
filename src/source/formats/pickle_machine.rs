//! The machine that runs a pickle: opcode by opcode, on a stack, with a memo.
//!
//! Every opcode makes at most one value and pushes at most one number, both counted; what an opcode takes up of values made
//! earlier is counted too, and so is the memory of all values. So time and memory are in proportion to the length of the pickle,
//! whatever it says, and bounded.

mod stack;

use super::fields::Fields;
use super::pickle::{Node, Object, Value};
use stack::list_bytes;
use std::ops::Range;

const VALUES_MAX: usize = 4 << 20;
const PUSHES_MAX: usize = 16 << 20;
/// What all values may take in memory: those of a checkpoint with a hundred thousand tensors take a fraction.
const VALUES_BYTES_MAX: usize = 128 << 20;
/// Values on the stack at one time.
const HEIGHT_MAX: usize = 4 << 20;
/// Marks at one time.
const MARKS_MAX: usize = 1 << 20;
/// Memo numbers are handed out in order; some writers leave gaps.
const MEMO_GAP_MAX: usize = 1 << 10;
/// Longer texts are no names.
const TEXT_BYTES_MAX: usize = 4 << 10;

/// The value that all of its kind share.
const NONE: Node = 0;
const OPAQUE: Node = 1;
/// A place of the memo that is not in use.
const UNUSED: Node = Node::MAX;

/// Interprets `bytes` up to the opcode that stops: all values, and the outermost. The error is the position of what is
/// not understood.
pub(super) fn interpret(bytes: &[u8]) -> Result<(Vec<Value>, Node), usize> {
    let mut machine = Machine {
        fields: Fields(bytes),
        source: bytes,
        values: vec![Value::None, Value::Opaque],
        stack: Vec::new(),
        marks: Vec::new(),
        memo: Vec::new(),
        pushes: 0,
        values_bytes: 0,
    };
    loop {
        let position = machine.position();
        match machine.step() {
            Some(Step::Next) => {}
            Some(Step::Stop(root)) => return Ok((machine.values, root)),
            None => return Err(position),
        }
    }
}

enum Step {
    Next,
    Stop(Node),
}

/// The state of an interpretation.
struct Machine<'a> {
    /// What is ahead.
    fields: Fields<'a>,
    source: &'a [u8],
    values: Vec<Value>,
    stack: Vec<Node>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: Vec<Node>,
    pushes: usize,
    /// What the values take, roughly.
    values_bytes: usize,
}

impl Machine<'_> {
    fn position(&self) -> usize {
        self.source.len() - self.fields.0.len()
    }

    /// One opcode; none if it is unknown, damaged, or one too many.
    fn step(&mut self) -> Option<Step> {
        let opcode = self.fields.u8()?;
        match opcode {
            b'.' => return self.pop().map(Step::Stop),
            0x80 => matches!(self.fields.u8()?, 2..=5).then_some(())?,
            // The length of a frame helps readers of streams only.
            0x95 => drop(self.fields.u64()?),
            b'(' => self.mark()?,
            b'0' => self.discard()?,
            b'1' => drop(self.pop_to_mark()?),
            b'2' => {
                let top = self.peek()?;
                self.push_node(top)?;
            }
            b'q' | b'r' | 0x94 => self.memoize(opcode)?,
            b'h' | b'j' => self.recall(opcode)?,
            b']' | b'}' | b')' | 0x8f | b't' | 0x85..=0x87 | b'l' | b'd' | 0x91 => self.collection(opcode)?,
            b'a' | b'e' | b's' | b'u' | 0x90 => self.fill(opcode)?,
            b'c' | 0x93 => self.global(opcode)?,
            b'R' | 0x81 | 0x92 | b'b' | b'Q' => self.call(opcode)?,
            _ => self.scalar(opcode)?,
        }
        Some(Step::Next)
    }

    fn scalar(&mut self, opcode: u8) -> Option<()> {
        let value = match opcode {
            b'N' => Value::None,
            0x88 | 0x89 => Value::Opaque,
            b'K' => Value::Int(self.fields.u8()?.into()),
            b'M' => Value::Int(self.fields.u16()?.into()),
            b'J' => Value::Int(i64::from(self.fields.u32()? as i32)),
            0x8a => {
                let bytes = self.fields.u8()?.into();
                self.long(bytes)?
            }
            0x8b => {
                let bytes = self.fields.u32()? as usize;
                self.long(bytes)?
            }
            b'G' => self.opaque(8)?,
            0x8c => {
                let bytes = self.fields.u8()?.into();
                self.text(bytes)?
            }
            b'X' => {
                let bytes = self.fields.u32()?.into();
                self.text(bytes)?
            }
            0x8d => {
                let bytes = self.fields.u64()?;
                self.text(bytes)?
            }
            // Strings of Python 2 are bytes or text, as the reader likes: keys are text.
            b'U' => {
                let bytes = self.fields.u8()?.into();
                self.text(bytes)?
            }
            b'T' => {
                let bytes = self.fields.u32()?.into();
                self.text(bytes)?
            }
            b'C' => {
                let bytes = self.fields.u8()?.into();
                self.opaque(bytes)?
            }
            b'B' => {
                let bytes = self.fields.u32()?.into();
                self.opaque(bytes)?
            }
            0x8e | 0x96 => {
                let bytes = self.fields.u64()?;
                self.opaque(bytes)?
            }
            _ => return None,
        };
        self.push(value)
    }

    /// A whole number of so many bytes, in two's complement.
    fn long(&mut self, bytes: usize) -> Option<Value> {
        let digits = self.fields.take(bytes)?;
        let Some(last) = digits.last() else { return Some(Value::Int(0)) };
        let mut all = if last & 0x80 == 0 { [0; 8] } else { [0xff; 8] };
        Some(match all.get_mut(..bytes) {
            Some(low) => {
                low.copy_from_slice(digits);
                Value::Int(i64::from_le_bytes(all))
            }
            None => Value::Opaque,
        })
    }

    fn text(&mut self, bytes: u64) -> Option<Value> {
        let is_name = bytes <= TEXT_BYTES_MAX as u64;
        self.range(bytes).map(|range| if is_name { Value::Text(range) } else { Value::Opaque })
    }

    fn opaque(&mut self, bytes: u64) -> Option<Value> {
        self.range(bytes).map(|_| Value::Opaque)
    }

    /// Passes over bytes, and says where they lie.
    fn range(&mut self, bytes: u64) -> Option<Range<u32>> {
        let begins = u32::try_from(self.position()).ok()?;
        self.fields.take(usize::try_from(bytes).ok()?)?;
        Some(begins..u32::try_from(self.position()).ok()?)
    }

    /// Passes over a line, and says where it lies.
    fn line(&mut self) -> Option<Range<u32>> {
        let bytes = self.fields.0.iter().position(|&byte| byte == b'\n')?;
        let range = self.range(bytes as u64)?;
        self.fields.u8()?;
        Some(range)
    }

    fn global(&mut self, opcode: u8) -> Option<()> {
        let global = if opcode == b'c' {
            Value::Global(self.line()?, self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (self.value(module)?, self.value(name)?) {
                (Value::Text(module), Value::Text(name)) => Value::Global(module.clone(), name.clone()),
                _ => return None,
            }
        };
        self.push(global)
    }

    fn memoize(&mut self, opcode: u8) -> Option<()> {
        let number = match opcode {
            b'q' => self.fields.u8()?.into(),
            b'r' => self.fields.u32()? as usize,
            _ => self.memo.len(),
        };
        let top = self.peek()?;
        if number >= self.memo.len() {
            // A gap costs steps like everything else.
            let grown = number + 1;
            self.charge(grown - self.memo.len())?;
            if number > self.memo.len() + MEMO_GAP_MAX {
                return None;
            }
            self.memo.resize(grown, UNUSED);
        }
        *self.memo.get_mut(number)? = top;
        Some(())
    }

    fn recall(&mut self, opcode: u8) -> Option<()> {
        let number = if opcode == b'h' { self.fields.u8()?.into() } else { self.fields.u32()? as usize };
        let node = self.memo.get(number).copied().filter(|node| *node != UNUSED)?;
        self.push_node(node)
    }

    fn collection(&mut self, opcode: u8) -> Option<()> {
        let value = match opcode {
            b']' => Value::List(Vec::new()),
            b'}' => Value::Dict(Vec::new()),
            b')' => Value::Tuple(Vec::new()),
            0x8f => Value::Opaque,
            b't' => Value::Tuple(self.pop_to_mark()?),
            b'l' => Value::List(self.pop_to_mark()?),
            b'd' => Value::Dict(pairs(&self.pop_to_mark()?)?),
            0x91 => {
                self.pop_to_mark()?;
                Value::Opaque
            }
            _ => {
                let at = self.stack.len().checked_sub(usize::from(opcode - 0x84))?;
                Value::Tuple(self.pop_from(at)?)
            }
        };
        self.push(value)
    }

    /// Puts what lies on top into the collection below it.
    fn fill(&mut self, opcode: u8) -> Option<()> {
        let added = match opcode {
            b'a' => vec![self.pop()?],
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                vec![key, value]
            }
            _ => self.pop_to_mark()?,
        };
        let target = self.peek()? as usize;
        let is_keyed = matches!(opcode, b's' | b'u');
        self.charge_bytes(list_bytes(added.len()))?;
        match self.values.get_mut(target)? {
            Value::List(elements) if !is_keyed => elements.extend(added),
            Value::Dict(items) if is_keyed => items.extend(pairs(&added)?),
            Value::Object(object) if is_keyed => object.items.extend(pairs(&added)?),
            Value::Object(object) => object.elements.extend(added),
            Value::Opaque => {}
            _ => return None,
        }
        Some(())
    }

    fn call(&mut self, opcode: u8) -> Option<()> {
        if opcode == b'b' {
            let state = self.pop()?;
            let target = self.peek()? as usize;
            // What a dictionary has beside its items is of no use here.
            if let Value::Object(object) = self.values.get_mut(target)? {
                object.state = Some(state);
            }
            return Some(());
        }
        if opcode == b'Q' {
            let id = self.pop()?;
            return self.push(Value::Persistent(id));
        }
        if opcode == 0x92 {
            let _named_arguments = self.pop()?;
        }
        let (arguments, class) = (self.pop()?, self.pop()?);
        let made = if self.makes_dictionary(class) {
            Value::Dict(self.given_items(arguments)?)
        } else {
            let (items, elements) = (Vec::new(), Vec::new());
            Value::Object(Box::new(Object { class, arguments, state: None, items, elements }))
        };
        self.push(made)
    }

    fn makes_dictionary(&self, class: Node) -> bool {
        let Some(Value::Global(module, name)) = self.value(class) else { return false };
        let bytes = |range: &Range<u32>| self.source.get(range.start as usize..range.end as usize).unwrap_or_default();
        match (bytes(module), bytes(name)) {
            (b"collections", name) => matches!(name, b"OrderedDict" | b"defaultdict"),
            (b"builtins" | b"__builtin__", name) => name == b"dict",
            _ => false,
        }
    }

    /// What a new dictionary begins with: Python 2 gave the items of an ordered one as a list of pairs.
    fn given_items(&mut self, arguments: Node) -> Option<Vec<(Node, Node)>> {
        let Some(Value::Tuple(arguments)) = self.value(arguments) else { return Some(Vec::new()) };
        let Some(Value::List(given)) = arguments.first().and_then(|&first| self.value(first)) else {
            return Some(Vec::new());
        };
        let count = given.len();
        let pair = |&node: &Node| match self.value(node) {
            Some(Value::List(pair) | Value::Tuple(pair)) => pair.first().copied().zip(pair.get(1).copied()),
            _ => None,
        };
        let items = given.iter().filter_map(pair).collect();
        // Such a list may be named in two bytes, over and over: what it holds counts.
        self.charge(count)?;
        Some(items)
    }
}

/// Keys and values that follow each other; none if a value lacks.
fn pairs(nodes: &[Node]) -> Option<Vec<(Node, Node)>> {
    let (pairs, rest) = nodes.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[key, value]| (*key, *value)).collect())
}
