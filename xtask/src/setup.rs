//! `cargo xtask setup`: what compiles the probes is found, or installed, or named.
//!
//! Two things are needed, each to be had in more than one way: a rustc with the source of `core` (rustup, or Debian's
//! packages), and `bpf-linker` with an LLVM at least as new as that rustc's (compiled against a packaged LLVM, or the
//! project's own binary). Versions are fixed, so that a new clone gets what was tried.

use std::{env, fs, path::Path, process::Command};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    apt, process,
    toolchain::{Missing, NIGHTLY, Toolchain, cargo_home, find_compiler},
};

/// What Debian 12 has: the compiler that its browser is built with.
const DEBIAN_COMPILER: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
const LINKER_VERSION: &str = "0.13.0";
/// The LLVM versions that this bpf-linker can be compiled against; any reads the output of an older rustc.
const LLVM: [u32; 3] = [21, 22, 23];

/// Finds or installs the toolchain of the probes, and says which it is.
pub(crate) fn run() -> Result<Toolchain> {
    let missing = match Toolchain::find() {
        Ok(toolchain) => return Ok(say(toolchain)),
        Err(missing) => missing,
    };
    eprintln!("probes: {missing}");
    if let Err(error) = install(&missing) {
        bail!("{error:#}\n\n{}", remedy(&missing));
    }
    match Toolchain::find() {
        Ok(toolchain) => Ok(say(toolchain)),
        Err(missing) => bail!(
            "{missing}, although it was just installed\n\n{}",
            remedy(&missing)
        ),
    }
}

fn say(toolchain: Toolchain) -> Toolchain {
    eprintln!("probes: compiled by {toolchain}");
    toolchain
}

fn install(missing: &Missing) -> Result<()> {
    if missing.compiler.is_some() {
        install_compiler()?;
    }
    if missing.linker {
        install_linker()
    } else {
        Ok(())
    }
}

fn install_compiler() -> Result<()> {
    let rustup = process::succeeds(&mut process::command("rustup", ["--version"]));
    if rustup {
        let wanted = [
            "toolchain",
            "install",
            NIGHTLY,
            "--profile",
            "minimal",
            "--component",
            "rust-src",
        ];
        match process::run(process::command("rustup", wanted).arg("--no-self-update")) {
            Ok(()) => return Ok(()),
            Err(error) => eprintln!("{error:#}; trying the distribution's packages"),
        }
    }
    apt::install(&DEBIAN_COMPILER).context("cannot install a compiler for the probes")?;
    if rustup {
        process::run(&mut process::command(
            "rustup",
            ["toolchain", "link", "bpf", "/usr"],
        ))?;
    }
    Ok(())
}

fn install_linker() -> Result<()> {
    let needed = llvm_of_the_compiler()?;
    let usable = || LLVM.into_iter().filter(|version| *version >= needed);
    if let Some(llvm) = usable().find(|llvm| prefix(*llvm).is_some()) {
        return compile_linker(llvm);
    }
    for llvm in usable() {
        let packages = [
            format!("llvm-{llvm}-dev"),
            format!("libpolly-{llvm}-dev"),
            "g++".to_owned(),
        ];
        let packages = packages.each_ref().map(String::as_str);
        match apt::install(&packages) {
            Ok(()) => return compile_linker(llvm),
            Err(error) => eprintln!("{error:#}"),
        }
    }
    eprintln!(
        "no LLVM from {needed} on can be had here; trying the binary that bpf-linker's project publishes"
    );
    download_linker()
}

/// The major version of the LLVM in the compiler of the probes.
fn llvm_of_the_compiler() -> Result<u32> {
    let (compiler, _) =
        find_compiler().map_err(|tried| anyhow!("no compiler: {}", tried.join("; ")))?;
    let verbose = process::output(compiler.command("rustc").arg("-vV")).unwrap_or_default();
    verbose
        .lines()
        .find_map(|line| {
            line.strip_prefix("LLVM version: ")?
                .split('.')
                .next()?
                .parse()
                .ok()
        })
        .with_context(|| format!("{compiler} does not say which LLVM it has"))
}

/// Where an LLVM of this version has its headers and `llvm-config`.
fn prefix(llvm: u32) -> Option<String> {
    let prefix = format!("/usr/lib/llvm-{llvm}");
    let complete = ["bin/llvm-config", "include/llvm-c/Core.h"]
        .iter()
        .all(|file| Path::new(&prefix).join(file).exists());
    complete.then_some(prefix)
}

fn compile_linker(llvm: u32) -> Result<()> {
    let prefix = prefix(llvm)
        .with_context(|| format!("LLVM {llvm} is installed, but not in /usr/lib/llvm-{llvm}"))?;
    let inherited = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(
        [format!("{prefix}/bin").into()]
            .into_iter()
            .chain(env::split_paths(&inherited)),
    )
    .context("PATH cannot be extended")?;
    let feature = format!("llvm-{llvm}");
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args([
        "install",
        "bpf-linker",
        "--version",
        LINKER_VERSION,
        "--locked",
        "--no-default-features",
    ]);
    cargo
        .args(["--features", &feature, "--root"])
        .arg(cargo_home());
    process::run(cargo.env("LLVM_PREFIX", prefix).env("PATH", path))
}

fn download_linker() -> Result<()> {
    let triple = format!("{}-unknown-linux-musl", env::consts::ARCH);
    let archive = format!("bpf-linker-{triple}.tar.zst");
    let url = format!(
        "https://github.com/aya-rs/bpf-linker/releases/download/v{LINKER_VERSION}/{archive}"
    );
    let folder = cargo_home().join("bin");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let file = folder.join(&archive);
    process::run(
        process::command(
            "curl",
            [
                "--fail",
                "--location",
                "--silent",
                "--show-error",
                "--max-time",
                "120",
            ],
        )
        .args(["--retry", "2", "--output"])
        .args([&file])
        .arg(&url),
    )?;
    let unpacked = process::run(
        process::command("tar", ["--extract", "--zstd", "--file"])
            .arg(&file)
            .arg("--directory")
            .arg(&folder),
    );
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
    unpacked
}

/// What a person can do where setup cannot.
fn remedy(missing: &Missing) -> String {
    let mut lines = vec!["to compile the probes, install".to_owned()];
    if missing.compiler.is_some() {
        lines.extend([
            "* a compiler with the source of core, either".to_owned(),
            format!(
                "      rustup toolchain install {NIGHTLY} --profile minimal --component rust-src"
            ),
            "  or, as root on Debian 12 and later,".to_owned(),
            format!("      apt-get install {}", DEBIAN_COMPILER.join(" ")),
            "      rustup toolchain link bpf /usr        (if there is a rustup)".to_owned(),
        ]);
    }
    if missing.linker {
        let release =
            format!("https://github.com/aya-rs/bpf-linker/releases/tag/v{LINKER_VERSION}");
        lines.extend([
            "* bpf-linker, with an LLVM at least as new as the compiler's, either, as root,".to_owned(),
            "      apt-get install llvm-22-dev libpolly-22-dev g++".to_owned(),
            "  and then".to_owned(),
            format!(
                "      PATH=/usr/lib/llvm-22/bin:$PATH LLVM_PREFIX=/usr/lib/llvm-22 cargo install bpf-linker \
                 --version {LINKER_VERSION} --locked --no-default-features --features llvm-22"
            ),
            format!("  or the binary of {release}, into a folder on PATH"),
        ]);
    }
    lines.push(
        "then run `cargo xtask setup` again; everything but the probes compiles without".to_owned(),
    );
    lines.join("\n")
}
