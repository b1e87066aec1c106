//! Is the proof any good? Each mutant breaks one promise in one place, and the simulation must notice.
//!
//! `cargo test --release --features failpoints --test it mutants` runs seeds of the simulation with one mutant
//! after the other, until each is caught; none may need more than [`SEEDS_MAX`] seeds. With
//! `QUORATE_MUTANTS_TABLE=1` what came of it is written into `tests/README.md`; with
//! `QUORATE_MUTANT=name` only that one runs. They are switched on for the whole process: nothing else may
//! run beside them.

use std::fmt::Write as _;
use std::ops::Range;
use std::panic;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::model;
use crate::sim::directed::STORIES;
use crate::sim::run_seed;
use crate::support::number;

/// Seeds within which a mutant has to be caught.
const SEEDS_MAX: u64 = 200;

/// So many of them are tried before the stories.
const SEEDS_FIRST: u64 = 10;

/// Seeds of each story.
const STORY_SEEDS_MAX: u64 = 5;

/// Where the table begins and ends in the file.
const MARKS: [&str; 2] = ["<!-- mutants -->", "<!-- end of mutants -->"];

/// Each mutant, and what it does.
const MUTANTS: &[(&str, &str)] = &[
    ("mutant_skip_fsync", "The log is written, but not flushed."),
    ("mutant_ack_before_flush", "Appended entries count before they are on disk."),
    ("mutant_apply_before_durable", "Entries are applied before the own disk has them."),
    ("mutant_forget_vote", "A vote is not written down."),
    ("mutant_truncate_too_little", "A conflicting entry is left in the log."),
    ("mutant_restore_leader", "A leader that was restarted goes on in its old term."),
    ("mutant_purge_beyond_checkpoint", "The log is purged up to where no checkpoint was made."),
    ("mutant_reply_before_commit", "A write is answered when it is queued."),
    ("mutant_forward_twice", "A forwarded group of unknown outcome is proposed again."),
    ("mutant_apply_twice_after_snapshot", "The first entry behind a snapshot is applied twice."),
    ("mutant_read_without_index", "Linearizable reads ask nobody."),
    ("mutant_confirm_any_vote", "A voter confirms a leader whose vote it does not hold."),
    ("mutant_compact_below_pin", "A compaction deletes what somebody still reads."),
    ("mutant_drop_event_of_slow_watcher", "An event for which a stream has no room is dropped."),
    ("mutant_no_resync_after_snapshot", "Watchers are not told that a snapshot came."),
    ("mutant_expire_on_follower", "Followers end leases by what they know."),
    ("mutant_renew_in_memory_only", "Keep-alives are answered, but never replicated."),
    ("mutant_lease_leaves_a_key", "A lease that ends leaves its first key."),
    ("mutant_wall_clock", "Leases live by the wall clock."),
];

/// How a mutant was caught.
struct Caught {
    /// How many seeds it took.
    seeds: u64,
    by: String,
}

#[test]
fn mutants_are_all_caught() {
    let only = std::env::var("QUORATE_MUTANT").ok();
    let first = number("QUORATE_SEED", 1);
    let mut table =
        "| mutant | what is broken | caught by | seeds |\n|---|---|---|---|\n".to_owned();
    let mut missed = Vec::new();
    for (name, what) in MUTANTS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        fail::cfg(*name, "return").unwrap();
        let caught = catch(first);
        fail::remove(*name);
        fail::remove("mutant_apply_twice_now");
        match caught {
            Some(Caught { seeds, by }) => {
                eprintln!("{name}: seed {seeds}: {by}");
                writeln!(table, "| `{name}` | {what} | {by} | {seeds} |").unwrap();
            }
            None => {
                eprintln!("{name}: not caught");
                missed.push(*name);
            }
        }
    }
    assert!(missed.is_empty(), "not caught within {SEEDS_MAX} seeds: {missed:?}");
    if only.is_none() && number("QUORATE_MUTANTS_TABLE", 0) == 1 {
        write_table(&table);
    }
}

/// Runs some seeds, then the stories, then more seeds, until something is found wrong.
fn catch(first: u64) -> Option<Caught> {
    let seeds = |seeds: Range<u64>| catch_by_seeds(first, seeds);
    seeds(0..SEEDS_FIRST)
        .or_else(catch_by_stories)
        .or_else(catch_by_model)
        .or_else(|| seeds(SEEDS_FIRST..SEEDS_MAX))
}

fn catch_by_model() -> Option<Caught> {
    let test = panic::catch_unwind(model::states_agree_with_the_model_and_each_other);
    let by = "`cargo test --test it model`".to_owned();
    test.is_err().then_some(Caught { seeds: 1, by })
}

fn catch_by_stories() -> Option<Caught> {
    let told =
        (1..=STORY_SEEDS_MAX).flat_map(|seed| STORIES.map(|(name, tell)| (seed, name, tell)));
    told.into_iter().find_map(|(seeds, name, tell)| {
        let violations = panic::catch_unwind(|| tell(seeds));
        let first = match &violations {
            Ok(violations) => rule(violations.first()?),
            Err(_) => "a panic".to_owned(),
        };
        Some(Caught { seeds, by: format!("story `{name}`: {first}") })
    })
}

/// Runs seeds until one finds something wrong.
fn catch_by_seeds(first: u64, range: Range<u64>) -> Option<Caught> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (next, best) = (AtomicU64::new(range.start), Mutex::new(None::<Caught>));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seeds = next.fetch_add(1, Ordering::Relaxed);
                    let is_over = best.lock().as_ref().is_some_and(|best| best.seeds < seeds);
                    if is_over || seeds >= range.end {
                        return;
                    }
                    let report = run_seed(first + seeds);
                    let Some(violation) = report.violations.first() else { continue };
                    let mut best = best.lock();
                    if best.as_ref().is_none_or(|best| seeds + 1 < best.seeds) {
                        *best = Some(Caught { seeds: seeds + 1, by: rule(violation) });
                    }
                }
            });
        }
    });
    best.into_inner()
}

/// The rule that a violation names.
fn rule(violation: &str) -> String {
    let text = violation.strip_prefix("VIOLATION of ").unwrap_or(violation);
    let parts: Vec<&str> = match text.strip_prefix("what clients may see: ") {
        Some(judged) => judged.splitn(3, ": ").take(2).collect(),
        None => text.splitn(2, ": ").take(1).collect(),
    };
    parts.join(": ")
}

fn write_table(table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/README.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(MARKS[0]).expect("the table has its place");
    let (_, after) = rest.split_once(MARKS[1]).expect("the place of the table ends");
    let text = format!("{before}{}\n{table}{}{after}", MARKS[0], MARKS[1]);
    std::fs::write(&path, text).unwrap();
}
