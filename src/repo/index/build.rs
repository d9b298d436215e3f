//! The index made in one piece from index objects, when there is nothing in it yet.
//!
//! The rows of chunks are sorted outside the database (`sorter.rs`) and inserted in order into a new one beside it, which no
//! journal and no sync protects: nobody else knows it. When it is whole and durable it takes the name. A run that is killed
//! before has changed nothing, and what it leaves is removed by the next one. Whoever builds holds the lock alone, so others
//! wait for what they would need to make themselves; if others have the database open, packs are added to it one by one.
//!
//! The lock counts only under its name: if the old database was removed meanwhile, or all of the folder, another run may be
//! making the index for all who come now. Then nothing is put in place, and this run goes on with what it finds there.

use super::filter::Filter;
use super::levels::{FILTERED_ROWS_MIN, new_mark, set_settled};
use super::schema::{self, KEPT_TABLES};
use super::sorter::Sorter;
use super::{Index, lock, packs, remove_if_there, sqlite_error};
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::ids::{ChunkId, IndexId, PackId};
use crate::repo::pack::PackSummary;
use crate::threads;
use rusqlite::types::Value;
use rusqlite::{Connection, Statement, params, params_from_iter};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

/// Id, then pack, frame, at, in an order that sorts, then the rest of the columns.
const ROW_BYTES: usize = 32 + 4 + 8 + 4 + 4 + 4 + 4 + 1 + 1;
/// Chunk, pack, frame, ordinal, base.
const BASE_BYTES: usize = 32 + 4 + 8 + 1 + 32;
/// Rows that are inserted by one statement.
const ROWS_AT_ONCE: usize = 16;
/// How soon one long statement notices that the run is interrupted.
const INTERRUPT_PAUSE: Duration = Duration::from_millis(100);
/// What the names of files begin with that a killed run may leave: databases being made, filters being written.
const LEFT_BEHIND: [&str; 2] = ["index.building-", "index.tmp-"];

/// What came of the wish to make the index in one piece.
pub enum Beginning<'i> {
    /// This run makes it.
    Build(Box<Build<'i>>),
    /// It was empty, and another run has made it meanwhile.
    MadeByAnother,
    /// It is not empty, others have it open, or it is in memory: packs are to be added one by one.
    Declined,
}

/// An index being made. Dropped unfinished, it leaves the old one as it was.
pub struct Build<'i> {
    index: &'i Index,
    path: PathBuf,
    connection: Connection,
    /// The file at `path`: under the name of another file nothing is put in place.
    file: File,
    rows: Sorter<ROW_BYTES>,
    bases: Sorter<BASE_BYTES>,
    rows_count: u64,
    numbers: HashMap<PackId, u32>,
    is_finished: bool,
    pub(super) filtered_rows_min: u64,
}

impl Index {
    /// Begins to make the index anew, if it is empty and nobody else has it open.
    pub fn begin_build(&self, observer: &dyn Observer) -> Result<Beginning<'_>> {
        let Some(folder) = self.path.parent().filter(|_| self.is_file()) else { return Ok(Beginning::Declined) };
        if !self.is_empty()? {
            return Ok(Beginning::Declined);
        }
        let is_alone = self.reopen_alone(observer)?;
        let is_made = !self.is_empty()?;
        if is_alone && is_made {
            self.reopen_shared(observer)?;
        }
        if !is_alone || is_made {
            return Ok(if is_made { Beginning::MadeByAnother } else { Beginning::Declined });
        }
        let path = self.path.with_extension(format!("building-{}", hex(&new_mark()?)));
        let begun = begin(folder, &path);
        let (connection, file) = match begun {
            Ok(begun) => begun,
            Err(error) => {
                let _ = std::fs::remove_file(&path);
                self.reopen_shared(observer)?;
                return Err(error);
            }
        };
        Ok(Beginning::Build(Box::new(Build {
            index: self,
            path,
            connection,
            file,
            rows: Sorter::new(folder),
            bases: Sorter::new(folder),
            rows_count: 0,
            numbers: HashMap::new(),
            is_finished: false,
            filtered_rows_min: FILTERED_ROWS_MIN,
        })))
    }
}

/// Begins a database at `path`, and removes what runs have left that were killed: whoever is alone may.
fn begin(folder: &Path, path: &Path) -> Result<(Connection, File)> {
    for entry in std::fs::read_dir(folder).map_err(|e| failure(folder, e))? {
        let entry = entry.map_err(|e| failure(folder, e))?;
        if LEFT_BEHIND.iter().any(|begin| entry.file_name().to_string_lossy().starts_with(begin)) {
            remove_if_there(&entry.path())?;
        }
    }
    let connection = schema::begin_unprotected(path)?;
    connection.execute_batch("BEGIN").map_err(|e| sqlite_error(path, e))?;
    let file = File::open(path).map_err(|e| failure(path, e))?;
    Ok((connection, file))
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

    /// Inserts everything and puts the new database in the place of the old one; false if that has lost its name meanwhile:
    /// then the index is another one now, and there may be nothing in it.
    pub fn finish(mut self, observer: &dyn Observer) -> Result<bool> {
        let mark = new_mark()?;
        let mut filter = (self.rows_count >= self.filtered_rows_min).then(|| Filter::for_ids(self.rows_count, mark));
        self.insert_rows(filter.as_mut(), observer)?;
        self.insert_bases(observer)?;
        self.take_over()?;
        let sql = |e| sqlite_error(&self.path, e);
        set_settled(&self.connection, self.rows_count, filter.as_ref().map(Filter::mark)).map_err(sql)?;
        interruptibly(&self.connection, observer, |db| schema::finish_unprotected(db).map_err(sql))?;
        self.connection.execute_batch("COMMIT").map_err(sql)?;
        if let (Some(filter), Some(path)) = (&filter, self.index.filter_path()) {
            // Without it look-ups go to the database: no reason to fail.
            let _ = filter.save(&path);
        }
        drop(filter);
        let is_published = self.publish()?;
        self.is_finished = true;
        if !is_published {
            remove_if_there(&self.path)?;
        }
        self.index.reopen_shared(observer)?;
        Ok(is_published)
    }

    fn insert_rows(&mut self, mut filter: Option<&mut Filter>, observer: &dyn Observer) -> Result<()> {
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
            let bytes = bytes_of(u64::try_from(part.len()).unwrap_or(0));
            observer.on_event(&Event::Progress { bytes, files: 0 });
            go_on(observer)
        })
    }

    fn insert_bases(&mut self, observer: &dyn Observer) -> Result<()> {
        let bases = std::mem::replace(&mut self.bases, Sorter::new(&self.path));
        let sql = |e| sqlite_error(&self.path, e);
        let insert = "INSERT OR IGNORE INTO bases(chunk, pack, frame, ordinal, base) VALUES(?,?,?,?,?)";
        let mut statement = self.connection.prepare(insert).map_err(sql)?;
        bases.drain(&mut |part| {
            let inserted = part.iter().try_for_each(|row| {
                let (pack, frame) = (u32_at(row, 32), i64_at(row, 36));
                statement.execute(params![&row[..32], pack, frame, row[44], &row[45..]]).map(|_| ())
            });
            inserted.map_err(sql)?;
            go_on(observer)
        })
    }

    /// Copies what does not come from index objects: row by row, since `ATTACH` takes no path that is not UTF-8.
    fn take_over(&self) -> Result<()> {
        self.index.query(|old| {
            for table in KEPT_TABLES {
                let mut select = old.prepare(&format!("SELECT * FROM {table}"))?;
                let columns = select.column_count();
                let values = vec!["?"; columns].join(",");
                let mut insert = self.connection.prepare(&format!("INSERT OR IGNORE INTO {table} VALUES({values})"))?;
                let mut rows = select.query([])?;
                while let Some(row) = rows.next()? {
                    let values = (0..columns).map(|n| row.get::<_, Value>(n)).collect::<rusqlite::Result<Vec<_>>>()?;
                    insert.execute(params_from_iter(values))?;
                }
            }
            Ok(())
        })
    }

    /// The new database is durable before it gets the name: nothing protected it. False if it must not have it.
    fn publish(&mut self) -> Result<bool> {
        let index = self.index;
        let nowhere = Connection::open_in_memory().map_err(|e| sqlite_error(&self.path, e))?;
        drop(std::mem::replace(&mut self.connection, nowhere));
        self.file.sync_all().map_err(|e| failure(&self.path, e))?;
        // Nobody takes the name from a lock that is held alone, but who deletes the folder by hand or holds an older one.
        if !index.is_found() || !lock::is_at(&self.file, &self.path) {
            return Ok(false);
        }
        // Closed by the last that has it open, the old one takes its journal with it: none is left for the new one.
        index.close();
        for extension in ["sqlite3-wal", "sqlite3-shm"] {
            remove_if_there(&index.path.with_extension(extension))?;
        }
        std::fs::rename(&self.path, &index.path).map_err(|e| failure(&index.path, e))?;
        Ok(true)
    }
}

impl Drop for Build<'_> {
    fn drop(&mut self) {
        if self.is_finished {
            return;
        }
        // The run has failed, and says why. The next build removes what is left.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.index.reopen_shared(&Ended);
    }
}

/// Nobody waits in the name of a run that has failed.
struct Ended;

impl Observer for Ended {
    fn on_event(&self, _event: &Event<'_>) {}

    fn is_interrupted(&self) -> bool {
        true
    }
}

fn go_on(observer: &dyn Observer) -> Result<()> {
    if observer.is_interrupted() { Err(interrupted()) } else { Ok(()) }
}

fn interrupted() -> Error {
    Error::new(Kind::Interrupted, "interrupted while making the index")
}

/// Does one long piece of work in the database, which ends early if the run is interrupted.
fn interruptibly(db: &Connection, observer: &dyn Observer, work: impl FnOnce(&Connection) -> Result<()>) -> Result<()> {
    let handle = db.get_interrupt_handle();
    let (done, is_done) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        threads::start(scope, move || {
            while is_done.recv_timeout(INTERRUPT_PAUSE) == Err(RecvTimeoutError::Timeout) {
                if observer.is_interrupted() {
                    handle.interrupt();
                }
            }
        })?;
        let worked = work(db);
        drop(done);
        go_on(observer).and(worked)
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
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

fn failure(path: &Path, error: std::io::Error) -> Error {
    Error::io(format!("making the index cache {}", path.display()), error)
}
