//! The sample containers in `tests/data/containers`.

use std::fs::{self, File, FileTimes};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Where the samples are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/containers")
}

/// Copies all samples to a new folder, as if nobody had touched them for long.
pub fn copy_containers(to: &Path) {
    for item in walkdir::WalkDir::new(folder()).into_iter().map(|item| item.expect("readable")) {
        let place = to.join(item.path().strip_prefix(folder()).expect("beneath"));
        match item.file_type().is_dir() {
            true => fs::create_dir_all(&place).expect("a folder"),
            false => write_old(&place, &fs::read(item.path()).expect("a sample")),
        }
    }
}

/// Writes a file whose time lies far back, so that it counts as finished; what was there counts as changed by its inode.
pub fn write_old(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).expect("written");
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    let file = File::options().write(true).open(path).expect("just written");
    file.set_times(FileTimes::new().set_modified(time)).expect("ours");
}
