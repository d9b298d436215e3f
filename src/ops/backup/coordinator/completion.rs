//! The end of a big file: when all of it is stored, its entry goes into the tree.
//!
//! A file that failed, or whose state cannot be asked for, is given up by itself; the run goes on.

use super::Coordinator;
use crate::error::Result;
use std::os::unix::ffi::OsStrExt;

impl Coordinator<'_> {
    /// Ends the file if it is complete or has failed.
    pub(super) fn finish_if_complete(&mut self, sequence: u64) -> Result<()> {
        let assembly = &mut self.assembly;
        let Some(big) = self.big.get_mut(&sequence) else { return Ok(()) };
        let is_complete = big.is_complete();
        big.settle(&mut |node| assembly.store(&node))?;
        if !is_complete && !big.is_complete() {
            return Ok(());
        }
        let Some(mut big) = self.big.remove(&sequence) else { return Ok(()) };
        if self.dispatching == Some(sequence) {
            self.dispatching = None;
        }
        let under_way: Vec<u64> =
            self.segment_sizes.keys().filter(|(s, _)| *s == sequence).map(|(_, index)| *index).collect();
        under_way.into_iter().for_each(|index| self.release(sequence, index));
        let path = big.found.absolute.as_os_str().as_bytes().to_vec();
        if let Some(error) = big.failure.take() {
            self.approach.finish(sequence, Vec::new());
            self.assembly.give_up(sequence, path, error);
            return Ok(());
        }
        let mut changed = big.ended_early();
        let (existed, is_stream) = (big.existed, big.file.is_none());
        if let Some(file) = big.file.clone() {
            let looked = file.changed_since(&big.found.metadata).and_then(|since| Ok((since, file.read_xattrs()?)));
            match looked {
                Ok((since, xattrs)) => {
                    changed |= since;
                    big.found.metadata.xattrs = xattrs;
                }
                // Whether what was read is one version is unknown: this file is lost, not the run.
                Err(error) => {
                    self.approach.finish(sequence, Vec::new());
                    self.assembly.give_up(sequence, path, error);
                    return Ok(());
                }
            }
        }
        let known = if changed || is_stream { Vec::new() } else { std::mem::take(&mut big.chunks) };
        self.approach.finish(sequence, known);
        let assembly = &mut self.assembly;
        let (mut found, content, bytes) = big.finish(&mut |node| assembly.store(&node))?;
        if changed || is_stream {
            found.metadata.size = bytes;
        }
        self.assembly.complete(sequence, *found, content, changed, existed);
        Ok(())
    }
}
