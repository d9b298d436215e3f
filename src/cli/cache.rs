//! Where this host keeps its copy of the index.
//!
//! The folder named by the user, else the user's cache folder, else `/var/tmp/ckpt-<uid>`. The last one also stands in when
//! another lies on a network mount, where SQLite's locks cannot be trusted, or cannot be created. The library adds the
//! repository's id. Losing the folder costs time, never data.

use super::render;
use ckpt::error::{Error, Kind, Result};
use ckpt::repo::Cache;
use std::ffi::OsString;
use std::fs::{self, DirBuilder};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

/// The place that was chosen, and a line about it if the user should know.
#[derive(Debug)]
pub struct Chosen {
    /// A folder on a local file system, or memory where there is none.
    pub cache: Cache,
    /// Why it is not the folder that was asked for.
    pub warning: Option<String>,
}

/// Chooses the folder and creates it. `asked` comes from `--cache-dir` or `CKPT_CACHE_DIR`; `xdg` and `home` from the environment.
pub fn choose(asked: Option<&Path>, xdg: Option<OsString>, home: Option<OsString>) -> Result<Chosen> {
    let wanted = match asked {
        Some(asked) => {
            let doing = || format!("finding the cache folder {}", shown(asked));
            Some(std::path::absolute(asked).map_err(|e| Error::io(doing(), e))?)
        }
        None => usual(xdg, home),
    };
    let reason = match &wanted {
        None => "no folder of the user is known".to_owned(),
        Some(wanted) if is_on_network(wanted) => {
            format!("{} lies on a network mount, where an index is not safe", shown(wanted))
        }
        Some(wanted) => match create_private(wanted) {
            Ok(()) => return Ok(Chosen { cache: Cache::Folder(wanted.clone()), warning: None }),
            Err(error) => error.to_string(),
        },
    };
    let (cache, instead) = match last_resort() {
        // A service without a home, or with one on NFS, is nothing unusual: only what was asked for is worth a line.
        Ok(path) if asked.is_none() => return Ok(Chosen { cache: Cache::Folder(path), warning: None }),
        Ok(path) => (Cache::Folder(path.clone()), shown(&path)),
        Err(error) => (Cache::Memory, format!("memory, anew in every run ({error})")),
    };
    let warning = format!("the index is not kept where it should be ({reason}); using {instead} instead");
    Ok(Chosen { cache, warning: Some(warning) })
}

fn usual(xdg: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |folder: Option<OsString>| folder.map(PathBuf::from).filter(|folder| folder.is_absolute());
    let parent = absolute(xdg).or_else(|| absolute(home).map(|home| home.join(".cache")))?;
    Some(parent.join("ckpt"))
}

fn last_resort() -> Result<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let path = PathBuf::from(format!("/var/tmp/ckpt-{uid}"));
    create_private(&path)?;
    // Everyone may write to /var/tmp: a folder or link that somebody else planted there is not used.
    let found = fs::symlink_metadata(&path).map_err(|e| Error::io(naming("reading", &path), e))?;
    if !found.is_dir() || found.uid() != uid || found.mode() & 0o022 != 0 {
        return Err(Error::new(Kind::Denied, format!("the cache folder {} belongs to somebody else", shown(&path)))
            .with_hint("set CKPT_CACHE_DIR to a folder on a local disk"));
    }
    Ok(path)
}

fn create_private(path: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| {
        Error::io(naming("creating", path), e)
            .with_hint("set CKPT_CACHE_DIR to a folder on a local disk that you can write to")
    })
}

fn naming(doing: &str, path: &Path) -> String {
    format!("{doing} the cache folder {}", shown(path))
}

fn shown(path: &Path) -> String {
    render::path(path.as_os_str().as_bytes())
}

/// True if the nearest existing folder at or above `path` lies on a file system whose locks span hosts.
fn is_on_network(path: &Path) -> bool {
    path.ancestors().find(|folder| folder.exists()).is_some_and(has_network_type)
}

#[cfg(target_os = "linux")]
fn has_network_type(folder: &Path) -> bool {
    rustix::fs::statfs(folder).is_ok_and(|found| is_network_type(i128::from(found.f_type) & 0xffff_ffff))
}

#[cfg(not(target_os = "linux"))]
fn has_network_type(_folder: &Path) -> bool {
    false
}

/// The file systems of statfs(2) that are shared between hosts, and FUSE, which may be.
#[cfg(target_os = "linux")]
fn is_network_type(magic: i128) -> bool {
    const NETWORK_TYPES: [i128; 15] = [
        0x6969,      // NFS
        0x517b,      // SMB
        0xff53_4d42, // CIFS
        0xfe53_4d42, // SMB2
        0x00c3_6400, // Ceph
        0x0bd0_0bd0, // Lustre
        0x6573_5546, // FUSE
        0x5346_414f, // AFS
        0x6b41_4653, // kAFS
        0x0102_1997, // 9P
        0x4750_4653, // GPFS
        0x7461_636f, // OCFS2
        0x0116_1970, // GFS2
        0x1983_0326, // BeeGFS
        0x7375_7245, // Coda
    ];
    NETWORK_TYPES.contains(&magic)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_follows_the_environment() {
        let os = |text: &str| Some(OsString::from(text));
        assert_eq!(usual(os("/x"), os("/h")), Some(PathBuf::from("/x/ckpt")));
        assert_eq!(usual(None, os("/h")), Some(PathBuf::from("/h/.cache/ckpt")));
        assert_eq!(usual(os("relative"), os("/h")), Some(PathBuf::from("/h/.cache/ckpt")));
        assert_eq!(usual(os(""), None), None);
    }

    #[test]
    fn a_folder_is_created_for_its_owner_only() {
        let folder = tempfile::tempdir().expect("a folder");
        let wanted = folder.path().join("a/b");
        let chosen = choose(Some(&wanted), None, None).expect("a cache folder");
        assert!(matches!(chosen, Chosen { cache: Cache::Folder(path), warning: None } if path == wanted));
        let mode = fs::metadata(&wanted).expect("it exists").mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn a_folder_that_cannot_be_made_falls_back_and_says_so_if_it_was_asked_for() {
        let chosen = choose(None, None, Some(OsString::from("/dev/null/home"))).expect("a cache folder");
        assert!(matches!(chosen.cache, Cache::Folder(path) if path.starts_with("/var/tmp")));
        assert_eq!(chosen.warning, None);
        let chosen = choose(Some(Path::new("/dev/null/x")), None, None).expect("a cache folder");
        assert!(chosen.warning.is_some_and(|text| text.contains("/dev/null/x")));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn network_types_are_known() {
        assert!(is_network_type(0x6969));
        assert!(!is_network_type(0xef53), "ext4 is local");
    }
}
