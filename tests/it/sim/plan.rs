//! What a seed chooses: how many members, how they are set up, what the clients do, what goes wrong.

use std::time::Duration;

use fastrand::Rng;
use quorate::limits;

use super::net::Link;
use crate::support::workload::Mix;

/// Seeds from here on make short runs with fewer calls, for tests that are to be quick.
pub(crate) const SHORT: u64 = 1 << 32;

/// The choices of one seed.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) members: usize,
    pub(crate) election_timeout: Duration,
    pub(crate) heartbeat_interval: Duration,
    pub(crate) snapshot_count: u64,
    pub(crate) catchup_entries: u64,
    pub(crate) log_retained_bytes_max: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) ring_bytes: usize,
    pub(crate) value_cache_bytes: usize,
    pub(crate) answer_bytes_max: usize,
    /// How long faults happen.
    pub(crate) trouble: Duration,
    /// The longest pause between two faults.
    pub(crate) calm_max: Duration,
    pub(crate) faults: Faults,
    /// A flush takes up to so long when the disk is well.
    pub(crate) flush_max: Duration,
    pub(crate) blocking_max: Duration,
    pub(crate) link: Link,
    pub(crate) mix: Mix,
    /// A client gives a call up after this.
    pub(crate) patience: Duration,
}

/// Which kinds of faults happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    pub(crate) process: bool,
    pub(crate) power: bool,
    pub(crate) pauses: bool,
    pub(crate) clocks: bool,
    pub(crate) network: bool,
    pub(crate) noise: bool,
    pub(crate) slow_disks: bool,
    pub(crate) full_disks: bool,
    pub(crate) bad_disks: bool,
}

impl Plan {
    /// Three members and no trouble at all, for stories that make their own.
    pub(crate) fn calm(seed: u64) -> Plan {
        Plan {
            members: 3,
            election_timeout: Duration::from_secs(1),
            heartbeat_interval: Duration::from_millis(100),
            flush_max: Duration::from_micros(300),
            blocking_max: Duration::from_micros(500),
            link: Link {
                delay_max: Duration::from_micros(500),
                ..link(&mut Rng::with_seed(seed), false)
            },
            patience: Duration::from_secs(2),
            snapshot_count: 10,
            catchup_entries: 5,
            log_retained_bytes_max: 1 << 20,
            segment_bytes: 16 * 1024,
            ring_bytes: 1024,
            ..Plan::of(seed)
        }
    }

    /// The plan of `seed`.
    pub(crate) fn of(seed: u64) -> Plan {
        let mut rng = Rng::with_seed(seed ^ 0x51ed_270b);
        let rng = &mut rng;
        let election_timeout = Duration::from_millis(rng.u64(3..=10) * 100);
        let faults = Faults {
            process: rng.u8(..10) < 7,
            power: rng.u8(..10) < 6,
            pauses: rng.u8(..10) < 5,
            clocks: rng.u8(..10) < 4,
            network: rng.u8(..10) < 7,
            noise: rng.u8(..10) < 5,
            slow_disks: rng.u8(..10) < 4,
            full_disks: rng.u8(..10) < 2,
            bad_disks: rng.u8(..10) < 2,
        };
        let small_snapshots = rng.u8(..10) < 7;
        // A source of its own, so that seeds choose otherwise as they did before this was a choice.
        let retained = Rng::with_seed(seed ^ 0x7e7a_19ed).usize(..3);
        let is_short = seed >= SHORT;
        let members = if rng.u8(..10) < 7 { 3 } else { 5 };
        Plan {
            seed,
            members,
            election_timeout,
            heartbeat_interval: election_timeout / 10,
            snapshot_count: if small_snapshots { rng.u64(5..100) } else { 10_000 },
            catchup_entries: if small_snapshots { rng.u64(1..50) } else { 5_000 },
            log_retained_bytes_max: [64 << 10, 1 << 20, 256 << 20][retained],
            segment_bytes: [16, 32, 64, 256][rng.usize(..4)] * 1024,
            ring_bytes: if rng.bool() { rng.usize(0..16_384) } else { 1 << 20 },
            value_cache_bytes: if rng.bool() { 0 } else { 1 << 20 },
            answer_bytes_max: limits::ANSWER_BYTES_MAX,
            trouble: Duration::from_secs(rng.u64(if is_short { 6..12 } else { 15..60 })),
            calm_max: Duration::from_millis([300, 1_000, 3_000, 6_000][rng.usize(..4)]),
            faults,
            flush_max: Duration::from_micros([300, 1_000, 5_000, 20_000][rng.usize(..4)]),
            blocking_max: Duration::from_micros([0, 500, 5_000][rng.usize(..3)]),
            link: link(rng, faults.noise),
            mix: mix(rng, members, is_short),
            patience: Duration::from_millis(rng.u64(1_000..8_000)),
        }
    }
}

fn mix(rng: &mut Rng, members: usize, is_short: bool) -> Mix {
    let pauses = if is_short { [100, 200, 400] } else { [20, 100, 400] };
    Mix {
        members,
        registers: rng.usize(1..=4),
        txns: rng.usize(..=2),
        appenders: rng.usize(..=3),
        readers: rng.usize(1..=2),
        leases: rng.usize(..=3),
        locks: rng.usize(..=2),
        watchers: rng.usize(..=3),
        compacts: rng.bool(),
        pause_max: Duration::from_millis(pauses[rng.usize(..3)]),
        ..Mix::default()
    }
}

fn link(rng: &mut Rng, noise: bool) -> Link {
    let delay_max = Duration::from_micros([500, 2_000, 10_000, 40_000][rng.usize(..4)]);
    let ppm = |rng: &mut Rng| if noise { [0, 200, 2_000, 10_000][rng.usize(..4)] } else { 0 };
    Link {
        is_blocked: false,
        delay_min: Duration::from_micros(rng.u64(20..=500)),
        delay_max,
        breaks_ppm: ppm(rng),
        stragglers_ppm: ppm(rng),
        doubles_ppm: ppm(rng) * 10,
        bytes_per_second: None,
    }
}
