//! What a benchmark sends: keys, values, and the mix of requests.

use bytes::Bytes;
use quorate::pb::etcdserverpb::{
    Compare, PutRequest, RangeRequest, RequestOp, TxnRequest,
    compare::{CompareResult, CompareTarget, TargetUnion},
    request_op::Request,
};

use super::{LoadArgs, Workload};
use crate::{error::Error, kv::is_serializable};

/// How far apart two values may begin in the random block that all are cut from.
const VALUE_OFFSETS: usize = 4096;

/// The largest key, in bytes.
const KEY_BYTES_MAX: usize = 64 * 1024;

/// The largest value, in bytes; the server's limit is far below.
const VALUE_BYTES_MAX: i64 = 64 * 1024 * 1024;

/// One request.
pub(super) enum Operation {
    /// Writes one key.
    Put(PutRequest),
    /// Reads one key or an interval.
    Get(RangeRequest),
    /// Compares, writes and reads one key.
    Txn(TxnRequest),
}

impl Operation {
    /// Whether its latency counts among the reads.
    pub(super) fn is_read(&self) -> bool {
        matches!(self, Self::Get(_))
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Put,
    Get,
    Mixed { read_percent: u8 },
    Txn,
    Range { keys: usize, limit: i64, keys_only: bool, count_only: bool },
}

/// Makes the requests of a run.
pub(super) struct Script {
    /// Where the randomness comes from; printed, so that a run can be repeated.
    pub(super) seed: u64,
    kind: Kind,
    key_size: usize,
    key_space_size: usize,
    sequential: bool,
    serializable: bool,
    /// Values are slices of this block: cheap to make, and no two are alike to a compressor.
    block: Bytes,
    value_size: usize,
}

impl Script {
    /// Checks the flags and prepares values.
    pub(super) fn new(workload: &Workload, load: &LoadArgs) -> Result<Self, Error> {
        let bad = |text: String| Err(Error::BadArgs(text));
        let read_percent = match u8::try_from(load.read_percent) {
            Ok(percent) if percent <= 100 => percent,
            _ => return bad("--read-percent wants a number from 0 to 100".to_owned()),
        };
        let digits = (load.key_space_size - 1).to_string().len();
        if load.key_size < digits || load.key_size > KEY_BYTES_MAX {
            return bad(format!(
                "--key-size {} does not fit, want {digits} to {KEY_BYTES_MAX}",
                load.key_size
            ));
        }
        if !(0..=VALUE_BYTES_MAX).contains(&load.val_size) {
            return bad(format!("--val-size wants a number from 0 to {VALUE_BYTES_MAX}"));
        }
        let value_size = usize::try_from(load.val_size).expect("checked against the bounds above");
        let seed = match load.seed {
            Some(seed) => seed.cast_unsigned(),
            // Shown as a signed number by nobody, taken back by `--seed`.
            None => fastrand::u64(..i64::MAX.cast_unsigned()),
        };
        let mut rng = fastrand::Rng::with_seed(seed);
        let block = std::iter::repeat_with(|| rng.alphanumeric() as u8);
        Ok(Self {
            seed,
            kind: match workload {
                Workload::Put(_) => Kind::Put,
                Workload::Get(_) => Kind::Get,
                Workload::Mixed(_) => Kind::Mixed { read_percent },
                Workload::Txn(_) => Kind::Txn,
                Workload::Range(args) => Kind::Range {
                    keys: args.range_keys,
                    limit: args.limit,
                    keys_only: args.keys_only,
                    count_only: args.count_only,
                },
                Workload::Watch(_) | Workload::Lease(_) => {
                    return bad("watch and lease have no script".to_owned());
                }
            },
            key_size: load.key_size,
            key_space_size: load.key_space_size,
            sequential: load.sequential_keys,
            serializable: is_serializable(&load.consistency)?,
            block: block.take(value_size + VALUE_OFFSETS).collect(),
            value_size,
        })
    }

    /// The request with this number in the run.
    pub(super) fn operation(&self, sequence: usize, rng: &mut fastrand::Rng) -> Operation {
        let index = match self.sequential {
            true => sequence % self.key_space_size,
            false => rng.usize(..self.key_space_size),
        };
        match self.kind {
            Kind::Put => Operation::Put(self.put(index, rng)),
            Kind::Get => Operation::Get(self.get(index)),
            Kind::Mixed { read_percent } if rng.u8(..100) < read_percent => {
                Operation::Get(self.get(index))
            }
            Kind::Mixed { .. } => Operation::Put(self.put(index, rng)),
            Kind::Txn => Operation::Txn(self.txn(index, rng)),
            Kind::Range { keys, limit, keys_only, count_only } => {
                // Whole intervals only, so that all requests cost the same.
                let starts = self.key_space_size.saturating_sub(keys) + 1;
                let start = index % starts;
                Operation::Get(RangeRequest {
                    range_end: self.key_after(start + keys - 1),
                    limit,
                    keys_only,
                    count_only,
                    ..self.get(start)
                })
            }
        }
    }

    /// A write of the key with this index.
    pub(super) fn put(&self, index: usize, rng: &mut fastrand::Rng) -> PutRequest {
        let offset = rng.usize(..VALUE_OFFSETS);
        let value = self.block.slice(offset..offset + self.value_size);
        PutRequest { key: self.key(index), value, ..PutRequest::default() }
    }

    fn get(&self, index: usize) -> RangeRequest {
        RangeRequest {
            key: self.key(index),
            serializable: self.serializable,
            ..RangeRequest::default()
        }
    }

    /// Holds whether the key exists or not, so that every transaction writes.
    fn txn(&self, index: usize, rng: &mut fastrand::Rng) -> TxnRequest {
        let compare = Compare {
            result: CompareResult::Greater.into(),
            target: CompareTarget::Mod.into(),
            key: self.key(index),
            target_union: Some(TargetUnion::ModRevision(-1)),
            range_end: Bytes::new(),
        };
        let put = Request::RequestPut(self.put(index, rng));
        let get = Request::RequestRange(RangeRequest { serializable: false, ..self.get(index) });
        let operations = [put, get].map(|request| RequestOp { request: Some(request) });
        TxnRequest { compare: vec![compare], success: operations.to_vec(), failure: Vec::new() }
    }

    /// The first key behind the one with this index.
    fn key_after(&self, index: usize) -> Bytes {
        [&self.key(index)[..], b"\0"].concat().into()
    }

    fn key(&self, index: usize) -> Bytes {
        format!("{index:0width$}", width = self.key_size).into()
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{Cli, Verb, bench::BenchArgs};

    fn script(line: &[&str]) -> Result<Script, Error> {
        let line = ["quoratectl", "bench"].iter().chain(line);
        let Verb::Bench(BenchArgs { workload }) = Cli::try_parse_from(line).unwrap().verb else {
            panic!("not a bench");
        };
        let load = match &workload {
            Workload::Put(load)
            | Workload::Get(load)
            | Workload::Mixed(load)
            | Workload::Txn(load) => load,
            Workload::Range(args) => &args.load,
            _ => panic!("no script"),
        };
        Script::new(&workload, load)
    }

    fn run(script: &Script) -> Vec<Operation> {
        let mut rng = fastrand::Rng::with_seed(script.seed);
        (0..100).map(|sequence| script.operation(sequence, &mut rng)).collect()
    }

    #[test]
    fn a_seed_repeats_keys_and_values() {
        let line = ["put", "--seed", "7", "--val-size", "16", "--key-space-size", "50"];
        let puts = |script: &Script| -> Vec<PutRequest> {
            let operations = run(script).into_iter();
            operations
                .map(|operation| match operation {
                    Operation::Put(put) => put,
                    _ => panic!("not a put"),
                })
                .collect()
        };
        let first = puts(&script(&line).unwrap());
        assert_eq!(first, puts(&script(&line).unwrap()));
        assert!(first.iter().all(|put| put.key.len() == 8 && put.value.len() == 16));
        assert!(first.iter().any(|put| put.value != first[0].value));
    }

    #[test]
    fn sequential_keys_wrap_around_the_key_space() {
        let line = ["get", "--sequential-keys", "--key-space-size=3", "--key-size=2", "-w=json"];
        let script = script(&line[..4]).unwrap();
        let keys: Vec<Bytes> = run(&script)
            .into_iter()
            .map(|operation| match operation {
                Operation::Get(get) => get.key,
                _ => panic!("not a get"),
            })
            .take(4)
            .collect();
        assert_eq!(keys, ["00", "01", "02", "00"]);
    }

    #[test]
    fn intervals_are_whole() {
        let line = ["range", "--range-keys=3", "--key-space-size=5", "--key-size=1", "--limit=2"];
        for operation in run(&script(&line).unwrap()) {
            let Operation::Get(get) = operation else { panic!("not a read") };
            let start: usize = std::str::from_utf8(&get.key).unwrap().parse().unwrap();
            assert!(start <= 2);
            assert_eq!(get.range_end, format!("{}\0", start + 2));
            assert_eq!(get.limit, 2);
        }
    }

    #[test]
    fn the_mix_has_the_wanted_share_of_reads() {
        for (percent, expected) in [("0", 0), ("100", 100)] {
            let script = script(&["mixed", "--read-percent", percent]).unwrap();
            let reads = run(&script).iter().filter(|operation| operation.is_read()).count();
            assert_eq!(reads, expected);
        }
        assert!(script(&["mixed", "--read-percent", "101"]).is_err());
        assert!(script(&["put", "--key-size", "3", "--key-space-size", "1001"]).is_err());
        assert!(script(&["put", "--key-size", "3", "--key-space-size", "1000"]).is_ok());
    }
}
