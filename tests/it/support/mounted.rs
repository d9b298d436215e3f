//! Small file systems of their own, mounted from images: what a full or failing disk does.

use super::program::{Place, runs};
use super::{is_root, not_run};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// A small file system of its own in a file, mounted as long as this lives.
pub struct Mounted {
    pub at: PathBuf,
}

impl Mounted {
    /// None, with NOT RUN said, if this machine does not let us.
    pub fn new(place: &Place, name: &str, bytes: u64, more: &[&str], check: &str) -> Option<Mounted> {
        if !is_root() {
            not_run(check, "only root can mount");
            return None;
        }
        let (image, at) = (place.text(&format!("{name}.image")), place.path(name));
        fs::create_dir(&at).expect("a folder");
        fs::File::create(&image).and_then(|file| file.set_len(bytes)).expect("an image");
        let arguments = [&["-q", "-F"], more, &[image.as_str()]].concat();
        let mounted =
            runs("mkfs.ext4", &arguments) && runs("mount", &["-o", "loop", &image, at.to_str().expect("text")]);
        if !mounted {
            not_run(check, "an image cannot be made or mounted here");
            return None;
        }
        Some(Mounted { at })
    }

    /// Fills the file system but for so many bytes.
    pub fn fill(&self, left: u64) {
        let status = rustix::fs::statvfs(&self.at).expect("a file system");
        let bytes = (status.f_bfree * status.f_frsize).saturating_sub(left);
        let filled = fs::File::create(self.at.join("lost+found/filler")).expect("a file");
        // As much of it as there is room for: the lists of its own blocks need some as well.
        let (mut written, mut step) = (0, 1 << 16);
        while written < bytes {
            let next = usize::try_from((bytes - written).min(step)).expect("a small number");
            match filled.write_at(&vec![1; next], written) {
                Ok(taken) => written += taken as u64,
                Err(_) if step == 1 << 16 => step = 1 << 12,
                Err(_) => break,
            }
        }
        filled.sync_all().ok();
    }

    /// Makes a little room.
    pub fn give_back(&self, bytes: u64) {
        let filler = fs::File::options().write(true).open(self.at.join("lost+found/filler")).expect("a file");
        let len = filler.metadata().expect("a file").len();
        filler.set_len(len.saturating_sub(bytes)).and_then(|()| filler.sync_all()).expect("cut");
    }

    /// Makes room again.
    pub fn empty(&self) {
        fs::remove_file(self.at.join("lost+found/filler")).expect("removed");
        let folder = fs::File::open(&self.at).expect("a folder");
        rustix::fs::syncfs(folder).expect("synced");
    }

    /// Mounts it anew with these options.
    pub fn remount(&self, options: &str) -> bool {
        runs("mount", &["-o", &format!("remount,{options}"), self.at.to_str().expect("text")])
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let at = self.at.to_str().expect("text");
        if !runs("umount", &[at]) {
            runs("umount", &["-l", at]);
        }
    }
}
