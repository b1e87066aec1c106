//! Which releases of clients call.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::RwLock;

use super::push;

/// Releases that are counted one by one. A client can say anything; the rest is counted together.
const VERSIONS_MAX: usize = 64;

const OTHER: &str = "other";

/// What one thread counted for `etcd_server_client_requests_total`.
#[derive(Debug, Default)]
pub(super) struct Clients(RwLock<Vec<Version>>);

#[derive(Debug)]
struct Version {
    name: Box<str>,
    unary: AtomicU64,
    stream: AtomicU64,
}

impl Version {
    fn new(name: &str) -> Self {
        Version { name: name.into(), unary: AtomicU64::new(0), stream: AtomicU64::new(0) }
    }

    fn count(&self, is_stream: bool) {
        let counter = if is_stream { &self.stream } else { &self.unary };
        counter.fetch_add(1, Relaxed);
    }
}

impl Clients {
    pub(super) fn count(&self, name: &str, is_stream: bool) {
        if let Some(version) = self.0.read().iter().find(|version| *version.name == *name) {
            return version.count(is_stream);
        }
        let mut versions = self.0.write();
        let name = if versions.len() < VERSIONS_MAX { name } else { OTHER };
        let known = versions.iter().position(|version| *version.name == *name);
        let at = known.unwrap_or_else(|| {
            versions.push(Version::new(name));
            versions.len() - 1
        });
        versions[at].count(is_stream);
    }
}

/// Appends the Prometheus text of what several threads counted.
pub(super) fn render<'a>(all: impl Iterator<Item = &'a Clients>, text: &mut String) {
    let mut sums = BTreeMap::<Box<str>, [u64; 2]>::new();
    for clients in all {
        for version in clients.0.read().iter() {
            let sum = sums.entry(version.name.clone()).or_default();
            sum[0] += version.stream.load(Relaxed);
            sum[1] += version.unary.load(Relaxed);
        }
    }
    let name = "etcd_server_client_requests_total";
    push(text, format_args!("# TYPE {name} counter\n"));
    for (version, sum) in sums {
        let label = escaped(&version);
        for (kind, count) in ["stream", "unary"].into_iter().zip(sum) {
            if count > 0 {
                push(
                    text,
                    format_args!(
                        "{name}{{client_api_version=\"{label}\",type=\"{kind}\"}} {count}\n"
                    ),
                );
            }
        }
    }
}

/// As the value of a label is written in Prometheus' text format.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_counted_by_what_they_say_they_are() {
        let clients = Clients::default();
        for _ in 0..3 {
            clients.count("3.7", false);
        }
        clients.count("3.7", true);
        clients.count("\"\\", false);
        let mut text = String::new();
        let other = Clients::default();
        other.count("3.7", true);
        render([&clients, &other].into_iter(), &mut text);
        let lines: Vec<&str> = text.lines().collect();
        let counted = |version: &str, kind: &str, count: u64| {
            format!(
                "etcd_server_client_requests_total{{client_api_version=\"{version}\",\
                 type=\"{kind}\"}} {count}"
            )
        };
        assert_eq!(lines[1], counted("\\\"\\\\", "unary", 1));
        assert_eq!(lines[2], counted("3.7", "stream", 2));
        assert_eq!(lines[3], counted("3.7", "unary", 3));
    }

    #[test]
    fn a_client_that_says_something_else_each_time_takes_no_memory() {
        let clients = Clients::default();
        for number in 0..10 * VERSIONS_MAX {
            clients.count(&number.to_string(), false);
        }
        assert_eq!(clients.0.read().len(), VERSIONS_MAX + 1);
        let total: u64 = clients.0.read().iter().map(|one| one.unary.load(Relaxed)).sum();
        assert_eq!(total, 10 * VERSIONS_MAX as u64);
    }
}
