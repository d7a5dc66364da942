//! The goals, and which of them a run reached.

use std::fmt::Write as _;

use super::{
    report::{BYSTANDING, Report},
    tracer::Tracer,
};

/// What a call takes untraced on the machine that the goals were set on, ns.
const CALL_THERE: f64 = 300.0;
/// The least that a tracer does.
const FLOOR: Tracer = Tracer::Floor("sockets-lookup");

/// One line of the table.
struct Goal {
    what: String,
    most: bool,
    wanted: f64,
    got: f64,
    floor: Option<f64>,
}

/// Appends the table.
pub(crate) fn write(report: &Report, text: &mut String) -> std::fmt::Result {
    writeln!(
        text,
        "\nThe goals. *Floor*: what looking the pid up in an array costs by itself, at the same tracepoints.\n\n\
         | | goal | here | reached | floor |\n|---|---|---|---|---|"
    )?;
    for goal in goals(report) {
        let Goal {
            what,
            most,
            wanted,
            got,
            floor,
        } = goal;
        let reached = if most { got <= wanted } else { got >= wanted };
        writeln!(
            text,
            "| {what} | {} {wanted} | {got:.3} | {} | {} |",
            if most { "at most" } else { "at least" },
            if reached { "yes" } else { "**no**" },
            floor.map_or_else(|| "-".to_owned(), |floor| format!("{floor:.3}"))
        )?;
    }
    Ok(())
}

fn goals(report: &Report) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut goal = |what: &str, most, wanted, got, floor| {
        let what = what.to_owned();
        goals.push(Goal {
            what,
            most,
            wanted,
            got,
            floor,
        });
    };
    let row = |of| report.rows.iter().find(|row| row.tracer == of);
    let floor = row(FLOOR);
    let slower = row(Tracer::Shmtrace).map_or(1.0, |own| own.micro_untraced.median() / CALL_THERE);
    let there = format!("the same as if an untraced call took {CALL_THERE} ns");
    if let Some(own) = row(Tracer::Shmtrace) {
        let same = floor.map(|row| row.same.median());
        goal("SAME", false, 0.80, own.same.median(), same);
        let spin = floor.map(|row| row.spin.median());
        goal("SPIN", false, 0.97, own.spin.median(), spin);
        // What is added to a round trip would be as much shorter as a call.
        let share = |ratio: f64| 1.0 / (1.0 + (1.0 / ratio - 1.0) / slower);
        goal(
            &there,
            false,
            0.97,
            share(own.spin.median()),
            spin.map(share),
        );
        let micro = floor.map(|row| row.micro.median());
        goal("micro, ns", true, 200.0, own.micro.median(), micro);
        goal(
            &format!("{there}, ns"),
            true,
            200.0,
            own.micro.median() / slower,
            micro.map(|floor| floor / slower),
        );
        let [p50, p99] = &own.paced;
        goal("paced, median, us", true, 15.0, p50.median(), None);
        let untraced = own.paced_untraced[0].median();
        goal(
            "the same, more than untraced, us",
            true,
            4.0,
            p50.median() - untraced,
            None,
        );
        goal(
            "paced, 99th percentile, us",
            true,
            120.0,
            p99.median(),
            None,
        );
        let mut cpu = super::figures::Samples::default();
        own.costs
            .iter()
            .for_each(|cost| cpu.push(cost.cpu_per_million()));
        let what = "processor time for a million records, SAME and SPIN, s";
        goal(what, true, 0.05, cpu.median(), None);
    }
    let by = |of| report.bystanders.iter().find(|row| row.tracer == of);
    for (at, (call, wanted)) in BYSTANDING.into_iter().zip([25.0, 50.0]).enumerate() {
        let floor = by(FLOOR).map(|row| row.added[at].median());
        for (tracer, how) in [
            (Tracer::Shmtrace, ""),
            (Tracer::Sparing, ", `--without-failed-sends`"),
        ] {
            if let Some(own) = by(tracer) {
                let what = format!("`{call}` of a bystander{how}, ns");
                goal(&what, true, wanted, own.added[at].median(), floor);
            }
        }
    }
    for account in report
        .accounts
        .iter()
        .filter(|account| account.stall.is_zero())
    {
        let what = format!(
            "lost of {} calls of {} writers",
            account.made, account.writers
        );
        goal(&what, true, 0.0, account.calls.lost as f64, None);
        let what = format!(
            "processor time for a million records, {} writers, s",
            account.writers
        );
        goal(&what, true, 0.05, account.cpu, None);
        goal(
            &format!("{there}, s"),
            true,
            0.05,
            account.cpu / slower,
            None,
        );
    }
    let idle = report.idle.shares.last().copied().unwrap_or(f64::NAN);
    goal(
        "idle tree of 32, % of a processor",
        true,
        0.5,
        idle * 100.0,
        None,
    );
    for delay in &report.delays {
        let what = |which| format!("stuck to finding, {}, {which}, ms", delay.load);
        goal(&what("median"), true, 60.0, delay.delays.median(), None);
        goal(
            &what("99th percentile"),
            true,
            70.0,
            delay.delays.quantile(0.99),
            None,
        );
    }
    let millis = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    goal(
        "attach with 32, ms",
        true,
        300.0,
        millis(report.idle.attach),
        None,
    );
    goal(
        "detach with 32, ms",
        true,
        300.0,
        millis(report.idle.detach),
        None,
    );
    let resident = report.idle.resident_kib.iter().max().copied();
    let resident = resident.unwrap_or_default() as f64 / 1024.0;
    goal("resident with 32, MiB", true, 40.0, resident, None);
    let megabytes = report.program_bytes as f64 / 1e6;
    goal("program without symbols, MB", true, 12.0, megabytes, None);
    goals
}
