//! What a watch settles with the system before and just after it attaches: priority, rights, and what is not to be had.

use shmtrace_engine::ProcId;

use super::Options;
use crate::{
    limits,
    probes::Probes,
    process::Process,
    rights::{self, Helper},
};

/// Gives up what is not needed from now on; `limits` says what follows from that.
pub(super) fn give_up_rights(
    options: &Options,
    limits: &mut Vec<String>,
) -> anyhow::Result<Option<Helper>> {
    let helper = if rights::helper_is_of_use() || options.record_findings.is_some() {
        let helper = Helper::start(options.record_findings.as_deref());
        let helper = helper.inspect_err(|error| {
            limits.push(format!(
                "no helper process ({error}): kernel stacks, and doorbells of other network namespaces, are not seen; \
                 remedy: see that /proc/self/exe can be executed"
            ));
        });
        helper.ok()
    } else {
        None
    };
    let kept = rights::give_up(options.role)?;
    limits.extend(kept.unfiltered.map(|why| {
        format!(
            "system calls are not filtered ({why}); remedy: a kernel with CONFIG_SECCOMP_FILTER=y"
        )
    }));
    Ok(helper)
}

/// What a process does in a way that only the hooks at sockets would see.
pub(super) fn hidden_calls(proc: ProcId, name: &str) -> Option<String> {
    let hidden = Process::open(proc.pid).ok()?.hidden_calls();
    in_hiding(proc.pid, name, &hidden)
}

fn in_hiding(pid: u32, name: &str, hidden: &[&str]) -> Option<String> {
    (!hidden.is_empty()).then(|| {
        format!(
            "{name} [{pid}] {}: what it does to its doorbells that way leaves no record, so causes may be unknown",
            hidden.join(" and ")
        )
    })
}

/// What this kernel and these rights do not offer.
pub(super) fn in_words(probes: &Probes) -> Vec<String> {
    let blind = probes.blind_to_failed_sends();
    let blind = blind.map(|why| {
        format!("sends on a closed doorbell leave no record ({why}): the cause is read off the sender's open files instead")
    });
    limits::checks()
        .into_iter()
        .chain([limits::signals(probes.see_calls_only())])
        .filter_map(|check| check.in_words())
        .chain(blind)
        .collect()
}

/// A build that uses every CPU is the one whose records must be read and whose hang must be seen in time: this thread, which
/// uses a few percent of one, goes first.
pub(super) fn run_before_the_traced() {
    const NICENESS: i32 = -10;
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!("cannot run at niceness {NICENESS}: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_hides_is_named() {
        assert_eq!(in_hiding(7, "css", &[]), None);
        let said = in_hiding(7, "css", &["uses io_uring", "is a 32-bit program"]).unwrap();
        assert!(
            said.starts_with("css [7] uses io_uring and is a 32-bit program: "),
            "{said}"
        );
    }
}
