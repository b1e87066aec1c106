//! Multi-version keys: what exists at which revision, and where its bytes are.
//!
//! Every change makes a [`record::Record`] in the storage, ordered by revision. The [`index`] leads
//! from keys to revisions and is rebuilt from the records when the state is opened:
//!
//! ```text
//! put a=1       rev 2     index:  a → [2, 3 tombstone, 5]     b → [4]
//! delete a      rev 3
//! put b=1       rev 4     range at 2: a(2)     at 3: nothing
//! put a=2       rev 5     range at 4: b(4)     at 5: a(5), b(4)
//! ```
//!
//! - [`record`]: the bytes of one change.
//! - [`entry`]: one key with its versions.
//! - [`leaf`]: some entries in key order, found by tags of their keys.
//! - [`tree`]: the ordered map of entries that knows how many live keys lie before a key.
//! - [`ages`]: who was created when, for searches that skip what is too old or too young.
//! - [`index`]: the tree, the pairs kept in memory, and what compaction drops.

pub(crate) mod ages;
pub(crate) mod entry;
pub(crate) mod index;
mod leaf;
pub(crate) mod record;
pub(crate) mod tree;
