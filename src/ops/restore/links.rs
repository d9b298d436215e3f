//! Files with several names: the first is restored, the others are links to it, made when it is in place.
//!
//! A first name that is not restored has no content for the others, whatever stands there.

use crate::error::{Error, Kind};
use crate::sabotage::is_planted;
use std::collections::HashMap;

/// What all names of a file have in common.
type Group = (u64, u64);

/// See the module.
#[derive(Default)]
pub(super) struct Links {
    firsts: HashMap<Group, FirstName>,
    later: Vec<(Group, Vec<u8>)>,
}

struct FirstName {
    path: Vec<u8>,
    lost: Option<Lost>,
}

/// Why a first name is not restored.
struct Lost {
    is_damaged: bool,
    kind: Kind,
    text: String,
}

/// A further name.
pub(super) struct Later {
    pub(super) path: Vec<u8>,
    /// The name to link it to; otherwise why there is none, and whether that is damage.
    pub(super) first: Result<Vec<u8>, (bool, Error)>,
}

impl Links {
    /// Gives the path back unless it is a further name of a file that is known, and kept for the end.
    pub(super) fn keep_later(&mut self, group: Option<Group>, path: Vec<u8>) -> Option<Vec<u8>> {
        match group.filter(|group| self.firsts.contains_key(group)) {
            Some(group) => {
                self.later.push((group, path));
                None
            }
            None => Some(path),
        }
    }

    /// Notes a name to which others can be linked.
    pub(super) fn remember(&mut self, group: Option<Group>, path: &[u8]) {
        if let Some(group) = group {
            self.firsts.entry(group).or_insert_with(|| FirstName { path: path.to_vec(), lost: None });
        }
    }

    /// The first name is not restored.
    pub(super) fn lose(&mut self, group: Option<Group>, is_damaged: bool, error: &Error) {
        if let Some(first) = group.and_then(|group| self.firsts.get_mut(&group)) {
            first.lost = Some(Lost { is_damaged, kind: error.kind(), text: error.to_string() });
        }
    }

    /// The further names, when it is known how all first ones have fared.
    pub(super) fn take(&mut self) -> impl Iterator<Item = Later> + use<> {
        let Links { firsts, later } = std::mem::take(self);
        later.into_iter().filter_map(move |(group, path)| {
            let FirstName { path: first, lost } = firsts.get(&group)?;
            let first = match lost.as_ref().filter(|_| !is_planted("lost-file-linked")) {
                None => Ok(first.clone()),
                Some(Lost { is_damaged, kind, text }) => {
                    let name = String::from_utf8_lossy(first);
                    let text = format!("it is another name of {name}, which is not restored: {text}");
                    Err((*is_damaged, Error::new(*kind, text)))
                }
            };
            Some(Later { path, first })
        })
    }
}
