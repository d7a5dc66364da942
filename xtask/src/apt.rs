//! Debian packages, where there are any.

use anyhow::{Result, bail};

use crate::{process, test::is_root};

/// Installs the packages; quick if they are there.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if packages.iter().all(|package| is_installed(package)) {
        return Ok(());
    }
    let named = packages.join(" ");
    if !process::succeeds(&mut process::command("apt-get", ["--version"])) {
        bail!("no apt-get here to install {named}");
    }
    let sudo: &[&str] = if is_root() {
        &[]
    } else if process::succeeds(&mut process::command("sudo", ["--non-interactive", "true"])) {
        &["sudo", "--non-interactive"]
    } else {
        bail!("installing {named} takes root: `sudo apt-get install {named}`");
    };
    if !is_known(packages) {
        process::run(&mut elevated(sudo, &["apt-get", "update", "--quiet"]))?;
        if !is_known(packages) {
            bail!("this distribution has no {named}");
        }
    }
    let install = [
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "install",
        "--yes",
        "--quiet",
    ];
    let options = [
        "--no-install-recommends",
        "--option",
        "DPkg::Lock::Timeout=300",
    ];
    process::run(elevated(sudo, &install).args(options).args(packages))
}

fn elevated(sudo: &[&str], words: &[&str]) -> std::process::Command {
    let mut words = sudo.iter().chain(words).copied();
    process::command(words.next().unwrap_or("false"), words)
}

fn is_installed(package: &str) -> bool {
    let status = process::command(
        "dpkg-query",
        ["--show", "--showformat", "${Status}", package],
    );
    process::output(&mut { status }).is_some_and(|status| status.ends_with(" installed"))
}

fn is_known(packages: &[&str]) -> bool {
    packages.iter().all(|package| {
        process::output(&mut process::command("apt-cache", ["policy", package])).is_some_and(
            |policy| policy.contains("Candidate:") && !policy.contains("Candidate: (none)"),
        )
    })
}
