//! `shmtrace`: see the library crate for what it does and `--help` for how it is used.

use std::process::ExitCode;

use clap::Parser as _;
use shmtrace::{cli::Cli, exit};

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.init_diagnostics();
    match cli.run() {
        Ok(code) => code.into(),
        Err(error) => {
            anstream::eprintln!("shmtrace: {error:#}");
            exit::code_of(&error).into()
        }
    }
}
