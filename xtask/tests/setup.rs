//! `cargo xtask setup` where nothing is there and nothing can be installed.

use std::process::Command;

fn xtask(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(arguments).env_clear();
    command
}

#[test]
fn without_tools_every_missing_piece_is_named() {
    let home = std::env::temp_dir().join(format!("xtask-setup-{}", std::process::id()));
    std::fs::create_dir_all(&home).expect("a temporary folder can be made");
    let output = xtask(&["setup"])
        .env("HOME", &home)
        .env("PATH", home.join("bin"))
        .output();
    std::fs::remove_dir_all(&home).expect("it can be removed");
    let output = output.expect("xtask starts");

    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).expect("it speaks UTF-8");
    for named in [
        "rustup toolchain install nightly-",
        "rust-src",
        "apt-get install rustc-web",
        "cargo install bpf-linker",
    ] {
        assert!(said.contains(named), "`{named}` is not named in:\n{said}");
    }
}

#[test]
fn a_wrong_command_line_is_refused_before_anything_is_done() {
    let output = xtask(&["bench", "--pairs", "many"])
        .output()
        .expect("xtask starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
}
