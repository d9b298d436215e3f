//! The data of `key`.

use super::time_text;
use ckpt::ops::keys::{SlotReport, Standing};
use schemars::JsonSchema;
use serde::Serialize;

/// The key slots of a repository.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeyListDocument {
    /// By id.
    pub slots: Vec<KeySlotItem>,
    /// How many objects of slots are damaged.
    pub damaged: u64,
}

/// A slot that was added, removed, or given another secret.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeyDocument {
    /// `added`, `removed` or `changed`.
    pub action: String,
    /// The slot; of a change the one that came in place of the old.
    pub slot: KeySlotItem,
}

/// A rotation of keys.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeyRotateDocument {
    /// The number of the new generation.
    pub generation: u32,
    /// The slots that have it.
    pub renewed: Vec<KeySlotItem>,
    /// The slots that were left as they are, since no admin with the newest keys made them.
    pub foreign: Vec<KeySlotItem>,
}

/// A key slot.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeySlotItem {
    /// Its id.
    pub id: String,
    /// What its key allows: `put`, `read`, `prune` or `admin`.
    pub role: String,
    /// What it is called; empty if it has no label.
    pub label: String,
    /// When it was added.
    pub created: Option<String>,
    /// The memory that Argon2id uses on its secret, in bytes.
    pub kdf_memory_bytes: u64,
    /// The passes over that memory.
    pub kdf_passes: u32,
    /// The lanes of it.
    pub kdf_lanes: u32,
    /// The number of its newest generation of keys.
    pub generation: u32,
    /// Whether this run was opened with it.
    pub in_use: bool,
    /// `current`, `behind` (a rotation that did not end has to renew it) or `foreign` (no admin with the newest keys made
    /// it); null unless an admin key asks.
    pub standing: Option<String>,
}

impl KeySlotItem {
    /// The item of a slot.
    pub fn new(report: &SlotReport) -> KeySlotItem {
        KeySlotItem {
            id: report.id.to_hex(),
            role: report.role.name().to_owned(),
            label: report.label.clone(),
            created: time_text(report.created),
            kdf_memory_bytes: u64::from(report.cost.memory_kib) << 10,
            kdf_passes: report.cost.passes,
            kdf_lanes: report.cost.lanes,
            generation: report.generation,
            in_use: report.is_in_use,
            standing: report.standing.map(|standing| standing_name(standing).to_owned()),
        }
    }
}

/// The word for how a slot stands.
pub fn standing_name(standing: Standing) -> &'static str {
    match standing {
        Standing::Current => "current",
        Standing::Behind => "behind",
        Standing::Foreign => "foreign",
    }
}
