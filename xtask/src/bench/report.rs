//! The report, in markdown.

use std::fmt::Write as _;

use super::{Bench, accounting::Account, figures::Samples, tracer::Cost};
use crate::process;

/// All figures of one run.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    /// Tracers that could not be had here, and why.
    pub(crate) absent: Vec<String>,
    /// Call, its time untraced, and what tracing of others adds to it.
    pub(crate) bystanders: Vec<(&'static str, Samples, Samples)>,
    pub(crate) idle: Idle,
    pub(crate) accounts: Vec<Account>,
}

/// The figures of one tracer.
pub(crate) struct Row {
    name: &'static str,
    pub(crate) same: Samples,
    pub(crate) same_untraced: Samples,
    pub(crate) spin: Samples,
    pub(crate) spin_untraced: Samples,
    pub(crate) micro: Samples,
    pub(crate) micro_untraced: Samples,
    pub(crate) paced: (Samples, Samples),
    pub(crate) paced_untraced: (Samples, Samples),
    pub(crate) costs: Vec<Cost>,
}

/// What an idle tree costs.
#[derive(Default)]
pub(crate) struct Idle {
    /// Of one processor.
    pub(crate) share: f64,
    pub(crate) resident_kib: u64,
}

impl Row {
    pub(crate) fn new(name: &'static str) -> Self {
        let none = Samples::default;
        Self {
            name,
            same: none(),
            same_untraced: none(),
            spin: none(),
            spin_untraced: none(),
            micro: none(),
            micro_untraced: none(),
            paced: (none(), none()),
            paced_untraced: (none(), none()),
            costs: Vec::new(),
        }
    }
}

impl Report {
    pub(crate) fn text(&self, bench: &Bench) -> String {
        let mut text = String::from("# What tracing costs\n\n");
        self.write(bench, &mut text)
            .unwrap_or_else(|_| unreachable!("writing to a string does not fail"));
        text
    }

    fn write(&self, bench: &Bench, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "Measured by `cargo xtask bench --pairs {} --millis {} --transport {}{}` on {}. A host and one plugin call each other; \
             each figure is a median of {} pairs of measurements, without and with the tracer in turn on the same processes, with the lowest \
             and the highest in brackets.\n",
            bench.pairs,
            bench.millis,
            bench.transport,
            if bench.alone { " --alone" } else { "" },
            machine(),
            bench.pairs
        )?;
        writeln!(
            text,
            "* SAME: host and plugin on one processor, where nothing ever waits: the most calls a second, the worst case. \
             Traced round trips a second as a share of untraced ones.\n\
             * SPIN: each on its own processor beside a SCHED_IDLE spinner, so that neither halts: a busy machine. The same share.\n\
             * micro: nanoseconds added to one `sendto` or `recvfrom` on a doorbell.\n\
             * paced: microseconds of a round trip, median / 99th percentile, with a pause of 200 us after each, placed as in SPIN.\n"
        )?;
        self.write_rows(text)?;
        for absent in &self.absent {
            writeln!(text, "\nNot measured: {absent}.")?;
        }
        if let Some(row) = self.rows.first() {
            write_costs(row, text)?;
        }
        writeln!(
            text,
            "\n| bystander: a call of a process that is not traced | untraced, ns | added, ns |\n|---|---|---|"
        )?;
        for (what, untraced, more) in &self.bystanders {
            writeln!(
                text,
                "| `{what}` | {} | {} |",
                untraced.shown(),
                more.shown()
            )?;
        }
        writeln!(
            text,
            "\nAn idle tree of a host and 31 plugins: {:.2} % of one processor, {:.1} MiB resident at most.",
            self.idle.share * 100.0,
            self.idle.resident_kib as f64 / 1024.0
        )?;
        self.write_accounts(text)
    }

    fn write_accounts(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "\nEvery call is accounted for: writers signal and take as fast as they can while the reader is stopped every half second. \
             Calls seen = recorded + lost + filtered; the doorbell's transport makes a few of its own beside those of the writers.\n\n\
             | writers | reader stopped for | calls made | a second | seen | recorded | lost | filtered | unaccounted |\n\
             |---|---|---|---|---|---|---|---|---|"
        )?;
        for account in &self.accounts {
            let calls = account.calls;
            let known = calls.recorded + calls.lost + calls.filtered;
            writeln!(
                text,
                "| {} | {} ms | {} | {:.0} | {} | {} | {} | {} | {} |",
                account.writers,
                account.stall.as_millis(),
                account.made,
                account.made as f64 / account.time.as_secs_f64(),
                calls.seen,
                calls.recorded,
                calls.lost,
                calls.filtered,
                i128::from(calls.seen) - i128::from(known)
            )?;
        }
        Ok(())
    }

    fn write_rows(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "| | SAME | SPIN | micro, ns | paced, us |\n|---|---|---|---|---|"
        )?;
        if let Some(row) = self.rows.first() {
            writeln!(
                text,
                "| untraced | {} a second | {} a second | {} a call | {} / {} |",
                row.same_untraced.shown(),
                row.spin_untraced.shown(),
                row.micro_untraced.shown(),
                row.paced_untraced.0.shown(),
                row.paced_untraced.1.shown()
            )?;
        }
        for row in &self.rows {
            let (p50, p99) = (row.paced.0.shown(), row.paced.1.shown());
            writeln!(
                text,
                "| {} | {} | {} | {} | {p50} / {p99} |",
                row.name,
                row.same.shown(),
                row.spin.shown(),
                row.micro.shown()
            )?;
        }
        Ok(())
    }
}

fn write_costs(row: &Row, text: &mut String) -> std::fmt::Result {
    let samples = |of: &dyn Fn(&Cost) -> f64| {
        let mut samples = Samples::default();
        row.costs.iter().for_each(|cost| samples.push(of(cost)));
        samples
    };
    let attach = samples(&|cost| cost.attach.as_secs_f64() * 1e3);
    let detach = samples(&|cost| cost.detach.as_secs_f64() * 1e3);
    let cpu = samples(&|cost| cost.cpu.as_secs_f64() / (cost.events as f64 / 1e6));
    let rate = row.costs.iter().map(|cost| cost.events).sum::<u64>();
    let sum = |of: &dyn Fn(&Cost) -> u64| row.costs.iter().map(of).sum::<u64>();
    writeln!(
        text,
        "\nshmtrace in these runs: {rate} records, {} lost, {} findings; {} s of processor time per million records; \
         attached in {} ms, detached in {} ms; {:.1} MiB resident at most.",
        sum(&|cost| cost.lost),
        sum(&|cost| cost.findings),
        cpu.shown(),
        attach.shown(),
        detach.shown(),
        row.costs
            .iter()
            .map(|cost| cost.resident_kib)
            .max()
            .unwrap_or_default() as f64
            / 1024.0
    )
}

fn machine() -> String {
    let kernel = process::output(&mut process::command("uname", ["-sr"])).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let model = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = model
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, name)| name);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("unknown");
    format!(
        "{}, {cpus} processors ({model}), with a load average of {load} at its end",
        kernel.trim()
    )
}
