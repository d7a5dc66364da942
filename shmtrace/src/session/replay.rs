//! Judging a recording again.

use std::io::BufRead;

use shmtrace_engine::{Mono, Output};

use super::{Options, Tally, Verdict, judge::Judge};
use crate::{
    exit::Exit,
    recording::{Recording, Step},
    report::{Header, Report},
};

/// Gives a recording's steps to the engine and reports what it says, as the watch did that recorded them.
pub fn replay<R: BufRead>(
    mut recording: Recording<R>,
    options: &Options,
    report: &mut dyn Report,
) -> anyhow::Result<Verdict> {
    let header = recording.header.clone();
    report.header(&Header {
        roots: header.roots,
        kernel: header.kernel,
        grace_ns: options.grace_ns,
        limits: Vec::new(),
    })?;
    let mut judge = Judge::replaying(options);
    let mut tally = Tally::new(Mono(header.start_mono_ns));
    let mut now = Mono(header.start_mono_ns);
    while let Some(step) = recording.next_step()? {
        tally.step(&step);
        if let Step::Advance { now: at, .. } = &step {
            now = now.max(*at);
        }
        if options.events
            && let Step::Input(shmtrace_engine::input::Input::Event(event)) = &step
        {
            report.event(event, &judge.names)?;
        }
        judge.step(step)?;
        while let Some(output) = judge.next() {
            // Requests were answered when it was recorded: the answers are steps.
            if let Output::Finding(finding) = output {
                tally.finding(&finding);
                if options.shows(&finding) {
                    report.finding(&finding, &judge.names)?;
                }
            }
        }
    }
    if recording.was_cut() {
        let note = "the recording was cut short, as by a recorder that was killed: what came after is not known";
        report.note(note)?;
        tally.note(note.to_owned());
    }
    let totals = tally.totals(now, &judge.summary());
    report.summary(&totals, &judge.names)?;
    let mut verdict = tally.verdict(
        &options.fail_on,
        &totals,
        judge.names.hubs().next().is_some(),
    );
    if recording.was_cut() && verdict.exit == Exit::Clean {
        verdict.exit = Exit::Inconclusive;
    }
    Ok(verdict)
}
