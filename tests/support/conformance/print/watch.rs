//! Prints what a watch stream sends, and checks what holds for every watcher.
//!
//! How the responses of several watchers interleave is the server's affair, so they are printed
//! watcher by watcher, those of one watcher as they came.

use std::collections::BTreeMap;

use bytes::Bytes;
use quorate::pb::etcdserverpb::WatchResponse;
use quorate::pb::mvccpb::Event;
use quorate::pb::mvccpb::event::EventType;

use super::{Printer, decode};

/// What the watchers of one stream were sent so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct WatchLog {
    watchers: BTreeMap<i64, Watched>,
}

/// What one watcher was sent so far.
#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    canceled: bool,
    /// Revision of the newest event.
    revision: i64,
    /// Whether the response before was not the last piece of its events.
    in_pieces: bool,
}

impl WatchLog {
    /// Takes notice of a response that is not printed.
    pub(crate) fn note(&mut self, message: &Bytes) {
        self.check(&decode(message));
    }

    /// Checks a response against those before it; the complaints.
    fn check(&mut self, response: &WatchResponse) -> Vec<&'static str> {
        let mut complaints = Vec::new();
        let id = response.watch_id;
        if response.created && !response.canceled {
            let before = self.watchers.insert(id, Watched::default());
            if before.is_some_and(|before| !before.canceled) {
                complaints.push("CREATED-TWICE");
            }
            return complaints;
        }
        if id < 0 {
            return complaints;
        }
        let Some(watched) = self.watchers.get_mut(&id) else {
            return vec!["NOT-CREATED"];
        };
        if watched.canceled {
            complaints.push("AFTER-CANCELED");
        }
        watched.canceled |= response.canceled;
        for (index, event) in response.events.iter().enumerate() {
            let revision = event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            if revision < watched.revision {
                complaints.push("REVISION-WENT-BACK");
            }
            if index == 0 && revision == watched.revision && !watched.in_pieces {
                complaints.push("SPLIT-REVISION");
            }
            watched.revision = revision;
        }
        let behind = response.header.as_ref().is_none_or(|head| head.revision < watched.revision);
        if behind && !response.events.is_empty() {
            complaints.push("HEADER-BEHIND-EVENTS");
        }
        watched.in_pieces = response.fragment;
        complaints
    }
}

impl Printer<'_> {
    /// Prints responses as they are.
    pub(crate) fn watch_responses(&mut self, name: &str, messages: &[Bytes], log: &mut WatchLog) {
        let mut responses: Vec<WatchResponse> = messages.iter().map(decode).collect();
        responses.sort_by_key(|response| response.watch_id);
        for response in &responses {
            self.watch_head(name, response, log);
            for event in &response.events {
                self.event(event);
            }
        }
    }

    /// Prints only which events there were: how they are spread over responses, and with that the
    /// revisions of the headers, is the server's affair here.
    pub(crate) fn watch_events(&mut self, name: &str, messages: &[Bytes], log: &mut WatchLog) {
        let mut watchers: BTreeMap<i64, (bool, Vec<Event>)> = BTreeMap::new();
        for message in messages {
            let mut response: WatchResponse = decode(message);
            if response.events.is_empty() {
                self.watch_head(name, &response, log);
                continue;
            }
            let complaints = log.check(&response);
            self.complain(name, &complaints);
            let (fragments, events) = watchers.entry(response.watch_id).or_default();
            *fragments |= response.fragment;
            events.append(&mut response.events);
        }
        for (id, (fragments, events)) in watchers {
            let fragments = if fragments { " in fragments" } else { "" };
            self.line(0, format!("{name} #{id} events{fragments}"));
            for event in &events {
                self.event(event);
            }
        }
    }

    fn complain(&mut self, name: &str, complaints: &[&str]) {
        for complaint in complaints {
            self.line(0, format!("{name} {complaint}"));
        }
    }

    /// Prints all of a response but its events.
    fn watch_head(&mut self, name: &str, response: &WatchResponse, log: &mut WatchLog) {
        let complaints = log.check(response);
        self.complain(name, &complaints);
        let mut line = format!("{name} #{}", response.watch_id);
        let is_news = response.created || response.canceled;
        for (is_set, word) in [
            (response.created, "created"),
            (response.canceled, "canceled"),
            (!is_news && response.events.is_empty(), "progress"),
            (response.fragment, "fragment"),
        ] {
            if is_set {
                line = format!("{line} {word}");
            }
        }
        line = format!("{line} {}", self.header(0, response.header.as_ref()));
        if response.compact_revision != 0 {
            let compact = self.scope.show_revision(response.compact_revision);
            line = format!("{line} compact_revision={compact}");
        }
        if !response.cancel_reason.is_empty() {
            line = format!("{line}: {}", response.cancel_reason);
        }
        self.line(0, line);
    }

    fn event(&mut self, event: &Event) {
        let kv = event.kv.clone().unwrap_or_default();
        let bare = (kv.create_revision, kv.version, kv.lease) == (0, 0, 0) && kv.value.is_empty();
        match EventType::try_from(event.r#type) {
            Ok(EventType::Put) => self.kv(1, "PUT ", &kv),
            Ok(EventType::Delete) if bare => {
                let revision = self.scope.show_revision(kv.mod_revision);
                self.line(1, format!("DELETE {} mod={revision}", self.scope.show_key(&kv.key)));
            }
            Ok(EventType::Delete) => self.kv(1, "DELETE WITH-MORE-THAN-KEY-AND-MOD ", &kv),
            Err(_) => self.line(1, format!("UNKNOWN-EVENT-TYPE {}", event.r#type)),
        }
        if let Some(kv) = &event.prev_kv {
            self.kv(2, "prev ", kv);
        }
    }
}
