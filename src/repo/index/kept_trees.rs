//! Chunks of metadata that this host has written and cannot read back.
//!
//! The key of a host that may only add opens no list of files. To tell what has not changed, such a host keeps the lists
//! that it wrote itself. They are hints like all rows: compared with their ids when read, bounded, and without them
//! files are read again.

use super::Index;
use crate::error::Result;
use crate::ids::ChunkId;
use rusqlite::{OptionalExtension, params};

/// What is kept at most: lists of some ten million files.
const KEPT_BYTES_MAX: i64 = 1 << 30;

impl Index {
    /// Keeps chunks; the ones that were not kept again for the longest time give way.
    pub fn keep_trees(&self, chunks: &[(ChunkId, Vec<u8>)]) -> Result<()> {
        self.keep_trees_within(chunks, KEPT_BYTES_MAX)
    }

    fn keep_trees_within(&self, chunks: &[(ChunkId, Vec<u8>)], bytes_max: i64) -> Result<()> {
        self.change(|tx| {
            let mut insert = tx.prepare_cached("INSERT OR REPLACE INTO kept_trees(id, content) VALUES(?1, ?2)")?;
            for (id, content) in chunks {
                insert.execute(params![id.as_bytes(), content])?;
            }
            let kept = "SELECT COALESCE(SUM(LENGTH(content)), 0) FROM kept_trees";
            let mut over: i64 = tx.query_row(kept, [], |row| row.get::<_, i64>(0))? - bytes_max;
            while over > 0 {
                let oldest = "SELECT no, LENGTH(content) FROM kept_trees ORDER BY no LIMIT 1";
                let (no, bytes): (i64, i64) = tx.query_row(oldest, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
                tx.execute("DELETE FROM kept_trees WHERE no = ?1", [no])?;
                over -= bytes.max(1);
            }
            Ok(())
        })
    }

    /// The content that was kept under this id, not compared with it.
    pub fn kept_tree(&self, id: ChunkId) -> Result<Option<Vec<u8>>> {
        self.query(|db| {
            let sql = "SELECT content FROM kept_trees WHERE id = ?1";
            db.prepare_cached(sql)?.query_row([id.as_bytes()], |row| row.get(0)).optional()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_longest_ago_gives_way() {
        let index = Index::in_memory().expect("memory");
        let chunk = |n: u8| (ChunkId::from_bytes([n; 32]), vec![n; 100]);
        let keep = |n: u8| index.keep_trees_within(&[chunk(n)], 300).expect("memory");
        (0..3).for_each(keep);
        keep(0);
        keep(3);
        let kept = |n: u8| index.kept_tree(chunk(n).0).expect("memory");
        assert_eq!((kept(0), kept(1), kept(3)), (Some(vec![0; 100]), None, Some(vec![3; 100])));
    }
}
