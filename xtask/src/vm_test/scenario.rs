//! What a test machine does with shmtrace, and what must come of it.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{
    kernels::Kernel,
    machine::{Outcome, Report, Step},
};

/// The programs, under the names that the steps call them by.
pub(crate) const PROGRAMS: [&str; 3] = ["shmtrace", "ddc-sim", "rapace-peer-04"];

/// Exit codes of `shmtrace`.
const CLEAN: i32 = 0;
const FOUND: i32 = 3;
const INCONCLUSIVE: i32 = 4;

/// The check of `shmtrace doctor` that asks for `unix_diag`.
const QUEUES: &str = "doorbell queues";

/// An emulated machine is some twenty times slower than a real one.
const GRACE: &str = "500ms";

/// What every machine is told to do.
pub(crate) fn steps() -> Vec<Step> {
    let fault = "--fault consumed-then-slept:peer=2,after=400";
    let fail_on = "--fail-on missed-wakeup";
    vec![
        Step {
            name: "doctor",
            seconds: 30,
            script: "shmtrace doctor --json".to_owned(),
        },
        traced(
            "healthy",
            "ddc-sim",
            "",
            1,
            &format!("--duration 8s {fail_on}"),
        ),
        traced(
            "hang",
            "ddc-sim",
            fault,
            0,
            &format!("--duration 15s {fail_on}"),
        ),
        traced(
            "late",
            "ddc-sim",
            fault,
            10,
            &format!("--duration 5s {fail_on}"),
        ),
        traced(
            "rapace-healthy",
            "rapace-peer-04",
            "",
            1,
            &format!("--duration 8s {fail_on}"),
        ),
        traced(
            "rapace-hang",
            "rapace-peer-04",
            "--steal-after 400:2",
            0,
            &format!("--duration 15s {fail_on}"),
        ),
    ]
}

/// Starts a program's host, waits for some seconds, and watches it.
fn traced(name: &'static str, program: &str, traffic: &str, before: u32, watch: &str) -> Step {
    let script = format!(
        "{program} host --plugins 4 --round-trips 0 --gap 5ms {traffic} >/tmp/{name} 2>&1 & host=$!; sleep {before}; \
         shmtrace --pid-tree $host --grace {GRACE} --format json {watch}; status=$?; \
         kill $host; wait $host 2>/dev/null; exit $status"
    );
    Step {
        name,
        seconds: 60,
        script,
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
        match judge_step(outcome, kernel.limited) {
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

fn judge_step(outcome: &Outcome, limited: &[&str]) -> Result<String> {
    match outcome.name.as_str() {
        "doctor" => doctor(outcome, limited),
        "healthy" | "rapace-healthy" => {
            ended_with(outcome, CLEAN)?;
            let summary = summary(outcome)?;
            ensure!(
                summary.findings == 0,
                "{} findings in healthy traffic",
                summary.findings
            );
            Ok(format!("{} events, {} lost", summary.events, summary.lost))
        }
        "hang" => hang(outcome, "consumed-then-slept", limited),
        "rapace-hang" => hang(outcome, "stolen", limited),
        // Attached after the hang: the history is not there, so neither is the cause.
        "late" => hang(outcome, "unknown", limited),
        other => bail!("no such step: {other}"),
    }
}

/// What the machine offers must be what the table says, no less and no more.
fn doctor(outcome: &Outcome, limited: &[&str]) -> Result<String> {
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
    Ok(format!(
        "{} checks, {} limited",
        checks.len(),
        limited.len()
    ))
}

fn hang(outcome: &Outcome, expected: &str, limited: &[&str]) -> Result<String> {
    if limited.contains(&QUEUES) && outcome.status == INCONCLUSIVE {
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
    ensure!(cause == expected, "cause {cause} instead of {expected}");
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
    ensure!(summary.lost == 0, "{} records lost", summary.lost);
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
    use super::{Outcome, Result, judge_step};

    fn outcome(name: &str, status: i32, lines: &[&str]) -> Outcome {
        Outcome {
            name: name.to_owned(),
            status,
            output: lines.iter().map(|&line| line.to_owned()).collect(),
        }
    }

    fn judged(outcome: &Outcome) -> Result<String> {
        judge_step(outcome, &["doorbell queues"])
    }

    #[test]
    fn a_machine_offers_what_the_table_says() {
        let said = |queues: &str| {
            let checks = format!(
                r#"{{"checks": [
                    {{"name": "kernel", "answer": "yes"}},
                    {{"name": "doorbell queues", "answer": "{queues}", "remedy": "modprobe unix_diag"}}
                ]}}"#
            );
            outcome("doctor", 0, &["a warning", &checks])
        };
        assert!(judged(&said("limited")).is_ok());
        assert!(judged(&said("yes")).is_err());
        assert!(judge_step(&said("limited"), &[]).is_err());
        assert!(judge_step(&said("yes"), &[]).is_ok());
        assert!(judged(&outcome("doctor", 0, &["{}"])).is_err());
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
        let unsure = SUMMARY.replace("{}", r#"{},"notes":["no unix_diag"]"#);
        assert!(judged(&outcome("hang", 4, &[&unsure])).is_ok());
        assert!(judged(&outcome("hang", 4, &[SUMMARY])).is_err());
        assert!(judge_step(&outcome("hang", 4, &[&unsure]), &[]).is_err());
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
}
