//! `/proc/PID/maps`: which files a process shares.

/// A file as `/proc/PID/maps` names it: device and inode, the same in every process that maps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileKey {
    /// Major device number.
    pub major: u32,
    /// Minor device number.
    pub minor: u32,
    /// Inode number.
    pub inode: u64,
}

/// A shared mapping of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapEntry {
    /// First address.
    pub start: u64,
    /// Address after the last.
    pub end: u64,
    /// File offset of the first byte.
    pub offset: u64,
    /// The file.
    pub file: FileKey,
    /// Its path, as the kernel gives it: ` (deleted)` is cut off, see [`deleted`](Self::deleted).
    pub path: String,
    /// The path no longer leads to this file.
    pub deleted: bool,
}

impl MapEntry {
    /// Bytes mapped.
    pub fn size(&self) -> u64 {
        self.end - self.start
    }
}

/// The shared file mappings among the lines of `/proc/PID/maps`; lines that are none, or no lines, are left out.
pub fn parse_maps(bytes: &[u8]) -> Vec<MapEntry> {
    bytes
        .split(|byte| *byte == b'\n')
        .filter(|line| is_shared(line))
        .filter_map(parse_line)
        .collect()
}

/// The same of every file that is mapped, shared or not.
pub(super) fn parse_files(bytes: &[u8]) -> impl Iterator<Item = MapEntry> {
    bytes.split(|byte| *byte == b'\n').filter_map(parse_line)
}

fn is_shared(mut line: &[u8]) -> bool {
    let permissions = word(&mut line).and_then(|_range| word(&mut line));
    permissions.is_some_and(|permissions| permissions.get(3) == Some(&b's'))
}

/// `start-end perms offset major:minor inode   path`
fn parse_line(line: &[u8]) -> Option<MapEntry> {
    let mut rest = line;
    let range = word(&mut rest)?;
    let _permissions = word(&mut rest)?;
    let offset = hexadecimal(word(&mut rest)?)?;
    let device = word(&mut rest)?;
    let inode = std::str::from_utf8(word(&mut rest)?).ok()?.parse().ok()?;
    if inode == 0 {
        return None;
    }
    let (start, end) = split_at_byte(range, b'-')?;
    let (major, minor) = split_at_byte(device, b':')?;
    let (start, end) = (hexadecimal(start)?, hexadecimal(end)?);
    if start >= end {
        return None;
    }
    let path = rest.trim_ascii_start();
    let (path, deleted) = match path.strip_suffix(b" (deleted)") {
        Some(path) => (path, true),
        None => (path, false),
    };
    Some(MapEntry {
        start,
        end,
        offset,
        file: FileKey {
            major: u32::try_from(hexadecimal(major)?).ok()?,
            minor: u32::try_from(hexadecimal(minor)?).ok()?,
            inode,
        },
        path: String::from_utf8_lossy(path).replace("\\012", "\n"),
        deleted,
    })
}

/// Takes the next word off the front of `rest`.
fn word<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let trimmed = rest.trim_ascii_start();
    let end = trimmed
        .iter()
        .position(|byte| *byte == b' ')
        .unwrap_or(trimmed.len());
    let (word, after) = trimmed.split_at(end);
    *rest = after;
    (!word.is_empty()).then_some(word)
}

fn split_at_byte(bytes: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = bytes.iter().position(|byte| *byte == separator)?;
    Some((&bytes[..at], &bytes[at + 1..]))
}

fn hexadecimal(word: &[u8]) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_file_mappings_only() {
        let maps = b"5581a000-5581b000 r--p 00000000 fe:01 12 /usr/bin/x\n\
            7f00a000-7f00c000 rw-s 00001000 00:1c 99                         /tmp/a hub.shm (deleted)\n\
            7f00d000-7f00e000 rw-s 00000000 00:01 5 /memfd:x (deleted)\n\
            7f00f000-7f010000 rw-s 00000000 00:00 0 \n\
            garbage\n";
        let entries = parse_maps(maps);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].path, "/tmp/a hub.shm");
        assert!(entries[0].deleted);
        assert_eq!(
            entries[0].file,
            FileKey {
                major: 0,
                minor: 0x1c,
                inode: 99
            }
        );
        assert_eq!((entries[0].offset, entries[0].size()), (0x1000, 0x2000));
    }

    #[test]
    fn cut_lines_are_left_out() {
        let line = b"7f00a000-7f00c000 rw-s 00001000 00:1c 99";
        assert_eq!(parse_maps(line).len(), 1);
        for end in 0..line.len() - 2 {
            assert!(parse_maps(&line[..end]).is_empty(), "{end}");
        }
    }
}
