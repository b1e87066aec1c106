//! The keys a request speaks of.

/// One key, or an interval of keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRange<'a> {
    /// A single key.
    Key(&'a [u8]),
    /// The keys from `start` on, below `end`; without `end` to the last one.
    Span {
        /// The first key.
        start: &'a [u8],
        /// The first key after; at or below `start` there are none.
        end: Option<&'a [u8]>,
    },
}

impl<'a> KeyRange<'a> {
    /// Reads the `key` and `range_end` of a request: an empty end is the key alone, a single zero
    /// byte is everything from the key on.
    pub fn new(key: &'a [u8], range_end: &'a [u8]) -> Self {
        match range_end {
            b"" => KeyRange::Key(key),
            b"\0" => KeyRange::Span { start: key, end: None },
            end => KeyRange::Span { start: key, end: Some(end) },
        }
    }

    /// Whether `key` is in the range.
    pub fn contains(&self, key: &[u8]) -> bool {
        match *self {
            KeyRange::Key(only) => only == key,
            KeyRange::Span { start, end } => start <= key && end.is_none_or(|end| key < end),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contains_follows_the_forms_of_range_end() {
        assert!(KeyRange::new(b"a", b"").contains(b"a"));
        assert!(!KeyRange::new(b"a", b"").contains(b"a\0"));
        assert!(KeyRange::new(b"a", b"\0").contains(b"\xff\xff"));
        assert!(!KeyRange::new(b"b", b"\0").contains(b"a"));
        assert!(KeyRange::new(b"a", b"c").contains(b"bzz"));
        assert!(!KeyRange::new(b"a", b"c").contains(b"c"));
        assert!(!KeyRange::new(b"c", b"a").contains(b"b"));
        assert!(!KeyRange::new(b"c", b"c").contains(b"c"));
    }
}
