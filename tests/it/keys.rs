//! Keys with the real program: where they come from, what they allow, how they are changed, where they must not stand.
//!
//! Keys are stretched with the smallest parameters. What slots withstand stands in `src/repo/key_slots/tests.rs`, changes
//! of keys that are cut off in `src/ops/keys/tests.rs`.

use crate::support::program::{Place, expect};
use crate::support::vault::{Vault, WEAK, data};
use crate::support::{noise, not_run};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// All regular files beneath `folder`.
fn files(folder: &Path) -> Vec<PathBuf> {
    let items = walkdir::WalkDir::new(folder).into_iter().map(|item| item.expect("readable"));
    items.filter(|item| item.file_type().is_file()).map(|item| item.into_path()).collect()
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    memchr::memmem::find(bytes, wanted).is_some()
}

#[test]
fn a_repository_opens_with_its_key_from_a_file_or_a_command_and_with_no_other() {
    let vault = Vault::new();
    vault.backup("admin");
    vault.restore("admin");
    let place = &vault.place;
    let file = place.text("admin.key");
    assert_eq!(fs::metadata(&file).expect("made").permissions().mode() & 0o777, 0o600);
    expect(place.command(&["info", "--key-file", &file]), 0);
    expect(place.command(&["info", "--key-command", &format!("cat {file}")]), 0);
    let mut command = place.command(&["info"]);
    command.env("CKPT_KEY_COMMAND", format!("cat {file}"));
    expect(command, 0);
    // A flag comes before the environment.
    let mut command = place.command(&["info", "--key-file", &file]);
    command.env("CKPT_KEY_FILE", "/nonexistent").env("CKPT_KEY_COMMAND", "false");
    expect(command, 0);

    let (_, none) = expect(place.command(&["snapshots"]), 12);
    for way in ["CKPT_KEY_FILE", "CKPT_KEY_COMMAND", "terminal"] {
        assert!(none.contains(way), "{none}");
    }
    fs::write(place.path("wrong.key"), "wrong\n").expect("a file");
    fs::set_permissions(place.path("wrong.key"), fs::Permissions::from_mode(0o600)).expect("ours");
    for arguments in [&["snapshots"][..], &["backup", &place.text("data")], &["prune"], &["key", "list"]] {
        let said = vault.fail("wrong", 12, arguments);
        assert!(said.contains("the one key slot") && said.contains("ckpt key"), "{said}");
        assert!(!said.contains("can be read by others"), "{said}");
    }
    fs::set_permissions(place.path("wrong.key"), fs::Permissions::from_mode(0o644)).expect("ours");
    assert!(vault.fail("wrong", 12, &["info"]).contains("can be read by others"));
    fs::write(place.path("wrong.key"), "\n").expect("a file");
    assert!(vault.fail("wrong", 12, &["info"]).contains("the key is empty"));
    assert!(vault.fail("absent", 12, &["info"]).contains("absent.key"));
    for (command, reason) in [("exit 3", "exit status: 3"), ("true", "the key is empty"), ("yes", "longer than")] {
        let (_, said) = expect(place.command(&["info", "--key-command", command]), 12);
        assert!(said.contains(reason), "{command}: {said}");
    }
    let mut both = place.command(&["info"]);
    both.env("CKPT_KEY_FILE", &file).env("CKPT_KEY_COMMAND", "true");
    expect(both, 2);
    expect(place.command(&["info", "--key-file", &file, "--key-command", "true"]), 2);
}

#[test]
fn a_key_for_a_repository_without_encryption_is_refused() {
    let place = Place::with_repository();
    fs::write(place.path("some.key"), "word").expect("a file");
    let (_, said) = expect(place.command(&["info", "--key-file", &place.text("some.key")]), 12);
    assert!(said.contains("is not encrypted"), "{said}");
    let (_, said) = expect(place.command(&["key", "list"]), 2);
    assert!(said.contains("is not encrypted"), "{said}");
    // Nor does `init` pass over a key in silence.
    let other = place.text("other");
    expect(place.command(&["init", "-r", &other, "--key-file", &place.text("some.key")]), 2);
    assert!(!place.path("other").exists());
    expect(place.command(&["init", "-r", &other, "--generate", &place.text("new.key")]), 2);
    assert!(!place.path("new.key").exists());
    for wrong in [["--kdf-memory", "1M"], ["--kdf-memory", "2G"], ["--kdf-passes", "0"], ["--kdf-passes", "17"]] {
        let key = place.text("some.key");
        expect(place.command(&[&["init", "-r", &other, "--encrypt", "--key-file", &key][..], &wrong].concat()), 2);
        assert!(!place.path("other").exists());
    }
}

#[test]
fn a_key_file_is_never_written_over_another_file() {
    let vault = Vault::new();
    let before = fs::read(vault.place.path("admin.key")).expect("made");
    let file = vault.place.text("admin.key");
    let said = vault.fail("admin", 1, &["key", "add", "--role", "read", "--generate", &file]);
    assert!(said.contains("never written over"), "{said}");
    assert_eq!(fs::read(vault.place.path("admin.key")).expect("kept"), before);
    assert_eq!(vault.slots("admin").len(), 1);
    // Nor is one made by who may not add keys.
    vault.add("read");
    let file = vault.place.text("more.key");
    let said = vault.fail("read", 12, &["key", "add", "--role", "read", "--generate", &file]);
    assert!(said.contains("admin key") && !vault.place.path("more.key").exists(), "{said}");
}

#[test]
fn keys_are_listed_rotated_changed_and_removed() {
    let vault = Vault::new();
    let (read, put) = (vault.add("read"), vault.add("put"));
    vault.backup("put");
    vault.restore("read");
    let slots = vault.slots("admin");
    assert_eq!(slots.len(), 3);
    let of = |id: &str| slots.iter().find(|slot| slot["id"] == id).expect("listed").clone();
    assert_eq!((of(&read)["role"].as_str(), of(&read)["label"].as_str()), (Some("read"), Some("read")));
    assert_eq!((of(&put)["kdf_memory_bytes"].as_u64(), of(&put)["kdf_passes"].as_u64()), (Some(8 << 20), Some(1)));
    assert!(slots.iter().all(|slot| slot["standing"] == "current"));
    assert!(vault.slots("read").iter().all(|slot| slot["standing"].is_null()));
    assert_eq!(data(&vault.succeed("read", &["info", "--json"]))["role"], "read");

    // Who is removed is out at once; what is written after a rotation, others read.
    let copy = vault.place.text("copy");
    assert!(Command::new("cp").args(["-a", &vault.place.text("repository"), &copy]).status().expect("cp").success());
    vault.succeed("admin", &["key", "remove", &put[..8]]);
    assert!(vault.fail("put", 12, &["info"]).contains("the 2 key slots"));
    let rotated = data(&vault.succeed("admin", &["key", "rotate", "--json"]));
    assert_eq!(rotated["renewed"].as_array().expect("a list").len(), 2);
    assert!(rotated["foreign"].as_array().expect("a list").is_empty());
    fs::write(vault.place.path("data/text"), b"another state ".repeat(1000)).expect("a file");
    vault.backup("admin");
    vault.restore("read");
    vault.succeed("read", &["verify", "--read-data"]);
    vault.fail("put", 12, &["info"]);

    let admin = vault.slots("admin").iter().find(|slot| slot["in_use"] == true).expect("in use")["id"].clone();
    let admin = admin.as_str().expect("an id");
    assert!(vault.fail("admin", 2, &["key", "remove", admin]).contains("last one of an admin"));
    let file = vault.place.text("next.key");
    vault.succeed("admin", &["key", "passphrase", "--generate", &file]);
    vault.fail("admin", 12, &["info"]);
    vault.restore("next");
    let said = vault.fail("read", 12, &["key", "rotate"]);
    assert!(said.contains("admin key"), "{said}");
    // The key that was removed still opens the copy that its holder made.
    expect(vault.with("put", &["info", "-r", &copy, "--cache-dir", &vault.place.text("other")]), 0);
}

#[test]
fn every_role_does_what_it_may_and_says_what_it_may_not() {
    let vault = Vault::new();
    for role in ["put", "read", "prune"] {
        vault.add(role);
    }
    let first = vault.backup("admin");
    fs::write(vault.place.path("data/text"), b"another state ".repeat(2000)).expect("a file");
    let second = vault.backup("admin");
    let (data, target) = (vault.place.text("data"), vault.place.text("target"));
    let slot = vault.slots("admin")[0]["id"].as_str().expect("an id").to_owned();
    let (all, adds) = (&["put", "read", "prune", "admin"][..], &["put", "prune", "admin"][..]);
    let (lists, contents) = (&["read", "prune", "admin"][..], &["read", "admin"][..]);
    let (deletes, keys) = (&["prune", "admin"][..], &["admin"][..]);
    let commands: [(&[&str], &[&str]); 21] = [
        (&["snapshots"], all),
        (&["info"], all),
        (&["stats"], all),
        (&["key", "list"], all),
        (&["backup", &data, "--settle", "0"], adds),
        (&["tag", &first, "--add", "kept"], adds),
        (&["ls", &second, "-R"], lists),
        (&["find", "text"], lists),
        (&["diff", &first, &second], lists),
        (&["verify"], lists),
        (&["verify", "--read-data"], contents),
        (&["verify", &second, "--against", &data], contents),
        (&["dump", &second, "text"], contents),
        (&["restore", &second, "--target", &target], contents),
        (&["forget", "--keep-last", "100", "--dry-run"], deletes),
        (&["forget", "--keep-last", "100"], deletes),
        (&["prune", "--dry-run"], deletes),
        (&["prune"], deletes),
        (&["key", "rotate"], keys),
        (&["key", "remove", &slot], &[]),
        (&["key", "add", "--role", "put", "--new-key-command", "echo new"], keys),
    ];
    for role in all {
        for (command, allowed) in &commands {
            // Every role is refused the removal of a slot but an admin's, which must stay here.
            if command[1..].first() == Some(&"remove") && *role == "admin" {
                continue;
            }
            match allowed.contains(role) {
                true => drop(vault.succeed(role, command)),
                false => {
                    let said = vault.fail(role, 12, command);
                    assert!(said.contains("key") && said.contains("hint"), "{role}: {command:?}: {said}");
                }
            }
        }
    }
    // What a role that only adds has stored, another reads.
    fs::write(vault.place.path("data/text"), b"stored by a host ".repeat(2000)).expect("a file");
    vault.backup("put");
    vault.restore("read");
}

#[test]
fn no_secret_is_an_argument_or_is_stored_or_cached() {
    let vault = Vault::new();
    let secret = fs::read_to_string(vault.place.path("admin.key")).expect("made");
    let secret = secret.trim();
    vault.backup("admin");
    let mut command = vault.place.command(&["backup", "--stdin", "stream"]);
    command.env("CKPT_KEY_COMMAND", format!("cat {}", vault.place.text("admin.key")));
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the program starts");
    let mut input = child.stdin.take().expect("a pipe");
    input.write_all(&noise(1, 1 << 20)).expect("it reads");
    let about = |what: &str| fs::read(format!("/proc/{}/{what}", child.id())).expect("it is at work");
    for what in ["cmdline", "environ"] {
        assert!(!contains(&about(what), secret.as_bytes()), "{what}");
    }
    drop(input);
    assert!(child.wait().expect("it ends").success());
    let everything = files(&vault.place.path("repository")).into_iter().chain(files(&vault.place.path("cache")));
    let mut seen = 0;
    let byte = |n: usize| u8::from_str_radix(&secret[2 * n..2 * n + 2], 16).expect("digits");
    let raw: Vec<u8> = (0..secret.len() / 2).map(byte).collect();
    for file in everything {
        let bytes = fs::read(&file).expect("readable");
        let is_clean = !contains(&bytes, secret.as_bytes()) && !contains(&bytes, &raw);
        assert!(is_clean, "{} holds the key", file.display());
        seen += 1;
    }
    assert!(seen > 5, "{seen} files");
}

#[test]
fn garbage_beside_the_key_slots_costs_no_time_and_is_named() {
    let vault = Vault::new();
    let folder = vault.place.path("repository/keys");
    let own = files(&folder).pop().expect("a slot");
    let bytes = fs::read(&own).expect("readable");
    for n in 0..50u32 {
        fs::write(folder.join(format!("{n:032x}.1")), noise(n.into(), 4096)).expect("planted");
        fs::write(folder.join(format!("{:032x}.1", n + 1000)), &bytes).expect("planted");
    }
    let begun = std::time::Instant::now();
    let (_, said) = expect(vault.with("admin", &["info"]), 0);
    assert!(said.contains("keys/") && begun.elapsed().as_secs() < 30, "{:?}", begun.elapsed());
    let text = expect(vault.with("admin", &["verify", "--json"]), 5).0;
    assert!(data(&text)["damage"].as_array().expect("a list").len() >= 100);
}

#[test]
fn a_snapshot_that_vanished_is_noticed_by_a_host_that_has_seen_it() {
    let vault = Vault::new();
    let (first, second) = (vault.backup("admin"), vault.backup("admin"));
    fs::remove_file(vault.place.path("repository/snapshots").join(&first)).expect("removed");
    for _ in 0..2 {
        let (_, said) = expect(vault.with("admin", &["snapshots"]), 0);
        assert!(said.contains(&first) && said.contains("nobody forgot"), "{said}");
        let text = expect(vault.with("admin", &["verify", "--json"]), 5).0;
        assert!(text.contains(&format!("snapshots/{first}")), "{text}");
        // Pruning makes the index anew, and must not make the host forget.
        assert!(vault.fail("admin", 5, &["prune"]).contains(&first));
    }
    vault.succeed("admin", &["forget", &first]);
    let (_, said) = expect(vault.with("admin", &["verify"]), 0);
    assert!(!said.contains(&first), "{said}");
    vault.succeed("admin", &["prune"]);
    assert_eq!(data(&vault.succeed("admin", &["snapshots", "--json"]))["snapshots"][0]["id"], second.as_str());
}

/// Answers questions on a terminal: argument 1 a JSON list of answers, the rest the command. Shows all that the terminal
/// showed, then the exit code.
const TERMINAL: &str = r#"
import json, os, pty, select, sys, termios, time
answers, command = json.loads(sys.argv[1]), sys.argv[2:]
pid, terminal = pty.fork()
if pid == 0:
    os.execvp(command[0], command)
shown, asked, until = b"", 0, time.time() + 60
while time.time() < until:
    ready, _, _ = select.select([terminal], [], [], 0.2)
    if ready:
        try:
            read = os.read(terminal, 4096)
        except OSError:
            break
        if not read:
            break
        shown += read
    echoes = termios.tcgetattr(terminal)[3] & termios.ECHO
    if asked < len(answers) and not echoes and shown.count(b": ") > asked and shown.rstrip(b" ").endswith(b":"):
        os.write(terminal, answers[asked].encode())
        asked += 1
_, status = os.waitpid(pid, 0)
sys.stdout.write(json.dumps([shown.decode(errors="replace"), os.waitstatus_to_exitcode(status), asked]))
"#;

/// What the terminal showed, the exit code, how many questions were answered.
fn on_terminal(command: &Command, answers: &[&str]) -> (String, i64, u64) {
    let mut terminal = Command::new("python3");
    terminal.arg("-c").arg(TERMINAL).arg(serde_json::to_string(answers).expect("text"));
    terminal.arg(command.get_program()).args(command.get_args()).env_clear();
    terminal.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    let output = terminal.output().expect("python3 starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let result: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}{}", String::from_utf8_lossy(&output.stderr)));
    let (shown, code, asked) = (result[0].as_str(), result[1].as_i64(), result[2].as_u64());
    (shown.expect("text").to_owned(), code.expect("a code"), asked.expect("a number"))
}

#[test]
fn on_a_terminal_the_key_is_asked_for_without_showing_it() {
    if !crate::support::program::runs("python3", &["-c", "import pty, termios"]) {
        return not_run("keys asked for on a terminal", "python3 is not there");
    }
    let place = Place::new();
    let init = [&["init", "--encrypt"][..], &WEAK].concat();
    let (shown, code, asked) = on_terminal(&place.command(&init), &["tiger\r", "lion\r"]);
    assert_eq!((code, asked), (2, 2), "{shown}");
    assert!(shown.contains("not the same") && !place.path("repository/config").exists(), "{shown}");
    let (shown, code, asked) =
        on_terminal(&place.command(&init), &["tyger\u{7f}\u{7f}\u{7f}\u{7f}iger\r", "x\u{15}tiger\r"]);
    assert_eq!((code, asked), (0, 2), "{shown}");
    assert!(shown.contains("keep the key") && !shown.contains("iger"), "{shown}");
    let (shown, code, asked) = on_terminal(&place.command(&["info"]), &["wrong\r", "tiger\r"]);
    assert_eq!((code, asked), (0, 2), "{shown}");
    assert!(shown.contains("opens nothing") && shown.contains("admin") && !shown.contains("tiger"), "{shown}");
    let (shown, code, asked) = on_terminal(&place.command(&["info"]), &["a\r", "b\r", "c\r", "tiger\r"]);
    assert_eq!((code, asked), (12, 3), "{shown}");
    let (shown, code, _) = on_terminal(&place.command(&["info"]), &["\u{3}"]);
    assert_eq!(code, 130, "{shown}");
    // The same key from a file.
    fs::write(place.path("same.key"), "tiger\n").expect("a file");
    expect(place.command(&["info", "--key-file", &place.text("same.key")]), 0);
}

#[test]
fn nobody_is_asked_where_nobody_is() {
    let vault = Vault::new();
    // Standard input is content here, and must not be taken for a key.
    let mut command = vault.place.command(&["backup", "--stdin", "stream"]);
    let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let secret = fs::read(vault.place.path("admin.key")).expect("made");
    let _ = child.stdin.take().expect("a pipe").write_all(&secret);
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("text");
    assert_eq!(child.wait().expect("it ends").code(), Some(12), "{said}");
}
