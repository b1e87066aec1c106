//! Bytes that nobody meant: a small mutator that knows protobuf, and the loop that runs it.
//!
//! A target is a name, a few real samples, and a check that panics if something is wrong. The loop
//! checks the samples, then every file of `tests/corpus/<target>/`, and then mutations of both until
//! its time is up. An input that fails is written to a file, and the panic says how to try it again;
//! it belongs into the corpus for ever.
//!
//! Our own instead of a crate: what finds things here are the structure (fields, lengths, nesting)
//! and the checks, not coverage; and nothing more has to be compiled. The file is also part of the
//! unit tests of the library and of `quoratectl`, whose decoders are private.
//!
//! | variable | meaning |
//! |---|---|
//! | `QUORATE_FUZZ_SECONDS` | how long each target runs; a second |
//! | `QUORATE_FUZZ_INPUT` | checks this file and nothing else |
//! | `QUORATE_SEED` | the same mutations again |
//! | `QUORATE_BLESS=1` | writes the samples of a target into its corpus, if it has none yet |

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use fastrand::Rng;

/// An input that takes longer than this hangs somebody.
const CHECK_TIME_MAX: Duration = Duration::from_secs(20);

/// Larger inputs find nothing that smaller ones do not.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// How often mutations are put upon each other at most.
const MUTATIONS_MAX: u32 = 6;

/// Numbers at which something changes.
const NUMBERS: [u64; 16] = [
    0,
    1,
    2,
    127,
    128,
    255,
    4096,
    65_535,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 47,
    i64::MAX as u64 - 1,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Runs `check` on `samples`, on the corpus of `target`, and on mutations of them. `replay` is what
/// comes after `cargo test`, to run this target alone.
pub(crate) fn fuzz(
    target: &str,
    replay: &str,
    samples: &[Vec<u8>],
    mut check: impl FnMut(&[u8], &mut Rng),
) {
    let seed = std::env::var("QUORATE_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let seconds = std::env::var("QUORATE_FUZZ_SECONDS").ok();
    let is_long = seconds.is_some();
    let seconds = seconds.map_or(1.0, |text| text.parse::<f64>().expect("a number of seconds"));
    let mut one = |input: &[u8]| {
        // The check's own choices come with the input, so that a file is enough to try it again.
        let mut random = Rng::with_seed(
            input
                .iter()
                .fold(7, |sum, byte| sum.rotate_left(5).wrapping_mul(31) ^ u64::from(*byte)),
        );
        let begun = now();
        let checked = catch_unwind(AssertUnwindSafe(|| check(input, &mut random)));
        let took = begun.elapsed();
        if checked.is_ok() && took < CHECK_TIME_MAX {
            return;
        }
        let file = std::env::temp_dir().join(format!("{target}-{seed:x}.fuzz"));
        fs::write(&file, input).expect("the temporary directory takes a file");
        eprintln!(
            "{target}: {} bytes fail after {took:?}; again: QUORATE_FUZZ_INPUT={} cargo test {replay}",
            input.len(),
            file.display(),
        );
        match checked {
            Err(panic) => resume_unwind(panic),
            Ok(()) => panic!("{target}: an input took {took:?}"),
        }
    };
    if let Some(file) = std::env::var_os("QUORATE_FUZZ_INPUT") {
        return one(&fs::read(file).expect("the input is there"));
    }
    let mut inputs = samples.to_vec();
    inputs.extend(corpus(target, samples));
    inputs.iter().for_each(|input| one(input));
    eprintln!("{target}: QUORATE_SEED={seed}");
    let mut mutator = Mutator { random: Rng::with_seed(seed), donors: inputs };
    let deadline = now() + Duration::from_secs_f64(seconds);
    let last = std::env::temp_dir().join(format!("{target}-last.fuzz"));
    let mut runs = 0_u64;
    while now() < deadline {
        let input = mutator.draw();
        if is_long {
            // What no panic tells of, as an abort or a full stack, can be found here.
            fs::write(&last, &input).expect("the temporary directory takes a file");
        }
        one(&input);
        runs += 1;
    }
    eprintln!("{target}: {runs} inputs");
}

#[expect(clippy::disallowed_methods, reason = "how long a test may run is real time")]
fn now() -> std::time::Instant {
    std::time::Instant::now()
}

/// The kept inputs of `target`.
fn corpus(target: &str, samples: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(target);
    if std::env::var_os("QUORATE_BLESS").is_some() && !folder.join("sample-00").exists() {
        fs::create_dir_all(&folder).expect("the repository can be written");
        for (number, sample) in samples.iter().enumerate().filter(|(_, one)| one.len() < 16 << 10) {
            let file = folder.join(format!("sample-{number:02}"));
            fs::write(file, sample).expect("the repository can be written");
        }
    }
    let Ok(entries) = fs::read_dir(&folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files.iter().map(|file| fs::read(file).expect("a kept input can be read")).collect()
}

/// Makes new inputs of old ones.
pub(crate) struct Mutator {
    pub(crate) random: Rng,
    pub(crate) donors: Vec<Vec<u8>>,
}

impl Mutator {
    /// A new input.
    pub(crate) fn draw(&mut self) -> Vec<u8> {
        let at = self.random.usize(..self.donors.len());
        let mut input = self.donors[at].clone();
        for _ in 0..self.random.u32(1..=MUTATIONS_MAX) {
            self.mutate(&mut input);
        }
        input.truncate(INPUT_BYTES_MAX);
        input
    }

    /// Changes `input` in one way.
    pub(crate) fn mutate(&mut self, input: &mut Vec<u8>) {
        if self.random.bool()
            && let Some(mut fields) = parse(input, 0)
        {
            self.mutate_fields(&mut fields, 0);
            *input = Vec::new();
            encode(&fields, input);
        } else {
            self.mutate_bytes(input);
        }
    }

    fn mutate_bytes(&mut self, input: &mut Vec<u8>) {
        let random = &mut self.random;
        let at = random.usize(..=input.len());
        let some = random.usize(..=(input.len() - at).min(32));
        match random.u32(..10) {
            0 | 1 if at < input.len() => input[at] ^= 1 << random.u32(..8),
            2 if at < input.len() => {
                input[at] = random.choice([0, 1, 0x7f, 0x80, 0xff]).unwrap_or(0)
            }
            3 => drop(input.drain(at..at + some)),
            4 => input.truncate(at),
            5 => {
                let copy = input[at..at + some].to_vec();
                drop(input.splice(at..at, copy));
            }
            6 => {
                let number = number(random);
                let bytes = if random.bool() { number.to_be_bytes() } else { number.to_le_bytes() };
                let width = random.choice([1, 2, 4, 8]).unwrap_or(8);
                let end = input.len().min(at + width);
                drop(input.splice(at..end, bytes[..width].iter().copied()));
            }
            7 => {
                let mut varint = Vec::new();
                put_varint(&mut varint, number(random));
                let end = input.len().min(at + random.usize(..4));
                drop(input.splice(at..end, varint));
            }
            8 => {
                let donor = &self.donors[random.usize(..self.donors.len())];
                let from = random.usize(..=donor.len());
                let to = random.usize(from..=donor.len());
                let end = input.len().min(at + random.usize(..=to - from));
                drop(input.splice(at..end, donor[from..to].to_vec()));
            }
            _ => {
                let noise: Vec<u8> = (0..some + 1).map(|_| random.u8(..)).collect();
                drop(input.splice(at..at + some, noise));
            }
        }
    }

    fn mutate_fields(&mut self, fields: &mut Vec<Field>, depth: usize) {
        if fields.is_empty() {
            return self.graft(fields);
        }
        let at = self.random.usize(..fields.len());
        if let Value::Message(inner) = &mut fields[at].value
            && depth < 8
            && self.random.u32(..3) > 0
        {
            return self.mutate_fields(inner, depth + 1);
        }
        match self.random.u32(..10) {
            0 => drop(fields.remove(at)),
            1 => {
                let times = self.random.choice([1, 2, 300]).unwrap_or(1);
                let copy = fields[at].clone();
                fields.extend(std::iter::repeat_n(copy, times));
            }
            2 => {
                let other = self.random.usize(..fields.len());
                fields.swap(at, other);
            }
            3 => fields[at].number = self.random.u64(1..12),
            4 => {
                // Deep, but seldom: it costs more than all else.
                let depth = if self.random.u32(..10) == 0 { 120 } else { 5 };
                for _ in 0..self.random.u32(1..=depth) {
                    let number = fields[at].number;
                    let inner = fields[at].clone();
                    fields[at] = Field { number, value: Value::Message(vec![inner]) };
                }
            }
            5 | 6 => self.graft(fields),
            _ => self.mutate_value(&mut fields[at].value),
        }
    }

    fn mutate_value(&mut self, value: &mut Value) {
        match value {
            Value::Varint(varint) => *varint = number(&mut self.random),
            Value::Fixed64(fixed) => *fixed = number(&mut self.random),
            Value::Fixed32(fixed) => *fixed = number(&mut self.random) as u32,
            Value::Bytes(bytes) => self.mutate_bytes(bytes),
            Value::Message(fields) => {
                let mut bytes = Vec::new();
                encode(fields, &mut bytes);
                self.mutate_bytes(&mut bytes);
                *value = Value::Bytes(bytes);
            }
        }
    }

    /// Puts a piece of another input between `fields`.
    fn graft(&mut self, fields: &mut Vec<Field>) {
        let donor = &self.donors[self.random.usize(..self.donors.len())];
        let Some(mut donor) = parse(donor, 0) else { return };
        while !donor.is_empty() {
            let at = self.random.usize(..donor.len());
            match &donor[at].value {
                Value::Message(inner) if self.random.u32(..3) > 0 => donor = inner.clone(),
                _ => {
                    let to = self.random.usize(..=fields.len());
                    return fields.insert(to, donor.swap_remove(at));
                }
            }
        }
    }
}

fn number(random: &mut Rng) -> u64 {
    match random.u32(..4) {
        0 => random.u64(..16),
        1 => random.u64(..),
        2 => random.choice(NUMBERS).unwrap_or(0).wrapping_neg(),
        _ => random.choice(NUMBERS).unwrap_or(0),
    }
}

/// A field of a protobuf message.
#[derive(Clone)]
struct Field {
    number: u64,
    value: Value,
}

#[derive(Clone)]
enum Value {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(Vec<u8>),
    /// Bytes that can be read as a message.
    Message(Vec<Field>),
}

/// Reads `bytes` as a message, if they can be one.
fn parse(mut bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (key, rest) = take_varint(bytes)?;
        let (number, kind) = (key >> 3, key & 7);
        if number == 0 || number > 1 << 20 {
            return None;
        }
        let value;
        (value, bytes) = match kind {
            0 => take_varint(rest).map(|(varint, rest)| (Value::Varint(varint), rest))?,
            1 => {
                let (fixed, rest) = rest.split_first_chunk::<8>()?;
                (Value::Fixed64(u64::from_le_bytes(*fixed)), rest)
            }
            5 => {
                let (fixed, rest) = rest.split_first_chunk::<4>()?;
                (Value::Fixed32(u32::from_le_bytes(*fixed)), rest)
            }
            2 => {
                let (length, rest) = take_varint(rest)?;
                let (inner, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
                let message = if depth < 200 { parse(inner, depth + 1) } else { None };
                let message = message.filter(|fields| !fields.is_empty()).map(Value::Message);
                (message.unwrap_or_else(|| Value::Bytes(inner.to_vec())), rest)
            }
            _ => return None,
        };
        fields.push(Field { number, value });
    }
    Some(fields)
}

fn encode(fields: &[Field], out: &mut Vec<u8>) {
    for field in fields {
        let mut key = |kind| put_varint(out, field.number << 3 | kind);
        match &field.value {
            Value::Varint(varint) => {
                key(0);
                put_varint(out, *varint);
            }
            Value::Fixed64(fixed) => {
                key(1);
                out.extend_from_slice(&fixed.to_le_bytes());
            }
            Value::Fixed32(fixed) => {
                key(5);
                out.extend_from_slice(&fixed.to_le_bytes());
            }
            Value::Bytes(bytes) => {
                key(2);
                put_varint(out, bytes.len() as u64);
                out.extend_from_slice(bytes);
            }
            Value::Message(inner) => {
                key(2);
                let mut bytes = Vec::new();
                encode(inner, &mut bytes);
                put_varint(out, bytes.len() as u64);
                out.extend_from_slice(&bytes);
            }
        }
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn take_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(7 * at as u32)?;
        if byte & 0x80 == 0 {
            return Some((value, &bytes[at + 1..]));
        }
    }
    None
}
