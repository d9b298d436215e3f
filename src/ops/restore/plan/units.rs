//! Cuts the graph of frames into units, and orders the reads of each.
//!
//! A unit begins as one read of neighbouring frames that stand alone (its *roots*) and takes in all that stands on them.
//! It is read level by level, as long as the contents that are kept for later levels stay within the bound; otherwise
//! in groups: a part of a level, with all that stands on it, before the next part.

use super::graph::{Frame, Graph, index};
use super::{GAP_BYTES_MAX, Keep, PlannedBase, PlannedFrame, PlannedRead, READ_BYTES_MAX, Unit};
use std::collections::HashMap;

/// Cuts all that is needed into units, in the order of their roots.
pub(super) fn cut(graph: &Graph<'_>, kept_bytes_max: u64) -> Vec<Unit> {
    let order = graph.by_root();
    let mut units = Vec::new();
    let mut cutter = Cutter::new(graph, kept_bytes_max);
    let mut begin = 0;
    // The root that the unit ends with so far, where its read began, and what is kept of its roots.
    let mut last: Option<(u32, u64, u64)> = None;
    let mut at = 0;
    for family in order.chunk_by(|&a, &b| graph.frame(a).root == graph.frame(b).root) {
        let root = graph.frame(family[0]).root;
        let frame = graph.frame(root);
        let kept = if frame.is_base { u64::from(frame.raw) } else { 0 };
        // Half of the bound is for the roots, the other for what is kept of that which stands on them.
        let joined = last.filter(|&(before, from, sum)| {
            is_near(graph, before, root, from) && (kept == 0 || sum.saturating_add(kept) <= kept_bytes_max / 2)
        });
        last = match joined {
            Some((_, from, sum)) => Some((root, from, sum.saturating_add(kept))),
            None => {
                units.extend(cutter.unit(&order[begin..at]));
                begin = at;
                Some((root, frame.offset, kept))
            }
        };
        at += family.len();
    }
    units.extend(cutter.unit(&order[begin..at]));
    units
}

/// True if what began at `from` and ends with the frame `before` is near enough to the frame `next` to go on with it.
fn is_near(graph: &Graph<'_>, before: u32, next: u32, from: u64) -> bool {
    let (last, frame) = (graph.frame(before), graph.frame(next));
    let gap = frame.offset.saturating_sub(last.end());
    last.pack == frame.pack && gap <= GAP_BYTES_MAX && frame.end().saturating_sub(from) <= READ_BYTES_MAX
}

/// True if a read goes on with the frame `next`: it is near, and nothing that lies between is read at another time.
fn continues(graph: &Graph<'_>, before: u32, next: u32, from: u64) -> bool {
    next.checked_sub(before) == Some(1) && is_near(graph, before, next, from)
}

struct Cutter<'g> {
    graph: &'g Graph<'g>,
    kept_bytes_max: u64,
    /// In which unit, counted from 1, each frame was last put: a base of frames in several units is read in each.
    placed: Vec<u32>,
    unit: u32,
    /// Frames whose bases have to be looked at; empty between calls.
    open: Vec<u32>,
}

/// Frames of one unit by what they directly stand on, by their first base.
type Children = HashMap<u32, Vec<u32>>;

impl<'g> Cutter<'g> {
    fn new(graph: &'g Graph<'g>, kept_bytes_max: u64) -> Cutter<'g> {
        Cutter { graph, kept_bytes_max, placed: vec![0; graph.len()], unit: 0, open: Vec::new() }
    }

    /// The unit of these families.
    fn unit(&mut self, members: &[u32]) -> Option<Unit> {
        let (first, last) = (*members.first()?, *members.last()?);
        let roots = first..=self.graph.frame(last).root;
        self.unit += 1;
        let mut reads = Reads { graph: self.graph, roots, list: Vec::new() };
        let mut all = Vec::with_capacity(members.len());
        let kept: u64 = members.iter().map(|&member| self.claim(member, &mut all)).sum();
        if kept <= self.kept_bytes_max {
            reads.add(all);
            return Some(reads.into_unit());
        }
        self.disclaim(&all);
        let mut children = Children::new();
        let mut level = Vec::new();
        for &member in members {
            match self.graph.frame(member).links.first() {
                Some(link) => children.entry(link.frame).or_default().push(member),
                None => level.push(member),
            }
        }
        self.schedule(level, &children, self.kept_bytes_max, &mut reads);
        Some(reads.into_unit())
    }

    /// Adds frames of one depth and all that stands on them to the reads, so that about `bytes_max` are kept at most.
    /// Calls itself as deep as chains are long.
    fn schedule(&mut self, mut level: Vec<u32>, children: &Children, bytes_max: u64, reads: &mut Reads<'_>) {
        level.sort_unstable();
        let mut rest = &level[..];
        while let Some((&first, behind)) = rest.split_first() {
            let mut group = Vec::new();
            // One frame in any case; each further one as long as half of the bound is left for what stands on them.
            let mut kept = self.claim(first, &mut group);
            let mut end = level.len() - behind.len();
            for &number in behind {
                let before = group.len();
                let more = self.claim(number, &mut group);
                if kept.saturating_add(more) > bytes_max / 2 && more > 0 {
                    self.disclaim(&group[before..]);
                    group.truncate(before);
                    break;
                }
                kept = kept.saturating_add(more);
                end += 1;
            }
            let members = &level[level.len() - rest.len()..end];
            rest = &level[end..];
            reads.add(group);
            let above: Vec<u32> = members.iter().filter_map(|number| children.get(number)).flatten().copied().collect();
            self.schedule(above, children, bytes_max.saturating_sub(kept), reads);
        }
    }

    /// Adds the frame and everything that it stands on to `group`, but for what the unit has. Returns the bytes of them
    /// that have to be kept for others.
    fn claim(&mut self, number: u32, group: &mut Vec<u32>) -> u64 {
        let mut kept = 0u64;
        self.open.push(number);
        while let Some(number) = self.open.pop() {
            if std::mem::replace(&mut self.placed[index(number)], self.unit) == self.unit {
                continue;
            }
            let frame = self.graph.frame(number);
            group.push(number);
            self.open.extend(frame.links.iter().map(|link| link.frame));
            kept = kept.saturating_add(if frame.is_base { frame.raw.into() } else { 0 });
        }
        kept
    }

    fn disclaim(&mut self, numbers: &[u32]) {
        for &number in numbers {
            self.placed[index(number)] = 0;
        }
    }
}

/// The reads of a unit under way: the numbers of their frames.
struct Reads<'g> {
    graph: &'g Graph<'g>,
    roots: std::ops::RangeInclusive<u32>,
    list: Vec<Vec<u32>>,
}

impl Reads<'_> {
    /// True if the frame belongs to this unit, and is not only a base that one of its frames needs besides.
    fn is_own(&self, frame: &Frame) -> bool {
        self.roots.contains(&frame.root)
    }

    /// Adds frames, level by level.
    fn add(&mut self, mut frames: Vec<u32>) {
        frames.sort_unstable_by_key(|&number| (self.graph.frame(number).depth, number));
        for level in frames.chunk_by(|&a, &b| self.graph.frame(a).depth == self.graph.frame(b).depth) {
            self.add_level(level);
        }
    }

    fn add_level(&mut self, level: &[u32]) {
        let begun = self.list.len();
        for &number in level {
            let read = self.list[begun..].last_mut();
            let joined = read.filter(|read| {
                let from = read.first().map_or(0, |&first| self.graph.frame(first).offset);
                read.last().is_some_and(|&last| continues(self.graph, last, number, from))
            });
            match joined {
                Some(read) => read.push(number),
                None => self.list.push(vec![number]),
            }
        }
    }

    fn into_unit(self) -> Unit {
        let mut keeps: HashMap<u32, Keep> = HashMap::new();
        for link in self.list.iter().flatten().flat_map(|&number| &self.graph.frame(number).links) {
            let slot = u32::try_from(keeps.len()).unwrap_or(u32::MAX);
            keeps.entry(link.frame).or_insert(Keep { slot, times: 0 }).times += 1;
        }
        let planned = |&number: &u32| {
            let frame = self.graph.frame(number);
            let base = |link: &super::graph::Link| {
                let slot = keeps.get(&link.frame).map_or(u32::MAX, |keep| keep.slot);
                PlannedBase { slot, at: link.at, bytes: link.bytes }
            };
            PlannedFrame {
                offset: frame.offset,
                stored: frame.stored,
                raw: frame.raw,
                uses: if self.is_own(frame) { self.graph.uses(frame) } else { Vec::new() },
                bases: frame.links.iter().map(base).collect(),
                keep: keeps.get(&number).copied(),
            }
        };
        let read = |numbers: &Vec<u32>| PlannedRead {
            pack: self.graph.frame(numbers[0]).pack,
            frames: numbers.iter().map(planned).collect(),
        };
        Unit { reads: self.list.iter().map(read).collect(), elsewhere: Vec::new() }
    }
}
