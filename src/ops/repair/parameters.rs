//! The parameters, `config/0` to `config/2`: without any of them nothing else can be opened, so they come first.
//!
//! All sound ones should be alike. If they are not, something has put another repository's there: those are right that
//! have the id which packs and index objects carry.
//!
//! Anybody who can write to the storage can write that id, too. So where parameters say that everything is sealed, the keys
//! decide, which hold the hash of the right ones; without the keys of an admin nothing is changed.

use super::{Means, Mended};
use crate::bytes::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::ids::RepositoryId;
use crate::repo::config::{self, COPIES};
use crate::repo::document::{self, DocumentKind};
use crate::repo::keys::{Keys, Role, Unlock};
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
    repository: RepositoryId,
    body_hash: [u8; 32],
    is_encrypted: bool,
    /// None: in this repository.
    place: Option<String>,
}

/// Puts the parameters right where they are damaged, missing or another repository's; copies of the repository serve if
/// none here is sound. Nothing is done if there is nothing to go by, and opening the repository then says what is wrong.
///
/// [`Kind::WrongKey`], before anything is changed, if the keys of an encrypted repository are needed and not an admin's.
pub fn mend_parameters(
    storage: &dyn Storage,
    from: &[Arc<dyn Storage>],
    unlock: &dyn Unlock,
    dry_run: bool,
) -> Result<Vec<Mended>> {
    let mut candidates = candidates_in(storage, None)?;
    for copy in from {
        candidates.extend(candidates_in(copy.as_ref(), Some(copy.describe()))?);
    }
    let witnesses = witnesses(storage)?;
    let is_own = |c: &&Candidate| c.place.is_none();
    // A copy is believed only by the witnesses: without any, the place may be no repository at all.
    let is_credible =
        |c: &&Candidate| if witnesses.is_empty() { is_own(c) } else { witnesses.contains(c.repository.as_bytes()) };
    let credible: Vec<&Candidate> = candidates.iter().filter(is_credible).collect();
    let Some(first) = credible.first() else { return Ok(Vec::new()) };
    let is_undisputed = credible.iter().all(|c| c.object == first.object);
    if is_undisputed && is_whole(storage, &first.object)? {
        return Ok(Vec::new());
    }
    let right = choose(storage, &credible, unlock)?;
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
            Err(error) if is_absent(&error) => None,
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

/// Of sealed repositories those parameters that their keys were made for, otherwise the first: sealed ones go before others,
/// or whoever can write to the storage could have a repair make it a repository in plain.
fn choose<'c>(storage: &dyn Storage, credible: &[&'c Candidate], unlock: &dyn Unlock) -> Result<&'c Candidate> {
    let mut failure = None;
    let mut tried: Vec<RepositoryId> = Vec::new();
    for sealed in credible.iter().filter(|c| c.is_encrypted) {
        if tried.contains(&sealed.repository) {
            continue;
        }
        tried.push(sealed.repository);
        let bundle = match unlock.unlock(storage, sealed.repository) {
            Ok(bundle) => bundle,
            Err(error) => {
                failure = failure.or(Some(error));
                continue;
            }
        };
        if bundle.role != Role::Admin {
            return Keys::opened(bundle, sealed.repository).require_repairing().map(|()| *sealed);
        }
        match credible.iter().find(|c| c.repository == sealed.repository && c.body_hash == bundle.config_hash) {
            Some(right) => return Ok(right),
            None => failure = failure.or(Some(replaced())),
        }
    }
    match (failure, credible.first()) {
        (None, Some(first)) if !unlock.is_given() => Ok(first),
        (None, _) => {
            Err(Error::new(Kind::WrongKey, "a key was given, but no parameters here are of an encrypted repository")
                .with_hint(
                    "if it never was, repair it without a key; otherwise repair with --from a copy of the repository",
                ))
        }
        (Some(error), _) => Err(error),
    }
}

fn replaced() -> Error {
    Error::damaged("none of the parameters are those that the keys of the repository were made for")
        .with_hint("somebody has replaced them: repair with --from a copy of the repository")
}

/// True if every object of the parameters is there and holds exactly this.
fn is_whole(storage: &dyn Storage, object: &[u8]) -> Result<bool> {
    for copy in 0..COPIES {
        match storage.read(&names::config(copy)?, OBJECT_BYTES_MAX) {
            Ok(standing) if standing == object => {}
            Ok(_) => return Ok(false),
            Err(error) if is_absent(&error) => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn is_absent(error: &Error) -> bool {
    matches!(error.kind(), Kind::Missing | Kind::Damaged | Kind::Unreachable)
}

fn candidates_in(storage: &dyn Storage, place: Option<String>) -> Result<Vec<Candidate>> {
    let mut found = Vec::new();
    for copy in 0..COPIES {
        let name = names::config(copy)?;
        let Ok(object) = storage.read(&name, OBJECT_BYTES_MAX) else { continue };
        let Some(object) = document::rebuilt(&Keys::plain(), DocumentKind::Config, &name, &object) else { continue };
        if let Ok((config, body_hash)) = config::parameters_in(&object) {
            let (repository, is_encrypted) = (config.repository_id(), config.is_encrypted());
            found.push(Candidate { object, repository, body_hash, is_encrypted, place: place.clone() });
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
