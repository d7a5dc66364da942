//! A root file system for a test machine: programs with their libraries, busybox, kernel modules and the steps to run.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::process;

/// What is put into the archive, and how.
#[derive(Default)]
pub(crate) struct Initramfs {
    entries: Vec<(String, Vec<u8>, u32)>,
    folders: BTreeSet<String>,
}

const FILE: u32 = 0o100_755;
const FOLDER: u32 = 0o040_755;
const DEVICE: u32 = 0o020_600;

impl Initramfs {
    /// An executable file with this content.
    pub(crate) fn add(&mut self, path: &str, content: Vec<u8>) {
        for folder in Path::new(path).ancestors().skip(1) {
            if let Some(folder) = folder.to_str().filter(|folder| !folder.is_empty()) {
                self.folders.insert(folder.to_owned());
            }
        }
        self.entries.push((path.to_owned(), content, FILE));
    }

    /// A copy of a file of this machine.
    pub(crate) fn copy(&mut self, from: &Path, path: &str) -> Result<()> {
        let content = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.add(path, content);
        Ok(())
    }

    /// A program of this machine and every library that it loads.
    pub(crate) fn program(&mut self, from: &Path, path: &str) -> Result<()> {
        self.copy(from, path)?;
        for library in libraries(from)? {
            let path = library.to_string_lossy().trim_start_matches('/').to_owned();
            if !self.entries.iter().any(|(present, ..)| *present == path) {
                self.copy(&library, &path)?;
            }
        }
        Ok(())
    }

    /// Writes the archive in the format that the kernel unpacks (`newc`).
    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let failed = || format!("cannot write {}", file.display());
        let mut out = BufWriter::new(File::create(file).with_context(failed)?);
        let mut inode = 0;
        let mut entry =
            |path: &str, content: &[u8], mode: u32, device: (u32, u32)| -> std::io::Result<()> {
                inode += 1;
                write!(
                    out,
                    "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}",
                    0, 1
                )?;
                write!(out, "{:08x}{:08x}{:08x}", content.len(), 0, 0)?;
                write!(
                    out,
                    "{:08x}{:08x}{:08x}{:08x}{path}\0",
                    device.0,
                    device.1,
                    path.len() + 1,
                    0
                )?;
                // The header is 110 bytes long; name and content end on multiples of four.
                out.write_all(&[0; 3][..pad(110 + path.len() + 1)])?;
                out.write_all(content)?;
                out.write_all(&[0; 3][..pad(content.len())])
            };
        // Parents first: a set of paths is sorted that way.
        for folder in self
            .folders
            .iter()
            .map(String::as_str)
            .chain(["dev", "proc", "sys", "tmp"])
        {
            entry(folder, &[], FOLDER, (0, 0)).with_context(failed)?;
        }
        entry("dev/console", &[], DEVICE, (5, 1)).with_context(failed)?;
        for (path, content, mode) in &self.entries {
            entry(path, content, *mode, (0, 0)).with_context(failed)?;
        }
        entry("TRAILER!!!", &[], 0, (0, 0)).with_context(failed)?;
        out.flush().with_context(failed)
    }
}

/// Zeroes that follow `length` bytes.
fn pad(length: usize) -> usize {
    length.next_multiple_of(4) - length
}

/// The files that the dynamic linker would load, itself included; none for a static program.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let Some(listed) = process::output(process::command("ldd", []).arg(program)) else {
        return Ok(Vec::new());
    };
    let mut libraries = Vec::new();
    for line in listed.lines() {
        if line.contains("not found") {
            bail!(
                "{} needs a library that is not here: {}",
                program.display(),
                line.trim()
            );
        }
        libraries.extend(
            line.split_whitespace()
                .find(|word| word.starts_with('/'))
                .map(PathBuf::from),
        );
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::Initramfs;

    #[test]
    fn the_archive_is_what_cpio_expects() {
        let folder = std::env::temp_dir().join(format!("xtask-initramfs-{}", std::process::id()));
        let mut archive = Initramfs::default();
        archive.add("init", b"abcde".to_vec());
        archive
            .write(&folder)
            .expect("a temporary file can be written");
        let bytes = std::fs::read(&folder).expect("it is there");
        std::fs::remove_file(&folder).expect("it can be removed");

        assert_eq!(bytes.len() % 4, 0);
        let text = String::from_utf8_lossy(&bytes);
        let mut names = Vec::new();
        let mut rest = &*text;
        while let Some(header) = rest.strip_prefix("070701") {
            let field = |index: usize| {
                usize::from_str_radix(&header[index * 8..index * 8 + 8], 16).expect("hexadecimal")
            };
            let (size, name_length) = (field(6), field(11));
            names.push(rest[110..110 + name_length - 1].to_owned());
            let content = (110 + name_length).next_multiple_of(4);
            if names.last().is_some_and(|name| name == "init") {
                assert_eq!(&rest[content..content + size], "abcde");
            }
            rest = &rest[(content + size).next_multiple_of(4)..];
        }
        assert_eq!(
            names,
            [
                "dev",
                "proc",
                "sys",
                "tmp",
                "dev/console",
                "init",
                "TRAILER!!!"
            ]
        );
        assert!(rest.is_empty());
    }
}
