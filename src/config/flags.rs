//! From arguments and environment to flag values, by the rules of Go's `flag` package and etcd.
//!
//! `-name` and `--name` are the same; a value follows `=` or is the next argument; a boolean takes a
//! value only after `=`; the last duplicate wins; `--` and the first other word end the flags. After
//! that `ETCD_*` fills what the command line left open. A flag that both give is refused, because
//! one of the two would be silently ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::time::Duration;

use super::table::{self, Flag, Support};
use super::url::Url;
use super::values::{self, Kind, Value};
use super::{ConfigError, ConfigExit, help};
use crate::logging::LogLevel;

/// The values of all flags: given ones, and the table's defaults for the rest.
#[derive(Debug, Default)]
pub(super) struct Values {
    given: BTreeMap<&'static str, Value>,
    warnings: Vec<String>,
}

impl Values {
    /// Reads the arguments after the program's name.
    pub(super) fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, ConfigExit> {
        let mut values = Self::default();
        let mut args = args.into_iter().map(|arg| {
            // A path that is no text would have to be carried through every layer; nobody has one.
            arg.into_string().map_err(|arg| ConfigExit::usage(&format!("{arg:?} is not UTF-8")))
        });
        while let Some(arg) = args.next() {
            let arg = arg?;
            if arg == "--" {
                return match args.next() {
                    Some(word) => Err(ConfigError::NotAFlag(word?).into()),
                    None => Ok(values),
                };
            }
            if arg.len() < 2 || !arg.starts_with('-') {
                return Err(ConfigError::NotAFlag(arg).into());
            }
            values.set_from_arg(&arg, &mut args)?;
        }
        Ok(values)
    }

    /// Handles one argument that starts with a dash, and its value when that is the next argument.
    fn set_from_arg(
        &mut self,
        arg: &str,
        rest: &mut impl Iterator<Item = Result<String, ConfigExit>>,
    ) -> Result<(), ConfigExit> {
        let body = arg.strip_prefix("--").unwrap_or(&arg[1..]);
        if body.is_empty() || body.starts_with(['-', '=']) {
            return Err(ConfigExit::usage(&format!("bad flag syntax: {arg}")));
        }
        let (name, mut text) = match body.split_once('=') {
            Some((name, text)) => (name, Some(text.to_owned())),
            None => (body, None),
        };
        let Some(flag) = table::find(name) else {
            if matches!(name, "h" | "help") {
                return Err(help::exit());
            }
            return Err(ConfigExit::usage(&format!("flag provided but not defined: -{name}")));
        };
        if text.is_none() && flag.kind.stands_alone() {
            text = Some("true".to_owned());
        }
        let text = match text {
            Some(text) => text,
            None => rest
                .next()
                .ok_or_else(|| ConfigExit::usage(&format!("flag needs an argument: -{name}")))??,
        };
        let value = values::parse(flag.kind, &text).map_err(|error| {
            ConfigExit::usage(&if flag.kind == Kind::Bool {
                format!("invalid boolean value {text:?} for -{name}: {error}")
            } else {
                format!("invalid value {text:?} for flag -{name}: {error}")
            })
        })?;
        self.given.insert(flag.name, value);
        Ok(())
    }

    /// Fills what the command line left open from the variables that start with `ETCD_`.
    pub(super) fn fill_from_env(
        &mut self,
        env: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(), ConfigError> {
        let env: BTreeMap<String, String> = env
            .into_iter()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(key, _)| key.starts_with("ETCD_"))
            .collect();
        let flags: BTreeMap<String, &Flag> = table::all().map(|f| (env_name(f.name), f)).collect();
        if let Some(key) =
            env.keys().find(|key| flags.get(*key).is_some_and(|f| self.given.contains_key(f.name)))
        {
            return Err(ConfigError::ShadowedEnv(key.clone()));
        }
        for (key, text) in env {
            match flags.get(&key) {
                // As in etcd: asking for the version is for the command line only.
                Some(flag) if flag.name == "version" => {
                    self.warnings.push(format!("cannot set special environment variable {key}"));
                }
                Some(flag) if !text.is_empty() => {
                    let value = values::parse(flag.kind, &text).map_err(|error| {
                        ConfigError::EnvValue { key, text, reason: error.to_string() }
                    })?;
                    self.given.insert(flag.name, value);
                }
                // As in etcd: an empty variable is the same as none.
                Some(_) => {}
                None => self.warnings.push(format!("unrecognized environment variable {key}")),
            }
        }
        Ok(())
    }

    /// Says what is to be said about flags that do not work, and refuses the unsafe ones.
    pub(super) fn settle(&mut self) -> Result<(), ConfigError> {
        let names: Vec<&'static str> = self.given.keys().copied().collect();
        for name in names {
            self.settle_old_name(name);
        }
        let given: BTreeSet<&'static str> = self.given.keys().copied().collect();
        for flag in given.iter().filter_map(|name| table::find(name)) {
            let name = flag.name;
            match flag.support {
                Support::Built | Support::Ignored | Support::OldNameOf(_) => {}
                Support::Later => {
                    self.warnings.push(format!("--{name} is not built yet and has no effect"));
                }
                Support::Inert(reason) => {
                    self.warnings.push(format!("--{name} has no effect: {reason}"));
                }
                Support::Refused(reason) => {
                    if self.given.get(name) != Some(&default_of(flag)) {
                        return Err(ConfigError::Unsupported { name, reason });
                    }
                }
            }
        }
        Ok(())
    }

    /// Moves the value of an older name to the flag's present one, unless that is given too.
    fn settle_old_name(&mut self, name: &'static str) {
        let Some(Support::OldNameOf(present)) = table::find(name).map(|f| f.support) else {
            return;
        };
        let Some(value) = self.given.remove(name) else { return };
        if self.is_given(present) {
            self.warnings.push(format!("--{name} is ignored because --{present} is set"));
            return;
        }
        self.given.insert(present, value);
        self.warnings.push(format!("--{name} is the old name of --{present}"));
    }

    pub(super) fn into_warnings(self) -> Vec<String> {
        self.warnings
    }

    pub(super) fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    pub(super) fn text(&self, name: &str) -> String {
        match self.get(name) {
            Value::Text(text) => text,
            other => mistyped(name, &other),
        }
    }

    pub(super) fn bool(&self, name: &str) -> bool {
        match self.get(name) {
            Value::Bool(yes) => yes,
            other => mistyped(name, &other),
        }
    }

    pub(super) fn uint(&self, name: &str) -> u64 {
        match self.get(name) {
            Value::Uint(number) => number,
            other => mistyped(name, &other),
        }
    }

    pub(super) fn int(&self, name: &str) -> i64 {
        match self.get(name) {
            Value::Int(number) => number,
            other => mistyped(name, &other),
        }
    }

    pub(super) fn duration(&self, name: &str) -> Duration {
        match self.get(name) {
            Value::Duration(duration) => duration,
            other => mistyped(name, &other),
        }
    }

    pub(super) fn level(&self, name: &str) -> LogLevel {
        match self.get(name) {
            Value::Level(level) => level,
            other => mistyped(name, &other),
        }
    }

    /// As in etcd: an empty list leaves the default in place.
    pub(super) fn urls(&self, name: &str) -> Vec<Url> {
        let given = self.given.get(name).filter(|v| **v != Value::Urls(Vec::new()));
        match given.cloned().unwrap_or_else(|| default_of(known(name))) {
            Value::Urls(urls) => urls,
            other => mistyped(name, &other),
        }
    }

    fn get(&self, name: &str) -> Value {
        self.given.get(name).cloned().unwrap_or_else(|| default_of(known(name)))
    }
}

/// The variable that stands for a flag.
fn env_name(flag: &str) -> String {
    format!("ETCD_{}", flag.to_ascii_uppercase().replace('-', "_"))
}

fn known(name: &str) -> &'static Flag {
    table::find(name).expect("only flags of the table are asked for")
}

fn default_of(flag: &Flag) -> Value {
    values::parse(flag.kind, flag.default).expect("a test reads every default of the table")
}

fn mistyped(name: &str, value: &Value) -> ! {
    panic!("--{name} holds {value:?}: the table and its reader disagree")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_reads_as_its_kind() {
        for flag in table::all() {
            assert!(values::parse(flag.kind, flag.default).is_ok(), "{flag:?}");
        }
    }

    #[test]
    fn names_are_unique_and_old_names_point_at_flags_of_the_same_kind() {
        let mut seen = BTreeSet::new();
        for flag in table::all() {
            assert!(seen.insert(flag.name), "--{} is there twice", flag.name);
            if let Support::OldNameOf(present) = flag.support {
                assert_eq!(known(present).kind, flag.kind, "--{}", flag.name);
            }
        }
    }
}
