//! The report, in markdown.

use std::{fmt::Write as _, time::Duration};

use super::{
    Bench,
    accounting::Account,
    delay::Delay,
    figures::Samples,
    goals,
    growth::Growth,
    load::Placement,
    parts::Parts,
    programs::Timed,
    tracer::{Cost, Tracer},
};
use crate::process;

/// Calls of those that nobody traces.
pub(crate) const BYSTANDING: [&str; 2] = ["getppid", "sendrecv"];

/// All figures of one run.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) rows: Vec<Row>,
    /// Tracers that could not be had here, and why.
    pub(crate) absent: Vec<String>,
    pub(crate) bystanders: Vec<Bystander>,
    pub(crate) timed: Vec<Timed>,
    pub(crate) parts: Parts,
    pub(crate) growth: Vec<Growth>,
    pub(crate) delays: Vec<Delay>,
    pub(crate) idle: Idle,
    pub(crate) idle_without_canary: Idle,
    pub(crate) accounts: Vec<Account>,
    /// Of the program without symbols.
    pub(crate) program_bytes: u64,
}

/// The figures of one tracer.
pub(crate) struct Row {
    pub(crate) tracer: Tracer,
    pub(crate) same: Samples,
    pub(crate) same_untraced: Samples,
    pub(crate) spin: Samples,
    pub(crate) spin_untraced: Samples,
    pub(crate) micro: Samples,
    pub(crate) micro_untraced: Samples,
    /// Median and 99th percentile.
    pub(crate) paced: [Samples; 2],
    pub(crate) paced_untraced: [Samples; 2],
    pub(crate) costs: Vec<Cost>,
}

/// What a tracer of others costs, in nanoseconds for each of [`BYSTANDING`].
pub(crate) struct Bystander {
    pub(crate) tracer: Tracer,
    pub(crate) untraced: [Samples; 2],
    pub(crate) added: [Samples; 2],
}

/// What an idle tree costs.
#[derive(Default)]
pub(crate) struct Idle {
    /// Of one processor, for one window after the other.
    pub(crate) shares: Vec<f64>,
    pub(crate) resident_kib: Vec<u64>,
    pub(crate) attach: Duration,
    pub(crate) detach: Duration,
}

impl Idle {
    /// Its shares.
    fn percent(&self) -> String {
        let percent = |share: &f64| format!("{:.2} %", share * 100.0);
        list(self.shares.iter().map(percent))
    }
}

impl Bystander {
    pub(crate) fn new(tracer: Tracer) -> Self {
        Self {
            tracer,
            untraced: Default::default(),
            added: Default::default(),
        }
    }
}

impl Row {
    pub(crate) fn new(tracer: Tracer) -> Self {
        Self {
            tracer,
            same: Samples::default(),
            same_untraced: Samples::default(),
            spin: Samples::default(),
            spin_untraced: Samples::default(),
            micro: Samples::default(),
            micro_untraced: Samples::default(),
            paced: Default::default(),
            paced_untraced: Default::default(),
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
             each figure is a median of {} measurements with each tracer in turn, {} ms after the load began, compared with those without any just before and after on the \
             same processes; in brackets the lowest and the highest, for SPIN, of which there are three times as many, the quartiles.\n",
            bench.pairs,
            bench.millis,
            bench.transport,
            if bench.alone { " --alone" } else { "" },
            machine(),
            bench.pairs,
            super::WARM_UP.as_millis()
        )?;
        writeln!(
            text,
            "* SAME: host and plugin on one processor, where nothing ever waits: the most calls a second, the worst case. \
             Traced round trips a second as a share of untraced ones.\n\
             * SPIN: each on its own processor beside a SCHED_IDLE spinner, so that neither halts: a busy machine. The same share.\n\
             * micro: nanoseconds added to one `sendto` or `recvfrom` on a doorbell.\n\
             * paced: microseconds of a round trip, median / 99th percentile, with a pause of 200 us after each, placed as in SPIN.\n\
             * its reader stopped meanwhile: stopped (SIGSTOP) for {} ms at a time while that time is measured, and running in between, so \
             that what is left is what the programs cost.\n\
             * floor: what a tracer at these places costs that does what the row says and nothing else.\n",
            super::STOPPED.as_millis()
        )?;
        self.write_rows(text)?;
        for absent in &self.absent {
            writeln!(text, "\nNot measured: {absent}.")?;
        }
        if let Some(row) = self.rows.first() {
            write_costs(row, text)?;
        }
        let stopped = self.rows.iter().find(|row| row.tracer == Tracer::Stopped);
        let lost = stopped.map_or(0, |row| row.costs.iter().map(|cost| cost.lost).sum());
        if lost > 0 {
            writeln!(
                text,
                "\nOf the stopped reader {lost} records were lost, so that its row shows in part what a full buffer costs."
            )?;
        }
        self.write_bystanders(text)?;
        self.write_timed(text)?;
        self.write_parts(text)?;
        self.write_growth(text)?;
        writeln!(
            text,
            "\nAn idle tree of a host and 31 plugins, in each of {} windows of 10 s after it was attached to: {} of one processor (without \
             the canary: {}), and {} resident. Attached in {:.0} ms, detached in {:.0} ms. The program without symbols: {:.1} MB.",
            self.idle.shares.len(),
            self.idle.percent(),
            self.idle_without_canary.percent(),
            list(
                self.idle
                    .resident_kib
                    .iter()
                    .map(|kib| format!("{:.1} MiB", *kib as f64 / 1024.0))
            ),
            self.idle.attach.as_secs_f64() * 1e3,
            self.idle.detach.as_secs_f64() * 1e3,
            self.program_bytes as f64 / 1e6
        )?;
        self.write_accounts(text)?;
        goals::write(self, text)
    }

    fn write_bystanders(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "\n| bystander: a call of a process that is not traced, ns untraced and more | `getppid` | `sendrecv` |\n|---|---|---|"
        )?;
        if let Some(Bystander { untraced, .. }) = self.bystanders.first() {
            let [getppid, sendrecv] = untraced;
            writeln!(
                text,
                "| untraced | {} | {} |",
                getppid.shown(),
                sendrecv.shown()
            )?;
        }
        for Bystander { tracer, added, .. } in &self.bystanders {
            let [getppid, sendrecv] = added;
            writeln!(
                text,
                "| {} | {} | {} |",
                tracer.name(),
                getppid.shown(),
                sendrecv.shown()
            )?;
        }
        Ok(())
    }

    fn write_timed(&self, text: &mut String) -> std::fmt::Result {
        if self.timed.is_empty() {
            return Ok(());
        }
        writeln!(
            text,
            "\nWhere a round trip's time goes, by the kernel's account of the programs (`kernel.bpf_stats_enabled`, whose own cost is \
             included); what a round trip takes longer beyond that is what they do to everything else. In brackets the quartiles.\n\n\
             | | runs of programs in a round trip | in them, ns | a round trip takes longer, ns |\n|---|---|---|---|"
        )?;
        for row in &self.timed {
            let place = match row.placement {
                Placement::Same => "SAME",
                Placement::Spin => "SPIN",
            };
            writeln!(
                text,
                "| {place}, {} | {:.1} | {:.0} | {} |",
                row.tracer.name(),
                row.runs.median(),
                row.inside.median(),
                row.longer.quartiles()
            )?;
        }
        Ok(())
    }

    fn write_parts(&self, text: &mut String) -> std::fmt::Result {
        if self.parts.is_empty() {
            return Ok(());
        }
        let parts = self.parts.iter();
        let parts = parts.map(|(part, share)| format!("{part} {:.0} %", share * 100.0));
        writeln!(
            text,
            "\nWhere the daemon's processor time goes in SAME (`perf record`, each sample by the source file that it comes from): {}.",
            list(parts)
        )
    }

    fn write_growth(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "\n| peers | unrelated processes | a call untraced, ns | traced, more | processor time for a million records, s |\n\
             |---|---|---|---|---|"
        )?;
        for row in &self.growth {
            writeln!(
                text,
                "| {} | {} | {} | {} | {} |",
                row.peers,
                row.unrelated,
                row.untraced.shown(),
                row.added.shown(),
                row.cpu.shown()
            )?;
        }
        writeln!(
            text,
            "\n| from stuck to the finding, grace 50 ms | trials | median, ms | p99, ms |\n|---|---|---|---|"
        )?;
        for Delay { load, delays } in &self.delays {
            writeln!(
                text,
                "| {load} | {} | {:.1} | {:.1} |",
                delays.len(),
                delays.median(),
                delays.quantile(0.99)
            )?;
        }
        Ok(())
    }

    fn write_accounts(&self, text: &mut String) -> std::fmt::Result {
        writeln!(
            text,
            "\nEvery call is accounted for: writers signal and take as fast as they can while the reader is stopped every half second. \
             Calls seen = recorded + lost + filtered; the doorbell's transport makes a few of its own beside those of the writers.\n\n\
             | writers | reader stopped for | calls made | a second | seen | recorded | lost | filtered | unaccounted | processor time for a million records, s |\n\
             |---|---|---|---|---|---|---|---|---|---|"
        )?;
        for account in &self.accounts {
            let calls = account.calls;
            let known = calls.recorded + calls.lost + calls.filtered;
            writeln!(
                text,
                "| {} | {} ms | {} | {:.0} | {} | {} | {} | {} | {} | {:.3} |",
                account.writers,
                account.stall.as_millis(),
                account.made,
                account.made as f64 / account.time.as_secs_f64(),
                calls.seen,
                calls.recorded,
                calls.lost,
                calls.filtered,
                i128::from(calls.seen) - i128::from(known),
                account.cpu
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
                row.spin_untraced.quartiles(),
                row.micro_untraced.shown(),
                row.paced_untraced[0].shown(),
                row.paced_untraced[1].shown()
            )?;
        }
        for row in &self.rows {
            let (p50, p99) = (row.paced[0].shown(), row.paced[1].shown());
            writeln!(
                text,
                "| {} | {} | {} | {} | {p50} / {p99} |",
                row.tracer.name(),
                row.same.shown(),
                row.spin.quartiles(),
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
    let cpu = samples(&Cost::cpu_per_million);
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

/// `a, b, c`.
fn list(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(", ")
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
