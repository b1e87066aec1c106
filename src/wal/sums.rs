//! Checksums of any range of a segment in about the same time, however long the range is.
//!
//! Whoever may write values can fill a segment with what looks like heads of long records. Behind
//! the end of the log recovery looks at every place where a record could begin; to read each of
//! them whole would keep a member from starting for hours. A CRC is linear, so that of a range
//! follows from those of the two prefixes at its ends, and these are kept every few KiB.

use super::error::WalError;
use super::record::Head;
use super::segment::{Scanner, Segment};

/// Between two checksums that are kept.
const STEP_BYTES: u64 = 4096;

/// Bytes behind the end of a record's body.
const CRC_BYTES: u64 = 4;

/// Checksums of the bytes of a segment from `base` on.
pub(super) struct Sums<'a> {
    scanner: Scanner<'a>,
    seed: u32,
    base: u64,
    /// The checksum of the bytes from `base` to each step.
    steps: Vec<u32>,
    zeroes: Zeroes,
}

impl<'a> Sums<'a> {
    /// Reads the segment from `base` to its end.
    pub(super) fn read(segment: &'a Segment, base: u64) -> Result<Self, WalError> {
        let mut reader = Scanner::new(segment);
        let (mut steps, mut at) = (vec![0], base);
        while let Some(bytes) = reader.bytes(at, STEP_BYTES as usize)? {
            let last = *steps.last().expect("there is one from the start");
            steps.push(crc32c::crc32c_append(last, bytes));
            at += STEP_BYTES;
        }
        let scanner = Scanner::with_chunk(segment, STEP_BYTES as usize);
        Ok(Sums { scanner, seed: segment.seed, base, steps, zeroes: Zeroes::new(segment.bytes) })
    }

    /// The checksum of the bytes from `base` to `end`.
    fn prefix(&mut self, end: u64) -> Result<u32, WalError> {
        let step = (end - self.base) / STEP_BYTES;
        let from = self.base + step * STEP_BYTES;
        let rest = self.scanner.bytes(from, (end - from) as usize)?;
        let rest = rest.expect("a range ends within the segment");
        Ok(crc32c::crc32c_append(self.steps[step as usize], rest))
    }

    /// Whether the record at `at`, which fits the segment, has the checksum that its content and
    /// the checksum before it demand.
    pub(super) fn is_intact(&mut self, at: u64, head: &Head) -> Result<bool, WalError> {
        let end = at + head.record_bytes() as u64 - CRC_BYTES;
        let word = |scanner: &mut Scanner<'_>, at: u64| {
            let bytes = scanner.bytes(at, CRC_BYTES as usize)?.expect("it lies in the segment");
            let word = u32::from_le_bytes(bytes.try_into().expect("four bytes were asked for"));
            Ok::<_, WalError>(word)
        };
        let previous = word(&mut self.scanner, at - CRC_BYTES)?;
        // Bytes that are there before both prefixes cancel out.
        let before = self.prefix(at)? ^ self.seed ^ previous;
        let moved = self.zeroes.after(before, end - at);
        Ok(moved ^ self.prefix(end)? == word(&mut self.scanner, end)?)
    }
}

/// What becomes of a checksum when zeroes follow: the sum of what becomes of its bits.
struct Zeroes {
    /// For 1, 2, 4, 8, … zeroes, what each bit becomes.
    powers: Vec<[u32; 32]>,
}

impl Zeroes {
    /// For up to `bytes_max` zeroes.
    fn new(bytes_max: u64) -> Self {
        let powers = 0..u64::BITS - bytes_max.leading_zeros();
        let bits = |power| {
            std::array::from_fn(|bit| crc32c::crc32c_combine(1 << bit, 0, 1_usize << power))
        };
        Zeroes { powers: powers.map(bits).collect() }
    }

    fn after(&self, mut sum: u32, count: u64) -> u32 {
        for (_, bits) in self.powers.iter().enumerate().filter(|(power, _)| count >> power & 1 == 1)
        {
            let mut moved = 0;
            while sum != 0 {
                moved ^= bits[sum.trailing_zeros() as usize];
                sum &= sum - 1;
            }
            sum = moved;
        }
        sum
    }
}
