//! The shape of the source: which layer may import which, how long files and functions may be, files that nobody compiles,
//! words that do not belong, links of the documents.
//!
//! A rule is held for every file, or the file stands in [`EXCEPTIONS`], which may only shrink: an exception that is no
//! longer needed fails as well. Rust is looked at as text with comments and strings blanked out, which is exact enough.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Files (relative to the project) that a rule does not hold for yet.
const EXCEPTIONS: &[(Rule, &str)] = &[];

/// The vocabulary: may be imported by everything and imports nothing but itself.
const VOCABULARY: &[&str] = &[
    "error",
    "ids",
    "bytes",
    "metadata",
    "events",
    "paths",
    "aligned",
    "page_cache",
    "read_at",
    "sabotage",
    "threads",
];

/// Which modules of the library the code of a module may import, beside the vocabulary and itself.
const LAYERS: &[(&str, &[&str])] = &[
    ("source", &[]),
    ("codec", &[]),
    ("storage", &[]),
    ("repo", &["codec", "storage"]),
    ("ops", &["source", "codec", "storage", "repo"]),
    // The program: it names the library as `ckpt`, and itself as `crate`.
    ("cli", &[]),
];

/// Modules of `ops` that are no operations but rules which operations may share.
const SHARED_BY_OPS: &[&str] = &["retention", "ahead", "tensors", "examine", "signs"];

/// The one file of the library that reads the environment, and only in a build that is made to be broken.
const READS_ENVIRONMENT: &str = "src/sabotage.rs";

const FILE_LINES_MAX: usize = 400;
const FUNCTION_LINES_MAX: usize = 70;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    Import,
    FileLength,
    FunctionLength,
    Opening,
    Module,
    Word,
    Link,
}

/// What breaks a rule: in which file, and what it is.
type Violation = (Rule, String, String);

/// One Rust file.
struct Source {
    /// Relative to the project.
    path: String,
    text: String,
    /// The text with comments and strings blanked out; as many lines, as many bytes.
    code: String,
    /// True if the whole file is there for tests only.
    is_test: bool,
}

impl Source {
    /// Lines before the tests at the end of the file.
    fn lines_before_tests(&self) -> usize {
        if self.is_test {
            return 0;
        }
        let lines: Vec<&str> = self.text.lines().collect();
        let begins = |at: &usize| {
            let next = lines.get(at + 1).copied().unwrap_or_default();
            let is_module = next.starts_with("mod ") || (next.starts_with("pub") && next.contains(" mod "));
            lines[*at] == "#[cfg(test)]" && is_module && (next.ends_with('{') || next == "mod tests;")
        };
        (0..lines.len()).find(begins).unwrap_or(lines.len())
    }

    /// The code before the tests.
    fn product(&self) -> &str {
        let end = self.code.split_inclusive('\n').take(self.lines_before_tests()).map(str::len).sum();
        &self.code[..end]
    }

    /// The module of a file in `src`: `["repo", "index"]`; empty for the crate's root.
    fn module(&self) -> Vec<&str> {
        let inner = self.path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        inner.split('/').filter(|part| !matches!(*part, "lib" | "main" | "mod")).collect()
    }
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files in `folder` with the extension, at any depth, relative to the project.
fn files(folder: &str, extension: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut ahead = vec![PathBuf::from(folder)];
    while let Some(folder) = ahead.pop() {
        for entry in fs::read_dir(project().join(&folder)).expect("a folder of the project").flatten() {
            let path = folder.join(entry.file_name());
            if entry.file_type().expect("a type").is_dir() {
                // What a compiler leaves beside a crate of its own is no source.
                if entry.file_name() != "target" {
                    ahead.push(path);
                }
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path.to_str().expect("a name of text").to_owned());
            }
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(project().join(path)).expect("a file of the project")
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let mut sources: Vec<Source> = folders
        .iter()
        .flat_map(|folder| files(folder, "rs"))
        .map(|path| {
            let text = read(&path);
            Source { code: blanked(&text), is_test: !path.starts_with("src/"), text, path }
        })
        .collect();
    let tests: BTreeSet<String> = sources.iter().flat_map(test_modules).collect();
    for source in &mut sources {
        source.is_test |= tests.contains(&source.path);
    }
    sources
}

/// The files of modules that are declared for tests only.
fn test_modules(source: &Source) -> Vec<String> {
    let folder = source.path.trim_end_matches("mod.rs").trim_end_matches('/').trim_end_matches(".rs");
    let lines: Vec<&str> = source.text.lines().collect();
    let declared = lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]").filter_map(|pair| {
        let (_, name) = pair[1].strip_suffix(';')?.split_once("mod ")?;
        Some([format!("{folder}/{name}.rs"), format!("{folder}/{name}/mod.rs")])
    });
    declared.flatten().collect()
}

/// `text` with every byte of a comment, string or character literal but its line ends turned into a space.
fn blanked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + literal_or_comment(&bytes[at..], at.checked_sub(1).map(|before| bytes[before]));
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(out).expect("only whole characters were replaced")
}

/// The length of the literal or comment that `rest` begins with; 0 if it begins with neither.
fn literal_or_comment(rest: &[u8], before: Option<u8>) -> usize {
    let until = |from: usize, end: &[u8]| {
        rest[from..].windows(end.len()).position(|w| w == end).map_or(rest.len(), |at| from + at + end.len())
    };
    let in_word = before.is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => until(2, b"*/"),
        [b'"', ..] => quoted(rest, b'"'),
        [b'r', ..] if !in_word || before == Some(b'b') => {
            let hashes = rest[1..].iter().take_while(|&&b| b == b'#').count();
            let end: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
            if rest.get(1 + hashes) == Some(&b'"') { until(2 + hashes, &end) } else { 0 }
        }
        [b'\'', b'\\', ..] => quoted(rest, b'\''),
        // A character, not a lifetime: closed right behind one character.
        [b'\'', next, ..] => {
            let bytes = match next {
                0..0x80 => 1,
                0x80..0xe0 => 2,
                0xe0..0xf0 => 3,
                0xf0.. => 4,
            };
            if rest.get(1 + bytes) == Some(&b'\'') { bytes + 2 } else { 0 }
        }
        _ => 0,
    }
}

/// The length of a literal with escapes that begins and ends with `mark`.
fn quoted(rest: &[u8], mark: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != mark {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Every path in `code` that begins with `crate` or `super`, with the branches of braces told apart.
fn paths(code: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, word) in code.match_indices("crate::").chain(code.match_indices("super::")) {
        let before = code[..at].bytes().next_back();
        // The rest of a longer path, `super::super::x`, belongs to its beginning.
        if before.is_some_and(|b| is_word(b) || b == b':' || b == b'$') {
            continue;
        }
        branches(&code[at..], &mut Vec::new(), &mut found);
        debug_assert!(word.ends_with("::"));
    }
    found
}

/// Follows one path from the front of `code`, branching at braces; returns how many bytes it took.
fn branches(code: &str, prefix: &mut Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    let depth = prefix.len();
    let mut at = 0;
    loop {
        let len = code[at..].bytes().take_while(|&b| is_word(b)).count();
        if len > 0 {
            prefix.push(code[at..at + len].to_owned());
            at += len;
        } else if code[at..].starts_with('{') {
            at += 1;
            while at < code.len() && !code[at..].starts_with('}') {
                let skipped = code[at..].bytes().take_while(|b| b.is_ascii_whitespace() || *b == b',').count();
                at += skipped;
                let taken = branches(&code[at..], prefix, found);
                at += taken;
                // `self`, `*` and `as name` take the path no further.
                at += code[at..].bytes().take_while(|b| !matches!(b, b',' | b'}')).count();
            }
            prefix.truncate(depth);
            return at + 1;
        }
        if !code[at..].starts_with("::") {
            break;
        }
        at += 2;
    }
    found.push(prefix.clone());
    prefix.truncate(depth);
    at
}

/// The path from the crate's root that `path` names in `module`.
fn absolute(module: &[&str], path: &[String]) -> Vec<String> {
    if path[0] == "crate" {
        return path[1..].to_vec();
    }
    let ups = path.iter().take_while(|part| *part == "super").count();
    let base = &module[..module.len().saturating_sub(ups)];
    base.iter().map(|part| (*part).to_owned()).chain(path[ups..].iter().cloned()).collect()
}

/// Why the code of `module` may not name `path`, if it may not.
fn forbidden(module: &[&str], path: &[String], operations: &BTreeSet<String>) -> Option<String> {
    let (&own, top) = (module.first()?, path.first()?.as_str());
    let is_module = VOCABULARY.contains(&top) || LAYERS.iter().any(|(name, _)| *name == top);
    if !is_module || VOCABULARY.contains(&top) {
        return None;
    }
    if top != own {
        let allowed = LAYERS.iter().find(|(name, _)| *name == own).map_or(&[][..], |(_, allowed)| *allowed);
        return (!allowed.contains(&top)).then(|| format!("{own} may not import {}", path.join("::")));
    }
    let other = path.get(1).filter(|name| own == "ops" && operations.contains(*name))?;
    let is_other = module.get(1).is_some_and(|operation| operation != other);
    is_other.then(|| format!("the operation {} may not import {}", module[1], path.join("::")))
}

fn check_imports(sources: &[Source]) -> Vec<Violation> {
    let inside = |path: &str| path.strip_prefix("src/ops/").and_then(|p| p.split(['/', '.']).next()).map(str::to_owned);
    let mut operations: BTreeSet<String> = sources.iter().filter_map(|source| inside(&source.path)).collect();
    operations.retain(|name| name != "mod" && !SHARED_BY_OPS.contains(&name.as_str()));
    let mut violations = Vec::new();
    for source in sources.iter().filter(|s| !s.is_test && s.path.starts_with("src/")) {
        let module = source.module();
        let unknown = module.first().filter(|top| !VOCABULARY.contains(top) && !LAYERS.iter().any(|(l, _)| l == *top));
        violations.extend(unknown.map(|top| (Rule::Import, source.path.clone(), format!("{top} is in no layer"))));
        for path in paths(source.product()) {
            let reason = forbidden(&module, &absolute(&module, &path), &operations);
            violations.extend(reason.map(|reason| (Rule::Import, source.path.clone(), reason)));
        }
    }
    violations
}

fn check_lengths(sources: &[Source]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for source in sources.iter().filter(|s| !s.is_test) {
        let lines = source.lines_before_tests();
        if lines > FILE_LINES_MAX {
            violations.push((Rule::FileLength, source.path.clone(), format!("{lines} lines before the tests")));
        }
    }
    for source in sources {
        for (name, line, lines) in functions(&source.code) {
            if lines > FUNCTION_LINES_MAX {
                let what = format!("line {line}: {name} has {lines} lines");
                violations.push((Rule::FunctionLength, source.path.clone(), what));
            }
        }
    }
    violations
}

/// The functions with a body: name, first line, number of lines up to the closing brace.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        if code[..at].bytes().next_back().is_some_and(is_word) {
            continue;
        }
        let rest = &code[at + 3..];
        let name: String = rest.bytes().take_while(|&b| is_word(b)).map(char::from).collect();
        let Some(begin) = rest.find(['{', ';']).filter(|_| !name.is_empty()) else { continue };
        if rest[begin..].starts_with(';') && !rest[..begin].contains('[') {
            continue;
        }
        // A `;` may stand in the type of an array; the body begins at the first brace then.
        let Some(begin) = rest.find('{') else { continue };
        let mut depth = 0usize;
        let end = rest[begin..].bytes().position(|b| {
            depth = if b == b'{' { depth + 1 } else { depth - usize::from(b == b'}') };
            depth == 0
        });
        let body = &rest[..begin + end.unwrap_or(rest.len() - begin - 1)];
        let line = code[..at].matches('\n').count() + 1;
        found.push((name, line, body.matches('\n').count() + 1));
    }
    found
}

fn check_openings(sources: &[Source]) -> Vec<Violation> {
    let lacks = |source: &&Source| !source.text.starts_with("//! ");
    let violation = |s: &Source| (Rule::Opening, s.path.clone(), "does not open with `//!`".to_owned());
    sources.iter().filter(lacks).map(violation).collect()
}

fn check_words(sources: &[Source]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut note = |path: &str, word: &str| violations.push((Rule::Word, path.to_owned(), format!("holds {word}")));
    // Put together here, so that this file does not hold them.
    let unfinished = [["TO", "DO"], ["FIX", "ME"], ["XX", "X"]].map(|parts| parts.concat());
    for source in sources {
        for word in &unfinished {
            let mut places = source.text.match_indices(word.as_str());
            let whole = |(at, word): (usize, &str)| {
                let (before, after) =
                    (source.text[..at].bytes().next_back(), source.text[at + word.len()..].bytes().next());
                !before.is_some_and(is_word) && !after.is_some_and(is_word)
            };
            if places.any(whole) {
                note(&source.path, word);
            }
        }
        let everywhere = ["dbg!(", "#[ignore"];
        everywhere.iter().filter(|word| source.code.contains(**word)).for_each(|word| note(&source.path, word));
        let is_library = source.path.starts_with("src/") && !source.path.starts_with("src/cli/");
        if is_library && source.path != READS_ENVIRONMENT && source.product().contains("env::var") {
            note(&source.path, "a look at the environment, which is the program's to read");
        }
        if source.product().contains(".unwrap()") {
            note(&source.path, ".unwrap() outside tests");
        }
    }
    violations
}

/// A file that no other names as its module is compiled by nobody: a silent hole, above all among tests.
fn check_modules(sources: &[Source]) -> Vec<Violation> {
    let code: BTreeMap<&str, &str> =
        sources.iter().map(|source| (source.path.as_str(), source.code.as_str())).collect();
    let is_named = |source: &&Source| {
        let whole = source.path.trim_end_matches(".rs").trim_end_matches("/mod");
        let Some((folder, module)) = whole.rsplit_once('/') else { return false };
        let parents = ["/mod.rs", "/lib.rs", "/main.rs", ".rs"].map(|end| format!("{folder}{end}"));
        let declaration = format!("mod {module};");
        let declares = |line: &str| line == declaration || line.ends_with(&format!(" {declaration}"));
        parents.iter().filter_map(|parent| code.get(parent.as_str())).any(|code| code.lines().any(declares))
    };
    let is_root = |source: &&Source| source.path.ends_with("/main.rs") || source.path.ends_with("/lib.rs");
    let lost = sources.iter().filter(|source| !is_root(source) && !is_named(source));
    lost.map(|s| (Rule::Module, s.path.clone(), "is the module of no other file".to_owned())).collect()
}

/// Documents, and whether what they point to is there.
fn check_links(sources: &[Source]) -> Vec<Violation> {
    let mut documents = files("docs", "md");
    documents.extend(fs::exists(project().join("README.md")).expect("asked").then(|| "README.md".to_owned()));
    let headings: BTreeMap<String, BTreeSet<String>> =
        documents.iter().map(|path| (path.clone(), headings(&read(path)))).collect();
    let mut violations = Vec::new();
    let mut note = |path: &str, what: String| violations.push((Rule::Link, path.to_owned(), what));
    for path in &documents {
        let text = read(path);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if target.contains("://") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let file = match file {
                "" => path.clone(),
                file => beside(path, file),
            };
            let is_there = project().join(&file).exists();
            let has_anchor = anchor.is_empty() || headings.get(&file).is_some_and(|all| all.contains(anchor));
            if !is_there || !has_anchor {
                note(path, format!("links to {target}, which is not there"));
            }
        }
        missing_files(&text).into_iter().for_each(|file| note(path, format!("names {file}, which is not there")));
    }
    for source in sources {
        missing_files(&source.text)
            .into_iter()
            .for_each(|f| note(&source.path, format!("names {f}, which is not there")));
        for rest in source.text.split("docs/FORMAT.md`, \"").skip(1) {
            let title = rest.split('"').next().unwrap_or_default();
            if !headings["docs/FORMAT.md"].contains(&anchor(title)) {
                note(&source.path, format!("names the section {title:?} of docs/FORMAT.md, which is not there"));
            }
        }
    }
    violations
}

/// `file` as it is meant in the document `path`.
fn beside(path: &str, file: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    for part in file.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// The anchors of a document's headings.
fn headings(text: &str) -> BTreeSet<String> {
    let titles = text.lines().filter_map(|line| line.strip_prefix('#')).map(|line| line.trim_start_matches('#').trim());
    titles.map(anchor).collect()
}

fn anchor(title: &str) -> String {
    let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

/// Names of files of the project between backticks that do not exist.
fn missing_files(text: &str) -> Vec<String> {
    let is_name = |token: &&str| {
        let folders = ["src/", "tests/", "docs/", "benches/", ".ci/"];
        folders.iter().any(|folder| token.starts_with(folder))
            && token.bytes().all(|b| is_word(b) || matches!(b, b'.' | b'/' | b'-'))
    };
    let tokens = text.split('`').flat_map(|span| span.split_whitespace().next()).filter(is_name);
    tokens.filter(|name| !project().join(name).exists()).map(str::to_owned).collect()
}

#[test]
fn the_source_is_tidy() {
    let all = sources(&["src", "tests", "benches"]);
    let product = sources(&["src"]);
    let mut violations = check_imports(&product);
    violations.extend(check_lengths(&product));
    violations.extend(check_openings(&all));
    violations.extend(check_words(&all));
    violations.extend(check_modules(&product));
    violations.extend(check_modules(&sources(&["tests/it"])));
    violations.extend(check_links(&all));
    let is_excepted = |v: &Violation| EXCEPTIONS.contains(&(v.0, v.1.as_str()));
    let mut complaints: Vec<String> = violations
        .iter()
        .filter(|violation| !is_excepted(violation))
        .map(|(rule, path, what)| format!("{path}: {what} ({rule:?})"))
        .collect();
    complaints.extend(
        EXCEPTIONS.iter().filter(|(rule, path)| !violations.iter().any(|v| v.0 == *rule && v.1 == *path)).map(
            |(rule, path)| format!("{path}: needs no exception from {rule:?} any more, so take it out of the list"),
        ),
    );
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
}

#[test]
fn literals_and_comments_are_blanked_and_nothing_else() {
    let blank = |text: &str| blanked(text);
    assert_eq!(blank("a // b\nc"), "a     \nc");
    assert_eq!(blank(r#"f("a\"{", '{', 'x', '\'')"#), "f(      ,    ,    ,     )");
    assert_eq!(blank("r#\"a\"}\"# b'}' &'a str"), format!("{:9}b    &'a str", ""));
    assert_eq!(blank("'\u{e9}' /* } */ <'a, 'b>"), format!("{:13}<'a, 'b>", ""));
}

#[test]
fn files_that_are_no_modules_are_found() {
    let source = |path: &str, code: &str| Source {
        path: path.to_owned(),
        text: String::new(),
        code: code.to_owned(),
        is_test: true,
    };
    let all = [
        source("tests/it/main.rs", "mod one;\npub mod two;\n"),
        source("tests/it/one.rs", "mod part;\n"),
        source("tests/it/one/part.rs", ""),
        source("tests/it/two/mod.rs", ""),
        source("tests/it/two/lost.rs", ""),
        source("tests/it/lost.rs", "mod one;"),
        source("tests/it/lost_too/mod.rs", ""),
    ];
    let lost: Vec<String> = check_modules(&all).into_iter().map(|(_, path, _)| path).collect();
    assert_eq!(lost, ["tests/it/two/lost.rs", "tests/it/lost.rs", "tests/it/lost_too/mod.rs"]);
}

#[test]
fn imports_are_told_apart() {
    let operations = BTreeSet::from(["backup".to_owned(), "forget".to_owned()]);
    let reasons = |module: &[&str], code: &str| {
        let found = paths(&blanked(code));
        found.iter().filter_map(|p| forbidden(module, &absolute(module, p), &operations)).count()
    };
    assert_eq!(reasons(&["repo", "pack"], "use crate::{error::Error, storage::{self, Storage}};"), 0);
    assert_eq!(reasons(&["repo", "pack"], "use crate::{error::Error, source::scan, ops::{backup, Problems}};"), 3);
    assert_eq!(reasons(&["codec", "frame"], "use super::super::storage::Storage; // crate::ops"), 1);
    assert_eq!(reasons(&["error"], "let x = crate::repo::Repo::open();"), 1);
    assert_eq!(reasons(&["ops", "forget"], "use super::{Problems, retention::Policy};\nuse super::backup::backup;"), 1);
    assert_eq!(reasons(&["ops", "backup", "feed"], "use super::worker; use super::super::Problems;"), 0);
}

#[test]
fn functions_are_measured_from_the_name_to_the_closing_brace() {
    let code = "fn a() {\n  if x {\n  }\n}\ntrait T {\n  fn b();\n}\nfn c(x: [u8; 4]) -> u8 {\n}\nlet f: fn (u8);\n";
    assert_eq!(functions(code), [("a".to_owned(), 1, 4), ("c".to_owned(), 8, 2)]);
}
