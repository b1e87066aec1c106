//! Programs that `watch` and `lock` run, and how Go words their failures.

use std::{
    ffi::OsString,
    io,
    os::unix::ffi::OsStrExt,
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
};

use tokio::process::Command;

use crate::{error::Error, go};

/// Runs a program on our standard output and error, without standard input.
///
/// `variables` come on top of our environment.
pub(crate) async fn run(words: &[OsString], variables: &[(&str, OsString)]) -> Result<(), Error> {
    let Some((name, arguments)) = words.split_first() else { return Ok(()) };
    let mut command = Command::new(name);
    command.args(arguments).stdin(Stdio::null());
    command.envs(variables.iter().map(|(name, value)| (name, value)));
    match command.status().await {
        Ok(status) if status.success() => Ok(()),
        // As in etcdctl: 255 stands for a signal.
        Ok(status) => {
            let code = status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(255);
            Err(Error::Program { text: status_text(status), code })
        }
        Err(error) => Err(Error::Program { text: start_text(name, &error), code: 1 }),
    }
}

fn status_text(status: ExitStatus) -> String {
    let Some(number) = status.signal() else {
        return format!("exit status {}", status.code().unwrap_or_default());
    };
    let dumped = if status.core_dumped() { " (core dumped)" } else { "" };
    let name = match number {
        1 => "hangup",
        2 => "interrupt",
        3 => "quit",
        4 => "illegal instruction",
        5 => "trace/breakpoint trap",
        6 => "aborted",
        7 => "bus error",
        8 => "floating point exception",
        9 => "killed",
        10 => "user defined signal 1",
        11 => "segmentation fault",
        12 => "user defined signal 2",
        13 => "broken pipe",
        14 => "alarm clock",
        15 => "terminated",
        _ => return format!("signal: signal {number}{dumped}"),
    };
    format!("signal: {name}{dumped}")
}

fn start_text(name: &OsString, error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::NotFound && !name.as_bytes().contains(&b'/') {
        let name = go::quote(name.as_bytes());
        return format!("exec: {name}: executable file not found in $PATH");
    }
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default().to_lowercase();
    format!("fork/exec {}: {text}", name.display())
}

/// Words in Go's `%q`, as a list.
pub(crate) fn quoted(words: &[OsString]) -> String {
    let words: Vec<String> = words.iter().map(|word| go::quote(word.as_bytes())).collect();
    format!("[{}]", words.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(words: &[&str]) -> Result<(), (String, u8)> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(run(&words, &[("QUORATECTL_TEST", "1".into())]));
        result.map_err(|error| (error.to_string(), error.exit_code()))
    }

    #[test]
    fn failures_are_worded_as_in_go() {
        assert_eq!(outcome(&["sh", "-c", "exit $((QUORATECTL_TEST - 1))"]), Ok(()));
        let failure = |text: &str, code| Err((text.to_owned(), code));
        assert_eq!(outcome(&["sh", "-c", "exit 7"]), failure("exit status 7", 7));
        assert_eq!(outcome(&["sh", "-c", "kill -9 $$"]), failure("signal: killed", 255));
        let missing = r#"exec: "no-such-program": executable file not found in $PATH"#;
        assert_eq!(outcome(&["no-such-program"]), failure(missing, 1));
        let missing = "fork/exec /no/such: no such file or directory";
        assert_eq!(outcome(&["/no/such"]), failure(missing, 1));
    }
}
