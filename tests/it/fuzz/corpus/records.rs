//! The small records of a repository: their bodies, behind a byte that says which they are.

use super::{Made, joined, made};
use crate::fuzz::targets::held;
use crate::support::runs::now;
use ckpt::ids::{ChunkId, PackId, SnapshotId};
use ckpt::metadata::FileTime;
use ckpt::repo::audit::{self, Action, Actor, AuditHead, AuditRecord};
use ckpt::repo::condemned::{self, Run, RunState, Seen};
use ckpt::repo::document::{self, DocumentKind};
use ckpt::repo::keys::Keys;
use ckpt::repo::records::{self, HistoryRecord, WriterRecord};
use ckpt::repo::{Repo, names, quarantine};
use ckpt::storage::ObjectName;
use ckpt::storage::simulated::SimulatedStorage;
use std::collections::{BTreeMap, HashSet};

pub(super) fn records() -> Vec<Made> {
    let packs = [PackId::from_bytes([1; 32]), PackId::from_bytes([2; 32])];
    let time = FileTime { seconds: 1_700_000_000, nanoseconds: 0 };
    let history = HistoryRecord::new("verify", time, time, "sound", &packs);
    let mut tags = minicbor::Encoder::new(Vec::new());
    tags.map(1).and_then(|e| e.u8(0)?.array(2)?.str("best")?.str("v1")).expect("memory");
    let writer = WriterRecord { host: "h".into(), process: 77, started: 5, boot: "b".into(), signed: Some(6) };
    let (storage, repo) = held::simulated(false);
    let [list, run, end] = condemned_bodies(&storage, &repo, &packs, &writer);
    let forgotten = {
        let head = AuditHead { number: 4, hash: [4; 32] };
        records::create_forgotten(&repo, held::TRANSACTION, now(), head).expect("written");
        body(&storage, DocumentKind::Forgotten, &names::forgotten(held::TRANSACTION).expect("a name"))
    };
    let bad = HashSet::from([ChunkId::of(b"one"), ChunkId::of(b"two")]);
    quarantine::set_aside(&repo, packs[0], Some(&bad), now()).expect("written");
    let quarantine = body(&storage, DocumentKind::Quarantine, &names::quarantine(packs[0]).expect("a name"));
    let bodies = [
        ("transaction", document::encode(&writer).expect("short")),
        ("condemned", list.clone()),
        ("tags", tags.into_writer()),
        ("history", document::encode(&history).expect("short")),
        ("forgotten", forgotten),
        ("audit", audit_body()),
        ("quarantine", quarantine),
        ("condemned-run", run.clone()),
        ("condemned-end", end),
    ];
    let mut all =
        vec![made("condemned", "run", joined(&list, &run)), made("condemned", "found-alone", joined(&list, b""))];
    for (number, (name, body)) in bodies.iter().enumerate() {
        for (seal, what) in [(0, ""), (128, "-sealed")] {
            all.push(made("record", &format!("{name}{what}"), [&[number as u8 | seal][..], body].concat()));
        }
    }
    all
}

fn body(storage: &SimulatedStorage, kind: DocumentKind, name: &ObjectName) -> Vec<u8> {
    let objects = storage.objects();
    document::open(&Keys::plain(), kind, name, &objects[name]).expect("own object").body
}

/// A list, a run at it that waits for two transactions, and an end.
fn condemned_bodies(storage: &SimulatedStorage, repo: &Repo, packs: &[PackId], writer: &WriterRecord) -> [Vec<u8>; 3] {
    condemned::create_list(repo, 1, packs, writer, now()).expect("written");
    let seen = |n: u8| Seen { id: SnapshotId::from_bytes([n; 16]), sign: 3, since: 1_700_000_000 };
    let waiting = Some(vec![seen(5), seen(6)]);
    let run = Run { seconds: 1_700_000_000, collector: writer.clone(), state: RunState::Left, waiting };
    assert_eq!(condemned::append_run(repo, 1, 0, &run).expect("written"), 1);
    condemned::create_end(repo, 1, packs, now()).expect("written");
    [names::condemned(1), names::condemned_run(1, 1), names::condemned_end(1)]
        .map(|name| body(storage, DocumentKind::Condemned, &name.expect("a name")))
}

fn audit_body() -> Vec<u8> {
    let (storage, repo) = held::simulated(false);
    let actor = Actor { host: "h".to_owned(), process: 7, user: 1000 };
    let details = BTreeMap::from([("packs".to_owned(), "2".to_owned()), ("why".to_owned(), "due".to_owned())]);
    let objects = vec!["condemned/1".to_owned(), "condemned/2".to_owned()];
    audit::append(&repo, &actor, &Action { name: "prune", objects, details }, now()).expect("written");
    let body = body(&storage, DocumentKind::Audit, &names::audit(1).expect("a name"));
    document::decode::<AuditRecord>(&body, "own bytes").expect("own bytes");
    body
}
