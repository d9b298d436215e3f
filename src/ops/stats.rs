//! How much is stored, and what deduplication and coding have saved.
//!
//! Sums over the index and the listings; no content is read.

use crate::codec::Codec;
use crate::error::{Error, Kind, Result};
use crate::events::{Event, Observer};
use crate::repo::{Repo, names};

/// What the repository holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StatsReport {
    /// Live snapshots.
    pub snapshots: u64,
    /// Bytes of all files of all snapshots.
    pub logical_bytes: u64,
    /// Bytes of content and metadata with every chunk counted once.
    pub unique_bytes: u64,
    /// Bytes of the frames that hold them.
    pub stored_bytes: u64,
    /// Bytes of whole packs.
    pub pack_bytes: u64,
    /// Bytes of the parity of packs.
    pub parity_bytes: u64,
    /// Bytes of all objects of the repository.
    pub repository_bytes: u64,
    /// Packs that are known.
    pub packs: u64,
    /// Distinct chunks.
    pub chunks: u64,
    /// What each codec has done.
    pub by_codec: Vec<CodecStats>,
}

/// What one codec has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CodecStats {
    /// Its name.
    pub codec: String,
    /// Frames.
    pub frames: u64,
    /// Bytes of their content.
    pub raw_bytes: u64,
    /// Bytes as stored.
    pub stored_bytes: u64,
}

/// Adds everything up.
pub fn stats(repo: &Repo, observer: &dyn Observer) -> Result<StatsReport> {
    observer.on_event(&Event::Phase { name: "adding up", bytes_total: None, files_total: None });
    let snapshots = repo.snapshots();
    let (mut repository_bytes, mut parity_bytes) = (0, 0);
    for folder in names::FOLDERS {
        if observer.is_interrupted() {
            return Err(Error::new(Kind::Interrupted, "interrupted while adding up"));
        }
        let bytes = repo.storage().list(folder)?.iter().map(|l| l.bytes).sum::<u64>();
        repository_bytes += bytes;
        parity_bytes += if folder == names::PARITY { bytes } else { 0 };
    }
    let packs = repo.index().packs()?;
    let (chunks, unique_bytes) = repo.index().unique_chunks()?;
    let by_codec: Vec<CodecStats> = repo
        .index()
        .codec_totals()?
        .into_iter()
        .map(|totals| CodecStats {
            codec: Codec::from_code(totals.codec).map_or(format!("codec {}", totals.codec), |c| c.name().to_owned()),
            frames: totals.frames,
            raw_bytes: totals.raw_bytes,
            stored_bytes: totals.stored_bytes,
        })
        .collect();
    Ok(StatsReport {
        snapshots: snapshots.len() as u64,
        logical_bytes: snapshots.iter().map(|s| s.totals.bytes).sum(),
        unique_bytes,
        stored_bytes: by_codec.iter().map(|c| c.stored_bytes).sum(),
        pack_bytes: packs.iter().map(|p| p.bytes).sum(),
        parity_bytes,
        repository_bytes,
        packs: packs.len() as u64,
        chunks,
        by_codec,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Silent;
    use crate::repo::test_support::{self, Node, noise};

    #[test]
    fn what_two_snapshots_share_is_counted_once() {
        let storage = test_support::storage();
        let repo = test_support::open(&storage);
        let nodes = [("a", Node::File(noise(1, 50_000))), ("b", Node::File(vec![7; 20_000]))];
        test_support::save(&repo, 10, &nodes);
        let one = stats(&repo, &Silent).expect("sound");
        test_support::save(&repo, 20, &nodes);
        let two = stats(&repo, &Silent).expect("sound");
        assert_eq!((two.snapshots, two.logical_bytes), (2, 140_000));
        // 70,000 bytes of which the constant ones are one chunk and a rest, and some metadata.
        assert!((56_000..64_000).contains(&two.unique_bytes), "{two:?}");
        assert_eq!((one.unique_bytes, one.chunks, one.packs), (two.unique_bytes, two.chunks, two.packs));
        let frames: u64 = two.by_codec.iter().map(|c| c.stored_bytes).sum();
        assert!(frames == two.stored_bytes && frames < two.pack_bytes && two.pack_bytes < two.repository_bytes);
        let all: u64 = storage.objects().values().map(|o| o.len() as u64).sum();
        assert_eq!(two.repository_bytes, all);
    }

    #[test]
    fn codecs_that_need_a_base_have_names() {
        let repo = test_support::open(&test_support::storage());
        test_support::save_versions(&repo, 10, &[(0, &[]), (1, &[0]), (2, &[0])], &[0, 1, 2]);
        let by_codec = stats(&repo, &Silent).expect("sound").by_codec;
        let prefix = by_codec.iter().find(|c| c.codec == Codec::Prefix.name()).expect("two deltas");
        assert_eq!((prefix.frames, prefix.raw_bytes), (2, 8000));
        assert!(prefix.stored_bytes < 1000, "{prefix:?}");
    }
}
