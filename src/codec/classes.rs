//! Words in the order of their classes: dealt out, counted, and gathered again.
//!
//! Both directions walk through four stretches of words at once: where a word of a class goes depends on the one before
//! of that class, and a single walk would wait for that each time.
//!
//! Nothing here fails: what lies outside is left out or reads as zero. Callers bound what they hand in.

use super::runs::grow;
use std::cell::Cell;

/// Classes that a table holds: one for words that are not stored, and up to 16 others.
const CLASSES: usize = 32;

/// The class of words that are not stored; all others come behind it.
pub(super) const UNCHANGED: u8 = 0;

/// Bytes of words that are handled at once: a few such pieces fit into the innermost cache.
pub(super) const PIECE_BYTES: usize = 8 << 10;

/// Stretches of a piece that are walked through at once.
const LANES: usize = 4;

/// For each class, where its next word stands or how many it has.
pub(super) type Places = [u32; CLASSES];

/// The classes of all words of a frame; keeps its memory.
#[derive(Default)]
pub(super) struct Classes {
    of_words: Vec<u8>,
    words: usize,
    lane_words: usize,
    /// How many words of each stretch belong to each class.
    counts: Vec<[u16; CLASSES]>,
}

impl Classes {
    /// Begins with `words` words of `width` bytes, all of class 0, and lends their classes to be set.
    pub(super) fn begin(&mut self, width: usize, words: usize) -> &mut [u8] {
        (self.words, self.lane_words) = (words, PIECE_BYTES / width / LANES);
        grow(&mut self.of_words, words);
        self.of_words[..words].fill(0);
        &mut self.of_words[..words]
    }

    /// Counts the words of each class that are stored, once all classes are set.
    pub(super) fn count(&mut self) -> Places {
        self.counts.clear();
        self.counts.extend(self.of_words[..self.words].chunks(self.lane_words).map(count));
        let mut totals = [0; CLASSES];
        for counts in &self.counts {
            for (total, count) in totals.iter_mut().zip(counts) {
                *total += u32::from(*count);
            }
        }
        totals
    }

    /// Deals `words` out into `to`, class by class, behind one place that is left free.
    pub(super) fn deal<const WIDTH: usize>(&self, words: &[u8], totals: &Places, to: &mut [u8]) {
        let to = to.as_chunks_mut::<WIDTH>().0;
        let mut places = first_places(totals);
        // What is not stored lands on the free place.
        let pieces = self.of_words[..self.words].chunks(LANES * self.lane_words);
        let pieces = pieces.zip(words.as_chunks::<WIDTH>().0.chunks(LANES * self.lane_words));
        for ((classes, words), counts) in pieces.zip(self.counts.chunks(LANES)) {
            let mut lanes = lane_places(&mut places, counts);
            for_each_in_lanes(classes, words, self.lane_words, &mut lanes, |place, word| {
                if let Some(to) = to.get_mut(place as usize) {
                    *to = *word;
                }
            });
        }
    }

    /// Gathers what [`Classes::deal`] dealt out: the words of piece number `piece` into `words`. `places` are those of
    /// [`first_places`] for the first piece, and then go from piece to piece.
    pub(super) fn gather<const WIDTH: usize>(&self, from: &[u8], piece: usize, places: &mut Places, words: &mut [u8]) {
        let from = from.as_chunks::<WIDTH>().0;
        let words = words.as_chunks_mut::<WIDTH>().0;
        let first = piece * LANES * self.lane_words;
        let classes = &self.of_words[first..first + words.len()];
        let counts = &self.counts[piece * LANES..];
        let mut lanes = lane_places(places, &counts[..counts.len().min(LANES)]);
        let words: &[Cell<[u8; WIDTH]>] = Cell::from_mut(words).as_slice_of_cells();
        for_each_in_lanes(classes, words, self.lane_words, &mut lanes, |place, word| {
            word.set(from.get(place as usize).copied().unwrap_or([0; WIDTH]));
        });
    }
}

/// Calls `each` with the place of each word, which then moves on for its class; in turn for the lanes of a whole piece.
#[inline(always)]
fn for_each_in_lanes<W>(
    classes: &[u8],
    words: &[W],
    lane_words: usize,
    lanes: &mut [Places; LANES],
    mut each: impl FnMut(u32, &W),
) {
    let mut step = |places: &mut Places, class: u8, word: &W| {
        let place = &mut places[usize::from(class) % CLASSES];
        each(*place, word);
        *place += u32::from(class > 0);
    };
    let whole = classes.len() == LANES * lane_words && words.len() == classes.len();
    let mut stretches = classes.chunks_exact(lane_words).zip(words.chunks_exact(lane_words));
    if whole && let [Some(a), Some(b), Some(c), Some(d)] = std::array::from_fn(|_| stretches.next()) {
        let [first, second, third, fourth] = lanes;
        let pairs = a.0.iter().zip(a.1).zip(b.0.iter().zip(b.1));
        let pairs = pairs.zip(c.0.iter().zip(c.1).zip(d.0.iter().zip(d.1)));
        for ((a, b), (c, d)) in pairs {
            step(first, *a.0, a.1);
            step(second, *b.0, b.1);
            step(third, *c.0, c.1);
            step(fourth, *d.0, d.1);
        }
        return;
    }
    for ((classes, words), places) in classes.chunks(lane_words).zip(words.chunks(lane_words)).zip(lanes) {
        for (class, word) in classes.iter().zip(words) {
            step(places, *class, word);
        }
    }
}

/// Where each class begins. Place 0 is free: it stands for all words that are not stored.
pub(super) fn first_places(totals: &Places) -> Places {
    let mut places = [0; CLASSES];
    let mut next = 1;
    for (place, total) in places.iter_mut().zip(totals).skip(1) {
        *place = next;
        next += total;
    }
    places
}

/// Where each class begins in each lane of a piece; moves `places` on to the next piece.
fn lane_places(places: &mut Places, counts: &[[u16; CLASSES]]) -> [Places; LANES] {
    let mut lanes = [*places; LANES];
    for (lane, counts) in lanes.iter_mut().zip(counts) {
        *lane = *places;
        for (place, count) in places.iter_mut().zip(counts) {
            *place += u32::from(*count);
        }
    }
    lanes
}

/// How many words of each class there are, those that are not stored left out; `classes` are at most 2048.
fn count(classes: &[u8]) -> [u16; CLASSES] {
    // Several tables, since counting the same class again has to wait for the last time.
    let mut tables = [[0u16; CLASSES]; 8];
    let (eights, rest) = classes.as_chunks::<8>();
    for &eight in eights {
        let eight = u64::from_le_bytes(eight);
        for (at, table) in tables.iter_mut().enumerate() {
            table[(eight >> (8 * at)) as usize % CLASSES] += 1;
        }
    }
    for &class in rest {
        tables[0][usize::from(class) % CLASSES] += 1;
    }
    let mut counts = [0; CLASSES];
    for table in &tables {
        for (count, more) in counts.iter_mut().zip(table).skip(1) {
            *count += more;
        }
    }
    counts
}

/// The class of each word, from `first` on: how many of `limits`, none below 0, its magnitude reaches.
pub(super) fn classify(first: u8, limits: &[i16], magnitudes: &[i16], classes: &mut [u8]) {
    const BLOCK: usize = 512;
    let mut sums = [0i16; BLOCK];
    for (magnitudes, classes) in magnitudes.chunks(BLOCK).zip(classes.chunks_mut(BLOCK)) {
        let sums = &mut sums[..magnitudes.len()];
        sums.fill(i16::from(first));
        for limits in limits.chunks(4) {
            // What is above one less than a limit reaches it; nothing is above the greatest number.
            add_above(std::array::from_fn(|at| limits.get(at).map_or(i16::MAX, |limit| limit - 1)), magnitudes, sums);
        }
        for (class, sum) in classes.iter_mut().zip(sums) {
            *class = *sum as u8;
        }
    }
}

/// Adds to each sum how many of `bounds` its magnitude is above.
// A function of its own, with no other loop beside it: only so does the compiler vectorise it.
#[inline(never)]
fn add_above([a, b, c, d]: [i16; 4], magnitudes: &[i16], sums: &mut [i16]) {
    let above = |magnitude: i16, bound: i16| i16::from(magnitude > bound);
    for (sum, &magnitude) in sums.iter_mut().zip(magnitudes) {
        *sum += above(magnitude, a) + above(magnitude, b) + above(magnitude, c) + above(magnitude, d);
    }
}
