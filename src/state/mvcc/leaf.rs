//! A leaf of the tree: entries in key order, and a tag of each key to find one by.
//!
//! To compare two keys means to wait for memory twice, for the entry and for its key, and a search by
//! halves does so six times. A tag is a byte that is made of the key, and those of a leaf lie side by
//! side: a key that is there is found by comparing one or two.
//!
//! **Invariant:** tag and entry of a key stand at the same place.

use std::ops::Deref;

use super::entry::Entry;

pub(super) const LEAF_ENTRIES_MAX: usize = 64;
const LEAF_GROWTH: usize = 8;

/// Some entries in key order.
#[derive(Debug, Default)]
pub(super) struct Leaf {
    tags: Vec<u8>,
    entries: Vec<Entry>,
}

impl Deref for Leaf {
    type Target = [Entry];

    fn deref(&self) -> &[Entry] {
        &self.entries
    }
}

impl Leaf {
    /// The place of `key`, if it is there.
    pub(super) fn position(&self, key: &[u8]) -> Option<usize> {
        let mut places = memchr::memchr_iter(tag(key), &self.tags);
        places.find(|at| self.entries[*at].key() == key)
    }

    /// The place of `key`, or else that at which it belongs.
    pub(super) fn find(&self, key: &[u8]) -> Result<usize, usize> {
        match self.position(key) {
            Some(at) => Ok(at),
            None => Err(self.place_of(key)),
        }
    }

    /// The place of the first entry that is not below `key`.
    pub(super) fn lower_bound(&self, key: &[u8]) -> usize {
        self.find(key).unwrap_or_else(|at| at)
    }

    /// Where `key`, which is not there, belongs.
    fn place_of(&self, key: &[u8]) -> usize {
        // Keys that arrive in order land behind the last one.
        if self.entries.last().is_some_and(|last| last.key() < key) {
            return self.entries.len();
        }
        self.entries.partition_point(|entry| entry.key() < key)
    }

    /// The entry at `at`, whose key stays as it is.
    pub(super) fn entry_mut(&mut self, at: usize) -> &mut Entry {
        &mut self.entries[at]
    }

    /// Inserts `entry` at `at`, where its key belongs. If there is no room for it, a part goes to a new
    /// leaf behind this one.
    pub(super) fn insert(&mut self, at: usize, entry: Entry) -> Option<Leaf> {
        if self.entries.len() < LEAF_ENTRIES_MAX {
            if self.entries.len() == self.entries.capacity() {
                self.reserve(LEAF_GROWTH);
            }
            self.put(at, entry);
            return None;
        }
        // A new key at the end is most likely followed by its successor: leave this leaf full.
        let middle = if at == self.entries.len() { at } else { LEAF_ENTRIES_MAX / 2 };
        let mut right = Leaf::default();
        right.reserve(self.entries.len() - middle + LEAF_GROWTH);
        right.tags.extend(self.tags.drain(middle..));
        right.entries.extend(self.entries.drain(middle..));
        if at >= middle {
            right.put(at - middle, entry);
        } else {
            self.put(at, entry);
        }
        self.shrink_to(0);
        Some(right)
    }

    /// Appends `more`, whose keys are all above.
    pub(super) fn append(&mut self, more: &mut Leaf) {
        self.reserve(more.entries.len());
        self.tags.append(&mut more.tags);
        self.entries.append(&mut more.entries);
    }

    /// Shows the entries from `start` on, and takes out those for which `is_to_go`.
    pub(super) fn remove_if(&mut self, start: usize, is_to_go: impl FnMut(&mut Entry) -> bool) {
        if self.entries.extract_if(start.., is_to_go).count() > 0 {
            self.tags.clear();
            self.tags.extend(self.entries.iter().map(|entry| tag(entry.key())));
            self.shrink_to(self.entries.len() + LEAF_GROWTH);
        }
    }

    fn put(&mut self, at: usize, entry: Entry) {
        self.tags.insert(at, tag(entry.key()));
        self.entries.insert(at, entry);
    }

    fn reserve(&mut self, more: usize) {
        self.tags.reserve_exact(more);
        self.entries.reserve_exact(more);
    }

    fn shrink_to(&mut self, capacity: usize) {
        self.tags.shrink_to(capacity);
        self.entries.shrink_to(capacity);
    }
}

/// A byte that differs for most keys; the top one of a product, to which every bit contributes.
fn tag(key: &[u8]) -> u8 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut sum = key.len() as u64;
    for piece in key.chunks(8) {
        let mut word = [0; 8];
        word[..piece.len()].copy_from_slice(piece);
        sum = (sum.rotate_left(23) ^ u64::from_le_bytes(word)).wrapping_mul(FACTOR);
    }
    sum.to_be_bytes()[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(keys: &[&str]) -> Leaf {
        let mut leaf = Leaf::default();
        for (at, key) in keys.iter().enumerate() {
            assert!(leaf.insert(at, Entry::new(key.as_bytes())).is_none());
        }
        leaf
    }

    /// The model is a sorted list; keys are few, so that many are there and many share a tag.
    #[test]
    fn a_leaf_finds_what_a_sorted_list_finds() {
        let seed = fastrand::u64(..);
        eprintln!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..300 {
            let (mut leaf, mut list) = (Leaf::default(), Vec::<Vec<u8>>::new());
            for _ in 0..200 {
                let key: Vec<u8> = (0..random.usize(..12)).map(|_| random.u8(..3)).collect();
                assert_eq!(leaf.find(&key), list.binary_search(&key));
                assert_eq!(leaf.position(&key), list.binary_search(&key).ok());
                let Err(at) = leaf.find(&key) else { continue };
                list.insert(at, key.clone());
                if let Some(right) = leaf.insert(at, Entry::new(&key)) {
                    let (left, keys) = (leaf.len(), |leaf: &Leaf| {
                        leaf.iter().map(|entry| entry.key().to_vec()).collect::<Vec<_>>()
                    });
                    assert_eq!([keys(&leaf), keys(&right)].concat(), list);
                    let goes_on_right = random.bool();
                    let rest = list.split_off(left);
                    (leaf, list) = if goes_on_right { (right, rest) } else { (leaf, list) };
                }
                if random.u8(..50) == 0 {
                    let bit = random.usize(..2);
                    let start = random.usize(..=list.len());
                    leaf.remove_if(start, |entry| entry.key().len() % 2 == bit);
                    let rest: Vec<_> = list.split_off(start);
                    list.extend(rest.into_iter().filter(|key| key.len() % 2 != bit));
                }
            }
        }
    }

    #[test]
    fn leaves_that_are_joined_find_the_keys_of_both() {
        let (mut left, mut right) = (leaf(&["a", "b"]), leaf(&["c", "e"]));
        left.append(&mut right);
        let places = ["a", "b", "c", "d", "e"].map(|key| left.find(key.as_bytes()));
        assert_eq!(places, [Ok(0), Ok(1), Ok(2), Err(3), Ok(3)]);
        assert_eq!(left.lower_bound(b"d"), 3);
    }

    #[test]
    fn keys_in_a_row_have_all_tags() {
        for form in ["k", "/registry/pods/default/pod-"] {
            let mut counts = [0; 256];
            for number in 0..25_600 {
                counts[usize::from(tag(format!("{form}{number:07}").as_bytes()))] += 1;
            }
            let most = counts.iter().max().unwrap();
            assert!(*most < 300, "a hundred each would be even, one tag has {most}");
        }
    }
}
