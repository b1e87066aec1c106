//! Every failpoint of the program, and how a member gets there.
//!
//! A new failpoint must be added here: `it/failpoints.rs` compares this list with `src/`. It then
//! crashes a member at it.

/// What happens around the member that is to crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scene {
    /// A member alone is started for the first time and written to.
    First,
    /// A member alone that was killed is started again and written to.
    Again,
    /// The same, and the end of its log was torn.
    TornLog,
    /// The same, and there are unfinished files beside the log.
    Leftovers,
    /// The same, and its storage was killed between two logs of its metadata.
    BetweenLogs,
    /// The same, and there is a state that was replaced.
    StaleState,
    /// A member alone holds many leases that are kept alive.
    Leases,
    /// One of three members was left behind and receives a snapshot.
    Receiver,
    /// A member sends a snapshot to one that was left behind.
    Sender,
    /// A leader with entries that nobody else has comes back and finds another leader.
    Deposed,
}

/// A place in `src/`.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "failpoints"), expect(dead_code, reason = "only the crashes read it all"))]
pub(crate) struct Failpoint {
    /// What `fail_point!` calls it.
    pub(crate) name: &'static str,
    /// How to get there.
    pub(crate) scene: Scene,
    /// How often it may be passed before the crash.
    pub(crate) passes_max: u32,
    /// Other failpoints that make it happen more often.
    pub(crate) with: &'static str,
}

/// Failpoints that do not crash but make something happen more often.
pub(crate) const KNOBS: [&str; 3] = ["fold_often", "pack_often", "reopen_is_due"];

const REOPEN: &str = "reopen_is_due=return";
const PACK: &str = "pack_often=return";
const FOLD: &str = "fold_often=return";

const fn at(name: &'static str, scene: Scene, passes_max: u32) -> Failpoint {
    Failpoint { name, scene, passes_max, with: "" }
}

const fn often(with: &'static str, point: Failpoint) -> Failpoint {
    Failpoint { with, ..point }
}

/// All of them, in the order of what they guard.
pub(crate) const FAILPOINTS: &[Failpoint] = &[
    // The log: records.
    at("log_before_write", Scene::First, 60),
    at("log_after_write", Scene::First, 60),
    at("log_before_flush", Scene::First, 60),
    at("log_after_flush", Scene::First, 60),
    at("vote_before_flush", Scene::Again, 0),
    at("vote_after_flush", Scene::Again, 0),
    at("truncate_before_flush", Scene::Deposed, 0),
    at("truncate_after_flush", Scene::Deposed, 0),
    at("purge_before_submit", Scene::Again, 2),
    at("purge_after_submit", Scene::Again, 2),
    // The log: segments and spares.
    at("segment_before_header", Scene::First, 3),
    at("segment_before_flush", Scene::First, 3),
    at("segment_before_name", Scene::First, 3),
    at("segment_after_name", Scene::First, 3),
    at("segment_after_flush", Scene::First, 3),
    at("spare_before_create", Scene::First, 2),
    at("spare_after_create", Scene::First, 2),
    at("spare_before_name", Scene::First, 2),
    at("spare_after_name", Scene::First, 2),
    at("log_before_dispose", Scene::Again, 1),
    at("spare_before_reuse", Scene::Again, 1),
    at("spare_after_reuse", Scene::Again, 1),
    at("segment_before_removal", Scene::Again, 0),
    at("segment_after_removal", Scene::Again, 0),
    at("segment_after_disposal", Scene::Again, 1),
    // The log: recovery.
    at("leftover_before_removal", Scene::Leftovers, 0),
    at("leftover_after_removal", Scene::Leftovers, 0),
    at("cut_before_write", Scene::TornLog, 0),
    at("cut_after_write", Scene::TornLog, 0),
    at("cut_after_flush", Scene::TornLog, 0),
    // The data directory.
    at("mkdir_before_flush", Scene::First, 3),
    at("mkdir_after_flush", Scene::First, 3),
    at("state_before_pointer", Scene::First, 0),
    at("state_after_pointer", Scene::First, 0),
    at("claim_before_identity", Scene::First, 0),
    at("claim_after_identity", Scene::First, 0),
    at("replace_after_create", Scene::First, 1),
    at("replace_before_name", Scene::First, 1),
    at("replace_after_name", Scene::First, 1),
    at("stale_before_removal", Scene::StaleState, 0),
    at("stale_after_removal", Scene::StaleState, 0),
    // The storage.
    at("open_before_sync", Scene::Again, 0),
    at("open_before_database", Scene::First, 0),
    at("open_after_database", Scene::First, 0),
    at("open_after_names", Scene::First, 0),
    at("prepare_before_log", Scene::BetweenLogs, 0),
    at("prepare_after_log", Scene::BetweenLogs, 0),
    at("state_before_puts", Scene::First, 20),
    at("state_after_puts", Scene::First, 20),
    at("state_after_removal", Scene::First, 60),
    at("state_before_flush", Scene::First, 3),
    at("state_before_note", Scene::First, 3),
    at("note_before_sync", Scene::First, 3),
    at("note_before_name", Scene::First, 3),
    at("note_after_name", Scene::First, 3),
    at("state_after_note", Scene::First, 3),
    often(REOPEN, at("reopen_before_close", Scene::First, 3)),
    often(REOPEN, at("reopen_while_closed", Scene::First, 3)),
    often(REOPEN, at("reopen_after_open", Scene::First, 3)),
    often(PACK, at("pack_before_removal", Scene::First, 3)),
    often(PACK, at("pack_before_puts", Scene::First, 3)),
    often(PACK, at("pack_after_puts", Scene::First, 3)),
    // Checkpoints and compaction.
    at("checkpoint_before", Scene::First, 3),
    at("checkpoint_after", Scene::First, 3),
    at("compact_before_step", Scene::First, 3),
    at("compact_after_step", Scene::First, 3),
    at("compact_after_last_step", Scene::First, 3),
    often(FOLD, at("fold_before_leases", Scene::Leases, 1)),
    often(FOLD, at("fold_after_leases", Scene::Leases, 1)),
    often(FOLD, at("fold_after_removal", Scene::Leases, 0)),
    // Snapshots.
    at("snapshot_before_frame", Scene::Sender, 0),
    at("stage_after_mkdir", Scene::Receiver, 0),
    at("snapshot_after_begin", Scene::Receiver, 0),
    at("snapshot_before_chunk", Scene::Receiver, 0),
    at("snapshot_after_chunk", Scene::Receiver, 0),
    at("snapshot_before_verify", Scene::Receiver, 0),
    at("snapshot_before_flush", Scene::Receiver, 0),
    at("snapshot_after_flush", Scene::Receiver, 0),
    at("snapshot_before_flip", Scene::Receiver, 0),
    at("flip_before_pointer", Scene::Receiver, 0),
    at("flip_after_pointer", Scene::Receiver, 0),
    at("snapshot_after_flip", Scene::Receiver, 0),
    at("snapshot_after_install", Scene::Receiver, 0),
];
