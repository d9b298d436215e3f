//! The `ckpt` program: everything is in [`cli`], the library does the work.

mod cli;

use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    ExitCode::from(cli::run(&arguments))
}
