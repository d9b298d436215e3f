//! Frames and what they stand on, as numbers: the order by pack and place is the order of the numbers.

use super::chains::{Chains, DEPTH_MAX, Place};
use super::{Use, Want};
use crate::ids::PackId;
use crate::repo::index::Home;
use std::ops::Range;

/// A chunk of another frame that a frame needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    /// The number of the frame.
    pub(super) frame: u32,
    /// Where the chunk begins in its content.
    pub(super) at: u32,
    /// Bytes of the chunk.
    pub(super) bytes: u32,
}

/// A frame of the graph.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) pack: PackId,
    pub(super) offset: u64,
    pub(super) stored: u32,
    pub(super) raw: u32,
    /// True if something in the plan stands on it.
    pub(super) is_base: bool,
    /// What it stands on.
    pub(super) links: Vec<Link>,
    /// How many steps it is above frames that stand alone, along the longest way; none if there is no way to decode it.
    pub(super) depth: Option<u8>,
    /// The frame that stands alone at the end of the chain of first bases.
    pub(super) root: u32,
    /// Which of the wanted chunks come out of it.
    wanted: Range<usize>,
    base_count: u8,
    is_needed: bool,
}

/// See the module.
pub(super) struct Graph<'w> {
    wanted: &'w [(Home, Want)],
    frames: Vec<Frame>,
    has_links: bool,
}

impl<'w> Graph<'w> {
    /// The frames of `wanted`, which is sorted by pack and place, and everything that they stand on.
    pub(super) fn new(wanted: &'w [(Home, Want)], chains: &Chains) -> Graph<'w> {
        let mut frames: Vec<Frame> = Vec::new();
        for (number, (home, _)) in wanted.iter().enumerate() {
            match frames.last_mut().filter(|last| last.place() == place(home)) {
                Some(last) => last.wanted.end = number + 1,
                None => frames.push(Frame::new(home, number..number + 1)),
            }
        }
        let mut graph = Graph { wanted, frames, has_links: !chains.is_empty() };
        if graph.has_links {
            graph.add_bases(chains);
            graph.link(chains);
        }
        graph.order();
        graph
    }

    /// The frame of this number.
    pub(super) fn frame(&self, number: u32) -> &Frame {
        &self.frames[index(number)]
    }

    /// How many frames there are.
    pub(super) fn len(&self) -> usize {
        self.frames.len()
    }

    /// What comes out of a frame.
    pub(super) fn uses(&self, frame: &Frame) -> Vec<Use> {
        self.wanted[frame.wanted.clone()].iter().map(|(home, want)| Use { at: home.at, want: *want }).collect()
    }

    /// What is wanted of frames that there is no way to decode.
    pub(super) fn elsewhere(&self) -> Vec<Want> {
        let frames = self.frames.iter().filter(|frame| frame.depth.is_none());
        frames.flat_map(|frame| &self.wanted[frame.wanted.clone()]).map(|(_, want)| *want).collect()
    }

    /// The frames that are needed, those with a common root together, each behind what it stands on.
    pub(super) fn by_root(&self) -> Vec<u32> {
        let mut order: Vec<u32> = self.numbers().filter(|&n| self.frame(n).is_needed).collect();
        if self.has_links {
            order.sort_unstable_by_key(|&n| (self.frame(n).root, self.frame(n).depth, n));
        }
        order
    }

    fn numbers(&self) -> impl Iterator<Item = u32> + use<> {
        0..u32::try_from(self.frames.len()).unwrap_or(u32::MAX)
    }

    fn add_bases(&mut self, chains: &Chains) {
        let known = self.frames.len();
        for home in chains.homes() {
            if self.frames[..known].binary_search_by_key(&place(home), Frame::place).is_err() {
                self.frames.push(Frame::new(home, 0..0));
            }
        }
        self.frames.sort_unstable_by_key(Frame::place);
        self.frames.dedup_by_key(|frame| frame.place());
    }

    fn link(&mut self, chains: &Chains) {
        for number in 0..self.frames.len() {
            let frame = &self.frames[number];
            let Some(bases) = chains.bases_of(frame.place()).filter(|_| frame.base_count > 0) else { continue };
            let link = |home: &Home| {
                let found = self.frames.binary_search_by_key(&place(home), Frame::place).ok()?;
                Some(Link { frame: u32::try_from(found).ok()?, at: home.at, bytes: home.bytes })
            };
            let links: Vec<Link> = bases.filter_map(link).collect();
            self.frames[number].links = links;
        }
    }

    /// Finds depths and roots, and which frames are needed at all.
    fn order(&mut self) {
        let mut open = Vec::new();
        for (number, frame) in self.numbers().zip(&mut self.frames) {
            frame.root = number;
            match frame.base_count {
                0 => frame.depth = Some(0),
                count if frame.links.len() == usize::from(count) => open.push(number),
                _ => {}
            }
        }
        // One step of all chains at a time: a circle never becomes ready, nor does what stands on one.
        let mut ordered: Vec<u32> = Vec::new();
        for depth in 1..=u8::try_from(DEPTH_MAX).unwrap_or(u8::MAX) {
            let is_ready = |n: &u32| self.frame(*n).links.iter().all(|link| self.frame(link.frame).depth.is_some());
            let (ready, rest): (Vec<u32>, Vec<u32>) = open.into_iter().partition(is_ready);
            open = rest;
            if ready.is_empty() {
                break;
            }
            for &number in &ready {
                let root = self.frame(number).links.first().map_or(number, |link| self.frame(link.frame).root);
                let frame = &mut self.frames[index(number)];
                (frame.depth, frame.root) = (Some(depth), root);
            }
            ordered.extend(ready);
        }
        for frame in &mut self.frames {
            frame.is_needed = frame.depth.is_some() && !frame.wanted.is_empty();
        }
        for number in ordered.into_iter().rev().filter(|_| self.has_links) {
            if !self.frame(number).is_needed {
                continue;
            }
            for at in 0..self.frame(number).links.len() {
                let base = index(self.frame(number).links[at].frame);
                (self.frames[base].is_needed, self.frames[base].is_base) = (true, true);
            }
        }
    }
}

impl Frame {
    fn new(home: &Home, wanted: Range<usize>) -> Frame {
        Frame {
            pack: home.pack,
            offset: home.frame_offset,
            stored: home.frame_stored,
            raw: home.frame_raw,
            is_base: false,
            links: Vec::new(),
            depth: None,
            root: 0,
            wanted,
            base_count: home.base_count,
            is_needed: false,
        }
    }

    fn place(&self) -> Place {
        (self.pack, self.offset)
    }

    /// Where the frame ends in its pack.
    pub(super) fn end(&self) -> u64 {
        self.offset.saturating_add(self.stored.into())
    }
}

fn place(home: &Home) -> Place {
    (home.pack, home.frame_offset)
}

/// Numbers are made from positions, so this never fails.
pub(super) fn index(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
