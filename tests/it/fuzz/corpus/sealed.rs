//! Objects of an encrypted repository, opened, and the parity of a pack.

use super::{Made, joined, made};
use crate::fuzz::targets::held;
use crate::fuzz::targets::sealed::{COST, SALT, Turn, secret, turn_index, turn_pack};
use crate::support::forge::raw_frame;
use crate::support::noise;
use crate::support::runs::now;
use ckpt::ids::PackId;
use ckpt::repo::document::{self, DocumentKind};
use ckpt::repo::key_slots::{self, NewSlot};
use ckpt::repo::keys::{Keys, Role};
use ckpt::repo::names;
use ckpt::repo::pack::PackKind;
use ckpt::repo::pack_table::FrameRecord;
use ckpt::repo::parity;
use ckpt::repo::records::WriterRecord;
use ckpt::repo::transaction::Transaction;
use ckpt::storage::simulated::SimulatedStorage;

pub(super) fn all() -> Vec<Made> {
    [repository(), keys(), parities()].concat()
}

/// Two packs and their index object.
fn repository() -> Vec<Made> {
    let (storage, repo) = held::simulated(true);
    let transaction = Transaction::begin(&repo, &WriterRecord::of_this_process(now())).expect("begins");
    for (kind, seed) in [(PackKind::Data, 1), (PackKind::Tree, 2)] {
        let mut pack = transaction.create_pack(kind).expect("a pack");
        for number in 0..4 {
            let content = noise(seed * 10 + number, 60 + 10 * number as usize);
            let frame = raw_frame(&content);
            let id = repo.chunk_id(&content);
            let record = FrameRecord::single(id, content.len(), frame.len(), frame[0]).expect("short");
            pack.append(&frame, &[record]).expect("as described");
        }
        transaction.finish_pack(pack).expect("durable");
    }
    transaction.commit_repacked().expect("commits");
    let mut all = Vec::new();
    for (name, mut object) in storage.objects() {
        if names::pack_id(&name).is_some() {
            turn_pack(&mut object, Turn::Open).expect("own pack");
            all.push(made("sealed_pack", &format!("kind-{}", object[11]), object));
        } else if names::index_id(&name).is_some() {
            turn_index(&mut object, Turn::Open);
            object[32..48].fill(7);
            all.push(made("sealed_index", "usual", object));
        }
    }
    all
}

fn keys() -> Vec<Made> {
    let mut all = Vec::new();
    for role in [Role::Put, Role::Read, Role::Admin] {
        let bundle = key_slots::narrowed(&held::bundle(), role);
        all.push(made("key_bundle", role.name(), bundle.encode().expect("short").to_vec()));
        let storage = SimulatedStorage::new();
        let new = NewSlot { role, label: "label".to_owned(), created: now(), salt: SALT, cost: COST };
        let id =
            key_slots::create(&storage, held::REPOSITORY, &held::bundle(), &new, &secret(), None).expect("created");
        let name = names::key_slot(id, 2).expect("a name");
        let object = storage.objects().remove(&name).expect("of the newest generation");
        let stored = document::open(&Keys::plain(), DocumentKind::KeySlot, &name, &object).expect("own object").body;
        let mut decoder = minicbor::Decoder::new(&stored);
        decoder.map().and_then(|_| decoder.u8()).expect("its first field");
        all.push(made("key_slot", role.name(), decoder.bytes().expect("the fields").to_vec()));
    }
    all
}

/// A pack and its parity; and both damaged where they can be mended.
fn parities() -> Vec<Made> {
    let (storage, repo) = held::simulated(false);
    let transaction = Transaction::begin(&repo, &WriterRecord::of_this_process(now())).expect("begins");
    let content = noise(3, 2500);
    let frame = raw_frame(&content);
    let mut pack = transaction.create_pack(PackKind::Data).expect("a pack");
    let record = FrameRecord::single(repo.chunk_id(&content), content.len(), frame.len(), frame[0]).expect("short");
    pack.append(&frame, &[record]).expect("as described");
    let id: PackId = transaction.finish_pack(pack).expect("durable").id;
    parity::create(&repo, id).expect("whole");
    let objects = storage.objects();
    let pack = objects[&names::pack(id).expect("a name")].clone();
    let parity = objects[&names::parity(id).expect("a name")].clone();
    let mut rotten = pack.clone();
    [100, 2000].into_iter().for_each(|at| rotten[at] ^= 1);
    let mut torn = parity.clone();
    torn[0] ^= 1;
    vec![
        made("parity", "whole", joined(&pack, &parity)),
        made("parity", "rotten", joined(&rotten, &parity)),
        made("parity", "cut", joined(&pack[..pack.len() - 70], &parity)),
        made("parity", "torn", joined(&pack, &torn)),
    ]
}
