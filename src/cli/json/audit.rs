//! The documents of `audit`.

use super::time_text;
use ckpt::metadata::FileTime;
use ckpt::repo::audit::AuditRecord;
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;

/// The audit log.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AuditDocument {
    /// Its records, oldest first.
    pub records: Vec<AuditItem>,
    /// How many records could not be read.
    pub damaged: u64,
}

/// A record of the audit log.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AuditItem {
    /// Its place in the log, from 1.
    pub number: u64,
    /// When it was written, right before the action began.
    pub time: Option<String>,
    /// The host that acted.
    pub host: String,
    /// The number of the process there.
    pub process: u32,
    /// The number of the user that it ran as.
    pub user: u32,
    /// What was done: `forget`, `prune` ...
    pub action: String,
    /// The objects or ids that it was about.
    pub objects: Vec<String>,
    /// What else there is to say, by name.
    pub details: BTreeMap<String, String>,
    /// The program that acted.
    pub program: String,
}

impl AuditItem {
    /// The document of a record.
    pub fn new(record: &AuditRecord) -> AuditItem {
        AuditItem {
            number: record.number,
            time: time_text(FileTime { seconds: record.seconds, nanoseconds: 0 }),
            host: record.host.clone(),
            process: record.process,
            user: record.user,
            action: record.action.clone(),
            objects: record.objects.clone(),
            details: record.details.clone(),
            program: record.program.clone(),
        }
    }
}

/// What `audit verify` found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AuditSummary {
    /// Records that were read.
    pub records: u64,
    /// Heads of the log in other objects that were looked up in it.
    pub heads_checked: u64,
    /// What is wrong, a sentence each; at most a thousand.
    pub problems: Vec<String>,
    /// How much is wrong.
    pub problems_count: u64,
    /// How long it took.
    pub seconds_elapsed: f64,
}
