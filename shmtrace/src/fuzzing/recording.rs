//! Recordings: as files with anything in them, and as steps that no watch would have taken.

use std::io::BufRead;

use super::{Sink, options};
use crate::{
    recording::{Header, Recording, Step},
    report::WallClock,
    session::replay,
};

/// The bytes are the file.
pub fn recording(data: &[u8]) {
    if let Ok(recording) = Recording::open(data) {
        judge(recording);
    }
}

/// The bytes are steps in the coding of `postcard`: most changes of them are other steps, and not damage.
pub fn steps(data: &[u8]) {
    let mut rest = data;
    let mut steps: Vec<Step> = Vec::new();
    while let Ok((step, after)) = postcard::take_from_bytes(rest) {
        steps.push(step);
        if after.is_empty() {
            break;
        }
        rest = after;
    }
    let header = Header::of_watch(&options(), "6.1");
    let mut file = Vec::new();
    let written = serde_json::to_writer(&mut file, &header);
    assert!(written.is_ok(), "a header can be written");
    for step in &steps {
        file.push(b'\n');
        let written = serde_json::to_writer(&mut file, step);
        assert!(written.is_ok(), "a step can be written: {step:?}");
    }
    file.push(b'\n');
    // What was written is read back as it was.
    let mut recording = Recording::open(&file[..]).expect("the header is whole");
    for step in &steps {
        let read = recording.next_step().expect("each step is whole");
        assert_eq!(read.as_ref(), Some(step));
    }
    judge(Recording::open(&file[..]).expect("the header is whole"));
}

fn judge<R: BufRead>(recording: Recording<R>) {
    let mut options = options();
    let header = &recording.header;
    options.grace_ns = header.grace_ns;
    options.expect_progress_ns = header.expect_progress_ns;
    match WallClock::of_recording(&header.start_time, header.start_mono_ns) {
        Some(clock) => options.clock = clock,
        None => return,
    }
    let mut sink = Sink::new(options.clock);
    let _refused = replay(recording, &options, &mut sink);
    sink.check();
}
