//! The packs that the index knows, which index objects list them, and which are dead.

use super::{Index, blobs, levels};
use crate::error::Result;
use crate::ids::{IndexId, PackId, SnapshotId};
use crate::repo::pack::{PackKind, PackSummary};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use std::collections::HashSet;

/// Rows of chunks whose pack is forgotten are deleted once these were in so many packs, and in so large a share of all: that
/// takes a look at every row.
const FORGOTTEN_PACKS_MAX: i64 = 64;
const FORGOTTEN_SHARE_MAX: i64 = 4;

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

impl Index {
    /// Every pack that is known and not dead, by id.
    pub fn packs(&self) -> Result<Vec<KnownPack>> {
        let mut packs = Vec::new();
        self.query(|db| {
            let sql = "SELECT id, bytes, kind, writer, EXISTS(SELECT 1 FROM listings WHERE pack = no) FROM packs
                       WHERE dead = 0";
            let mut statement = db.prepare_cached(sql)?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let id = PackId::from_slice(row.get_ref(0)?.as_blob()?);
                let transaction = SnapshotId::from_slice(row.get_ref(3)?.as_blob()?);
                let (bytes, kind, is_listed) = (row.get::<_, i64>(1)?, row.get::<_, u8>(2)?, row.get(4)?);
                packs.push((id, bytes, kind, transaction, is_listed));
            }
            Ok(())
        })?;
        let known = packs.into_iter().map(|(id, bytes, kind, transaction, is_listed)| {
            Ok(KnownPack {
                id: id?,
                bytes: u64::try_from(bytes).unwrap_or(0),
                kind: PackKind::from_code(kind)?,
                transaction: transaction?,
                is_listed,
            })
        });
        let mut known = known.collect::<Result<Vec<_>>>()?;
        known.sort_unstable_by_key(|pack| pack.id);
        Ok(known)
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

    /// The index objects whose packs are in the database.
    pub fn index_objects(&self) -> Result<HashSet<IndexId>> {
        let rows = self.query(|db| blobs(db, "SELECT id FROM index_objects"))?;
        rows.iter().map(|b| IndexId::from_slice(b)).collect()
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

    /// Forgets index objects that are no longer there. Their packs stay known, though perhaps no longer listed.
    pub fn remove_index_objects(&self, gone: &[IndexId]) -> Result<()> {
        self.change(|tx| {
            for id in gone {
                tx.prepare_cached("DELETE FROM listings WHERE index_id = ?")?.execute(params![id.as_bytes()])?;
                tx.prepare_cached("DELETE FROM index_objects WHERE id = ?")?.execute(params![id.as_bytes()])?;
            }
            Ok(())
        })
    }

    /// Forgets packs, and with them every chunk in them: a row whose pack has no row counts for nothing. Numbers of packs
    /// are never given again, so such rows may stay until they are many.
    pub fn remove_packs(&self, gone: &[PackId]) -> Result<()> {
        self.remove_packs_keeping(gone, FORGOTTEN_PACKS_MAX)
    }

    pub(super) fn remove_packs_keeping(&self, gone: &[PackId], forgotten_packs_max: i64) -> Result<()> {
        self.change(|tx| {
            let mut find = tx.prepare_cached("SELECT no FROM packs WHERE id = ?")?;
            for id in gone {
                let number: Option<i64> = find.query_row(params![id.as_bytes()], |row| row.get(0)).optional()?;
                let Some(number) = number else { continue };
                tx.prepare_cached("DELETE FROM listings WHERE pack = ?")?.execute(params![number])?;
                tx.prepare_cached("DELETE FROM packs WHERE no = ?")?.execute(params![number])?;
            }
            let sql = "SELECT count(*), (SELECT forgotten FROM levels) FROM packs";
            let (known, forgotten): (i64, i64) = tx.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let forgotten = forgotten + i64::try_from(gone.len()).unwrap_or(i64::MAX);
            let is_much = forgotten > forgotten_packs_max && forgotten > known / FORGOTTEN_SHARE_MAX;
            tx.execute("UPDATE levels SET forgotten = ?", params![if is_much { 0 } else { forgotten }])?;
            if is_much {
                let delete = |table: &str| {
                    tx.execute(&format!("DELETE FROM {table} WHERE pack NOT IN (SELECT no FROM packs)"), [])
                };
                levels::count_removed(tx, delete("chunks")?, delete("recent")?)?;
                delete("bases")?;
            }
            Ok(())
        })?;
        self.lock().packs_by_number.clear();
        Ok(())
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

    /// Those of `packs` that are known and not marked as dead.
    pub fn living<'p>(&self, packs: impl IntoIterator<Item = &'p PackId>) -> Result<Vec<PackId>> {
        self.query(|db| {
            // In one transaction: else every single look-up locks and unlocks the file.
            let tx = db.unchecked_transaction()?;
            let mut statement = tx.prepare_cached("SELECT 1 FROM packs WHERE id = ? AND dead = 0")?;
            let mut living = Vec::new();
            for id in packs {
                if statement.exists(params![id.as_bytes()])? {
                    living.push(*id);
                }
            }
            Ok(living)
        })
    }

    /// The packs that are marked as dead and whose rows are still here.
    pub fn dead_packs(&self) -> Result<Vec<PackId>> {
        let rows = self.query(|db| blobs(db, "SELECT id FROM packs WHERE dead = 1"))?;
        rows.iter().map(|b| PackId::from_slice(b)).collect()
    }
}

/// The number of a pack, and whether it is new.
pub(super) fn add(tx: &Transaction<'_>, pack: &PackSummary) -> rusqlite::Result<(i64, bool)> {
    let known = tx
        .prepare_cached("SELECT no FROM packs WHERE id = ?")?
        .query_row(params![pack.id.as_bytes()], |row| row.get(0))
        .optional()?;
    match known {
        Some(number) => Ok((number, false)),
        None => Ok((insert(tx, pack)?, true)),
    }
}

/// Adds a pack that is not known; its number.
pub(super) fn insert(db: &Connection, pack: &PackSummary) -> rusqlite::Result<i64> {
    db.prepare_cached("INSERT INTO packs(id, bytes, kind, writer) VALUES(?,?,?,?)")?.execute(params![
        pack.id.as_bytes(),
        i64::try_from(pack.bytes).unwrap_or(i64::MAX),
        pack.kind.code(),
        pack.transaction.as_bytes()
    ])?;
    Ok(db.last_insert_rowid())
}

/// Records that `index` lists the pack of this number.
pub(super) fn list(db: &Connection, index: IndexId, number: i64) -> rusqlite::Result<()> {
    let mut statement = db.prepare_cached("INSERT OR IGNORE INTO listings VALUES(?,?)")?;
    statement.execute(params![index.as_bytes(), number]).map(|_| ())
}
