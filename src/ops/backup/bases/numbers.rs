//! For a chunk of numbers: the chunk of the base file at the same place, its anchor, and the content of that.

use super::super::shared::Shared;
use super::RunBase;
use crate::codec::Relation;
use crate::error::Result;
use crate::ids::ChunkId;
use crate::read_at::ReadAt;
use crate::repo::index::Home;
use crate::repo::pack::PackKind;
use crate::source::open::SourceFile;

/// A base that the encoder may use; the run relies on its chunks.
pub(crate) struct Offer {
    /// The chunks, in order.
    pub(crate) chunks: Vec<ChunkId>,
    /// Their contents, one behind the other.
    pub(crate) content: Vec<u8>,
    pub(crate) relation: Relation,
    /// What the frame may take.
    pub(crate) stored_bytes_max: usize,
    /// Steps from what is coded against it to a chunk that stands alone.
    pub(crate) depth: u8,
}

/// A chunk as the index or this run knows it.
struct Known {
    bases: Vec<ChunkId>,
    bytes: u64,
    stored: u64,
}

/// The base for the chunk `id` that begins `within` bytes behind the start of its run; none if there is no chunk at that place.
pub(crate) fn offer(shared: &Shared<'_>, id: ChunkId, base: &RunBase, within: u64) -> Result<Option<Offer>> {
    let within = match base.relation {
        Relation::Widened => within / 2,
        Relation::Narrowed => within.saturating_mul(2),
        _ => within,
    };
    if within >= base.range.len() {
        return Ok(None);
    }
    let Some(placed) = base.file.chunk_at(base.range.offset() + within) else { return Ok(None) };
    let found = placed.child.id;
    let Some(known) = look_up(shared, found)? else { return Ok(None) };
    let is_version = matches!(base.relation, Relation::Words { .. });
    let (anchor, known, depth) = match known.bases.first() {
        None => (found, known, 1),
        Some(_) if !is_version => match depth(shared, found, shared.delta_depth.saturating_sub(1))? {
            Some(steps) => (found, known, steps.saturating_add(1)),
            None => return Ok(None),
        },
        // Numbers are one step from their anchor: what this chunk was coded against is the base.
        Some(&anchor) => match look_up(shared, anchor)? {
            Some(further) if further.bases.is_empty() && further.bytes == known.bytes => (anchor, further, 1),
            _ => return Ok(None),
        },
    };
    if !can_read(shared, anchor) {
        return Ok(None);
    }
    if anchor == id || depth > shared.delta_depth || shared.transaction.rely_on_base(id, &[anchor])?.contains(&false) {
        return Ok(None);
    }
    let stored_bytes_max = match is_version {
        true => {
            let index = shared.transaction.repo().index();
            shared.recent.stored_bytes_max(index, anchor, known.bytes, known.stored)?
        }
        false => usize::MAX,
    };
    let Some(content) = read(shared, anchor)? else { return Ok(None) };
    Ok(Some(Offer { chunks: vec![anchor], content, relation: base.relation, stored_bytes_max, depth }))
}

/// True if the content is here, or the key of this host opens what the repository has. Nothing is tried that cannot succeed.
fn can_read(shared: &Shared<'_>, id: ChunkId) -> bool {
    shared.transaction.repo().keys().opens(PackKind::Data) || shared.recent.get(id).is_some()
}

fn look_up(shared: &Shared<'_>, id: ChunkId) -> Result<Option<Known>> {
    if let Some(recent) = shared.recent.get(id) {
        return Ok(Some(Known { bases: recent.bases, bytes: recent.bytes, stored: recent.stored }));
    }
    let index = shared.transaction.repo().index();
    let Some(home) = first_home(shared, id)? else { return Ok(None) };
    let bases = match home.base_count {
        0 => Vec::new(),
        _ => index.bases_at(&[(id, home)])?.pop().unwrap_or_default(),
    };
    // Of a frame that it shares a chunk takes its part.
    let share = u64::from(home.frame_stored) * u64::from(home.bytes) / u64::from(home.frame_raw).max(1);
    Ok(Some(Known { bases, bytes: home.bytes.into(), stored: share }))
}

fn first_home(shared: &Shared<'_>, id: ChunkId) -> Result<Option<Home>> {
    Ok(shared.transaction.repo().index().homes(&[id])?.pop().and_then(|homes| homes.into_iter().next()))
}

/// How many steps a chunk is from one that stands alone; none beyond `depth_max` and for one that is not known.
pub(crate) fn depth(shared: &Shared<'_>, id: ChunkId, depth_max: u8) -> Result<Option<u8>> {
    let mut at = id;
    for steps in 0..=depth_max {
        if let Some(recent) = shared.recent.get(at) {
            return Ok(recent.depth.checked_add(steps).filter(|&depth| depth <= depth_max));
        }
        let Some(known) = look_up(shared, at)? else { return Ok(None) };
        match known.bases.first() {
            None => return Ok(Some(steps)),
            Some(&base) => at = base,
        }
    }
    Ok(None)
}

/// The content of a chunk that the run relies on; none if it cannot be had just now.
pub(crate) fn read(shared: &Shared<'_>, id: ChunkId) -> Result<Option<Vec<u8>>> {
    let Some(recent) = shared.recent.get(id) else {
        if !can_read(shared, id) {
            return Ok(None);
        }
        // One that turns out damaged is no base; verification names it.
        return Ok(shared.frames.read(id).ok());
    };
    // Its pack may not be durable yet, but the file that it came from is here.
    let mut content = vec![0; usize::try_from(recent.bytes).unwrap_or(0)];
    let read = SourceFile::open(&recent.file).and_then(|file| ReadAt::read_at(&file, recent.offset, &mut content));
    let is_right = read.is_ok_and(|bytes| bytes == content.len()) && shared.transaction.repo().chunk_id(&content) == id;
    Ok(is_right.then_some(content))
}
