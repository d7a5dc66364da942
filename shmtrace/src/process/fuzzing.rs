//! What `/proc` shows of a process that calls itself whatever it likes.

use std::{ffi::OsString, os::unix::ffi::OsStringExt as _};

use super::{blocking, fds, maps, stack, stat, threads};
use crate::{discover::claim, observe::memory, profile::modules};

/// The first byte says which file of `/proc` the rest is.
pub fn proc(data: &[u8]) {
    let Some((which, bytes)) = data.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(bytes);
    match which % 10 {
        0 => {
            if let Some(stat) = stat::parse_stat(bytes) {
                let _any = stat.is_dead();
            }
            let _any = stat::command_line_at(bytes);
        }
        1 => {
            for name in ["Name:", "State:", "NSpid:", "SigCgt:", "Tgid:"] {
                if let Some(field) = stat::status_field(bytes, name.as_bytes()) {
                    assert!(!field.contains(&b'\n'), "a field is one line");
                    let _any = threads::unescaped(field);
                }
            }
        }
        2 => {
            for entry in maps::parse_maps(bytes) {
                assert!(entry.size() > 0, "{entry:?}");
                assert_ne!(entry.file.inode, 0, "{entry:?}");
            }
        }
        3 => {
            for (start, end) in stack::code_ranges(bytes) {
                assert!(start < end, "{start:x}-{end:x}");
            }
        }
        4 => {
            let _any = (threads::parse_syscall(bytes), threads::parse_runs(bytes));
        }
        5 => {
            let lines = bytes.split(|byte| *byte == b'\n');
            let _any = lines.filter_map(fds::parse_epoll_line).count();
            let _any = fds::socket_inode(bytes);
        }
        6 => {
            // Mounts, then the process's cgroups.
            let (mounts, cgroups) = text.split_once("\n\n").unwrap_or((&text, ""));
            let hierarchies = memory::hierarchies(mounts);
            if let Some((hierarchy, path)) = memory::memory_cgroup(&hierarchies, cgroups) {
                let _any = hierarchy.folder(&path);
            }
            let _any = (
                memory::field(&text, "oom_kill"),
                blocking::file_system(bytes, (0, 5)),
            );
        }
        7 => {
            let words: Vec<OsString> = bytes
                .split(|byte| *byte == 0)
                .map(|word| OsString::from_vec(word.to_vec()))
                .collect();
            let _any = (claim::Claim::parse(&words), claim::name("ddc", &words));
        }
        8 => {
            let _any = text.lines().filter_map(modules::parse_line).count();
        }
        _ => {
            // A stack that points anywhere, with return addresses that are believed or not by their last bit.
            let (base, words) = bytes.split_first_chunk().unwrap_or((&[0; 8], &[]));
            let base = u64::from_ne_bytes(*base);
            let _any = stack::chain(words, base, |address| address & 1 == 1);
        }
    }
}
