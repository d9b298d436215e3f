//! Mutants: bytes that are almost what a parser knows, and follow from a number.

use crate::support::Chance;

/// Lengths, offsets and counts in text or bytes are set to these and to their neighbours.
const BOUNDS: [u64; 10] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, u32::MAX as u64, 1 << 40, i64::MAX as u64, u64::MAX];

/// What opens, closes or ends something in one of the formats.
const TOKENS: [&[u8]; 18] = [
    b"[",
    b"{",
    b"\"",
    b"'",
    b"(",
    b",",
    b"}",
    b"\\u0000",
    b"\xff",
    b"\0",
    b"PK\x05\x06",
    b"\x80\x02",
    b"]q\0",
    b":",
    b"/..",
    b"\x9f",
    b"\xbf",
    b"\xa0",
];

/// Mutant number `number` of `seed`; pieces of `other` may be put in.
pub fn mutant(seed: &[u8], other: &[u8], number: u64) -> Vec<u8> {
    let mut chance = Chance(number);
    let mut bytes = seed.to_vec();
    for _ in 0..=chance.index(4) {
        mutate(&mut bytes, other, &mut chance);
    }
    bytes
}

fn mutate(bytes: &mut Vec<u8>, other: &[u8], chance: &mut Chance) {
    if bytes.is_empty() {
        bytes.extend(other.iter().take(chance.index(40)));
        return bytes.push(number(0, chance) as u8);
    }
    let len = bytes.len();
    let at = position(len, chance);
    let some = chance.index(64).min(len - at);
    match chance.below(12) {
        0 | 1 => bytes[at] ^= 1 << chance.below(8),
        2 => bytes[at] = number(len, chance) as u8,
        3 => bytes.truncate(at),
        4 | 5 => {
            let value = number(len, chance);
            let width = 1 << chance.below(4);
            let (low, high) = (value.to_le_bytes(), value.to_be_bytes());
            let value = if chance.below(2) == 0 { &low[..width] } else { &high[8 - width..] };
            bytes[at..].iter_mut().zip(value).for_each(|(to, from)| *to = *from);
        }
        6 => drop(bytes.drain(at..at + some)),
        7 => {
            let again = bytes[at..at + some].repeat(1 + chance.index(3));
            bytes.splice(at..at, again);
        }
        8 if !other.is_empty() => {
            let from = position(other.len(), chance);
            let taken = &other[from..other.len().min(from + 1 + chance.index(200))];
            let replaced = if chance.below(2) == 0 { at } else { at + some };
            bytes.splice(at..replaced, taken.iter().copied());
        }
        9 => {
            if let Some(digit) = bytes[at..].iter().position(u8::is_ascii_digit) {
                let value = number(len, chance).to_string();
                bytes.splice(at + digit..at + digit + 1, value.bytes());
            }
        }
        10 => {
            // A number of seven bits a byte.
            let mut value = number(len, chance);
            let mut coded = Vec::new();
            while value >= 0x80 {
                coded.push(value as u8 | 0x80);
                value >>= 7;
            }
            coded.push(value as u8);
            bytes.splice(at..at + usize::from(chance.below(2) == 0), coded);
        }
        _ => {
            let token = TOKENS[chance.index(TOKENS.len())];
            let times = if chance.below(8) == 0 { 1 + chance.index(300) } else { 1 };
            bytes.splice(at..at, token.repeat(times));
        }
    }
}

/// Most often near an end, where headers are.
fn position(len: usize, chance: &mut Chance) -> usize {
    let near = chance.index(len.min(400));
    match chance.below(4) {
        0 | 1 => near,
        2 => len - near - 1,
        _ => chance.index(len),
    }
}

/// Often near a bound.
fn number(len: usize, chance: &mut Chance) -> u64 {
    let near = chance.below(3);
    let bound = match chance.below(6) {
        0 => len as u64,
        1 => 1 << chance.below(64),
        2 => return chance.below(u64::MAX),
        3 => return chance.below(256),
        _ => BOUNDS[chance.index(BOUNDS.len())],
    };
    if chance.below(2) == 0 { bound.wrapping_add(near) } else { bound.wrapping_sub(near) }
}

#[test]
fn the_same_number_gives_the_same_mutant_and_others_others() {
    let seed = b"a seed of some length, 12345".as_slice();
    let all: std::collections::HashSet<Vec<u8>> = (0..200).map(|n| mutant(seed, b"other", n)).collect();
    assert!(all.len() > 150, "{} mutants", all.len());
    assert_eq!(mutant(seed, b"other", 7), mutant(seed, b"other", 7));
}
