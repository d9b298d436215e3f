//! The index made in one piece from index objects, when there is nothing in it yet.
//!
//! The rows of chunks are sorted outside the database (`sorter.rs`) and inserted in order into a new one beside it, which no
//! journal and no sync protects: nobody else knows it. When it is whole and durable it takes the name. A run that is killed
//! before has changed nothing, and what it leaves is removed by the next one. Whoever builds holds the lock alone, so others
//! wait for what they would need to make themselves; if others have the database open, packs are added to it one by one.

use super::filter::Filter;
use super::levels::{FILTERED_ROWS_MIN, new_mark, set_settled};
use super::schema::{self, KEPT_TABLES};
use super::sorter::Sorter;
use super::{Index, packs, sqlite_error};
use crate::error::{Error, Kind, Result};
use crate::ids::{ChunkId, IndexId, PackId};
use crate::repo::pack::PackSummary;
use rusqlite::{Connection, Statement, params};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// Id, then pack, frame, at, in an order that sorts, then the rest of the columns.
const ROW_BYTES: usize = 32 + 4 + 8 + 4 + 4 + 4 + 4 + 1 + 1;
/// Chunk, pack, frame, ordinal, base.
const BASE_BYTES: usize = 32 + 4 + 8 + 1 + 32;
/// Rows that are inserted by one statement.
const ROWS_AT_ONCE: usize = 16;

/// An index being made. Dropped unfinished, it leaves the old one as it was.
pub struct Build<'i> {
    index: &'i Index,
    path: PathBuf,
    connection: Connection,
    rows: Sorter<ROW_BYTES>,
    bases: Sorter<BASE_BYTES>,
    rows_count: u64,
    numbers: HashMap<PackId, u32>,
    is_finished: bool,
    pub(super) filtered_rows_min: u64,
}

impl Index {
    /// Begins to make the index anew, if it is empty and nobody else has it open; none otherwise, and in memory.
    pub fn begin_build(&self) -> Result<Option<Build<'_>>> {
        let Some(folder) = self.path.parent().filter(|_| self.lock_held()) else { return Ok(None) };
        if !self.is_empty()? || !self.lock_alone()? {
            return Ok(None);
        }
        // Another run may have made it, or put another in its place, before this one was alone.
        self.reopen()?;
        if !self.is_empty()? {
            self.share_lock()?;
            return Ok(None);
        }
        let path = self.path.with_extension("building");
        let begun = remove_if_there(&path).and_then(|()| schema::begin_unprotected(&path));
        let connection = match begun {
            Ok(connection) => connection,
            Err(error) => {
                self.share_lock()?;
                return Err(error);
            }
        };
        let mut build = Build {
            index: self,
            path,
            connection,
            rows: Sorter::new(folder),
            bases: Sorter::new(folder),
            rows_count: 0,
            numbers: HashMap::new(),
            is_finished: false,
            filtered_rows_min: FILTERED_ROWS_MIN,
        };
        build.execute("BEGIN")?;
        Ok(Some(build))
    }
}

impl Build<'_> {
    /// Adds a pack as listed by `index`.
    pub fn add(&mut self, pack: &PackSummary, index: IndexId) -> Result<()> {
        let (number, is_new) = match self.numbers.get(&pack.id) {
            Some(&number) => (number, false),
            None => {
                let inserted = packs::insert(&self.connection, pack).map_err(|e| sqlite_error(&self.path, e))?;
                let number = u32::try_from(inserted)
                    .map_err(|_| Error::new(Kind::Failed, "more packs than an index can number"))?;
                self.numbers.insert(pack.id, number);
                (number, true)
            }
        };
        packs::list(&self.connection, index, number.into()).map_err(|e| sqlite_error(&self.path, e))?;
        if !is_new {
            return Ok(());
        }
        for frame in pack.frames()? {
            for (chunk, at, bytes) in super::with_positions(&frame) {
                let bases = u8::try_from(frame.bases.len()).unwrap_or(u8::MAX);
                let mut row = Fields::<ROW_BYTES>::new(chunk, number, frame.offset);
                let numbers = [at, frame.stored_bytes, frame.raw_bytes, bytes];
                numbers.iter().for_each(|number| row.put(&number.to_be_bytes()));
                row.put(&[frame.codec, bases]);
                self.rows.push(&row.bytes)?;
                self.rows_count += 1;
                for (ordinal, base) in (0u8..).zip(&frame.bases) {
                    let mut row = Fields::<BASE_BYTES>::new(chunk, number, frame.offset);
                    row.put(&[ordinal]);
                    row.put(base.as_bytes());
                    self.bases.push(&row.bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Records that all packs of `index` have been added.
    pub fn finish_index_object(&mut self, index: IndexId) -> Result<()> {
        let sql = "INSERT OR IGNORE INTO index_objects VALUES(?)";
        let done = self.connection.prepare_cached(sql).and_then(|mut s| s.execute(params![index.as_bytes()]));
        done.map(|_| ()).map_err(|e| sqlite_error(&self.path, e))
    }

    /// The bytes of the rows that are to be inserted.
    pub fn bytes(&self) -> u64 {
        bytes_of(self.rows_count)
    }

    /// Inserts everything and puts the new database in the place of the old one. `on_bytes` is told of what is inserted; an
    /// error of it ends the build.
    pub fn finish(mut self, on_bytes: &mut dyn FnMut(u64) -> Result<()>) -> Result<()> {
        let mark = new_mark()?;
        let mut filter = (self.rows_count >= self.filtered_rows_min).then(|| Filter::for_ids(self.rows_count, mark));
        self.insert_rows(filter.as_mut(), on_bytes)?;
        self.insert_bases()?;
        self.take_over()?;
        let finished = set_settled(&self.connection, self.rows_count, filter.as_ref().map(Filter::mark))
            .and_then(|()| schema::finish_unprotected(&self.connection))
            .and_then(|()| self.connection.execute_batch("COMMIT"));
        finished.map_err(|e| sqlite_error(&self.path, e))?;
        if let (Some(filter), Some(path)) = (&filter, self.index.filter_path()) {
            // Without it look-ups go to the database: no reason to fail.
            let _ = filter.save(&path);
        }
        drop(filter);
        self.publish()?;
        self.is_finished = true;
        Ok(())
    }

    fn insert_rows(
        &mut self,
        mut filter: Option<&mut Filter>,
        on_bytes: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let rows = std::mem::replace(&mut self.rows, Sorter::new(&self.path));
        let sql = |e| sqlite_error(&self.path, e);
        let statement = |rows: usize| {
            let values = vec!["(?,?,?,?,?,?,?,?,?)"; rows].join(",");
            let sql = "INSERT OR IGNORE INTO chunks(id, pack, frame, at, stored, raw, bytes, codec, bases) VALUES";
            self.connection.prepare(&format!("{sql}{values}"))
        };
        let (mut many, mut one) = (statement(ROWS_AT_ONCE).map_err(sql)?, statement(1).map_err(sql)?);
        rows.drain(&mut |part| {
            if let Some(filter) = filter.as_mut() {
                part.iter().filter_map(|row| ChunkId::from_slice(&row[..32]).ok()).for_each(|id| filter.add(&id));
            }
            let (groups, rest) = part.as_chunks::<ROWS_AT_ONCE>();
            let inserted = groups
                .iter()
                .try_for_each(|group| insert(&mut many, group))
                .and_then(|()| rest.iter().try_for_each(|row| insert(&mut one, std::slice::from_ref(row))));
            inserted.map_err(sql)?;
            on_bytes(bytes_of(u64::try_from(part.len()).unwrap_or(0)))
        })
    }

    fn insert_bases(&mut self) -> Result<()> {
        let bases = std::mem::replace(&mut self.bases, Sorter::new(&self.path));
        let sql = |e| sqlite_error(&self.path, e);
        let insert = "INSERT OR IGNORE INTO bases(chunk, pack, frame, ordinal, base) VALUES(?,?,?,?,?)";
        let mut statement = self.connection.prepare(insert).map_err(sql)?;
        bases.drain(&mut |part| {
            let inserted = part.iter().try_for_each(|row| {
                let (pack, frame) = (u32_at(row, 32), i64_at(row, 36));
                statement.execute(params![&row[..32], pack, frame, row[44], &row[45..]]).map(|_| ())
            });
            inserted.map_err(sql)
        })
    }

    /// Copies what does not come from index objects.
    fn take_over(&self) -> Result<()> {
        let old = self.index.path.to_string_lossy().into_owned();
        let copied = (|| {
            self.connection.execute_batch("COMMIT")?;
            self.connection.execute("ATTACH ? AS old", [old])?;
            self.connection.execute_batch("BEGIN")?;
            for table in KEPT_TABLES {
                self.connection.execute(&format!("INSERT OR IGNORE INTO {table} SELECT * FROM old.{table}"), [])?;
            }
            self.connection.execute_batch("COMMIT; DETACH old; BEGIN")
        })();
        copied.map_err(|e| sqlite_error(&self.path, e))
    }

    /// The new database is durable before it gets the name: nothing protected it.
    fn publish(&mut self) -> Result<()> {
        let index = self.index;
        let nowhere = || Connection::open_in_memory().map_err(|e| sqlite_error(&self.path, e));
        let (built, old) = (nowhere()?, nowhere()?);
        drop(std::mem::replace(&mut self.connection, built));
        let synced = File::open(&self.path).and_then(|file| file.sync_all());
        synced.map_err(|e| failure(&self.path, e))?;
        // Closed by the last that has it open, the old one takes its journal with it: none is left for the new one.
        drop(index.replace_connection(old));
        for extension in ["sqlite3-wal", "sqlite3-shm"] {
            remove_if_there(&index.path.with_extension(extension))?;
        }
        std::fs::rename(&self.path, &index.path).map_err(|e| failure(&index.path, e))?;
        index.reopen()?;
        index.share_lock()
    }

    fn execute(&mut self, sql: &str) -> Result<()> {
        self.connection.execute_batch(sql).map_err(|e| sqlite_error(&self.path, e))
    }
}

impl Drop for Build<'_> {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        // The run has failed, and says why. The next build removes what is left.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.index.reopen();
        let _ = self.index.share_lock();
    }
}

/// A record being put together.
struct Fields<const BYTES: usize> {
    bytes: [u8; BYTES],
    filled: usize,
}

impl<const BYTES: usize> Fields<BYTES> {
    fn new(chunk: ChunkId, pack: u32, frame_offset: u64) -> Self {
        let mut fields = Fields { bytes: [0; BYTES], filled: 0 };
        fields.put(chunk.as_bytes());
        fields.put(&pack.to_be_bytes());
        // As it is kept in the database, where numbers have a sign.
        fields.put(&i64::try_from(frame_offset).unwrap_or(i64::MAX).to_be_bytes());
        fields
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.filled..self.filled + bytes.len()].copy_from_slice(bytes);
        self.filled += bytes.len();
    }
}

fn insert(statement: &mut Statement<'_>, rows: &[[u8; ROW_BYTES]]) -> rusqlite::Result<()> {
    let mut parameter = 0;
    for row in rows {
        parameter += 1;
        statement.raw_bind_parameter(parameter, &row[..32])?;
        let numbers = [
            i64::from(u32_at(row, 32)),
            i64_at(row, 36),
            i64::from(u32_at(row, 44)),
            i64::from(u32_at(row, 48)),
            i64::from(u32_at(row, 52)),
            i64::from(u32_at(row, 56)),
            i64::from(row[60]),
            i64::from(row[61]),
        ];
        for number in numbers {
            parameter += 1;
            statement.raw_bind_parameter(parameter, number)?;
        }
    }
    statement.raw_execute().map(|_| ())
}

fn bytes_of(rows: u64) -> u64 {
    rows.saturating_mul(u64::try_from(ROW_BYTES).unwrap_or(0))
}

fn u32_at(record: &[u8], at: usize) -> u32 {
    record[at..at + 4].try_into().map_or(0, u32::from_be_bytes)
}

fn i64_at(record: &[u8], at: usize) -> i64 {
    record[at..at + 8].try_into().map_or(0, i64::from_be_bytes)
}

fn remove_if_there(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failure(path, error)),
        _ => Ok(()),
    }
}

fn failure(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("making the index cache {}", path.display()), error)
}
