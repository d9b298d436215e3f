//! Which container a zip archive is: several kinds of file begin with the same four bytes.

use super::header_reader::{HeaderReader, Refusal};
use super::zip::{Archive, COMMENT_BYTES_MAX, End};
use super::{dcp, torch};
use crate::bytes::ByteRange;
use crate::read_at::ReadAt;
use crate::source::layout::{Container, Layout};

/// The layout of a file that begins with [`super::zip::MAGIC`]; none for an archive of something else.
pub(super) fn parse(file: &dyn ReadAt) -> Option<(Container, Result<Layout, Refusal>)> {
    let mut reader = HeaderReader::new(file);
    let whole = ByteRange::new(0, file.bytes()).ok()?;
    let archive = match End::find(&mut reader, whole, COMMENT_BYTES_MAX) {
        Ok(Some(end)) if end.start > 0 => {
            // More than one archive: items of a distributed checkpoint, or nothing that is known.
            let layout = dcp::parse(file, b"", None).ok().filter(|layout| !layout.tensors.is_empty());
            return layout.map(|layout| (Container::Dcp, Ok(layout)));
        }
        Ok(Some(end)) => Archive::at_end(&mut reader, &end),
        Ok(None) => torch::cut_archive(&mut reader),
        Err(refusal) => Err(refusal),
    };
    let archive = match archive {
        Ok(archive) => archive,
        Err(refusal) => return Some((Container::Torch, Err(refusal))),
    };
    let prefix = torch::prefix(&archive)?;
    Some((Container::Torch, torch::layout(&mut reader, &archive, prefix)))
}
