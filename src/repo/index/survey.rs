//! Sets of chunks too large for memory, held against the index: what is live, and where it lies.
//!
//! The sets are temporary tables of the index's own connection, so SQLite keeps them in a file of its own that vanishes
//! with the run. A survey sees the index as it is when homes are chosen; that brings all rows together in `chunks`, and changes
//! nothing else. One survey at a time.
//!
//! A chunk that is coded against others lies somewhere only if they do. `founded` finds out which do, chooses a home for
//! each, and with it the bases that are needed: every question about homes is answered by that choice.

mod founded;

use super::{Index, Parts, sqlite_error};
use crate::error::Result;
use crate::ids::{ChunkId, PackId};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// How many ids are gathered and sorted before they are inserted: neighbours go to the same pages.
const BATCH_IDS: usize = 1 << 16;

const TABLES: &str = "
CREATE TEMP TABLE IF NOT EXISTS live(id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS walked(id BLOB NOT NULL, role INTEGER NOT NULL, PRIMARY KEY(id, role)) WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS usable(pack INTEGER PRIMARY KEY, rank INTEGER NOT NULL);
CREATE TEMP TABLE IF NOT EXISTS bad(chunk BLOB NOT NULL, pack INTEGER NOT NULL, PRIMARY KEY(chunk, pack)) WITHOUT ROWID;
DELETE FROM live; DELETE FROM walked; DELETE FROM usable; DELETE FROM bad;";

/// Home `c` is not known to be bad.
const GOOD: &str = "NOT EXISTS(SELECT 1 FROM bad WHERE bad.chunk = c.id AND bad.pack = c.pack)";

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
    /// True if the homes are chosen for what is live and usable now.
    is_settled: AtomicBool,
}

impl Index {
    /// Begins with empty sets.
    pub fn survey(&self) -> Result<Survey<'_>> {
        self.query(|db| db.execute_batch(TABLES).and_then(|()| db.execute_batch(founded::TABLES)))?;
        Ok(Survey { index: self, batch: Mutex::new(Vec::new()), is_settled: AtomicBool::new(false) })
    }
}

impl Survey<'_> {
    /// Adds a chunk to the live ones. Twice is once. What it is coded against follows from the homes that count.
    pub fn mark(&self, id: ChunkId) -> Result<()> {
        self.is_settled.store(false, Ordering::Relaxed);
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

    /// How many chunks are live, with those that live ones are coded against in their chosen homes.
    pub fn live_chunks(&self) -> Result<u64> {
        self.settle()?;
        let sql = "SELECT (SELECT count(*) FROM live) + (SELECT count(*) FROM carried)";
        let count: i64 = self.query(|db| db.query_row(sql, [], |row| row.get(0)))?;
        Ok(u64::try_from(count).unwrap_or(0))
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

    /// Says which chunks are no good in which packs, whatever is usable.
    pub fn set_bad(&self, homes: impl IntoIterator<Item = (ChunkId, PackId)>) -> Result<()> {
        self.temporary_change(|tx| {
            tx.execute("DELETE FROM bad", [])?;
            let mut insert = tx.prepare_cached("INSERT OR IGNORE INTO bad SELECT ?, no FROM packs WHERE id = ?")?;
            for (chunk, pack) in homes {
                insert.execute(params![chunk.as_bytes(), pack.as_bytes()])?;
            }
            Ok(())
        })
    }

    /// Live chunks that cannot be had from usable packs, for want of a home or of what it needs: how many, and the first
    /// `kept_max` of them.
    pub fn homeless(&self, kept_max: usize) -> Result<(u64, Vec<ChunkId>)> {
        self.settle()?;
        let mut count = 0;
        let mut kept = Vec::new();
        self.query(|db| {
            let sql = "SELECT id FROM pending p WHERE EXISTS(SELECT 1 FROM live l WHERE l.id = p.id)";
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

    /// True if the chunk was looked for, as a live one or as a base, and cannot be had from usable packs.
    pub fn is_lost(&self, id: ChunkId) -> Result<bool> {
        self.settle()?;
        self.query(|db| db.prepare_cached("SELECT 1 FROM pending WHERE id = ?")?.exists(params![id.as_bytes()]))
    }

    /// For each usable pack, by rank: all that lies in it, and what of that is live (counted in each of its homes).
    pub fn usage(&self) -> Result<Vec<(Usage, Usage)>> {
        self.settle()?;
        let mut found = vec![(Usage::default(), Usage::default()); self.usable_packs()?];
        let sql = format!(
            "SELECT u.rank, {SHARE}, EXISTS(SELECT 1 FROM live WHERE live.id = c.id)
                                  OR EXISTS(SELECT 1 FROM carried WHERE carried.id = c.id)
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

    /// For each usable pack, by rank: the live chunks whose chosen home is in it. One that needs no other chunk is chosen
    /// before any that does; among those of a kind, the one in the most preferred pack.
    pub fn used(&self) -> Result<Vec<Usage>> {
        self.settle()?;
        let mut found = vec![Usage::default(); self.usable_packs()?];
        // Beside min(), SQLite takes the other columns from the row that holds the minimum.
        let alone = |set: &str| {
            format!(
                "SELECT min(u.rank), {SHARE}, 1 FROM {set} l CROSS JOIN chunks c ON c.id = l.id AND c.bases = 0
                 CROSS JOIN usable u ON u.pack = c.pack WHERE {GOOD} GROUP BY l.id"
            )
        };
        let coded = format!(
            "SELECT d.rank, {SHARE}, 1 FROM coded d
             CROSS JOIN chunks c ON c.id = d.id AND c.pack = d.pack AND c.frame = d.frame
             WHERE EXISTS(SELECT 1 FROM live l WHERE l.id = d.id) OR EXISTS(SELECT 1 FROM carried l WHERE l.id = d.id)"
        );
        for sql in [alone("live"), alone("carried"), coded] {
            self.for_each_share(&sql, &mut |rank, bytes, _| {
                if let Some(usage) = found.get_mut(rank) {
                    usage.add(bytes);
                }
            })?;
        }
        Ok(found)
    }

    /// True if the chunk is live and its chosen home is the frame that begins there in the usable pack of this rank.
    pub fn belongs(&self, id: ChunkId, rank: usize, frame_offset: u64) -> Result<bool> {
        self.settle()?;
        let chosen: Option<(Option<i64>, Option<i64>)> = self.query(|db| {
            let sql = format!(
                "SELECT rank, frame FROM coded WHERE id = ?1
                 UNION ALL
                 SELECT min(u.rank), c.frame FROM chunks c CROSS JOIN usable u ON u.pack = c.pack
                 WHERE c.id = ?1 AND c.bases = 0 AND {GOOD}"
            );
            let is_needed = "SELECT 1 FROM live WHERE id = ?1 UNION ALL SELECT 1 FROM carried WHERE id = ?1";
            if !db.prepare_cached(is_needed)?.exists(params![id.as_bytes()])? {
                return Ok(None);
            }
            let read = |row: &Row<'_>| Ok((row.get(0)?, row.get(1)?));
            db.prepare_cached(&sql)?.query_row(params![id.as_bytes()], read).optional()
        })?;
        Ok(chosen.is_some_and(|(chosen_rank, chosen_frame)| {
            chosen_rank.and_then(|n| usize::try_from(n).ok()) == Some(rank)
                && chosen_frame.and_then(|n| u64::try_from(n).ok()) == Some(frame_offset)
        }))
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
        self.is_settled.store(false, Ordering::Relaxed);
        let mut inner = self.index.lock();
        let Parts { connection, .. } = inner.parts()?;
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
