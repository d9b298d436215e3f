//! Walks and sums over the whole index.

use super::{Home, Index, Inner, blobs, pack_by_number, sqlite_error};
use crate::error::Result;
use crate::ids::{ChunkId, PackId};
use std::collections::HashSet;

/// What one codec has done, over all frames of all packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodecTotals {
    /// Its code.
    pub codec: u8,
    /// Frames.
    pub frames: u64,
    /// Bytes of their content.
    pub raw_bytes: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
}

impl Index {
    /// Calls `visit` for every chunk with its pack, in the order of ids; a chunk with several homes comes once for each.
    pub fn for_each_chunk(&self, visit: &mut dyn FnMut(ChunkId, Home)) -> Result<()> {
        let mut inner = self.lock();
        let Inner { connection, packs_by_number } = &mut *inner;
        let done = (|| {
            let sql = "SELECT pack, frame, stored, raw, at, bytes, codec, id FROM chunks ORDER BY id";
            let mut statement = connection.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let Some(pack) = pack_by_number(connection, packs_by_number, row.get(0)?)? else { continue };
                let Ok(id) = ChunkId::from_slice(row.get_ref(7)?.as_blob()?) else { continue };
                let home = Home {
                    pack,
                    frame_offset: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
                    frame_stored: row.get(2)?,
                    frame_raw: row.get(3)?,
                    at: row.get(4)?,
                    bytes: row.get(5)?,
                    codec: row.get(6)?,
                };
                visit(id, home);
            }
            Ok(())
        })();
        done.map_err(|e| sqlite_error(&self.path, e))
    }

    /// How many distinct chunks are known, and the bytes of their content, each counted once.
    pub fn unique_chunks(&self) -> Result<(u64, u64)> {
        let sql = "SELECT count(*), coalesce(sum(bytes), 0) FROM (SELECT bytes FROM chunks GROUP BY id)";
        let (chunks, bytes): (i64, i64) =
            self.query(|db| db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))))?;
        Ok((u64::try_from(chunks).unwrap_or(0), u64::try_from(bytes).unwrap_or(0)))
    }

    /// What each codec has done.
    pub fn codec_totals(&self) -> Result<Vec<CodecTotals>> {
        // A frame shows up once, at its first chunk.
        let sql =
            "SELECT codec, count(*), sum(raw), sum(stored) FROM chunks WHERE at = 0 GROUP BY codec ORDER BY codec";
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        self.query(|db| {
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| {
                Ok(CodecTotals {
                    codec: row.get(0)?,
                    frames: count(row.get(1)?),
                    raw_bytes: count(row.get(2)?),
                    stored_bytes: count(row.get(3)?),
                })
            })?;
            rows.collect()
        })
    }

    /// True for each pack that holds a chunk stored as a difference from others.
    pub fn packs_with_bases(&self) -> Result<HashSet<PackId>> {
        let sql = "SELECT id FROM packs WHERE no IN (SELECT pack FROM bases)";
        let rows = self.query(|db| blobs(db, sql))?;
        rows.iter().map(|b| PackId::from_slice(b)).collect()
    }
}
