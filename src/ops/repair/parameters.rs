//! The parameters, `config/0` to `config/2`: without any of them nothing else can be opened, so they come first.
//!
//! All sound ones should be alike. If they are not, something has put another repository's there: those are right that
//! have the id which packs and index objects carry.

use super::{Means, Mended};
use crate::bytes::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::repo::config::{self, COPIES};
use crate::repo::document::{self, DocumentKind};
use crate::repo::keys::Keys;
use crate::repo::names;
use crate::storage::Storage;
use std::collections::HashSet;
use std::sync::Arc;

/// The longest object of parameters that is looked at.
const OBJECT_BYTES_MAX: u64 = 1 << 20;

/// How many packs and index objects are asked for the repository's id.
const WITNESSES_MAX: usize = 8;

/// An object of parameters as it was written, and where it was found.
struct Candidate {
    object: Vec<u8>,
    repository: [u8; 16],
    /// None: in this repository.
    place: Option<String>,
}

/// Puts the parameters right where they are damaged, missing or another repository's; copies of the repository serve if
/// none here is sound. Nothing is done if there is nothing to go by, and opening the repository then says what is wrong.
pub fn mend_parameters(storage: &dyn Storage, from: &[Arc<dyn Storage>], dry_run: bool) -> Result<Vec<Mended>> {
    let mut candidates = candidates_in(storage, None)?;
    for copy in from {
        candidates.extend(candidates_in(copy.as_ref(), Some(copy.describe()))?);
    }
    let witnesses = witnesses(storage)?;
    let is_own = |c: &&Candidate| c.place.is_none();
    // A copy is believed only by the witnesses: without any, the place may be no repository at all.
    let right = candidates
        .iter()
        .find(|c| witnesses.contains(&c.repository))
        .or_else(|| candidates.iter().find(is_own).filter(|_| witnesses.is_empty()));
    let Some(right) = right else { return Ok(Vec::new()) };
    let serves = candidates.iter().find(is_own).is_some_and(|first| first.object == right.object);
    if dry_run && !serves {
        return Err(Error::damaged("the parameters that would serve are not this repository's, or there are none")
            .with_hint("a dry run sees nothing beyond that; repair without --dry-run puts them right first"));
    }
    let mut mended = Vec::new();
    for copy in 0..COPIES {
        let name = names::config(copy)?;
        let standing = match storage.read(&name, OBJECT_BYTES_MAX) {
            Ok(object) => Some(object),
            Err(error) if matches!(error.kind(), Kind::Missing | Kind::Damaged | Kind::Unreachable) => None,
            Err(error) => return Err(error),
        };
        if standing.as_ref() == Some(&right.object) {
            continue;
        }
        let own = standing.and_then(|object| document::rebuilt(&Keys::plain(), DocumentKind::Config, &name, &object));
        let means = match &right.place {
            _ if own.as_ref() == Some(&right.object) => Means::OwnCopy,
            None => Means::OtherParameters,
            Some(place) => Means::Copy(place.clone()),
        };
        if !dry_run {
            storage.replace(&name, &right.object)?;
        }
        mended.push(Mended { object: name.to_string(), means });
    }
    Ok(mended)
}

fn candidates_in(storage: &dyn Storage, place: Option<String>) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for copy in 0..COPIES {
        let name = names::config(copy)?;
        let Ok(object) = storage.read(&name, OBJECT_BYTES_MAX) else { continue };
        let Some(object) = document::rebuilt(&Keys::plain(), DocumentKind::Config, &name, &object) else { continue };
        if let Ok(id) = config::repository_in(&object) {
            found.push(Candidate { object, repository: *id.as_bytes(), place: place.clone() });
        }
    }
    Ok(found)
}

/// The ids of repositories that stand in the headers of some packs and index objects.
fn witnesses(storage: &dyn Storage) -> Result<HashSet<[u8; 16]>> {
    let mut found = HashSet::new();
    for folder in [names::INDEX, names::PACKS] {
        for listed in storage.list(folder)?.into_iter().filter(|l| l.bytes >= 64).take(WITNESSES_MAX) {
            let mut header = Vec::new();
            if storage.read_range(&listed.name, ByteRange::new(0, 64)?, &mut header).is_ok()
                && (header.starts_with(b"CKPTPACK") || header.starts_with(b"CKPTINDX"))
            {
                found.extend(<[u8; 16]>::try_from(&header[16..32]));
            }
        }
    }
    Ok(found)
}
