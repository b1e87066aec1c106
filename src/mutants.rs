//! Deliberate breakage, for the proof of the proof: each mutant is one promise not kept in one place.
//!
//! `tests/it/mutants.rs` switches them on one at a time and demands that the suite finds out. Without the
//! feature `failpoints` all are off, and the compiler drops them.

/// Whether the mutant called `name` is switched on.
#[inline]
pub fn is_on(name: &str) -> bool {
    cfg!(feature = "failpoints") && fail::eval(name, |_| ()).is_some()
}

/// Whether the mutant called `name` is switched on; if so `then` strikes once, the next time.
#[inline]
pub fn arm(name: &str, then: &str) {
    if is_on(name) {
        fail::cfg(then, "1*return").expect("a fixed action is well formed");
    }
}
