//! `ckpt ls`: list the files of a snapshot.

use super::args::{AtArgument, NarrowArguments};
use super::context::Context;
use super::exit::Ending;
use super::json::{CheckpointItem, EntryItem, ListHead, ListTail};
use super::output::DocumentStream;
use super::{render, selectors, tensors};
use ckpt::bytes::ByteCount;
use ckpt::error::Result;
use ckpt::metadata::FileKind;
use ckpt::ops::list::list;
use ckpt::ops::tensors::{Part, TensorFilter};
use ckpt::paths::is_beneath;
use ckpt::repo::checkpoints::CheckpointRecord;
use ckpt::repo::entry::Entry;
use ckpt::repo::paths::resolve_subpath;
use ckpt::repo::snapshots::Snapshot;
use std::collections::HashMap;
use std::ffi::OsString;

/// Options of `ls`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt ls latest
  ckpt ls latest:checkpoint-12000 --long
  ckpt ls tag:best --recursive
  ckpt ls --at 2d :checkpoint-12000
  ckpt ls latest:checkpoint-12000 --tensors
  ckpt ls latest:model.safetensors --tensors --tensor '*.q_proj.*'
  ckpt ls step:12000

Directories end in `/`; behind a checkpoint stands what is known about it. Names with unusual characters are shown with escapes \
such as \\n or \\xff; --json has them exactly.")]
pub struct Arguments {
    /// The snapshot: latest, tag:NAME, step:N or the first digits of an id; `SELECTOR:SUBPATH` lists a part of it
    #[arg(value_name = "SELECTOR", required_unless_present = "at")]
    selector: Option<OsString>,

    #[command(flatten)]
    at: AtArgument,

    #[command(flatten)]
    narrow: NarrowArguments,

    /// List what is in directories too
    #[arg(long, short = 'R')]
    recursive: bool,

    /// Show permissions, owner, size and time
    #[arg(long, short)]
    long: bool,

    /// List the tensors in files instead: type, shape, bytes, bytes in the repository, codec
    #[arg(long, conflicts_with_all = ["recursive", "long"])]
    tensors: bool,

    /// Only tensors whose name matches; `*` matches dots too; may be given several times
    #[arg(long, value_name = "GLOB", requires = "tensors")]
    tensor: Vec<String>,
}

/// Lists the files.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    let narrow = selectors::narrow(&arguments.narrow)?;
    let wanted = selectors::wanted(context, arguments.selector.as_deref(), &arguments.at)?;
    let filter = TensorFilter::new(&arguments.tensor)?;
    let repo = context.open()?;
    let snapshot = &wanted.find(&repo.snapshots(), &narrow)?;
    let subpath = wanted.part(snapshot, &narrow)?;
    let subpath = subpath.as_deref();
    if arguments.tensors {
        return tensors::list(context, &repo, Part { snapshot, subpath }, &filter);
    }
    let output = &context.output;
    let listed = resolve_subpath(snapshot, subpath.unwrap_or_default()).unwrap_or_default();
    let is_listed = |record: &&CheckpointRecord| {
        let is_in = |(root, path): &(u32, Vec<u8>)| {
            record.root == *root && (is_beneath(&record.path, path) || is_beneath(path, &record.path))
        };
        listed.iter().any(is_in)
    };
    let checkpoints: Vec<&CheckpointRecord> = snapshot.checkpoints.iter().filter(is_listed).collect();
    let report = if output.manners.json {
        let items = checkpoints.iter().map(|record| CheckpointItem::new(snapshot, record));
        let head = ListHead { snapshot: snapshot.id.to_hex(), checkpoints: items.collect() };
        let mut stream = DocumentStream::begin(output, "ls", &head, "entries")?;
        let report = list(&repo, snapshot, subpath, arguments.recursive, &mut |entry| {
            stream.item(&EntryItem::new(snapshot, entry))
        })?;
        stream.end(&ListTail { entries_total: report.entries, damaged: report.damaged })?;
        report
    } else {
        let marks: HashMap<(u32, &[u8]), String> =
            checkpoints.iter().map(|record| ((record.root, record.path.as_slice()), mark(record))).collect();
        // The directory whose content is listed has no line of its own.
        let head = listed.iter().find_map(|(root, path)| marks.get(&(*root, path.as_slice())));
        if let Some(head) = head.filter(|_| output.manners.is_watched()) {
            output.talk("info", &format!("checkpoint: {head}"));
        }
        list(&repo, snapshot, subpath, arguments.recursive, &mut |entry| {
            let line = line(context, snapshot, entry, arguments.long);
            match marks.get(&(entry.root, entry.path.as_slice())) {
                Some(mark) => output.line(&format!("{line}  [{mark}]")),
                None => output.line(&line),
            }
        })?
    };
    if report.damaged > 0 {
        return Ok(Ending::Damage(
            "parts of the listing cannot be read because they are damaged".to_owned(),
            Some("`ckpt verify` says more; other snapshots may be sound"),
        ));
    }
    Ok(Ending::Done)
}

/// What is known about a checkpoint: `step 500, hf-trainer, 2 shards, 291 tensors`.
fn mark(record: &CheckpointRecord) -> String {
    let mut parts: Vec<String> = record.step.map(|step| format!("step {step}")).into_iter().collect();
    parts.push(render::prose(&record.framework));
    parts.push(render::counted(record.shards, "shard", "shards"));
    parts.push(render::counted(record.tensors, "tensor", "tensors"));
    parts.extend(record.unfinished.as_ref().map(|reason| format!("unfinished: {}", render::prose(reason))));
    parts.join(", ")
}

/// An entry on one line.
pub fn line(context: &Context, snapshot: &Snapshot, entry: &Entry, long: bool) -> String {
    let metadata = &entry.metadata;
    let mut name = render::path(&path(snapshot, entry));
    if metadata.kind == FileKind::Directory && !name.ends_with('/') {
        name.push('/');
    }
    if !long {
        return name;
    }
    if let FileKind::Symlink { target } = &metadata.kind {
        name = format!("{name} -> {}", render::path(target));
    }
    let mark = if entry.changed_while_read { "  [changed while it was read]" } else { "" };
    format!(
        "{}  {:>5} {:>5}  {:>9}  {}  {name}{mark}",
        render::mode(metadata),
        metadata.uid,
        metadata.gid,
        ByteCount(metadata.size).to_string(),
        context.time(metadata.mtime),
    )
}

/// The path that people type: relative to the root if there is only one, else absolute.
pub fn path(snapshot: &Snapshot, entry: &Entry) -> Vec<u8> {
    let root = usize::try_from(entry.root).ok().and_then(|root| snapshot.roots.get(root));
    let root = root.map_or(&[][..], Vec::as_slice);
    if entry.path.is_empty() {
        return root.to_vec();
    }
    if snapshot.roots.len() == 1 {
        return entry.path.clone();
    }
    let mut path = root.to_vec();
    if !path.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(&entry.path);
    path
}
