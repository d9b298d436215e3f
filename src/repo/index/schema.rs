//! The tables of the index, and how a connection to them is set up.

use super::Index;
use crate::error::{Error, Result};
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a run waits while another one writes.
const BUSY_WAIT_MAX: Duration = Duration::from_secs(60);

/// Of a database that is made in one piece. With rows of 75 bytes, pages of 16 KiB instead of SQLite's 4 are one level less to
/// go down, and a quarter of the calls that write them: 50 million rows took 54 s instead of 77, and are found as fast.
const BUILT_PAGE_BYTES: u32 = 16 << 10;

/// Raised with every change of the tables: a database of another version is made anew.
const SCHEMA_VERSION: i64 = 6;

/// `chunks` is large and changes rarely, `recent` takes what comes in; both have the same columns. `levels` says how many rows
/// there are in each, which filter belongs to `chunks`, and how many packs were forgotten whose rows are still there.
const SCHEMA: &str = "
CREATE TABLE packs(no INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, bytes INTEGER NOT NULL, kind INTEGER NOT NULL,
                   writer BLOB NOT NULL, dead INTEGER NOT NULL DEFAULT 0);
CREATE TABLE ends(number INTEGER PRIMARY KEY, object BLOB NOT NULL);
CREATE TABLE listings(index_id BLOB NOT NULL, pack INTEGER NOT NULL, PRIMARY KEY(index_id, pack)) WITHOUT ROWID;
CREATE INDEX listings_by_pack ON listings(pack);
CREATE TABLE index_objects(id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE chunks(id BLOB NOT NULL, pack INTEGER NOT NULL, frame INTEGER NOT NULL, stored INTEGER NOT NULL,
                    raw INTEGER NOT NULL, at INTEGER NOT NULL, bytes INTEGER NOT NULL, codec INTEGER NOT NULL,
                    bases INTEGER NOT NULL, PRIMARY KEY(id, pack, frame, at)) WITHOUT ROWID;
CREATE TABLE recent(id BLOB NOT NULL, pack INTEGER NOT NULL, frame INTEGER NOT NULL, stored INTEGER NOT NULL,
                    raw INTEGER NOT NULL, at INTEGER NOT NULL, bytes INTEGER NOT NULL, codec INTEGER NOT NULL,
                    bases INTEGER NOT NULL, PRIMARY KEY(id, pack, frame, at)) WITHOUT ROWID;
CREATE TABLE levels(settled INTEGER NOT NULL, recent INTEGER NOT NULL, filter BLOB NOT NULL, forgotten INTEGER NOT NULL);
INSERT INTO levels VALUES(0, 0, x'', 0);
CREATE TABLE bases(chunk BLOB NOT NULL, pack INTEGER NOT NULL, frame INTEGER NOT NULL, ordinal INTEGER NOT NULL,
                   base BLOB NOT NULL, PRIMARY KEY(chunk, pack, frame, ordinal)) WITHOUT ROWID;
CREATE TABLE snapshots(id BLOB PRIMARY KEY, object BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE forgotten(id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE history(id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE pack_reads(pack BLOB PRIMARY KEY, seconds INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE runs(id BLOB PRIMARY KEY, operation TEXT NOT NULL, started INTEGER NOT NULL, finished INTEGER NOT NULL,
                  outcome TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE kept_trees(no INTEGER PRIMARY KEY AUTOINCREMENT, id BLOB NOT NULL UNIQUE, content BLOB NOT NULL);
";

/// Apart, since it is made last where many rows are inserted at once.
const BASES_BY_BASE: &str = "CREATE INDEX bases_by_base ON bases(base, ordinal);";

/// The tables that an index made anew from index objects takes over from the one before: they come from elsewhere.
pub(super) const KEPT_TABLES: [&str; 7] =
    ["ends", "snapshots", "forgotten", "history", "pack_reads", "runs", "kept_trees"];

/// Opens the database, with its tables.
pub(super) fn open(path: &Path) -> Result<Connection> {
    let mut connection = Connection::open(path).map_err(|e| super::sqlite_error(path, e))?;
    prepare(&mut connection, path)?;
    Ok(connection)
}

/// Makes the tables if there are none.
pub(super) fn prepare(connection: &mut Connection, path: &Path) -> Result<()> {
    let sql = |e| super::sqlite_error(path, e);
    connection.busy_timeout(BUSY_WAIT_MAX).map_err(sql)?;
    // NORMAL: after a power cut the newest rows may be gone, the database is whole. They are made again.
    use_journal(connection).map_err(sql)?;
    connection
        .execute_batch("PRAGMA synchronous=NORMAL; PRAGMA cache_size=-32768; PRAGMA temp_store=FILE;")
        .map_err(sql)?;
    let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sql)?;
    let version: i64 = tx.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sql)?;
    // Tables without a version: the making of the database was cut short, or it is another program's.
    let has_tables =
        version == 0 && tx.prepare("SELECT 1 FROM sqlite_schema").and_then(|mut s| s.exists([])).map_err(sql)?;
    if has_tables {
        return Err(Error::damaged(format!("{} is half made", path.display())));
    }
    if version == 0 {
        tx.execute_batch(SCHEMA).map_err(sql)?;
        tx.execute_batch(BASES_BY_BASE).map_err(sql)?;
        tx.execute_batch(&format!("PRAGMA user_version={SCHEMA_VERSION}")).map_err(sql)?;
    } else if version != SCHEMA_VERSION {
        return Err(Error::damaged(format!("{} is of version {version}", path.display())));
    }
    tx.commit().map_err(sql)
}

/// Has the database keep a journal of its own. Of several that open a new one at the same moment SQLite lets one do so and
/// tells the others at once that it is busy, without the wait that it keeps to otherwise.
fn use_journal(connection: &Connection) -> rusqlite::Result<()> {
    let begin = Instant::now();
    loop {
        match connection.execute_batch("PRAGMA journal_mode=WAL;") {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && begin.elapsed() < BUSY_WAIT_MAX =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

/// Begins a database at `path` that nobody else uses and that counts for nothing until it is finished: nothing protects it.
pub(super) fn begin_unprotected(path: &Path) -> Result<Connection> {
    let sql = |e| super::sqlite_error(path, e);
    let connection = Connection::open(path).map_err(sql)?;
    connection
        .execute_batch(&format!(
            "PRAGMA main.page_size={BUILT_PAGE_BYTES}; PRAGMA main.journal_mode=OFF; PRAGMA main.synchronous=OFF;
             PRAGMA main.cache_size=-32768; PRAGMA main.locking_mode=EXCLUSIVE; PRAGMA temp_store=FILE;"
        ))
        .and_then(|()| connection.execute_batch(SCHEMA))
        .map_err(sql)?;
    Ok(connection)
}

/// What a database begun by [`begin_unprotected`] lacks when all its rows are there.
pub(super) fn finish_unprotected(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(BASES_BY_BASE)?;
    connection.execute_batch(&format!("PRAGMA user_version={SCHEMA_VERSION}"))
}

impl Index {
    /// True if there is no pack in it yet.
    pub fn is_empty(&self) -> Result<bool> {
        self.query(|db| db.query_row("SELECT NOT EXISTS(SELECT 1 FROM packs)", [], |row| row.get(0)))
    }
}
