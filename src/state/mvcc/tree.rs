//! A B+-tree of [`Entry`] that knows its ranks.
//!
//! Each inner node keeps a [`Summary`] of every child, so that the number of live keys before a
//! key takes O(log n), and walks skip what does not concern them: reads of the present skip
//! subtrees of tombstones, compaction skips subtrees without garbage, eviction skips subtrees
//! without cached pairs, and a search by age skips subtrees that are too old or too young.
//!
//! A split at a leaf's end leaves it full: keys that arrive in order, the usual case, fill the leaves.

use std::ops::{AddAssign, ControlFlow};

use super::ages::{Age, Ages};
use super::entry::Entry;
use super::leaf::{LEAF_ENTRIES_MAX, Leaf};

const CHILDREN_MAX: usize = 64;

/// What a subtree holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// Keys that exist now.
    pub(super) live: i64,
    /// Keys of which compaction might drop something.
    pub(super) garbage: i64,
    /// Keys whose pair is in memory.
    pub(super) cached: i64,
    /// When the live keys were created.
    pub(super) ages: Ages,
}

impl Summary {
    fn of(entry: &Entry) -> Self {
        let latest = entry.latest();
        let is_live = latest.is_live();
        Summary {
            live: i64::from(is_live),
            garbage: i64::from(entry.has_garbage()),
            cached: i64::from(entry.cached_len() > 0),
            ages: if is_live { Ages::of(latest.create) } else { Ages::default() },
        }
    }
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.live += other.live;
        self.garbage += other.garbage;
        self.cached += other.cached;
        self.ages = self.ages.and(other.ages);
    }
}

/// What happened to one entry.
#[derive(Debug, Clone, Copy)]
struct Change {
    before: Summary,
    after: Summary,
}

impl Change {
    /// Brings `summary`, that of `node`, up to date.
    fn note(&self, summary: &mut Summary, node: &Node) {
        let Change { before, after } = self;
        summary.live += after.live - before.live;
        summary.garbage += after.garbage - before.garbage;
        summary.cached += after.cached - before.cached;
        if before.ages == after.ages {
            return;
        }
        if summary.ages.lean_on(before.ages) {
            summary.ages = node.sum().ages;
        } else {
            summary.ages = summary.ages.and(after.ages);
        }
    }
}

/// The tree.
#[derive(Debug, Default)]
pub(super) struct Tree {
    root: Node,
    summary: Summary,
}

#[derive(Debug)]
enum Node {
    Leaf(Leaf),
    Inner(Vec<Child>),
}

#[derive(Debug)]
struct Child {
    /// No key of this child is below; of a node's first child nothing is promised.
    first: Box<[u8]>,
    summary: Summary,
    node: Node,
}

impl Default for Node {
    fn default() -> Self {
        Node::Leaf(Leaf::default())
    }
}

/// Keys from `start` on, up to but without `end`; no `end` means to the last key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span<'a> {
    pub(super) start: &'a [u8],
    pub(super) end: Option<&'a [u8]>,
}

impl Span<'_> {
    fn ends_before(&self, key: &[u8]) -> bool {
        self.end.is_some_and(|end| end <= key)
    }
}

/// What a sweep does with the entry it was shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sweep {
    /// Go on with the next one.
    Keep,
    /// Take it out of the tree and go on.
    Remove,
    /// Stop here; the next sweep is to begin with this entry.
    Stop,
}

impl Tree {
    /// What the whole tree holds.
    pub(super) fn summary(&self) -> Summary {
        self.summary
    }

    /// The entry of `key`.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Entry> {
        let mut node = &self.root;
        loop {
            match node {
                Node::Inner(children) => node = &children[child_of(children, key)].node,
                Node::Leaf(leaf) => return leaf.position(key).map(|at| &leaf[at]),
            }
        }
    }

    /// How many live keys are below `key`.
    pub(super) fn rank(&self, key: &[u8]) -> i64 {
        let mut rank = 0;
        let mut node = &self.root;
        loop {
            match node {
                Node::Inner(children) => {
                    let at = child_of(children, key);
                    rank += children[..at].iter().map(|child| child.summary.live).sum::<i64>();
                    node = &children[at].node;
                }
                Node::Leaf(leaf) => {
                    let before = &leaf[..leaf.lower_bound(key)];
                    let live = before.iter().filter(|entry| entry.latest().is_live());
                    return rank + live.count() as i64;
                }
            }
        }
    }

    /// Shows the entries of `span` in key order until `visit` breaks.
    ///
    /// With `live_only` it skips subtrees of tombstones, not single ones.
    pub(super) fn visit(
        &self,
        span: Span<'_>,
        live_only: bool,
        visit: &mut impl FnMut(&Entry) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if span.ends_before(span.start) {
            return ControlFlow::Continue(());
        }
        self.root.visit(span, live_only, visit)
    }

    /// As [`Tree::visit`], from the last key to the first.
    pub(super) fn visit_backwards(
        &self,
        span: Span<'_>,
        live_only: bool,
        visit: &mut impl FnMut(&Entry) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        if span.ends_before(span.start) {
            return ControlFlow::Continue(());
        }
        self.root.visit_backwards(span, live_only, visit)
    }

    /// The live entry of `span` that is best by `age`.
    pub(super) fn find(&self, span: Span<'_>, age: Age) -> Option<&Entry> {
        let mut best = None;
        if !span.ends_before(span.start) {
            self.root.find(span, age, &mut best);
        }
        best.map(|(_, entry)| entry)
    }

    /// Changes the entry of `key`, which is made if it is not there.
    pub(super) fn upsert<R>(&mut self, key: &[u8], change: impl FnOnce(&mut Entry) -> R) -> R {
        let upserted = self.root.upsert(key, change);
        match upserted.split {
            None => upserted.change.note(&mut self.summary, &self.root),
            Some(right) => {
                let left = std::mem::take(&mut self.root);
                let left = Child { first: Box::default(), summary: left.sum(), node: left };
                self.root = Node::Inner(vec![left, right]);
                self.summary = self.root.sum();
            }
        }
        upserted.answer
    }

    /// Changes the entry of `key` if it is there.
    pub(super) fn update<R>(
        &mut self,
        key: &[u8],
        change: impl FnOnce(&mut Entry) -> R,
    ) -> Option<R> {
        self.get(key)?;
        Some(self.upsert(key, change))
    }

    /// Shows the entries from `from` on, in leaves of subtrees that are `wanted`, to `visit`.
    ///
    /// Answers with the key at which it was stopped, or none at the end of the tree.
    pub(super) fn sweep(
        &mut self,
        from: &[u8],
        wanted: impl Fn(&Summary) -> bool,
        mut visit: impl FnMut(&mut Entry) -> Sweep,
    ) -> Option<Box<[u8]>> {
        let (summary, stopped) = self.root.sweep(from, &wanted, &mut visit);
        self.summary = summary;
        while let Node::Inner(children) = &mut self.root {
            match children.len() {
                0 => self.root = Node::default(),
                1 => self.root = children.pop().expect("it has one child").node,
                _ => break,
            }
        }
        stopped
    }
}

/// What [`Node::upsert`] hands to the parent.
struct Upserted<R> {
    answer: R,
    change: Change,
    split: Option<Child>,
}

impl Node {
    fn upsert<R>(&mut self, key: &[u8], change: impl FnOnce(&mut Entry) -> R) -> Upserted<R> {
        match self {
            Node::Leaf(leaf) => upsert_leaf(leaf, key, change),
            Node::Inner(children) => {
                let at = child_of(children, key);
                let child = &mut children[at];
                let mut upserted = child.node.upsert(key, change);
                match upserted.split.take() {
                    None => upserted.change.note(&mut child.summary, &child.node),
                    Some(right) => {
                        child.summary = child.node.sum();
                        upserted.split = insert_child(children, at + 1, right);
                    }
                }
                upserted
            }
        }
    }

    fn visit(
        &self,
        span: Span<'_>,
        live_only: bool,
        visit: &mut impl FnMut(&Entry) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        match self {
            Node::Leaf(leaf) => {
                for entry in &leaf[leaf.lower_bound(span.start)..] {
                    if span.ends_before(entry.key()) {
                        return ControlFlow::Break(());
                    }
                    visit(entry)?;
                }
            }
            Node::Inner(children) => {
                let start = child_of(children, span.start);
                for (at, child) in children.iter().enumerate().skip(start) {
                    if at > start && span.ends_before(&child.first) {
                        return ControlFlow::Break(());
                    }
                    if !(live_only && child.summary.live == 0) {
                        child.node.visit(span, live_only, visit)?;
                    }
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn visit_backwards(
        &self,
        span: Span<'_>,
        live_only: bool,
        visit: &mut impl FnMut(&Entry) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        match self {
            Node::Leaf(leaf) => {
                let end = span.end.map_or(leaf.len(), |end| leaf.lower_bound(end));
                for entry in leaf[..end].iter().rev() {
                    if entry.key() < span.start {
                        return ControlFlow::Break(());
                    }
                    visit(entry)?;
                }
            }
            Node::Inner(children) => {
                let last = span.end.map_or(children.len() - 1, |end| child_of(children, end));
                for (at, child) in children[..=last].iter().enumerate().rev() {
                    if !(live_only && child.summary.live == 0) {
                        child.node.visit_backwards(span, live_only, visit)?;
                    }
                    if at > 0 && *child.first <= *span.start {
                        return ControlFlow::Break(());
                    }
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// Looks for an entry that is better than `best`; of equals the first one found stays.
    fn find<'t>(&'t self, span: Span<'_>, age: Age, best: &mut Option<(i64, &'t Entry)>) {
        let beats = |score: i64, best: &Option<(i64, &Entry)>| {
            best.as_ref().is_none_or(|(other, _)| score > *other)
        };
        match self {
            Node::Leaf(leaf) => {
                let rest = leaf[leaf.lower_bound(span.start)..].iter();
                let live = rest.take_while(|entry| !span.ends_before(entry.key()));
                for entry in live.filter(|entry| entry.latest().is_live()) {
                    match age.score(entry.latest().create) {
                        Some(score) if beats(score, best) => *best = Some((score, entry)),
                        Some(_) | None => {}
                    }
                }
            }
            Node::Inner(children) => {
                let first = child_of(children, span.start);
                let last = span.end.map_or(children.len() - 1, |end| child_of(children, end));
                let scored = children[first..=last.max(first)].iter().filter_map(|child| {
                    age.score_max(&child.summary.ages).map(|score| (score, child))
                });
                // The most promising first: what it yields spares most of the others.
                let mut scored: Vec<(i64, &Child)> = scored.collect();
                scored.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
                for (score, child) in scored {
                    if !beats(score, best) {
                        break;
                    }
                    child.node.find(span, age, best);
                }
            }
        }
    }

    fn sweep(
        &mut self,
        from: &[u8],
        wanted: &impl Fn(&Summary) -> bool,
        visit: &mut impl FnMut(&mut Entry) -> Sweep,
    ) -> (Summary, Option<Box<[u8]>>) {
        let stopped = match self {
            Node::Leaf(leaf) => sweep_leaf(leaf, from, visit),
            Node::Inner(children) => sweep_children(children, from, wanted, visit),
        };
        (self.sum(), stopped)
    }

    fn sum(&self) -> Summary {
        let mut sum = Summary::default();
        match self {
            Node::Leaf(leaf) => leaf.iter().for_each(|entry| sum += Summary::of(entry)),
            Node::Inner(children) => children.iter().for_each(|child| sum += child.summary),
        }
        sum
    }

    fn is_empty(&self) -> bool {
        match self {
            Node::Leaf(leaf) => leaf.is_empty(),
            Node::Inner(children) => children.is_empty(),
        }
    }

    /// Appends `right`, the next node of the same height, if both fill at most three quarters.
    fn absorb(&mut self, right: &mut Child) -> bool {
        match (self, &mut right.node) {
            (Node::Leaf(left), Node::Leaf(more))
                if (left.len() + more.len()) * 4 <= LEAF_ENTRIES_MAX * 3 =>
            {
                left.append(more);
                true
            }
            (Node::Inner(left), Node::Inner(more))
                if (left.len() + more.len()) * 4 <= CHILDREN_MAX * 3 =>
            {
                left.append(more);
                true
            }
            (Node::Leaf(_) | Node::Inner(_), Node::Leaf(_) | Node::Inner(_)) => false,
        }
    }
}

fn upsert_leaf<R>(
    leaf: &mut Leaf,
    key: &[u8],
    change: impl FnOnce(&mut Entry) -> R,
) -> Upserted<R> {
    let at = match leaf.find(key) {
        Ok(at) => {
            let entry = leaf.entry_mut(at);
            let before = Summary::of(entry);
            let answer = change(entry);
            let change = Change { before, after: Summary::of(entry) };
            return Upserted { answer, change, split: None };
        }
        Err(at) => at,
    };
    let mut entry = Entry::new(key);
    let answer = change(&mut entry);
    let change = Change { before: Summary::default(), after: Summary::of(&entry) };
    let split = leaf.insert(at, entry).map(|right| {
        let node = Node::Leaf(right);
        Child { first: first_key(&node), summary: node.sum(), node }
    });
    Upserted { answer, change, split }
}

fn insert_child(children: &mut Vec<Child>, at: usize, child: Child) -> Option<Child> {
    children.insert(at, child);
    if children.len() <= CHILDREN_MAX {
        return None;
    }
    let middle = if at + 1 == children.len() { at } else { CHILDREN_MAX / 2 };
    let mut right = children.split_off(middle);
    let first = std::mem::take(&mut right[0].first);
    let node = Node::Inner(right);
    Some(Child { first, summary: node.sum(), node })
}

fn sweep_leaf(
    leaf: &mut Leaf,
    from: &[u8],
    visit: &mut impl FnMut(&mut Entry) -> Sweep,
) -> Option<Box<[u8]>> {
    let mut stopped = None;
    leaf.remove_if(leaf.lower_bound(from), |entry| {
        if stopped.is_some() {
            return false;
        }
        match visit(entry) {
            Sweep::Keep => false,
            Sweep::Remove => true,
            Sweep::Stop => {
                stopped = Some(entry.key().into());
                false
            }
        }
    });
    stopped
}

fn sweep_children(
    children: &mut Vec<Child>,
    from: &[u8],
    wanted: &impl Fn(&Summary) -> bool,
    visit: &mut impl FnMut(&mut Entry) -> Sweep,
) -> Option<Box<[u8]>> {
    let mut at = child_of(children, from);
    let mut stopped = None;
    while at < children.len() && stopped.is_none() {
        let child = &mut children[at];
        if !wanted(&child.summary) {
            at += 1;
            continue;
        }
        (child.summary, stopped) = child.node.sweep(from, wanted, visit);
        if child.node.is_empty() || (at > 0 && absorb_into_left(children, at)) {
            children.remove(at);
        } else {
            at += 1;
        }
    }
    stopped
}

/// Merges the child at `at` into its left neighbour if both are small; the caller removes it.
fn absorb_into_left(children: &mut [Child], at: usize) -> bool {
    let (left, right) = children.split_at_mut(at);
    let (left, right) = (&mut left[at - 1], &mut right[0]);
    if let Node::Inner(grandchildren) = &mut right.node {
        // It loses its place as the first child, of which nothing is promised.
        grandchildren[0].first.clone_from(&right.first);
    }
    let absorbed = left.node.absorb(right);
    if absorbed {
        left.summary += right.summary;
    }
    absorbed
}

fn first_key(node: &Node) -> Box<[u8]> {
    match node {
        Node::Leaf(leaf) => leaf[0].key().into(),
        Node::Inner(children) => children[0].first.clone(),
    }
}

/// The child in which `key` is, or would be.
fn child_of(children: &[Child], key: &[u8]) -> usize {
    children[1..].partition_point(|child| *child.first <= *key)
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
