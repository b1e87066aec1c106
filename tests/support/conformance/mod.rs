//! The conformance corpus: scripts of requests with the answers that a real etcd gave.
//!
//! A script file is one topic. Its head says what the topic is; every later block is one case:
//!
//! ```text
//! # Put: what a write does to a key
//! # More words about the topic.
//!
//! # a second put keeps the create revision
//! put key=/a value=1
//! put key=/a value=2 prev_kv
//! ---
//! put rev+1
//! put rev+2
//!   prev /a = "1" create=rev+1 mod=rev+1 version=1
//! ```
//!
//! One server serves all cases, so a case must not see the others: a key that begins with `/`
//! stands below a prefix that only this case uses, `L1`, `L2`… are leases of its own, and `rev` is
//! the store's revision when the case began. Everything that differs between two honest servers
//! (ids, terms, sizes, hashes) is checked for sense and printed as a constant.
//!
//! # The language
//!
//! A line is a verb and fields `name=value`; a bare `name` means `true`. Names are those of the
//! protobuf messages, so every field can be set. Bytes are written with `\x00` escapes and `x*100`
//! repeats; numbers are `7`, `rev+1`, `L1`, `max`, `min`; enums are names or raw numbers.
//!
//! | verb | request |
//! |---|---|
//! | `range` `stream` `put` `delete` `compact` | one KV request (`stream` is RangeStream) |
//! | `txn` | a Txn: indented `if …`, `then <op>`, `else <op>` lines below; `then empty` is an op without a request |
//! | `grant` `revoke` | a lease, for the cases that attach keys to one |
//! | `status` `hashkv` `members` | Maintenance and Cluster |
//! | `raw path=… body=…` | any method with any bytes; `as=range` (or `put`, `stream`) decodes the answer |
//! | `http path=… body=…` | one HTTP/2 request: `body` holds gRPC's frames, `meta.…` the headers, `method=GET` another method |
//! | `wipe` | deletes every key of the store and prints nothing |
//! | `alarm` | Maintenance too, for the refusals that an alarm causes |
//!
//! `quiet` before a verb prints only errors. `times=3` repeats a line with `%` as 000, 001, 002.
//! `meta.NAME=VALUE` adds request metadata. A head line `# needs: fresh store` marks a file that runs
//! only at revision 1, `# needs: method /SERVICE/METHOD` one that runs only where that is served; `body=…` behind it is a
//! harmless message to find out with. `--- quorate: reason` after the recorded answer begins a second
//! one: ours, where we differ on purpose.
//!
//! # Files
//!
//! `script` reads and writes the files, `scope` and `request` turn lines into messages, `client` sends
//! bytes, `print` turns answers into lines, `run` ties them together, `table` writes the README.

pub(crate) mod call;
pub(crate) mod client;
pub(crate) mod print;
pub(crate) mod request;
pub(crate) mod run;
pub(crate) mod scope;
pub(crate) mod script;
pub(crate) mod session;
pub(crate) mod table;
