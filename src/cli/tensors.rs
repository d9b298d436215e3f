//! How tensors are shown: names, shapes, and the lines and documents of `ls --tensors`.

use super::context::Context;
use super::exit::Ending;
use super::json::{ListTensorsHead, ListTensorsTail, TensorFileItem};
use super::output::LazyDocument;
use super::render::{self, Side, Table};
use ckpt::bytes::ByteCount;
use ckpt::error::Result;
use ckpt::ops::list_tensors::{ListTensorsReport, ListedFile, ListedTensor, list_tensors};
use ckpt::ops::tensors::{Part, TensorFilter, Walked};
use ckpt::repo::Repo;

/// A longer shape is cut: no column may become as wide as a hostile file wants.
const SHAPE_CHARACTERS_MAX: usize = 32;

/// `4096x11008`; `scalar` for none.
pub fn shape(shape: &[u64]) -> String {
    if shape.is_empty() {
        return "scalar".to_owned();
    }
    let mut shown = String::new();
    for dimension in shape {
        let part = dimension.to_string();
        if shown.len() + part.len() > SHAPE_CHARACTERS_MAX {
            shown.push('…');
            return shown;
        }
        if !shown.is_empty() {
            shown.push('x');
        }
        shown.push_str(&part);
    }
    shown
}

/// A name for people; the empty one, which a lone tensor has, is seen.
pub fn name(name: &str) -> String {
    if name.is_empty() { "\"\"".to_owned() } else { render::path(name.as_bytes()) }
}

/// Bytes, or a sign that they cannot be told.
pub fn bytes(count: Option<u64>) -> String {
    count.map_or_else(|| "?".to_owned(), |bytes| ByteCount(bytes).to_string())
}

/// Aligned rows with a name of any length behind each; `indent` stands in front of all.
pub fn rows(columns: &[(&'static str, Side)], rows: Vec<(Vec<String>, String)>, indent: &str) -> Vec<String> {
    let mut columns = columns.to_vec();
    // An empty last column keeps the others at their width.
    columns.push(("", Side::Left));
    let mut table = Table::new(&columns);
    let mut names = vec!["NAME".to_owned()];
    for (mut cells, name) in rows {
        cells.push(".".to_owned());
        table.row(cells);
        names.push(name);
    }
    let widths = table.lines();
    let whole = widths.iter().map(|line| line.trim_end_matches('.').chars().count()).max().unwrap_or(0);
    let line = |(cells, name): (&String, String)| {
        format!("{indent}{:<whole$}{name}", cells.trim_end_matches('.')).trim_end().to_owned()
    };
    widths.iter().zip(names).map(line).collect()
}

/// Lists the tensors of `part`.
pub fn list(context: &Context, repo: &Repo, part: Part<'_>, filter: &TensorFilter) -> Result<Ending> {
    let output = &context.output;
    let report = if output.manners.json {
        let head = ListTensorsHead { snapshot: part.snapshot.id.to_hex() };
        let mut stream = LazyDocument::new(output, "ls_tensors", head, "files");
        let report = list_tensors(repo, part, filter, &context.reporter, &mut |file| {
            stream.item(&TensorFileItem::new(part.snapshot, file))
        })?;
        stream.end(&ListTensorsTail {
            files_total: report.files,
            tensors_total: report.tensors,
            bytes: report.bytes,
            bytes_stored: report.stored_bytes,
            files_passed_over: report.walked.passed_over,
            damaged: report.walked.damaged.count,
        })?;
        report
    } else {
        let mut show = |file: &ListedFile| {
            file_lines(part, file).iter().try_for_each(|line| output.line(line))?;
            output.line("")
        };
        let report = list_tensors(repo, part, filter, &context.reporter, &mut show)?;
        output.line(&total(&report))?;
        report
    };
    context.reporter.end_phase();
    Ok(ending(&report.walked))
}

/// How a look ends that met damage, or none.
pub fn ending(walked: &Walked) -> Ending {
    if walked.damaged.is_empty() {
        return Ending::Done;
    }
    Ending::Damage(
        "files or parts of the listing cannot be read because they are damaged".to_owned(),
        Some("`ckpt verify` says more; other snapshots may be sound"),
    )
}

fn file_lines(part: Part<'_>, file: &ListedFile) -> Vec<String> {
    let layout = &file.file.layout;
    let cut = if layout.is_truncated { ", cut short" } else { "" };
    let mut lines = vec![format!(
        "{}: {}{cut}, {}, {} stored as {}",
        render::path(&super::ls::path(part.snapshot, &file.file.file.entry)),
        layout.container.name(),
        render::counted(file.tensors.len() as u64, "tensor", "tensors"),
        ByteCount(file.bytes),
        ByteCount(file.stored_bytes),
    )];
    if file.tensors.is_empty() {
        return lines;
    }
    let with_bases = file.tensors.iter().any(|tensor| tensor.segments_with_base > 0);
    let mut columns = vec![
        ("DTYPE", Side::Left),
        ("SHAPE", Side::Left),
        ("BYTES", Side::Right),
        ("STORED", Side::Right),
        ("CODEC", Side::Left),
    ];
    if with_bases {
        columns.push(("BASE", Side::Left));
    }
    let row = |tensor: &ListedTensor| {
        let described = &tensor.tensor;
        let mut cells = vec![
            render::prose(described.dtype.name()),
            shape(&described.shape),
            bytes(tensor.bytes),
            bytes(tensor.stored_bytes),
            if tensor.codecs.is_empty() { "-".to_owned() } else { tensor.codecs.join(",") },
        ];
        if with_bases {
            cells.push(base(tensor));
        }
        (cells, name(&described.name))
    };
    lines.extend(rows(&columns, file.tensors.iter().map(row).collect(), ""));
    lines
}

/// How many of the segments have bases, and the first base.
fn base(tensor: &ListedTensor) -> String {
    match tensor.bases.first() {
        Some(first) => format!("{}/{} {}", tensor.segments_with_base, tensor.segments, first.short()),
        None => "-".to_owned(),
    }
}

fn total(report: &ListTensorsReport) -> String {
    format!(
        "total: {} in {}, {} stored as {}",
        render::counted(report.tensors, "tensor", "tensors"),
        render::counted(report.files, "file", "files"),
        ByteCount(report.bytes),
        ByteCount(report.stored_bytes),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_short_whatever_a_file_says() {
        assert_eq!(shape(&[]), "scalar");
        assert_eq!(shape(&[4096, 11008]), "4096x11008");
        assert!(shape(&[u64::MAX; 1000]).chars().count() <= SHAPE_CHARACTERS_MAX + 1);
    }

    #[test]
    fn names_of_any_length_stand_in_one_column() {
        let columns = [("A", Side::Left), ("B", Side::Right)];
        let row = |a: &str, b: &str, name: &str| (vec![a.to_owned(), b.to_owned()], name.to_owned());
        let lines = rows(&columns, vec![row("x", "10", "short"), row("long", "1", &"n".repeat(500))], " ");
        assert_eq!(lines[0], " A      B  NAME");
        assert_eq!(lines[1], " x     10  short");
        assert_eq!(lines[2], format!(" long   1  {}", "n".repeat(500)));
    }
}
