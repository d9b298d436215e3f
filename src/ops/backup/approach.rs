//! How a file that is handled by itself is approached: its layout, where it is cut, what it may be coded against.

use super::bases::catalog::{Catalog, FILE_BYTES_MIN};
use super::big_file::BigFile;
use super::shared::Shared;
use super::storer::Origin;
use crate::error::Result;
use crate::events::Event;
use crate::repo::content_reader::PlacedChunk;
use crate::repo::entry::Entry;
use crate::source::layout::{self, Layout, Parsed};
use crate::source::open::SourceFile;
use crate::source::scan::Found;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// How files are cut and coded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy {
    pub(super) cuts_by_content: bool,
    pub(super) deltas: bool,
}

/// See the module.
pub(super) struct Approach<'a> {
    shared: &'a Shared<'a>,
    catalog: Catalog<'a>,
    policy: Policy,
}

impl<'a> Approach<'a> {
    pub(super) fn new(shared: &'a Shared<'a>, catalog: Catalog<'a>, policy: Policy) -> Approach<'a> {
        Approach { shared, catalog, policy }
    }

    /// True for a file that is handled by itself whatever its size: its layout matters, or there is something to code it
    /// against.
    pub(super) fn is_special(&self, found: &Found, existed: bool) -> bool {
        found.metadata.size >= FILE_BYTES_MIN && (has_layout_name(found) || (existed && self.policy.deltas))
    }

    /// The layout of a file. One that is malformed is cut by content, which is worth a note.
    pub(super) fn layout_of(&self, found: &Found, file: &SourceFile) -> Option<Arc<Layout>> {
        // A small file of another name is cut as when it was new: then nobody looked what it is.
        let is_looked_at = found.metadata.size > self.shared.segment_bytes() || has_layout_name(found);
        if self.policy.cuts_by_content || !is_looked_at {
            return None;
        }
        let note = |text: String| self.shared.observer.on_event(&Event::Detail { text: &text });
        match layout::parse_beside(file, &found.absolute) {
            Parsed::Layout(layout) => {
                if layout.is_truncated {
                    note(format!("{} ends before its headers say", found.absolute.display()));
                }
                Some(Arc::from(layout))
            }
            Parsed::Malformed(container, reason) => {
                let (path, container) = (found.absolute.display(), container.name());
                note(format!("{path} is cut by its content, for it is no sound {container} file: {reason}"));
                None
            }
            Parsed::Plain => None,
        }
    }

    /// A file under way that must be stored to its end before this one is planned for; `existed` if the parent had it.
    pub(super) fn awaited(&self, found: &Found, layout: Option<&Layout>, existed: bool) -> Option<u64> {
        // Without a layout, what the parent has at the same path is the base.
        let may_need_any = self.policy.deltas && (layout.is_some() || !existed);
        may_need_any.then(|| self.catalog.awaited(found, layout)).flatten()
    }

    /// Begins with a file, whose place in the order of the scan will be `sequence`.
    pub(super) fn begin(
        &mut self,
        found: Box<Found>,
        earlier: Option<&Entry>,
        file: SourceFile,
        layout: Option<Arc<Layout>>,
        (sequence, segment_bytes): (u64, u64),
    ) -> Result<BigFile> {
        let bases = if self.policy.deltas { self.catalog.plan(&found, layout.as_deref(), earlier) } else { None };
        let origin = self.policy.deltas.then(|| Origin { file: Arc::new((*found).clone()), bases });
        let (chunker, existed) = (&self.shared.chunker, earlier.is_some());
        let mut big = BigFile::open(found, existed, file, layout.as_deref(), chunker, segment_bytes)?;
        big.origin = origin;
        if self.policy.deltas {
            self.catalog.begin(sequence, &big.found, layout);
        }
        Ok(big)
    }

    /// A file is stored, with these chunks, or given up.
    pub(super) fn finish(&mut self, sequence: u64, chunks: Vec<PlacedChunk>) {
        self.catalog.finish(sequence, chunks);
    }
}

fn has_layout_name(found: &Found) -> bool {
    layout::has_layout_name(found.absolute.as_os_str().as_bytes())
}
