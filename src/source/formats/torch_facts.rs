//! What a checkpoint of PyTorch says of itself: the numbers near the top of its pickle, such as `global_step`.

use super::header_reader::HeaderReader;
use super::pickle::{Node, Pickle, Value};
use super::torch;
use super::zip::Archive;
use crate::bytes::ByteRange;
use crate::read_at::ReadAt;
use std::collections::VecDeque;

/// What is known of a file of `torch.save` without its tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TorchFacts {
    /// Whole numbers under text keys: the keys joined by dots, those of outer dictionaries first.
    pub integers: Vec<(String, i64)>,
    /// How many tensors it has.
    pub tensors: usize,
}

/// Dictionaries inside dictionaries, counted from the outermost.
const DEPTH_MAX: usize = 3;
const INTEGERS_MAX: usize = 1 << 10;
/// Larger dictionaries hold tensors, or data.
const ITEMS_MAX: usize = 1 << 10;
const DICTIONARIES_MAX: usize = 1 << 10;
const KEY_BYTES_MAX: usize = 256;

impl TorchFacts {
    /// The number under a key.
    pub fn integer(&self, key: &str) -> Option<i64> {
        self.integers.iter().find(|(name, _)| name == key).map(|(_, number)| *number)
    }
}

/// The facts of a file; none if it is not a whole archive of `torch.save`, cannot be read, or its pickle is not understood.
pub fn torch_facts(file: &dyn ReadAt) -> Option<TorchFacts> {
    let mut reader = HeaderReader::new(file);
    let archive = Archive::open(&mut reader, ByteRange::new(0, file.bytes()).ok()?).ok()??;
    let prefix = torch::prefix(&archive)?;
    let pickle = torch::pickle(&mut reader, &archive.entries, prefix).ok()??;
    let found = super::torch_objects::tensors(&pickle);
    let tensors = found.iter().filter(|found| !found.is_storage).count();
    Some(TorchFacts { integers: integers(&pickle), tensors })
}

fn integers(pickle: &Pickle) -> Vec<(String, i64)> {
    let mut found = Vec::new();
    let mut ahead: VecDeque<(Node, String, usize)> = VecDeque::from([(pickle.root, String::new(), 1)]);
    let mut dictionaries = 0;
    while let Some((node, path, depth)) = ahead.pop_front() {
        let items = pickle.as_dict(node).unwrap_or_default();
        dictionaries += 1;
        if items.len() > ITEMS_MAX || dictionaries > DICTIONARIES_MAX {
            continue;
        }
        for (key, value) in items {
            let Some(key) = pickle.as_text(*key).filter(|key| key.len() <= KEY_BYTES_MAX) else { continue };
            let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
            match pickle.value(*value) {
                Value::Int(number) if found.len() < INTEGERS_MAX => found.push((path, *number)),
                // What is ahead counts: one small dictionary may be named by all items of another.
                _ if dictionaries + ahead.len() >= DICTIONARIES_MAX => {}
                Value::Dict(_) if depth < DEPTH_MAX => ahead.push_back((*value, path, depth + 1)),
                // The arguments of a run, as Megatron keeps them.
                Value::Object(object) if depth < DEPTH_MAX => {
                    ahead.extend(object.state.map(|state| (state, path, depth + 1)));
                }
                _ => {}
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_of_a_real_checkpoint_are_known() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/torch/checkpoint.ckpt");
        let content = std::fs::read(path).expect("a sample");
        let facts = torch_facts(&content.as_slice()).expect("a checkpoint");
        let known = ["epoch", "global_step", "below", "hyper_parameters.width", "big"].map(|key| facts.integer(key));
        assert_eq!(known, [Some(3), Some(1200), Some(-5), Some(16), None]);
        assert_eq!(facts.tensors, 6 + 6 * 3);
        assert_eq!(torch_facts(&&content[..content.len() - 1]), None);
        assert_eq!(torch_facts(&&b"PK"[..]), None);
    }
}
