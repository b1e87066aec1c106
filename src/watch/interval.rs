//! Ranges of keys, and which of them hold a key: a treap ordered by start that knows the furthest
//! end of each subtree.
//!
//! Equal ranges share a node. Finding the ranges of a key costs O(log n) for each one found.

use std::cmp::Ordering;

/// No node.
const NIL: u32 = u32::MAX;

/// Ranges with the watchers that want them.
#[derive(Debug)]
pub(super) struct Intervals {
    nodes: Vec<Node>,
    free: Vec<u32>,
    root: u32,
    /// Where the next priority comes from; its quality matters for balance only.
    random: u32,
}

#[derive(Debug, Default)]
struct Node {
    start: Box<[u8]>,
    /// The first key behind the range; none if it has no end.
    end: Option<Box<[u8]>>,
    slots: Vec<u32>,
    priority: u32,
    left: u32,
    right: u32,
    /// The node with the furthest end at or below this one.
    furthest: u32,
}

/// A range as it is compared.
type Range<'a> = (&'a [u8], Option<&'a [u8]>);

impl Default for Intervals {
    fn default() -> Self {
        Intervals { nodes: Vec::new(), free: Vec::new(), root: NIL, random: 0x9e37_79b9 }
    }
}

/// No end is behind every end.
fn compare_ends(a: Option<&[u8]>, b: Option<&[u8]>) -> Ordering {
    match (a, b) {
        (Some(a), Some(b)) => a.cmp(b),
        (a, b) => a.is_none().cmp(&b.is_none()),
    }
}

fn compare(a: Range<'_>, b: Range<'_>) -> Ordering {
    a.0.cmp(b.0).then_with(|| compare_ends(a.1, b.1))
}

impl Intervals {
    /// The slots of the range from `start` to below `end`, to which one is to be added.
    pub(super) fn insert(&mut self, start: &[u8], end: Option<&[u8]>) -> &mut Vec<u32> {
        if let Some(at) = self.find((start, end)) {
            return &mut self.nodes[at as usize].slots;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        let node = Node {
            start: start.into(),
            end: end.map(Into::into),
            slots: Vec::new(),
            priority: self.random,
            left: NIL,
            right: NIL,
            furthest: NIL,
        };
        let new = match self.free.pop() {
            Some(at) => {
                self.nodes[at as usize] = node;
                at
            }
            None => {
                self.nodes.push(node);
                u32::try_from(self.nodes.len() - 1).expect("ranges are counted in 32 bits")
            }
        };
        self.settle(new);
        self.root = self.insert_below(self.root, new);
        &mut self.nodes[new as usize].slots
    }

    /// Has `remove` take slots away from a range that is there, and the range if none is left.
    pub(super) fn remove(
        &mut self,
        start: &[u8],
        end: Option<&[u8]>,
        remove: impl FnOnce(&mut Vec<u32>),
    ) {
        let at = self.find((start, end)).expect("the range of a watcher is here");
        let slots = &mut self.nodes[at as usize].slots;
        remove(slots);
        if slots.is_empty() {
            self.root = self.remove_below(self.root, at);
            self.nodes[at as usize] = Node::default();
            self.free.push(at);
        }
    }

    /// Shows the slots of all ranges that hold `key`.
    pub(super) fn visit(&self, key: &[u8], visit: &mut impl FnMut(u32)) {
        self.visit_below(self.root, key, visit);
    }

    fn visit_below(&self, at: u32, key: &[u8], visit: &mut impl FnMut(u32)) {
        if at == NIL {
            return;
        }
        let node = &self.nodes[at as usize];
        let is_before = |end: Option<&[u8]>| end.is_none_or(|end| key < end);
        if !is_before(self.nodes[node.furthest as usize].end.as_deref()) {
            return;
        }
        self.visit_below(node.left, key, visit);
        if *node.start <= *key {
            if is_before(node.end.as_deref()) {
                node.slots.iter().for_each(|slot| visit(*slot));
            }
            self.visit_below(node.right, key, visit);
        }
    }

    fn range(&self, at: u32) -> Range<'_> {
        let node = &self.nodes[at as usize];
        (&node.start, node.end.as_deref())
    }

    fn find(&self, range: Range<'_>) -> Option<u32> {
        let mut at = self.root;
        while at != NIL {
            let node = &self.nodes[at as usize];
            at = match compare(range, self.range(at)) {
                Ordering::Equal => return Some(at),
                Ordering::Less => node.left,
                Ordering::Greater => node.right,
            };
        }
        None
    }

    /// Computes what a node knows of its subtree.
    fn settle(&mut self, at: u32) {
        let node = &self.nodes[at as usize];
        let mut furthest = at;
        for child in [node.left, node.right] {
            if child != NIL {
                let other = self.nodes[child as usize].furthest;
                if compare_ends(self.range(other).1, self.range(furthest).1).is_gt() {
                    furthest = other;
                }
            }
        }
        self.nodes[at as usize].furthest = furthest;
    }

    fn insert_below(&mut self, at: u32, new: u32) -> u32 {
        if at == NIL {
            return new;
        }
        if self.nodes[new as usize].priority > self.nodes[at as usize].priority {
            let (left, right) = self.split(at, new);
            self.nodes[new as usize].left = left;
            self.nodes[new as usize].right = right;
            self.settle(new);
            return new;
        }
        if compare(self.range(new), self.range(at)).is_lt() {
            let left = self.insert_below(self.nodes[at as usize].left, new);
            self.nodes[at as usize].left = left;
        } else {
            let right = self.insert_below(self.nodes[at as usize].right, new);
            self.nodes[at as usize].right = right;
        }
        self.settle(at);
        at
    }

    /// The ranges below `at` before and behind that of `pivot`.
    fn split(&mut self, at: u32, pivot: u32) -> (u32, u32) {
        if at == NIL {
            return (NIL, NIL);
        }
        let is_before = compare(self.range(at), self.range(pivot)).is_lt();
        let node = &self.nodes[at as usize];
        let parts = if is_before {
            let (left, right) = self.split(node.right, pivot);
            self.nodes[at as usize].right = left;
            (at, right)
        } else {
            let (left, right) = self.split(node.left, pivot);
            self.nodes[at as usize].left = right;
            (left, at)
        };
        self.settle(at);
        parts
    }

    fn remove_below(&mut self, at: u32, gone: u32) -> u32 {
        if at == gone {
            let node = &self.nodes[at as usize];
            return self.merge(node.left, node.right);
        }
        if compare(self.range(gone), self.range(at)).is_lt() {
            let left = self.remove_below(self.nodes[at as usize].left, gone);
            self.nodes[at as usize].left = left;
        } else {
            let right = self.remove_below(self.nodes[at as usize].right, gone);
            self.nodes[at as usize].right = right;
        }
        self.settle(at);
        at
    }

    /// One tree of two, all of whose ranges are before those of the other.
    fn merge(&mut self, left: u32, right: u32) -> u32 {
        if left == NIL || right == NIL {
            return if left == NIL { right } else { left };
        }
        let (top, is_left) =
            if self.nodes[left as usize].priority > self.nodes[right as usize].priority {
                (left, true)
            } else {
                (right, false)
            };
        if is_left {
            let merged = self.merge(self.nodes[left as usize].right, right);
            self.nodes[left as usize].right = merged;
        } else {
            let merged = self.merge(left, self.nodes[right as usize].left);
            self.nodes[right as usize].left = merged;
        }
        self.settle(top);
        top
    }
}
