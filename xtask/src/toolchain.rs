//! Finding what compiles the probes: a rustc with the source of `core`, and `bpf-linker`.
//!
//! Standard library only, because `shmtrace/build.rs` includes this file too: both must agree on what "there" means.

use std::{
    env, fmt, fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// Names the rustup toolchain to use, before any other is tried.
pub(crate) const TOOLCHAIN_ENV: &str = "SHMTRACE_BPF_TOOLCHAIN";

/// The nightly that `cargo xtask setup` installs; its LLVM is 22.
pub(crate) const NIGHTLY: &str = "nightly-2026-05-20";

/// The rustup toolchains that are tried: one linked by hand to a distribution's compiler, then rustup's own.
pub(crate) const TOOLCHAINS: [&str; 3] = ["bpf", NIGHTLY, "nightly"];

/// The oldest compiler that takes aya-ebpf and this repository: 1.88.
const OLDEST_MINOR: u32 = 88;

/// What compiles the probes.
#[derive(Debug, Clone)]
pub(crate) struct Toolchain {
    /// The compiler.
    pub(crate) compiler: Compiler,
    /// `rustc --version` of it.
    pub(crate) version: String,
    /// The linker.
    pub(crate) linker: PathBuf,
}

/// A rustc and a cargo that go together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// `rustup run NAME ...`
    Rustup(String),
    /// What `PATH` has, on a machine without rustup.
    Path,
}

/// What is not there.
#[derive(Debug, Clone)]
pub(crate) struct Missing {
    /// No compiler among those tried has the source of `core`; each with what is wrong with it.
    pub(crate) compiler: Option<Vec<String>>,
    /// No `bpf-linker` on `PATH` or in cargo's bin folder.
    pub(crate) linker: bool,
}

impl Toolchain {
    /// Looks for a compiler and the linker.
    pub(crate) fn find() -> Result<Self, Missing> {
        let linker = find_linker();
        match (find_compiler(), linker) {
            (Ok((compiler, version)), Some(linker)) => Ok(Self {
                compiler,
                version,
                linker,
            }),
            (compiler, linker) => Err(Missing {
                compiler: compiler.err(),
                linker: linker.is_none(),
            }),
        }
    }
}

impl Compiler {
    /// A command that runs `program` of this toolchain.
    pub(crate) fn command(&self, program: &str) -> Command {
        match self {
            Self::Rustup(name) => {
                let mut command = Command::new("rustup");
                command.args(["run", name, program]);
                command
            }
            Self::Path => Command::new(program),
        }
    }

    /// `rustc --version`, if the compiler is there and has the source of `core`; else what is wrong.
    fn check(&self) -> Result<String, String> {
        let version = first_line(self.command("rustc").arg("--version"))
            .ok_or_else(|| format!("{self}: not installed"))?;
        let minor = version
            .split('.')
            .nth(1)
            .and_then(|minor| minor.parse::<u32>().ok());
        if minor.is_none_or(|minor| minor < OLDEST_MINOR) {
            return Err(format!("{self}: {version} is older than 1.{OLDEST_MINOR}"));
        }
        let sysroot = first_line(self.command("rustc").args(["--print", "sysroot"]))
            .ok_or_else(|| format!("{self}: `rustc --print sysroot` fails"))?;
        if !Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .is_file()
        {
            return Err(format!("{self}: has no rust-src"));
        }
        if first_line(self.command("cargo").arg("--version")).is_none() {
            return Err(format!("{self}: has no cargo"));
        }
        Ok(version)
    }
}

impl fmt::Display for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rustup(name) => write!(f, "rustup toolchain `{name}`"),
            Self::Path => f.write_str("rustc on PATH"),
        }
    }
}

impl fmt::Display for Toolchain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}), {}",
            self.compiler,
            self.version,
            self.linker.display()
        )
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(tried) = &self.compiler {
            write!(
                f,
                "no compiler with the source of core ({})",
                tried.join("; ")
            )?;
            separator = ", and ";
        }
        if self.linker {
            write!(
                f,
                "{separator}no bpf-linker on PATH or in {}",
                cargo_home().join("bin").display()
            )?;
        }
        Ok(())
    }
}

/// The first compiler that will do, and its `rustc --version`; else what is wrong with each that was tried.
pub(crate) fn find_compiler() -> Result<(Compiler, String), Vec<String>> {
    let candidates = if first_line(Command::new("rustup").arg("--version")).is_none() {
        vec![Compiler::Path]
    } else {
        let wanted = env::var(TOOLCHAIN_ENV).ok().filter(|name| !name.is_empty());
        match wanted {
            Some(name) => vec![Compiler::Rustup(name)],
            None => TOOLCHAINS
                .map(|name| Compiler::Rustup(name.to_owned()))
                .to_vec(),
        }
    };
    let mut tried = Vec::new();
    for compiler in candidates {
        match compiler.check() {
            Ok(version) => return Ok((compiler, version)),
            Err(why) => tried.push(why),
        }
    }
    Err(tried)
}

fn find_linker() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain([cargo_home().join("bin")])
        .map(|folder| folder.join("bpf-linker"))
        // One that lost its LLVM to an upgrade is not there for us.
        .find(|linker| {
            fs::metadata(linker).is_ok()
                && first_line(Command::new(linker).arg("--version")).is_some()
        })
}

/// Where cargo installs programs and keeps the registry.
pub(crate) fn cargo_home() -> PathBuf {
    home_of("CARGO_HOME", ".cargo")
}

/// The folder that a variable names, or its default under the home folder.
pub(crate) fn home_of(variable: &str, folder: &str) -> PathBuf {
    match env::var_os(variable) {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(folder),
    }
}

/// The first line that a command prints, if it succeeds.
fn first_line(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output
        .status
        .success()
        .then(|| text.lines().next().unwrap_or_default().to_owned())
}
