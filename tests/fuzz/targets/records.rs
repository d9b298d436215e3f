//! The small records of a repository, plain and sealed, and the lists of what is condemned.

use super::held::{REPOSITORY, TRANSACTION, bundle, with_repo};
use ckpt::error::Result;
use ckpt::ids::{HistoryId, PackId};
use ckpt::repo::condemned::{self, Condemned};
use ckpt::repo::document::{self, DocumentKind};
use ckpt::repo::keys::Keys;
use ckpt::repo::{Repo, audit, names, quarantine, records};
use ckpt::storage::ObjectName;

/// A byte that chooses among the small records, and by its highest bit whether the repository is encrypted; then the body.
pub fn record(bytes: &[u8]) -> bool {
    let Some((which, body)) = bytes.split_first() else { return false };
    let is_encrypted = *which >= 128;
    let (kind, name) = named(which & 127).expect("short names");
    let keys = if is_encrypted { Keys::opened(bundle(), REPOSITORY) } else { Keys::plain() };
    let Ok(object) = document::seal(&keys, kind, &name, body) else { return false };
    assert_is_bound_to_its_place(&keys, kind, &name, &object, body);
    with_repo(is_encrypted, vec![(name.to_string(), object)], |repo| read(repo, kind, &name, body.len()))
}

const PACK: PackId = PackId::from_bytes([3; 32]);

/// What is read under which name.
fn named(which: u8) -> Result<(DocumentKind, ObjectName)> {
    Ok(match which % 9 {
        0 => (DocumentKind::Transaction, names::transaction(TRANSACTION)?),
        1 => (DocumentKind::Condemned, names::condemned(1)?),
        2 => (DocumentKind::Tags, names::tags(TRANSACTION, 1)?),
        3 => (DocumentKind::History, names::history(HistoryId::from_bytes([1; 16]))?),
        4 => (DocumentKind::Forgotten, names::forgotten(TRANSACTION)?),
        5 => (DocumentKind::Audit, names::audit(1)?),
        6 => (DocumentKind::Quarantine, names::quarantine(PACK)?),
        7 => (DocumentKind::Condemned, names::condemned_run(1, 1)?),
        _ => (DocumentKind::Condemned, names::condemned_end(1)?),
    })
}

fn read(repo: &Repo, kind: DocumentKind, name: &ObjectName, body_bytes: usize) -> bool {
    let known = |ids: usize| assert!(ids * 33 <= body_bytes, "{ids} ids in {body_bytes} bytes");
    match kind {
        DocumentKind::Transaction => records::read_transaction(repo, TRANSACTION).is_ok(),
        DocumentKind::Condemned => condemned::check(repo, name).is_ok(),
        DocumentKind::Tags => records::read_tags(repo, TRANSACTION, 1).is_ok(),
        DocumentKind::Forgotten => records::read_forgotten(repo, TRANSACTION).is_ok(),
        DocumentKind::Audit => audit::read(repo, 1).is_ok_and(|read| {
            assert!(
                read.both_copies_sound && read.record.number == 1 && read.record.objects.len() <= audit::OBJECTS_MAX
            );
            let again = document::encode(&read.record).expect("as long as it was");
            assert_eq!(document::decode::<audit::AuditRecord>(&again, "own bytes").expect("own bytes"), read.record);
            true
        }),
        DocumentKind::Quarantine => quarantine::read_one(repo, PACK).is_ok_and(|bad| {
            known(bad.map_or(0, |bad| bad.len()));
            true
        }),
        _ => records::read_history(repo, HistoryId::from_bytes([1; 16])).is_ok_and(|record| {
            known(record.packs().len());
            true
        }),
    }
}

/// Any body comes back, and nothing else does: not of another kind, under another name, or changed behind a right checksum.
fn assert_is_bound_to_its_place(keys: &Keys, kind: DocumentKind, name: &ObjectName, object: &[u8], body: &[u8]) {
    assert_eq!(document::open(keys, kind, name, object).expect("own object").body, body);
    assert!(document::open(keys, DocumentKind::Config, name, object).is_err());
    if !keys.is_encrypted() {
        return;
    }
    let elsewhere = names::tags(TRANSACTION, 2).expect("a name");
    assert!(document::open(keys, kind, &elsewhere, object).is_err(), "it was sealed for another place");
    assert!(document::open(&Keys::plain(), kind, name, object).is_err());
    let mut changed = object[..object.len() / 2].to_vec();
    let sealed = 16..changed.len() - 32;
    let at = sealed.start + body.iter().fold(body.len(), |n, b| n.wrapping_mul(31) + usize::from(*b)) % sealed.len();
    changed[at] ^= 1;
    let sum = blake3::hash(&changed[..sealed.end]);
    changed[sealed.end..].copy_from_slice(sum.as_bytes());
    changed.extend_from_within(..);
    assert!(document::open(keys, kind, name, &changed).is_err(), "byte {at} was changed");
    // What is sealed and too short to be so.
    let short = &body[..body.len().min(47)];
    let front = [&object[..12], &(short.len() as u32).to_le_bytes(), short].concat();
    let copy = [front.as_slice(), blake3::hash(&front).as_bytes()].concat();
    assert!(document::open(keys, kind, name, &copy.repeat(2)).is_err());
}

/// A list of what is condemned, behind its length, and a run at it.
pub fn condemned(bytes: &[u8]) -> bool {
    let (list, run) = super::split(bytes);
    let object = |name: Result<ObjectName>, body: &[u8]| {
        let name = name.expect("a short name");
        let object = document::seal(&Keys::plain(), DocumentKind::Condemned, &name, body).expect("not too long");
        (name.to_string(), object)
    };
    let objects = vec![object(names::condemned(1), list), object(names::condemned_run(1, 1), run)];
    with_repo(false, objects, |repo| {
        let Ok(condemned) = Condemned::read(repo) else { return false };
        let open = condemned.open.as_ref().expect("a list without an end");
        assert!(open.packs.len() * 33 <= list.len() && open.packs.iter().all(|pack| condemned.contains(pack)));
        assert!(condemned.ends.is_empty() && condemned.seen.len() * 4 <= run.len());
        open.newest.is_some()
    })
}
