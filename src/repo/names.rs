//! Which object stands under which name.
//!
//! The whole layout of a repository is this file; `docs/FORMAT.md`, "Layout", says it in words.

use crate::error::{Error, Result};
use crate::ids::{HistoryId, IndexId, PackId, SlotId, SnapshotId};
use crate::storage::ObjectName;

/// The folder of the three copies of the parameters.
pub const CONFIG: &str = "config";
/// The folder of packs, two levels deep.
pub const PACKS: &str = "packs";
/// The folder of the parity of packs, two levels deep.
pub const PARITY: &str = "parity";
/// The folder of index objects.
pub const INDEX: &str = "index";
/// The folder of open transactions.
pub const TRANSACTIONS: &str = "transactions";
/// The folder of snapshots and of the other ends of transactions.
pub const SNAPSHOTS: &str = "snapshots";
/// The folder of markers of snapshots that are no longer live.
pub const FORGOTTEN: &str = "forgotten";
/// The folder of condemned lists and their ends.
pub const CONDEMNED: &str = "condemned";
/// The folder of changed tags.
pub const TAGS: &str = "tags";
/// The folder of verification records.
pub const HISTORY: &str = "history";
/// The folder of records of packs that are damaged and set aside.
pub const QUARANTINE: &str = "quarantine";

/// The folder of key slots.
pub const KEYS: &str = "keys";

/// The folder of the audit log.
pub const AUDIT: &str = "audit";

/// The greatest number in a name. Whoever counts on from one that is there cannot come to an end of all numbers, and what
/// would go beyond is refused.
const NUMBER_MAX: u64 = i64::MAX as u64;

/// Every folder, in the order in which `init` makes them.
pub const FOLDERS: [&str; 13] = [
    PACKS,
    PARITY,
    INDEX,
    TRANSACTIONS,
    SNAPSHOTS,
    FORGOTTEN,
    CONDEMNED,
    TAGS,
    HISTORY,
    QUARANTINE,
    AUDIT,
    KEYS,
    CONFIG,
];

/// What names under [`TRANSACTIONS`] begin with that writers of `init` race for; a killed one may leave them.
pub const PROBE_PREFIX: &str = "probe-";

/// True for a name that is no object of the repository but what a killed `init` left.
pub fn is_probe(name: &ObjectName) -> bool {
    name.as_str()
        .strip_prefix(TRANSACTIONS)
        .and_then(|rest| rest.strip_prefix('/'))
        .is_some_and(|rest| rest.starts_with(PROBE_PREFIX))
}

/// One of the three copies of the parameters: `config/0`, `config/1`, `config/2`.
pub fn config(copy: u8) -> Result<ObjectName> {
    ObjectName::new(format!("{CONFIG}/{copy}"))
}

/// `packs/<first two digits>/<id>`.
pub fn pack(id: PackId) -> Result<ObjectName> {
    let hex = id.to_hex();
    ObjectName::new(format!("{PACKS}/{}/{hex}", &hex[..2]))
}

/// The id in the name of a pack, if `name` is one.
pub fn pack_id(name: &ObjectName) -> Option<PackId> {
    two_levels(name.as_str().strip_prefix("packs/")?)
}

/// The id of the pack in the name of its parity, if `name` is one.
pub fn parity_id(name: &ObjectName) -> Option<PackId> {
    two_levels(name.as_str().strip_prefix("parity/")?)
}

fn two_levels(rest: &str) -> Option<PackId> {
    let mut parts = rest.split('/');
    let (folder, file) = (parts.next()?, parts.next()?);
    let id = PackId::from_hex(file).ok()?;
    (parts.next().is_none() && file.get(..2) == Some(folder)).then_some(id)
}

/// `parity/<first two digits>/<id>`: the parity of the pack of this id.
pub fn parity(id: PackId) -> Result<ObjectName> {
    let hex = id.to_hex();
    ObjectName::new(format!("{PARITY}/{}/{hex}", &hex[..2]))
}

/// `index/<id>`.
pub fn index(id: IndexId) -> Result<ObjectName> {
    ObjectName::new(format!("{INDEX}/{id}"))
}

/// The id in the name of an index object, if `name` is one.
pub fn index_id(name: &ObjectName) -> Option<IndexId> {
    IndexId::from_hex(name.as_str().strip_prefix("index/")?).ok()
}

/// `transactions/<id>`.
pub fn transaction(id: SnapshotId) -> Result<ObjectName> {
    ObjectName::new(format!("{TRANSACTIONS}/{id}"))
}

/// `transactions/<id>.<k>`: the k-th sign of life of a writer.
pub fn sign_of_life(id: SnapshotId, number: u64) -> Result<ObjectName> {
    ObjectName::new(format!("{TRANSACTIONS}/{id}.{}", possible(number)?))
}

/// The transaction and the number of its sign of life in a name of [`TRANSACTIONS`]; number 0 is the announcement itself.
pub fn announced(name: &ObjectName) -> Option<(SnapshotId, u64)> {
    let rest = name.as_str().strip_prefix("transactions/")?;
    let (id, number) = match rest.split_once('.') {
        None => (rest, 0),
        Some((id, digits)) => (id, number(digits)?),
    };
    Some((SnapshotId::from_hex(id).ok()?, number))
}

/// `snapshots/<id>`: the one name whose exclusive creation decides how a transaction ended.
pub fn snapshot(id: SnapshotId) -> Result<ObjectName> {
    ObjectName::new(format!("{SNAPSHOTS}/{id}"))
}

/// `forgotten/<id>`.
pub fn forgotten(id: SnapshotId) -> Result<ObjectName> {
    ObjectName::new(format!("{FORGOTTEN}/{id}"))
}

/// The snapshot's id in a name of `folder`, if `name` is one.
pub fn snapshot_id(folder: &str, name: &ObjectName) -> Option<SnapshotId> {
    SnapshotId::from_hex(name.as_str().strip_prefix(folder)?.strip_prefix('/')?).ok()
}

/// `condemned/<n>`: what prune number n means to delete.
pub fn condemned(number: u64) -> Result<ObjectName> {
    ObjectName::new(format!("{CONDEMNED}/{}", possible(number)?))
}

/// `condemned/<n>.end`: what prune number n has decided.
pub fn condemned_end(number: u64) -> Result<ObjectName> {
    ObjectName::new(format!("{CONDEMNED}/{}.end", possible(number)?))
}

/// `condemned/<n>.<k>`: what the k-th run at an unfinished list did, or saw.
pub fn condemned_run(number: u64, run: u64) -> Result<ObjectName> {
    ObjectName::new(format!("{CONDEMNED}/{}.{}", possible(number)?, possible(run)?))
}

/// What an object under [`CONDEMNED`] is to its list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CondemnedPart {
    /// The list itself.
    List,
    /// A run at it.
    Run(u64),
    /// Its end.
    End,
}

/// The number of the list in the name of one of its objects and what that is, if `name` is one.
pub fn condemned_part(name: &ObjectName) -> Option<(u64, CondemnedPart)> {
    let rest = name.as_str().strip_prefix("condemned/")?;
    match rest.split_once('.') {
        None => Some((number(rest)?, CondemnedPart::List)),
        Some((list, "end")) => Some((number(list)?, CondemnedPart::End)),
        Some((list, run)) => Some((number(list)?, CondemnedPart::Run(number(run)?))),
    }
}

/// `tags/<snapshot>.<n>`: the tags of the snapshot after change number n.
pub fn tags(id: SnapshotId, change: u64) -> Result<ObjectName> {
    ObjectName::new(format!("{TAGS}/{id}.{}", possible(change)?))
}

/// The snapshot and the number of the change in the name of a tags record, if `name` is one.
pub fn tags_change(name: &ObjectName) -> Option<(SnapshotId, u64)> {
    let (id, change) = name.as_str().strip_prefix("tags/")?.split_once('.')?;
    Some((SnapshotId::from_hex(id).ok()?, number(change)?))
}

/// A number as names have it: decimal, from 1, in the one way in which it is written.
fn number(digits: &str) -> Option<u64> {
    digits.parse().ok().filter(|number: &u64| (1..=NUMBER_MAX).contains(number) && number.to_string() == digits)
}

/// An error if readers would not take the number for one.
fn possible(number: u64) -> Result<u64> {
    if number <= NUMBER_MAX {
        return Ok(number);
    }
    Err(Error::damaged(format!(
        "an object has a number so great that {number} would come next, which no run ever gave"
    ))
    .with_hint("`ckpt verify` names objects that do not belong there; remove them if you know whose they are"))
}

/// `history/<id>`.
pub fn history(id: HistoryId) -> Result<ObjectName> {
    ObjectName::new(format!("{HISTORY}/{id}"))
}

/// The id in the name of a history record, if `name` is one.
pub fn history_id(name: &ObjectName) -> Option<HistoryId> {
    HistoryId::from_hex(name.as_str().strip_prefix("history/")?).ok()
}

/// `quarantine/<pack id>`.
pub fn quarantine(id: PackId) -> Result<ObjectName> {
    ObjectName::new(format!("{QUARANTINE}/{id}"))
}

/// The pack's id in the name of a quarantine record, if `name` is one.
pub fn quarantine_id(name: &ObjectName) -> Option<PackId> {
    PackId::from_hex(name.as_str().strip_prefix("quarantine/")?).ok()
}

/// `keys/<slot>.<n>`: a key slot as of key generation n.
pub fn key_slot(id: SlotId, generation: u32) -> Result<ObjectName> {
    ObjectName::new(format!("{KEYS}/{id}.{generation}"))
}

/// The slot and the generation in the name of a key slot, if `name` is one.
pub fn key_slot_id(name: &ObjectName) -> Option<(SlotId, u32)> {
    let (id, generation) = name.as_str().strip_prefix("keys/")?.split_once('.')?;
    // One object, one name: no leading zeros or signs.
    let number = generation.parse::<u32>().ok().filter(|n| n.to_string() == generation)?;
    Some((SlotId::from_hex(id).ok()?, number))
}

/// `audit/<n>`: record number n of the audit log.
pub fn audit(number: u64) -> Result<ObjectName> {
    ObjectName::new(format!("{AUDIT}/{}", possible(number)?))
}

/// The number in the name of a record of the audit log, if `name` is one.
pub fn audit_number(name: &ObjectName) -> Option<u64> {
    number(name.as_str().strip_prefix("audit/")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_has_one_name() {
        let read = |text: &str| condemned_part(&ObjectName::new(text).expect("a name"));
        assert_eq!(read("condemned/17"), Some((17, CondemnedPart::List)));
        assert_eq!(read("condemned/17.end"), Some((17, CondemnedPart::End)));
        assert_eq!(read("condemned/17.3"), Some((17, CondemnedPart::Run(3))));
        for text in
            ["condemned/017", "condemned/17.03", "condemned/0", "condemned/0.end", "condemned/9223372036854775808"]
        {
            assert_eq!(read(text), None, "{text}");
        }
        let id = SnapshotId::from_bytes([7; 16]);
        let read = |text: String| tags_change(&ObjectName::new(text).expect("a name"));
        assert_eq!(read(format!("tags/{id}.3")), Some((id, 3)));
        assert_eq!(read(format!("tags/{id}.03")), None);
        let read = |text: String| announced(&ObjectName::new(text).expect("a name"));
        assert_eq!(read(format!("transactions/{id}.2")), Some((id, 2)));
        assert_eq!(read(format!("transactions/{id}.02")), None);
        let (last, beyond) = (NUMBER_MAX, NUMBER_MAX + 1);
        assert_eq!(audit_number(&audit(last).expect("a name")), Some(last));
        for name in
            [audit(beyond), condemned(beyond), condemned_run(1, beyond), tags(id, beyond), sign_of_life(id, beyond)]
        {
            assert_eq!(name.expect_err("nobody would read it").kind(), crate::error::Kind::Damaged);
        }
    }
}
