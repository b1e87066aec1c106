//! Asking a person at the terminal.

use std::io::{self, BufRead, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// Asks for a password on standard error and reads a line without showing it.
pub(crate) fn ask_password() -> io::Result<String> {
    let mut prompt = io::stderr().lock();
    prompt.write_all(b"Password: ")?;
    prompt.flush()?;
    let stdin = io::stdin();
    // No terminal, no echo to suppress.
    let shown = tcgetattr(&stdin).ok();
    if let Some(shown) = &shown {
        let mut hidden = shown.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        tcsetattr(&stdin, OptionalActions::Flush, &hidden)?;
    }
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    if let Some(shown) = &shown {
        tcsetattr(&stdin, OptionalActions::Flush, shown)?;
        prompt.write_all(b"\n")?;
    }
    read?;
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(line)
}
