//! Contents of frames that frames further on in the same unit stand on: kept as long as they are needed, and no longer.
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
    /// Buffers to be used again.
    spare: Vec<Vec<u8>>,
    spare_bytes: usize,
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
    /// Takes over `content`, leaving another buffer in its place.
    pub(super) fn put(&mut self, keep: Keep, content: &mut Vec<u8>) {
        let Ok(number) = usize::try_from(keep.slot) else { return };
        if self.slots.len() <= number {
            // Slots are numbered from 0 without gaps.
            self.slots.resize_with(number + 1, Slot::default);
        }
        if self.bytes + content.len() > KEPT_BYTES_MAX {
            return;
        }
        let empty = self.spare.pop().unwrap_or_default();
        self.spare_bytes -= empty.capacity();
        let content = std::mem::replace(content, empty);
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

    fn let_go(&mut self, mut content: Vec<u8>) {
        self.bytes -= content.len();
        let bytes = self.spare_bytes + content.capacity();
        if content.capacity() > 0 && self.spare.len() < SPARE_BUFFERS_MAX && bytes <= SPARE_BYTES_MAX {
            content.clear();
            self.spare.push(content);
            self.spare_bytes = bytes;
        }
    }
}
