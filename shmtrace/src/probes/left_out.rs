//! Runs of the probes that the kernel left out.
//!
//! While a program is preempted it is not run for the tasks that have its CPU meanwhile: `recursion_misses` in the program's
//! `fdinfo`, from 5.12. At sockets spares make up for it; what neither of the two saw, no counter of theirs knows of.

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::Ebpf;

use super::{AT_CALLS, AT_SOCKETS, PROGRAMS, SPARES};

/// Runs left out so far of all programs but the spares. Each has cost a record at most, if no spare made up for it.
pub(super) fn so_far(ebpf: &Ebpf) -> u64 {
    let with_variants = PROGRAMS.iter().chain([&AT_CALLS]);
    let with_variants = with_variants.flat_map(|(_, variants)| variants.iter());
    let has_spare = |place: &str| SPARES.iter().any(|(other, _)| *other == place);
    let with_spares = AT_SOCKETS.iter().filter(|(place, _)| has_spare(place));
    sum(ebpf, with_variants.chain(with_spares.map(|(_, name)| name)))
}

fn sum<'a>(ebpf: &Ebpf, names: impl Iterator<Item = &'a &'a str>) -> u64 {
    let counts = names.filter_map(|name| {
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
