//! Runs of the probes that the kernel left out.
//!
//! While a program is preempted it is not run for the tasks that have its CPU meanwhile: `recursion_misses` in the program's
//! `fdinfo`, from 5.12. Spares make up for it; what neither of the two saw, no counter of theirs knows of.
//!
//! Not among them are the programs that see new mappings, since processes are looked at again and again anyway, and those at
//! the exits of sends, which have to do with a call that failed only: hardly any that they are left out of did. Nor is
//! `sys_exit` among them: it stands in for sockets' tracepoints, which every kernel has that preempts programs.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::Ebpf;

use super::{AT_SOCKETS, PROGRAMS, SPARES};

/// Runs left out so far of the programs that have spares. Each has cost a record at most, if no spare made up for it.
pub(super) fn so_far(ebpf: &Ebpf) -> u64 {
    let variants = PROGRAMS
        .into_iter()
        .flat_map(|(place, variants)| variants.iter().map(move |name| (place, *name)));
    let firsts = variants.chain(AT_SOCKETS);
    let firsts = firsts.filter(|(place, _)| SPARES.iter().any(|(other, _)| other == place));
    let counts = firsts.filter_map(|(_, name)| {
        // Of two variants, one is not loaded.
        let fd = ebpf.program(name)?.fd().ok()?.as_fd().as_raw_fd();
        of_fdinfo(&fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?)
    });
    counts.sum()
}

fn of_fdinfo(info: &str) -> Option<u64> {
    let mut lines = info.lines();
    let count = lines.find_map(|line| line.strip_prefix("recursion_misses:"))?;
    count.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::of_fdinfo;

    #[test]
    fn a_count_is_found_where_the_kernel_has_one() {
        let program = "prog_type:\t26\nrun_cnt:\t3\nrecursion_misses:\t17\nverified_insns:\t90\n";
        assert_eq!(of_fdinfo(program), Some(17));
        assert_eq!(of_fdinfo("prog_type:\t26\nrun_cnt:\t3\n"), None);
    }
}
