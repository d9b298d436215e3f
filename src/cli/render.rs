//! What people see: escaped names, tables, local times.
//!
//! Every name that comes from a file system or a repository passes [`path`] or [`prose`] before it reaches a terminal:
//! nothing stored in a file name can move the cursor, change the text's direction or forge a line.

use ckpt::metadata::{FileKind, FileTime, Metadata};
use jiff::tz::TimeZone;
use std::fmt::Write;

/// A path or name for people: control characters, characters that change the direction of text, bytes that are not
/// UTF-8 and backslashes are written as escapes (`\n`, `\x1b`, `\u{202e}`, `\\`). Different paths never look the same.
pub fn path(bytes: &[u8]) -> String {
    let mut shown = String::with_capacity(bytes.len());
    for part in bytes.utf8_chunks() {
        for character in part.valid().chars() {
            match character {
                '\\' => shown.push_str("\\\\"),
                _ => push_escaped(&mut shown, character),
            }
        }
        for byte in part.invalid() {
            push_byte(&mut shown, *byte);
        }
    }
    shown
}

/// A sentence for people, on one line: as [`path`], but backslashes stay as they are.
pub fn prose(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    text.chars().for_each(|character| push_escaped(&mut shown, character));
    shown
}

fn push_escaped(shown: &mut String, character: char) {
    let code = u32::from(character);
    match character {
        '\n' => shown.push_str("\\n"),
        '\t' => shown.push_str("\\t"),
        '\r' => shown.push_str("\\r"),
        _ if code < 0x20 || code == 0x7f => push_byte(shown, u8::try_from(code).unwrap_or(0)),
        _ if character.is_control() || is_invisible(code) => {
            // Writing to a string cannot fail.
            let _ = write!(shown, "\\u{{{code:x}}}");
        }
        _ => shown.push(character),
    }
}

fn push_byte(shown: &mut String, byte: u8) {
    let _ = write!(shown, "\\x{byte:02x}");
}

/// Line separators, zero-width characters, marks that change the direction of text, tags.
fn is_invisible(code: u32) -> bool {
    matches!(code, 0xad | 0x61c | 0x180e | 0x200b..=0x200f | 0x2028..=0x202e | 0x2060..=0x206f | 0xfeff | 0xfff9..=0xfffb)
        || (0xe0000..=0xe007f).contains(&code)
}

/// A time in `zone` with its offset: `2026-11-19 14:00:05 +01:00`.
pub fn time(time: FileTime, zone: &TimeZone) -> String {
    match super::times::instant(time) {
        Some(instant) => instant.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %:z").to_string(),
        None => format!("{} s since 1970", time.seconds),
    }
}

/// A duration in whole units: `42 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`.
pub fn duration(seconds: f64) -> String {
    // Casting saturates, and not-a-number becomes 0.
    let whole = seconds.round() as u64;
    match whole {
        0..=59 => format!("{whole} s"),
        60..=3_599 => format!("{} min {} s", whole / 60, whole % 60),
        3_600..=86_399 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// Kind and permissions as `ls -l` shows them: `drwxr-xr-x`.
pub fn mode(metadata: &Metadata) -> String {
    let kind = match metadata.kind {
        FileKind::Regular => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink { .. } => 'l',
        FileKind::Fifo => 'p',
        FileKind::CharDevice { .. } => 'c',
        FileKind::BlockDevice { .. } => 'b',
    };
    let bit = |mask: u32, letter: char| if metadata.mode & mask != 0 { letter } else { '-' };
    let special = |execute: u32, mask: u32, both: char, alone: char| match (
        metadata.mode & execute != 0,
        metadata.mode & mask != 0,
    ) {
        (true, true) => both,
        (false, true) => alone,
        (true, false) => 'x',
        (false, false) => '-',
    };
    [
        kind,
        bit(0o400, 'r'),
        bit(0o200, 'w'),
        special(0o100, 0o4000, 's', 'S'),
        bit(0o040, 'r'),
        bit(0o020, 'w'),
        special(0o010, 0o2000, 's', 'S'),
        bit(0o004, 'r'),
        bit(0o002, 'w'),
        special(0o001, 0o1000, 't', 'T'),
    ]
    .iter()
    .collect()
}

/// `1 file`, `2 files`.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {many}") }
}

/// On which side of its column a cell stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Rows in aligned columns; widths are counted in characters.
#[derive(Debug)]
pub struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table with these headings.
    pub fn new(columns: &[(&'static str, Side)]) -> Self {
        Table { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; cells are shown as they are, so names in them are escaped before.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The lines: headings first, without trailing spaces.
    pub fn lines(&self) -> Vec<String> {
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(i, (heading, _))| {
                let cells = self.rows.iter().filter_map(|row| row.get(i)).map(|cell| cell.chars().count());
                cells.max().unwrap_or(0).max(heading.chars().count())
            })
            .collect();
        let headings = self.columns.iter().map(|(heading, _)| (*heading).to_owned()).collect();
        std::iter::once(&headings).chain(&self.rows).map(|row| self.line(row, &widths)).collect()
    }

    fn line(&self, row: &[String], widths: &[usize]) -> String {
        let cells = row.iter().zip(&self.columns).zip(widths);
        let padded = cells.map(|((cell, (_, side)), width)| match side {
            Side::Left => format!("{cell:<width$}"),
            Side::Right => format!("{cell:>width$}"),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_reach_the_terminal() {
        assert_eq!(path(b"plain/name.safetensors"), "plain/name.safetensors");
        assert_eq!(path("größe/模型".as_bytes()), "größe/模型");
        assert_eq!(path(b"a\x1b[2Jb\n\r\t\x07\x7f"), "a\\x1b[2Jb\\n\\r\\t\\x07\\x7f");
        assert_eq!(path(b"bad\xff\xc3"), "bad\\xff\\xc3");
        assert_eq!(path("\u{202e}txt\u{9b}\u{200b}".as_bytes()), "\\u{202e}txt\\u{9b}\\u{200b}");
        assert_eq!(path(b"a\\xff"), "a\\\\xff", "an escape in a name differs from an escaped byte");
        assert_eq!(prose("reading \"a\\nb\"\n"), "reading \"a\\nb\"\\n");
    }

    #[test]
    fn times_are_local_with_offset() {
        let zone = TimeZone::get("Europe/Berlin").expect("a known zone");
        let shown = time(FileTime { seconds: 1_795_093_205, nanoseconds: 5 }, &zone);
        assert_eq!(shown, "2026-11-19 14:00:05 +01:00");
        assert_eq!(time(FileTime { seconds: i64::MAX, nanoseconds: 0 }, &zone), "9223372036854775807 s since 1970");
    }

    #[test]
    fn durations_read_well() {
        assert_eq!(duration(0.4), "0 s");
        assert_eq!(duration(61.0), "1 min 1 s");
        assert_eq!(duration(7_500.0), "2 h 5 min");
        assert_eq!(duration(100.0 * 3_600.0), "4 d 4 h");
        assert_eq!(duration(f64::NAN), "0 s");
        assert!(duration(f64::INFINITY).contains(" d "));
    }

    #[test]
    fn columns_align() {
        let mut table = Table::new(&[("NAME", Side::Left), ("SIZE", Side::Right)]);
        table.row(vec!["é".to_owned(), "10 B".to_owned()]);
        table.row(vec!["longer".to_owned(), "1 B".to_owned()]);
        assert_eq!(table.lines(), ["NAME    SIZE", "é       10 B", "longer   1 B"]);
    }

    #[test]
    fn modes_as_ls_shows_them() {
        let metadata = |kind, mode| Metadata {
            kind,
            mode,
            uid: 0,
            gid: 0,
            size: 0,
            mtime: FileTime::default(),
            ctime: FileTime::default(),
            inode: 0,
            link_group: None,
            xattrs: Vec::new(),
        };
        assert_eq!(mode(&metadata(FileKind::Regular, 0o4755)), "-rwsr-xr-x");
        assert_eq!(mode(&metadata(FileKind::Directory, 0o1776)), "drwxrwxrwT");
    }
}
