//! What the words of one case mean: its key prefix, its first revision, its leases.
//!
//! The same scope reads literals into messages and prints them back, so that a recorded answer does
//! not depend on where in the life of a server the case ran.

use std::cell::RefCell;

use bytes::Bytes;

/// How many leases one case may name; `L1` to `L9`.
const LEASES_PER_CASE: i64 = 10;

/// A key whose last part has as many hexadecimal digits ends in a lease: ids of leases are large.
const LEASE_DIGITS_MIN: usize = 6;

/// Longer values are printed by their length.
const PRINTED_BYTES_MAX: usize = 80;

/// Runs of one byte that are longer are printed as a repeat.
const PRINTED_RUN_MAX: usize = 20;

/// The frame of reference of one case.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    prefix: Vec<u8>,
    base: i64,
    leases: i64,
    /// Leases whose ids the server chose, in the order in which the case saw them: `N1`, `N2`…
    chosen: RefCell<Vec<i64>>,
}

impl Scope {
    /// The scope of case `number` in the run `nonce`, which began at revision `base`.
    ///
    /// The prefix always has the same length, so that messages about sizes are constant.
    pub(crate) fn new(nonce: u32, number: u32, base: i64) -> Scope {
        let prefix = format!("{nonce:08x}/{number:04}/").into_bytes();
        let leases = (i64::from(nonce) << 20) + i64::from(number) * LEASES_PER_CASE;
        Scope { prefix, base, leases, chosen: RefCell::default() }
    }

    /// Reads a key: `/a` lies below the prefix of this case, anything else is taken as it is.
    pub(crate) fn key(&self, text: &str) -> Bytes {
        match text.strip_prefix('/') {
            Some(rest) => [self.prefix.as_slice(), &self.bytes(rest)].concat().into(),
            None => self.bytes(text),
        }
    }

    /// A key outside of what the scripts write, for the runner's own use.
    pub(crate) fn fence_key(&self) -> Bytes {
        [b"fence/", self.prefix.as_slice()].concat().into()
    }

    /// Reads a value or any other bytes; a final `{L1}` is the lease in the hexadecimal digits that
    /// end the keys of locks and elections.
    pub(crate) fn bytes(&self, text: &str) -> Bytes {
        let named = text.strip_suffix('}').and_then(|text| text.rsplit_once('{'));
        match named.filter(|(_, lease)| lease.starts_with(['L', 'N'])) {
            Some((text, lease)) => {
                let digits = format!("{:x}", self.number(lease));
                [unescape(text), digits.into_bytes()].concat().into()
            }
            None => unescape(text).into(),
        }
    }

    /// Reads a number: decimal, `max`, `min`, `rev`, `rev+N`, `rev-N`, `LN` or `NN`.
    pub(crate) fn number(&self, text: &str) -> i64 {
        let decimal = |text: &str| -> i64 {
            text.parse().unwrap_or_else(|_| panic!("`{text}` is not a number"))
        };
        match text {
            "max" => i64::MAX,
            "min" => i64::MIN,
            "rev" => self.base,
            _ => match (text.as_bytes().first(), text.strip_prefix("rev")) {
                (_, Some(offset)) => self.base + decimal(offset),
                (Some(b'L'), _) => self.leases + decimal(&text[1..]),
                (Some(b'N'), _) => self.chosen(&text[1..]),
                _ => decimal(text),
            },
        }
    }

    /// The `number`th lease whose id the server chose.
    fn chosen(&self, number: &str) -> i64 {
        let at: usize = number.parse().unwrap_or_else(|_| panic!("N{number} is not a lease"));
        let chosen = self.chosen.borrow();
        *chosen.get(at - 1).unwrap_or_else(|| panic!("the server chose no lease N{number} yet"))
    }

    /// Gives the name `N1`, `N2`… to a lease whose id the server chose.
    pub(crate) fn learn_lease(&self, lease: i64) {
        let mut chosen = self.chosen.borrow_mut();
        if lease > 0 && self.number_of(lease).is_none() && !chosen.contains(&lease) {
            chosen.push(lease);
        }
    }

    /// Every lease that the case can have granted.
    pub(crate) fn all_leases(&self) -> Vec<i64> {
        let given = (1..LEASES_PER_CASE).map(|number| self.leases + number);
        given.chain(self.chosen.borrow().iter().copied()).collect()
    }

    /// Which of `L1` to `L9` a lease is.
    fn number_of(&self, lease: i64) -> Option<i64> {
        let number = lease.wrapping_sub(self.leases);
        (1..LEASES_PER_CASE).contains(&number).then_some(number)
    }

    /// Prints a key.
    pub(crate) fn show_key(&self, key: &[u8]) -> String {
        match key.strip_prefix(self.prefix.as_slice()) {
            Some(rest) => {
                self.show_lease_key(rest).unwrap_or_else(|| format!("/{}", show_bytes(rest)))
            }
            None if key.first() == Some(&b'/') => format!("\\x2f{}", show_bytes(&key[1..])),
            None => show_bytes(key),
        }
    }

    /// Prints a value.
    pub(crate) fn show_value(&self, value: &[u8]) -> String {
        format!("\"{}\"", show_bytes(value))
    }

    /// Prints a revision relative to the start of the case; 0 and below are special and absolute.
    pub(crate) fn show_revision(&self, revision: i64) -> String {
        if revision <= 0 {
            return revision.to_string();
        }
        format!("rev{:+}", revision - self.base)
    }

    /// Prints a compact revision: what other cases compacted is only `earlier`.
    pub(crate) fn show_compact_revision(&self, revision: i64) -> String {
        if (1..=self.base).contains(&revision) {
            return "earlier".to_owned();
        }
        self.show_revision(revision)
    }

    /// Prints a key below the prefix that ends in the digits of a lease, as those of locks do.
    fn show_lease_key(&self, key: &[u8]) -> Option<String> {
        let (name, digits) = std::str::from_utf8(key).ok()?.rsplit_once('/')?;
        if digits.len() < LEASE_DIGITS_MIN {
            return None;
        }
        let lease = i64::from_str_radix(digits, 16).ok()?;
        self.learn_lease(lease);
        Some(format!("/{}/{{{}}}", show_bytes(name.as_bytes()), self.show_lease(lease)))
    }

    /// Prints a lease id.
    pub(crate) fn show_lease(&self, lease: i64) -> String {
        if let Some(number) = self.number_of(lease) {
            return format!("L{number}");
        }
        let chosen = self.chosen.borrow().iter().position(|known| *known == lease);
        chosen.map_or_else(|| lease.to_string(), |at| format!("N{}", at + 1))
    }
}

/// Resolves `\xNN` escapes and a final `*COUNT`, which repeats all that stands before it.
fn unescape(text: &str) -> Vec<u8> {
    if let Some((unit, count)) = text.rsplit_once('*') {
        let count = count.parse().unwrap_or_else(|_| panic!("`{text}` ends in no count"));
        return unescape(unit).repeat(count);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\\x") {
        bytes.extend_from_slice(before.as_bytes());
        let byte = after.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.unwrap_or_else(|| panic!("`{text}` has a broken escape")));
        rest = &after[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

/// Prints bytes so that [`unescape`] reads them back, unless they are long and not uniform.
pub(crate) fn show_bytes(bytes: &[u8]) -> String {
    let uniform = bytes.windows(2).all(|pair| pair[0] == pair[1]);
    if bytes.len() > PRINTED_RUN_MAX && uniform {
        return format!("{}*{}", show_bytes(&bytes[..1]), bytes.len());
    }
    if bytes.len() > PRINTED_BYTES_MAX {
        return format!("<{} bytes>", bytes.len());
    }
    bytes.iter().map(|&byte| show_byte(byte)).collect()
}

/// Prints bytes that are meant to be read as a text; only what is no ASCII text is escaped.
pub(crate) fn show_text(bytes: &[u8]) -> String {
    let show = |&byte: &u8| match byte {
        0x20..=0x7e => char::from(byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    };
    bytes.iter().map(show).collect()
}

/// Prints one byte.
fn show_byte(byte: u8) -> String {
    match byte {
        b'\\' | b'"' | b'*' => format!("\\x{byte:02x}"),
        0x21..=0x7e => char::from(byte).to_string(),
        _ => format!("\\x{byte:02x}"),
    }
}
