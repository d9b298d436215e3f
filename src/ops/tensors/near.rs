//! Names that somebody who mistyped one may have meant.

use std::collections::HashMap;

/// How many are offered.
const NAMES_MAX: usize = 3;
/// What is less alike than this share is not offered.
const LIKENESS_MIN: f64 = 0.4;
/// Longer names are no names that anybody types.
const NAME_BYTES_MAX: usize = 400;

/// The names that have most pairs of neighbouring bytes in common with `wanted`, the most alike first.
pub fn near_names<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let pairs = pairs_of(wanted);
    let mut found: Vec<(f64, &str)> = names
        .filter(|name| name.len() <= NAME_BYTES_MAX)
        .map(|name| (likeness(&pairs, name), name))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .collect();
    found.sort_by(|(a, name_a), (b, name_b)| b.total_cmp(a).then_with(|| name_a.cmp(name_b)));
    found.into_iter().take(NAMES_MAX).map(|(_, name)| name.to_owned()).collect()
}

fn pairs_of(name: &str) -> HashMap<[u8; 2], usize> {
    let mut pairs = HashMap::new();
    for pair in name.as_bytes().windows(2) {
        *pairs.entry([pair[0], pair[1]]).or_default() += 1;
    }
    pairs
}

/// Twice the common pairs by all pairs of both (the measure of Dice).
fn likeness(pairs: &HashMap<[u8; 2], usize>, name: &str) -> f64 {
    let other = pairs_of(name);
    let common: usize = other.iter().map(|(pair, count)| (*count).min(pairs.get(pair).copied().unwrap_or(0))).sum();
    let all = pairs.values().sum::<usize>() + other.values().sum::<usize>();
    if all == 0 { 0.0 } else { 2.0 * common as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_finger_finds_the_name() {
        let names = ["model.embed.weight", "model.layers.0.weight", "lm_head.weight", "x"];
        let near = near_names("model.layer.0.weight", names.into_iter());
        assert_eq!(near.first().map(String::as_str), Some("model.layers.0.weight"));
        assert!(near_names("qqq", names.into_iter()).is_empty());
        assert!(near_names("", names.into_iter()).is_empty());
    }
}
