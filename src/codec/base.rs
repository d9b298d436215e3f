//! What bytes may be coded against: the content of other chunks, and how it is related to them.

/// What a base is to the bytes that are coded against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// The same numbers at another time: byte `i` of one belongs to byte `i` of the other. A base may be shorter or longer.
    Words {
        /// Logarithm to base 2 of a number's bytes, 0 to 3.
        width_log2: u8,
        /// True for numbers with sign, exponent and mantissa.
        is_float: bool,
    },
    /// The base holds bf16 numbers, the bytes the fp32 numbers that they were rounded from: two bytes to four.
    Widened,
    /// The base holds fp32 numbers, the bytes the bf16 numbers that they round to: four bytes to two.
    Narrowed,
    /// Stretches of the bytes stand somewhere in the base.
    Text,
}

/// A base: the contents of one or more chunks, one behind the other.
#[derive(Debug, Clone, Copy)]
pub struct Base<'a> {
    /// The bytes.
    pub content: &'a [u8],
    /// How many chunks they are: 1 to 8. It stands in the frame.
    pub chunks: u8,
    /// What they are to the bytes that are coded.
    pub relation: Relation,
    /// A frame longer than this is not worth the base, whatever the bytes would take alone: by it a run of versions is
    /// given a new anchor.
    pub stored_bytes_max: usize,
}
