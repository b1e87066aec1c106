//! The compatibility table of the README, made from a run against etcd and one against Quorate.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use super::run::Outcome;
use super::script::{Case, Topic};

/// The line before the table.
const BEGIN: &str = "<!-- compatibility:begin -->";

/// The line after the table.
const END: &str = "<!-- compatibility:end -->";

/// One row of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    title: String,
    cases: usize,
    agree: usize,
    notes: Vec<String>,
}

impl Row {
    /// Compares the two runs of one topic.
    pub(crate) fn compare(topic: &Topic, etcd: &[Outcome], quorate: &[Outcome]) -> Row {
        let mut row = Row {
            title: topic.title().to_owned(),
            cases: topic.cases.len(),
            agree: 0,
            notes: Vec::new(),
        };
        for (case, (theirs, ours)) in topic.cases.iter().zip(etcd.iter().zip(quorate)) {
            if theirs.output == ours.output {
                row.agree += 1;
            } else {
                row.notes.push(note(case, ours));
            }
        }
        row
    }

    /// The row of a topic that could not be run against Quorate.
    pub(crate) fn missing(topic: &Topic, reason: &str) -> Row {
        Row {
            title: topic.title().to_owned(),
            cases: topic.cases.len(),
            agree: 0,
            notes: vec![reason.to_owned()],
        }
    }

    /// How many cases came out differently.
    pub(crate) fn differ(&self) -> usize {
        self.cases - self.agree
    }
}

/// What the table says about a case that came out differently.
fn note(case: &Case, ours: &Outcome) -> String {
    match &case.deviation {
        Some(deviation) if deviation.output == ours.output => {
            format!("{}: {} (on purpose)", case.name(), deviation.reason)
        }
        _ => format!("{}: **not as etcd**", case.name()),
    }
}

/// Puts the table of `rows` between the markers of the README at `path`.
///
/// Creates the file with nothing but the markers if there is none.
pub(crate) fn write(path: &Path, rows: &[Row]) {
    let text = fs::read_to_string(path).unwrap_or_else(|_| format!("{BEGIN}\n{END}\n"));
    let (before, rest) = text.split_once(BEGIN).expect("the README has the begin marker");
    let (_, after) = rest.split_once(END).expect("the README has the end marker");
    let text = format!("{before}{BEGIN}\n{}{END}{after}", render(rows));
    fs::write(path, text).expect("the README can be written");
}

/// The table in Markdown.
fn render(rows: &[Row]) -> String {
    let mut text =
        String::from("| Topic | Cases | Agree | Differ | Notes |\n|---|--:|--:|--:|---|\n");
    let mut line = |row: &Row, title: &str| {
        let (cases, agree, differ) = (row.cases, row.agree, row.differ());
        let notes = row.notes.join("; ").replace('|', "\\|");
        writeln!(text, "| {title} | {cases} | {agree} | {differ} | {notes} |")
            .expect("a string can be written to");
    };
    for row in rows {
        line(row, &row.title);
    }
    let total = Row {
        title: String::new(),
        cases: rows.iter().map(|row| row.cases).sum(),
        agree: rows.iter().map(|row| row.agree).sum(),
        notes: Vec::new(),
    };
    line(&total, "**All**");
    text
}
