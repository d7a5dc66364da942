//! What the engine keeps is bounded, and what goes for want of room is counted.

use shmtrace_engine::{
    Config, Engine, Mono, ProcId, Tid,
    input::{Event, EventKind, Input},
};

/// Events that can wait for their turn at once.
const MOST_PENDING: u64 = 1 << 20;

#[test]
fn events_beyond_what_can_wait_are_counted() {
    let mut engine = Engine::new(Config::default());
    let mut event = Event {
        at: Mono(0),
        cpu: 0,
        proc: ProcId { pid: 1, start: 1 },
        tid: Tid(1),
        kind: EventKind::Exec,
    };
    for at in 0..MOST_PENDING {
        event.at = Mono(at);
        engine.handle(Input::Event(event));
    }
    assert_eq!(engine.summary().evicted, 0);
    for at in MOST_PENDING..MOST_PENDING + 5 {
        event.at = Mono(at);
        engine.handle(Input::Event(event));
    }
    assert_eq!(engine.summary().evicted, 5);
}
