//! Sets of chunks too large for memory, held against the index: what is live, and where it lies.
//!
//! The sets are temporary tables of the index's own connection, so SQLite keeps them in a file of its own that vanishes
//! with the run. A survey sees the index as it is; it changes nothing in it. One survey at a time.

use super::{Index, Inner, sqlite_error};
use crate::error::Result;
use crate::ids::{ChunkId, PackId};
use rusqlite::{Connection, Transaction, params};
use std::sync::{Mutex, PoisonError};

/// How many ids are gathered and sorted before they are inserted: neighbours go to the same pages.
const BATCH_IDS: usize = 1 << 16;

const TABLES: &str = "
CREATE TEMP TABLE IF NOT EXISTS live(id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS walked(id BLOB NOT NULL, role INTEGER NOT NULL, PRIMARY KEY(id, role)) WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS usable(pack INTEGER PRIMARY KEY, rank INTEGER NOT NULL);
DELETE FROM live; DELETE FROM walked; DELETE FROM usable;";

/// The share of a frame that one chunk in it takes, in stored bytes.
const SHARE: &str = "c.stored * c.bytes / max(c.raw, 1)";

/// What lies in one pack.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Chunks.
    pub chunks: u64,
    /// The bytes of frames that they take, roughly.
    pub bytes: u64,
}

/// The sets of one run.
pub struct Survey<'i> {
    index: &'i Index,
    batch: Mutex<Vec<ChunkId>>,
}

impl Index {
    /// Begins with empty sets.
    pub fn survey(&self) -> Result<Survey<'_>> {
        self.query(|db| db.execute_batch(TABLES))?;
        Ok(Survey { index: self, batch: Mutex::new(Vec::new()) })
    }
}

impl Survey<'_> {
    /// Adds a chunk to the live ones. Twice is once.
    pub fn mark(&self, id: ChunkId) -> Result<()> {
        let mut batch = self.batch.lock().unwrap_or_else(PoisonError::into_inner);
        batch.push(id);
        if batch.len() < BATCH_IDS { Ok(()) } else { self.insert(&mut batch) }
    }

    /// True for the first caller with this chunk in this role: who must look into it.
    pub fn visit_once(&self, id: ChunkId, role: u8) -> Result<bool> {
        self.query(|db| {
            let sql = "INSERT OR IGNORE INTO walked VALUES(?,?)";
            Ok(db.prepare_cached(sql)?.execute(params![id.as_bytes(), role])? > 0)
        })
    }

    /// Adds the bases of every live chunk, and theirs: without them it cannot be decoded.
    pub fn mark_bases(&self) -> Result<()> {
        self.flush()?;
        let sql = "INSERT OR IGNORE INTO live SELECT base FROM bases WHERE chunk IN (SELECT id FROM live)";
        while self.query(|db| db.prepare_cached(sql)?.execute([]))? > 0 {}
        Ok(())
    }

    /// How many chunks are live.
    pub fn live_chunks(&self) -> Result<u64> {
        self.flush()?;
        let count: i64 = self.query(|db| db.query_row("SELECT count(*) FROM live", [], |row| row.get(0)))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    /// True if the chunk is live.
    pub fn is_live(&self, id: ChunkId) -> Result<bool> {
        self.flush()?;
        self.query(|db| db.prepare_cached("SELECT 1 FROM live WHERE id = ?")?.exists(params![id.as_bytes()]))
    }

    /// Says which packs count as homes, the most preferred first. A pack's rank is its position.
    pub fn set_usable(&self, packs: &[PackId]) -> Result<()> {
        self.temporary_change(|tx| {
            tx.execute("DELETE FROM usable", [])?;
            let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO usable SELECT no, ? FROM packs WHERE id = ?")?;
            for (rank, pack) in packs.iter().enumerate() {
                insert.execute(params![i64::try_from(rank).unwrap_or(i64::MAX), pack.as_bytes()])?;
            }
            Ok(())
        })
    }

    /// Live chunks without a home in any usable pack: how many, and the first `kept_max` of them.
    pub fn homeless(&self, kept_max: usize) -> Result<(u64, Vec<ChunkId>)> {
        self.flush()?;
        let mut count = 0;
        let mut kept = Vec::new();
        self.query(|db| {
            let sql = "SELECT id FROM live WHERE NOT EXISTS
                       (SELECT 1 FROM chunks c JOIN usable u ON u.pack = c.pack WHERE c.id = live.id)";
            let mut statement = db.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                count += 1;
                if kept.len() < kept_max
                    && let Ok(id) = ChunkId::from_slice(row.get_ref(0)?.as_blob()?)
                {
                    kept.push(id);
                }
            }
            Ok(())
        })?;
        Ok((count, kept))
    }

    /// Usable packs that hold a live chunk which has another home in a usable pack.
    pub fn contested(&self) -> Result<Vec<PackId>> {
        self.flush()?;
        let sql = "SELECT DISTINCT p.id FROM chunks c JOIN packs p ON p.no = c.pack JOIN usable u ON u.pack = c.pack
                   WHERE c.id IN (SELECT c.id FROM live l JOIN chunks c ON c.id = l.id JOIN usable u ON u.pack = c.pack
                                  GROUP BY c.id HAVING min(c.pack) < max(c.pack))";
        let rows = self.index.query(|db| super::blobs(db, sql))?;
        rows.iter().map(|id| PackId::from_slice(id)).collect()
    }

    /// For each usable pack, by rank: all that lies in it, and what of that is live (counted in each of its homes).
    pub fn usage(&self) -> Result<Vec<(Usage, Usage)>> {
        self.flush()?;
        let mut found = vec![(Usage::default(), Usage::default()); self.usable_packs()?];
        let sql = format!(
            "SELECT u.rank, {SHARE}, EXISTS(SELECT 1 FROM live WHERE live.id = c.id)
             FROM chunks c CROSS JOIN usable u ON u.pack = c.pack"
        );
        self.for_each_share(&sql, &mut |rank, bytes, is_live| {
            let Some((all, live)) = found.get_mut(rank) else { return };
            all.add(bytes);
            if is_live {
                live.add(bytes);
            }
        })?;
        Ok(found)
    }

    /// For each usable pack, by rank: the live chunks that have their most preferred home in it.
    pub fn used(&self) -> Result<Vec<Usage>> {
        self.flush()?;
        let mut found = vec![Usage::default(); self.usable_packs()?];
        // Beside min(), SQLite takes the other columns from the row that holds the minimum.
        let sql = format!(
            "SELECT min(u.rank), {SHARE}, 1 FROM live l CROSS JOIN chunks c ON c.id = l.id
             CROSS JOIN usable u ON u.pack = c.pack GROUP BY l.id"
        );
        self.for_each_share(&sql, &mut |rank, bytes, _| {
            if let Some(usage) = found.get_mut(rank) {
                usage.add(bytes);
            }
        })?;
        Ok(found)
    }

    /// True if the chunk is live and the usable pack of this rank is its most preferred home.
    pub fn belongs(&self, id: ChunkId, rank: usize) -> Result<bool> {
        let best: Option<i64> = self.query(|db| {
            let sql = "SELECT min(u.rank) FROM live l CROSS JOIN chunks c ON c.id = l.id
                       CROSS JOIN usable u ON u.pack = c.pack WHERE l.id = ?";
            db.prepare_cached(sql)?.query_row(params![id.as_bytes()], |row| row.get(0))
        })?;
        Ok(best.and_then(|best| usize::try_from(best).ok()) == Some(rank))
    }

    fn usable_packs(&self) -> Result<usize> {
        let sql = "SELECT coalesce(max(rank) + 1, 0) FROM usable";
        let count: i64 = self.query(|db| db.query_row(sql, [], |row| row.get(0)))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    fn for_each_share(&self, sql: &str, visit: &mut dyn FnMut(usize, u64, bool)) -> Result<()> {
        self.query(|db| {
            let mut statement = db.prepare(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (rank, bytes): (i64, i64) = (row.get(0)?, row.get(1)?);
                visit(usize::try_from(rank).unwrap_or(usize::MAX), u64::try_from(bytes).unwrap_or(0), row.get(2)?);
            }
            Ok(())
        })
    }

    fn flush(&self) -> Result<()> {
        self.insert(&mut self.batch.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn insert(&self, batch: &mut Vec<ChunkId>) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        batch.sort_unstable();
        batch.dedup();
        self.temporary_change(|tx| {
            let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO live VALUES(?)")?;
            batch.iter().try_for_each(|id| insert.execute(params![id.as_bytes()]).map(|_| ()))
        })?;
        batch.clear();
        Ok(())
    }

    /// A change of temporary tables only: it must not lock the database that other runs use.
    fn temporary_change(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>) -> Result<()> {
        let mut inner = self.index.lock();
        let Inner { connection, .. } = &mut *inner;
        let done = (|| {
            let tx = connection.transaction()?;
            work(&tx)?;
            tx.commit()
        })();
        done.map_err(|e| sqlite_error(&self.index.path, e))
    }

    fn query<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        self.index.query(work)
    }
}

impl Usage {
    fn add(&mut self, bytes: u64) {
        self.chunks += 1;
        self.bytes += bytes;
    }
}
