//! The only order in which things are published: the writer's side of the commit fence.
//!
//! 1. `transactions/<id>` is created, then what is condemned is listed, past all caches, and read. Signs of life follow.
//! 2. Packs are written, each durable under its name before its chunks count as stored; then one index object.
//! 3. Every pack that is relied on is looked at again.
//! 4. `snapshots/<id>` is created exclusively. That is the commit: everything before is invisible, everything is durable.
//! 5. `transactions/<id>` is removed and the index of this host is told.
//!
//! A chunk may be coded against others. Such a home counts only if what it needs may be relied on, too, and then all of
//! it is relied on; `reliance` says how, and why chunks never come to need one another in a ring.
//!
//! A prune that runs meanwhile lets be what this run relies on, or takes `snapshots/<id>` itself; then this run has failed.
//!
//! A run that dies anywhere before 4 leaves packs that the next run adopts, and nothing that needs a hand. One that gives
//! up creates `snapshots/<id>` = revoked first, so that nobody waits for it.

use super::condemned::Condemned;
use super::index::Standing;
use super::index_object::IndexWriter;
use super::pack::{self, PackKind, PackSummary, PackWriter};
use super::pack_body::{PackBody, Workshops};
use super::pack_table::FrameRecord;
use super::parity;
use super::records::{self, WriterRecord};
use super::snapshots::{Outcome, Snapshot};
use super::sync::{self, PacksFound};
use super::{Repo, names, quarantine};
use crate::error::{Error, Kind, Result};
use crate::ids::{ChunkId, IndexId, PackId, SnapshotId};
use crate::sabotage::is_planted;
use crate::storage::{self, Published};
use announcement::revoked;
use nowhere::Nowhere;
use reliance::Reliance;
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

mod announcement;
mod nowhere;
mod reliance;

pub use super::pack_body::OPEN_PACK_BYTES;
pub use announcement::{remove_announcement, revoke};

/// Whether a chunk has to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// It is in a pack that may be relied on, or this run is storing it already.
    Known,
    /// The caller is the one to store it.
    New,
}

/// A backup, or a prune's repacking, in progress.
pub struct Transaction<'r> {
    repo: &'r Repo,
    id: SnapshotId,
    /// Packs that must be treated as if they did not exist: condemned, set aside, or found missing when this began.
    absent: HashSet<PackId>,
    /// Packs that were about to be relied on, and whether they are there and of the right length.
    looked_at: Mutex<HashMap<PackId, bool>>,
    state: Mutex<State>,
    /// True if nothing is to be written: what a dry run would store is made and thrown away.
    is_rehearsal: bool,
    writer: Option<WriterRecord>,
    /// The number of the last sign of life.
    signs: Mutex<u64>,
    /// True if packs get parity.
    has_parity: bool,
    workshops: Workshops,
    /// Chunks of earlier runs, if this one asks for most of them.
    standing: OnceLock<Option<Standing>>,
}

#[derive(Default)]
struct State {
    /// Chunks claimed by this run whose pack is not durable yet.
    underway: HashSet<ChunkId>,
    /// Packs of others that this snapshot needs, with the size they should have.
    relied: HashMap<PackId, u64>,
    written: HashSet<PackId>,
    /// Known packs that no index object lists.
    unlisted: HashSet<PackId>,
    sizes: HashMap<PackId, u64>,
    /// What chunks underway may be coded against.
    declared: HashMap<ChunkId, Vec<ChunkId>>,
    /// Chunks underway that others need: they must not be dropped.
    awaited: HashSet<ChunkId>,
    index: Option<IndexWriter>,
}

impl<'r> Transaction<'r> {
    /// Begins: announces the writer, reads what is condemned, looks at what packs there are.
    pub fn begin(repo: &'r Repo, writer: &WriterRecord) -> Result<Transaction<'r>> {
        let transaction = Transaction::new(repo, Some(writer))?;
        let id = transaction.id;
        let early = is_planted("condemned-read-too-early").then(|| Condemned::read_fresh(repo)).transpose()?;
        if records::create_transaction(repo, id, writer)? == Published::AlreadyExists {
            return Err(Error::new(Kind::Failed, format!("transaction {id} exists: the random numbers repeat")));
        }
        // Only after the announcement: a prune that does not see this writer has condemned before, and is seen here.
        let begun = early.map_or_else(|| Condemned::read_fresh(repo), Ok).and_then(|all| transaction.survey(all));
        begun.inspect_err(|_| {
            // Nobody should wait for a run that has not begun; the error matters more.
            let _ = revoke(repo, id, 0);
        })
    }

    /// Begins a dry run: everything is done but nothing is written, and it can only be abandoned.
    pub fn rehearse(repo: &'r Repo) -> Result<Transaction<'r>> {
        Transaction::new(repo, None)?.survey(Condemned::read(repo)?)
    }

    /// Without a writer it is a rehearsal.
    fn new(repo: &'r Repo, writer: Option<&WriterRecord>) -> Result<Transaction<'r>> {
        repo.keys().require_adding()?;
        let mut random = [0u8; 16];
        getrandom::fill(&mut random).map_err(|e| Error::new(Kind::Failed, format!("no random numbers: {e}")))?;
        let id = SnapshotId::from_bytes(random);
        let is_rehearsal = writer.is_none();
        let has_parity = repo.config().parity != 0 && !is_rehearsal;
        Ok(Transaction {
            repo,
            id,
            absent: HashSet::new(),
            looked_at: Mutex::default(),
            state: Mutex::default(),
            is_rehearsal,
            writer: writer.cloned(),
            signs: Mutex::new(0),
            has_parity,
            workshops: Workshops::new(has_parity.then_some(repo.config().pack_bytes.into())),
            standing: OnceLock::new(),
        })
    }

    /// With packs that are written in shorter pieces.
    #[cfg(test)]
    pub(super) fn with_pieces_of(self, bytes: usize) -> Self {
        Transaction { workshops: self.workshops.with_pieces_of(bytes), ..self }
    }

    /// Makes unlisted packs known and marks as absent what is condemned, set aside or missing. How long each is shows when it
    /// is first to be relied on.
    fn survey(mut self, condemned: Condemned) -> Result<Transaction<'r>> {
        let PacksFound { known, present, .. } = sync::unlisted_packs(self.repo, &condemned)?;
        let set_aside: HashSet<PackId> = quarantine::ids(self.repo.storage())?.into_iter().collect();
        let mut vanished = Vec::new();
        let mut state = State::default();
        for known in known {
            let is_present = present.binary_search(&known.id).is_ok();
            let is_missing = !is_present && !is_missing_overlooked();
            if is_missing || condemned.contains(&known.id) || set_aside.contains(&known.id) {
                self.absent.insert(known.id);
            }
            if !known.is_listed {
                state.unlisted.insert(known.id);
                if !is_present {
                    vanished.push(known.id);
                }
            }
            state.sizes.insert(known.id, known.bytes);
        }
        // Restores may have used their rows as long as the files were there.
        let dead = self.repo.index().dead_packs()?;
        vanished.extend(dead.into_iter().filter(|id| present.binary_search(id).is_err()));
        if !vanished.is_empty() {
            self.repo.index().remove_packs(&vanished)?;
        }
        self.state = Mutex::new(state);
        Ok(self)
    }

    /// The id that the snapshot will have.
    pub fn id(&self) -> SnapshotId {
        self.id
    }

    /// The repository written to.
    pub fn repo(&self) -> &'r Repo {
        self.repo
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Decides for each chunk whether the caller has to store it. A chunk is [`Claim::New`] for exactly one caller.
    pub fn claim(&self, ids: &[ChunkId]) -> Result<Vec<Claim>> {
        let mut state = self.lock();
        let reliance = Reliance::of(self, &state, ids, None)?;
        let known: Vec<bool> = ids.iter().map(|&id| reliance.rely(&mut state, id)).collect();
        Ok(ids
            .iter()
            .zip(known)
            .map(|(&id, is_known)| if !is_known && state.underway.insert(id) { Claim::New } else { Claim::Known })
            .collect())
    }

    /// For each chunk, true if it is stored in a pack that may be relied on, or being stored by this run; it is relied on
    /// from now.
    pub fn known(&self, ids: &[ChunkId]) -> Result<Vec<bool>> {
        let mut state = self.lock();
        let reliance = Reliance::of(self, &state, ids, None)?;
        Ok(ids.iter().map(|&id| reliance.rely(&mut state, id)).collect())
    }

    /// For each of `bases`, true if `chunk`, which this run is to store, may be coded against it: it is stored in a pack
    /// that may be relied on, with all that it needs itself, or this run is storing it, and it does not need `chunk`. It is
    /// relied on from now, and it will not come to need `chunk` later, whether the answer is used or not.
    pub fn rely_on_base(&self, chunk: ChunkId, bases: &[ChunkId]) -> Result<Vec<bool>> {
        let mut state = self.lock();
        let reliance = Reliance::of(self, &state, bases, Some(chunk))?;
        let allowed: Vec<bool> = bases.iter().map(|&base| reliance.rely(&mut state, base)).collect();
        let accepted = bases.iter().zip(&allowed).filter(|(_, allowed)| **allowed).map(|(&base, _)| base);
        let accepted: Vec<ChunkId> = accepted.collect();
        let awaited: Vec<ChunkId> = accepted.iter().copied().filter(|base| state.underway.contains(base)).collect();
        state.awaited.extend(awaited);
        state.declared.entry(chunk).or_default().extend(accepted);
        Ok(allowed)
    }

    /// Begins a pack of this transaction.
    pub fn create_pack(&self, kind: PackKind) -> Result<PackWriter> {
        let object = match self.is_rehearsal {
            true => Box::new(Nowhere),
            false => self.repo.storage().create_for(names::PACKS, self.id)?,
        };
        let body = PackBody::new(object, self.workshops.take());
        PackWriter::create(body, self.repo.keys(), self.repo.id(), self.id, kind)
    }

    /// Ends a pack: durable, with its parity, then known to the index of this host and to the index object being written.
    pub fn finish_pack(&self, writer: PackWriter) -> Result<PackSummary> {
        let (summary, mut body) = writer.finish()?;
        if self.has_parity {
            parity::write(self.repo, self.id, summary.id, &mut body)?;
        }
        self.workshops.give(body.into_workshop());
        if self.is_rehearsal {
            return Ok(summary);
        }
        let frames = summary.frames()?;
        self.repo.index().add_packs(std::slice::from_ref(&summary), None)?;
        let mut state = self.lock();
        for (id, _) in frames.iter().flat_map(|f: &FrameRecord| &f.chunks) {
            state.underway.remove(id);
            state.declared.remove(id);
            state.awaited.remove(id);
        }
        state.written.insert(summary.id);
        if state.index.is_none() && !is_planted("index-object-forgotten") {
            state.index = Some(IndexWriter::create(self.repo, self.id)?);
        }
        if let Some(index) = &mut state.index {
            index.append(self.repo.keys(), &summary)?;
        }
        Ok(summary)
    }

    /// Commits `snapshot` under this transaction's id. Every pack is finished by now.
    ///
    /// [`Kind::Busy`] if a prune has revoked this transaction: nothing is lost, and the backup may be run again.
    pub fn commit(self, snapshot: Snapshot) -> Result<Snapshot> {
        self.conclude(&Outcome::Saved(Box::new(snapshot.clone())))?;
        Ok(snapshot)
    }

    /// Ends a prune's repacking: its packs are durable and listed, and no snapshot comes of it.
    pub fn commit_repacked(self) -> Result<()> {
        self.conclude(&Outcome::Repacked)
    }

    fn conclude(self, outcome: &Outcome) -> Result<()> {
        if self.is_rehearsal {
            return Err(Error::new(Kind::Failed, "a dry run cannot be committed"));
        }
        let mut state = std::mem::take(&mut *self.lock());
        if let Some(dropped) = state.awaited.iter().next().filter(|_| !is_planted("awaited-chunk-dropped")) {
            let text = format!("chunk {}, which others need, was never stored", dropped.short());
            return Err(Error::new(Kind::Failed, text));
        }
        is_planted("snapshot-before-index").then(|| self.publish_outcome(outcome)).transpose()?;
        let prepared = self
            .publish_index(state.index.take(), &state.relied, &state.unlisted)
            .and_then(|index| self.check_relied(&state.relied).map(|()| index));
        let index = prepared.map_err(|error| self.reason_for(error))?;
        self.publish_outcome(outcome)?;
        // Committed. What follows makes the next run faster and must not turn success into failure.
        if let Some(index) = index
            && self.list_packs(index, &state).is_ok()
        {
            let _ = self.repo.index().finish_index_object(index);
        }
        if let Ok(object) = outcome.seal(self.repo.keys(), self.id) {
            let _ = self.repo.index().add_snapshot(self.id, &object);
        }
        let _ = remove_announcement(self.repo, self.id, self.last_sign());
        // Last, since it may take a while: nobody waits for this run any more, and killed here it has lost nothing.
        let _ = self.repo.index().merge_recent_if_large();
        Ok(())
    }

    /// Publishes the index object, adopted packs included; none if there is nothing to list.
    fn publish_index(
        &self,
        index: Option<IndexWriter>,
        relied: &HashMap<PackId, u64>,
        unlisted: &HashSet<PackId>,
    ) -> Result<Option<IndexId>> {
        let adopted: Vec<(&PackId, &u64)> = relied.iter().filter(|(id, _)| unlisted.contains(id)).collect();
        if !adopted.is_empty() && !is_planted("adopted-packs-unsynced") {
            // Their writer may have died between naming a pack and making the name durable; what is listed is durable.
            self.repo.storage().sync_folder(names::PACKS)?;
        }
        let mut index = match index {
            None if adopted.is_empty() => return Ok(None),
            None => IndexWriter::create(self.repo, self.id)?,
            Some(index) => index,
        };
        for (&id, &bytes) in adopted.into_iter().filter(|_| !is_planted("adopted-packs-unlisted")) {
            self.complete_parity(id)?;
            index.append(self.repo.keys(), &pack::read_summary(self.repo, id, bytes)?)?;
        }
        let id = IndexId::from_bytes(*self.id.as_bytes());
        index.finish(id)?;
        Ok(Some(id))
    }

    /// Makes the parity of an adopted pack, whose writer may have died before it could.
    fn complete_parity(&self, pack: PackId) -> Result<()> {
        if !self.has_parity || self.repo.storage().size(&names::parity(pack)?)?.is_some() {
            return Ok(());
        }
        match parity::create(self.repo, pack) {
            // Whether adopted packs are sound is for verification to say, which tells more.
            Err(error) if error.kind() == Kind::Damaged => Ok(()),
            other => other,
        }
    }

    fn list_packs(&self, index: IndexId, state: &State) -> Result<()> {
        let adopted = state.relied.keys().filter(|id| state.unlisted.contains(id));
        let packs: Vec<PackId> = state.written.iter().chain(adopted).copied().collect();
        self.repo.index().list_packs(index, &packs)
    }

    fn check_relied(&self, relied: &HashMap<PackId, u64>) -> Result<()> {
        for (&id, &bytes) in relied {
            let found = self.repo.storage().size(&names::pack(id)?)?;
            if found != Some(bytes) && !is_planted("relied-packs-not-looked-at") {
                let state = found.map_or("is gone".to_owned(), |n| format!("has {n} bytes, not {bytes}"));
                return Err(Error::damaged(format!("pack {id}, which this backup relies on, {state}"))
                    .with_hint("run the backup again: it will store the missing content anew"));
            }
        }
        Ok(())
    }

    fn publish_outcome(&self, outcome: &Outcome) -> Result<()> {
        let name = names::snapshot(self.id)?;
        let object = outcome.seal(self.repo.keys(), self.id)?;
        let published = storage::create_new_for(self.repo.storage(), self.id, &name, &object);
        if matches!(published, Ok(Published::Created)) || (is_planted("taken-name-committed") && published.is_ok()) {
            return Ok(());
        }
        // The name is taken, or the answer is unclear: what stands there decides.
        let standing = self.repo.storage().read(&name, super::document::DocumentKind::Snapshot.object_bytes_max());
        match (standing, published) {
            // It was created, and only the answer is unclear: whether it lasts is not known before this.
            (Ok(standing), _) if standing == object && is_planted("unclear-commit-unsynced") => Ok(()),
            (Ok(standing), _) if standing == object => self.repo.storage().sync_folder(names::SNAPSHOTS),
            (Ok(_), _) => Err(revoked()),
            (Err(_), Err(error)) => Err(error),
            (Err(error), Ok(_)) => Err(error),
        }
    }

    /// Why the run failed: whoever revoked it may have taken away what it relies on, and what it was writing.
    pub fn reason_for(&self, error: Error) -> Error {
        if error.kind() != Kind::Interrupted && self.has_ended() { revoked() } else { error }
    }

    /// True if something stands under the name that decides.
    fn has_ended(&self) -> bool {
        names::snapshot(self.id).is_ok_and(|name| matches!(self.repo.storage().size(&name), Ok(Some(_))))
    }

    /// Gives up: the transaction ends without a snapshot, and nobody has to wait for it.
    pub fn abandon(self) -> Result<()> {
        if self.is_rehearsal { Ok(()) } else { revoke(self.repo, self.id, self.last_sign()) }
    }
}

/// A defect for tests: what is missing, or cut short, is relied on.
fn is_missing_overlooked() -> bool {
    is_planted("missing-packs-relied-on")
}

#[cfg(test)]
mod tests;
