//! Packs that are damaged or missing, could not be mended, and are set aside: `quarantine/<pack id>`.
//!
//! A record deletes nothing and hides nothing from readers: what is sound in the pack is read from it as before. It says
//! two things to others.
//!
//! - *Writers* treat the pack as absent, as they would if it were gone. So they store anew whatever of it they meet, and files
//!   that have not changed since are read again.
//! - *Prune* counts the chunks named here as not being in the pack, and prefers every other home for the rest. Once nothing
//!   needs the pack it goes as any other, by a final list, and its record after it.
//!
//! # Why this does not disturb the fence
//!
//! Whatever a writer does with a pack set aside it may do with any pack: to rely on fewer packs is always allowed. A writer
//! that began before the record relies on the pack as it would have without it; its snapshot needs what is damaged as those
//! before it do, and the next backup stores that again. For prune, a record takes homes away. It can make a prune refuse, or
//! keep another pack, but never delete one that it would have kept: a pack that is condemned because it is set aside goes only
//! if everything live has its home elsewhere. Taking a record away makes the pack an ordinary one, which is done only after
//! its bytes, durable under their name, were compared with that name. So a record may come and go at any time, by several
//! repairs at once, and a crash leaves it there or not.
//!
//! A record whose own bytes are damaged stands for a pack of which nothing can be relied on.

use super::bounded::Chunks;
use super::document::{self, DocumentKind};
use super::{Repo, names};
use crate::error::{Kind, Result};
use crate::ids::{ChunkId, PackId};
use crate::metadata::FileTime;
use crate::storage::Storage;
use minicbor::{Decode, Encode};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// The packs that are set aside.
#[derive(Debug, Default)]
pub struct Quarantine {
    /// For each pack the chunks that are bad in it; none stands for all of them.
    packs: BTreeMap<PackId, Option<BTreeSet<ChunkId>>>,
}

#[derive(Debug, Encode, Decode)]
#[cbor(map)]
struct Record {
    #[n(0)]
    seconds: i64,
    #[n(1)]
    chunks: Option<Chunks>,
}

impl Quarantine {
    /// Reads every record.
    pub fn read(repo: &Repo) -> Result<Quarantine> {
        let mut packs = BTreeMap::new();
        for id in ids(repo.storage())? {
            match read_one(repo, id) {
                Ok(bad) => drop(packs.insert(id, bad)),
                Err(error) if error.kind() == Kind::Damaged => drop(packs.insert(id, None)),
                // Taken away since it was listed.
                Err(error) if error.kind() == Kind::Missing => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Quarantine { packs })
    }

    /// The packs, each with the chunks that are bad in it; none stands for all of them.
    pub fn iter(&self) -> impl Iterator<Item = (&PackId, Option<&BTreeSet<ChunkId>>)> {
        self.packs.iter().map(|(id, bad)| (id, bad.as_ref()))
    }

    /// True if the pack is set aside.
    pub fn contains(&self, pack: &PackId) -> bool {
        self.packs.contains_key(pack)
    }

    /// True if the pack is set aside and nothing in it can be relied on.
    pub fn is_whole(&self, pack: &PackId) -> bool {
        self.packs.get(pack).is_some_and(Option::is_none)
    }

    /// True if the pack is set aside for at least these chunks; none stands for all of them.
    pub fn covers(&self, pack: &PackId, bad: Option<&HashSet<ChunkId>>) -> bool {
        match (self.packs.get(pack), bad) {
            (None, _) => false,
            (Some(None), _) => true,
            (Some(Some(_)), None) => false,
            (Some(Some(known)), Some(bad)) => bad.iter().all(|chunk| known.contains(chunk)),
        }
    }

    /// The chunks that are bad, each with its pack, but for packs that are bad as a whole.
    pub fn chunks(&self) -> impl Iterator<Item = (ChunkId, PackId)> + '_ {
        let partly = self.packs.iter().filter_map(|(id, bad)| Some((id, bad.as_ref()?)));
        partly.flat_map(|(id, bad)| bad.iter().map(move |chunk| (*chunk, *id)))
    }

    /// Keeps those packs for which `is_meant` holds.
    pub fn retain(&mut self, is_meant: impl Fn(&PackId) -> bool) {
        self.packs.retain(|id, _| is_meant(id));
    }
}

/// The packs that are set aside, by the names of their records alone.
pub fn ids(storage: &dyn Storage) -> Result<Vec<PackId>> {
    Ok(storage.list(names::QUARANTINE)?.iter().filter_map(|l| names::quarantine_id(&l.name)).collect())
}

/// The chunks that are bad in the pack; none stands for all of them.
pub fn read_one(repo: &Repo, pack: PackId) -> Result<Option<BTreeSet<ChunkId>>> {
    let name = names::quarantine(pack)?;
    let record: Record = document::decode(
        &document::read(repo.storage(), repo.keys(), DocumentKind::Quarantine, &name)?.body,
        name.as_str(),
    )?;
    Ok(record.chunks.map(|chunks| chunks.0.into_iter().collect()))
}

/// Sets a pack aside, durably; `bad` are the chunks that are bad in it, none stands for all of them. What an earlier record
/// said of the same pack is replaced: the newest look at it counts.
pub fn set_aside(repo: &Repo, pack: PackId, bad: Option<&HashSet<ChunkId>>, now: FileTime) -> Result<()> {
    let sorted: Option<BTreeSet<ChunkId>> = bad.map(|bad| bad.iter().copied().collect());
    let chunks = sorted.map(|ids| Chunks(ids.into_iter().collect()));
    let body = document::encode(&Record { seconds: now.seconds, chunks })?;
    let name = names::quarantine(pack)?;
    repo.storage().replace(&name, &document::seal(repo.keys(), DocumentKind::Quarantine, &name, &body)?)
}

/// Makes the pack an ordinary one again; true if it was set aside. The caller has compared its bytes with its name, or it is
/// in a final list.
pub fn take_back(storage: &dyn Storage, pack: PackId) -> Result<bool> {
    storage.delete(&names::quarantine(pack)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repo::test_support::{Node, noise, open, save, storage, time, writer};
    use crate::repo::transaction::{Claim, Transaction};

    #[test]
    fn records_come_back_and_a_damaged_one_stands_for_the_whole_pack() {
        let storage = storage();
        let repo = open(&storage);
        let (one, two, bad) = (PackId::from_bytes([1; 32]), PackId::from_bytes([2; 32]), ChunkId::of(b"bad"));
        let (sound, none) = (ChunkId::of(b"sound"), HashSet::new());
        set_aside(&repo, one, Some(&HashSet::from([bad])), time(5)).expect("written");
        set_aside(&repo, two, None, time(5)).expect("written");
        let read = Quarantine::read(&repo).expect("sound");
        assert_eq!(read.chunks().collect::<Vec<_>>(), [(bad, one)]);
        assert!(!read.is_whole(&one) && read.is_whole(&two) && !read.contains(&PackId::from_bytes([3; 32])));
        assert!(read.covers(&one, Some(&HashSet::from([bad]))) && read.covers(&one, Some(&none)));
        assert!(!read.covers(&one, Some(&HashSet::from([bad, sound]))) && !read.covers(&one, None));
        assert!(read.covers(&two, Some(&HashSet::from([sound]))) && read.covers(&two, None));
        let name = names::quarantine(one).expect("a name");
        assert!(storage.truncate(&name, 20));
        assert!(Quarantine::read(&repo).expect("lists").is_whole(&one));
        set_aside(&repo, one, Some(&none), time(6)).expect("written again");
        assert_eq!(read_one(&repo, one).expect("sound"), Some(BTreeSet::new()));
        assert!(take_back(&storage, one).expect("taken") && !take_back(&storage, one).expect("gone"));
        assert_eq!(ids(&storage).expect("lists"), [two]);
    }

    #[test]
    fn writers_store_again_what_lies_in_a_pack_that_is_set_aside() {
        let storage = storage();
        let content = noise(1, 4096);
        save(&open(&storage), 1, &[("file", Node::File(content.clone()))]);
        let repo = open(&storage);
        let id = ChunkId::of(&content);
        let pack = repo.index().homes(&[id]).expect("an index")[0][0].pack;
        let claims = || {
            let transaction = Transaction::begin(&repo, &writer()).expect("begins");
            let claims = (transaction.known(&[id]).expect("known"), transaction.claim(&[id]).expect("claimed"));
            transaction.abandon().expect("ended");
            claims
        };
        assert_eq!(claims(), (vec![true], vec![Claim::Known]));
        set_aside(&repo, pack, Some(&HashSet::from([id])), time(5)).expect("written");
        assert_eq!(claims(), (vec![false], vec![Claim::New]));
        assert_eq!(repo.read_chunk(id).expect("what is sound is read"), content);
        take_back(&storage, pack).expect("taken");
        assert_eq!(claims(), (vec![true], vec![Claim::Known]));
    }
}
