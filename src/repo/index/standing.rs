//! Chunks at a glance: of every chunk that stands alone in a pack, which pack that is, taken from the index in one pass.
//!
//! For a run that is going to ask for most of them, as a backup does that finds nearly everything unchanged: the answers of
//! the database take microseconds each, and a walk asks as often as it asks the file system.
//!
//! What was true once stays true: what a pack holds never changes. Whether the pack is still there and may be relied on is not
//! known here.

use super::levels::levels;
use super::{Index, sqlite_error};
use crate::error::Result;
use crate::ids::{ChunkId, PackId};
use rusqlite::Connection;
use std::collections::HashMap;

/// As much of a chunk's id as tells it from every other: finding two that share it is as hard as breaking 128 bits.
type Key = [u8; 16];

/// Bytes of memory for each row, with the table half empty.
const ROW_BYTES: u64 = 2 * (size_of::<(Key, u32)>() as u64 + 1);

/// See the module.
pub struct Standing {
    packs: Vec<PackId>,
    pack_by_chunk: HashMap<Key, u32>,
}

impl Standing {
    /// The pack that holds the chunk by itself; none if that is not known.
    pub fn pack_of(&self, id: &ChunkId) -> Option<PackId> {
        let number = *self.pack_by_chunk.get(&key(id))?;
        self.packs.get(usize::try_from(number).ok()?).copied()
    }
}

impl Index {
    /// All chunks that stand alone; none if there are more than `rows_max` rows, or more than `memory_bytes` can hold. Of several
    /// packs any one is told.
    pub fn standing(&self, rows_max: u64, memory_bytes: u64) -> Result<Option<Standing>> {
        let mut inner = self.lock();
        let standing = read(inner.parts()?.connection, rows_max.min(memory_bytes / ROW_BYTES));
        standing.map_err(|e| sqlite_error(&self.path, e))
    }
}

fn read(connection: &mut Connection, rows_max: u64) -> rusqlite::Result<Option<Standing>> {
    // In one transaction: the numbers of packs are of the state of the rows.
    let tx = connection.transaction()?;
    let levels = levels(&tx)?;
    let rows = levels.settled.saturating_add(levels.recent);
    if rows > rows_max {
        return Ok(None);
    }
    let mut packs = Vec::new();
    let mut places = HashMap::new();
    let mut statement = tx.prepare("SELECT no, id FROM packs WHERE dead = 0")?;
    let mut found = statement.query([])?;
    while let Some(row) = found.next()? {
        if let Ok(id) = PackId::from_slice(row.get_ref(1)?.as_blob()?) {
            places.insert(row.get::<_, i64>(0)?, u32::try_from(packs.len()).unwrap_or(u32::MAX));
            packs.push(id);
        }
    }
    let mut pack_by_chunk = HashMap::with_capacity(usize::try_from(rows).unwrap_or(0));
    for table in ["chunks", "recent"] {
        let mut statement = tx.prepare(&format!("SELECT id, pack FROM {table} WHERE bases = 0"))?;
        let mut found = statement.query([])?;
        while let Some(row) = found.next()? {
            let place = places.get(&row.get(1)?);
            if let (Ok(id), Some(place)) = (ChunkId::from_slice(row.get_ref(0)?.as_blob()?), place) {
                pack_by_chunk.insert(key(&id), *place);
            }
        }
    }
    Ok(Some(Standing { packs, pack_by_chunk }))
}

fn key(id: &ChunkId) -> Key {
    id.as_bytes().first_chunk().copied().unwrap_or_default()
}
