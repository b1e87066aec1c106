//! From a key to the watchers that want it: single keys in a map, ranges in an interval index.

use std::collections::HashMap;

use super::interval::Intervals;
use crate::state::KeyRange;

/// The keys that a watcher wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// A single key.
    One(Box<[u8]>),
    /// The keys from `start` on, below `end` if there is one.
    Span {
        /// The first key.
        start: Box<[u8]>,
        /// The first key after.
        end: Option<Box<[u8]>>,
    },
}

impl Keys {
    /// Reads `key` and `range_end` of a request; none if no key can be in the range.
    pub fn new(key: &[u8], range_end: &[u8]) -> Option<Keys> {
        // As in etcd: an empty key stands for the smallest.
        let key = if key.is_empty() { b"\0" } else { key };
        Some(match KeyRange::new(key, range_end) {
            KeyRange::Key(key) => Keys::One(key.into()),
            KeyRange::Span { start, end } if end.is_none_or(|end| start < end) => {
                Keys::Span { start: start.into(), end: end.map(Into::into) }
            }
            KeyRange::Span { .. } => return None,
        })
    }

    /// Whether `key` is one of them.
    pub(super) fn contains(&self, key: &[u8]) -> bool {
        match self {
            Keys::One(only) => **only == *key,
            Keys::Span { start, end } => {
                KeyRange::Span { start, end: end.as_deref() }.contains(key)
            }
        }
    }
}

/// Watchers by what they want; each is a small number.
#[derive(Debug, Default)]
pub(super) struct Group {
    keys: HashMap<Box<[u8]>, Vec<u32>>,
    ranges: Intervals,
    places: Places,
}

/// Where each watcher stands in the list of its key or range, so that it need not be looked for when
/// it goes: a hundred thousand may be in one list.
#[derive(Debug, Default)]
pub(super) struct Places(Vec<u32>);

impl Places {
    /// Adds `slot` to the list of its key or range.
    pub(super) fn push(&mut self, list: &mut Vec<u32>, slot: u32) {
        let at = slot as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, 0);
        }
        self.0[at] = u32::try_from(list.len()).expect("watchers are counted in 32 bits");
        list.push(slot);
    }

    /// Takes `slot` away from the list that it was added to.
    pub(super) fn remove(&mut self, list: &mut Vec<u32>, slot: u32) {
        let place = self.0[slot as usize];
        let removed = list.swap_remove(place as usize);
        assert_eq!(removed, slot, "a watcher is in its place");
        if let Some(moved) = list.get(place as usize) {
            self.0[*moved as usize] = place;
        }
    }
}

impl Group {
    pub(super) fn insert(&mut self, keys: &Keys, slot: u32) {
        let list = match keys {
            Keys::One(key) => match self.keys.get_mut(key) {
                Some(list) => list,
                None => self.keys.entry(key.clone()).or_default(),
            },
            Keys::Span { start, end } => self.ranges.insert(start, end.as_deref()),
        };
        self.places.push(list, slot);
    }

    /// Takes away what [`Group::insert`] added.
    pub(super) fn remove(&mut self, keys: &Keys, slot: u32) {
        match keys {
            Keys::One(key) => {
                let list = self.keys.get_mut(key).expect("the key of a watcher is here");
                self.places.remove(list, slot);
                if list.is_empty() {
                    self.keys.remove(key);
                }
            }
            Keys::Span { start, end } => {
                self.ranges.remove(start, end.as_deref(), |list| self.places.remove(list, slot));
            }
        }
    }

    /// Shows every watcher that wants `key`, in no particular order.
    pub(super) fn visit(&self, key: &[u8], mut visit: impl FnMut(u32)) {
        if let Some(slots) = self.keys.get(key) {
            slots.iter().for_each(|slot| visit(*slot));
        }
        self.ranges.visit(key, &mut visit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_the_forms_of_range_end() {
        assert_eq!(Keys::new(b"", b""), Some(Keys::One(Box::from(&b"\0"[..]))));
        assert_eq!(Keys::new(b"a", b"a"), None);
        assert_eq!(Keys::new(b"b", b"a"), None);
        assert!(Keys::new(b"a", b"\0").unwrap().contains(b"\xff"));
        assert!(!Keys::new(b"a", b"c").unwrap().contains(b"c"));
    }

    #[test]
    fn visit_finds_what_a_list_finds() {
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut group, mut list): (Group, Vec<Option<Keys>>) = Default::default();
        let key = |rng: &mut fastrand::Rng| vec![rng.u8(0..12); rng.usize(1..3)];
        for round in 0..3000 {
            let some = list.iter().flatten().count();
            if some > 0 && rng.usize(..200) < some {
                let at = rng.usize(..list.len());
                if let Some(keys) = list[at].take() {
                    group.remove(&keys, at as u32);
                }
            } else {
                let end = match rng.u8(..3) {
                    0 => Vec::new(),
                    1 => vec![0],
                    _ => key(&mut rng),
                };
                let Some(keys) = Keys::new(&key(&mut rng), &end) else { continue };
                group.insert(&keys, list.len() as u32);
                list.push(Some(keys));
            }
            let probe = key(&mut rng);
            let mut found = Vec::new();
            group.visit(&probe, |slot| found.push(slot as usize));
            found.sort_unstable();
            let wanted: Vec<usize> = (0..list.len())
                .filter(|at| list[*at].as_ref().is_some_and(|keys| keys.contains(&probe)))
                .collect();
            assert_eq!(found, wanted, "round {round}, key {probe:?}");
        }
    }
}
