//! Debian's cloud kernels: which are tried, what each offers, and where they come from.
//!
//! Fetched by an apt of our own, with its own sources and state, so that this machine's package lists stay as they are.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// A kernel and what is expected of it.
pub(crate) struct Kernel {
    /// Which machine it is, in the report and for its files.
    pub(crate) name: &'static str,
    /// How its release begins.
    pub(crate) version: &'static str,
    /// The suite that has it as `linux-image-cloud-amd64`.
    suite: &'static str,
    /// Whether it gets its module for looking at Unix sockets.
    pub(crate) unix_diag: bool,
    /// Whether its sockets have tracepoints (from 6.3): signals must be seen there, else at every system call.
    pub(crate) at_sockets: bool,
    /// Whether systemd is its first process.
    pub(crate) systemd: bool,
    /// The checks of `shmtrace doctor` that it does not answer with yes; all others it must.
    pub(crate) limited: &'static [&'static str],
}

impl Kernel {
    /// Whether it preempts programs at tracepoints (from 7.0): some of their runs are left out then, and said to be lost.
    /// Emulated, where a program takes as long as a hundred do otherwise, that happens every now and then.
    pub(crate) fn preempts(&self) -> bool {
        self.version.starts_with("7.")
    }
}

/// The oldest that is promised, the stable ones since, the newest that Debian packages, one that lacks something, and one
/// whose cgroups are systemd's.
pub(crate) const KERNELS: [Kernel; 6] = [
    Kernel {
        name: "5.10",
        version: "5.10",
        suite: "bullseye-security",
        unix_diag: true,
        at_sockets: false,
        systemd: false,
        limited: &[],
    },
    Kernel {
        name: "6.1",
        version: "6.1",
        suite: "bookworm",
        unix_diag: true,
        at_sockets: false,
        systemd: false,
        limited: &[],
    },
    Kernel {
        name: "6.12",
        version: "6.12",
        suite: "trixie",
        unix_diag: true,
        at_sockets: true,
        systemd: false,
        limited: &[],
    },
    Kernel {
        name: "7",
        version: "7.",
        suite: "trixie-backports",
        unix_diag: true,
        at_sockets: true,
        systemd: false,
        limited: &[],
    },
    Kernel {
        name: "6.1-without-unix_diag",
        version: "6.1",
        suite: "bookworm",
        unix_diag: false,
        at_sockets: false,
        systemd: false,
        limited: &["doorbell queues"],
    },
    Kernel {
        name: "6.12-systemd",
        version: "6.12",
        suite: "trixie",
        unix_diag: true,
        at_sockets: true,
        systemd: true,
        limited: &[],
    },
];

const SOURCES: [(&str, &str); 5] = [
    ("debian", "bullseye"),
    ("debian-security", "bullseye-security"),
    ("debian", "bookworm"),
    ("debian", "trixie"),
    ("debian", "trixie-backports"),
];
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR_ENV: &str = "SHMTRACE_DEBIAN_MIRROR";
const MIRROR: &str = "http://deb.debian.org";

/// A kernel that is on this machine.
pub(crate) struct Unpacked {
    /// What QEMU boots.
    pub(crate) image: PathBuf,
    /// The modules to load, decompressed, in order.
    pub(crate) modules: Vec<PathBuf>,
}

/// An apt with a state of its own.
pub(crate) struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Sets it up and fetches the package lists, unless it has them already.
    pub(crate) fn new(folder: &Path) -> Result<Self> {
        let apt = Self {
            folder: folder.to_owned(),
        };
        for part in ["state/lists/partial", "cache/archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part)
                .with_context(|| format!("cannot create {}", part.display()))?;
        }
        let mirror = std::env::var(MIRROR_ENV).unwrap_or_else(|_| MIRROR.to_owned());
        let sources: Vec<String> = SOURCES
            .iter()
            .map(|(archive, suite)| {
                format!("deb [arch=amd64 signed-by={KEYRING}] {mirror}/{archive} {suite} main\n")
            })
            .collect();
        apt.write("sources.list", &sources.concat())?;
        apt.write("state/status", "")?;
        let base = folder.display();
        apt.write(
            "apt.conf",
            &format!(
                "Dir::State \"{base}/state\";\nDir::State::status \"{base}/state/status\";\nDir::Cache \"{base}/cache\";\n\
                 Dir::Etc::sourcelist \"{base}/sources.list\";\nDir::Etc::sourceparts \"{base}/none\";\n\
                 APT::Architecture \"amd64\";\nAPT::Architectures {{ \"amd64\"; }};\nAPT::Sandbox::User \"root\";\n\
                 Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n"
            ),
        )?;
        if KERNELS.iter().any(|kernel| apt.package_of(kernel).is_err()) {
            process::run(
                apt.command("apt-get", &["update", "--quiet"])
                    .stdout(std::process::Stdio::null()),
            )?;
        }
        Ok(apt)
    }

    /// Downloads and unpacks a kernel, unless that was done before.
    pub(crate) fn fetch(&self, kernel: &Kernel) -> Result<Unpacked> {
        let package = self.package_of(kernel)?;
        let root = self.folder.join(&package);
        if !root.join("complete").exists() {
            fs::create_dir_all(&root)
                .with_context(|| format!("cannot create {}", root.display()))?;
            let packages: Vec<String> = self.with_parts(&package)?.into_iter().collect();
            let names: Vec<&str> = packages.iter().map(String::as_str).collect();
            process::run(
                self.command("apt-get", &["download", "--quiet"])
                    .args(names)
                    .current_dir(&root),
            )?;
            for archive in files(&root, &|file| {
                file.extension().is_some_and(|end| end == "deb")
            })? {
                process::run(
                    process::command("dpkg-deb", ["--extract"])
                        .arg(&archive)
                        .arg(&root),
                )?;
                fs::remove_file(&archive)
                    .with_context(|| format!("cannot remove {}", archive.display()))?;
            }
            fs::write(root.join("complete"), "")?;
        }
        let image = files(&root, &|file| named(file, "vmlinuz"))?
            .pop()
            .with_context(|| format!("{package} has no kernel"))?;
        let modules = files(&root, &|file| named(file, "unix_diag.ko"))?;
        let modules = modules
            .into_iter()
            .filter(|module| module.extension().is_none_or(|end| end != "raw"));
        Ok(Unpacked {
            image,
            modules: modules
                .map(|module| decompressed(&module))
                .collect::<Result<_>>()?,
        })
    }

    /// `linux-image-cloud-amd64` of the suite stands for a package that has the version in its name.
    fn package_of(&self, kernel: &Kernel) -> Result<String> {
        let suite = kernel.suite;
        let shown = process::output(&mut self.command(
            "apt-cache",
            &["show", &format!("linux-image-cloud-amd64/{suite}")],
        ));
        shown
            .and_then(|shown| {
                versioned(&shown, "Depends: ")
                    .into_iter()
                    .find(|name| name.starts_with("linux-image-"))
            })
            .filter(|name| name.starts_with(&format!("linux-image-{}", kernel.version)))
            .with_context(|| format!("{suite} has no cloud kernel {}", kernel.version))
    }

    /// Newer kernels come in parts.
    fn with_parts(&self, package: &str) -> Result<BTreeSet<String>> {
        let Some(shown) = process::output(&mut self.command("apt-cache", &["show", package]))
        else {
            bail!("apt-cache does not know {package}");
        };
        let mut packages = BTreeSet::from([package.to_owned()]);
        packages.extend(versioned(&shown, "Depends: "));
        Ok(packages)
    }

    fn command(&self, program: &str, args: &[&str]) -> std::process::Command {
        let mut command = process::command(program, args.iter().copied());
        command.env("APT_CONFIG", self.folder.join("apt.conf"));
        command
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let file = self.folder.join(name);
        fs::write(&file, content).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// The packages of a control field that are a kernel's own: `linux-...-cloud-amd64` with a version inside.
fn versioned(control: &str, field: &str) -> Vec<String> {
    let dependencies = control
        .lines()
        .find_map(|line| line.strip_prefix(field))
        .unwrap_or_default();
    dependencies
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .filter(|name| {
            let mut words = name.split('-');
            words.next() == Some("linux")
                && name.ends_with("-cloud-amd64")
                && words.nth(1).is_some_and(|version| {
                    version.starts_with(|first: char| first.is_ascii_digit())
                })
        })
        .map(str::to_owned)
        .collect()
}

/// All files below a folder that will do, sorted.
fn files(folder: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
        {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if entry.file_type()?.is_file() && wanted(&entry.path()) {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

fn named(file: &Path, start: &str) -> bool {
    file.file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with(start))
}

/// The module itself, for kernels that cannot decompress it.
fn decompressed(module: &Path) -> Result<PathBuf> {
    if module.extension().is_none_or(|end| end != "xz") {
        return Ok(module.to_owned());
    }
    let plain = module.with_extension("raw");
    if !plain.exists() {
        let content = process::command("xz", ["--decompress", "--stdout"])
            .arg(module)
            .output()
            .context("cannot start xz")?;
        if !content.status.success() {
            bail!("cannot decompress {}", module.display());
        }
        fs::write(&plain, content.stdout)
            .with_context(|| format!("cannot write {}", plain.display()))?;
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::versioned;

    #[test]
    fn parts_of_a_kernel() {
        let control = "Package: linux-image-7.3.4+deb13-cloud-amd64\n\
                       Depends: dracut | linux-initramfs-tool, linux-base-cloud-amd64, linux-base-7.3.4+deb13-cloud-amd64 (= 7.3), \
                       linux-binary-7.3.4+deb13-cloud-amd64 (= 7.3)\n";
        assert_eq!(
            versioned(control, "Depends: "),
            [
                "linux-base-7.3.4+deb13-cloud-amd64",
                "linux-binary-7.3.4+deb13-cloud-amd64"
            ]
        );
        assert_eq!(
            versioned(
                "Depends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)",
                "Depends: "
            ),
            ["linux-image-6.1.0-50-cloud-amd64"]
        );
        assert!(versioned("Depends: kmod, linux-base (>= 4.3~)", "Depends: ").is_empty());
    }
}
