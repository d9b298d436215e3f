//! An encrypted repository for the real program, with key files by role.

use super::noise;
use super::program::{Place, documents, expect};
use serde_json::Value;
use std::fs;
use std::process::Command;

/// The cheapest stretching there is.
pub const WEAK: [&str; 4] = ["--kdf-memory", "8M", "--kdf-passes", "1"];

/// An encrypted repository whose admin key lies in `admin.key`.
pub struct Vault {
    pub place: Place,
}

impl Vault {
    /// With some data to back up in the folder `data`.
    pub fn new() -> Vault {
        let vault = Vault { place: Place::new() };
        let file = vault.place.text("admin.key");
        let arguments = [&["init", "--encrypt", "--generate", &file][..], &WEAK].concat();
        expect(vault.place.command(&arguments), 0);
        fs::create_dir_all(vault.place.path("data/sub")).expect("folders");
        fs::write(vault.place.path("data/sub/file"), noise(5, 300_000)).expect("a file");
        fs::write(vault.place.path("data/text"), b"a marker nobody else may read ".repeat(1000)).expect("a file");
        vault
    }

    /// The program with the key in this file.
    pub fn with(&self, key: &str, arguments: &[&str]) -> Command {
        let mut command = self.place.command(arguments);
        command.env("CKPT_KEY_FILE", self.place.path(&format!("{key}.key")));
        command
    }

    /// Runs a command that must succeed; its standard output.
    pub fn succeed(&self, key: &str, arguments: &[&str]) -> String {
        expect(self.with(key, arguments), 0).0
    }

    /// Runs a command that must end with `code`; what it said.
    pub fn fail(&self, key: &str, code: i32, arguments: &[&str]) -> String {
        let (_, err) = expect(self.with(key, arguments), code);
        assert!(!err.is_empty() && !err.contains("panicked"), "{arguments:?}: {err}");
        err
    }

    /// Adds a key of this role in a file of the same name; the id of its slot.
    pub fn add(&self, role: &str) -> String {
        let file = self.place.text(&format!("{role}.key"));
        let text =
            self.succeed("admin", &["key", "add", "--role", role, "--label", role, "--generate", &file, "--json"]);
        data(&text)["slot"]["id"].as_str().expect("an id").to_owned()
    }

    /// Backs the data up; the id of the snapshot.
    pub fn backup(&self, key: &str) -> String {
        let text = self.succeed(key, &["backup", &self.place.text("data"), "--settle", "0", "--json"]);
        data(&text)["snapshot"].as_str().expect("a snapshot").to_owned()
    }

    /// The slots as this key sees them.
    pub fn slots(&self, key: &str) -> Vec<Value> {
        data(&self.succeed(key, &["key", "list", "--json"]))["slots"].as_array().expect("a list").clone()
    }

    /// Restores the newest snapshot and compares it with the data.
    pub fn restore(&self, key: &str) {
        let target = self.place.path("target");
        let _ = fs::remove_dir_all(&target);
        self.succeed(key, &["restore", "latest", "--target", &self.place.text("target")]);
        for name in ["text", "sub/file"] {
            let (a, b) = (fs::read(target.join(name)), fs::read(self.place.path("data").join(name)));
            assert!(a.expect("restored") == b.expect("saved"), "{name}");
        }
    }
}

/// The data of the last document.
pub fn data(text: &str) -> Value {
    documents(text).pop().expect("a document")["data"].clone()
}
