//! Log lines in the shape that etcd's operators and tools know: one JSON object a line with the keys
//! `level`, `ts`, `caller`, `msg`, then the event's fields in the order of the call.
//!
//! ```text
//! {"level":"info","ts":"2026-11-22T04:52:48.519296Z","caller":"server/mod.rs:42","msg":"ready","name":"n1"}
//! ```
//!
//! Events go through [`tracing`]; spans are not printed, because the hot path has none. Messages of
//! foreign crates are kept at warnings, or at infos when debugging. A line is written with one call
//! by the thread that logs, so lines never mix.
//!
//! It must not format values or tokens: callers log fields, and this file only escapes them.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use thiserror::Error;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// `--log-level`. Panic and fatal print nothing, because our process ends with a plain message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words are the documentation")]
pub enum LogLevel {
    Debug,
    Info,
    Warn,
    Error,
    Panic,
    Fatal,
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Tab-separated, for people.
    Console,
}

/// One of `--log-outputs`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the words are the documentation")]
pub enum LogOutput {
    Stderr,
    Stdout,
    File(PathBuf),
}

/// What to log, how and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// The least important level that is printed.
    pub level: LogLevel,
    /// The shape of a line.
    pub format: LogFormat,
    /// Each line goes to all of them.
    pub outputs: Vec<LogOutput>,
}

impl Default for LogSettings {
    fn default() -> Self {
        let outputs = vec![LogOutput::Stderr];
        Self { level: LogLevel::Info, format: LogFormat::Json, outputs }
    }
}

/// Why logging could not start.
#[derive(Debug, Error)]
pub enum LoggingError {
    /// A file of `--log-outputs` cannot be written.
    #[error("cannot open log output {path} ({source}); check --log-outputs")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The process logs already.
    #[error("logging was started twice")]
    Twice(#[source] TryInitError),
}

impl FromStr for LogLevel {
    type Err = ();

    /// As in zap: upper and lower case, and nothing at all means info.
    fn from_str(text: &str) -> Result<Self, ()> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "debug" => Self::Debug,
            "info" | "" => Self::Info,
            "warn" | "warning" => Self::Warn,
            "error" => Self::Error,
            "panic" | "dpanic" => Self::Panic,
            "fatal" => Self::Fatal,
            _ => return Err(()),
        })
    }
}

/// Starts logging for the whole process. Call it once, before anything logs.
pub fn init(settings: &LogSettings) -> Result<(), LoggingError> {
    let outputs = Outputs::open(&settings.outputs)?;
    subscriber(settings.level, settings.format, outputs).try_init().map_err(LoggingError::Twice)
}

fn subscriber<W>(level: LogLevel, format: LogFormat, outputs: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (ours, foreign) = match level {
        LogLevel::Debug => (LevelFilter::DEBUG, LevelFilter::INFO),
        LogLevel::Info => (LevelFilter::INFO, LevelFilter::WARN),
        LogLevel::Warn => (LevelFilter::WARN, LevelFilter::WARN),
        LogLevel::Error => (LevelFilter::ERROR, LevelFilter::ERROR),
        LogLevel::Panic | LogLevel::Fatal => (LevelFilter::OFF, LevelFilter::OFF),
    };
    // openraft warns of each message that does not arrive; ours say once that a member is away.
    let raft = if level == LogLevel::Debug { foreign } else { foreign.min(LevelFilter::ERROR) };
    let targets = Targets::new().with_default(foreign);
    let targets = targets.with_target("openraft", raft).with_target("quorate", ours);
    let lines =
        tracing_subscriber::fmt::layer().event_format(Lines { format }).with_writer(outputs);
    tracing_subscriber::registry().with(targets).with(lines)
}

/// The shape of a line, as a formatter of tracing-subscriber.
struct Lines {
    format: LogFormat,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (level, ts) = (level_word(*event.metadata().level()), Timestamp(since_epoch()));
        let caller = Caller(event.metadata());
        match self.format {
            LogFormat::Json => {
                write!(writer, "{{\"level\":\"{level}\",\"ts\":\"{ts}\",\"caller\":\"{caller}\"")?;
                let message = Json(&fields.message);
                writeln!(writer, ",\"msg\":{message}{}}}", fields.rest)
            }
            LogFormat::Console => {
                write!(writer, "{ts}\t{level}\t{caller}\t{}", fields.message)?;
                match fields.rest.strip_prefix(',') {
                    Some(rest) => writeln!(writer, "\t{{{rest}}}"),
                    None => writeln!(writer),
                }
            }
        }
    }
}

fn level_word(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        _ => "debug",
    }
}

#[expect(clippy::disallowed_methods, reason = "a line is stamped when it is written")]
fn since_epoch() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// The fields of one event: the message apart, the rest as `,"key":value` in order.
#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Fields {
    fn push(&mut self, field: &Field, value: &dyn fmt::Display) {
        write!(self.rest, ",{}:{value}", Json(field.name())).expect("a String takes every write");
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        self.record_str(field, &text);
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.push(field, &Json(value));
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.push(field, &value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.push(field, &value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.push(field, &value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        if value.is_finite() {
            self.push(field, &value);
        } else {
            self.push(field, &Json(&value.to_string()));
        }
    }
}

/// Text as a JSON string.
struct Json<'a>(&'a str);

impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self.0).map_err(|_| fmt::Error)?)
    }
}

/// The folder, file and line that logged: `wal/writer.rs:120`, as zap shortens it.
struct Caller<'a>(&'a Metadata<'a>);

impl fmt::Display for Caller<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.file().unwrap_or("unknown");
        let start = path.rmatch_indices(['/', '\\']).nth(1).map_or(0, |(at, _)| at + 1);
        write!(f, "{}:{}", &path[start..], self.0.line().unwrap_or(0))
    }
}

/// Time since 1970 as Go's `2006-01-02T15:04:05.999999Z0700` in UTC: trailing zeros are left out.
struct Timestamp(Duration);

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let (year, month, day) = civil_date(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")?;
        let micros = format!("{:06}", self.0.subsec_micros());
        match micros.trim_end_matches('0') {
            "" => f.write_str("Z"),
            digits => write!(f, ".{digits}Z"),
        }
    }
}

/// Year, month and day of the Gregorian calendar, `days` after 1970-01-01.
fn civil_date(days: u64) -> (u64, u64, u64) {
    // Years are counted from March, so that the leap day is the last day of a year; a cycle of the
    // calendar has 400 years or 146,097 days. 719,468 days lie between 0000-03-01 and 1970-01-01.
    let days = days + 719_468;
    let (cycle, in_cycle) = (days / 146_097, days % 146_097);
    let year_of_cycle =
        (in_cycle - in_cycle / 1_460 + in_cycle / 36_524 - in_cycle / 146_096) / 365;
    let in_year = in_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    // Months from March have 31, 30, 31, 30, 31 days and again: 153 days in five of them.
    let month_from_march = (5 * in_year + 2) / 153;
    let day = in_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    (year, month, day)
}

/// All outputs of the process, cheap to clone for each line.
#[derive(Debug, Clone)]
struct Outputs(Arc<Vec<Sink>>);

#[derive(Debug)]
enum Sink {
    Stderr,
    Stdout,
    File(File),
}

impl Outputs {
    fn open(outputs: &[LogOutput]) -> Result<Self, LoggingError> {
        let open = |output: &LogOutput| match output {
            LogOutput::Stderr => Ok(Sink::Stderr),
            LogOutput::Stdout => Ok(Sink::Stdout),
            LogOutput::File(path) => OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .map(Sink::File)
                .map_err(|source| LoggingError::Open { path: path.clone(), source }),
        };
        Ok(Self(Arc::new(outputs.iter().map(open).collect::<Result<_, _>>()?)))
    }
}

impl Write for Outputs {
    /// Writes the line to every output, and fails if one of them failed.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut result = Ok(line.len());
        for sink in self.0.iter() {
            let written = match sink {
                Sink::Stderr => io::stderr().write_all(line),
                Sink::Stdout => io::stdout().write_all(line),
                // Append mode: one call puts the whole line at the end.
                Sink::File(file) => (&*file).write_all(line),
            };
            if let Err(error) = written {
                result = Err(error);
            }
        }
        result
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

impl<'w> MakeWriter<'w> for Outputs {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use serde_json::Value;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: LogLevel, format: LogFormat, act: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let all = subscriber(level, format, move || writer.clone());
        tracing::subscriber::with_default(all, act);
        let bytes = buffer.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_line_has_the_keys_of_zap_in_order() {
        let line = logged(LogLevel::Info, LogFormat::Json, || {
            tracing::info!(name = "a\"b", count = 3_u64, on = true, path = ?"x", "ready\nto serve");
        });
        assert!(line.starts_with("{\"level\":\"info\",\"ts\":\"20"), "{line}");
        assert!(line.contains("Z\",\"caller\":\"src/logging.rs:"), "{line}");
        let tail = r#","msg":"ready\nto serve","name":"a\"b","count":3,"on":true,"path":"\"x\""}"#;
        assert!(line.ends_with(&format!("{tail}\n")), "{line}");
        assert!(serde_json::from_str::<Value>(&line).unwrap().is_object());
    }

    #[test]
    fn console_line_is_for_people() {
        let line = logged(LogLevel::Info, LogFormat::Console, || {
            tracing::warn!(slow = 1, "hm");
            tracing::warn!("plain");
        });
        let (first, second) = line.trim_end().split_once('\n').unwrap();
        assert!(first.contains("Z\twarn\tsrc/logging.rs:"), "{first}");
        assert!(first.ends_with("\thm\t{\"slow\":1}"), "{first}");
        assert!(second.ends_with("\tplain"), "{second}");
    }

    #[test]
    fn level_decides_what_is_printed_and_foreign_crates_are_quiet() {
        let act = || {
            tracing::debug!("own debug");
            tracing::info!("own info");
            tracing::info!(target: "openraft::core", "foreign info");
            tracing::warn!(target: "openraft::core", "a message did not arrive");
            tracing::error!(target: "openraft::core", "foreign error");
        };
        let count = |level| logged(level, LogFormat::Json, act).lines().count();
        assert_eq!(count(LogLevel::Debug), 5);
        assert_eq!(count(LogLevel::Info), 2);
        assert_eq!(count(LogLevel::Error), 1);
        assert_eq!(count(LogLevel::Fatal), 0);
        assert_eq!("WARN".parse(), Ok(LogLevel::Warn));
        assert!("loud".parse::<LogLevel>().is_err());
    }

    #[test]
    fn timestamps_are_those_of_go() {
        for (seconds, micros, text) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (951_782_400, 120_000, "2000-02-29T00:00:00.12Z"),
            (1_709_251_199, 999_999, "2024-02-29T23:59:59.999999Z"),
            (1_795_323_168, 519_296, "2026-11-22T04:52:48.519296Z"),
            (4_107_542_400, 1, "2100-03-01T00:00:00.000001Z"),
        ] {
            let time = Duration::from_secs(seconds) + Duration::from_micros(micros);
            assert_eq!(Timestamp(time).to_string(), text);
        }
    }

    #[test]
    fn every_output_gets_the_line() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("a"), dir.path().join("b")];
        let outputs = Outputs::open(&paths.clone().map(LogOutput::File)).unwrap();
        let all = subscriber(LogLevel::Info, LogFormat::Json, outputs);
        tracing::subscriber::with_default(all, || tracing::info!("to both"));
        for path in paths {
            assert!(std::fs::read_to_string(path).unwrap().contains("to both"));
        }
        let missing = Outputs::open(&[LogOutput::File(dir.path().join("no/such/dir"))]);
        assert!(missing.unwrap_err().to_string().contains("check --log-outputs"));
    }
}
