//! Where the corpus comes from: small objects of every kind, as the program and other libraries write them.

mod records;
mod sealed;

use super::targets::held::TRANSACTION;
use super::targets::{ALL, Target};
use crate::support::runs::{self, PACK_BYTES_MIN};
use crate::support::{containers, noise, quick_folder, say, setting};
use ckpt::codec::{Base, Compression, Encoder, Relation};
use ckpt::ids::ChunkId;
use ckpt::metadata::{FileKind, FileTime, Metadata};
use ckpt::repo::document::{self, DocumentKind};
use ckpt::repo::entry::{self, Entry};
use ckpt::repo::keys::Keys;
use ckpt::repo::snapshots::Outcome;
use ckpt::repo::stream::StreamRef;
use ckpt::repo::{checkpoints::CheckpointRecord, names};
use ckpt::storage::simulated::SimulatedStorage;
use std::fs;
use std::path::Path;

/// Target, name and bytes of a seed.
type Made = (&'static str, String, Vec<u8>);

#[test]
fn the_corpus_is_written_when_it_is_asked_for() {
    if setting("CKPT_WRITE_CORPUS", 0) == 0 {
        return;
    }
    let made: Vec<Made> = [files(), frames(), objects(), trees(), typed()].concat();
    for target in ALL {
        let folder = super::folder(target);
        fs::create_dir_all(&folder).expect("a folder");
        for item in fs::read_dir(&folder).expect("there").flatten() {
            if !item.file_name().to_string_lossy().starts_with("found-") {
                fs::remove_file(item.path()).expect("removed");
            }
        }
        assert!(made.iter().any(|(name, ..)| *name == target.name), "nothing was made for {}", target.name);
    }
    for (target, name, bytes) in &made {
        let target: &Target = super::targets::named(target);
        fs::write(super::folder(target).join(name), bytes).expect("written");
    }
    say(&format!("fuzz: {} files written", made.len()));
}

fn made(target: &'static str, name: &str, bytes: impl Into<Vec<u8>>) -> Made {
    (target, name.to_owned(), bytes.into())
}

/// A front behind its length, and what follows.
fn joined(front: &[u8], rest: &[u8]) -> Vec<u8> {
    [&(front.len() as u16).to_le_bytes(), front, rest].concat()
}

fn sample(path: &str) -> Vec<u8> {
    fs::read(containers::folder().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// A sample of the older collection.
fn torch_sample(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/torch");
    fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// The pickle of an archive.
fn pickle_of(archive: &[u8]) -> Vec<u8> {
    let find = |what: &[u8], from: usize| {
        archive[from..].windows(what.len()).position(|window| window == what).map(|at| from + at)
    };
    let name = find(b"data.pkl", 0).expect("an archive of torch");
    let versions = [b"\x80\x02", b"\x80\x04", b"\x80\x05"];
    let begin = versions.iter().filter_map(|mark| find(&mark[..], name)).min().expect("a pickle");
    archive[begin..find(b"PK\x07\x08", begin).expect("its end")].to_vec()
}

fn files() -> Vec<Made> {
    let header = |file: &[u8]| {
        let bytes = u64::from_le_bytes(file[..8].try_into().expect("eight")) as usize;
        file[8..8 + bytes].to_vec()
    };
    let footer = |file: &[u8]| {
        let front = file.len() - 8;
        let bytes = u32::from_le_bytes(file[front..front + 4].try_into().expect("four")) as usize;
        file[front - bytes..front].to_vec()
    };
    let mut all = Vec::new();
    for name in ["integers", "many", "nothing"] {
        let file = sample(&format!("safetensors/{name}.safetensors"));
        if name != "nothing" {
            all.push(made("safetensors_header", name, header(&file)));
        }
        all.push(made("safetensors", name, file));
    }
    all.push(made("gguf", "model", &sample("gguf/model.gguf")[..6000]));
    for name in ["counts", "columns", "half", "scalar", "big_endian"] {
        let file = sample(&format!("numpy/{name}.npy"));
        all.push(made("npy_header", name, &file[10..128]));
        all.push(made("npy", name, file));
    }
    let structured = b"{'descr': [('a', '<f4', (2,)), ('b', '|u1')], 'fortran_order': False, 'shape': (200,), }\n";
    all.push(made("npy_header", "structured", structured.as_slice()));
    all.push(made("npz", "stored", torch_sample("arrays.npz")));
    all.push(made("npz", "found-compressed", sample("numpy/compressed.npz")));
    for name in ["lone.pt", "protocol_5.pt", "script.pt", "module.pt"] {
        all.push(made("torch", name, torch_sample(name)));
    }
    all.push(made("torch", "nested", sample("torch/nested.ckpt")));
    for name in ["lone.pt", "protocol_5.pt", "types.pt", "checkpoint.ckpt"] {
        all.push(made("pickle", name, pickle_of(&torch_sample(name))));
    }
    let metadata = torch_sample("dcp/.metadata");
    all.push(made("pickle", "metadata", metadata.clone()));
    let items = torch_sample("dcp/__0_0.distcp");
    all.push(made("dcp", "items", joined(&metadata, &items[..items.len().min(12_000)])));
    all.push(made("dcp", "alone", joined(b"", &torch_sample("lone.pt"))));
    for name in ["zstd", "snappy"] {
        all.push(made("parquet_footer", name, footer(&sample(&format!("parquet/{name}.parquet")))));
    }
    all.push(made("parquet", "zstd", sample("parquet/zstd.parquet")));
    all.extend(checkpoints(&metadata));
    all
}

fn checkpoints(metadata: &[u8]) -> Vec<Made> {
    let file = |name: u8, content: &[u8]| [&[name][..], &joined(content, b"")].concat();
    let weights = sample("safetensors/integers.safetensors");
    let index = br#"{"metadata":{"total_size":9},"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#;
    let trainer = [
        file(0, index),
        file(1, &weights),
        file(2, &weights),
        file(3, br#"{"epoch":1.0,"global_step":2,"log_history":[{"loss":0.5}]}"#),
        file(6, &torch_sample("lone.pt")),
    ];
    let distributed = [file(7, metadata), file(8, &[0; 200]), file(11, &torch_sample("lone.pt")), file(12, b"{}")];
    let weights_alone = [file(4, b"{}"), file(5, &torch_sample("lone.pt")), file(13, &torch_sample("lone.pt"))];
    vec![
        made("checkpoint_folder", "trainer", trainer.concat()),
        made("checkpoint_folder", "found-distributed", distributed.concat()),
        made("checkpoint_folder", "weights", weights_alone.concat()),
        made("pointer", "deepspeed", joined(b"latest", b"global_step200\n")),
        made("pointer", "megatron", joined(b"latest_checkpointed_iteration.txt", b"0000200")),
    ]
}

/// Small contents of every kind that a codec is for, and what they are coded against.
fn frames() -> Vec<Made> {
    let mut encoder = Encoder::new(Compression::Auto).expect("an encoder");
    let words = |seed: u64, scale: f32| -> Vec<u8> {
        let floats = noise(seed, 3000).into_iter().map(|b| (f32::from(b) - 127.0) * scale);
        floats.flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect()
    };
    let text: Vec<u8> = (0..200u32).flat_map(|n| format!("line {} of {}\n", n, n * n).into_bytes()).collect();
    let few: Vec<u8> =
        noise(4, 4000).into_iter().flat_map(|b| [[0u8, 1], [7, 9], [3, 3], [250, 4]][usize::from(b % 4)]).collect();
    let plain = [
        ("noise", noise(5, 200)),
        ("floats", words(1, 0.01)),
        ("text", text.clone()),
        ("few", few),
        ("zeros", vec![0; 5000]),
    ];
    let mut all = Vec::new();
    for (name, content) in plain {
        let mut frame = Vec::new();
        encoder.encode(&content, &mut frame).expect("coded");
        all.push(made("frame", name, frame));
    }
    let mut later = words(1, 0.01);
    later.iter_mut().step_by(97).for_each(|byte| *byte ^= 1);
    let longer = [&text[..900], b"something else", &text[900..]].concat();
    let float = Relation::Words { width_log2: 1, is_float: true };
    let bits = Relation::Words { width_log2: 0, is_float: false };
    for (name, base, content, relation) in [
        ("floats", words(1, 0.01), later.clone(), float),
        ("bytes", words(1, 0.01), later, bits),
        ("text", text, longer, Relation::Text),
    ] {
        let mut frame = Vec::new();
        let base_of = Base { content: &base, chunks: 1, relation, stored_bytes_max: usize::MAX };
        encoder.encode_against(&content, &base_of, &mut frame).expect("coded");
        all.push(made("frame_with_base", name, joined(&base, &frame)));
    }
    all
}

/// Objects of a small repository, with the ids that the targets expect.
fn objects() -> Vec<Made> {
    let folder = quick_folder();
    fs::write(folder.path().join("small"), noise(1, 900)).expect("a file");
    fs::write(folder.path().join("text"), b"text\n".repeat(400)).expect("a file");
    let storage = runs::simulated(PACK_BYTES_MIN);
    let repo = runs::open(&storage).expect("opens");
    let mut saved = runs::save(&repo, folder.path());
    saved.id = TRANSACTION;
    saved.roots = vec![b"/data/run".to_vec()];
    saved.meta.insert("note".to_owned(), "value".to_owned());
    saved.checkpoints = vec![CheckpointRecord {
        root: 0,
        path: b"checkpoint-5".to_vec(),
        step: Some(5),
        framework: "hf-trainer".to_owned(),
        shards: 2,
        tensors: 30,
        bytes: 4000,
        unfinished: Some("a shard is not there".to_owned()),
    }];
    let name = names::snapshot(TRANSACTION).expect("a name");
    let body = |kind, object: &[u8]| document::open(&Keys::plain(), kind, &name, object).expect("own object").body;
    let snapshot = Outcome::Saved(Box::new(saved)).seal(&Keys::plain(), TRANSACTION).expect("short");
    let revoked = Outcome::Revoked.seal(&Keys::plain(), TRANSACTION).expect("short");
    let config = storage.objects().remove(&names::config(0).expect("a name")).expect("there");
    let mut all = vec![
        made("document", "config", config.clone()),
        made("document", "snapshot", snapshot.clone()),
        made("config", "usual", body(DocumentKind::Config, &config)),
        made("snapshot", "saved", body(DocumentKind::Snapshot, &snapshot)),
        made("snapshot", "revoked", body(DocumentKind::Snapshot, &revoked)),
    ];
    all.extend(records::records());
    all.extend(sealed::all());
    all.extend(packs(&storage));
    all.push(made("object_name", "pack", format!("packs/ab/{}", "ab".repeat(32))));
    all.push(made("object_name", "tags", format!("tags/{}.12", "0f".repeat(16))));
    all.push(made("object_name", "condemned", "condemned/17.end"));
    all
}

fn packs(storage: &SimulatedStorage) -> Vec<Made> {
    let repository = runs::open(storage).expect("opens").id();
    let mut all = Vec::new();
    for (name, mut object) in storage.objects() {
        if let Some(id) = names::pack_id(&name) {
            let summary = ckpt::repo::pack::summary_of(&Keys::plain(), &object, id, repository).expect("sound");
            object[16..32].fill(9);
            all.push(made("pack_table", &format!("kind-{}", summary.kind.code()), summary.table));
            all.push(made("pack", &format!("kind-{}", summary.kind.code()), object));
        } else if names::index_id(&name).is_some() {
            object[16..32].fill(9);
            object[32..48].fill(7);
            all.push(made("index_object", "usual", object));
        }
    }
    all
}

fn entry_of(path: &str, kind: FileKind) -> Entry {
    let bytes = if kind == FileKind::Regular { 10 } else { 0 };
    Entry {
        root: 0,
        path: path.as_bytes().to_vec(),
        metadata: Metadata {
            mode: 0o644,
            uid: 1,
            gid: 2,
            size: bytes,
            mtime: FileTime { seconds: -5, nanoseconds: 999_999_999 },
            ctime: FileTime { seconds: 1, nanoseconds: 2 },
            inode: 77,
            link_group: Some((1, 2)),
            xattrs: vec![(b"user.a".to_vec(), vec![0, 255])],
            kind,
        },
        content: (bytes > 0).then(|| StreamRef { root: ChunkId::of(path.as_bytes()), depth: 0, bytes }),
        changed_while_read: true,
    }
}

fn trees() -> Vec<Made> {
    let leaf = |names: &[&str]| {
        let mut leaf = Vec::new();
        for name in names {
            let kind = match name.len() {
                1 => FileKind::Directory,
                2 => FileKind::Symlink { target: b"\xff/x".to_vec() },
                3 => FileKind::CharDevice { rdev: 0x103 },
                _ => FileKind::Regular,
            };
            entry::append(&entry_of(name, kind), &mut leaf).expect("short");
        }
        leaf
    };
    // An id names a chunk by its first byte.
    let node = |children: &[(u8, usize)]| -> Vec<u8> {
        let record = |(id, bytes): &(u8, usize)| [&[*id; 32][..], &(*bytes as u64).to_le_bytes()].concat();
        children.iter().flat_map(record).collect()
    };
    let (one, two, three) = (leaf(&["a", "a/bc"]), leaf(&["e.1", "file"]), leaf(&["x", "xy", "xyz", "xyz1"]));
    let low = node(&[(2, one.len()), (3, two.len())]);
    let top = node(&[(1, one.len() + two.len()), (4, one.len() + two.len())]);
    let high = node(&[(3, three.len()), (4, two.len())]);
    let stream = |depth: u8, bytes: usize, chunks: &[&[u8]]| {
        let chunks: Vec<u8> = chunks.iter().flat_map(|chunk| joined(chunk, b"")).collect();
        [&[depth][..], &(bytes as u64).to_le_bytes(), &chunks].concat()
    };
    vec![
        made("entry", "kinds", [one.clone(), two.clone(), three.clone()].concat()),
        made("node", "two", low.clone()),
        made("node", "many", low.repeat(40)),
        made("tree", "leaf", stream(0, one.len(), &[&one])),
        made("tree", "node", stream(1, one.len() + two.len(), &[&low, &[], &one, &two])),
        made("tree", "deep", stream(2, 2 * (one.len() + two.len()), &[&top, &low, &one, &two, &high])),
        made("tree", "leaves", stream(1, three.len(), &[&node(&[(1, three.len())]), &three])),
    ]
}

fn typed() -> Vec<Made> {
    let lines = |target: &'static str, all: &[&str]| -> Vec<Made> {
        all.iter().enumerate().map(|(n, text)| made(target, &n.to_string(), *text)).collect()
    };
    [
        lines(
            "selector",
            &["latest:a/b", "tag:best:x", "step:12000:sub", "4f1c77", "abcd1234:/data/run", "key=value"][..5],
        ),
        lines("size", &["1.5GiB", "64M", "4096", "200g", "0.25 tb"]),
        lines(
            "time",
            &["2026-11-19 14:00", "2026-11-19T14:00:00+01:00", "1d12h", "yesterday 14:00", "2026-10-25", "1y6mo ago"],
        ),
    ]
    .concat()
}
