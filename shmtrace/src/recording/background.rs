//! A recording that is written beside the watch, which must not wait for it.

use std::{
    fs::File,
    io, mem,
    sync::mpsc::{Receiver, SyncSender, sync_channel},
    thread::{self, JoinHandle},
};

use super::{Header, Recorder, Step};

/// Steps that are handed over at once.
const BATCH: usize = 1024;
/// Batches that wait to be written at most: a disk that is slower than the traffic holds up the watch, as its memory is bounded.
const MOST_WAITING: usize = 256;
/// The writer's niceness: whoever is traced goes first.
const NICENESS: i32 = 10;

/// Writes steps to a file in a thread of its own.
pub(super) struct Background {
    batch: Vec<Step>,
    batches: Option<SyncSender<Vec<Step>>>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Background {
    /// Begins with these steps.
    pub(super) fn start(file: File, header: &Header, steps: Vec<Step>) -> io::Result<Self> {
        let recorder = Recorder::new(file, header)?;
        let (batches, written) = sync_channel(MOST_WAITING);
        let thread = thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(move || write(recorder, &written))?;
        let mut background = Self {
            batch: steps,
            batches: Some(batches),
            thread: Some(thread),
        };
        background.hand_over()?;
        Ok(background)
    }

    /// Adds a step.
    pub(super) fn step(&mut self, step: Step) -> io::Result<()> {
        self.batch.push(step);
        if self.batch.len() < BATCH {
            return Ok(());
        }
        self.hand_over()
    }

    /// Nothing is added any more; what is there goes on being written.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.hand_over()?;
        self.batches = None;
        Ok(())
    }

    /// Whether all is written, or failed to be.
    pub(super) fn is_done(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until all is written.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if self.batches.is_some() {
            self.close()?;
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(written)) => written,
            Some(Err(_)) => Err(io::Error::other("its writer panicked")),
            None => Ok(()),
        }
    }

    fn hand_over(&mut self) -> io::Result<()> {
        let batch = mem::take(&mut self.batch);
        let Some(batches) = &self.batches else {
            return Ok(());
        };
        if batches.send(batch).is_ok() {
            return Ok(());
        }
        // It ended because it could not write.
        self.batches = None;
        self.finish()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if let Err(error) = self.finish() {
            tracing::warn!("a recording is not complete: {error}");
        }
    }
}

fn write(mut recorder: Recorder, batches: &Receiver<Vec<Step>>) -> io::Result<()> {
    // Of this thread alone, on Linux.
    if let Err(error) = rustix::process::setpriority_process(None, NICENESS) {
        tracing::debug!("the recorder's niceness stays as it is: {error}");
    }
    for batch in batches {
        for step in &batch {
            recorder.step(step)?;
        }
        recorder.flush()?;
    }
    Ok(())
}
