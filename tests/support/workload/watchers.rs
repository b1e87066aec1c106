//! Watchers that are resumed on one stream after another until they have seen everything.

use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use futures_util::future::{Either, select};
use quorate::pb::etcdserverpb::{WatchCreateRequest, WatchResponse};

use super::request::{below, end};
use super::{Door, FAILURE_PAUSE, WatchStream, Workload};
use crate::support::history::WatchedStream;
use crate::support::judges::watch::advance;

/// Without news for so long a watcher asks how far it is.
const QUIET: Duration = Duration::from_millis(300);

/// Asked so often without an answer it goes to another member.
const QUESTIONS_MAX: usize = 5;

/// One watcher.
pub(super) struct Seat {
    pub(super) watcher: usize,
    /// What it wants; the start is that of its first stream.
    pub(super) request: WatchCreateRequest,
    /// It watches all keys, and compactions wait for it.
    pub(super) is_reference: bool,
}

impl Workload {
    /// What a watcher wants.
    pub(super) fn draw_watch(&self, is_reference: bool, rng: &mut Rng) -> WatchCreateRequest {
        let base = self.history.borrow().base.revision;
        let all = Bytes::from_static(b"\0");
        if is_reference {
            return WatchCreateRequest {
                key: all.clone(),
                range_end: all,
                start_revision: base + 1,
                prev_kv: rng.bool(),
                ..WatchCreateRequest::default()
            };
        }
        let (key, range_end) = match rng.u8(..5) {
            0 => (all.clone(), all),
            1 => (Bytes::from("r/1"), Bytes::new()),
            2 => (Bytes::from("a/"), end("a/")),
            3 => (below("l/").key, end("l/")),
            _ => (Bytes::from("r/2"), Bytes::from("t/3")),
        };
        WatchCreateRequest {
            key,
            range_end,
            start_revision: if rng.bool() { base + 1 } else { 0 },
            prev_kv: rng.bool(),
            progress_notify: rng.bool(),
            fragment: rng.u8(..4) == 0,
            filters: if rng.u8(..4) == 0 { vec![rng.i32(0..2)] } else { Vec::new() },
            ..WatchCreateRequest::default()
        }
    }

    /// Watches until everything was seen.
    pub(super) async fn watch<D: Door>(&self, door: D, seat: Seat, mut rng: Rng) {
        let mut start = seat.request.start_revision;
        while self.last.get().is_none_or(|last| start <= last) {
            let request = WatchCreateRequest { start_revision: start, ..seat.request.clone() };
            let mut stream = door.watch(request.clone());
            let opened_at = door.now();
            let record = WatchedStream { request, opened_at, responses: Vec::new() };
            self.history.borrow_mut().watches[seat.watcher].streams.push(record);
            let (mut life, mut questions) = (rng.usize(20..400), 0);
            while life > 0 && self.last.get().is_none_or(|last| start <= last) {
                life -= 1;
                let next = match select(pin!(stream.next()), pin!(door.sleep(QUIET))).await {
                    Either::Left((next, _)) => Some(next),
                    Either::Right(_) => None,
                };
                match next {
                    Some(Some(response)) => {
                        questions = 0;
                        let is_over = response.canceled;
                        start = self.take(&seat, start, door.now(), response);
                        if is_over {
                            break;
                        }
                    }
                    Some(None) => {
                        door.turn();
                        door.sleep(FAILURE_PAUSE).await;
                        break;
                    }
                    None if questions == QUESTIONS_MAX => {
                        door.turn();
                        break;
                    }
                    None => {
                        questions += 1;
                        stream.request_progress();
                    }
                }
                if rng.u8(..100) == 0 {
                    stream.request_progress();
                }
                if !seat.is_reference && rng.u8(..200) == 0 {
                    // A reader that pauses.
                    door.sleep(Duration::from_millis(rng.u64(100..2000))).await;
                }
            }
        }
    }

    /// Remembers a response; returns where the watcher would be resumed, 0 for "now".
    fn take(&self, seat: &Seat, start: i64, now: Duration, response: WatchResponse) -> i64 {
        let floor = match (start, &response) {
            // It begins with what comes next.
            (0, WatchResponse { created: true, canceled: false, header: Some(header), .. }) => {
                header.revision
            }
            (0, _) => -1,
            _ => advance(start - 1, &response),
        };
        if seat.is_reference {
            self.floors.borrow_mut().insert(seat.watcher, floor);
        }
        let mut history = self.history.borrow_mut();
        let streams = &mut history.watches[seat.watcher].streams;
        streams.last_mut().expect("it is open").responses.push((now, response));
        floor + 1
    }
}
