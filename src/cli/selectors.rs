//! Selectors: which snapshot, and which part of it.
//!
//! What a selector says is taken apart in `selector_text.rs`. `--at TIME` stands in a selector's place. Finding the snapshot
//! belongs to the library.

use super::args::{AtArgument, NarrowArguments};
use super::context::Context;
use super::selector_text::FORMS;
pub use super::selector_text::{Base, Parsed, parse, parse_meta, parse_tag};
use super::{render, times};
use ckpt::error::{Error, Kind, Result};
use ckpt::repo::checkpoints::checkpoint_of_step;
use ckpt::repo::snapshots::{Narrow, SelectorBase, Snapshot, select};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// A snapshot that is asked for, and the path within it. Known before the repository is opened, so that a mistake in the
/// arguments is told at once.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What names the snapshot.
    pub base: SelectorBase,
    /// The path within it, as typed.
    pub subpath: Option<Vec<u8>>,
}

/// The snapshots among which a command chooses.
pub fn narrow(arguments: &NarrowArguments) -> Result<Narrow> {
    let path = arguments.path.as_deref().map(super::sources::clean).transpose()?;
    Ok(Narrow {
        host: arguments.host.clone(),
        source: arguments.source.clone(),
        path: path.map(|path| path.as_os_str().as_bytes().to_vec()),
        tags: arguments.tag.clone(),
    })
}

/// What `selector` and `--at` ask for.
pub fn wanted(context: &Context, selector: Option<&OsStr>, at: &AtArgument) -> Result<Wanted> {
    let parsed = match selector {
        Some(text) => parse(text)?,
        None => Parsed { base: None, subpath: None },
    };
    let base = match (parsed.base, &at.at) {
        (None | Some(Base::Latest), Some(at)) => {
            SelectorBase::At(times::file_time(times::parse_instant(at, &context.now)?))
        }
        (Some(_), Some(_)) => {
            return Err(Error::new(Kind::Usage, "--at stands in the place of an id, a tag or a step")
                .with_hint("leave out one of the two; `--at TIME :SUBPATH` takes a part of the snapshot"));
        }
        (Some(Base::Id(prefix)), None) => SelectorBase::Id(prefix),
        (Some(Base::Latest), None) => SelectorBase::Latest,
        (Some(Base::Tag(tag)), None) => SelectorBase::Tag(tag),
        (Some(Base::Step(step)), None) => SelectorBase::Step(step),
        (None, None) => return Err(Error::new(Kind::Usage, "no snapshot is named").with_hint(FORMS)),
    };
    Ok(Wanted { base, subpath: parsed.subpath })
}

/// What `selector` asks for, where a part of a snapshot makes no sense; `hint` says what does.
pub fn wanted_whole(context: &Context, selector: &OsStr, hint: &str) -> Result<Wanted> {
    let wanted = wanted(context, Some(selector), &AtArgument::default())?;
    if wanted.subpath.is_some() {
        let shown = render::path(selector.as_bytes());
        return Err(
            Error::new(Kind::Usage, format!("{shown} names a part of a snapshot, not a whole one")).with_hint(hint)
        );
    }
    Ok(wanted)
}

impl Wanted {
    /// The one snapshot among `snapshots`.
    pub fn find(&self, snapshots: &[Snapshot], narrow: &Narrow) -> Result<Snapshot> {
        select(snapshots, &self.base, narrow).cloned()
    }

    /// The part of `snapshot`, which [`Wanted::find`] returned, that is asked for; none for all of it. A step is narrowed
    /// to its checkpoint, and a path behind it is relative to that.
    pub fn part(&self, snapshot: &Snapshot, narrow: &Narrow) -> Result<Option<Vec<u8>>> {
        let SelectorBase::Step(step) = self.base else { return Ok(self.subpath.clone()) };
        let Some(record) = checkpoint_of_step(snapshot, step, narrow)? else {
            return Err(Error::new(Kind::NotFound, format!("snapshot {} does not hold it", snapshot.id.short())));
        };
        let mut path = record.absolute_path(snapshot);
        match &self.subpath {
            Some(subpath) if subpath.starts_with(b"/") => {
                let text = "a path behind `step:N:` is relative to the directory of the checkpoint";
                return Err(Error::new(Kind::Usage, text).with_hint("leave out the `/` at its beginning"));
            }
            Some(subpath) => {
                path.push(b'/');
                path.extend_from_slice(subpath);
            }
            None => {}
        }
        Ok(Some(path))
    }
}
