//! Where chunks lie and what they are coded against.

use super::{Index, Parts, sqlite_error};
use crate::error::Result;
use crate::ids::{ChunkId, PackId};
use crate::repo::pack_table::FrameRecord;
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use std::collections::HashMap;

/// The columns of `chunks` that [`home_of`] takes.
pub(super) const HOME_COLUMNS: &str = "pack, frame, stored, raw, at, bytes, codec, bases";

/// Where a chunk can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Home {
    /// The pack.
    pub pack: PackId,
    /// Where its frame begins in the pack.
    pub frame_offset: u64,
    /// Bytes of the frame as stored.
    pub frame_stored: u32,
    /// Bytes of the frame's content.
    pub frame_raw: u32,
    /// Where the chunk begins in the frame's content.
    pub at: u32,
    /// Bytes of the chunk.
    pub bytes: u32,
    /// The code of the frame's codec.
    pub codec: u8,
    /// How many other chunks must be known to decode the frame; [`Index::bases`] tells which.
    pub base_count: u8,
}

/// What stands on a chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeltaUse {
    /// How many chunks have it as their first base.
    pub count: u64,
    /// The bytes of their frames as stored.
    pub stored_bytes: u64,
}

impl Index {
    /// For each chunk, all the places where it can be read, those that need no other chunk first and those in dead packs
    /// last; none for one that is not known.
    pub fn homes(&self, ids: &[ChunkId]) -> Result<Vec<Vec<Home>>> {
        let mut inner = self.lock();
        let Parts { connection, packs_by_number, .. } = inner.parts()?;
        // In one transaction: else every single look-up locks and unlocks the file.
        let found = connection.transaction().and_then(|tx| find(&tx, packs_by_number, ids, &|_| true));
        found.map_err(|e| sqlite_error(&self.path, e))
    }

    /// For each chunk in a pack, the chunks that it is coded against there, in the order in which the frame needs them;
    /// none if it needs none. A pack that holds the chunk several times (no writer makes one) answers for its first frame
    /// that needs any.
    pub fn bases(&self, of: &[(ChunkId, PackId)]) -> Result<Vec<Vec<ChunkId>>> {
        self.bases_in_frames(of.iter().map(|&(chunk, pack)| (chunk, pack, None)))
    }

    /// As [`Index::bases`], for the very frame of a home.
    pub fn bases_at(&self, of: &[(ChunkId, Home)]) -> Result<Vec<Vec<ChunkId>>> {
        self.bases_in_frames(of.iter().map(|(chunk, home)| (*chunk, home.pack, Some(home.frame_offset))))
    }

    fn bases_in_frames(&self, of: impl Iterator<Item = (ChunkId, PackId, Option<u64>)>) -> Result<Vec<Vec<ChunkId>>> {
        let mut inner = self.lock();
        let Parts { connection, .. } = inner.parts()?;
        let found = (|| {
            let tx = connection.transaction()?;
            let mut statement = tx.prepare_cached(
                "SELECT base, frame FROM bases
                 WHERE chunk = ?1 AND pack = (SELECT no FROM packs WHERE id = ?2) AND frame = coalesce(?3, frame)
                 ORDER BY frame, ordinal",
            )?;
            let mut found = Vec::new();
            for (chunk, pack, frame) in of {
                let frame = frame.map(|offset| i64::try_from(offset).unwrap_or(i64::MAX));
                let mut bases = Vec::new();
                let mut first_frame = None;
                let mut rows = statement.query(params![chunk.as_bytes(), pack.as_bytes(), frame])?;
                while let Some(row) = rows.next()? {
                    if *first_frame.get_or_insert(row.get::<_, i64>(1)?) != row.get::<_, i64>(1)? {
                        break;
                    }
                    bases.extend(ChunkId::from_slice(row.get_ref(0)?.as_blob()?).ok());
                }
                found.push(bases);
            }
            Ok(found)
        })();
        found.map_err(|e| sqlite_error(&self.path, e))
    }

    /// How many chunks of `bytes` bytes are coded against `base` as their first base, and the bytes that they take: from this a
    /// writer decides when it is time for a new anchor. Only packs that are known and not dead count. Given the length of the base itself, what stands on it in another
    /// precision does not count. A chunk that is coded so in several packs counts once, at its smallest.
    pub fn deltas_on(&self, base: ChunkId, bytes: u64) -> Result<DeltaUse> {
        let sql = "SELECT count(*), coalesce(sum(stored), 0) FROM (SELECT min(stored) AS stored FROM
                   (SELECT b.chunk AS chunk, c.stored AS stored FROM bases b
                    CROSS JOIN packs p ON p.no = b.pack AND p.dead = 0
                    CROSS JOIN chunks c ON c.id = b.chunk AND c.pack = b.pack AND c.frame = b.frame
                    WHERE b.base = ?1 AND b.ordinal = 0 AND c.bytes = ?2
                    UNION ALL
                    SELECT b.chunk AS chunk, c.stored AS stored FROM bases b
                    CROSS JOIN packs p ON p.no = b.pack AND p.dead = 0
                    CROSS JOIN recent c ON c.id = b.chunk AND c.pack = b.pack AND c.frame = b.frame
                    WHERE b.base = ?1 AND b.ordinal = 0 AND c.bytes = ?2) GROUP BY chunk)";
        let (count, bytes): (i64, i64) = self.query(|db| {
            db.prepare_cached(sql)?
                .query_row(params![base.as_bytes(), i64::try_from(bytes).unwrap_or(i64::MAX)], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
        })?;
        Ok(DeltaUse { count: u64::try_from(count).unwrap_or(0), stored_bytes: u64::try_from(bytes).unwrap_or(0) })
    }
}

/// The homes of each chunk in `recent`, and in `chunks` if it may be there.
pub(super) fn find(
    tx: &Transaction<'_>,
    packs_by_number: &mut HashMap<i64, (PackId, bool)>,
    ids: &[ChunkId],
    may_be_settled: &dyn Fn(&ChunkId) -> bool,
) -> rusqlite::Result<Vec<Vec<Home>>> {
    let mut tables = Vec::new();
    for (table, is_settled) in [("chunks", true), ("recent", false)] {
        // One of them is often empty, and asking it for each chunk costs as much as asking the other.
        if tx.prepare_cached(&format!("SELECT 1 FROM {table} LIMIT 1"))?.exists([])? {
            let statement = tx.prepare_cached(&format!("SELECT {HOME_COLUMNS} FROM {table} WHERE id = ?"))?;
            tables.push((statement, is_settled));
        }
    }
    // In the order of the tables, so that neighbours find their pages at hand.
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_unstable_by_key(|&number| ids[number]);
    let mut found = vec![Vec::new(); ids.len()];
    for number in order {
        let id = &ids[number];
        let mut homes = Vec::new();
        for (statement, is_settled) in &mut tables {
            if *is_settled && !may_be_settled(id) {
                continue;
            }
            let mut rows = statement.query(params![id.as_bytes()])?;
            while let Some(row) = rows.next()? {
                homes.extend(home_of(tx, packs_by_number, row)?);
            }
        }
        homes.sort_by_key(|(home, is_dead): &(Home, bool)| (*is_dead, home.base_count > 0));
        found[number] = homes.into_iter().map(|(home, _)| home).collect();
    }
    Ok(found)
}

/// The home in a row that begins with [`HOME_COLUMNS`] and whether its pack is dead; none if that is not known any more.
pub(super) fn home_of(
    connection: &Connection,
    packs_by_number: &mut HashMap<i64, (PackId, bool)>,
    row: &Row<'_>,
) -> rusqlite::Result<Option<(Home, bool)>> {
    let Some((pack, is_dead)) = pack_by_number(connection, packs_by_number, row.get(0)?)? else { return Ok(None) };
    let home = Home {
        pack,
        frame_offset: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
        frame_stored: row.get(2)?,
        frame_raw: row.get(3)?,
        at: row.get(4)?,
        bytes: row.get(5)?,
        codec: row.get(6)?,
        base_count: row.get(7)?,
    };
    Ok(Some((home, is_dead)))
}

fn pack_by_number(
    connection: &Connection,
    cache: &mut HashMap<i64, (PackId, bool)>,
    number: i64,
) -> rusqlite::Result<Option<(PackId, bool)>> {
    if let Some(known) = cache.get(&number) {
        return Ok(Some(*known));
    }
    let found: Option<(Vec<u8>, bool)> = connection
        .prepare_cached("SELECT id, dead FROM packs WHERE no = ?")?
        .query_row(params![number], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let known = found.and_then(|(bytes, is_dead)| Some((PackId::from_slice(&bytes).ok()?, is_dead)));
    if let Some(known) = known {
        cache.insert(number, known);
    }
    Ok(known)
}

/// Records what the frames of a new pack are coded against.
pub(super) fn add_bases(tx: &Transaction<'_>, pack: i64, frames: &[FrameRecord]) -> rusqlite::Result<()> {
    let sql = "INSERT OR IGNORE INTO bases(chunk, pack, frame, ordinal, base) VALUES(?,?,?,?,?)";
    let mut insert = tx.prepare_cached(sql)?;
    for frame in frames {
        let offset = i64::try_from(frame.offset).unwrap_or(i64::MAX);
        for (chunk, _) in &frame.chunks {
            for (ordinal, base) in (0u8..).zip(&frame.bases) {
                insert.execute(params![chunk.as_bytes(), pack, offset, ordinal, base.as_bytes()])?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::test_support::{self, open, store, version};

    #[test]
    fn bases_come_in_order_and_homes_without_any_first() {
        let repo = open(&test_support::storage());
        let id = |number: u64| ChunkId::of(&version(number));
        let coded = store(&repo, &[(&version(9), &[&version(3), &version(1), &version(2)]), (&version(1), &[])]);
        let alone = store(&repo, &[(&version(9), &[])]);
        let index = repo.index();
        let asked = [(id(9), coded.id), (id(9), alone.id), (id(1), coded.id), (id(7), coded.id), (id(9), coded.id)];
        let order = vec![id(3), id(1), id(2)];
        assert_eq!(index.bases(&asked).expect("an index"), [order.clone(), vec![], vec![], vec![], order.clone()]);
        let homes = index.homes(&[id(9)]).expect("an index").remove(0);
        assert_eq!(homes.iter().map(|h| (h.pack, h.base_count)).collect::<Vec<_>>(), [(alone.id, 0), (coded.id, 3)]);
        assert_eq!(index.bases_at(&[(id(9), homes[1]), (id(9), homes[0])]).expect("an index"), [order, vec![]]);
        index.remove_packs(&[coded.id]).expect("an index");
        assert_eq!(index.bases(&asked).expect("an index"), vec![vec![]; 5]);
    }

    #[test]
    fn what_stands_on_an_anchor_is_counted_by_first_bases() {
        let repo = open(&test_support::storage());
        let id = |number: u64| ChunkId::of(&version(number));
        let index = repo.index();
        let bytes = version(0).len() as u64;
        assert_eq!(index.deltas_on(id(0), bytes).expect("an index"), DeltaUse::default());
        store(&repo, &[(&version(1), &[&version(0)]), (&version(2), &[&version(0), &version(5)])]);
        store(&repo, &[(&version(3), &[&version(5), &version(0)])]);
        let stored = |n: u64| u64::from(index.homes(&[id(n)]).expect("an index")[0][0].frame_stored);
        let expected = DeltaUse { count: 2, stored_bytes: stored(1) + stored(2) };
        assert_eq!(index.deltas_on(id(0), bytes).expect("an index"), expected);
        // The same again elsewhere is the same chunk.
        store(&repo, &[(&version(1), &[&version(0)])]);
        assert_eq!(index.deltas_on(id(0), bytes).expect("an index"), expected);
        assert_eq!(index.deltas_on(id(5), bytes).expect("an index").count, 1);
        // What has another length is the same in another precision.
        store(&repo, &[(&version(6).repeat(2), &[&version(0)])]);
        assert_eq!(index.deltas_on(id(0), bytes).expect("an index"), expected);
        assert_eq!(index.deltas_on(id(0), 2 * bytes).expect("an index").count, 1);
    }

    #[test]
    fn what_stands_in_packs_that_are_gone_does_not_count_for_anchors() {
        let repo = open(&test_support::storage());
        let base = ChunkId::of(&version(0));
        let bytes = version(0).len() as u64;
        let packs = [1, 2, 3].map(|n| store(&repo, &[(&version(n), &[&version(0)])]));
        let index = repo.index();
        assert_eq!(index.deltas_on(base, bytes).expect("an index").count, 3);
        index.remove_packs(&[packs[0].id]).expect("forgotten");
        assert_eq!(index.deltas_on(base, bytes).expect("an index").count, 2);
        index.mark_dead(&[packs[1].id]).expect("marked");
        assert_eq!(index.deltas_on(base, bytes).expect("an index").count, 1);
    }
}
