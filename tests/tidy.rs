//! The rules of the house that a program can check: who may import whom, which words stay in which
//! folder, how files begin, how long files and functions are, and what never reaches a repository.
//!
//! No crate code is used, and nothing is written. Each check takes a path and a text and returns
//! findings, so that the second half of this file can prove on bad examples that it does find them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// Modules that know nothing of the others; anybody may use them.
const LEAVES: &[&str] = &["pb", "limits", "identity", "mutants"];

/// Helpers of the layers that do I/O; the pure ones (`state`, `storage`) must not use them.
const HELPERS: &[&str] = &["config", "logging", "metrics", "tasks", "data_dir", "clock", "release"];

/// The layers from left to right: each may import what stands behind it, see `ARCHITECTURE.md`.
/// `main → server → api → member → { raft | watch } → state → storage`, with `wal` under `raft`.
const LAYERS: &[(&str, &[&str])] = &[
    ("main", &["server", "api", "member", "raft", "watch", "wal", "state", "storage"]),
    ("server", &["api", "member", "raft", "watch", "wal", "state", "storage"]),
    ("api", &["member", "raft", "watch", "state", "storage"]),
    ("member", &["raft", "watch", "wal", "state", "storage"]),
    ("raft", &["wal", "state", "storage"]),
    ("watch", &["state", "storage"]),
    ("wal", &[]),
    ("state", &["storage"]),
    ("storage", &[]),
];

/// Crates that are named in some folders only, so that a change of theirs stays there.
const CRATES: &[(&str, &[&str])] = &[
    ("openraft", &["src/raft/"]),
    ("openraft_macros", &["src/raft/"]),
    ("openraft_rt", &["src/raft/"]),
    ("openraft_rt_tokio", &["src/raft/"]),
    ("sled", &["src/storage/"]),
    ("tonic", &["src/api/", "src/raft/", "src/server/", "src/bin/quoratectl/", "src/pb"]),
    ("tonic_prost", &["src/api/", "src/raft/", "src/server/", "src/bin/quoratectl/", "src/pb"]),
];

/// What must not appear in the pure core, in code: it would make members differ.
const IMPURE: &[&str] = &[
    "async",
    "await",
    "tokio",
    "Instant",
    "SystemTime",
    "HashMap",
    "HashSet",
    "f32",
    "f64",
    "rand",
    "fastrand",
    "tracing",
];

/// One broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    line: usize,
    rule: String,
}

fn finding(path: &str, line: usize, rule: impl Into<String>) -> Finding {
    Finding { path: path.to_owned(), line, rule: rule.into() }
}

#[test]
fn the_house_is_tidy() {
    let root = std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it for tests");
    let root = PathBuf::from(root);
    let mut files = BTreeMap::new();
    collect(&root, &root, &mut files);
    assert!(files.keys().any(|path| path == "src/lib.rs"), "started outside of the repository");
    let findings: Vec<Finding> =
        files.iter().flat_map(|(path, text)| check_file(path, text)).collect();
    let mut report = String::new();
    for Finding { path, line, rule } in &findings {
        writeln!(report, "{path}:{line}: {rule}").expect("a String takes every write");
    }
    assert!(findings.is_empty(), "{} broken rules:\n{report}", findings.len());
}

/// Reads every text file below `dir` that belongs to the repository.
fn collect(root: &Path, dir: &Path, files: &mut BTreeMap<String, String>) {
    let entries = fs::read_dir(dir).unwrap_or_else(|e| panic!("cannot list {dir:?}: {e}"));
    for entry in entries {
        let path = entry.unwrap_or_else(|e| panic!("cannot list {dir:?}: {e}")).path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if path.is_dir() {
            let foreign = name == "target" || name == "local-cluster" || name.ends_with(".etcd");
            if !foreign && (!name.starts_with('.') || name == ".ci") {
                collect(root, &path, files);
            }
        } else if name == ".git" {
            // A git worktree keeps a file here that names its repository.
        } else if let Ok(text) = fs::read_to_string(&path) {
            let relative = path.strip_prefix(root).expect("below the root");
            files.insert(relative.to_string_lossy().into_owned(), text);
        }
    }
}

fn check_file(path: &str, text: &str) -> Vec<Finding> {
    let mut findings = check_machine_traces(path, text);
    if path.starts_with("tests/scripts/") {
        findings.extend(check_script_head(path, text));
    }
    if !path.ends_with(".rs") || path == "build.rs" {
        return findings;
    }
    findings.extend(check_head(path, text));
    findings.extend(check_unfinished(path, text));
    if path.starts_with("src/") && !is_test_file(path) {
        let code = product_code(text);
        findings.extend(check_imports(path, &code));
        findings.extend(check_crates(path, &code));
        findings.extend(check_purity(path, &code));
        findings.extend(check_lengths(path, &code));
    }
    findings
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("tests.rs") || path.contains("/tests/")
}

// ---------------------------------------------------------------------------------------------
// Checks of one file.

fn check_head(path: &str, text: &str) -> Vec<Finding> {
    if text.starts_with("//! ") {
        return Vec::new();
    }
    vec![finding(path, 1, "the file does not open with `//!`: say what it is")]
}

fn check_script_head(path: &str, text: &str) -> Vec<Finding> {
    if text.starts_with('#') {
        return Vec::new();
    }
    vec![finding(path, 1, "the script does not open with `#`: say what it proves")]
}

fn check_unfinished(path: &str, text: &str) -> Vec<Finding> {
    // Put together here, so that this file does not find itself.
    let words = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("dbg", "!")];
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for word in words {
            let whole = line.match_indices(word).any(|(at, _)| {
                !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word)
            });
            if whole {
                findings.push(finding(path, number + 1, format!("{word} is for issues, not code")));
            }
        }
    }
    findings
}

/// Paths of somebody's machine and hosts of package registries.
fn check_machine_traces(path: &str, text: &str) -> Vec<Finding> {
    let traces = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/Us", "ers/"),
        concat!("index.", "crates.io"),
        concat!("static.", "crates.io"),
        concat!("proxy.", "golang.org"),
        concat!("replace", "-with"),
        concat!("spar", "se+"),
        concat!("arti", "factory"),
    ];
    let mut findings = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if let Some(trace) = traces.iter().find(|trace| line.contains(**trace)) {
            let rule = format!("{trace} is a trace of one machine or of a registry");
            findings.push(finding(path, number + 1, rule));
        }
        let registry = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
        if path == "Cargo.lock" && line.starts_with("source = ") && line != registry {
            findings.push(finding(path, number + 1, "a crate comes from elsewhere than crates.io"));
        }
    }
    findings
}

/// The arrows between our modules.
fn check_imports(path: &str, code: &str) -> Vec<Finding> {
    let own = top_module(path);
    let mut findings = Vec::new();
    for (line, segments) in paths_in(code) {
        let Some(other) = our_module(path, &segments) else { continue };
        if let Some(rule) = forbidden(own, &other) {
            findings.push(finding(path, line, rule));
        }
    }
    findings
}

/// Why `own` may not import `other`, if so.
fn forbidden(own: &str, other: &str) -> Option<String> {
    let known = |module| {
        LEAVES.contains(&module)
            || HELPERS.contains(&module)
            || LAYERS.iter().any(|(layer, _)| *layer == module)
    };
    if own == other || own == "lib" {
        return None;
    }
    if let Some(unknown) = [own, other].into_iter().find(|module| !known(module)) {
        return Some(format!("tests/tidy.rs does not know where module `{unknown}` stands"));
    }
    let allowed = match LAYERS.iter().find(|(layer, _)| *layer == own) {
        _ if LEAVES.contains(&other) => true,
        Some((layer, right)) => {
            let pure = matches!(*layer, "state" | "storage");
            right.contains(&other) || (HELPERS.contains(&other) && !pure)
        }
        // A leaf uses leaves only, a helper also other helpers.
        None => HELPERS.contains(&own) && HELPERS.contains(&other),
    };
    (!allowed).then(|| format!("`{own}` must not import `{other}`: arrows point right only"))
}

/// The module below the crate's root that a file belongs to.
fn top_module(path: &str) -> &str {
    let inner = path.strip_prefix("src/").unwrap_or(path);
    // Binaries stand where main stands.
    if inner.starts_with("bin/") {
        return "main";
    }
    let end = inner.find(['/', '.']).unwrap_or(inner.len());
    &inner[..end]
}

/// The module of ours that a path names, when it starts at the crate's root.
fn our_module(path: &str, segments: &[String]) -> Option<String> {
    let is_bin = top_module(path) == "main";
    match segments.first()?.as_str() {
        "quorate" if is_bin => segments.get(1).cloned(),
        "crate" if !is_bin => segments.get(1).cloned(),
        "super" if !is_bin => {
            let climbed = segments.iter().take_while(|s| *s == "super").count();
            (climbed == depth(path)).then(|| segments.get(climbed).cloned()).flatten()
        }
        _ => None,
    }
}

/// How many times `super` leads from a file's module to the crate's root.
fn depth(path: &str) -> usize {
    let inner = path.strip_prefix("src/").unwrap_or(path);
    inner.split('/').filter(|part| !matches!(*part, "mod.rs" | "lib.rs" | "main.rs")).count()
}

fn check_crates(path: &str, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (line, segments) in paths_in(code) {
        let Some((name, folders)) = CRATES.iter().find(|(name, _)| *name == segments[0]) else {
            continue;
        };
        if !folders.iter().any(|folder| path.starts_with(folder)) {
            let rule = format!("`{name}` is named only in {}", folders.join(", "));
            findings.push(finding(path, line, rule));
        }
    }
    findings
}

fn check_purity(path: &str, code: &str) -> Vec<Finding> {
    if !path.starts_with("src/state") {
        return Vec::new();
    }
    words(code)
        .into_iter()
        .filter(|(_, _, word)| IMPURE.contains(word))
        .map(|(line, _, word)| finding(path, line, format!("`{word}` is not for the pure core")))
        .collect()
}

fn check_lengths(path: &str, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    // Blanked test modules are empty lines at the end, and do not count.
    let lines = code.trim_end().lines().count();
    if lines > FILE_LINES_MAX {
        let rule = format!("{lines} lines of {FILE_LINES_MAX}: split the file by meaning");
        findings.push(finding(path, lines, rule));
    }
    for (line, name, length) in functions(code) {
        if length > FUNCTION_LINES_MAX {
            let rule = format!("`{name}` has {length} lines of {FUNCTION_LINES_MAX}: split it");
            findings.push(finding(path, line, rule));
        }
    }
    findings
}

// ---------------------------------------------------------------------------------------------
// Reading Rust, as little as needed.

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// The code without comments, texts and test modules: same lines, other bytes are blanks.
fn product_code(text: &str) -> String {
    blank_test_modules(blank_comments_and_texts(text))
}

fn blank_comments_and_texts(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = text.to_owned().into_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let end = match token_end(bytes, at) {
            Some(end) => end,
            None => {
                at += 1;
                continue;
            }
        };
        for byte in &mut code[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    String::from_utf8(code).expect("whole tokens were replaced by blanks")
}

/// Where the comment, text or character that starts at `at` ends; `None` when none starts there.
fn token_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let find = |needle: &[u8]| rest.windows(needle.len()).position(|window| window == needle);
    if rest.starts_with(b"//") {
        return Some(find(b"\n").map_or(bytes.len(), |n| at + n));
    }
    if rest.starts_with(b"/*") {
        let mut depth = 0;
        let mut end = 0;
        while end < rest.len() {
            match &rest[end..rest.len().min(end + 2)] {
                b"/*" => (depth, end) = (depth + 1, end + 2),
                b"*/" => (depth, end) = (depth - 1, end + 2),
                _ => end += 1,
            }
            if depth == 0 {
                break;
            }
        }
        return Some(at + end);
    }
    let inside_word = at > 0 && is_word(char::from(bytes[at - 1]));
    if !inside_word {
        let prefix = rest.iter().take_while(|b| matches!(b, b'b' | b'r' | b'c')).count();
        let hashes = rest[prefix..].iter().take_while(|b| **b == b'#').count();
        let raw = rest[..prefix].contains(&b'r');
        if raw && rest.get(prefix + hashes) == Some(&b'"') {
            let close: Vec<u8> = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
            let body = prefix + hashes + 1;
            let end = rest[body..].windows(close.len()).position(|w| w == close)?;
            return Some(at + body + end + close.len());
        }
    }
    match rest[0] {
        b'"' => {
            let mut end = 1;
            while end < rest.len() && rest[end] != b'"' {
                end += if rest[end] == b'\\' { 2 } else { 1 };
            }
            Some((at + end + 1).min(bytes.len()))
        }
        // A lifetime has no closing quote after its first character.
        b'\'' if rest.get(1) == Some(&b'\\') => {
            Some(at + 3 + rest[3..].iter().position(|b| *b == b'\'')? + 1)
        }
        b'\'' => {
            let width = std::str::from_utf8(&rest[1..rest.len().min(5)])
                .map_or_else(|e| std::str::from_utf8(&rest[1..1 + e.valid_up_to()]), Ok)
                .ok()?
                .chars()
                .next()?
                .len_utf8();
            (rest.get(1 + width) == Some(&b'\'')).then_some(at + width + 2)
        }
        _ => None,
    }
}

/// Blanks what follows `#[cfg(test)]` up to the end of that item.
fn blank_test_modules(code: String) -> String {
    let mut out = code.clone();
    let mut from = 0;
    while let Some(start) = out[from..].find("#[cfg(test)]").map(|n| from + n) {
        let end = item_end(&out, start);
        let blank: String =
            out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(start..end, &blank);
        from = start + blank.len();
    }
    out
}

/// The end of the item at `start`: its `;`, or the brace that closes its body.
fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0usize;
    for (at, c) in code[start..].char_indices() {
        match c {
            '{' => depth += 1,
            '}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return start + at + 1;
                }
            }
            ';' if depth == 0 => return start + at + 1,
            _ => {}
        }
    }
    code.len()
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].matches('\n').count() + 1
}

/// Every word of the code with its line and its place.
fn words(code: &str) -> Vec<(usize, usize, &str)> {
    let mut words = Vec::new();
    let (mut at, mut line) = (0, 1);
    while let Some(c) = code[at..].chars().next() {
        if is_word(c) {
            let rest = &code[at..];
            let end = at + rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
            words.push((line, at, &code[at..end]));
            at = end;
        } else {
            line += usize::from(c == '\n');
            at += c.len_utf8();
        }
    }
    words
}

/// Every path of the code with its line: those of `use` trees one by one, and `a::b` elsewhere.
fn paths_in(code: &str) -> Vec<(usize, Vec<String>)> {
    let mut paths = Vec::new();
    let mut skip_to = 0;
    for (line, at, word) in words(code) {
        if at < skip_to {
            continue;
        }
        if word == "use" && !code[..at].trim_end().ends_with([':', '<', '+']) {
            let end = at + code[at..].find(';').unwrap_or(code.len() - at);
            flatten_use(code, at + word.len(), end, &mut paths);
            skip_to = end;
            continue;
        }
        // The middle of a path was read with its start.
        if code[..at].trim_end().ends_with("::") {
            continue;
        }
        let mut segments = vec![word.to_owned()];
        let mut rest = code[at + word.len()..].trim_start();
        while let Some(tail) = rest.strip_prefix("::") {
            let tail = tail.trim_start();
            let end = tail.find(|c: char| !is_word(c)).unwrap_or(tail.len());
            if end == 0 {
                break;
            }
            segments.push(tail[..end].to_owned());
            rest = tail[end..].trim_start();
        }
        if segments.len() > 1 {
            paths.push((line, segments));
        }
    }
    paths
}

/// Flattens `a::{b, c::{d, self}}` into `a::b`, `a::c::d`, `a::c::self`.
fn flatten_use(code: &str, start: usize, end: usize, paths: &mut Vec<(usize, Vec<String>)>) {
    let mut prefix: Vec<String> = Vec::new();
    let mut groups: Vec<usize> = Vec::new();
    let mut line = line_of(code, start);
    let mut leaf: Option<usize> = None;
    let mut finish = |prefix: &mut Vec<String>, leaf: &mut Option<usize>, keep: usize| {
        if let Some(line) = leaf.take() {
            paths.push((line, prefix.clone()));
        }
        prefix.truncate(keep);
    };
    let mut at = start;
    while at < end {
        let c = code[at..].chars().next().expect("at stands on a character");
        if is_word(c) {
            let rest = &code[at..end];
            let length = rest.find(|c: char| !is_word(c)).unwrap_or(rest.len());
            prefix.push(rest[..length].to_owned());
            leaf = Some(line);
            at += length;
            continue;
        }
        match c {
            '\n' => line += 1,
            '*' => leaf = Some(line),
            '{' => {
                groups.push(prefix.len());
                leaf = None;
            }
            ',' => finish(&mut prefix, &mut leaf, groups.last().copied().unwrap_or(0)),
            '}' => {
                let keep = groups.pop().unwrap_or(0);
                finish(&mut prefix, &mut leaf, keep);
            }
            _ => {}
        }
        at += c.len_utf8();
    }
    finish(&mut prefix, &mut leaf, 0);
}

/// Every function with a body: its line, name and number of lines.
fn functions(code: &str) -> Vec<(usize, String, usize)> {
    let words = words(code);
    let mut functions = Vec::new();
    for pair in words.windows(2) {
        let [(line, at, "fn"), (_, name_at, name)] = pair else { continue };
        // `fn(u8)` is a type.
        if !code[at + 2..*name_at].trim().is_empty() {
            continue;
        }
        let Some(body) = body_start(code, *name_at) else { continue };
        let length = line_of(code, item_end(code, body) - 1) - line + 1;
        functions.push((*line, (*name).to_owned(), length));
    }
    functions
}

/// Where the body of the function whose name is at `from` begins; `None` for a mere declaration.
fn body_start(code: &str, from: usize) -> Option<usize> {
    let mut depth = 0i32;
    for (at, c) in code[from..].char_indices() {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            ';' if depth == 0 => return None,
            '{' if depth == 0 => return Some(from + at),
            _ => {}
        }
    }
    None
}

// ---------------------------------------------------------------------------------------------
// The checks find what they are for, and nothing else.

/// The rules that a file breaks, as `line: rule`.
fn broken(path: &str, text: &str) -> Vec<String> {
    check_file(path, text).iter().map(|f| format!("{}: {}", f.line, f.rule)).collect()
}

fn finds(path: &str, text: &str, expected: &str) {
    let found = broken(path, text);
    assert!(found.iter().any(|rule| rule.contains(expected)), "{path}: {found:?}\n{text}");
}

fn passes(path: &str, text: &str) {
    assert_eq!(broken(path, text), [""; 0], "{path}\n{text}");
}

#[test]
fn arrows_that_point_left_are_found() {
    let left = [
        ("src/state/a.rs", "use crate::member::Handle;", "`state` must not import `member`"),
        ("src/state/a.rs", "use crate::{pb, raft::X};", "`state` must not import `raft`"),
        ("src/state/a.rs", "use crate::metrics::X;", "`state` must not import `metrics`"),
        ("src/raft/a.rs", "fn f() { crate::watch::Hub::new() }", "`raft` must not import `watch`"),
        ("src/watch/a.rs", "use super::super::raft::X;", "`watch` must not import `raft`"),
        ("src/watch/mod.rs", "use super::raft::X;", "`watch` must not import `raft`"),
        ("src/limits.rs", "use crate::pb::{\n    a,\n};\nuse crate::config::C;", "5: `limits`"),
        ("src/api/kv.rs", "use crate::{\n    limits,\n    server::{self, X},\n};", "4: `api`"),
        ("src/wal/a.rs", "use crate::raft::Entry;", "`wal` must not import `raft`"),
        ("src/storage/a.rs", "use crate::wal::Disk;", "`storage` must not import `wal`"),
        ("src/redis/a.rs", "use crate::member::Handle;", "does not know where module `redis`"),
    ];
    for (path, code, expected) in left {
        finds(path, &format!("//! Head.\n{code}\n"), expected);
    }
}

#[test]
fn arrows_that_point_right_pass() {
    let right = [
        ("src/main.rs", "use quorate::{config::Config, server};"),
        ("src/lib.rs", "pub mod state;\npub use crate::state::State;"),
        ("src/api/kv.rs", "use crate::member::{self, Handle};\nuse crate::metrics;"),
        ("src/raft/log_store.rs", "use super::codec::X;\nuse crate::wal::Wal;"),
        ("src/state/mvcc/index.rs", "use super::super::range::R;\nuse crate::storage::Backend;"),
        ("src/state/a.rs", "// use crate::raft::X;\nconst T: &str = \"crate::raft\";"),
        ("src/state/a.rs", "#[cfg(test)]\nmod tests {\n    use crate::raft::X;\n}"),
        ("src/state/a.rs", "fn f<'a>(c: char) -> bool { c == '{' || c == '\"' || c == '\\'' }"),
        ("src/config/mod.rs", "use crate::logging::LogSettings;\nuse super::identity::MemberId;"),
        ("src/member/mod.rs", "pub(in crate::member) fn f() {}"),
    ];
    for (path, code) in right {
        passes(path, &format!("//! Head.\n{code}\n"));
    }
}

#[test]
fn foreign_crates_outside_their_folder_are_found() {
    for (path, code, expected) in [
        ("src/member/a.rs", "use openraft::Raft;", "`openraft` is named only in src/raft/"),
        ("src/raft/a.rs", "fn f() { sled::open(1) }", "`sled` is named only in src/storage/"),
        ("src/member/a.rs", "use {bytes::Bytes, tonic::Status};", "`tonic` is named only in"),
        ("src/state/a.rs", "fn f(x: tonic::Code) {}", "`tonic` is named only in"),
    ] {
        finds(path, &format!("//! Head.\n{code}\n"), expected);
    }
    passes("src/raft/a.rs", "//! Head.\nuse openraft::Raft;\n");
    passes("src/pb.rs", "//! Head.\nmod a {\n    tonic::include_proto!(\"a\");\n}\n");
    passes("src/server/a.rs", "//! Head.\nuse crate::storage::sled::SledBackend;\n");
    passes("src/server/a.rs", "//! Head: openraft and sled are fine in words.\nlet sled = 1;\n");
}

#[test]
fn impure_words_in_the_core_are_found() {
    for word in IMPURE {
        let code = format!("//! Head.\nfn f() {{\n    {word};\n}}\n");
        finds("src/state/a.rs", &code, &format!("3: `{word}` is not for the pure core"));
        passes("src/member/a.rs", &code);
    }
    passes("src/state/a.rs", "//! No HashMap, no async.\nlet a = \"f64\"; // tokio\n");
    passes("src/state/a.rs", "//! Head.\n#[cfg(test)]\nmod tests {\n    use tokio::x;\n}\n");
}

#[test]
fn heads_unfinished_work_and_traces_are_found() {
    finds("src/a.rs", "// plain\n", "does not open with `//!`");
    finds("tests/it/a.rs", "use std::fs;\n", "does not open with `//!`");
    finds("tests/scripts/mvcc/a", "put a=1\n", "does not open with `#`");
    passes("tests/scripts/mvcc/a", "# A put.\nput a=1\n");
    for word in [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("dbg", "!")] {
        finds("src/a.rs", &format!("//! Head.\n// {word} later\n"), "2: ");
    }
    passes("src/a.rs", concat!("//! Head.\n// MASTO", "DON, TO", "DOS\n"));
    finds("README.md", concat!("run /wo", "rk/main/x\n"), "trace of one machine");
    finds("deploy/Dockerfile", concat!("ENV X=https://index.", "crates.io\n"), "registry");
    finds("Cargo.lock", "source = \"registry+https://example.com/index\"\n", "elsewhere");
    passes("Cargo.lock", "source = \"registry+https://github.com/rust-lang/crates.io-index\"\n");
    passes("README.md", "see https://crates.io and ~/bin\n");
}

#[test]
fn long_files_and_functions_are_found_and_tests_do_not_count() {
    let lines = |count: usize| "    let x = 1;\n".repeat(count);
    let function = |body| format!("//! Head.\nfn long(a: [u8; 3]) -> u8 {{\n{}}}\n", lines(body));
    passes("src/a.rs", &function(FUNCTION_LINES_MAX - 2));
    finds("src/a.rs", &function(FUNCTION_LINES_MAX - 1), "2: `long` has 71 lines of 70");
    let file = |count| format!("//! Head.\n{}", "// line\nconst A: u8 = 1;\n".repeat(count));
    passes("src/a.rs", &file(299));
    finds("src/a.rs", &file(300), "601 lines of 600");
    let tests = format!("//! Head.\n#[cfg(test)]\nmod tests {{\n{}}}\n", function(900));
    passes("src/a.rs", &tests);
    passes("src/a/tests.rs", &function(900));
    let declared = "//! Head.\ntrait T {\n    fn a(&self, f: fn(u8) -> u8);\n    fn b() {}\n}\n";
    assert_eq!(functions(&product_code(declared)), [(4, "b".to_owned(), 1)]);
}

#[test]
fn texts_and_comments_are_blanked_line_by_line() {
    let source =
        "a(r#\"x\" {\"#, b\"\\\"{\", '\\u{7b}', '{', 'é') /* { /* } */ */ // {\nb<'a> \"{\n\"";
    let code = blank_comments_and_texts(source);
    assert_eq!(code.len(), source.len());
    assert_eq!(code.lines().count(), source.lines().count());
    assert!(!code.contains(['{', '}', '"', 'é']), "{code}");
    assert!(code.contains("b<'a>"), "{code}");
}
