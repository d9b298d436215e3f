//! Bringing the rows of `recent` over to `chunks`, in order.
//!
//! It costs as much as reading and writing both tables, so it is done for those who go through everything anyway, and, after
//! its commit, by a writer that finds many rows in `recent`: else these would become a large table without any order.
//!
//! Rows are brought over in *slices*, ranges of ids, each in a transaction of its own, so that no writer waits for longer than
//! one takes. Look-ups ask both tables in one transaction, so they find a row in one of them at any time, also if the run is
//! killed between two slices. What is added meanwhile may stay in `recent`.
//!
//! Each slice puts a *token* in the place of the filter's mark, which no slice has had and which is no mark. If what stands
//! there is not what this run has left, another one has brought over rows that this run's filter lacks, and it is given up.
//! At the end a filter with all ids gets a new mark, if the last token still stands. If no filter came through, one is made of
//! all of `chunks` as one reading transaction shows it, and gets a mark if the token of that state still stands. So a mark
//! never stands beside rows that its filter does not know.

use super::filter::{Filter, Mark};
use super::levels::{self, Held, levels, new_mark};
use super::{Index, Parts, sqlite_error};
use crate::error::Result;
use crate::ids::ChunkId;
use rusqlite::{Connection, OptionalExtension, Transaction, TransactionBehavior, params};
use std::path::Path;
use std::time::{Duration, Instant};

/// About how many rows a slice has. Each may touch a page of `chunks`: 64 MiB to read and to write.
const SLICE_ROWS: u64 = 1 << 14;
/// How long slices follow each other closely, and the pause after that: who waits for SQLite's lock looks ten times a second.
const HOLD_MAX: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(110);

/// A writer brings rows over when `recent` has more than this: they take seconds then, and fewer share pages well enough.
const RECENT_ROWS_MAX: u64 = 1 << 18;
/// But only if they are more than this part of `chunks`, all of whose pages that costs: so each row is written over and over
/// for eight new ones at most. A backup that has added an eighth of all there is takes much longer than that.
const RECENT_SHARE_MAX: u64 = 8;

/// How rows are brought over.
pub(super) struct Merge<'a> {
    /// With so many rows in `chunks` there is a filter.
    pub(super) filtered_rows_min: u64,
    pub(super) slice_rows: u64,
    /// Asked after each slice, and when there is a filter that has no mark yet; false ends it, as a kill does.
    pub(super) go_on: &'a mut dyn FnMut() -> bool,
}

/// What stands where a filter has its mark.
type State = Vec<u8>;

/// What one run has on its way.
struct Run {
    filter: Option<Filter>,
    /// What this run has seen or put in the place of the mark.
    state: State,
    /// Random; each slice makes another state of it.
    token: Mark,
    slices: u64,
    /// All ids up to this one are done.
    done: Vec<u8>,
}

impl Index {
    /// Brings all rows that are there now together in `chunks`.
    pub fn merge_recent(&self) -> Result<()> {
        self.merge(Merge { filtered_rows_min: levels::FILTERED_ROWS_MIN, slice_rows: SLICE_ROWS, go_on: &mut || true })
    }

    /// The same, if `recent` has become large: for a writer, after its commit.
    pub fn merge_recent_if_large(&self) -> Result<()> {
        let levels = self.query(levels)?;
        let is_large = levels.recent > RECENT_ROWS_MAX.max(levels.settled / RECENT_SHARE_MAX);
        if is_large { self.merge_recent() } else { Ok(()) }
    }

    pub(super) fn merge(&self, how: Merge<'_>) -> Result<()> {
        // As one transaction sees both: else the filter may be of another state than the one that is looked for later.
        let (found, state) = self.query(|db| {
            let tx = db.unchecked_transaction()?;
            Ok((levels(&tx)?, state(&tx)?))
        })?;
        // A token that nobody exchanges for a mark is of a run that was killed.
        if found.recent == 0 && (state.is_empty() || found.mark.is_some()) {
            return Ok(());
        }
        let path = self.filter_path();
        let loaded = path.as_ref().and_then(|path| Filter::load(path, &found.mark?));
        let filter = loaded.filter(|filter| filter.room() >= found.recent);
        let mut run = Run { filter, state, token: new_mark()?, slices: 0, done: Vec::new() };
        let mut begin = Instant::now();
        while self.merge_slice(&mut run, how.slice_rows)? {
            if !(how.go_on)() {
                return Ok(());
            }
            if begin.elapsed() > HOLD_MAX {
                std::thread::sleep(PAUSE);
                begin = Instant::now();
            }
        }
        let rows = self.query(levels)?.settled;
        let filter = match (run.filter.take(), &path) {
            (Some(filter), Some(_)) => Some(filter),
            (None, Some(_)) if rows >= how.filtered_rows_min => {
                let (state, filter) = self.filter_of_all()?;
                run.state = state;
                Some(filter)
            }
            _ => None,
        };
        if !(how.go_on)() {
            return Ok(());
        }
        self.publish_filter(filter, &run.state, path.as_deref())
    }

    /// Brings the next rows over; false if there were none.
    fn merge_slice(&self, run: &mut Run, rows_max: u64) -> Result<bool> {
        let mut inner = self.lock();
        let Parts { connection, filter: held, .. } = inner.parts()?;
        let moved = (|| {
            let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let Some(last) = end_of_slice(&tx, &run.done, rows_max)? else { return Ok(false) };
            if state(&tx)? != run.state {
                run.filter = None;
            }
            if let Some(filter) = &mut run.filter {
                let mut ids = tx.prepare_cached("SELECT id FROM recent WHERE id > ? AND id <= ?")?;
                add_ids(ids.query(params![run.done, last])?, filter)?;
            }
            let sql = "INSERT OR IGNORE INTO chunks SELECT * FROM recent WHERE id > ? AND id <= ?
                       ORDER BY id, pack, frame, at";
            let added = tx.prepare_cached(sql)?.execute(params![run.done, last])?;
            let sql = "DELETE FROM recent WHERE id > ? AND id <= ?";
            let removed = tx.prepare_cached(sql)?.execute(params![run.done, last])?;
            let sql = "UPDATE levels SET settled = settled + ?, recent = max(recent - ?, 0), filter = ?";
            let count = |rows: usize| i64::try_from(rows).unwrap_or(i64::MAX);
            // Longer than a mark.
            let after = [run.token.as_slice(), &run.slices.to_le_bytes()].concat();
            tx.prepare_cached(sql)?.execute(params![count(added), count(removed), after])?;
            tx.commit()?;
            (run.state, run.done, run.slices) = (after, last, run.slices + 1);
            Ok(true)
        })();
        *held = Held::Unknown;
        moved.map_err(|e| sqlite_error(&self.path, e))
    }

    /// A filter of all of `chunks`, and the state that it shows. This reads, so nobody waits for it.
    fn filter_of_all(&self) -> Result<(State, Filter)> {
        let mark = new_mark()?;
        let mut inner = self.lock();
        let Parts { connection, .. } = inner.parts()?;
        let made = (|| {
            let tx = connection.transaction()?;
            let state = state(&tx)?;
            let mut filter = Filter::for_ids(levels(&tx)?.settled, mark);
            add_ids(tx.prepare("SELECT id FROM chunks")?.query([])?, &mut filter)?;
            Ok((state, filter))
        })();
        made.map_err(|e| sqlite_error(&self.path, e))
    }

    /// Gives the filter a mark, if what it was made for is still the state; without one, says that there is none. The file is
    /// there before the mark, so nobody looks for it in vain; the one before it has lost its mark already.
    fn publish_filter(&self, filter: Option<Filter>, state_before: &State, path: Option<&Path>) -> Result<()> {
        let mut mark = Vec::new();
        if self.query(state)? != *state_before {
            return Ok(());
        }
        if let (Some(mut filter), Some(path)) = (filter, path) {
            let new = new_mark()?;
            filter.set_mark(new);
            // Without it look-ups go to the database: no reason to fail.
            if filter.save(path).is_ok() {
                mark = new.to_vec();
            }
        }
        self.change(|tx| {
            if state(tx)? == *state_before {
                tx.execute("UPDATE levels SET filter = ?", params![mark])?;
            }
            // Counts that have gone astray are put right when it is easy.
            tx.execute("UPDATE levels SET recent = 0 WHERE NOT EXISTS(SELECT 1 FROM recent)", []).map(|_| ())
        })?;
        Ok(())
    }
}

fn state(db: &Connection) -> rusqlite::Result<State> {
    db.prepare_cached("SELECT filter FROM levels")?.query_row([], |row| row.get(0))
}

/// The last id of the next slice: all rows of an id are in one.
fn end_of_slice(tx: &Transaction<'_>, done: &[u8], rows_max: u64) -> rusqlite::Result<Option<Vec<u8>>> {
    let rows_max = i64::try_from(rows_max).unwrap_or(i64::MAX);
    let mut after = tx.prepare_cached("SELECT id FROM recent WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?")?;
    if let Some(id) = after.query_row(params![done, rows_max.max(1) - 1], |row| row.get(0)).optional()? {
        return Ok(Some(id));
    }
    tx.prepare_cached("SELECT max(id) FROM recent WHERE id > ?")?.query_row(params![done], |row| row.get(0))
}

fn add_ids(mut rows: rusqlite::Rows<'_>, filter: &mut Filter) -> rusqlite::Result<()> {
    while let Some(row) = rows.next()? {
        if let Ok(id) = ChunkId::from_slice(row.get_ref(0)?.as_blob()?) {
            filter.add(&id);
        }
    }
    Ok(())
}
