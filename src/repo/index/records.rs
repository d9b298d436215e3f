//! Snapshots, ends of condemned lists and history as this host caches them.
//!
//! All have their truth in the repository; here they save reading it again.

use super::{Index, blobs};
use crate::error::Result;
use crate::ids::{HistoryId, PackId, SnapshotId};
use rusqlite::{OptionalExtension, params};
use std::collections::{HashMap, HashSet};

/// A run as the history keeps it.
#[derive(Debug, Clone)]
pub struct RunRecord {
    /// The id of its record.
    pub id: HistoryId,
    /// `verify`, `backup` ...
    pub operation: String,
    /// When it began, seconds since 1970.
    pub started: i64,
    /// When it ended, seconds since 1970.
    pub finished: i64,
    /// `sound`, `damaged` ...
    pub outcome: String,
}

impl Index {
    /// The snapshot objects that are cached, as they were read.
    pub fn snapshots(&self) -> Result<HashMap<SnapshotId, Vec<u8>>> {
        let rows = self.query(|db| {
            let mut statement = db.prepare_cached("SELECT id, object FROM snapshots")?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(|(id, object)| Ok((SnapshotId::from_slice(&id)?, object))).collect()
    }

    /// Caches a snapshot's object.
    pub fn add_snapshot(&self, id: SnapshotId, object: &[u8]) -> Result<()> {
        self.add_snapshots(&[(id, object)])
    }

    /// Caches the objects of snapshots.
    pub fn add_snapshots(&self, objects: &[(SnapshotId, impl AsRef<[u8]>)]) -> Result<()> {
        if objects.is_empty() {
            return Ok(());
        }
        self.change(|tx| {
            let mut insert = tx.prepare_cached("INSERT OR REPLACE INTO snapshots VALUES(?,?)")?;
            objects
                .iter()
                .try_for_each(|(id, object)| insert.execute(params![id.as_bytes(), object.as_ref()]).map(|_| ()))
        })
    }

    /// Forgets cached snapshots.
    pub fn remove_snapshots(&self, gone: &[SnapshotId]) -> Result<()> {
        self.change(|tx| {
            gone.iter()
                .try_for_each(|id| tx.execute("DELETE FROM snapshots WHERE id = ?", params![id.as_bytes()]).map(|_| ()))
        })
    }

    /// The snapshots whose markers this host has opened.
    pub fn forgotten(&self) -> Result<HashSet<SnapshotId>> {
        let rows = self.query(|db| blobs(db, "SELECT id FROM forgotten"))?;
        rows.iter().map(|b| SnapshotId::from_slice(b)).collect()
    }

    /// Remembers snapshots whose markers were opened.
    pub fn add_forgotten(&self, opened: &[SnapshotId]) -> Result<()> {
        self.change(|tx| {
            let mut statement = tx.prepare_cached("INSERT OR IGNORE INTO forgotten VALUES(?)")?;
            opened.iter().try_for_each(|id| statement.execute(params![id.as_bytes()]).map(|_| ()))
        })
    }

    /// The ends of condemned lists that are cached, by number, as they were read.
    pub fn ends(&self) -> Result<HashMap<u64, Vec<u8>>> {
        let rows = self.query(|db| {
            let mut statement = db.prepare_cached("SELECT number, object FROM ends")?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        Ok(rows.into_iter().filter_map(|(number, object)| Some((u64::try_from(number).ok()?, object))).collect())
    }

    /// Caches the end of a condemned list.
    pub fn add_end(&self, number: u64, object: &[u8]) -> Result<()> {
        let Ok(number) = i64::try_from(number) else { return Ok(()) };
        self.change(|tx| tx.execute("INSERT OR REPLACE INTO ends VALUES(?,?)", params![number, object]))?;
        Ok(())
    }

    /// The history records that are in the database.
    pub fn history(&self) -> Result<HashSet<HistoryId>> {
        let rows = self.query(|db| blobs(db, "SELECT id FROM history"))?;
        rows.iter().map(|b| HistoryId::from_slice(b)).collect()
    }

    /// Adds a history record: the packs that were read and found sound at a time, and the run that did it.
    pub fn add_history(&self, record: &RunRecord, sound_packs: &[PackId]) -> Result<()> {
        self.change(|tx| {
            tx.execute("INSERT OR IGNORE INTO history VALUES(?)", params![record.id.as_bytes()])?;
            tx.execute(
                "INSERT OR REPLACE INTO runs VALUES(?,?,?,?,?)",
                params![record.id.as_bytes(), record.operation, record.started, record.finished, record.outcome],
            )?;
            let sql = "INSERT INTO pack_reads VALUES(?1,?2) ON CONFLICT(pack) DO UPDATE SET seconds = max(seconds, ?2)";
            let mut statement = tx.prepare_cached(sql)?;
            for pack in sound_packs {
                statement.execute(params![pack.as_bytes(), record.finished])?;
            }
            Ok(())
        })
    }

    /// When each pack was last read and found sound, seconds since 1970.
    pub fn pack_reads(&self) -> Result<HashMap<PackId, i64>> {
        let rows = self.query(|db| {
            let mut statement = db.prepare_cached("SELECT pack, seconds FROM pack_reads")?;
            let rows = statement.query_map([], |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?)))?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter().map(|(id, seconds)| Ok((PackId::from_slice(&id)?, seconds))).collect()
    }

    /// The newest run of `operation` that ended with `outcome`, if any: when it finished.
    pub fn last_run(&self, operation: &str, outcome: &str) -> Result<Option<i64>> {
        self.query(|db| {
            let sql = "SELECT max(finished) FROM runs WHERE operation = ? AND outcome = ?";
            db.query_row(sql, params![operation, outcome], |row| row.get(0)).optional().map(Option::flatten)
        })
    }
}
