//! Contents of frames that frames further on in the same unit stand on: kept as long as they are needed, and no longer.
//! And buffers for contents, which are used again and again.
//!
//! How much there is at any time is for the plan to bound. A plan made from tables that no sound writer leaves may ask for
//! more; what is beyond [`KEPT_BYTES_MAX`] is not kept, and what stands on it is read by itself.

use super::plan::{Keep, PlannedBase};

/// Nothing is kept beyond this many bytes.
const KEPT_BYTES_MAX: usize = 128 << 20;
/// How many spare buffers are held, and how many bytes all of them together may take.
const SPARE_BUFFERS_MAX: usize = 32;
const SPARE_BYTES_MAX: usize = 32 << 20;

/// See the module.
#[derive(Default)]
pub(super) struct Kept {
    slots: Vec<Slot>,
    bytes: usize,
    buffers: Buffers,
    /// The contents of several bases, one behind the other.
    joined: Vec<u8>,
}

#[derive(Default)]
struct Slot {
    /// Empty if the frame could not be decoded.
    content: Vec<u8>,
    times: u32,
}

impl Kept {
    /// An empty buffer for a content.
    pub(super) fn buffer(&mut self) -> Vec<u8> {
        self.buffers.take()
    }

    /// Takes over a content, which is for frames further on if there is anything to `keep`.
    pub(super) fn put(&mut self, keep: Option<Keep>, content: Vec<u8>) {
        let keep = keep.filter(|_| self.bytes + content.len() <= KEPT_BYTES_MAX);
        let Some((keep, Ok(number))) = keep.map(|keep| (keep, usize::try_from(keep.slot))) else {
            return self.buffers.give(content);
        };
        if self.slots.len() <= number {
            // Slots are numbered from 0 without gaps.
            self.slots.resize_with(number + 1, Slot::default);
        }
        self.bytes += content.len();
        self.slots[number] = Slot { content, times: keep.times };
    }

    /// The contents of these chunks, one behind the other; none if one of them is not there.
    pub(super) fn bases(&mut self, bases: &[PlannedBase]) -> Option<&[u8]> {
        let Kept { slots, joined, .. } = self;
        let chunk = |base: &PlannedBase| {
            let at = usize::try_from(base.at).ok()?;
            let end = at.checked_add(usize::try_from(base.bytes).ok()?)?;
            slots.get(usize::try_from(base.slot).ok()?)?.content.get(at..end)
        };
        if let [base] = bases {
            return chunk(base);
        }
        joined.clear();
        for base in bases {
            joined.extend_from_slice(chunk(base)?);
        }
        Some(joined)
    }

    /// Counts these bases as used, and lets go what is not needed any more.
    pub(super) fn release(&mut self, bases: &[PlannedBase]) {
        for base in bases {
            let slot = usize::try_from(base.slot).ok().and_then(|number| self.slots.get_mut(number));
            let Some(slot) = slot else { continue };
            slot.times = slot.times.saturating_sub(1);
            if slot.times == 0 {
                let content = std::mem::take(&mut slot.content);
                self.let_go(content);
            }
        }
    }

    /// Lets go everything.
    pub(super) fn clear(&mut self) {
        for slot in std::mem::take(&mut self.slots) {
            self.let_go(slot.content);
        }
    }

    fn let_go(&mut self, content: Vec<u8>) {
        self.bytes -= content.len();
        self.buffers.give(content);
    }
}

/// Buffers to be used again.
#[derive(Default)]
struct Buffers {
    spare: Vec<Vec<u8>>,
    bytes: usize,
}

impl Buffers {
    fn take(&mut self) -> Vec<u8> {
        let buffer = self.spare.pop().unwrap_or_default();
        self.bytes -= buffer.capacity();
        buffer
    }

    fn give(&mut self, mut buffer: Vec<u8>) {
        let bytes = self.bytes + buffer.capacity();
        if buffer.capacity() > 0 && self.spare.len() < SPARE_BUFFERS_MAX && bytes <= SPARE_BYTES_MAX {
            buffer.clear();
            self.spare.push(buffer);
            self.bytes = bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_are_let_go_after_their_last_use_and_not_beyond_the_bound() {
        let mut kept = Kept::default();
        let base = |slot, at| PlannedBase { slot, at, bytes: 2 };
        kept.put(Some(Keep { slot: 1, times: 2 }), vec![1, 2, 3]);
        kept.put(Some(Keep { slot: 0, times: 1 }), vec![4, 5]);
        assert_eq!(kept.bases(&[base(1, 1)]), Some(&[2, 3][..]));
        assert_eq!(kept.bases(&[base(1, 0), base(0, 0)]), Some(&[1, 2, 4, 5][..]));
        assert_eq!(kept.bases(&[base(1, 2)]), None);
        assert_eq!(kept.bases(&[base(7, 0)]), None);
        kept.release(&[base(1, 0), base(0, 0)]);
        assert_eq!(kept.bases(&[base(0, 0)]), None);
        assert_eq!(kept.bytes, 3);
        kept.release(&[base(1, 0)]);
        assert_eq!(kept.bases(&[base(1, 0)]), None);
        assert_eq!(kept.bytes, 0);
        for slot in 0..20 {
            kept.put(Some(Keep { slot, times: 1 }), vec![0; KEPT_BYTES_MAX / 10]);
        }
        assert!(kept.bytes <= KEPT_BYTES_MAX && kept.bases(&[base(0, 0)]).is_some());
        assert_eq!(kept.bases(&[base(19, 0)]), None);
        kept.clear();
        assert!(kept.bytes == 0 && kept.buffers.bytes <= SPARE_BYTES_MAX);
    }
}
