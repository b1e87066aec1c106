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
//! | `grant` `revoke` `ttl` `leases` `keepalive` | one Lease request (`keepalive` is a stream of one) |
//! | `lock` `unlock` | Lock |
//! | `campaign` `proclaim` `leader` `resign` | Election; `missing` leaves out the leader's key |
//! | `status` `hashkv` `members` | Maintenance and Cluster |
//! | `raw path=… body=…` | any method with any bytes; `as=range` (or `put`, `stream`, `hash`…) decodes the answer |
//! | `http path=… body=…` | one HTTP/2 request: `body` holds gRPC's frames, `meta.…` the headers, `method=GET` another method |
//! | `wipe` | deletes every key of the store and prints nothing |
//! | `alarm` | Maintenance too, for the refusals that an alarm causes |
//!
//! `quiet` before a verb prints only errors. `times=3` repeats a line with `%` as 000, 001, 002.
//! `meta.NAME=VALUE` adds request metadata. A head line `# needs: fresh store` marks a file that runs
//! only at revision 1, each `# needs: method /SERVICE/METHOD` a method without which it cannot run;
//! `body=…` behind it is a harmless message to find out with. Which methods may be missing at all, so
//! that a file is skipped, stands in `run`. `--- quorate: reason` after the recorded answer begins a second
//! one: ours, where we differ on purpose.
//!
//! # Calls that go on
//!
//! A call with a capital name goes on while the case does other things:
//!
//! | line | meaning |
//! |---|---|
//! | `open W` `open K keepalive` | opens a watch stream, or one of keep-alives |
//! | `start B lock …` | sends a request whose answer is read later; also `observe`, a stream of answers |
//! | `W create key=… …` | begins a watcher and waits for `created`; `async` does not wait, `quiet` does not print it |
//! | `W cancel watch_id=…` `W progress` `K renew ID=…` `W send body=…` | sends a message |
//! | `W close` | ends our half of the stream |
//! | `W read 3` | reads that many messages; those of a watcher stay in order |
//! | `W events 3` | reads until that many events came, and prints only which they are |
//! | `W end` | reads up to the end and prints the status |
//! | `W none` | waits a moment for what must not come; only where nothing else can follow it |
//! | `B pending` `B join` | says that there is no answer yet; waits for it |
//! | `W drop` | cancels the call |
//! | `await key=/a` `await gone=/a` | waits until a key is there or not; `renew=L1` keeps a lease alive meanwhile |
//!
//! `L1` to `L9` are leases of the case's choice, `N1`… those that the server chose in the order in
//! which they were seen, and a key that ends in `{L1}` ends in that lease's hexadecimal digits.
//! A case ends with a fence: a last watcher and a last put on each watch stream show that
//! nothing else was on the way, or print it as `unread`. Then the case's leases are revoked.
//!
//! Every watcher is also checked for what always holds: `created` first, nothing after `canceled`,
//! revisions that rise, no revision split but in fragments, no header behind its events. What breaks
//! a rule is printed in capitals.
//!
//! # Files
//!
//! `script` reads and writes the files, `scope` and `request` turn lines into messages, `client` sends
//! bytes, `call` holds a call that goes on, `print` turns answers into lines, `session` carries out one
//! case, `run` all of them, `table` writes the README.

pub(crate) mod call;
pub(crate) mod client;
pub(crate) mod print;
pub(crate) mod request;
pub(crate) mod run;
pub(crate) mod scope;
pub(crate) mod script;
pub(crate) mod session;
pub(crate) mod table;
