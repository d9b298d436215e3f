//! What this host has seen of a repository and would miss: kept beside the database, since that may be made anew at any time.
//!
//! Only a memory: it is written when that succeeds, and one that is gone or unreadable means that nothing is missed.

use super::Index;
use crate::error::{Error, Result};
use crate::repo::audit::AuditHead;
use std::path::PathBuf;

impl Index {
    fn audit_head_path(&self) -> Option<PathBuf> {
        self.path().parent().filter(|folder| folder.is_dir()).map(|folder| folder.join("audit-head"))
    }

    /// Remembers how far the audit log went. An older head than the one that is remembered changes nothing.
    pub fn remember_audit_head(&self, head: &AuditHead) -> Result<()> {
        let Some(path) = self.audit_head_path() else { return Ok(()) };
        if self.audit_head().is_some_and(|known| known.number >= head.number) {
            return Ok(());
        }
        let digits: String = head.hash.iter().map(|byte| format!("{byte:02x}")).collect();
        let beside = path.with_extension(format!("tmp-{}", std::process::id()));
        std::fs::write(&beside, format!("{} {digits}\n", head.number))
            .and_then(|()| std::fs::rename(&beside, &path))
            .map_err(|e| Error::io(format!("remembering the audit log in {}", path.display()), e))
    }

    /// How far the audit log went when this host last looked, as far as it remembers.
    pub fn audit_head(&self) -> Option<AuditHead> {
        let text = std::fs::read_to_string(self.audit_head_path()?).ok()?;
        let (number, digits) = text.trim_end().split_once(' ')?;
        let digits = digits.as_bytes();
        let mut hash = [0; 32];
        if digits.len() != 2 * hash.len() {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(AuditHead { number: number.parse().ok()?, hash })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Silent;
    use crate::ids::RepositoryId;

    #[test]
    fn the_newest_head_is_remembered_when_the_database_is_made_anew() {
        let folder = tempfile::tempdir().expect("a folder");
        let id = RepositoryId::from_bytes([3; 16]);
        let index = Index::open(folder.path(), id, &Silent).expect("opens");
        assert_eq!(index.audit_head(), None);
        let head = AuditHead { number: 12, hash: [0xab; 32] };
        index.remember_audit_head(&head).expect("written");
        index.remember_audit_head(&AuditHead { number: 11, hash: [1; 32] }).expect("nothing to do");
        index.remove().expect("removed");
        let index = Index::open(folder.path(), id, &Silent).expect("opens");
        assert_eq!(index.audit_head(), Some(head));
        std::fs::write(folder.path().join(id.to_hex()).join("audit-head"), "12 xy\n").expect("written");
        assert_eq!(index.audit_head(), None);
    }
}
