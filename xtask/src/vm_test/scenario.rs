//! What a test machine does with shmtrace, and what must come of it.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    kernels::Kernel,
    machine::{Outcome, Report, Step},
    systemd::USER_BUS,
};

/// The programs, under the names that the steps call them by.
pub(crate) const PROGRAMS: [&str; 3] = ["shmtrace", "ddc-sim", "rapace-peer-04"];

/// Exit codes of `shmtrace`.
const CLEAN: i32 = 0;
const FOUND: i32 = 3;
const INCONCLUSIVE: i32 = 4;
/// One of so many records may be left out where programs are preempted.
const MOST_LEFT_OUT: u64 = 1000;
/// Of `run`, when SIGKILL ended its command.
const KILLED: i32 = 128 + 9;

/// The check of `shmtrace doctor` that asks for `unix_diag`.
const QUEUES: &str = "doorbell queues";

/// An emulated machine is some twenty times slower than a real one.
const GRACE: &str = "500ms";

/// Where the probes see signals, and the check of `shmtrace doctor` that asks for it.
const AT_SOCKETS: &str = "signals at sockets";
const SIGNALS: &str = "signals";
const AT_CALLS: &str = "signals at every call";
/// Sends that reach no socket, where functions cannot be probed.
const CLASSIC: &str = "failed sends by classic tracepoints";

/// A limit of `run`, as it is given and as the kernel shows it.
const LIMIT: (&str, &str) = ("64M", "67108864");

/// How often a command runs out of it.
const OUT_OF_MEMORY: usize = 4;

/// What a machine is told to do.
pub(crate) fn steps(kernel: &Kernel) -> Vec<Step> {
    // What the probes fall back to is told by their log only.
    let doctor = Step {
        name: "doctor",
        seconds: 30,
        script: format!(
            "RUST_LOG=shmtrace::probes=debug shmtrace doctor --json 2>/tmp/log; status=$?; \
             grep -q 'watching all system calls' /tmp/log && echo {AT_CALLS} || echo {AT_SOCKETS}; \
             grep -q 'no programs at the exits' /tmp/log && echo {CLASSIC}; exit $status"
        ),
    };
    let mut steps = vec![doctor, limited("run", ""), out_of_memory()];
    if kernel.systemd {
        // Without the system's bus, the user's is asked.
        let buses = format!(
            "export XDG_RUNTIME_DIR=/run/user/0 DBUS_SESSION_BUS_ADDRESS={USER_BUS} \
             DBUS_SYSTEM_BUS_ADDRESS=unix:path=/none RUST_LOG=shmtrace::launch=debug; "
        );
        steps.push(limited("run-user", &buses));
    } else {
        steps.extend(traces());
    }
    steps
}

/// A command that shows its limit and ends with 7.
fn limited(name: &'static str, before: &str) -> Step {
    let show = "cd /sys/fs/cgroup$(sed s/^0::// /proc/self/cgroup); pwd; cat memory.max; exit 7";
    Step {
        name,
        seconds: 30,
        script: format!(
            "{before}shmtrace run --quiet --memory-max {} -- sh -c '{show}'",
            LIMIT.0
        ),
    }
}

/// Commands that want more than they may have. One after the other: systemd removes a scope, and what it counted, at once.
fn out_of_memory() -> Step {
    let command = "dd if=/dev/zero of=/dev/null bs=128M count=1";
    Step {
        name: "run-oom",
        seconds: 30,
        script: format!(
            "for n in $(seq {OUT_OF_MEMORY}); do shmtrace run --quiet --memory-max {} -- {command}; done",
            LIMIT.0
        ),
    }
}

/// Watches of traffic, healthy and not.
fn traces() -> Vec<Step> {
    let fault = "--fault consumed-then-slept:peer=2,after=400";
    let theft = "--steal-after 400:2";
    vec![
        watched_from_a_moment("healthy", "ddc-sim", "", 1, 8),
        watched_from_the_start("hang", "ddc-sim", fault),
        watched_from_a_moment("late", "ddc-sim", fault, 10, 5),
        watched_from_a_moment("rapace-healthy", "rapace-peer-04", "", 1, 8),
        watched_from_the_start("rapace-hang", "rapace-peer-04", theft),
    ]
}

/// A program's host and its traffic.
fn host(program: &str, traffic: &str) -> String {
    format!("{program} host --plugins 4 --round-trips 0 --gap 5ms {traffic}")
}

/// A watch of it.
fn watch(seconds: u32) -> String {
    format!(
        "shmtrace --pid-tree $host --grace {GRACE} --format json --duration {seconds}s --fail-on missed-wakeup"
    )
}

/// The status of a step is that of its watch.
const END: &str = "kill $host; wait $host 2>/dev/null; exit $status";

/// A host that has run for `before` seconds is watched for `seconds`.
fn watched_from_a_moment(
    name: &'static str,
    program: &str,
    traffic: &str,
    before: u32,
    seconds: u32,
) -> Step {
    Step {
        name,
        seconds: 60,
        script: format!(
            "{} >/tmp/{name} 2>&1 & host=$!; sleep {before}; {}; status=$?; {END}",
            host(program, traffic),
            watch(seconds)
        ),
    }
}

/// A host makes its first call when the watch is attached, however long that takes: then the cause is known.
fn watched_from_the_start(name: &'static str, program: &str, traffic: &str) -> Step {
    let (go, seen) = (format!("/tmp/{name}.go"), format!("/tmp/{name}.seen"));
    Step {
        name,
        seconds: 60,
        script: format!(
            "mkfifo {go}; {} --start-on-line <{go} >/tmp/{name} 2>&1 & host=$!; exec 3>{go}; {} >{seen} 2>&1 & watch=$!; \
             until grep -q header {seen} || ! kill -0 $watch; do sleep 0.2; done; echo go >&3; wait $watch; \
             status=$?; cat {seen}; {END}",
            host(program, traffic),
            watch(15),
        ),
    }
}

/// Compares what a machine did with what its kernel promises; the error lists all that is wrong.
pub(crate) fn judge(kernel: &Kernel, report: &Report, steps: &[Step]) -> Result<String> {
    ensure!(
        report.kernel.starts_with(kernel.version),
        "it booted {} instead of {}",
        report.kernel,
        kernel.version
    );
    let mut wrong = Vec::new();
    let mut seen = Vec::new();
    for step in steps {
        let Some(outcome) = report
            .outcomes
            .iter()
            .find(|outcome| outcome.name == step.name)
        else {
            wrong.push(format!("{}: did not run", step.name));
            continue;
        };
        match judge_step(outcome, kernel) {
            Ok(said) => seen.push(format!("{}: {said}", step.name)),
            Err(error) => wrong.push(format!("{}: {error:#}", step.name)),
        }
    }
    if wrong.is_empty() {
        Ok(seen.join("; "))
    } else {
        bail!("{}", wrong.join("; "))
    }
}

fn judge_step(outcome: &Outcome, kernel: &Kernel) -> Result<String> {
    match outcome.name.as_str() {
        "run" if kernel.systemd => ran(outcome, "/system.slice/", ".scope"),
        "run-user" => ran(outcome, "/user-manager.service/", ".scope"),
        "run" => ran(outcome, "/sys/fs/cgroup/shmtrace-run-", ""),
        "run-oom" => {
            ended_with(outcome, KILLED)?;
            let said = "memory-limit: the kernel killed a process of the command (1 in all)";
            let lines = outcome.output.iter();
            let reported = lines.filter(|line| line.contains(said)).count();
            ensure!(
                reported == OUT_OF_MEMORY,
                "{reported} of {OUT_OF_MEMORY} OOM kills reported"
            );
            Ok("OOM kills reported".to_owned())
        }
        "doctor" => doctor(outcome, kernel),
        "healthy" | "rapace-healthy" => {
            let summary = summary(outcome)?;
            let most = if kernel.preempts() {
                summary.events / MOST_LEFT_OUT
            } else {
                0
            };
            ensure!(summary.lost <= most, "{} records lost", summary.lost);
            // What was lost may have been a fault: it must not say that there was none.
            ended_with(
                outcome,
                if summary.lost == 0 {
                    CLEAN
                } else {
                    INCONCLUSIVE
                },
            )?;
            ensure!(
                summary.findings == 0,
                "{} findings in healthy traffic",
                summary.findings
            );
            Ok(format!("{} events, {} lost", summary.events, summary.lost))
        }
        "hang" => hang(outcome, "consumed-then-slept", kernel),
        "rapace-hang" => hang(outcome, "stolen", kernel),
        // Attached after the hang: the history is not there, so neither is the cause.
        "late" => hang(outcome, "unknown", kernel),
        other => bail!("no such step: {other}"),
    }
}

/// The command's own status, and the limit in a cgroup of its own.
fn ran(outcome: &Outcome, folder: &str, end: &str) -> Result<String> {
    ended_with(outcome, 7)?;
    let cgroup = outcome
        .output
        .iter()
        .find(|line| line.starts_with("/sys/fs/cgroup"))
        .context("no cgroup shown")?;
    ensure!(
        cgroup.contains(folder) && cgroup.contains("shmtrace-run-") && cgroup.ends_with(end),
        "it ran in {cgroup}"
    );
    ensure!(
        outcome.output.iter().any(|line| line == LIMIT.1),
        "the limit is not in force in {cgroup}"
    );
    Ok(format!("limited in {cgroup}"))
}

/// What the machine offers must be what the table says, no less and no more.
fn doctor(outcome: &Outcome, kernel: &Kernel) -> Result<String> {
    let mut limited = kernel.limited.to_vec();
    let signals = if kernel.at_sockets {
        AT_SOCKETS
    } else {
        limited.push(SIGNALS);
        AT_CALLS
    };
    ended_with(outcome, CLEAN)?;
    let text = outcome.output.join("\n");
    let object = text
        .find('{')
        .and_then(|start| text.get(start..=text.rfind('}')?))
        .context("it says no object")?;
    let said: Value = serde_json::from_str(object).context("what it says is not JSON")?;
    let checks = said["checks"].as_array().context("it says no checks")?;
    ensure!(!checks.is_empty(), "it checks nothing");
    for check in checks {
        let name = check["name"].as_str().context("a check has no name")?;
        let yes = check["answer"] == "yes";
        ensure!(
            yes != limited.contains(&name),
            "{name}: {}, {}",
            check["answer"],
            check["detail"]
        );
        ensure!(yes || check["remedy"].is_string(), "{name}: no remedy");
    }
    ensure!(
        outcome.output.iter().any(|line| line == signals),
        "it does not see {signals}"
    );
    let mut ways = vec![signals];
    if outcome.output.iter().any(|line| line == CLASSIC) {
        ways.push(CLASSIC);
    }
    Ok(format!(
        "{} checks, {} limited, {}",
        checks.len(),
        limited.len(),
        ways.join(", ")
    ))
}

fn hang(outcome: &Outcome, expected: &str, kernel: &Kernel) -> Result<String> {
    if kernel.limited.contains(&QUEUES) && outcome.status == INCONCLUSIVE {
        // Whose doorbell is whose can only be inferred there, and a guess is no proof; it must say so.
        let note = summary_of(outcome)?["notes"].to_string();
        ensure!(
            note.contains("unix_diag"),
            "inconclusive, and the summary does not say why: {note}"
        );
        return Ok("inconclusive without unix_diag, as it says".to_owned());
    }
    ended_with(outcome, FOUND)?;
    let finding = objects(outcome).into_iter().find(|object| {
        object["type"] == "finding"
            && object["code"] == "missed-wakeup"
            && object["state"] == "missed"
    });
    let Some(finding) = finding else {
        bail!("no missed wakeup among the findings")
    };
    let cause = finding["cause"].as_str().unwrap_or("none");
    let story_has_a_hole = kernel.preempts() && summary_of(outcome)?["lost"] != 0;
    ensure!(
        cause == expected || story_has_a_hole && cause == "unknown",
        "cause {cause} instead of {expected}"
    );
    ensure!(
        finding["peer"]["id"] == 2,
        "peer {} instead of 2",
        finding["peer"]["id"]
    );
    ensure!(
        finding["lane"] == "host->peer",
        "lane {} instead of host->peer",
        finding["lane"]
    );
    Ok(format!("found, {cause}"))
}

fn summary_of(outcome: &Outcome) -> Result<Value> {
    objects(outcome)
        .into_iter()
        .rfind(|object| object["type"] == "summary")
        .context("no summary line")
}

struct Summary {
    events: u64,
    lost: u64,
    findings: u64,
}

fn summary(outcome: &Outcome) -> Result<Summary> {
    let summary = summary_of(outcome)?;
    let number = |name: &str| summary[name].as_u64().unwrap_or_default();
    let findings = summary["findings"].as_object().into_iter().flatten();
    let summary = Summary {
        events: number("events"),
        lost: number("lost"),
        findings: findings.filter_map(|(_, count)| count.as_u64()).sum(),
    };
    ensure!(
        summary.events > 100,
        "only {} events: the probes are blind here",
        summary.events
    );
    Ok(summary)
}

fn ended_with(outcome: &Outcome, expected: i32) -> Result<()> {
    if outcome.status != expected {
        let last = outcome
            .output
            .iter()
            .rev()
            .find(|line| !line.is_empty())
            .map_or("nothing", String::as_str);
        bail!(
            "ended with {} instead of {expected}, saying: {last}",
            outcome.status
        );
    }
    Ok(())
}

/// The lines that are JSON objects; the programs' complaints are between them.
fn objects(outcome: &Outcome) -> Vec<Value> {
    let lines = outcome.output.iter().filter(|line| line.starts_with('{'));
    lines
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{super::kernels::KERNELS, AT_CALLS, Kernel, Outcome, Result, judge_step};

    /// The one that lacks `unix_diag`, the one with systemd, or any other.
    fn kernel(wanted: impl Fn(&Kernel) -> bool) -> &'static Kernel {
        let kernel = KERNELS.iter().find(|kernel| wanted(kernel));
        kernel.expect("it is in the table")
    }

    fn outcome(name: &str, status: i32, lines: &[&str]) -> Outcome {
        Outcome {
            name: name.to_owned(),
            status,
            output: lines.iter().map(|&line| line.to_owned()).collect(),
        }
    }

    fn judged(outcome: &Outcome) -> Result<String> {
        judge_step(outcome, kernel(|kernel| !kernel.unix_diag))
    }

    #[test]
    fn a_machine_offers_what_the_table_says() {
        let said = |queues: &str| {
            let checks = format!(
                r#"{{"checks": [
                    {{"name": "kernel", "answer": "yes"}},
                    {{"name": "signals", "answer": "limited", "remedy": "boot another"}},
                    {{"name": "doorbell queues", "answer": "{queues}", "remedy": "modprobe unix_diag"}}
                ]}}"#
            );
            outcome("doctor", 0, &["a warning", &checks, AT_CALLS])
        };
        let plain = kernel(|kernel| kernel.limited.is_empty());
        assert!(judged(&said("limited")).is_ok());
        assert!(judged(&said("yes")).is_err());
        assert!(judge_step(&said("limited"), plain).is_err());
        assert!(judge_step(&said("yes"), plain).is_ok());
        assert!(judged(&outcome("doctor", 0, &["{}"])).is_err());
        let newer = kernel(|kernel| kernel.at_sockets);
        assert!(judge_step(&said("yes"), newer).is_err());
    }

    #[test]
    fn a_kernel_that_preempts_programs_may_leave_some_out_if_it_says_so() {
        let preempts = kernel(Kernel::preempts);
        let healthy = |status, lost: &str| {
            let summary = SUMMARY.replace("\"lost\":0", lost);
            judge_step(&outcome("healthy", status, &[&summary]), preempts)
        };
        assert!(healthy(0, "\"lost\":0").is_ok());
        assert!(healthy(4, "\"lost\":5").is_ok());
        assert!(healthy(0, "\"lost\":5").is_err(), "it keeps quiet about it");
        assert!(healthy(4, "\"lost\":6").is_err(), "too many");
        let hang = |lost: &str| {
            let summary = SUMMARY.replace("\"lost\":0", lost);
            judge_step(&outcome("hang", 3, &[FINDING, &summary]), preempts)
        };
        assert!(hang("\"lost\":1").is_ok());
        assert!(hang("\"lost\":0").is_err());
    }

    const SUMMARY: &str = r#"{"type":"summary","events":5000,"lost":0,"findings":{}}"#;
    const FINDING: &str = r#"{"type":"finding","code":"missed-wakeup","cause":"unknown","state":"missed","lane":"host->peer","peer":{"id":2}}"#;

    #[test]
    fn a_clean_run_is_one_with_events_and_without_findings_or_losses() {
        assert!(judged(&outcome("healthy", 0, &["warning", SUMMARY])).is_ok());
        assert!(judged(&outcome("healthy", 137, &[SUMMARY])).is_err());
        assert!(judged(&outcome("healthy", 0, &[])).is_err());
        assert!(judged(&outcome("healthy", 0, &[&SUMMARY.replace("5000", "0")])).is_err());
        assert!(
            judged(&outcome(
                "healthy",
                0,
                &[&SUMMARY.replace("\"lost\":0", "\"lost\":1")]
            ))
            .is_err()
        );
        assert!(
            judged(&outcome(
                "healthy",
                0,
                &[&SUMMARY.replace("{}", r#"{"missed-wakeup":1}"#)]
            ))
            .is_err()
        );
    }

    #[test]
    fn a_hang_is_found_on_the_right_lane_with_the_right_cause() {
        assert!(judged(&outcome("late", 3, &[FINDING])).is_ok());
        assert!(judged(&outcome("late", 0, &[FINDING])).is_err());
        assert!(judged(&outcome("hang", 3, &[FINDING])).is_err());
        let plain = kernel(|kernel| kernel.limited.is_empty());
        let unsure = SUMMARY.replace("{}", r#"{},"notes":["no unix_diag"]"#);
        assert!(judged(&outcome("hang", 4, &[&unsure])).is_ok());
        assert!(judged(&outcome("hang", 4, &[SUMMARY])).is_err());
        assert!(judge_step(&outcome("hang", 4, &[&unsure]), plain).is_err());
        assert!(
            judged(&outcome(
                "late",
                3,
                &[&FINDING.replace("\"id\":2", "\"id\":1")]
            ))
            .is_err()
        );
        assert!(
            judged(&outcome(
                "late",
                3,
                &[&FINDING.replace("\"missed\"", "\"suspect\"")]
            ))
            .is_err()
        );
    }

    #[test]
    fn a_command_is_limited_where_the_machine_limits_it() {
        let own = outcome("run", 7, &["/sys/fs/cgroup/shmtrace-run-70", "67108864"]);
        let scope = "/sys/fs/cgroup/system.slice/shmtrace-run-70.scope";
        let scope = outcome("run", 7, &[scope, "67108864"]);
        let (plain, systemd) = (
            kernel(|kernel| !kernel.systemd),
            kernel(|kernel| kernel.systemd),
        );
        assert!(judge_step(&own, plain).is_ok() && judge_step(&own, systemd).is_err());
        assert!(judge_step(&scope, systemd).is_ok() && judge_step(&scope, plain).is_err());
        let unlimited = outcome("run", 7, &["/sys/fs/cgroup/shmtrace-run-70", "max"]);
        assert!(judge_step(&unlimited, plain).is_err());
        let said =
            "shmtrace: memory-limit: the kernel killed a process of the command (1 in all) for";
        assert!(judge_step(&outcome("run-oom", 137, &[said; 4]), plain).is_ok());
        assert!(judge_step(&outcome("run-oom", 137, &[said; 3]), plain).is_err());
    }
}
