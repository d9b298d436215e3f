//! Who else is at work: open transactions, judged and, where their writer is dead, ended.

use super::PruneOptions;
use crate::error::{Error, Kind, Result};
use crate::ids::SnapshotId;
use crate::repo::records::WriterRecord;
use crate::repo::{Repo, names, records, transaction};
use rustix::process::{Pid, test_kill_process};

/// Ends every open transaction whose writer is dead and removes the leftovers of those that have ended; how many were
/// open. [`Kind::Busy`] if the writer of any may be alive. A dry run judges and leaves everything.
pub(super) fn settle(repo: &Repo, options: &PruneOptions) -> Result<u64> {
    let mut ended = 0;
    let mut alive = None;
    for id in open(repo)? {
        if has_ended(repo, id)? {
            if !options.dry_run {
                // Its announcement may only go once its end is durable, whoever created that.
                repo.storage().sync_folder(names::SNAPSHOTS)?;
                repo.storage().delete(&names::transaction(id)?)?;
            }
            continue;
        }
        match judge(repo, id, options) {
            Ok(true) => {
                ended += 1;
                if !options.dry_run {
                    transaction::revoke(repo, id)?;
                }
            }
            Ok(false) => {}
            Err(error) if error.kind() == Kind::Busy => alive = Some(error),
            Err(error) => return Err(error),
        }
    }
    alive.map_or(Ok(ended), Err)
}

/// The first transaction that is open now, if any: no writer may rely on what is condemned.
pub(super) fn first_open(repo: &Repo) -> Result<Option<SnapshotId>> {
    for id in open(repo)? {
        if !has_ended(repo, id)? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

fn open(repo: &Repo) -> Result<Vec<SnapshotId>> {
    let listed = repo.storage().list(names::TRANSACTIONS)?;
    Ok(listed.iter().filter_map(|l| names::snapshot_id(names::TRANSACTIONS, &l.name)).collect())
}

fn has_ended(repo: &Repo, id: SnapshotId) -> Result<bool> {
    Ok(repo.storage().size(&names::snapshot(id)?)?.is_some())
}

/// True if the transaction is to be revoked, false if it is gone by now.
fn judge(repo: &Repo, id: SnapshotId, options: &PruneOptions) -> Result<bool> {
    let record = match records::read_transaction(repo, id) {
        Err(error) if error.kind() == Kind::Missing => return Ok(false),
        _ if options.assume_alone => return Ok(true),
        Ok(record) => record,
        Err(error) if error.kind() == Kind::Damaged => {
            return Err(busy(format!("an open transaction cannot be read ({error})")));
        }
        Err(error) => return Err(error),
    };
    if record.host != options.writer.host {
        return Err(busy(format!("a run on the host {} that began {} has not ended", record.host, instant(&record))));
    }
    if record.boot != options.writer.boot || is_dead(&record, &options.writer) {
        return Ok(true);
    }
    Err(busy(format!("a run on this host, process {}, began {} and has not ended", record.process, instant(&record))))
}

fn busy(text: String) -> Error {
    Error::new(Kind::Busy, text).with_hint(
        "prune again when it has ended; if it is dead for certain, say that nothing else uses the repository",
    )
}

fn instant(record: &WriterRecord) -> String {
    jiff::Timestamp::new(record.started, 0).map_or_else(|_| "at an unknown time".to_owned(), |t| format!("at {t}"))
}

/// True if no such process runs on this host. This very process has no other transaction: a record with its number was
/// made by an earlier one.
fn is_dead(record: &WriterRecord, own: &WriterRecord) -> bool {
    let process = i32::try_from(record.process).ok().and_then(Pid::from_raw);
    record.process == own.process
        || process.is_none_or(|process| test_kill_process(process) == Err(rustix::io::Errno::SRCH))
}
