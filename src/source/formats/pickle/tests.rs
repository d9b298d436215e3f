//! Pickles written opcode by opcode: honest ones, and those that are made to explode.

use super::super::torch_objects::tensors;
use super::*;
use std::time::{Duration, Instant};

/// Generous for two busy cores, and far below what anything exponential would take.
const TIME_MAX: Duration = Duration::from_secs(20);

fn pickle(parts: &[&[u8]]) -> Result<Pickle, String> {
    Pickle::read(parts.concat())
}

#[test]
fn values_of_every_kind_are_read() {
    let pickle = pickle(&[
        b"\x80\x04\x95\0\0\0\0\0\0\0\0}(",
        b"X\x01\0\0\0aK\x07",
        b"\x8c\x01bJ\xfb\xff\xff\xff",
        b"\x8d\x01\0\0\0\0\0\0\0c\x8a\x03\0\0\xff",
        b"\x8c\x01d\x8a\x09\0\0\0\0\0\0\0\0\x01",
        b"\x8c\x01e\x8b\x02\0\0\0\x39\x30",
        b"\x8c\x01f\x8a\0",
        b"\x8c\x01gM\x01\x02",
        b"\x8c\x01h](K\x01NC\x02xyG?\xf0\0\0\0\0\0\0\x88e",
        b"\x8c\x01i\x8c\x05torch\x8c\x04Size\x93K\x02K\x03\x86\x85R",
        b"\x8c\x01jcsome.module\nThing\n)\x81}\x8c\x05widthK\x10sb",
        b"\x8c\x01k(\x8c\x07storage\x8c\x010tQ",
        b"\x8c\x01lccollections\nOrderedDict\n)R\x8c\x01xK\x01s",
        b"\x8c\x01m\x8f(K\x01\x90",
        b"u.",
    ]);
    let pickle = pickle.expect("understood");
    let get = |key| pickle.get(pickle.root, key).expect("a key");
    let integers = ["a", "b", "c", "d", "e", "f", "g"].map(|key| pickle.as_int(get(key)));
    assert_eq!(integers, [Some(7), Some(-5), Some(-65_536), None, Some(12_345), Some(0), Some(513)]);
    assert_eq!(pickle.as_sequence(get("h")).map(<[Node]>::len), Some(5));
    let size = pickle.as_sequence(get("i")).expect("a size");
    assert_eq!(size.iter().filter_map(|&n| pickle.as_int(n)).collect::<Vec<_>>(), [2, 3]);
    assert_eq!(pickle.attribute(get("j"), "width").and_then(|node| pickle.as_int(node)), Some(16));
    assert!(matches!(pickle.value(get("k")), Value::Persistent(_)));
    assert_eq!(pickle.as_dict(get("l")).map(<[_]>::len), Some(1));
    assert!(matches!(pickle.value(get("m")), Value::Opaque));
}

#[test]
fn what_is_damaged_or_not_spoken_here_is_refused_at_its_position() {
    let refused: [&[u8]; 14] = [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x07N.",
        b"\x80\x02h\x05.",
        b"\x80\x02(.",
        b"\x80\x02K",
        b"\x80\x02X\xff\xff\xff\xffabc.",
        b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc.",
        b"\x80\x02\x8b\xff\xff\xff\x7fabc.",
        b"\x80\x02K\x01K\x02a.",
        b"\x80\x02}(K\x01u.",
        b"\x80\x02r\xff\xff\xff\xffN.",
        b"\x80\x02N(0R.",
    ];
    for bytes in refused {
        assert!(Pickle::read(bytes.to_vec()).is_err(), "{bytes:?}");
    }
    let reason = Pickle::read(b"\x80\x02N\xfe.".to_vec()).expect_err("no such opcode");
    assert!(reason.ends_with("byte 3"), "{reason}");
}

/// Every pair holds the one before it twice: 2 to the power of 100,000 if it were written out.
#[test]
fn what_is_shared_is_not_multiplied() {
    let mut bytes = b"\x80\x02]".to_vec();
    for _ in 0..100_000 {
        bytes.extend(b"2\x86");
    }
    bytes.push(b'.');
    let begun = Instant::now();
    let pickle = Pickle::read(bytes).expect("honest but large");
    assert!(tensors(&pickle).is_empty());
    assert!(begun.elapsed() < TIME_MAX);
}

#[test]
fn a_ring_is_walked_once() {
    let pickle = pickle(&[b"\x80\x02]q\0(h\0h\0}q\x01X\x01\0\0\0ah\0sh\x01e."]).expect("a list that holds itself");
    assert!(tensors(&pickle).is_empty());
}

#[test]
fn work_that_takes_more_than_its_bytes_ends() {
    let begun = Instant::now();
    // The same list of pairs given to dictionary after dictionary.
    let mut bytes = b"\x80\x02ccollections\nOrderedDict\nq\0](".to_vec();
    for _ in 0..100_000 {
        bytes.extend(b"NN\x86");
    }
    bytes.extend(b"e\x85q\x01");
    for _ in 0..100_000 {
        bytes.extend(b"h\0h\x01R");
    }
    bytes.push(b'.');
    assert!(Pickle::read(bytes).is_err());
    // A memo of gaps.
    let mut bytes = b"\x80\x02N".to_vec();
    for n in 1..1_000_000u32 {
        bytes.push(b'r');
        bytes.extend((n * 1000).to_le_bytes());
    }
    bytes.push(b'.');
    assert!(Pickle::read(bytes).is_err());
    assert!(begun.elapsed() < TIME_MAX);
}

#[test]
fn nesting_without_end_takes_no_stack() {
    let mut bytes = b"\x80\x02".to_vec();
    bytes.extend(std::iter::repeat_n(b']', 1_000_000));
    bytes.extend(std::iter::repeat_n(b'a', 999_999));
    bytes.push(b'.');
    let pickle = Pickle::read(bytes).expect("a million lists in one another");
    assert!(tensors(&pickle).is_empty());
    let mut bytes = b"\x80\x02".to_vec();
    bytes.extend(std::iter::repeat_n(b'(', 20_000_000));
    assert!(Pickle::read(bytes).is_err());
}

/// A tensor in one place of the pickle, named in 3 million.
#[test]
fn tensors_named_over_and_over_are_bounded() {
    let mut bytes = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n".to_vec();
    bytes.extend(b"X\x01\0\0\0\x30X\x03\0\0\0cpuK\x04tQK\0K\x04\x85K\x01\x85tRq\x01](");
    for _ in 0..3_000_000 {
        bytes.extend(b"h\x01");
    }
    bytes.extend(b"e.");
    let begun = Instant::now();
    let pickle = Pickle::read(bytes).expect("a list");
    let found = tensors(&pickle).len();
    assert!((1..600_000).contains(&found), "{found}");
    assert!(begun.elapsed() < TIME_MAX);
}
