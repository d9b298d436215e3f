//! Asking for a key on a terminal, without showing what is typed.
//!
//! The terminal gives each key as it is pressed, Ctrl-C included, so that it never stays without echo behind a run that
//! was interrupted at the question; only a killed one leaves it so (`stty sane`).

use ckpt::error::{Error, Kind, Result};
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use std::io::{self, Write};
use zeroize::Zeroizing;

/// The longest key that can be typed, in bytes.
const TYPED_BYTES_MAX: usize = 4096;

/// Shows `question` on standard error and reads a line from standard input; none at its end.
pub fn ask(question: &str) -> Result<Option<Zeroizing<Vec<u8>>>> {
    let failure = |error| Error::io("asking for the key", error);
    let quiet = Quiet::begin().map_err(failure)?;
    io::stderr().write_all(question.as_bytes()).map_err(failure)?;
    let typed = read_line();
    drop(quiet);
    // The line end that was typed has not been shown either.
    io::stderr().write_all(b"\n").map_err(failure)?;
    typed
}

/// The terminal without echo, until it is dropped.
struct Quiet {
    before: Termios,
}

impl Quiet {
    fn begin() -> io::Result<Quiet> {
        let before = termios::tcgetattr(rustix::stdio::stdin())?;
        let mut modes = before.clone();
        modes.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        // What was typed ahead is thrown away: it was shown.
        termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Flush, &modes)?;
        Ok(Quiet { before })
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        // If it cannot be set back, nothing else can be done about it.
        let _ = termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Drain, &self.before);
    }
}

fn read_line() -> Result<Option<Zeroizing<Vec<u8>>>> {
    let mut typed = Zeroizing::new(Vec::with_capacity(TYPED_BYTES_MAX));
    loop {
        let mut byte = [0u8; 1];
        match rustix::io::read(rustix::stdio::stdin(), &mut byte) {
            Ok(0) => return Ok(None),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(Error::io("asking for the key", errno.into())),
        }
        match byte[0] {
            b'\r' | b'\n' => return Ok(Some(typed)),
            // Ctrl-C, Ctrl-\
            0x03 | 0x1c => return Err(Error::new(Kind::Interrupted, "interrupted at the question for the key")),
            // Ctrl-D
            0x04 if typed.is_empty() => return Ok(None),
            // Ctrl-U
            0x15 => typed.clear(),
            // Backspace: a whole character.
            0x08 | 0x7f => while typed.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            control if control < 0x20 => {}
            _ if typed.len() == TYPED_BYTES_MAX => {
                return Err(Error::new(Kind::Usage, format!("more than {TYPED_BYTES_MAX} bytes were typed"))
                    .with_hint("put a key that long into a file"));
            }
            byte => typed.push(byte),
        }
    }
}
