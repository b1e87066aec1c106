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

/// Collects the answers of a run.
pub(super) struct Report {
    reads: Histogram<u64>,
    writes: Histogram<u64>,
    /// Reads that found no key.
    misses: u64,
    errors: BTreeMap<String, u64>,
}

impl Report {
    /// An empty report.
    pub(super) fn new() -> Self {
        let histogram = || {
            Histogram::new_with_max(LATENCY_MICROS_MAX, 3)
                .expect("the bound and three digits are valid")
        };
        Self { reads: histogram(), writes: histogram(), misses: 0, errors: BTreeMap::new() }
    }

    /// Counts an answer and its latency.
    pub(super) fn answered(&mut self, is_read: bool, found: bool, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let histogram = if is_read { &mut self.reads } else { &mut self.writes };
        histogram.saturating_record(micros.clamp(1, LATENCY_MICROS_MAX));
        self.misses += u64::from(!found);
    }

    /// Counts a failure.
    pub(super) fn failed(&mut self, text: String) {
        let full = self.errors.len() >= ERROR_TEXTS_MAX && !self.errors.contains_key(&text);
        let text = if full { "other errors".to_owned() } else { text };
        *self.errors.entry(text).or_default() += 1;
    }

    /// Whether anything was measured.
    pub(super) fn has_answers(&self) -> bool {
        !self.reads.is_empty() || !self.writes.is_empty()
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
            "reads": latencies(&self.reads),
            "writes": latencies(&self.writes),
            "misses": self.misses,
            "errors": self.errors,
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
        for (name, histogram) in [("reads", &self.reads), ("writes", &self.writes)] {
            if histogram.is_empty() {
                continue;
            }
            write!(out, "{name}: {} mean {}", histogram.len(), millis(histogram.mean()))?;
            for (name, quantile) in QUANTILES {
                let micros = histogram.value_at_quantile(quantile);
                write!(out, ", {name} {}", millis(micros as f64))?;
            }
            writeln!(out, ", max {}", millis(histogram.max() as f64))?;
        }
        if self.misses > 0 {
            writeln!(out, "misses: {} reads found no key", self.misses)?;
        }
        for (text, count) in &self.errors {
            writeln!(out, "error: {count} × {text}")?;
        }
        Ok(())
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
            report.answered(true, micros > 10, Duration::from_micros(micros));
        }
        report.answered(false, true, Duration::from_secs(3600));
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
        assert_eq!(report.errors.len(), ERROR_TEXTS_MAX + 1);
        assert_eq!(report.errors["other errors"], 50);
    }
}
