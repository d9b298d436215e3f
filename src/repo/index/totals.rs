//! Walks and sums over the whole index. Dead packs do not count.

use super::homes::{HOME_COLUMNS, home_of};
use super::{Home, Index, Parts, sqlite_error};
use crate::error::Result;
use crate::ids::{ChunkId, PackId};

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
        self.merge_recent()?;
        let mut inner = self.lock();
        let Parts { connection, packs_by_number, .. } = inner.parts()?;
        let done = (|| {
            let sql = format!("SELECT {HOME_COLUMNS}, id FROM chunks ORDER BY id");
            let mut statement = connection.prepare_cached(&sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let Some((home, false)) = home_of(connection, packs_by_number, row)? else { continue };
                let Ok(id) = ChunkId::from_slice(row.get_ref("id")?.as_blob()?) else { continue };
                visit(id, home);
            }
            Ok(())
        })();
        done.map_err(|e| sqlite_error(&self.path, e))
    }

    /// How many distinct chunks are known, and the bytes of their content, each counted once.
    pub fn unique_chunks(&self) -> Result<(u64, u64)> {
        let sql = "SELECT count(*), coalesce(sum(bytes), 0) FROM (SELECT bytes FROM chunks
                   WHERE pack IN (SELECT no FROM packs WHERE dead = 0) GROUP BY id)";
        self.merge_recent()?;
        let (chunks, bytes): (i64, i64) =
            self.query(|db| db.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))))?;
        Ok((u64::try_from(chunks).unwrap_or(0), u64::try_from(bytes).unwrap_or(0)))
    }

    /// What each codec has done.
    pub fn codec_totals(&self) -> Result<Vec<CodecTotals>> {
        // A frame shows up once, at its first chunk.
        let sql = "SELECT codec, count(*), sum(raw), sum(stored) FROM chunks
             WHERE at = 0 AND pack IN (SELECT no FROM packs WHERE dead = 0) GROUP BY codec ORDER BY codec";
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        self.merge_recent()?;
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

    /// Calls `visit` for every base of every frame: the chunk coded against it, the pack, where the frame begins, the
    /// base's position among its bases, the base.
    pub fn for_each_base(&self, visit: &mut dyn FnMut(ChunkId, PackId, u64, u8, ChunkId)) -> Result<()> {
        self.query(|db| {
            let sql = "SELECT b.chunk, p.id, b.frame, b.ordinal, b.base FROM bases b
                       JOIN packs p ON p.no = b.pack WHERE p.dead = 0";
            let mut statement = db.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let ids = (
                    ChunkId::from_slice(row.get_ref(0)?.as_blob()?),
                    PackId::from_slice(row.get_ref(1)?.as_blob()?),
                    ChunkId::from_slice(row.get_ref(4)?.as_blob()?),
                );
                if let (Ok(chunk), Ok(pack), Ok(base)) = ids {
                    visit(chunk, pack, u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0), row.get(3)?, base);
                }
            }
            Ok(())
        })
    }
}
