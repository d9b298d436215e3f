//! The program on repositories that lie: checksums and ids are right, and what they say would take all memory, all time, or the
//! terminal. Every command ends within a minute and a gibibyte of address space, with an exit code that fits, and without a panic.

use crate::support::forge::{self, RAW, entry_at, filled, leaf, raw, snapshot_of, whole};
use crate::support::program::{Place, documents};
use crate::support::{not_run, say};
use ckpt::ids::ChunkId;
use ckpt::metadata::FileKind;
use ckpt::repo::document::{self, DocumentKind};
use ckpt::repo::keys::Keys;
use ckpt::repo::names;
use ckpt::repo::pack_table::FrameRecord;
use ckpt::repo::snapshots::Outcome;
use ckpt::repo::stream::StreamRef;
use ckpt::storage::simulated::SimulatedStorage;
use std::fs::{self, File};
use std::process::{Command, Output};

/// Address space of the program, in KiB: code, stacks and the memory it was told to use.
const ADDRESS_KIB_MAX: u64 = 1 << 20;
const SECONDS_MAX: u64 = 60;

/// Runs the program with little memory and time.
fn run(place: &Place, arguments: &[&str]) -> Output {
    let plain = place.command(arguments);
    let mut bounded = Command::new("bash");
    let script = format!("ulimit -v {ADDRESS_KIB_MAX}; exec timeout {SECONDS_MAX} \"$@\"");
    bounded.arg("-c").arg(script).arg("bash").arg(plain.get_program()).args(plain.get_args());
    bounded.env_clear().envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = bounded.stdin(std::process::Stdio::null()).output().expect("bash starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code().unwrap_or_else(|| panic!("{arguments:?} was killed: {said}"));
    assert!(!matches!(code, 124 | 134 | 137), "{arguments:?} ends with {code}: {said}");
    assert!(!said.contains("panicked") && !said.contains("allocation"), "{arguments:?}: {said}");
    output
}

fn place_of(storage: &SimulatedStorage) -> Place {
    let place = Place::new();
    forge::write_to(storage, &place.path("repository"));
    place
}

/// The exit codes of listing, checking, reading, restoring and pruning.
fn codes(storage: &SimulatedStorage) -> [i32; 5] {
    let place = place_of(storage);
    let target = place.text("target");
    let two = ["--threads", "2", "--memory", "64M"];
    [
        vec!["ls", "latest", "-R"],
        vec!["verify"],
        vec!["verify", "--read-data"],
        vec!["restore", "latest", "--target", &target],
        vec!["prune", "--dry-run"],
    ]
    .map(|arguments| run(&place, &[arguments.as_slice(), &two].concat()).status.code().expect("it was not killed"))
}

/// `child` named 4,096 times by a node, that by another, and so on; the nodes are added to the frames.
fn repeated(frames: &mut Vec<(FrameRecord, Vec<u8>)>, (id, bytes): (ChunkId, u64), depth: u8) -> StreamRef {
    let mut stream = StreamRef { root: id, depth: 0, bytes };
    for _ in 0..depth {
        let node = [&stream.root.as_bytes()[..], &stream.bytes.to_le_bytes()].concat().repeat(4096);
        let bytes = stream.bytes.saturating_mul(4096);
        stream = StreamRef { root: ChunkId::of(&node), depth: stream.depth + 1, bytes };
        frames.push(raw(&node));
    }
    stream
}

#[test]
fn frames_that_claim_sixteen_mebibytes_from_twenty_bytes() {
    // A plane of one repeated byte: 16 MiB that are not what the id says.
    let bomb = [&[3, 0, 0, 0][..], &(16u32 << 20).to_le_bytes(), &[2, 1, 0, 0, 0, 7]].concat();
    let mut frames = Vec::new();
    let mut entries = vec![entry_at(b"", FileKind::Directory)];
    for number in 0..40u32 {
        let id = ChunkId::of(&number.to_le_bytes());
        frames.push((FrameRecord::single(id, 16 << 20, bomb.len(), 3).expect("a record"), bomb.clone()));
        let mut file = filled(format!("{number:04}").as_bytes(), b"");
        file.content = Some(StreamRef { root: id, depth: 0, bytes: 16 << 20 });
        file.metadata.size = 16 << 20;
        entries.push(file);
    }
    let list = leaf(&entries);
    frames.push(raw(&list));
    let (storage, _) = forge::repository(&frames, whole(&list));
    assert_eq!(codes(&storage), [0, 0, 5, 5, 0]);
}

#[test]
fn a_few_nodes_that_repeat_one_another() {
    // A file of 4,096 to the power of four chunks.
    let mut frames = vec![raw(b"0123456789abcdef")];
    let content = repeated(&mut frames, (ChunkId::of(b"0123456789abcdef"), 16), 4);
    let mut file = filled(b"huge", b"");
    (file.content, file.metadata.size) = (Some(content), content.bytes);
    let list = leaf(&[entry_at(b"", FileKind::Directory), file]);
    frames.push(raw(&list));
    let (storage, _) = forge::repository(&frames, whole(&list));
    assert_eq!(codes(&storage), [0, 0, 0, 14, 0], "there is no space for four petabytes");
    // The list of files itself, and nodes that cannot be there.
    for (bytes, is_there) in [(0, true), (list.len() as u64, true), (9, true), (list.len() as u64, false)] {
        let mut frames = if is_there { vec![raw(&list)] } else { Vec::new() };
        let tree = repeated(&mut frames, (ChunkId::of(&list), bytes), 5);
        let (storage, _) = forge::repository(&frames, tree);
        let [ls, verify, read, restore, prune] = codes(&storage);
        assert_eq!((ls, restore), (5, 5), "{bytes} {is_there}");
        assert!([verify, read, prune].iter().all(|code| matches!(code, 0 | 5)), "{verify} {read} {prune}");
    }
}

#[test]
fn files_of_all_bits_and_holes_of_a_petabyte() {
    for bytes in [1u64 << 50, 1 << 62, (1 << 63) - 1, 1 << 63, u64::MAX] {
        let node = [&[0; 32][..], &bytes.to_le_bytes()].concat();
        let mut file = filled(b"sparse", b"");
        file.content = Some(StreamRef { root: ChunkId::of(&node), depth: 1, bytes });
        file.metadata.size = bytes;
        let list = leaf(&[entry_at(b"", FileKind::Directory), file]);
        let (storage, _) = forge::repository(&[raw(&node), raw(&list)], whole(&list));
        let [ls, verify, read, restore, prune] = codes(&storage);
        assert_eq!([ls, verify, read, prune], [0; 4], "{bytes}");
        assert!(matches!(restore, 0 | 1 | 5 | 14), "{bytes}: {restore}");
    }
    // A chunk of that length is none.
    let mut file = filled(b"chunk", b"x");
    let bytes = 1u64 << 63;
    file.content = Some(StreamRef { root: ChunkId::of(b"x"), depth: 0, bytes });
    file.metadata.size = bytes;
    let list = leaf(&[entry_at(b"", FileKind::Directory), file]);
    let (storage, _) = forge::repository(&[raw(b"x"), raw(&list)], whole(&list));
    assert!(codes(&storage)[3] != 0);
}

#[test]
fn a_leaf_of_hundreds_of_thousands_of_entries() {
    let count = 200_000u32;
    let mut entries = vec![entry_at(b"", FileKind::Directory)];
    entries.extend((0..count).map(|n| entry_at(format!("{n:07}").as_bytes(), FileKind::Regular)));
    let list = leaf(&entries);
    assert!(list.len() <= 16 << 20, "{}", list.len());
    let (storage, _) = forge::repository(&[raw(&list)], whole(&list));
    let place = place_of(&storage);
    let output = run(&place, &["ls", "latest", "-R"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout.iter().filter(|byte| **byte == b'\n').count() >= count as usize);
    assert_eq!(run(&place, &["verify"]).status.code(), Some(0));
}

#[test]
fn bases_in_rings_and_on_ladders() {
    let id = |number: u32| ChunkId::of(&number.to_le_bytes());
    // Nothing is coded: what matters is who needs whom.
    let frame = [&[5, 0, 0, 1][..], &4u32.to_le_bytes(), &[0; 8]].concat();
    let needing = |number: u32, base: u32| {
        (FrameRecord::delta(id(number), 4, frame.len(), 5, vec![id(base)]).expect("a record"), frame.clone())
    };
    let mut frames: Vec<_> = (0..3).map(|n| needing(n, (n + 1) % 3)).collect();
    frames.extend((100..260).map(|n| needing(n, n + 1)));
    let mut entries = vec![entry_at(b"", FileKind::Directory)];
    for number in [0, 1, 100, 200] {
        let mut file = filled(format!("{number:05}").as_bytes(), b"");
        file.content = Some(StreamRef { root: id(number), depth: 0, bytes: 4 });
        file.metadata.size = 4;
        entries.push(file);
    }
    let list = leaf(&entries);
    frames.push(raw(&list));
    let (storage, _) = forge::repository(&frames, whole(&list));
    let [ls, verify, read, restore, prune] = codes(&storage);
    assert_eq!([ls, verify, read, restore], [0, 5, 5, 5]);
    assert_ne!(prune, 0, "nothing may be deleted where something is missing");
}

/// A repository with one file, for lies beside it.
fn sound() -> SimulatedStorage {
    let list = leaf(&[entry_at(b"", FileKind::Directory), filled(b"file", b"content")]);
    forge::repository(&[raw(b"content"), raw(&list)], whole(&list)).0
}

#[test]
fn documents_that_claim_or_hold_too_much() {
    let storage = sound();
    // Eight million ids of no bytes.
    let many = [&[0xa2, 0, 0, 1, 0x9a, 0, 0x7a, 0x12, 0][..], &vec![0x40; 8_000_000]].concat();
    let list =
        document::seal(&Keys::plain(), DocumentKind::Condemned, &names::condemned_end(1).expect("a name"), &many)
            .expect("not too long");
    storage.insert(names::condemned_end(1).expect("a name"), list);
    let place = place_of(&storage);
    assert_eq!(run(&place, &["ls", "latest"]).status.code(), Some(0));
    assert_eq!(run(&place, &["verify"]).status.code(), Some(5));
    assert_ne!(run(&place, &["prune"]).status.code(), Some(0));
    // Objects of a terabyte of nothing in the place of every kind of document.
    for name in [
        "config/0",
        "condemned/1",
        "history/00000000000000000000000000000001",
        "transactions/00000000000000000000000000000001",
        "audit/1",
        "quarantine/0000000000000000000000000000000000000000000000000000000000000001",
        "forgotten/00000000000000000000000000000001",
        "keys/00000000000000000000000000000001.1",
    ] {
        let path = place.path("repository").join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
        if File::create(&path).and_then(|file| file.set_len(1 << 40)).is_err() {
            return not_run("objects of a terabyte", "the file system has no files of that length");
        }
        assert_eq!(run(&place, &["ls", "latest"]).status.code(), Some(0), "{name}");
        assert_eq!(run(&place, &["verify"]).status.code(), Some(5), "{name}");
    }
}

#[test]
fn objects_of_the_greatest_numbers() {
    for number in [u64::MAX, u64::MAX - 1, i64::MAX as u64, i64::MAX as u64 - 1, i64::MAX as u64 + 1] {
        let storage = sound();
        let place = place_of(&storage);
        let id =
            storage.objects().keys().find_map(|n| names::snapshot_id(names::SNAPSHOTS, n)).expect("there").to_hex();
        let write = |name: String| {
            let path = place.path("repository").join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
            fs::write(path, b"anything").expect("written");
        };
        for name in [format!("audit/{number}"), format!("tags/{id}.{number}"), format!("transactions/{id}.{number}")] {
            write(name);
        }
        assert_eq!(run(&place, &["ls", "latest"]).status.code(), Some(0), "{number}");
        assert_eq!(run(&place, &["verify"]).status.code(), Some(5), "{number}");
        for command in [vec!["tag", &id, "--add", "x"], vec!["audit", "list"], vec!["audit", "verify"], vec!["forget", &id]] {
            run(&place, &command);
        }
        for name in
            [format!("condemned/{number}"), format!("condemned/{number}.{number}"), format!("condemned/1.{number}")]
        {
            write(name);
            run(&place, &["prune"]);
            run(&place, &["verify"]);
        }
    }
}

#[test]
fn records_of_millions_of_objects() {
    let storage = sound();
    // Lists of eight million empty texts and ids.
    let many = |key: u8, item: u8| [&[0xa2, 0, 1, key, 0x9a, 0, 0x7a, 0x12, 0][..], &vec![item; 8_000_000]].concat();
    let pack = names::quarantine(ckpt::ids::PackId::from_bytes([1; 32])).expect("a name");
    let audit = names::audit(1).expect("a name");
    for (kind, name, body) in [
        (DocumentKind::Audit, audit, many(7, 0x60)),
        (DocumentKind::Quarantine, pack, many(1, 0x40)),
        (DocumentKind::Condemned, names::condemned_run(1, 1).expect("a name"), many(4, 0x80)),
    ] {
        storage.insert(name.clone(), document::seal(&Keys::plain(), kind, &name, &body).expect("not too long"));
    }
    let place = place_of(&storage);
    assert_eq!(run(&place, &["ls", "latest"]).status.code(), Some(0));
    assert_eq!(run(&place, &["verify"]).status.code(), Some(5));
    for command in [vec!["audit", "list"], vec!["audit", "verify"], vec!["prune"], vec!["repair", "--dry-run"]] {
        run(&place, &command);
    }
}

#[test]
fn index_objects_and_packs_that_lie_about_lengths() {
    let storage = sound();
    let place = place_of(&storage);
    let objects = storage.objects();
    let index = objects.keys().find(|name| names::index_id(name).is_some()).expect("there").to_string();
    let bytes = fs::read(place.path("repository").join(&index)).expect("there");
    for table_bytes in [u32::MAX, 128 << 20, (128 << 20) + 1, 0] {
        let mut lying = bytes.clone();
        lying[64 + 58..64 + 62].copy_from_slice(&table_bytes.to_le_bytes());
        let path = place.path("repository").join(&index);
        fs::write(&path, &lying).expect("written");
        let cache = place.path("cache");
        let _ = fs::remove_dir_all(&cache);
        assert_eq!(run(&place, &["ls", "latest"]).status.code(), Some(0), "{table_bytes}");
        // Longer than any memory, and nothing in it.
        if File::options().write(true).open(&path).and_then(|file| file.set_len(1 << 40)).is_ok() {
            let _ = fs::remove_dir_all(&cache);
            assert_eq!(run(&place, &["ls", "latest"]).status.code(), Some(0), "{table_bytes}, long");
        }
    }
    fs::write(place.path("repository").join(&index), b"").expect("written");
    let pack = objects.keys().find(|name| names::pack_id(name).is_some()).expect("there").to_string();
    let path = place.path("repository").join(pack);
    File::options().write(true).open(&path).and_then(|file| file.set_len(1 << 40)).expect("a long file");
    // What is right of it is found by its parity, and without that it is lost.
    for code in [0, 5] {
        let _ = fs::remove_dir_all(place.path("cache"));
        assert_eq!(run(&place, &["ls", "latest"]).status.code(), Some(code));
        assert_eq!(run(&place, &["verify"]).status.code(), Some(5));
        let _ = fs::remove_dir_all(place.path("repository/parity"));
    }
}

/// What moves the cursor, changes colours, turns the direction of text, ends a line or is no text.
const HOSTILE: [&[u8]; 7] = [
    b"\x1b[2J\x1b[31m",
    "\u{202e}gpj.exe".as_bytes(),
    b"line\nforged line",
    b"bell\x07\x08\r",
    b"\xff\xfe",
    "\u{9b}31m".as_bytes(),
    "\u{200b}\u{feff}\u{2066}".as_bytes(),
];

#[test]
fn nothing_stored_reaches_the_terminal_unescaped() {
    let mut entries = vec![entry_at(b"", FileKind::Directory)];
    let mut names_sorted = HOSTILE.map(<[u8]>::to_vec);
    names_sorted.sort();
    for name in &names_sorted {
        entries.push(filled(name, b"content"));
    }
    let list = leaf(&entries);
    let text = |n: usize| String::from_utf8_lossy(HOSTILE[n]).into_owned();
    let make = |tree: StreamRef, list: &[u8]| {
        let (storage, saved) = forge::repository_with(&[raw(b"content"), raw(list)], |transaction| {
            let mut snapshot = snapshot_of(transaction, Some(tree));
            (snapshot.host, snapshot.program) = (text(0), text(2));
            snapshot.roots = vec![[b"/data/", HOSTILE[4], HOSTILE[0]].concat()];
            snapshot.tags = [text(1), text(3)].into();
            snapshot.meta = [(text(2), text(5))].into();
            snapshot
        });
        assert!(matches!(Outcome::Saved(Box::new(saved.clone())), Outcome::Saved(_)));
        (storage, saved)
    };
    let (storage, saved) = make(whole(&list), &list);
    let place = place_of(&storage);
    let id = saved.id.to_hex();
    let target = place.text("target");
    let commands: Vec<Vec<&str>> = vec![
        vec!["snapshots"],
        vec!["ls", &id, "-R"],
        vec!["ls", &id, "-l"],
        vec!["find", "*"],
        vec!["stats"],
        vec!["info"],
        vec!["diff", &id, &id],
        vec!["verify"],
        vec!["forget", "--keep-last", "1", "--dry-run"],
        vec!["ls", "tag:absent"],
        vec!["ls", &id, "--tensors"],
        vec!["restore", &id, "--target", &target, "--dry-run"],
        vec!["restore", &id, "--target", &target, "-v"],
        vec!["dump", &id, "nothing"],
        vec!["restore", "latest:x\u{1b}[1m", "--target", &target],
        vec!["tag", &id, "--add", "fine"],
    ];
    let mut checked = 0;
    for command in &commands {
        let output = run(&place, command);
        let shown = [output.stdout, output.stderr].concat();
        let shown = String::from_utf8(shown).unwrap_or_else(|e| panic!("{command:?} writes what is no text: {e}"));
        let is_bad = |c: &char| (c.is_control() && *c != '\n') || "\u{202e}\u{200b}\u{feff}\u{2066}".contains(*c);
        assert_eq!(shown.chars().find(is_bad), None, "{command:?}: {shown:?}");
        assert!(!shown.lines().any(|line| line.starts_with("forged line")), "{command:?}: {shown}");
        checked += 1;
    }
    for command in &commands[..commands.len() - 1] {
        let output = run(&place, &[command.as_slice(), &["--json"]].concat());
        let said = String::from_utf8(output.stdout).unwrap_or_else(|e| panic!("{command:?} --json is no text: {e}"));
        if !said.is_empty() {
            assert!(documents(&said).iter().all(|document| document["schema"] == "ckpt/1"), "{command:?}");
        }
        checked += 1;
    }
    let listed = run(&place, &["ls", &id, "-R", "--json"]);
    let listed = String::from_utf8(listed.stdout).expect("text");
    assert!(listed.contains("\"fffe\""), "the bytes of a name that is no text stand beside it: {listed}");
    assert_eq!(RAW, 1);
    say(&format!("hostile names: {checked} outputs"));
}
