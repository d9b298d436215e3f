//! What a run leaves in the page cache: as much of the source and of the packs as was there before, and of big restored
//! files nothing.
//!
//! Real files of some tens of MB, some of them in the cache, some half, some not. Where the file system of the test cannot
//! tell what is cached, or keeps all of it, nothing of this can be shown.

use crate::support::program::Place;
use crate::support::{noise, not_run, say};
use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{IoSliceMut, Read};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// How often it is tried.
const ATTEMPTS: usize = 8;
const MIB: usize = 1 << 20;
/// One page in so many bytes is looked at.
const SAMPLE_BYTES: usize = 64 << 10;

/// For every file beneath `folder` of at least a MiB, which of the sampled pages are cached.
type Cached = BTreeMap<PathBuf, Vec<bool>>;

fn cached_beneath(folder: &Path) -> Cached {
    let mut found = Cached::new();
    for entry in walkdir::WalkDir::new(folder) {
        let entry = entry.expect("listed");
        if entry.file_type().is_file() && entry.metadata().expect("a length").len() >= MIB as u64 {
            found.insert(entry.path().to_owned(), cached(entry.path()));
        }
    }
    found
}

/// Asks the kernel page by page, and leaves all as it is.
fn cached(path: &Path) -> Vec<bool> {
    let file = File::open(path).expect("opened");
    rustix::fs::fadvise(&file, 0, None, Advice::Random).expect("no read-ahead");
    let is_cached = |at: u64| {
        let mut byte = [0];
        match rustix::io::preadv2(&file, &mut [IoSliceMut::new(&mut byte)], at, ReadWriteFlags::NOWAIT) {
            Err(Errno::AGAIN) => {
                // Waits until the page is there, so that it can be dropped again.
                file.read_at(&mut byte, at).expect("read");
                rustix::fs::fadvise(&file, at, NonZeroU64::new(4096), Advice::DontNeed).expect("dropped");
                false
            }
            // Whoever cannot tell says so of every page, and `can_be_shown` has found out.
            _ => true,
        }
    };
    (0..file.metadata().expect("a length").len()).step_by(SAMPLE_BYTES).map(is_cached).collect()
}

/// Takes what is beneath the folder out of the cache.
fn drop_beneath(folder: &Path) {
    for path in cached_beneath(folder).keys() {
        let file = File::open(path).expect("opened");
        file.sync_all().expect("synced");
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).expect("dropped");
    }
}

/// Brings the first half of the file into the cache.
fn warm_half(path: &Path) {
    warm(path, 2);
}

/// Brings the first of so many equal parts of the file into the cache. Not by reading ahead, which leaves marks on some pages: of
/// those the kernel says that they are not there.
fn warm(path: &Path, parts: u64) {
    let file = File::open(path).expect("opened");
    rustix::fs::fadvise(&file, 0, None, Advice::Random).expect("no read-ahead");
    let part = file.metadata().expect("a length").len() / parts;
    std::io::copy(&mut file.take(part), &mut std::io::sink()).expect("read");
}

fn share(cached: &Cached) -> f64 {
    let all = cached.values().flatten();
    all.clone().filter(|is_cached| **is_cached).count() as f64 / all.count().max(1) as f64
}

/// The same but for one sample in forty: a stretch of the cache ends somewhere within a window, and tables stay cached.
fn as_before(what: &str, before: &Cached, after: &Cached) -> Result<(), String> {
    let mut changed = 0;
    for (path, before) in before {
        changed += before.iter().zip(&after[path]).filter(|(before, after)| before != after).count();
    }
    let samples: usize = before.values().map(Vec::len).sum();
    let text = format!("{what}: {changed} of {samples} samples changed, {:.3} -> {:.3}", share(before), share(after));
    if changed * 40 <= samples { Ok(()) } else { Err(text) }
}

fn within(what: &str, range: std::ops::Range<f64>, share: f64) -> Result<(), String> {
    if range.contains(&share) { Ok(()) } else { Err(format!("{what}: {share:.3}, not in {range:?}")) }
}

/// Sources of three kinds: tensors of which nothing is cached, bytes of which half is, and others that are.
fn sources(place: &Place) -> PathBuf {
    let folder = place.path("data");
    fs::create_dir_all(&folder).expect("a folder");
    let numbers = crate::support::weights::weights(1, 6 << 20);
    let tensor =
        crate::support::weights::Tensor::new("w", "F32", numbers.iter().flat_map(|n| n.to_le_bytes()).collect());
    fs::write(folder.join("absent.safetensors"), crate::support::weights::safetensors(&[tensor], 0)).expect("a file");
    fs::write(folder.join("half"), noise(2, 20 * MIB + 5)).expect("a file");
    fs::write(folder.join("present"), noise(3, 6 * MIB)).expect("a file");
    drop_beneath(&folder);
    warm_half(&folder.join("half"));
    warm(&folder.join("present"), 1);
    folder
}

/// None, with a word, if this machine cannot show it.
fn place_that_tells() -> Option<Place> {
    let place = Place::new();
    let probe = place.path("probe");
    fs::write(&probe, noise(1, 2 * MIB)).expect("a file");
    let is_all_cached = cached(&probe).iter().all(|is_cached| *is_cached);
    drop_beneath(&probe);
    if !is_all_cached || cached(&probe).iter().filter(|is_cached| **is_cached).count() > 4 {
        not_run("what stays in the page cache", "the file system of the test folder does not tell, or keeps all");
        return None;
    }
    place.succeed(&["init"]);
    Some(place)
}

#[test]
fn a_run_leaves_the_page_cache_as_it_was() {
    // A kernel may take pages away, or hold on to them, for reasons of its own at any moment. What a run does, it does each time.
    for attempt in 1..=ATTEMPTS {
        let Some(place) = place_that_tells() else { return };
        match all_as_before(&place) {
            Ok(()) => return,
            Err(text) if attempt == ATTEMPTS => panic!("{text}"),
            Err(text) => say(&format!("page cache, attempt {attempt}: {text}")),
        }
    }
}

fn all_as_before(place: &Place) -> Result<(), String> {
    let data = sources(place);
    let before = cached_beneath(&data);
    within("source", 0.2..0.5, share(&before))?;
    place.backup("data");
    as_before("source after a backup", &before, &cached_beneath(&data))?;

    let packs = place.path("repository/packs");
    let written = cached_beneath(&packs);
    within("packs as they were written", 0.0..0.025, share(&written))?;
    let largest = written.keys().max_by_key(|path| fs::metadata(path).expect("a length").len()).expect("a pack");
    warm_half(largest);
    let before_packs = cached_beneath(&packs);
    within("packs", 0.2..0.6, share(&before_packs))?;

    place.succeed(&["verify", "--read-data"]);
    as_before("packs after a verification", &before_packs, &cached_beneath(&packs))?;
    place.succeed(&["restore", "latest", "--target", &place.text("restored")]);
    as_before("packs after a restore", &before_packs, &cached_beneath(&packs))?;
    let restored = cached_beneath(&place.path("restored"));
    assert_eq!(restored.len(), 3);
    within("restored files", 0.0..0.025, share(&restored))?;

    place.succeed(&["verify", "latest", "--against", &place.text("data")]);
    as_before("source after a comparison", &before, &cached_beneath(&data))?;
    assert_eq!(place.run(&["dump", "latest", "half"]).stdout.len(), 20 * MIB + 5);
    as_before("packs after a dump", &before_packs, &cached_beneath(&packs))
}
