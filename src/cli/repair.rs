//! `ckpt repair`: mend what is damaged, and say what cannot be.

use super::context::Context;
use super::exit::Ending;
use super::json::{Body, DamageItem, MendedItem, RepairSummary, Summary};
use super::{backup, render, verify};
use ckpt::bytes::ByteCount;
use ckpt::error::{Error, Kind, Result};
use ckpt::ops::repair::{ReadChoice, RepairOptions, RepairReport, mend_parameters, repair};
use ckpt::repo::audit::Actor;
use ckpt::repo::records::WriterRecord;
use ckpt::storage::{self, Storage};
use std::sync::Arc;

/// Options of `repair`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt repair --dry-run                 find all damage, and say what could be mended
  ckpt repair                           mend it: from second copies, parity, and files of this host that are still there
  ckpt repair --from /mnt/other/models  also from another copy of the repository
  ckpt repair --add-parity              make parity for all packs that have none

Exit codes: 0 nothing was damaged, 6 all damage was mended, 5 something is left: it is listed with the files that it costs. \
What cannot be mended is set aside; the next backup stores again what it meets of it.")]
pub struct Arguments {
    /// Another repository that may hold what is lost: a copy of this one, or any other; may be given several times
    #[arg(long, value_name = "PATH")]
    from: Vec<String>,

    /// Do not look for lost content in the files that were backed up from this host
    #[arg(long)]
    no_source_files: bool,

    /// The name under which this host was backed up [default: this host's name]
    #[arg(long, env = "CKPT_HOST", hide_env_values = true, value_name = "NAME")]
    host: Option<String>,

    /// Make parity for every pack that has none
    #[arg(long)]
    add_parity: bool,

    /// Read no packs: mend what the structure shows to be damaged
    #[arg(long)]
    quick: bool,

    /// Read only packs whose ids begin with this; may be given several times
    #[arg(long, value_name = "ID", conflicts_with = "quick", value_parser = parse_pack)]
    pack: Vec<String>,

    /// Say what would be done, and change nothing
    #[arg(long, short = 'n')]
    dry_run: bool,
}

fn parse_pack(text: &str) -> Result<String, String> {
    let digits = text.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    if digits.len() >= 4 && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        Ok(digits)
    } else {
        Err("a pack is named by at least 4 hexadecimal digits".to_owned())
    }
}

/// Repairs the repository.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    let from = arguments.from.iter().map(|place| open_other(place)).collect::<Result<Vec<_>>>()?;
    let sources_of_host = match arguments.no_source_files {
        true => None,
        false => Some(backup::host_name(arguments.host.as_deref())?),
    };
    let read = match (arguments.quick, arguments.pack.is_empty()) {
        (true, _) => ReadChoice::Structure,
        (false, false) => ReadChoice::Packs(arguments.pack.clone()),
        (false, true) => ReadChoice::All,
    };
    let options = RepairOptions {
        from,
        sources_of_host,
        read,
        add_parity: arguments.add_parity,
        dry_run: arguments.dry_run,
        resources: context.resources(),
        now: context.started(),
        writer: WriterRecord::of_this_process(context.started()),
        actor: Actor::of_this_process(),
    };
    // Without sound parameters nothing can be opened, so they come first.
    let own = storage::open(&context.location()?)?;
    let mut mended = context.unlocking(|keys| mend_parameters(own.as_ref(), &options.from, keys, options.dry_run))?;
    let repo = context.open()?;
    let mut report = repair(&repo, &options, &context.reporter)?;
    mended.append(&mut report.mended);
    report.mended = mended;
    context.reporter.end_phase();
    show(context, arguments, &report)?;
    Ok(ending(arguments, &report))
}

fn open_other(place: &str) -> Result<Arc<dyn Storage>> {
    storage::open(place).map_err(|error| {
        let kind = if error.kind() == Kind::NoRepository { Kind::Usage } else { error.kind() };
        Error::new(kind, format!("--from {place}: {error}"))
            .with_hint("give the directory of another copy of the repository")
    })
}

fn show(context: &Context, arguments: &Arguments, report: &RepairReport) -> Result<()> {
    let output = &context.output;
    if output.manners.json {
        let summary = Summary::Repair(summary(context, arguments, report));
        return output.closing(output.document(Body::Summary(summary)));
    }
    let lines = || -> Result<()> {
        let word = if arguments.dry_run { "can be mended" } else { "mended" };
        for item in &report.mended {
            output.line(&format!(
                "{word} {}: {}",
                render::prose(&item.object),
                render::prose(&item.means.to_string())
            ))?;
        }
        report.left.iter().try_for_each(|damage| verify::show_damage(context, damage))
    };
    output.closing(lines())?;
    if output.manners.is_watched() {
        output.talk("info", &counts(context, report));
    }
    Ok(())
}

fn counts(context: &Context, report: &RepairReport) -> String {
    let chunks = report.chunks_from_remains + report.chunks_from_copies + report.chunks_from_sources;
    let parity = match report.parity_added {
        0 => String::new(),
        count => format!(", parity added to {}", render::counted(count, "pack", "packs")),
    };
    format!(
        "{} read ({}): {} mended, {} left, {} stored again{parity}; {}",
        render::counted(report.packs_read, "pack", "packs"),
        ByteCount(report.bytes_read),
        report.mended.len(),
        report.left_count,
        render::counted(chunks, "lost chunk", "lost chunks"),
        render::duration(context.seconds_elapsed()),
    )
}

fn ending(arguments: &Arguments, report: &RepairReport) -> Ending {
    if report.left_count > 0 {
        let what = render::counted(report.left_count, "object cannot", "objects cannot");
        return Ending::Damage(
            format!("{what} be mended"),
            Some(
                "back up again what the sources still hold, or repair with --from a copy of the repository; what is then \
                 still lost can be given up with `ckpt forget`",
            ),
        );
    }
    if report.mended.is_empty() {
        return Ending::Done;
    }
    let what = render::counted(report.mended.len() as u64, "object was", "objects were");
    let how = if arguments.dry_run { "damaged, and all can be mended" } else { "damaged, and all is mended" };
    Ending::Mended(format!("{what} {how}"))
}

fn summary(context: &Context, arguments: &Arguments, report: &RepairReport) -> RepairSummary {
    let mended = report.mended.iter().map(|m| MendedItem { object: m.object.clone(), means: m.means.to_string() });
    let left: Vec<DamageItem> = report.left.iter().map(verify::damage_item).collect();
    RepairSummary {
        dry_run: arguments.dry_run,
        packs_read: report.packs_read,
        bytes_read: report.bytes_read,
        mended: mended.collect(),
        left_count: report.left_count,
        left,
        packs_set_aside: report.packs_set_aside,
        chunks_from_remains: report.chunks_from_remains,
        chunks_from_copies: report.chunks_from_copies,
        chunks_from_sources: report.chunks_from_sources,
        parity_added: report.parity_added,
        seconds_elapsed: context.seconds_elapsed(),
    }
}
