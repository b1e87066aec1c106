//! `-w table`: borders, centred headings, cells to the right.

use super::{Answer, hash_row, health_row, member_row, status_row};

const MEMBER_COLUMNS: [&str; 6] =
    ["ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER"];
const HEALTH_COLUMNS: [&str; 4] = ["ENDPOINT", "HEALTH", "TOOK", "ERROR"];
const HASH_COLUMNS: [&str; 3] = ["ENDPOINT", "HASH", "HASH REVISION"];
const STATUS_COLUMNS: [&str; 16] = [
    "ENDPOINT",
    "ID",
    "VERSION",
    "STORAGE VERSION",
    "DB SIZE",
    "IN USE",
    "PERCENTAGE NOT IN USE",
    "QUOTA",
    "IS LEADER",
    "IS LEARNER",
    "RAFT TERM",
    "RAFT INDEX",
    "RAFT APPLIED INDEX",
    "ERRORS",
    "DOWNGRADE TARGET VERSION",
    "DOWNGRADE ENABLED",
];

/// The table with all its lines, or nothing for answers that have no columns.
pub(super) fn render(answer: &Answer<'_>) -> Option<String> {
    match answer {
        Answer::MemberList(response) => {
            Some(table(&MEMBER_COLUMNS, response.members.iter().map(member_row).collect()))
        }
        Answer::EndpointStatus(list) => {
            Some(table(&STATUS_COLUMNS, list.iter().map(status_row).collect()))
        }
        Answer::EndpointHealth(list) => {
            Some(table(&HEALTH_COLUMNS, list.iter().map(health_row).collect()))
        }
        Answer::EndpointHashKv(list) => {
            Some(table(&HASH_COLUMNS, list.iter().map(hash_row).collect()))
        }
        Answer::Get(_)
        | Answer::Put(_)
        | Answer::Delete(_)
        | Answer::Txn(_)
        | Answer::Watch(_)
        | Answer::LeaseGrant(_)
        | Answer::LeaseRevoke(..)
        | Answer::LeaseKeepAlive(_)
        | Answer::LeaseTimeToLive(..)
        | Answer::Leases(_)
        | Answer::MoveLeader { .. }
        | Answer::Alarm(_) => None,
    }
}

fn table(columns: &[&str], rows: Vec<Vec<String>>) -> String {
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| {
            let cells = rows.iter().map(|row| row[column].trim().chars().count());
            cells.fold(columns[column].len(), usize::max)
        })
        .collect();
    let border = |left: &str, middle: &str, right: &str| {
        let lines: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        format!("{left}{}{right}\n", lines.join(middle))
    };
    let line = |cells: Vec<String>| format!("│ {} │\n", cells.join(" │ "));
    let headings = columns.iter().zip(&widths).map(|(name, width)| format!("{name:^width$}"));

    let mut text = border("┌", "┬", "┐") + &line(headings.collect());
    if !rows.is_empty() {
        text += &border("├", "┼", "┤");
    }
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{:>width$}", cell.trim()));
        text += &line(cells.collect());
    }
    text + &border("└", "┴", "┘")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_are_centred_and_cells_are_to_the_right() {
        let rows = vec![vec!["127.0.0.1:2379".to_owned(), "7 ".to_owned(), String::new()]];
        let expected = "\
┌────────────────┬──────┬───────────────┐
│    ENDPOINT    │ HASH │ HASH REVISION │
├────────────────┼──────┼───────────────┤
│ 127.0.0.1:2379 │    7 │               │
└────────────────┴──────┴───────────────┘
";
        assert_eq!(table(&HASH_COLUMNS, rows), expected);
    }

    #[test]
    fn a_table_without_rows_has_no_middle_border() {
        assert_eq!(table(&["A"], Vec::new()), "┌───┐\n│ A │\n└───┘\n");
    }
}
