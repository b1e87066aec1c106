//! Script files: reading them into topics and cases, and writing recorded answers back.

use std::fs;
use std::path::{Path, PathBuf};

/// The line between the requests of a case and the recorded answer.
const SEPARATOR: &str = "---";

/// The line before an answer of ours that differs on purpose, followed by the reason.
const DEVIATION: &str = "--- quorate: ";

/// The head line of a file whose cases hold only in a store that was never written.
const NEEDS_FRESH: &str = "# needs: fresh store";

/// The head line of a file whose cases use a service beyond KV; a method follows, and perhaps the
/// message to try it with.
const NEEDS_METHOD: &str = "# needs: method ";

/// One script file.
#[derive(Clone, Debug)]
pub(crate) struct Topic {
    /// Where the file lies.
    pub(crate) path: PathBuf,
    /// The comment block at its top.
    pub(crate) head: Vec<String>,
    /// Its cases in order.
    pub(crate) cases: Vec<Case>,
}

/// One block of a script: a name, requests, and the answer of a real etcd.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// The line of the file on which the case begins, from 1.
    pub(crate) line: usize,
    /// Comments and requests as written.
    pub(crate) source: Vec<String>,
    /// What etcd answered.
    pub(crate) recorded: Vec<String>,
    /// What we answer on purpose instead.
    pub(crate) deviation: Option<Deviation>,
}

/// A deliberate difference to etcd.
#[derive(Clone, Debug)]
pub(crate) struct Deviation {
    /// Why, as shown in the compatibility table.
    pub(crate) reason: String,
    /// Our answer.
    pub(crate) output: Vec<String>,
}

impl Topic {
    /// All topics below `folder`: those that need a fresh store first, then by path.
    pub(crate) fn load_all(folder: &Path) -> Vec<Topic> {
        let mut topics: Vec<Topic> =
            script_paths(folder).iter().map(|path| Topic::load(path)).collect();
        topics.sort_by_key(|topic| (!topic.needs_fresh_store(), topic.path.clone()));
        topics
    }

    /// Reads one file.
    fn load(path: &Path) -> Topic {
        let text = fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        let mut blocks = blocks(&text).into_iter();
        let (_, head) = blocks.next().unwrap_or_default();
        assert!(
            !head.is_empty() && head.iter().all(|line| line.starts_with('#')),
            "{}: the first block says what the topic is",
            path.display()
        );
        let cases = blocks.map(|(line, lines)| Case::parse(path, line, &lines)).collect();
        Topic { path: path.to_owned(), head, cases }
    }

    /// What the topic is, from the first line of the file.
    pub(crate) fn title(&self) -> &str {
        self.head[0].trim_start_matches('#').trim()
    }

    /// Whether the cases hold only at revision 1.
    pub(crate) fn needs_fresh_store(&self) -> bool {
        self.head.iter().any(|line| line == NEEDS_FRESH)
    }

    /// The methods that the cases cannot do without, each with a message for it.
    ///
    /// As long as a server answers Unimplemented to one, the topic is not run there.
    pub(crate) fn needed_methods(&self) -> Vec<(&str, &str)> {
        let needs = self.head.iter().filter_map(|line| line.strip_prefix(NEEDS_METHOD));
        needs.map(|need| need.split_once(" body=").unwrap_or((need, ""))).collect()
    }

    /// Writes the file with the recorded answers of `self`.
    pub(crate) fn save(&self) {
        let mut text = self.head.join("\n");
        text.push('\n');
        for case in &self.cases {
            text.push('\n');
            for line in case.lines() {
                text.push_str(&line);
                text.push('\n');
            }
        }
        fs::write(&self.path, text)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", self.path.display()));
    }
}

impl Case {
    /// Reads one block.
    fn parse(path: &Path, line: usize, lines: &[String]) -> Case {
        let at = |wanted: &str| lines.iter().position(|line| line.starts_with(wanted));
        let requests_end = at(SEPARATOR).unwrap_or(lines.len());
        let recorded_end = at(DEVIATION).unwrap_or(lines.len());
        let source = lines[..requests_end].to_vec();
        assert!(
            source.first().is_some_and(|first| first.starts_with("# ")),
            "{}:{line}: a case begins with its name",
            path.display()
        );
        let recorded = lines.get(requests_end + 1..recorded_end).unwrap_or_default().to_vec();
        let deviation = lines.get(recorded_end).map(|first| Deviation {
            reason: first[DEVIATION.len()..].to_owned(),
            output: lines[recorded_end + 1..].to_vec(),
        });
        Case { line, source, recorded, deviation }
    }

    /// The first comment.
    pub(crate) fn name(&self) -> &str {
        self.source[0].trim_start_matches('#').trim()
    }

    /// The request lines.
    pub(crate) fn requests(&self) -> Vec<&str> {
        self.source.iter().map(String::as_str).filter(|line| !line.starts_with('#')).collect()
    }

    /// What a Quorate server must answer.
    pub(crate) fn expected(&self) -> &[String] {
        self.deviation.as_ref().map_or(&self.recorded, |deviation| &deviation.output)
    }

    /// The block as it stands in the file.
    fn lines(&self) -> Vec<String> {
        let mut lines = self.source.clone();
        lines.push(SEPARATOR.to_owned());
        lines.extend_from_slice(&self.recorded);
        if let Some(deviation) = &self.deviation {
            lines.push(format!("{DEVIATION}{}", deviation.reason));
            lines.extend_from_slice(&deviation.output);
        }
        lines
    }
}

/// The paths of all scripts below `folder`.
fn script_paths(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", folder.display()));
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.expect("a folder of the repository can be listed").path();
        if path.is_dir() {
            paths.extend(script_paths(&path));
        } else if path.extension().is_some_and(|extension| extension == "script") {
            paths.push(path);
        }
    }
    paths
}

/// The runs of lines between blank lines, each with the number of its first line.
fn blocks(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut blocks: Vec<(usize, Vec<String>)> = Vec::new();
    let mut open = false;
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            open = false;
            continue;
        }
        if !open {
            blocks.push((index + 1, Vec::new()));
            open = true;
        }
        let (_, lines) = blocks.last_mut().expect("a block is open");
        lines.push(line.trim_end().to_owned());
    }
    blocks
}
