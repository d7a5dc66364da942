//! What comes in: samples of the rings, records and what follows from each, losses.

use shmtrace_common::{Kind, NO_PEER, Record};
use shmtrace_engine::{
    Mono, ProcId, SocketInode,
    input::{EventKind, Input, Loss, Topology},
};

use super::{COUNT, Session, decode};
use crate::{discover::Hint, observe::mono_now};

/// Records that are read, decoded and judged before the next ones are: as many as stay in a CPU's nearest cache.
const AT_ONCE: usize = 128;

impl Session<'_> {
    /// Looks at every lane. Whoever publishes, rings or takes leaves a record, if only of falling asleep again, so there is
    /// no need to look while there are none and nothing waits; but now and then, since records can be lost.
    pub(super) fn sweep(&mut self, now: Mono) -> anyhow::Result<()> {
        self.swept = now;
        self.samples.clear();
        self.discovery.samples(now, &mut self.samples);
        self.entries_wait = self.samples.iter().any(|sample| !sample.ring.is_empty());
        let mut samples = std::mem::take(&mut self.samples);
        for sample in samples.drain(..) {
            self.tell(Input::Sample(sample))?;
        }
        self.samples = samples;
        Ok(())
    }

    /// Takes every record that is there; whether there was one.
    pub(super) fn drain(&mut self, now: Mono) -> anyhow::Result<bool> {
        let mut records = std::mem::take(&mut self.records);
        let mut number = 0;
        let drained = loop {
            records.clear();
            let drained = self.probes.drain(AT_ONCE, |record| records.push(*record));
            number += records.len();
            for record in &records {
                self.record(record)?;
            }
            if !drained.more {
                break drained;
            }
        };
        self.records = records;
        self.busy = drained.busy;
        let fast = self.pace.is_fast(now, number);
        self.probes.watch_failed_sends(!fast);
        anyhow::ensure!(
            drained.foreign == 0,
            "the probes speak another version of the record format: build shmtrace again"
        );
        let lost = self.probes.lost();
        if lost != self.lost {
            // Some of them may be later than what was drained.
            self.tell_loss(self.last_drain, lost.wrapping_sub(self.lost))?;
            self.lost = lost;
        }
        if now.since(self.counted) >= COUNT {
            self.count(now)?;
        }
        // What lies behind an unfinished record is from after the drain before.
        if !drained.unfinished {
            self.last_drain = now;
        }
        Ok(number > 0)
    }

    /// Reads the probes' counters, and asks what no counter of theirs knows of.
    pub(super) fn count(&mut self, now: Mono) -> anyhow::Result<()> {
        let left_out = self.tally.counters(&self.probes, now)?;
        if left_out > 0 {
            self.tell_loss(self.counted, left_out)?;
        }
        self.counted = now;
        Ok(())
    }

    fn tell_loss(&mut self, from: Mono, records: u64) -> anyhow::Result<()> {
        let to = mono_now();
        // At the next refresh and not at once: whoever is behind must not fall further behind by looking around.
        self.lost_since_refresh = true;
        self.tell(Input::Loss(Loss { from, to, records }))
    }

    pub(super) fn record(&mut self, record: &Record) -> anyhow::Result<()> {
        match Kind::from_u8(record.kind) {
            Some(Kind::Fork) => {
                let child = u32::try_from(record.arg).unwrap_or(0);
                self.tree.forked(record.pid, child);
                self.belongings.forked(record.pid, child);
                self.hint(Hint::Forked { child });
            }
            Some(Kind::Exec) => self.hint(Hint::Execed { pid: record.pid }),
            Some(Kind::Map) => self.hint(Hint::Mapped { pid: record.pid }),
            Some(Kind::Ring) if record.peer == NO_PEER && record.arg != 0 => {
                let socket = SocketInode(record.arg);
                let rings = decode::indexes(record);
                self.hinted |= self
                    .discovery
                    .rung(socket, record.pid, Mono(record.at), rings);
            }
            Some(Kind::Take) if record.peer == NO_PEER && record.arg != 0 => {
                let socket = SocketInode(record.arg);
                self.hinted |= self.discovery.took(socket, record.pid);
            }
            _ => {}
        }
        // Left where it is: to copy what has just been written takes as long as to write it.
        let event = decode::event(record, &mut self.tree);
        let Some(event) = &event else {
            return Ok(());
        };
        if self.options.events && !self.belongings.has(record.pid) {
            self.report.event(event, &self.judge.names)?;
        }
        let exited = matches!(event.kind, EventKind::Exit { process: true });
        self.tell_event(event)?;
        if exited {
            self.hint(Hint::Exited { pid: record.pid });
            if let Some(proc) = self.tree.exited(record.pid) {
                self.ended(proc, Mono(record.at))?;
            }
        }
        Ok(())
    }

    pub(super) fn hint(&mut self, hint: Hint) {
        self.discovery.hint(hint);
        self.hinted = true;
    }

    pub(super) fn ended(&mut self, proc: ProcId, at: Mono) -> anyhow::Result<()> {
        self.tell(Input::Topology(Topology::ProcessExited { proc, at }))
    }
}
