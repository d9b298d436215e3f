//! Listings that no cache may answer.
//!
//! A network file system may answer a listing from what it saw up to a minute ago (NFS). Here a file is created in the
//! directory first, and the listing is repeated until it shows that file: what it shows then is no older than that, so it
//! has every name that was published before. On a local file system the first listing does.
//!
//! Deliberately not here: folders with folders in them.

use super::Listed;
use super::durable_file::DurableFile;
use super::local::LocalStorage;
use crate::error::{Error, Kind, Result};
use std::time::Duration;

/// A folder that every repository has, for whoever only needs the file system's answer to a new file.
pub(super) const ASKED_IN: &str = "transactions";

/// Pauses grow from 10 ms to this; together they are longer than NFS keeps a listing by default.
const PAUSE_MAX: Duration = Duration::from_secs(5);
const LISTINGS_MAX: u32 = 24;

/// The objects in `folder`, sorted, no older than this call.
pub(super) fn list(storage: &LocalStorage, folder: &str) -> Result<Vec<Listed>> {
    let marker = DurableFile::create(&storage.place, folder, None)?;
    let own = marker.temporary_name().unwrap_or_default();
    let mut pause = Duration::from_millis(10);
    for _ in 0..LISTINGS_MAX {
        let (mut listed, is_shown) = storage.list_seeing(folder, own)?;
        if is_shown {
            listed.sort();
            return Ok(listed);
        }
        std::thread::sleep(pause);
        pause = (2 * pause).min(PAUSE_MAX);
    }
    let text = format!(
        "the listing of {folder}/ of the repository at {} does not show a file that was just created there",
        storage.place.root().display()
    );
    let hint = "its file system shows new files too late for several hosts to work at once; mount it with shorter caching of folders";
    Err(Error::new(Kind::Unreachable, text).with_hint(hint))
}
