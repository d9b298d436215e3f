//! Real files of some MiB; where the file system cannot tell what is cached, or keeps all, nothing can be shown.

use super::*;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;

const MIB: usize = 1 << 20;

/// A file of so many bytes, none of them cached; none if this cannot be had here.
fn uncached(folder: &Path, bytes: usize) -> Option<File> {
    let path = folder.join("f");
    std::fs::write(&path, content(bytes)).expect("written");
    let file = File::open(path).expect("opened");
    file.sync_all().expect("synced");
    // A kernel that is about to take a page away by itself does not drop it when asked to.
    let is_gone = (0..20).any(|_| {
        forget(&file);
        !cached(&file).iter().any(|is_cached| *is_cached)
    });
    if !is_gone {
        // The handle, unlike the macro, is not captured.
        let place = folder.display();
        let _ = writeln!(io::stderr(), "NOT RUN: the file system of {place} keeps all pages, or cannot tell");
        return None;
    }
    Some(file)
}

fn content(bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    blake3::Hasher::new().finalize_xof().fill(&mut content);
    content
}

fn forget(file: &File) {
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed).expect("dropped");
}

/// For each 64 KiB, whether its first page is cached; asked through a descriptor of its own, and leaves all as it is.
fn cached(file: &File) -> Vec<bool> {
    let file = File::open(format!("/proc/self/fd/{}", file.as_raw_fd())).expect("opened once more");
    rustix::fs::fadvise(&file, 0, None, Advice::Random).expect("no read-ahead");
    let look = |at: u64| match read_without_waiting(&file, at, &mut [0]) {
        Ok(_) => true,
        Err(_) => {
            // Waits until the page is there, so that it can be dropped.
            file.read_at(&mut [0], at).expect("read");
            rustix::fs::fadvise(&file, at, NonZeroU64::new(PAGE_BYTES), Advice::DontNeed).expect("dropped");
            false
        }
    };
    (0..file.metadata().expect("a length").len()).step_by(64 << 10).map(look).collect()
}

/// A kernel may take pages away, or hold on to them, for reasons of its own at any moment: what reading does, it does each time.
fn some_time(mut check: impl FnMut() -> Result<(), String>) {
    for attempt in 1..=10 {
        match check() {
            Ok(()) => return,
            Err(text) => assert!(attempt < 10, "{text}"),
        }
    }
}

#[test]
fn what_was_cached_stays_and_what_was_not_stays_out() {
    some_time(read_half_cached);
}

fn read_half_cached() -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let bytes = 24 * MIB + 12_345;
    let Some(file) = uncached(folder.path(), bytes) else { return Ok(()) };
    // Stretches that begin and end anywhere.
    let mut stretch = vec![0; 5 * MIB + 70_000];
    for at in [3 * MIB + 300_000, 14 * MIB] {
        file.read_exact_at(&mut stretch, at as u64).expect("read");
    }
    let before = cached(&file);
    assert!(before.iter().any(|is_cached| *is_cached));
    for piece_bytes in [4 * MIB, MIB + 13, 300_000, 9_000] {
        let (cache, mut piece, mut all) = (PageCache::new(bytes as u64), vec![0; piece_bytes], Vec::new());
        while let read @ 1.. = cache.read_at(&file, all.len() as u64, &mut piece).expect("read") {
            all.extend_from_slice(&piece[..read]);
        }
        assert!(cache.can_tell());
        assert!(all == content(bytes), "read in pieces of {piece_bytes}");
        let after = cached(&file);
        let changed = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        // At each of four edges a step at most.
        if changed > 8 {
            return Err(format!("read in pieces of {piece_bytes}, {changed} of {} places have changed", before.len()));
        }
    }
    Ok(())
}

#[test]
fn whether_the_last_read_was_cached_is_told() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    some_time(|| {
        let Some(file) = uncached(folder.path(), 3 * MIB) else { return Ok(()) };
        let cache = PageCache::new(3 * MIB as u64);
        let mut told = vec![cache.was_cached()];
        let mut read = |cache: &PageCache| {
            cache.read_at(&file, 0, &mut vec![0; 3 * MIB]).expect("read");
            told.push(cache.was_cached());
        };
        read(&cache);
        std::io::copy(&mut &file, &mut std::io::sink()).expect("read");
        read(&cache);
        read(&refusing(3 * MIB));
        if told == [false, false, true, false] { Ok(()) } else { Err(format!("{told:?}")) }
    });
}

#[test]
fn every_range_is_read_as_it_is_whether_cached_or_not() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let bytes = 2 * MIB + 4_097;
    let Some(file) = uncached(folder.path(), bytes) else { return };
    let content = content(bytes);
    for cached in [false, true] {
        let cache = PageCache::new(bytes as u64);
        for offset in [0, 1, 4_095, 4_096, MIB - 1, MIB, MIB + 5_000, bytes - 1, bytes, bytes + 9_000] {
            for wanted in [0, 1, 4_096, 65_535, 65_536, MIB - 1, MIB, MIB + 4_097, 3 * MIB] {
                if cached {
                    std::io::copy(&mut &file, &mut std::io::sink()).expect("read");
                } else {
                    forget(&file);
                }
                let here = content.get(offset..).unwrap_or_default();
                let here = &here[..here.len().min(wanted)];
                let mut slice = vec![7; wanted];
                assert_eq!(cache.read_at(&file, offset as u64, &mut slice).expect("read"), here.len());
                assert!(&slice[..here.len()] == here, "{wanted} bytes at {offset}");
                let mut into = vec![1, 2, 3];
                let read = cache.read_into(&file, offset as u64, wanted, &mut Appending::new(&mut into));
                assert_eq!(read.expect("read"), here.len());
                assert!(into[..3] == [1, 2, 3] && into[3..] == *here, "{wanted} bytes at {offset}, appended");
                let mut buffer = vec![7; wanted + SLACK_BYTES];
                let place = place_for(offset as u64, &buffer);
                let around = &mut Around::new(&mut buffer, place, wanted);
                assert_eq!(cache.read_into(&file, offset as u64, wanted, around).expect("read"), here.len());
                assert!(buffer[place..place + here.len()] == *here, "{wanted} bytes at {offset}, in place");
            }
        }
    }
}

#[test]
fn a_file_that_cannot_be_read_past_the_cache_is_read_through_it_and_dropped() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let bytes = 3 * MIB + 5;
    some_time(|| {
        let Some(file) = uncached(folder.path(), bytes) else { return Ok(()) };
        let cache = PageCache::new(bytes as u64);
        cache.state.direct.set(None).expect("first");
        let mut all = vec![0; bytes];
        assert_eq!(cache.read_at(&file, 0, &mut all).expect("read"), bytes);
        assert!(all == content(bytes));
        let left = cached(&file).iter().filter(|is_cached| **is_cached).count();
        if left == 0 { Ok(()) } else { Err(format!("{left} places stay cached")) }
    });
}

#[test]
fn an_error_of_reading_is_reported() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("f");
    std::fs::write(&path, content(MIB)).expect("written");
    // Open for writing only.
    let file = std::fs::OpenOptions::new().write(true).open(path).expect("opened");
    for wanted in [10, MIB] {
        let cache = PageCache::new(MIB as u64);
        cache.read_at(&file, 0, &mut vec![0; wanted]).expect_err("not readable");
    }
}

/// Linux 5.9 and 5.10 may give nothing, instead of an error, where a file is not cached.
#[test]
fn a_kernel_that_says_the_end_for_what_is_not_cached_is_not_believed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("f");
    let all = content(3 * MIB + 7);
    std::fs::write(&path, &all).expect("written");
    let file = File::open(&path).expect("opened");
    for piece_bytes in [4000, 200_000, 4 * MIB] {
        // Nothing at all, and nothing from somewhere within a piece on.
        let says: [ReadCached; 2] = [
            |_, _, _| Ok(0),
            |file, at, room| match at {
                ..1_000_000 => {
                    let room_bytes = room.len().min(usize::try_from(1_000_000 - at).expect("small"));
                    Ok(file.read_at(&mut room[..room_bytes], at).expect("read"))
                }
                _ => Ok(0),
            },
        ];
        for says in says {
            let mut cache = PageCache::new(all.len() as u64);
            cache.state.read_cached = says;
            let (mut read, mut piece) = (Vec::new(), vec![0; piece_bytes]);
            loop {
                let count = cache.read_at(&file, read.len() as u64, &mut piece).expect("readable");
                read.extend_from_slice(&piece[..count]);
                if count < piece_bytes {
                    break;
                }
            }
            assert!(read == all, "{} bytes of {} in pieces of {piece_bytes}", read.len(), all.len());
        }
    }
}

/// As on a network file system.
fn refusing(file_bytes: usize) -> PageCache {
    let mut cache = PageCache::new(file_bytes as u64);
    cache.state.read_cached = |_, _, _| Err(Errno::OPNOTSUPP);
    cache
}

#[test]
fn where_the_kernel_does_not_say_what_is_cached_nothing_is_dropped() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    for file_bytes in [10_000, 60_000, 3 * MIB] {
        some_time(|| {
            let Some(file) = uncached(folder.path(), file_bytes) else { return Ok(()) };
            std::io::copy(&mut &file, &mut std::io::sink()).expect("read");
            for wanted in [9_000, 65_000, MIB] {
                let (cache, mut piece, mut all) = (refusing(file_bytes), vec![0; wanted], Vec::new());
                while let read @ 1.. = cache.read_at(&file, all.len() as u64, &mut piece).expect("read") {
                    all.extend_from_slice(&piece[..read]);
                }
                assert!(all == content(file_bytes));
                assert!(!cache.can_tell());
            }
            let gone = cached(&file).iter().filter(|is_cached| !**is_cached).count();
            if gone == 0 { Ok(()) } else { Err(format!("{gone} places of {file_bytes} bytes are gone")) }
        });
    }
}

#[test]
fn where_the_kernel_does_not_say_what_is_cached_it_reads_ahead_as_usual() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let Some(_) = uncached(folder.path(), 3 * MIB) else { return };
    // Places that reading the first MiB in small pieces has left in the cache beyond it.
    let ahead = |cache: Option<PageCache>| {
        let file = uncached(folder.path(), 3 * MIB).expect("as before");
        let mut piece = vec![0; 16 << 10];
        for at in (0..MIB).step_by(piece.len()) {
            match &cache {
                Some(cache) => cache.read_at(&file, at as u64, &mut piece).expect("read"),
                None => file.read_at(&mut piece, at as u64).expect("read"),
            };
        }
        cached(&file)[MIB >> 16..].iter().filter(|is_cached| **is_cached).count()
    };
    some_time(|| {
        if ahead(None) == 0 {
            let _ = writeln!(io::stderr(), "NOT RUN: nothing is read ahead here");
            return Ok(());
        }
        if ahead(Some(refusing(3 * MIB))) > 0 { Ok(()) } else { Err("nothing is read ahead".to_owned()) }
    });
}

#[test]
fn what_goes_wrong_only_when_it_is_not_waited_for_is_read_all_the_same() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("f");
    std::fs::write(&path, content(2 * MIB)).expect("written");
    let file = File::open(path).expect("opened");
    let mut cache = PageCache::new(2 * MIB as u64);
    // The first pages are cached; behind them the kernel does not say.
    cache.state.read_cached = |file, at, room| match at {
        0 => read_without_waiting(file, at, room),
        _ => Err(Errno::OPNOTSUPP),
    };
    let mut all = vec![0; 2 * MIB];
    assert_eq!(cache.read_at(&file, 0, &mut all).expect("read"), 2 * MIB);
    assert!(all == content(2 * MIB));
    assert!(!cache.can_tell());
}
