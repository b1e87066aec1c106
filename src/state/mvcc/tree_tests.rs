//! The tree against a `BTreeMap`, and the shape it keeps.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use super::*;
use crate::state::mvcc::entry::Version;

fn seed() -> u64 {
    let seed = std::env::var("QUORATE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("QUORATE_SEED={seed}");
    seed
}

/// Checks order, separators, summaries and bounds of the whole tree.
fn check(tree: &Tree) {
    fn walk(node: &Node, low: Option<&[u8]>, high: Option<&[u8]>, depth: usize) -> usize {
        match node {
            Node::Leaf(leaf) => {
                assert!(leaf.len() <= LEAF_ENTRIES_MAX);
                assert!(leaf.is_sorted_by(|a, b| a.key() < b.key()));
                assert!(leaf.iter().all(|entry| low.is_none_or(|low| low <= entry.key())));
                assert!(leaf.iter().all(|entry| high.is_none_or(|high| entry.key() < high)));
                let is_found =
                    |(at, entry): (usize, &Entry)| leaf.position(entry.key()) == Some(at);
                assert!(leaf.iter().enumerate().all(is_found));
                depth
            }
            Node::Inner(children) => {
                assert!(!children.is_empty() && children.len() <= CHILDREN_MAX);
                let depths = children.iter().enumerate().map(|(at, child)| {
                    assert!(!child.node.is_empty(), "no empty child stays");
                    assert_eq!(child.summary, child.node.sum());
                    let low = if at == 0 { low } else { Some(&*child.first) };
                    let high = children.get(at + 1).map_or(high, |next| Some(&*next.first));
                    walk(&child.node, low, high, depth + 1)
                });
                let depths: Vec<_> = depths.collect();
                assert!(depths.iter().all(|&other| other == depths[0]));
                depths[0]
            }
        }
    }
    assert_eq!(tree.summary, tree.root.sum());
    walk(&tree.root, None, None, 0);
}

fn key(random: &mut fastrand::Rng) -> Vec<u8> {
    let number = random.u32(..6000);
    if random.bool() { number.to_string().into_bytes() } else { number.to_be_bytes().to_vec() }
}

fn collect(tree: &Tree, span: Span<'_>, backwards: bool) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    let mut visit = |entry: &Entry| {
        if entry.latest().is_live() {
            keys.push(entry.key().to_vec());
        }
        ControlFlow::Continue(())
    };
    let _walked = if backwards {
        tree.visit_backwards(span, true, &mut visit)
    } else {
        tree.visit(span, true, &mut visit)
    };
    keys
}

#[test]
fn tree_agrees_with_a_map() {
    let mut random = fastrand::Rng::with_seed(seed());
    let mut tree = Tree::default();
    let mut model: BTreeMap<Vec<u8>, bool> = BTreeMap::new();
    for main in 1..12_000_i64 {
        let key = key(&mut random);
        match random.u32(..20) {
            0..12 => {
                let live = random.u32(..4) > 0;
                let number = i64::from(live);
                tree.upsert(&key, |entry| {
                    entry.push(Version { main, number, ..Version::default() });
                });
                model.insert(key, live);
            }
            12..14 => {
                let other = self::key(&mut random);
                let end = random.bool().then_some(&other[..]);
                let span = Span { start: &key, end };
                let inside = |probe: &[u8]| *key <= *probe && end.is_none_or(|end| probe < end);
                let mut wanted: Vec<_> = model.iter().filter(|(_, live)| **live).collect();
                wanted.retain(|(key, _)| inside(key));
                let mut wanted: Vec<_> = wanted.into_iter().map(|(key, _)| key.clone()).collect();
                assert_eq!(collect(&tree, span, false), wanted);
                wanted.reverse();
                assert_eq!(collect(&tree, span, true), wanted);
            }
            14..16 => {
                let rank = model.range(..key.clone()).filter(|(_, live)| **live).count();
                assert_eq!(tree.rank(&key), rank as i64);
            }
            16..19 => {
                let live = tree.get(&key).map(|entry| entry.latest().is_live());
                assert_eq!(live, model.get(&key).copied());
            }
            _ => sweep_some(&mut tree, &mut model, &key, random.usize(1..600)),
        }
        if main % 500 == 0 {
            check(&tree);
        }
    }
    let stopped = tree.sweep(b"", |_| true, |_| Sweep::Remove);
    assert_eq!(stopped, None, "a sweep that never stops ended early");
    check(&tree);
    assert_eq!(tree.summary(), Summary::default());
}

/// Removes the tombstones among the next keys from `from` on.
fn sweep_some(tree: &mut Tree, model: &mut BTreeMap<Vec<u8>, bool>, from: &[u8], keys_max: usize) {
    let mut left = keys_max;
    let stopped = tree.sweep(
        from,
        |summary| summary.garbage > 0,
        |entry| {
            if left == 0 {
                return Sweep::Stop;
            }
            left -= 1;
            if entry.latest().is_live() { Sweep::Keep } else { Sweep::Remove }
        },
    );
    let end = stopped.map(Vec::from);
    let inside = |key: &Vec<u8>| **key >= *from && end.as_ref().is_none_or(|end| key < end);
    model.retain(|key, live| *live || !inside(key));
}

#[test]
fn keys_in_order_fill_the_leaves() {
    let mut tree = Tree::default();
    for number in 0..10_000_u32 {
        tree.upsert(&number.to_be_bytes(), |entry| {
            entry.push(Version { main: 2, number: 1, ..Version::default() });
        });
    }
    check(&tree);
    fn leaves(node: &Node) -> usize {
        match node {
            Node::Leaf(_) => 1,
            Node::Inner(children) => children.iter().map(|child| leaves(&child.node)).sum(),
        }
    }
    assert_eq!(leaves(&tree.root), 10_000_usize.div_ceil(LEAF_ENTRIES_MAX));
}

#[test]
fn find_agrees_with_looking_at_every_key() {
    let mut random = fastrand::Rng::with_seed(seed());
    let mut tree = Tree::default();
    let mut model: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
    for main in 1..12_000_i64 {
        let key = key(&mut random);
        // Lines shrink from the front as often as anywhere else.
        let oldest = model.iter().min_by_key(|(_, create)| **create).map(|(key, _)| key.clone());
        match (random.u32(..10), oldest) {
            (0..2, Some(oldest)) => {
                model.remove(&oldest);
                tree.upsert(&oldest, |entry| entry.push(Version { main, ..Version::default() }));
            }
            (2..4, _) => {
                model.remove(&key);
                tree.upsert(&key, |entry| entry.push(Version { main, ..Version::default() }));
            }
            _ => {
                let create = *model.entry(key.clone()).or_insert(main);
                let version = Version { main, create, number: 1, ..Version::default() };
                tree.upsert(&key, |entry| entry.push(version));
            }
        }
        if main % 50 == 0 {
            check(&tree);
            tree.sweep(
                b"",
                |_| true,
                |entry| if entry.latest().is_live() { Sweep::Keep } else { Sweep::Remove },
            );
            check(&tree);
        }
        let (start, end) = (self::key(&mut random), self::key(&mut random));
        let end = (random.u32(..4) > 0).then_some(end);
        let span = Span { start: &start, end: end.as_deref() };
        let before = random.i64(..=main + 1);
        let creates = || {
            let inside = model
                .iter()
                .filter(|(key, _)| start <= **key && end.as_ref().is_none_or(|end| *key < end));
            inside.map(|(_, create)| *create)
        };
        let found = |age| tree.find(span, age).map(|entry| entry.latest().create);
        assert_eq!(found(Age::Oldest), creates().min());
        let younger = creates().filter(|create| *create < before).max();
        assert_eq!(found(Age::YoungestBefore(before)), younger);
    }
}
