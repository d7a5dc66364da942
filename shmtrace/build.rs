//! Compiles the probes and leaves their objects as `$OUT_DIR/shmtrace`, `$OUT_DIR/profile` and `$OUT_DIR/floor`.
//!
//! Without a toolchain for them the object is empty and `cfg(shmtrace_no_probes)` is set, so that checks and the tests of
//! everything else still work; `SHMTRACE_REQUIRE_PROBES=1` makes that an error. Probes that do not compile are always one.

#[path = "../xtask/src/toolchain.rs"]
mod toolchain;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, Result, bail};
use aya_build::Package;
use toolchain::{Compiler, Toolchain};

const REQUIRE: &str = "SHMTRACE_REQUIRE_PROBES";
/// aya-build's own switch.
const SKIP: &str = "AYA_BUILD_SKIP";

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<()> {
    println!("cargo::rustc-check-cfg=cfg(shmtrace_no_probes)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=../xtask/src/toolchain.rs");
    println!("cargo::rerun-if-env-changed={}", toolchain::TOOLCHAIN_ENV);
    println!("cargo::rerun-if-env-changed={SKIP}");

    if env::var_os(SKIP).is_some_and(|skip| skip == "1" || skip.eq_ignore_ascii_case("true")) {
        return leave_stub(&format!("{SKIP} is set"));
    }
    match Toolchain::find() {
        Ok(toolchain) => compile(&toolchain),
        Err(missing) => {
            // Look again when something is installed.
            println!(
                "cargo::rerun-if-changed={}",
                toolchain::cargo_home().join("bin").display()
            );
            println!(
                "cargo::rerun-if-changed={}",
                toolchain::home_of("RUSTUP_HOME", ".rustup")
                    .join("toolchains")
                    .display()
            );
            leave_stub(&missing.to_string())
        }
    }
}

fn compile(toolchain: &Toolchain) -> Result<()> {
    println!("cargo::rerun-if-changed={}", toolchain.linker.display());
    for input in [
        "shmtrace-ebpf/Cargo.toml",
        "shmtrace-common/Cargo.toml",
        "shmtrace-common/src",
    ] {
        println!("cargo::rerun-if-changed=../{input}");
    }
    prepare_environment(toolchain)?;

    let package = Package {
        name: "shmtrace-ebpf",
        root_dir: "../shmtrace-ebpf/src",
        ..Package::default()
    };
    let compiler = match &toolchain.compiler {
        Compiler::Rustup(name) => aya_build::Toolchain::Custom(name),
        // Without rustup aya-build takes what PATH has, whatever this says.
        Compiler::Path => aya_build::Toolchain::Nightly,
    };
    aya_build::build_ebpf([package], compiler).with_context(|| {
        format!(
            "cannot compile the probes with {toolchain}; `cargo xtask setup` checks the toolchain, \
             and {SKIP}=1 leaves the probes out"
        )
    })
}

/// Makes the cargo that aya-build starts find the probes' crate, the linker and what is already compiled.
fn prepare_environment(toolchain: &Toolchain) -> Result<()> {
    let manifest = variable("CARGO_MANIFEST_DIR")?;
    let probes = Path::new(&manifest).join("../shmtrace-ebpf");
    // The probes are a workspace of their own, and aya-build runs cargo in the current folder.
    env::set_current_dir(&probes).with_context(|| format!("cannot enter {}", probes.display()))?;

    let linker_folder = toolchain.linker.parent().map(PathBuf::from);
    let inherited = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(
        linker_folder
            .into_iter()
            .chain(env::split_paths(&inherited)),
    )
    .context("the folder of bpf-linker has a colon in its name")?;

    // OUT_DIR is TARGET/PROFILE/build/PACKAGE/out: share `core` and the dependencies between profiles.
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    let shared = out_dir
        .ancestors()
        .nth(4)
        .unwrap_or(&out_dir)
        .join("probes");

    // SAFETY: nothing has started a thread, so nobody else can be reading the environment.
    unsafe {
        env::set_var("PATH", path);
        env::set_var("CARGO_BUILD_BUILD_DIR", shared);
        // For `-Z build-std`.
        if !toolchain.version.contains("nightly") {
            env::set_var("RUSTC_BOOTSTRAP", "1");
        }
    }
    Ok(())
}

fn variable(name: &str) -> Result<OsString> {
    env::var_os(name)
        .with_context(|| format!("{name} is not set: this is a build script, run by cargo"))
}

fn leave_stub(why: &str) -> Result<()> {
    println!("cargo::rerun-if-env-changed={REQUIRE}");
    if env::var_os(REQUIRE).is_some_and(|require| !require.is_empty() && require != "0") {
        bail!(
            "the probes cannot be compiled: {why}; run `cargo xtask setup`, which installs what is missing or names it"
        );
    }
    println!(
        "cargo::warning=shmtrace is built without probes: {why}; `cargo xtask setup` installs what is missing or names it"
    );
    println!("cargo::rustc-cfg=shmtrace_no_probes");
    for object in ["shmtrace", "profile", "floor"] {
        let object = PathBuf::from(variable("OUT_DIR")?).join(object);
        fs::write(&object, b"").with_context(|| format!("cannot write {}", object.display()))?;
    }
    Ok(())
}
