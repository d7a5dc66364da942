//! `shmtrace`: see the library crate for what it does and `--help` for how it is used.

use std::process::ExitCode;

use shmtrace::{
    canary,
    cli::Cli,
    exit::{self, Exit},
    rights,
};

fn main() -> ExitCode {
    if let Some(code) = rights::as_helper().or_else(canary::as_canary) {
        return code;
    }
    let cli = Cli::from_args();
    cli.init_diagnostics();
    match cli.run() {
        Ok(code) => code.into(),
        // Like every Unix filter: a reader that has seen enough (`shmtrace ... | head`) is no error.
        Err(error) if exit::is_broken_pipe(&error) => Exit::Clean.into(),
        Err(error) => {
            anstream::eprintln!("shmtrace: {error:#}");
            exit::code_of(&error).into()
        }
    }
}
