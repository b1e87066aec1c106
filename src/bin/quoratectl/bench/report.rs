//! What a benchmark found: latencies, throughput, errors by text.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    time::Duration,
};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Latencies above this are recorded as this, in microseconds.
const LATENCY_MICROS_MAX: u64 = 600_000_000;

/// Different error texts that are counted; more share one line.
const ERROR_TEXTS_MAX: usize = 100;

/// Quantiles of the report, with their names.
const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999)];

/// What the numbers were measured with; part of the report.
pub(super) struct Settings<'a> {
    /// Name of the subcommand.
    pub(super) workload: &'a str,
    /// Requests in flight.
    pub(super) clients: usize,
    /// HTTP/2 connections.
    pub(super) connections: usize,
    /// Bytes of a key.
    pub(super) key_size: usize,
    /// Bytes of a value.
    pub(super) value_size: i64,
    /// Different keys.
    pub(super) key_space_size: usize,
    /// Takes `--seed` to the same keys and values.
    pub(super) seed: u64,
}

/// The latencies of one kind of request.
pub(super) struct Latencies(Histogram<u64>);

impl Latencies {
    /// None yet.
    pub(super) fn new() -> Self {
        let histogram = Histogram::new_with_max(LATENCY_MICROS_MAX, 3);
        Self(histogram.expect("the bound and three digits are valid"))
    }

    /// Counts one.
    pub(super) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.saturating_record(micros.clamp(1, LATENCY_MICROS_MAX));
    }

    /// How many there are.
    pub(super) fn len(&self) -> u64 {
        self.0.len()
    }

    /// A JSON object in microseconds, `null` if there are none.
    pub(super) fn to_json(&self) -> Value {
        latencies(&self.0)
    }

    /// A line for people, or nothing if there are none.
    pub(super) fn write_line(&self, out: &mut dyn Write, name: &str) -> io::Result<()> {
        let histogram = &self.0;
        if histogram.is_empty() {
            return Ok(());
        }
        write!(out, "{name}: {} mean {}", histogram.len(), millis(histogram.mean()))?;
        for (name, quantile) in QUANTILES {
            let micros = histogram.value_at_quantile(quantile);
            write!(out, ", {name} {}", millis(micros as f64))?;
        }
        writeln!(out, ", max {}", millis(histogram.max() as f64))
    }
}

/// Failures, counted by their text.
#[derive(Default)]
pub(super) struct Errors(BTreeMap<String, u64>);

impl Errors {
    /// Counts one.
    pub(super) fn count(&mut self, text: String) {
        let full = self.0.len() >= ERROR_TEXTS_MAX && !self.0.contains_key(&text);
        let text = if full { "other errors".to_owned() } else { text };
        *self.0.entry(text).or_default() += 1;
    }

    /// A JSON object from texts to numbers.
    pub(super) fn to_json(&self) -> Value {
        json!(self.0)
    }

    /// A line for each text.
    pub(super) fn write_lines(&self, out: &mut dyn Write) -> io::Result<()> {
        self.0.iter().try_for_each(|(text, count)| writeln!(out, "error: {count} × {text}"))
    }
}

/// Collects the answers of a run.
pub(super) struct Report {
    reads: Latencies,
    writes: Latencies,
    /// Reads that found no key.
    misses: u64,
    /// Keys that reads returned.
    keys: u64,
    errors: Errors,
}

impl Report {
    /// An empty report.
    pub(super) fn new() -> Self {
        Self {
            reads: Latencies::new(),
            writes: Latencies::new(),
            misses: 0,
            keys: 0,
            errors: Errors::default(),
        }
    }

    /// Counts the answer of a read, the keys it returned and its latency.
    pub(super) fn read(&mut self, keys: usize, latency: Duration) {
        self.reads.record(latency);
        self.keys += keys as u64;
        self.misses += u64::from(keys == 0);
    }

    /// Counts the answer of a write and its latency.
    pub(super) fn written(&mut self, latency: Duration) {
        self.writes.record(latency);
    }

    /// Counts a failure.
    pub(super) fn failed(&mut self, text: String) {
        self.errors.count(text);
    }

    /// Whether anything was measured.
    pub(super) fn has_answers(&self) -> bool {
        self.answers() > 0
    }

    fn answers(&self) -> u64 {
        self.reads.len() + self.writes.len()
    }

    fn throughput(&self, elapsed: Duration) -> f64 {
        self.answers() as f64 / elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// One JSON object; latencies in microseconds.
    pub(super) fn to_json(&self, settings: &Settings<'_>, elapsed: Duration) -> Value {
        json!({
            "workload": settings.workload,
            "clients": settings.clients,
            "connections": settings.connections,
            "key_size": settings.key_size,
            "value_size": settings.value_size,
            "key_space_size": settings.key_space_size,
            "seed": settings.seed,
            "seconds": elapsed.as_secs_f64(),
            "requests": self.answers(),
            "requests_per_second": self.throughput(elapsed),
            "reads": self.reads.to_json(),
            "writes": self.writes.to_json(),
            "keys_read": self.keys,
            "misses": self.misses,
            "errors": self.errors.to_json(),
        })
    }

    /// A short text for people.
    pub(super) fn write_text(
        &self,
        out: &mut dyn Write,
        settings: &Settings<'_>,
        elapsed: Duration,
    ) -> io::Result<()> {
        writeln!(
            out,
            "{}: {} clients, {} connections, keys {} B of {}, values {} B, seed {}",
            settings.workload,
            settings.clients,
            settings.connections,
            settings.key_size,
            settings.key_space_size,
            settings.value_size,
            settings.seed
        )?;
        writeln!(
            out,
            "requests: {} in {:.2} s, {:.0} a second",
            self.answers(),
            elapsed.as_secs_f64(),
            self.throughput(elapsed)
        )?;
        self.reads.write_line(out, "reads")?;
        self.writes.write_line(out, "writes")?;
        if self.misses > 0 {
            writeln!(out, "misses: {} reads found no key", self.misses)?;
        }
        self.errors.write_lines(out)
    }
}

fn millis(micros: f64) -> String {
    format!("{:.3} ms", micros / 1000.0)
}

fn latencies(histogram: &Histogram<u64>) -> Value {
    if histogram.is_empty() {
        return Value::Null;
    }
    let mut value = json!({
        "requests": histogram.len(),
        "mean_us": histogram.mean(),
        "max_us": histogram.max(),
    });
    for (name, quantile) in QUANTILES {
        value[format!("{name}_us")] = histogram.value_at_quantile(quantile).into();
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_reads_writes_and_errors_apart() {
        let mut report = Report::new();
        assert!(!report.has_answers());
        for micros in 1..=1000 {
            report.read(usize::from(micros > 10), Duration::from_micros(micros));
        }
        report.written(Duration::from_secs(3600));
        report.failed("etcdserver: no leader".to_owned());
        report.failed("etcdserver: no leader".to_owned());
        let settings = Settings {
            workload: "mixed",
            clients: 8,
            connections: 2,
            key_size: 8,
            value_size: 256,
            key_space_size: 100,
            seed: 7,
        };
        let json = report.to_json(&settings, Duration::from_secs(2));
        assert_eq!(json["requests"], 1001);
        assert_eq!(json["requests_per_second"], 500.5);
        assert_eq!(json["reads"]["p50_us"], 500);
        assert_eq!(json["misses"], 10);
        assert_eq!(json["errors"]["etcdserver: no leader"], 2);
        let mut text = Vec::new();
        report.write_text(&mut text, &settings, Duration::from_secs(2)).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(text.contains("requests: 1001 in 2.00 s, 500 a second"), "{text}");
        assert!(text.contains("error: 2 × etcdserver: no leader"), "{text}");
    }

    #[test]
    fn error_texts_are_bounded() {
        let mut report = Report::new();
        for number in 0..ERROR_TEXTS_MAX + 50 {
            report.failed(format!("error {number}"));
        }
        assert_eq!(report.errors.0.len(), ERROR_TEXTS_MAX + 1);
        assert_eq!(report.errors.0["other errors"], 50);
    }
}
