//! What happened in a simulation, in order, for people to read and for runs to be compared.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use quorate::clock;
use quorate::tasks::Scope;
use tokio::time::Instant;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

/// The simulated time.
pub(crate) fn now() -> Instant {
    Instant::from_std(clock::now())
}

/// The lines of one simulation. Clones are the same log.
#[derive(Clone)]
pub(crate) struct EventLog {
    inner: Arc<Inner>,
}

struct Inner {
    start: Instant,
    text: Mutex<String>,
}

impl EventLog {
    /// A log that begins now.
    pub(crate) fn new() -> EventLog {
        let start = now();
        EventLog { inner: Arc::new(Inner { start, text: Mutex::default() }) }
    }

    /// The time since the begin.
    pub(crate) fn now(&self) -> Duration {
        now() - self.inner.start
    }

    /// Writes a line of `who`.
    pub(crate) fn say(&self, who: &str, what: impl fmt::Display) {
        use fmt::Write;
        let time = self.now();
        let (seconds, micros) = (time.as_secs(), time.subsec_micros());
        let mut text = self.inner.text.lock();
        // Writing to a string never fails.
        writeln!(text, "{seconds:>4}.{micros:06} {who:<8} {what}").ok();
    }

    /// All lines so far.
    pub(crate) fn text(&self) -> String {
        self.inner.text.lock().clone()
    }

    /// As long as the guard lives, what members on this thread log is written here.
    pub(crate) fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let targets = Targets::new().with_target("quorate", LevelFilter::INFO);
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(self.clone())
            .without_time()
            .with_ansi(false)
            .with_target(false);
        tracing::subscriber::set_default(tracing_subscriber::registry().with(lines).with(targets))
    }
}

impl MakeWriter<'_> for EventLog {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line(self.clone())
    }
}

/// One line that a member logs.
pub(crate) struct Line(EventLog);

impl io::Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let scope = Scope::current();
        let who = scope.as_ref().map_or("?", Scope::name);
        let text = bytes.utf8_chunks().map(|chunk| chunk.valid()).collect::<String>();
        self.0.say(who, text.trim_end());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
