//! Which chunks can be had from usable packs when some are coded against others, and from which home.
//!
//! A chunk is *founded* if it has a usable home that needs nothing, or one all of whose bases were founded before it. It is
//! found in rounds, so the chosen homes never lead in a ring, whatever the packs hold: the first kind is always preferred,
//! and a base was founded in an earlier round than what needs it. Bases are needed only by chosen homes: what else a live
//! chunk is coded against somewhere keeps nothing alive.
//!
//! Only chunks without a home of the first kind take room here, so where nothing has bases this costs one look at each.

use super::{GOOD, Survey};
use crate::error::Result;
use crate::ids::PackId;
use crate::repo::chain::DEPTH_MAX;
use crate::sabotage::is_planted;
use rusqlite::{Transaction, params};
use std::sync::atomic::Ordering;

pub(super) const TABLES: &str = "
CREATE TEMP TABLE IF NOT EXISTS pending(id BLOB PRIMARY KEY, step INTEGER NOT NULL) WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS ground(id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS coded(id BLOB PRIMARY KEY, rank INTEGER NOT NULL, pack INTEGER NOT NULL,
                                      frame INTEGER NOT NULL) WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS carried(id BLOB PRIMARY KEY, step INTEGER NOT NULL) WITHOUT ROWID;
CREATE TEMP TABLE IF NOT EXISTS doubtful(id BLOB PRIMARY KEY, step INTEGER NOT NULL) WITHOUT ROWID;
DELETE FROM pending; DELETE FROM ground; DELETE FROM coded; DELETE FROM carried; DELETE FROM doubtful;";

impl Survey<'_> {
    /// Chooses a home for everything live, and for what that needs; nothing to do if that is done.
    pub(super) fn settle(&self) -> Result<()> {
        self.flush()?;
        if self.is_settled.load(Ordering::Relaxed) {
            return Ok(());
        }
        // What is usable was added before, so it is seen here.
        self.index.merge_recent()?;
        self.temporary_change(|tx| {
            tx.execute_batch("DELETE FROM pending; DELETE FROM ground; DELETE FROM coded; DELETE FROM carried;")?;
            gather(tx)?;
            found(tx)?;
            if is_planted("bases-not-marked") { Ok(()) } else { carry(tx) }
        })?;
        self.is_settled.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Usable packs that hold a chunk which live ones may need and which has another home in a usable pack, and the packs
    /// of what any such home needs: only reading them tells which home is the one to keep.
    pub fn contested(&self) -> Result<Vec<PackId>> {
        self.settle()?;
        self.temporary_change(|tx| {
            // First everything that any home of a live chunk could need ...
            tx.execute("DELETE FROM carried", [])?;
            let sql = "INSERT OR IGNORE INTO carried SELECT b.base, 0 FROM live l
                       CROSS JOIN bases b ON b.chunk = l.id CROSS JOIN usable u ON u.pack = b.pack
                       WHERE NOT EXISTS(SELECT 1 FROM live k WHERE k.id = b.base)";
            tx.execute(sql, [])?;
            close(tx, "carried")?;
            // ... of that and the live ones those with several homes, then what these need.
            tx.execute("DELETE FROM doubtful", [])?;
            for set in ["live", "carried"] {
                let sql = format!(
                    "INSERT OR IGNORE INTO doubtful SELECT c.id, 0 FROM {set} l CROSS JOIN chunks c ON c.id = l.id
                     CROSS JOIN usable u ON u.pack = c.pack GROUP BY c.id HAVING min(c.pack) < max(c.pack)"
                );
                tx.execute(&sql, [])?;
            }
            close(tx, "doubtful")
        })?;
        let sql = "SELECT DISTINCT p.id FROM doubtful d CROSS JOIN chunks c ON c.id = d.id
                   CROSS JOIN usable u ON u.pack = c.pack CROSS JOIN packs p ON p.no = c.pack";
        let rows = self.index.query(|db| super::super::blobs(db, sql))?;
        rows.iter().map(|id| PackId::from_slice(id)).collect()
    }
}

/// Adds to a set with steps the bases that any usable home of its members needs, and theirs.
fn close(tx: &Transaction<'_>, set: &str) -> rusqlite::Result<()> {
    let sql = format!(
        "INSERT OR IGNORE INTO {set} SELECT b.base, ?1 + 1 FROM {set} s CROSS JOIN bases b ON b.chunk = s.id
         CROSS JOIN usable u ON u.pack = b.pack WHERE s.step = ?1"
    );
    let mut statement = tx.prepare_cached(&sql)?;
    for step in steps() {
        if statement.execute(params![step])? == 0 {
            break;
        }
    }
    Ok(())
}

/// Gathers what has no home that needs nothing in `pending`, with all that its homes need: there, or in `ground`.
fn gather(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    let alone = |id: &str| {
        format!(
            "EXISTS(SELECT 1 FROM chunks c CROSS JOIN usable u ON u.pack = c.pack
                    WHERE c.id = {id} AND c.bases = 0 AND {GOOD})"
        )
    };
    tx.execute(&format!("INSERT INTO pending SELECT id, 0 FROM live WHERE NOT {}", alone("live.id")), [])?;
    let needed = "FROM pending p CROSS JOIN bases b ON b.chunk = p.id CROSS JOIN usable v ON v.pack = b.pack
                  WHERE p.step = ?1";
    let ground = format!("INSERT OR IGNORE INTO ground SELECT b.base {needed} AND {}", alone("b.base"));
    let pending = format!(
        "INSERT OR IGNORE INTO pending SELECT b.base, ?1 + 1 {needed} AND NOT EXISTS(SELECT 1 FROM ground g WHERE g.id = b.base)"
    );
    let (mut ground, mut pending) = (tx.prepare_cached(&ground)?, tx.prepare_cached(&pending)?);
    for step in steps() {
        ground.execute(params![step])?;
        if pending.execute(params![step])? == 0 {
            break;
        }
    }
    Ok(())
}

/// Moves from `pending` to `coded`, round by round, what needs only what was founded before.
fn found(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    // Beside min(), SQLite takes the other columns from the row that holds the minimum.
    let sql = format!(
        "INSERT INTO coded SELECT p.id, min(u.rank), c.pack, c.frame FROM pending p
         CROSS JOIN chunks c ON c.id = p.id AND c.bases > 0 CROSS JOIN usable u ON u.pack = c.pack
         WHERE {GOOD} AND c.bases =
             (SELECT count(*) FROM bases b WHERE b.chunk = c.id AND b.pack = c.pack AND b.frame = c.frame
              AND (EXISTS(SELECT 1 FROM ground g WHERE g.id = b.base) OR EXISTS(SELECT 1 FROM coded d WHERE d.id = b.base)))
         GROUP BY p.id"
    );
    let mut statement = tx.prepare_cached(&sql)?;
    for _ in steps() {
        if statement.execute([])? == 0 {
            break;
        }
        tx.execute("DELETE FROM pending WHERE EXISTS(SELECT 1 FROM coded d WHERE d.id = pending.id)", [])?;
    }
    Ok(())
}

/// Gathers in `carried` what the chosen homes of live chunks need and is not live itself.
fn carry(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    let bases = "CROSS JOIN bases b ON b.chunk = d.id AND b.pack = d.pack AND b.frame = d.frame
                 WHERE NOT EXISTS(SELECT 1 FROM live k WHERE k.id = b.base)";
    let sql = format!(
        "INSERT OR IGNORE INTO carried SELECT b.base, 0 FROM coded d {bases} AND EXISTS(SELECT 1 FROM live l WHERE l.id = d.id)"
    );
    tx.execute(&sql, [])?;
    let sql = format!(
        "INSERT OR IGNORE INTO carried SELECT b.base, ?1 + 1 FROM carried s CROSS JOIN coded d ON d.id = s.id
         {bases} AND s.step = ?1"
    );
    let mut statement = tx.prepare_cached(&sql)?;
    for step in steps() {
        if statement.execute(params![step])? == 0 {
            break;
        }
    }
    Ok(())
}

/// As far as readers go.
fn steps() -> impl Iterator<Item = i64> {
    (0..).take(DEPTH_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ChunkId;
    use crate::repo::Repo;
    use crate::repo::index::survey::Usage;
    use crate::repo::test_support::{self, noise, open, store, version};

    fn id(number: u64) -> ChunkId {
        ChunkId::of(&version(number))
    }

    /// The live ones marked, all packs usable, by age.
    fn surveyed<'r>(repo: &'r Repo, live: &[ChunkId], packs: &[PackId]) -> Survey<'r> {
        let survey = repo.index().survey().expect("an index");
        live.iter().for_each(|&id| survey.mark(id).expect("marked"));
        survey.set_usable(packs).expect("an index");
        survey
    }

    fn used_chunks(survey: &Survey<'_>) -> Vec<u64> {
        survey.used().expect("an index").iter().map(|usage: &Usage| usage.chunks).collect()
    }

    #[test]
    fn only_bases_of_chosen_homes_are_needed() {
        let repo = open(&test_support::storage());
        let packs = [
            store(&repo, &[(&version(0), &[])]).id,
            store(&repo, &[(&version(1), &[&version(0)])]).id,
            store(&repo, &[(&version(2), &[&version(1)])]).id,
            store(&repo, &[(&version(1), &[])]).id,
        ];
        let survey = surveyed(&repo, &[id(2)], &packs);
        assert_eq!((used_chunks(&survey), survey.live_chunks().expect("an index")), (vec![0, 0, 1, 1], 2));
        let offset = repo.index().homes(&[id(1)]).expect("an index")[0][0].frame_offset;
        let belongs = |number, rank| survey.belongs(id(number), rank, offset).expect("an index");
        assert!(belongs(2, 2) && belongs(1, 3) && !belongs(1, 1) && !belongs(0, 0));
        // Without the pack in which it stands alone, the other home counts, and what that needs.
        survey.set_usable(&packs[..3]).expect("an index");
        assert_eq!((used_chunks(&survey), survey.live_chunks().expect("an index")), (vec![1, 1, 1], 3));
        assert!(belongs(1, 1) && belongs(0, 0));
        // The same if it is there and known to be bad.
        survey.set_usable(&packs).expect("an index");
        survey.set_bad([(id(1), packs[3])]).expect("an index");
        assert_eq!(used_chunks(&survey), [1, 1, 1, 0]);
        // Without the anchor nothing is to be had.
        survey.set_usable(&packs[1..3]).expect("an index");
        assert_eq!(survey.homeless(9).expect("an index"), (1, vec![id(2)]));
        assert!([0, 1, 2].iter().all(|&n| survey.is_lost(id(n)).expect("an index")));
    }

    #[test]
    fn among_homes_that_need_others_the_preferred_pack_decides() {
        let repo = open(&test_support::storage());
        let packs = [
            store(&repo, &[(&version(0), &[]), (&version(9), &[])]).id,
            store(&repo, &[(&version(1), &[&version(0)])]).id,
            store(&repo, &[(&version(1), &[&version(9)])]).id,
        ];
        let survey = surveyed(&repo, &[id(1)], &packs);
        assert_eq!(used_chunks(&survey), [1, 1, 0]);
        survey.set_usable(&[packs[0], packs[2], packs[1]]).expect("an index");
        assert_eq!(used_chunks(&survey), [1, 1, 0]);
        assert!(!survey.is_lost(id(9)).expect("an index"));
        let contested: std::collections::BTreeSet<_> = survey.contested().expect("an index").into_iter().collect();
        assert_eq!(contested, packs.into(), "with what the two homes need");
        assert_eq!(used_chunks(&survey), [1, 1, 0], "asking has changed nothing");
    }

    #[test]
    fn chains_count_as_far_as_readers_follow_them() {
        let repo = open(&test_support::storage());
        let link = |number: usize| noise(5000 + number as u64, 100);
        let mut packs = vec![store(&repo, &[(&link(0), &[])]).id];
        for number in 1..=DEPTH_MAX + 1 {
            packs.push(store(&repo, &[(&link(number), &[&link(number - 1)])]).id);
        }
        for (number, lost) in [(DEPTH_MAX, 0), (DEPTH_MAX + 1, 1)] {
            let survey = surveyed(&repo, &[ChunkId::of(&link(number))], &packs);
            assert_eq!(survey.homeless(0).expect("an index").0, lost, "{number} deep");
            assert_eq!(repo.read_chunk(ChunkId::of(&link(number))).is_err(), lost == 1);
        }
    }
}
