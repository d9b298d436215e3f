//! The JSON documents of the program: the envelope, and the schema of everything within it.
//!
//! Fields are never omitted: what is unknown is null. Bytes are integers, durations are seconds, times are RFC 3339 in UTC.
//! A path is text, with every byte that is not UTF-8 replaced, beside a companion `..._bytes` that holds the exact bytes in
//! hexadecimal when, and only when, the text is not exact.

mod audit;
mod checkpoints;
mod keys;
mod looks;
mod summaries;
mod tensors;

pub use audit::{AuditDocument, AuditItem, AuditSummary};
pub use checkpoints::CheckpointItem;
pub use keys::{KeyDocument, KeyListDocument, KeyRotateDocument, KeySlotItem, standing_name};
pub use looks::{
    CodecItem, DiffChange, DiffDocument, DiffHead, DiffTail, EntryItem, FindDocument, FindHead, FindMatch, FindTail,
    InfoDocument, InitDocument, ListDocument, ListHead, ListTail, SnapshotItem, SnapshotsDocument, StatsDocument,
    TagDocument,
};
pub use summaries::{
    AgainstSummary, BackupSummary, DamageItem, DamagedFile, DifferenceItem, ForgetSummary, KeptItem, MendedItem,
    PlannedItem, PruneSummary, RepairSummary, RestoreSummary, Summary, VerifySummary,
};
pub use tensors::{
    DiffTensorsDocument, DiffTensorsHead, DiffTensorsTail, ListTensorsDocument, ListTensorsHead, ListTensorsTail,
    PlannedTensorFileItem, RestoreTensorsSummary, TensorChangeItem, TensorFileItem,
};

use ckpt::error::Error;
use ckpt::metadata::FileTime;
use jiff::Timestamp;
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::Serialize;

/// The version of these documents.
const SCHEMA: &str = "ckpt/1";

/// What all documents of one run share.
#[derive(Debug, Clone)]
pub struct Envelope {
    run_id: String,
}

/// A document: what every one carries, and its data by type.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Document {
    /// Always `ckpt/1`; another number once a field changes its meaning.
    schema: Schema,
    /// The same in all documents of one run.
    run_id: String,
    /// When the document was written: RFC 3339 in UTC.
    time: String,
    /// The version of the program.
    version: String,
    /// The type of the document and its data.
    #[serde(flatten)]
    body: Body,
}

/// An error: the last line on stderr of a run that does not end with exit code 0.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ErrorDocument {
    schema: Schema,
    run_id: String,
    time: String,
    version: String,
    /// Always `error`.
    #[serde(rename = "type")]
    kind_of_document: ErrorType,
    /// The exit code of the run.
    code: u8,
    /// A name for the kind of error, such as `no_repository`.
    kind: String,
    /// What failed, on what, and why.
    message: String,
    /// What to do next.
    hint: Option<String>,
}

/// The version of the documents.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
enum Schema {
    #[serde(rename = "ckpt/1")]
    One,
}

/// The type of an error document.
#[derive(Debug, Clone, Copy, Serialize, JsonSchema)]
enum ErrorType {
    #[serde(rename = "error")]
    Error,
}

/// The data of a document, by its type.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(tag = "type", content = "data", rename_all = "snake_case")]
pub enum Body {
    /// `init`: the repository that was created.
    Init(InitDocument),
    /// `snapshots`.
    Snapshots(SnapshotsDocument),
    /// `ls`.
    #[expect(dead_code, reason = "written piece by piece; here for the schema")]
    Ls(ListDocument),
    /// `ls --tensors`.
    #[expect(dead_code, reason = "written piece by piece; here for the schema")]
    LsTensors(ListTensorsDocument),
    /// `diff`.
    #[expect(dead_code, reason = "written piece by piece; here for the schema")]
    Diff(DiffDocument),
    /// `diff --tensors`.
    #[expect(dead_code, reason = "written piece by piece; here for the schema")]
    DiffTensors(DiffTensorsDocument),
    /// `find`.
    #[expect(dead_code, reason = "written piece by piece; here for the schema")]
    Find(FindDocument),
    /// `stats`.
    Stats(StatsDocument),
    /// `info`.
    Info(InfoDocument),
    /// `tag`.
    Tag(TagDocument),
    /// `key list`.
    KeyList(KeyListDocument),
    /// `key add`, `key remove`, `key passphrase`.
    Key(KeyDocument),
    /// `key rotate`.
    KeyRotate(KeyRotateDocument),
    /// `audit list`.
    Audit(AuditDocument),
    /// A file that could not be handled as asked, while a long command runs.
    Problem(ProblemDocument),
    /// The last line of a long command.
    Summary(Summary),
    /// `--progress json`, on stderr.
    Progress(Progress),
    /// `--log-format json`, on stderr.
    Log(Log),
}

/// Every document that this program writes.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(title = "The JSON documents of ckpt")]
#[expect(dead_code, reason = "here for the schema")]
enum AnyDocument {
    /// Data, progress and talk.
    Document(Document),
    /// An error.
    Error(ErrorDocument),
}

/// How far a phase has come.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Progress {
    /// What is being done.
    pub phase: String,
    /// Bytes handled since the phase began.
    pub bytes_done: u64,
    /// Bytes of work in the phase, if known.
    pub bytes_total: Option<u64>,
    /// Files handled since the phase began.
    pub files_done: u64,
    /// Files of work in the phase, if known.
    pub files_total: Option<u64>,
    /// Seconds since the phase began.
    pub seconds_elapsed: f64,
    /// Seconds left at the throughput since the phase began; null while that cannot be told.
    pub eta_seconds: Option<f64>,
}

/// A line of talk.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Log {
    /// `warning`, `info` or `detail`.
    pub level: String,
    /// One sentence.
    pub text: String,
}

/// A file that could not be handled as asked.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ProblemDocument {
    /// The file.
    pub path: String,
    /// Its exact bytes in hexadecimal if they are not UTF-8.
    pub path_bytes: Option<String>,
    /// A name for the kind of error.
    pub kind: String,
    /// What was wrong.
    pub message: String,
}

impl Envelope {
    /// An envelope with a run id of its own.
    pub fn new() -> Envelope {
        let mut id = [0u8; 16];
        // An id of zeros still makes a valid document; ids that must not collide are drawn by the library.
        let _ = getrandom::fill(&mut id);
        Envelope { run_id: hex(&id) }
    }

    /// The document around `body`.
    pub fn document(&self, body: Body) -> Document {
        Document { schema: Schema::One, run_id: self.run_id.clone(), time: now(), version: version(), body }
    }

    /// The text of a document of type `kind` up to the place where its data begin.
    pub fn open_document(&self, kind: &str) -> String {
        let (run_id, time, version) = (&self.run_id, now(), version());
        format!(
            "{{\"schema\":\"{SCHEMA}\",\"run_id\":\"{run_id}\",\"time\":\"{time}\",\"version\":\"{version}\",\
             \"type\":\"{kind}\",\"data\":"
        )
    }
}

impl ErrorDocument {
    /// The document of an error that ends a run with `code`.
    pub fn new(envelope: &Envelope, code: u8, kind: &str, message: &str, hint: Option<&str>) -> Self {
        ErrorDocument {
            schema: Schema::One,
            run_id: envelope.run_id.clone(),
            time: now(),
            version: version(),
            kind_of_document: ErrorType::Error,
            code,
            kind: kind.to_owned(),
            message: message.to_owned(),
            hint: hint.map(str::to_owned),
        }
    }
}

impl ProblemDocument {
    /// The document of a problem with the file at `path`.
    pub fn new(path: &[u8], error: &Error) -> Self {
        let (path, path_bytes) = path_text(path);
        let (_, kind) = super::exit::code_and_name(error.kind());
        ProblemDocument { path, path_bytes, kind: kind.to_owned(), message: error.to_string() }
    }
}

/// The JSON Schema of every document.
pub fn schema() -> serde_json::Value {
    let generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    generator.into_root_schema_for::<AnyDocument>().to_value()
}

/// A path as text, and its bytes in hexadecimal if the text is not exact.
pub fn path_text(path: &[u8]) -> (String, Option<String>) {
    match std::str::from_utf8(path) {
        Ok(text) => (text.to_owned(), None),
        Err(_) => (String::from_utf8_lossy(path).into_owned(), Some(hex(path))),
    }
}

/// A time as RFC 3339 in UTC; none if no calendar here reaches it.
pub fn time_text(time: FileTime) -> Option<String> {
    super::times::instant(time).map(|instant| instant.to_string())
}

fn now() -> String {
    Timestamp::now().to_string()
}

fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::json_text;
    use ckpt::error::Kind;

    fn check(text: &str) {
        let validator = jsonschema::validator_for(&schema()).expect("the schema is one");
        let document: serde_json::Value = serde_json::from_str(text).expect("a document is JSON");
        if let Err(error) = validator.validate(&document) {
            panic!("{error}\n{text}");
        }
    }

    #[test]
    fn documents_match_the_schema() {
        let envelope = Envelope::new();
        let problem = ProblemDocument::new(b"a\xff", &Error::new(Kind::Denied, "no"));
        assert_eq!(problem.path_bytes.as_deref(), Some("61ff"));
        check(&json_text(&envelope.document(Body::Problem(problem))));
        check(&json_text(&envelope.document(Body::Log(Log { level: "warning".to_owned(), text: "x".to_owned() }))));
        check(&json_text(&ErrorDocument::new(&envelope, 10, "no_repository", "none", None)));
        check(&format!("{}{{\"changed\":1}}}}", envelope.open_document("tag")));
    }

    #[test]
    fn the_schema_is_strict_about_types_and_fields() {
        let validator = jsonschema::validator_for(&schema()).expect("the schema is one");
        let envelope = Envelope::new();
        for data in ["{}", "{\"changed\":\"1\"}", "{\"changed\":null}"] {
            let text = format!("{}{data}}}", envelope.open_document("tag"));
            let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert!(!validator.is_valid(&document), "{text}");
        }
        let mut wrong = serde_json::to_value(ErrorDocument::new(&envelope, 1, "failed", "x", None)).expect("JSON");
        wrong.as_object_mut().expect("an object").remove("hint");
        assert!(!validator.is_valid(&wrong), "a null field must not be omitted");
    }
}
