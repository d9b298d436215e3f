//! A storage in memory that plays the faults of real ones: crashes, power cuts, errors, rot.
//!
//! It keeps the promises of [`Storage`] and nothing more. Publishing goes through the steps of a file system (write, sync,
//! name, sync the folder), and what a power cut may take is exactly what no sync has covered:
//!
//! * an object that has its name but whose folder was not synced stays, vanishes, or is a temporary file again;
//! * a deletion whose folder was not synced is undone or not;
//! * an object that has taken the place of a durable one, and whose folder was not synced, is there or the old one is;
//! * a temporary file vanishes, or stays, torn at any of the usual lengths if it was not synced.
//!
//! Every operation, and every step within one, is one [`Call`] of a log and one number of the host that made it. A crash
//! at a number lets neither that step nor a later one happen; that the step happened and nothing after it is the crash at
//! the next number. All hosts of one memory see each other's names at once, durable or not.
//!
//! A time without a clock: an unfinished object without a known owner has stood for long if an earlier
//! [`Storage::delete_abandoned`] has met it, unchanged since.
//!
//! It holds its users to the commit fence (`docs/FORMAT.md`, "Write order"): a deletion that the fence forbids is a panic,
//! so that every simulation checks it.
//!
//! Everything follows from the calls and the seeds. Deliberately not here: time, stale listings, lost folders.

mod memory;
mod writer;

use crate::bytes::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::ids::SnapshotId;
use crate::storage::{Listed, ObjectName, ObjectWriter, Owner, Storage, check_folder};
use memory::{Host, Memory, Script, Stored, Temporary};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use writer::SimulatedWriter;

/// One host's access to a simulated storage. Clones are the same host.
#[derive(Clone)]
pub struct SimulatedStorage {
    memory: Arc<Mutex<Memory>>,
    host: usize,
}

/// What a host asked of the storage, or a step of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Begins an object; the name is its folder.
    Create,
    /// Publishing, first step: the bytes go into the temporary file.
    Write,
    /// Publishing, second step: the bytes become durable.
    Sync,
    /// Publishing, third step: the object gets its name, unless that is taken.
    Name,
    /// The names in a folder become durable: the last step of publishing and of deleting, or an operation of its own.
    SyncFolder,
    /// [`Storage::read`].
    Read,
    /// [`Storage::read_range`].
    ReadRange,
    /// [`Storage::list`]; the name is the folder.
    List,
    /// [`Storage::size`].
    Size,
    /// The first step of deleting.
    Delete,
    /// [`Storage::delete_abandoned`]; without a name.
    DeleteAbandoned,
}

/// A step that a host began, whether it succeeded or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which host, counted from 0.
    pub host: usize,
    /// What it did.
    pub operation: Operation,
    /// To which object or folder.
    pub name: String,
    /// How many bytes it moved, or asked for; 0 where none are.
    pub bytes: u64,
}

/// What goes wrong at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing happens, and an error of this kind is reported.
    Error(Kind),
    /// It happens, and an error of this kind is reported all the same.
    Ambiguous(Kind),
    /// A write that keeps only so many bytes and reports success. Changes no other step.
    Short(u64),
}

impl Default for SimulatedStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl SimulatedStorage {
    /// An empty storage with one host.
    pub fn new() -> Self {
        Self::holding(BTreeMap::new())
    }

    /// A storage that durably holds these objects.
    pub fn holding(objects: BTreeMap<ObjectName, Vec<u8>>) -> Self {
        let stored = |bytes| Stored { bytes: Arc::new(bytes), durable: true };
        let objects = objects.into_iter().map(|(name, bytes)| (name, stored(bytes))).collect();
        Self::with_memory(Memory { objects, ..Memory::default() })
    }

    fn with_memory(mut memory: Memory) -> Self {
        memory.hosts = vec![Host::default()];
        SimulatedStorage { memory: Arc::new(Mutex::new(memory)), host: 0 }
    }

    /// Another host, or a new process on one, that uses the same memory: what a killed process leaves, without a power cut.
    pub fn another_host(&self) -> Self {
        let mut memory = self.lock();
        memory.hosts.push(Host::default());
        SimulatedStorage { memory: Arc::clone(&self.memory), host: memory.hosts.len() - 1 }
    }

    /// An independent storage with the same content; cheap, however much it holds. Log, scripts and crashes start anew.
    pub fn copy(&self) -> Self {
        Self::with_memory(self.lock().copy())
    }

    /// What the medium holds after all hosts and the medium itself lost power now; `seed` decides what could go either way.
    pub fn after_power_cut(&self, seed: u64) -> Self {
        Self::with_memory(self.lock().after_power_cut(seed))
    }

    /// This host's number, as in [`Call::host`].
    pub fn host(&self) -> usize {
        self.host
    }

    /// Kills this host at its step of this number, counted from 0: neither that step nor a later one happens.
    pub fn crash_at(&self, step: u64) {
        self.lock().hosts[self.host].crash_at = Some(step);
    }

    /// How many steps this host has begun: the number of the next one.
    pub fn steps(&self) -> u64 {
        self.lock().hosts[self.host].steps
    }

    /// True once a step has met the crash.
    pub fn is_dead(&self) -> bool {
        self.lock().hosts[self.host].is_dead()
    }

    /// Lets `fault` happen to those steps of any host for which `matching` holds, counted from 0 and from now on, whose
    /// number is in `hit`: `0..1` is the first, `2..u64::MAX` every one from the third on.
    pub fn fail(&self, hit: Range<u64>, matching: impl Fn(Operation, &str) -> bool + Send + 'static, fault: Fault) {
        self.lock().scripts.push(Script { matching: Box::new(matching), seen: 0, hit, fault });
    }

    /// Forgets all scripted faults.
    pub fn heal(&self) {
        self.lock().scripts.clear();
    }

    /// Calls `gate` before each step of any host, outside all locks: it may block, and so choose which host goes on.
    pub fn set_gate(&self, gate: impl Fn(&Call) + Send + Sync + 'static) {
        self.lock().gate = Some(Arc::new(gate));
    }

    /// Lets `read` give the content of an object where objects are sealed: without it, what may be deleted could not be told.
    /// Copies of this storage, and what a power cut leaves, keep it.
    pub fn read_lists_with(&self, read: impl Fn(&ObjectName, &[u8]) -> Option<Vec<u8>> + Send + Sync + 'static) {
        self.lock().list_reader = Some(Arc::new(read));
    }

    /// Every step so far, of all hosts.
    pub fn calls(&self) -> Vec<Call> {
        self.lock().calls.clone()
    }

    /// Empties the log; numbers of steps go on.
    pub fn clear_calls(&self) {
        self.lock().calls.clear();
    }

    /// All names, sorted. Like the methods below no step: tests look and meddle unseen.
    pub fn names(&self) -> Vec<ObjectName> {
        self.lock().objects.keys().cloned().collect()
    }

    /// All objects.
    pub fn objects(&self) -> BTreeMap<ObjectName, Vec<u8>> {
        self.lock().objects.iter().map(|(name, stored)| (name.clone(), stored.bytes.to_vec())).collect()
    }

    /// Combines the byte at `offset` with `xor`; false if there is no such byte.
    pub fn corrupt(&self, name: &ObjectName, offset: usize, xor: u8) -> bool {
        self.change(name, |bytes| bytes.get_mut(offset).map(|byte| *byte ^= xor)).flatten().is_some()
    }

    /// Keeps the first `bytes` bytes; false if there is no such object.
    pub fn truncate(&self, name: &ObjectName, bytes: usize) -> bool {
        self.change(name, |content| content.truncate(bytes)).is_some()
    }

    /// Takes the object away; false if it was not there.
    pub fn remove(&self, name: &ObjectName) -> bool {
        self.lock().objects.remove(name).is_some()
    }

    /// Puts an object there, whatever had the name.
    pub fn insert(&self, name: ObjectName, bytes: Vec<u8>) {
        self.lock().objects.insert(name, Stored { bytes: Arc::new(bytes), durable: true });
    }

    fn change<T>(&self, name: &ObjectName, change: impl FnOnce(&mut Vec<u8>) -> T) -> Option<T> {
        self.lock().objects.get_mut(name).map(|stored| change(Arc::make_mut(&mut stored.bytes)))
    }

    fn lock(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one step: crash, log and scripted fault first, then `effect`, which gets the number of bytes to keep.
    fn step<T>(
        &self,
        operation: Operation,
        name: &str,
        bytes: u64,
        effect: impl FnOnce(&mut Memory, u64) -> Result<T>,
    ) -> Result<T> {
        let call = Call { host: self.host, operation, name: name.to_owned(), bytes };
        let gate = self.lock().gate.clone();
        if let Some(gate) = gate {
            gate(&call);
        }
        let mut memory = self.lock();
        memory.hosts[self.host].begin_step()?;
        memory.calls.push(call);
        let reported = |kind| Error::new(kind, format!("{operation:?} of {name}: a scripted fault"));
        match memory.fault(operation, name) {
            None => effect(&mut memory, bytes),
            Some(Fault::Short(kept)) => effect(&mut memory, kept.min(bytes)),
            Some(Fault::Error(kind)) => Err(reported(kind)),
            Some(Fault::Ambiguous(kind)) => {
                effect(&mut memory, bytes)?;
                Err(reported(kind))
            }
        }
    }

    fn begin_object(&self, folder: &str, owner: Option<SnapshotId>) -> Result<SimulatedWriter> {
        check_folder(folder)?;
        let temporary = self.step(Operation::Create, folder, 0, |memory, _| {
            memory.abandon(Temporary { owner, ..Temporary::default() });
            Ok(memory.temporaries_made - 1)
        })?;
        Ok(SimulatedWriter { storage: self.clone(), folder: folder.to_owned(), temporary, bytes: Vec::new() })
    }

    fn sync_names(&self, folder: &str, contains: impl Fn(&str) -> bool) -> Result<()> {
        self.step(Operation::SyncFolder, folder, 0, |memory, _| {
            memory.sync_names(contains);
            Ok(())
        })
    }

    /// The sync of the one directory that `name` lies in.
    fn sync_names_beside(&self, name: &ObjectName) -> Result<()> {
        let folder_of = |name: &str| name.rsplit_once('/').map_or(String::new(), |(folder, _)| folder.to_owned());
        let folder = folder_of(name.as_str());
        self.sync_names(&folder, |other| folder_of(other) == folder)
    }
}

impl Storage for SimulatedStorage {
    fn describe(&self) -> String {
        format!("simulated storage, host {}", self.host)
    }

    fn create(&self, folder: &str) -> Result<Box<dyn ObjectWriter>> {
        Ok(Box::new(self.begin_object(folder, None)?))
    }

    fn create_for(&self, folder: &str, owner: SnapshotId) -> Result<Box<dyn ObjectWriter>> {
        Ok(Box::new(self.begin_object(folder, Some(owner))?))
    }

    fn replace(&self, name: &ObjectName, bytes: &[u8]) -> Result<()> {
        let folder = name.as_str().split('/').next().unwrap_or_default();
        let mut writer = self.begin_object(folder, None)?;
        writer.write(bytes)?;
        writer.place(name, true)?;
        Ok(())
    }

    fn read(&self, name: &ObjectName, bytes_max: u64) -> Result<Vec<u8>> {
        self.step(Operation::Read, name.as_str(), bytes_max, |memory, _| {
            let bytes = memory.bytes_of(name)?;
            if bytes.len() as u64 > bytes_max {
                return Err(Error::damaged(format!(
                    "{name} holds {} bytes, at most {bytes_max} are possible",
                    bytes.len()
                )));
            }
            Ok(bytes.to_vec())
        })
    }

    fn read_range(&self, name: &ObjectName, range: ByteRange, into: &mut Vec<u8>) -> Result<()> {
        self.step(Operation::ReadRange, name.as_str(), range.len(), |memory, _| {
            let bytes = memory.bytes_of(name)?;
            let index = |at| usize::try_from(at).unwrap_or(usize::MAX);
            let found = bytes.get(index(range.offset())..index(range.end())).ok_or_else(|| {
                Error::damaged(format!("{name} ends at byte {}, not {} or later", bytes.len(), range.end()))
            })?;
            into.extend_from_slice(found);
            Ok(())
        })
    }

    fn list(&self, folder: &str) -> Result<Vec<Listed>> {
        check_folder(folder)?;
        self.step(Operation::List, folder, 0, |memory, _| {
            let in_folder = |name: &ObjectName| name.as_str().split('/').next() == Some(folder);
            let listed = |(name, stored): (&ObjectName, &Stored)| Listed {
                name: name.clone(),
                bytes: stored.bytes.len() as u64,
            };
            Ok(memory.objects.iter().filter(|(name, _)| in_folder(name)).map(listed).collect())
        })
    }

    fn size(&self, name: &ObjectName) -> Result<Option<u64>> {
        self.step(Operation::Size, name.as_str(), 0, |memory, _| {
            Ok(memory.objects.get(name).map(|stored| stored.bytes.len() as u64))
        })
    }

    fn delete(&self, name: &ObjectName) -> Result<bool> {
        let existed = self.step(Operation::Delete, name.as_str(), 0, |memory, _| {
            memory.check_fence(name);
            let Some(stored) = memory.objects.remove(name) else { return Ok(false) };
            // An older content whose removal is not durable either would be the one to come back.
            memory.undone_by_power_cut.entry(name.clone()).or_insert(stored.bytes);
            Ok(true)
        })?;
        self.sync_names_beside(name)?;
        Ok(existed)
    }

    fn sync_folder(&self, folder: &str) -> Result<()> {
        check_folder(folder)?;
        self.sync_names(folder, |name| name.split('/').next() == Some(folder))
    }

    fn delete_abandoned(&self, owner: &mut dyn FnMut(SnapshotId) -> Result<Owner>) -> Result<u64> {
        // Asked outside of the step, for answering takes steps.
        let owners: BTreeSet<SnapshotId> = self.lock().temporaries.values().filter_map(|t| t.owner).collect();
        let states = owners.into_iter().map(|id| Ok((id, owner(id)?))).collect::<Result<BTreeMap<_, _>>>()?;
        self.step(Operation::DeleteAbandoned, "", 0, |memory, _| Ok(memory.delete_abandoned(&states)))
    }
}
