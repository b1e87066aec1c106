//! What `--help` and `--version` print.

use std::fmt::Write;

use super::error::ConfigExit;
use super::table::{GROUPS, Support};
use super::values::Kind;
use crate::release::ETCD_VERSION;

/// Printed after every complaint about a flag.
pub(super) const USAGE: &str = "\
Usage:

  quorate [flags]
    Start a member. Without flags: a cluster of one on http://localhost:2379.

  quorate --version
    Print the versions.

  quorate -h | --help
    List all flags. Each can also be set by a variable: --data-dir is ETCD_DATA_DIR.
";

/// The end of a run that asked for help.
pub(super) fn exit() -> ConfigExit {
    let mut text = format!("{USAGE}\nThe flags are etcd's. A flag marked * has no effect yet.\n");
    for (title, flags) in GROUPS {
        let listed: Vec<_> = flags.iter().filter(|flag| !flag.help.is_empty()).collect();
        if listed.is_empty() {
            continue;
        }
        write!(text, "\n{title}:\n").expect("a String takes every write");
        for flag in listed {
            let mark = if flag.support == Support::Later { "*" } else { "" };
            let default = match flag.kind {
                Kind::FeatureGates | Kind::Text if flag.default.is_empty() => String::new(),
                _ => format!(" '{}'", flag.default),
            };
            writeln!(text, "  --{}{default}{mark}\n    {}", flag.name, flag.help)
                .expect("a String takes every write");
        }
    }
    text.push_str("\nTLS, discovery and --config-file are not built yet and refused.\n");
    ConfigExit::printed(text)
}

/// The lines of `--version`. The first four have etcd's keys, because tools look for
/// `etcd Version:` at the start of the first line or of any line.
pub(super) fn version() -> ConfigExit {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    ConfigExit::printed(format!(
        "etcd Version: {ETCD_VERSION}\n\
         Git SHA: {}\n\
         Go Version: none (Rust {})\n\
         Go OS/Arch: {}/{arch}\n\
         Quorate Version: {}\n",
        option_env!("QUORATE_GIT_SHA").unwrap_or("not recorded"),
        env!("CARGO_PKG_RUST_VERSION"),
        std::env::consts::OS,
        env!("CARGO_PKG_VERSION"),
    ))
}
