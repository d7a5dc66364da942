//! A page on each class and cause: what it means, what is seen, what to look at.

use crate::{Cause, Code};

impl Code {
    /// The page on this class.
    pub const fn explain(self) -> &'static str {
        match self {
            Self::MissedWakeup => {
                "An entry lies in a ring, its consumer sleeps, and nothing inside the lane will ever wake it.

What is seen: visible_head is greater than tail; every thread of the consumer that could serve the lane is asleep, one at \
least in a wait for fds; the doorbell's queue is empty; every thread of the producer is past its ring call, asleep or dead. \
Head, tail and the threads' run counts were the same again when the grace was over. So it is no delay: only a signal that \
has nothing to do with this entry can still wake the consumer.

What to look at: the cause, if one is named, has a page of its own. If it is unknown, start the trace before the build and \
let it happen again. `shmtrace nudge` queues one token by hand; a build that goes on after that confirms the finding."
            }
            Self::NotDraining => {
                "A token is queued on the doorbell of a consumer that waits for fds and is not woken by it.

What is seen: as for missed-wakeup, but the doorbell's queue is not empty. The signal arrived; the consumer's epoll does not \
report it, or its runtime does not act upon it.

What to look at: whether the doorbell is (still) registered with the epoll on which the thread waits; with edge-triggered \
epoll, whether every wakeup reads until EWOULDBLOCK; with tokio's AsyncFd, whether clear_ready is called without a read \
that saw EWOULDBLOCK, and whether the task that awaits readiness was dropped."
            }
            Self::ConsumerBlocked => {
                "Entries wait, and every thread of the consumer sits in a call that no doorbell can end.

What is seen: no thread of the consumer waits for fds. Each sleeps in something else: wait4, read, nanosleep, a lock. The \
finding names the calls and their arguments.

What to look at: a blocking call on the runtime's thread (std::process::Command::output, std::thread::sleep, blocking file or \
pipe I/O, a mutex that is held across an await). Move it to spawn_blocking or use the asynchronous form. If it waits for a \
process or a lock, look at who holds that: it may wait for this very consumer."
            }
            Self::NeverEnqueued => {
                "Quiet where progress is expected, and nobody owes anybody anything that can be seen (--expect-progress).

What is seen: no index of any ring of the hub has moved for the given time, all rings are empty, every thread of every process \
that maps the hub is asleep, and no call is open.

What to look at: what the host awaits. It expects an answer to a message that it never enqueued, enqueued for another peer, or \
whose task was dropped before it got that far. A build that may be idle should not be watched with --expect-progress."
            }
            Self::Unanswered => {
                "A request was taken from its ring and no answer came (--expect-progress).

What is seen: quiet as in never-enqueued, but a message to a peer left its ring, nothing came back on its channel, and the \
peer that took it sleeps. The finding names peer, channel, method and message.

What to look at: the handler of that method in that plugin. A task that was dropped or panicked, an answer that was sent to \
nobody, a handler that waits for another message."
            }
            Self::RingFull => {
                "A ring is full, and its consumer does not empty it: backpressure came to a halt.

What is seen: as many entries wait as the ring holds, the consumer is asleep and is not going to take any, so whoever has \
something to send waits for space.

What to look at: what blocks the consumer; the threads of the finding say where each one sleeps. Two processes that fill each \
other's ring and wait for space before they read again block each other for ever: one side must read while it waits."
            }
            Self::SlotsStuck => {
                "Slots are in flight that nobody refers to, or a size class has no free slot left.

What is seen: slots marked in flight whose generation has stayed the same while nothing in the hub moved and everybody slept, \
with no waiting descriptor that refers to them; or a class without a free slot in the same circumstances.

What to look at: a receiver that drops a message without freeing its slot, a process that died with slots in hand, a sender \
that allocates and then fails to enqueue."
            }
            Self::RingCorrupt => {
                "The indexes or entries of a ring break the rules of the protocol.

What is seen: a head or tail that moved back, a tail beyond the head, more entries than the ring holds, or a waiting descriptor \
that was overwritten.

What to look at: two producers on one ring (two tasks that enqueue without the lock, a child that inherited the mapping), two \
plugins with the same peer id, a write beyond a slot."
            }
            Self::PeerDied => {
                "A process is gone, and the hub still counts on it.

What is seen: the process of a peer has ended while its entry in the peer table is active. A dead peer's doorbell gives no \
end of file, so whoever waits for its answer waits for nobody.

What to look at: how the host watches its children and what it does with the calls that are open with one that died; then, why \
it died (exit status, kernel log)."
            }
            Self::Starved => {
                "A thread that should serve a lane is runnable and is not given a CPU. This is no lost wakeup.

What is seen: the thread was in state R at two looks, its count of runs and its time on a CPU did not change in between, and \
an entry waits for its process.

What to look at: the load, priorities and scheduling classes, the CPU limit of the cgroup (cpu.max, cpu.stat: nr_throttled)."
            }
            Self::MemoryLimit => {
                "The memory limit of the cgroup was reached.

What is seen: the kernel killed a process of the cgroup (oom_kill went up), or the cgroup is full, its limit is hit again and \
again, and nothing moves.

What to look at: memory.max or memory.limit_in_bytes, memory.events, and who uses the memory. A hub is a file in memory and \
counts too. What hangs or dies now does so for want of memory, not because of the transport."
            }
        }
    }
}

impl Cause {
    /// The page on this cause.
    pub const fn explain(self) -> &'static str {
        match self {
            Self::ConsumedThenSlept => {
                "The consumer took the token and went to sleep without seeing the entry that it announced.

What is seen: the producer published and rang; a thread of the consumer received the token after that; the queue is empty, and \
tail is still below the head that the ring call announced.

What to look at: the order in the consumer. Drain the doorbell first, then empty the ring, then wait; with the other order \
what comes between the two is lost. A race about readiness looks the same: an edge that is cleared although it is newer than \
the look at the ring."
            }
            Self::RungBeforePublish => {
                "The producer rang first and published afterwards.

What is seen: at the last ring call head had not moved since the one before, so there was nothing to announce. Then head \
moved, and no ring call came after it.

What to look at: the order in the producer. Store visible_head (Release), then ring. If the code has it right, look for a \
signal that is given before the lock of the sending side is taken."
            }
            Self::NeverRung => {
                "The producer published and did not ring.

What is seen: head moved, every thread of the producer went to sleep or ended afterwards, and no ring call covers that head.

What to look at: what returns, fails or is cancelled between publish and ring: an early return, a `?`, an await in between \
whose future was dropped, a check \"is the consumer awake\" that is wrong."
            }
            Self::RingFailed => {
                "The ring call returned an error, so there was no signal.

What is seen: a send on the doorbell that covers the head failed with something other than EAGAIN. (EAGAIN means that the \
queue is full, so a token is there already, and is fine.)

What to look at: the error in the timeline. ECONNREFUSED, EPIPE: the other end is closed. EBADF, ENOTSOCK: the fd was closed \
or reused. And that the producer ignores the error."
            }
            Self::WrongDoorbell => {
                "The producer published to one peer and rang another.

What is seen: no ring call on this lane covers the head; at that time the same process rang the doorbell of another peer \
for which it had nothing new.

What to look at: the map from peers to doorbells, above all after a plugin was restarted or a peer id was used again."
            }
            Self::Stolen => {
                "A token for the consumer was taken by somebody else.

What is seen: the ring call queued a token, and another process received it, or more tokens are gone than the consumer took.

What to look at: processes that hold a copy of the consumer's end: children started without close-on-exec, the host's own \
copy of the plugin's end, two plugins with one fd. `ss -xp` or /proc/PID/fd show who holds it."
            }
            Self::Unknown => {
                "Why the wakeup was lost cannot be told.

What is seen: the stuck state is proven by what is observed, but the history is not there or fits more than one cause: the \
trace began after the fault, records were lost, or events of several threads overlap.

What to look at: watch from the start (`shmtrace --exec`), look at lost records in the summary. The threads and the ring of the \
finding are right all the same."
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_says_what_is_seen_and_what_to_look_at() {
        let codes = Code::ALL.iter().map(|code| (code.as_str(), code.explain()));
        let causes = Cause::ALL
            .iter()
            .map(|cause| (cause.as_str(), cause.explain()));
        for (name, page) in codes.chain(causes) {
            let parts: Vec<&str> = page.split("\n\n").collect();
            assert_eq!(parts.len(), 3, "{name}");
            assert!(parts[1].starts_with("What is seen: "), "{name}");
            assert!(parts[2].starts_with("What to look at: "), "{name}");
            assert!(
                !page.contains("  "),
                "{name}: lines joined with too much space"
            );
        }
    }
}
