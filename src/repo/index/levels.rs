//! The two tables of chunks: `chunks` is large and in order, `recent` takes what comes in.
//!
//! A row added to a large table costs a page of its own, read and written, as ids are spread evenly; in a small table many
//! share a page. So packs are added to `recent`, and `chunks` is made in one piece, in order (`build.rs`), or takes all of
//! `recent` at once (`merge.rs`).
//!
//! Of `chunks` there may be a *filter* (`filter.rs`), which spares a backup looking for what is new. It belongs to one state
//! of `chunks`, named by a random mark that changes in the same transaction as its rows. A filter of another state is not
//! used; while rows are being brought over, and when a run is killed at that, there is none. The filter answers only
//! [`Index::likely_homes`]: a mistake there has a chunk stored again, and reading never asks it.

use super::filter::{Filter, Mark};
use super::homes::Home;
use super::{Index, Parts, sqlite_error};
use crate::error::{Error, Kind, Result};
use crate::ids::ChunkId;
use rusqlite::{Connection, Transaction, params};
use std::path::PathBuf;

/// With fewer rows than this a filter saves nothing.
pub(super) const FILTERED_ROWS_MIN: u64 = 1 << 20;

/// How many rows there are, and the mark of the filter; none if there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Levels {
    pub(super) settled: u64,
    pub(super) recent: u64,
    pub(super) mark: Option<Mark>,
}

/// What this run holds of the filter.
#[derive(Default)]
pub(super) enum Held {
    #[default]
    Unknown,
    /// There is none that could be used for the state with this mark.
    Missing(Mark),
    Loaded(Filter),
}

/// The counts and the mark as they are in the state that `db` sees.
pub(super) fn levels(db: &Connection) -> rusqlite::Result<Levels> {
    let count = |n: i64| u64::try_from(n).unwrap_or(0);
    db.prepare_cached("SELECT settled, recent, filter FROM levels")?.query_row([], |row| {
        let mark = row.get_ref(2)?.as_blob()?.try_into().ok();
        Ok(Levels { settled: count(row.get(0)?), recent: count(row.get(1)?), mark })
    })
}

/// Counts rows added to `recent`.
pub(super) fn count_recent(tx: &Transaction<'_>, rows: usize) -> rusqlite::Result<()> {
    let mut statement = tx.prepare_cached("UPDATE levels SET recent = recent + ?")?;
    statement.execute(params![i64::try_from(rows).unwrap_or(i64::MAX)]).map(|_| ())
}

/// Counts rows that are no longer there.
pub(super) fn count_removed(tx: &Transaction<'_>, settled: usize, recent: usize) -> rusqlite::Result<()> {
    let count = |rows: usize| i64::try_from(rows).unwrap_or(i64::MAX);
    let sql = "UPDATE levels SET settled = max(settled - ?, 0), recent = max(recent - ?, 0)";
    tx.prepare_cached(sql)?.execute(params![count(settled), count(recent)]).map(|_| ())
}

/// Records that `chunks` has so many rows and which filter it has, and that `recent` is empty.
pub(super) fn set_settled(db: &Connection, rows: u64, mark: Option<&Mark>) -> rusqlite::Result<()> {
    let mark: &[u8] = mark.map_or(&[], |mark| mark);
    let rows = i64::try_from(rows).unwrap_or(i64::MAX);
    db.execute("UPDATE levels SET settled = ?, recent = 0, filter = ?", params![rows, mark]).map(|_| ())
}

/// A mark that no state has had.
pub(super) fn new_mark() -> Result<Mark> {
    let mut mark = [0; 16];
    getrandom::fill(&mut mark).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
    Ok(mark)
}

impl Index {
    /// As [`Index::homes`], but a chunk that is there may be told as absent: for who stores it again then.
    pub fn likely_homes(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Home>>> {
        let path = self.filter_path();
        let mut inner = self.lock();
        let Parts { connection, packs_by_number, filter } = inner.parts()?;
        let found = (|| {
            let tx = connection.transaction()?;
            // In the transaction that looks for homes: the filter is of the very state that it sees.
            let filter = match levels(&tx)?.mark {
                Some(mark) => filter.of_state(mark, path.as_deref()),
                None => None,
            };
            super::homes::find(&tx, packs_by_number, ids, &|id| filter.is_none_or(|filter| filter.may_hold(id)))
        })();
        found.map_err(|e| sqlite_error(&self.path, e))
    }

    /// Beside the database; none in memory.
    pub(super) fn filter_path(&self) -> Option<PathBuf> {
        self.is_file().then(|| self.path.with_extension("filter"))
    }
}

impl Held {
    /// The filter of the state with this mark, read if that has not been tried.
    fn of_state(&mut self, mark: Mark, path: Option<&std::path::Path>) -> Option<&Filter> {
        let is_known = match self {
            Held::Unknown => false,
            Held::Missing(of) => *of == mark,
            Held::Loaded(filter) => *filter.mark() == mark,
        };
        if !is_known {
            let loaded = path.and_then(|path| Filter::load(path, &mark));
            *self = loaded.map_or(Held::Missing(mark), Held::Loaded);
        }
        match self {
            Held::Loaded(filter) => Some(filter),
            _ => None,
        }
    }
}
