//! Real members under real faults, as a machine room has them.
//!
//! ```text
//!              clients of the test
//!                      │
//!   ═══════════════════╧═══════════════════  a bridge of the kernel
//!     │                │                │
//!   ┌─┴──────┐     ┌───┴────┐     ┌─────┴──┐  a network namespace each: links that go down,
//!   │ member │     │ member │     │ member │  routes that refuse or swallow, a bad wire
//!   └─┬──────┘     └───┬────┘     └─────┬──┘
//!   page, disk       page, disk       page, disk   a wall clock to shift, a disk to fill and slow
//! ```
//!
//! | file | holds |
//! |---|---|
//! | `machine.rs` | commands, C programs, and what an earlier run left behind |
//! | `network.rs` | the bridge, the namespaces, and all that breaks between two members |
//! | `disk.rs` | small disks that fill up |
//! | `page.rs`, `meddle.c` | the wall clock and the flushes of one process |
//! | `wire.c` | delay, loss, doubling and disorder, since this kernel may know none of them |
//! | `fleet.rs` | the members, and what keeps them running |
//! | `faults.rs` | what goes wrong when, drawn from a seed, and how it is done |
//! | `door.rs` | the way of the workload's clients to a member |
//! | `report.rs` | the summary of a run |
//!
//! Without root there are no namespaces and no small disks: then members are killed, stopped,
//! restarted and meddled with on the loopback address only.

pub(crate) mod disk;
pub(crate) mod door;
pub(crate) mod faults;
pub(crate) mod fleet;
pub(crate) mod machine;
pub(crate) mod network;
pub(crate) mod page;
pub(crate) mod report;
