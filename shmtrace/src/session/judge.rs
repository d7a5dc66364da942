//! The engine with everything that follows its every step: names and recordings.

use shmtrace_engine::{
    Config, Engine, Finding, Mono, Output, Summary,
    input::{Event, Input},
};

use super::{Directory, Options};
use crate::recording::{FlightRecorder, Header, Recorder, Step};

/// Takes steps, live or from a recording, and says what follows from them.
pub(crate) struct Judge {
    engine: Engine,
    pub(crate) names: Directory,
    recorder: Option<Recorder>,
    flight: Option<FlightRecorder>,
}

impl Judge {
    /// A judge of a live watch, which records what the options ask for.
    pub(crate) fn live(options: &Options, header: &Header) -> anyhow::Result<Self> {
        let mut judge = Self::replaying(options);
        if let Some(path) = &options.record {
            judge.recorder = Some(Recorder::create(path, header)?);
        }
        if let Some(directory) = &options.record_findings {
            judge.flight = Some(FlightRecorder::new(directory.clone(), header.clone()));
        }
        Ok(judge)
    }

    /// A judge of a recording.
    pub(crate) fn replaying(options: &Options) -> Self {
        Self::plain(options.engine())
    }

    /// One that records nothing.
    pub(crate) fn plain(config: Config) -> Self {
        Self {
            engine: Engine::new(config),
            names: Directory::default(),
            recorder: None,
            flight: None,
        }
    }

    /// Takes one step.
    pub(crate) fn step(&mut self, step: Step) -> anyhow::Result<()> {
        if let Some(recorder) = &mut self.recorder {
            recorder.step(&step)?;
            if matches!(step, Step::Advance { .. }) {
                recorder.flush()?;
            }
        }
        if let Some(flight) = &mut self.flight {
            flight.step(&step)?;
        }
        match step {
            Step::Attached(at) => self.engine.attached(at),
            Step::Advance {
                now,
                complete_until,
            } => self.engine.advance(now, complete_until),
            Step::Input(input) => {
                if let Input::Topology(topology) = &input {
                    self.names.note(topology);
                }
                self.engine.handle(input);
            }
        }
        Ok(())
    }

    /// Tells the engine something.
    pub(crate) fn tell(&mut self, input: Input) -> anyhow::Result<()> {
        self.step(Step::Input(input))
    }

    /// The same for an event.
    pub(crate) fn tell_event(&mut self, event: &Event) -> anyhow::Result<()> {
        if self.recorder.is_some() || self.flight.is_some() {
            return self.tell(Input::Event(*event));
        }
        self.engine.event_seen(event);
        Ok(())
    }

    /// What the engine has to say.
    pub(crate) fn next(&mut self) -> Option<Output> {
        self.engine.poll_output()
    }

    /// A finding was made; keeps what led to it where that was asked for.
    pub(crate) fn keep(&mut self, finding: &Finding) -> anyhow::Result<()> {
        if let Some(flight) = &mut self.flight
            && let Some(path) = flight.finding(finding)?
        {
            tracing::info!("recording of f{} goes to {}", finding.id, path.display());
        }
        Ok(())
    }

    /// Waits until what is recorded is written.
    pub(crate) fn finish(&mut self) -> anyhow::Result<()> {
        self.flight.as_mut().map_or(Ok(()), FlightRecorder::finish)
    }

    /// What was not recorded, and why.
    pub(crate) fn notes(&mut self) -> Vec<String> {
        self.flight
            .as_mut()
            .map(FlightRecorder::notes)
            .unwrap_or_default()
    }

    pub(crate) fn next_timeout(&self) -> Option<Mono> {
        self.engine.next_timeout()
    }

    pub(crate) fn summary(&self) -> Summary {
        self.engine.summary()
    }
}
