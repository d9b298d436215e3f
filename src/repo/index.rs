//! The index: which chunk lies in which packs, in an SQLite database on this host.
//!
//! It is never the truth. Every row can be made again from index objects and packs, content is verified on every read,
//! and deleting the database at any moment costs time and nothing else. It lies on a local file system (the caller
//! chooses the folder), in WAL mode, so several runs on one host share it.
//!
//! A pack is *dead* when it is in a final list of a prune. As long as its file may still be there its rows stay, for a
//! restore that began before; they come last among the homes of a chunk, and nothing else goes by them.
//!
//! A pack is *listed* when some index object lists it. Packs of a run that was killed are known here but not listed;
//! whoever relies on one lists it in an index object of its own.

mod homes;
mod kept_trees;
mod records;
mod remembered;
pub mod survey;
mod totals;

pub use homes::{DeltaUse, Home};
pub use records::RunRecord;
pub use totals::CodecTotals;

use super::pack::{PackKind, PackSummary};
use crate::error::{Error, Kind, Result};
use crate::ids::{ChunkId, IndexId, PackId, RepositoryId, SnapshotId};
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Raised with every change of the tables: a database of another version is made anew.
const SCHEMA_VERSION: i64 = 5;

const SCHEMA: &str = "
CREATE TABLE packs(no INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, bytes INTEGER NOT NULL, kind INTEGER NOT NULL,
                   writer BLOB NOT NULL, dead INTEGER NOT NULL DEFAULT 0);
CREATE TABLE ends(number INTEGER PRIMARY KEY, object BLOB NOT NULL);
CREATE TABLE listings(index_id BLOB NOT NULL, pack INTEGER NOT NULL, PRIMARY KEY(index_id, pack)) WITHOUT ROWID;
CREATE TABLE index_objects(id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE chunks(id BLOB NOT NULL, pack INTEGER NOT NULL, frame INTEGER NOT NULL, stored INTEGER NOT NULL,
                    raw INTEGER NOT NULL, at INTEGER NOT NULL, bytes INTEGER NOT NULL, codec INTEGER NOT NULL,
                    bases INTEGER NOT NULL, PRIMARY KEY(id, pack, frame, at)) WITHOUT ROWID;
CREATE TABLE bases(chunk BLOB NOT NULL, pack INTEGER NOT NULL, frame INTEGER NOT NULL, ordinal INTEGER NOT NULL,
                   base BLOB NOT NULL, PRIMARY KEY(chunk, pack, frame, ordinal)) WITHOUT ROWID;
CREATE INDEX bases_by_base ON bases(base, ordinal);
CREATE TABLE snapshots(id BLOB PRIMARY KEY, object BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE forgotten(id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE history(id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE pack_reads(pack BLOB PRIMARY KEY, seconds INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE runs(id BLOB PRIMARY KEY, operation TEXT NOT NULL, started INTEGER NOT NULL, finished INTEGER NOT NULL,
                  outcome TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE kept_trees(no INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, content BLOB NOT NULL);
";

/// A pack as the index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownPack {
    /// Its name.
    pub id: PackId,
    /// Its length in bytes.
    pub bytes: u64,
    /// What its frames hold.
    pub kind: PackKind,
    /// The transaction that wrote it.
    pub transaction: SnapshotId,
    /// True if some index object lists it.
    pub is_listed: bool,
}

/// The database of one repository on this host.
pub struct Index {
    path: PathBuf,
    inner: Mutex<Inner>,
}

struct Inner {
    connection: Connection,
    /// The packs, and whether they are dead: that may be out of date, and only orders homes.
    packs_by_number: HashMap<i64, (PackId, bool)>,
}

impl Index {
    /// Opens the database of `repository` under `folder`, making it if there is none or if it is of another version.
    pub fn open(folder: &Path, repository: RepositoryId) -> Result<Index> {
        let folder = folder.join(repository.to_hex());
        std::fs::create_dir_all(&folder)
            .map_err(|e| Error::io(format!("making the cache folder {}", folder.display()), e))?;
        let path = folder.join("index.sqlite3");
        let connection = Connection::open(&path).map_err(|e| sqlite_error(&path, e))?;
        let index = Index { inner: Mutex::new(Inner { connection, packs_by_number: HashMap::new() }), path };
        index.prepare()?;
        Ok(index)
    }

    /// A database in memory, for when no folder can be written.
    pub fn in_memory() -> Result<Index> {
        let path = PathBuf::from(":memory:");
        let connection = Connection::open_in_memory().map_err(|e| sqlite_error(&path, e))?;
        let index = Index { inner: Mutex::new(Inner { connection, packs_by_number: HashMap::new() }), path };
        index.prepare()?;
        Ok(index)
    }

    /// Removes the database of `repository` under `folder`: for when it is found corrupt.
    pub fn remove(folder: &Path, repository: RepositoryId) {
        let folder = folder.join(repository.to_hex());
        for name in ["index.sqlite3", "index.sqlite3-wal", "index.sqlite3-shm"] {
            // One that cannot be removed cannot be opened either, and that is reported then.
            let _ = std::fs::remove_file(folder.join(name));
        }
    }

    /// The file of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn prepare(&self) -> Result<()> {
        let mut inner = self.lock();
        let sql = |e| sqlite_error(&self.path, e);
        inner.connection.busy_timeout(Duration::from_secs(60)).map_err(sql)?;
        // NORMAL: after a power cut the newest rows may be gone, the database is whole. They are made again.
        inner
            .connection
            .execute_batch(
                "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA cache_size=-32768; PRAGMA temp_store=FILE;",
            )
            .map_err(sql)?;
        let tx = inner.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
        let version: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sql)?;
        if version == 0 {
            tx.execute_batch(SCHEMA).map_err(sql)?;
            tx.execute_batch(&format!("PRAGMA user_version={SCHEMA_VERSION}")).map_err(sql)?;
        } else if version != SCHEMA_VERSION {
            return Err(Error::damaged(format!("{} is of version {version}", self.path.display())));
        }
        tx.commit().map_err(sql)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic elsewhere cannot leave a half-made change: SQLite rolls it back.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T>) -> Result<T> {
        let mut inner = self.lock();
        let sql = |e| sqlite_error(&self.path, e);
        let tx = inner.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
        let value = work(&tx).map_err(sql)?;
        tx.commit().map_err(sql)?;
        Ok(value)
    }

    fn query<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        work(&self.lock().connection).map_err(|e| sqlite_error(&self.path, e))
    }

    /// The index objects whose packs are in the database.
    pub fn index_objects(&self) -> Result<HashSet<IndexId>> {
        let rows = self.query(|db| blobs(db, "SELECT id FROM index_objects"))?;
        rows.iter().map(|b| IndexId::from_slice(b)).collect()
    }

    /// Adds packs and their chunks; with `index`, as listed by that index object.
    pub fn add_packs(&self, packs: &[PackSummary], index: Option<IndexId>) -> Result<()> {
        let tables = packs.iter().map(PackSummary::frames).collect::<Result<Vec<_>>>()?;
        self.change(|tx| {
            let mut insert = tx.prepare_cached(
                "INSERT OR IGNORE INTO chunks(id, pack, frame, stored, raw, at, bytes, codec, bases)
                 VALUES(?,?,?,?,?,?,?,?,?)",
            )?;
            for (pack, frames) in packs.iter().zip(&tables) {
                let (number, is_new) = add_pack(tx, pack)?;
                if let Some(index) = index {
                    tx.prepare_cached("INSERT OR IGNORE INTO listings VALUES(?,?)")?
                        .execute(params![index.as_bytes(), number])?;
                }
                if !is_new {
                    continue;
                }
                homes::add_bases(tx, number, frames)?;
                let mut rows: Vec<_> = frames.iter().flat_map(|f| with_positions(f).map(move |c| (c, f))).collect();
                // In key order, neighbouring rows go to neighbouring pages.
                rows.sort_unstable_by_key(|((id, _, _), _)| *id);
                for ((id, at, bytes), frame) in rows {
                    let offset = i64::try_from(frame.offset).unwrap_or(i64::MAX);
                    insert.execute(params![
                        id.as_bytes(),
                        number,
                        offset,
                        frame.stored_bytes,
                        frame.raw_bytes,
                        at,
                        bytes,
                        frame.codec,
                        u8::try_from(frame.bases.len()).unwrap_or(u8::MAX)
                    ])?;
                }
            }
            Ok(())
        })
    }

    /// Records that all packs of `index` have been added: from now on it is not read again.
    pub fn finish_index_object(&self, index: IndexId) -> Result<()> {
        self.change(|tx| tx.execute("INSERT OR IGNORE INTO index_objects VALUES(?)", params![index.as_bytes()]))?;
        Ok(())
    }

    /// Records that `index` lists these packs, which are known already.
    pub fn list_packs(&self, index: IndexId, packs: &[PackId]) -> Result<()> {
        self.change(|tx| {
            let sql = "INSERT OR IGNORE INTO listings SELECT ?, no FROM packs WHERE id = ?";
            let mut statement = tx.prepare_cached(sql)?;
            packs.iter().try_for_each(|pack| statement.execute(params![index.as_bytes(), pack.as_bytes()]).map(|_| ()))
        })
    }

    /// The index objects that list any of these packs.
    pub fn index_objects_listing(&self, packs: &[PackId]) -> Result<HashSet<IndexId>> {
        let mut found = HashSet::new();
        self.query(|db| {
            let sql = "SELECT index_id FROM listings WHERE pack = (SELECT no FROM packs WHERE id = ?)";
            let mut statement = db.prepare_cached(sql)?;
            for pack in packs {
                let mut rows = statement.query(params![pack.as_bytes()])?;
                while let Some(row) = rows.next()? {
                    found.extend(IndexId::from_slice(row.get_ref(0)?.as_blob()?).ok());
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Forgets index objects that are no longer there. Their packs stay known, though perhaps no longer listed.
    pub fn remove_index_objects(&self, gone: &[IndexId]) -> Result<()> {
        self.change(|tx| {
            for id in gone {
                tx.execute("DELETE FROM listings WHERE index_id = ?", params![id.as_bytes()])?;
                tx.execute("DELETE FROM index_objects WHERE id = ?", params![id.as_bytes()])?;
            }
            Ok(())
        })
    }

    /// Forgets packs and every chunk in them.
    pub fn remove_packs(&self, gone: &[PackId]) -> Result<()> {
        self.change(|tx| {
            tx.execute_batch("CREATE TEMP TABLE IF NOT EXISTS gone(pack INTEGER PRIMARY KEY); DELETE FROM gone;")?;
            let mut any = false;
            for id in gone {
                let sql = "INSERT INTO gone SELECT no FROM packs WHERE id = ?";
                any |= tx.prepare_cached(sql)?.execute(params![id.as_bytes()])? > 0;
            }
            if any {
                tx.execute_batch(
                    "DELETE FROM chunks WHERE pack IN (SELECT pack FROM gone);
                     DELETE FROM bases WHERE pack IN (SELECT pack FROM gone);
                     DELETE FROM listings WHERE pack IN (SELECT pack FROM gone);
                     DELETE FROM packs WHERE no IN (SELECT pack FROM gone);",
                )?;
            }
            Ok(())
        })
    }

    /// Marks packs as dead: they are no longer among [`Index::packs`].
    pub fn mark_dead(&self, dead: &[PackId]) -> Result<()> {
        self.change(|tx| {
            let mut mark = tx.prepare_cached("UPDATE packs SET dead = 1 WHERE id = ?")?;
            dead.iter().try_for_each(|id| mark.execute(params![id.as_bytes()]).map(|_| ()))
        })?;
        self.lock().packs_by_number.clear();
        Ok(())
    }

    /// The packs that are marked as dead and whose rows are still here.
    pub fn dead_packs(&self) -> Result<Vec<PackId>> {
        let rows = self.query(|db| blobs(db, "SELECT id FROM packs WHERE dead = 1"))?;
        rows.iter().map(|b| PackId::from_slice(b)).collect()
    }

    /// Every pack that is known and not dead.
    pub fn packs(&self) -> Result<Vec<KnownPack>> {
        let rows = self.query(|db| {
            let sql = "SELECT id, bytes, kind, writer, EXISTS(SELECT 1 FROM listings WHERE pack = no) FROM packs
                       WHERE dead = 0 ORDER BY id";
            let mut statement = db.prepare_cached(sql)?;
            let rows = statement.query_map([], |row| {
                Ok((
                    row.get::<_, Vec<u8>>(0)?,
                    row.get::<_, i64>(1)?,
                    row.get::<_, u8>(2)?,
                    row.get::<_, Vec<u8>>(3)?,
                    row.get::<_, bool>(4)?,
                ))
            })?;
            rows.collect::<rusqlite::Result<Vec<_>>>()
        })?;
        rows.into_iter()
            .map(|(id, bytes, kind, writer, is_listed)| {
                Ok(KnownPack {
                    id: PackId::from_slice(&id)?,
                    bytes: u64::try_from(bytes).unwrap_or(0),
                    kind: PackKind::from_code(kind)?,
                    transaction: SnapshotId::from_slice(&writer)?,
                    is_listed,
                })
            })
            .collect()
    }
}

fn add_pack(tx: &Transaction<'_>, pack: &PackSummary) -> rusqlite::Result<(i64, bool)> {
    let known = tx
        .prepare_cached("SELECT no FROM packs WHERE id = ?")?
        .query_row(params![pack.id.as_bytes()], |row| row.get(0))
        .optional()?;
    if let Some(number) = known {
        return Ok((number, false));
    }
    tx.prepare_cached("INSERT INTO packs(id, bytes, kind, writer) VALUES(?,?,?,?)")?.execute(params![
        pack.id.as_bytes(),
        i64::try_from(pack.bytes).unwrap_or(i64::MAX),
        pack.kind.code(),
        pack.transaction.as_bytes()
    ])?;
    Ok((tx.last_insert_rowid(), true))
}

fn with_positions(frame: &super::pack_table::FrameRecord) -> impl Iterator<Item = (ChunkId, u32, u32)> + '_ {
    frame.chunks.iter().scan(0u32, |at, &(id, bytes)| {
        let here = *at;
        *at = at.checked_add(bytes)?;
        Some((id, here, bytes))
    })
}

fn blobs(db: &Connection, sql: &str) -> rusqlite::Result<Vec<Vec<u8>>> {
    let mut statement = db.prepare_cached(sql)?;
    let rows = statement.query_map([], |row| row.get(0))?;
    rows.collect()
}

/// Corruption becomes [`Kind::Damaged`], so that the caller can make the database anew.
fn sqlite_error(path: &Path, error: rusqlite::Error) -> Error {
    let kind = match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => Kind::Damaged,
        Some(rusqlite::ErrorCode::DiskFull) => Kind::NoSpace,
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => Kind::Busy,
        Some(rusqlite::ErrorCode::PermissionDenied | rusqlite::ErrorCode::ReadOnly) => Kind::Denied,
        _ => Kind::Failed,
    };
    Error::new(kind, format!("the index cache {}", path.display()))
        .with_source(error)
        .with_hint("it can be deleted at any time: the next run makes it anew")
}
