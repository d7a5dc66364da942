//! The plugin: answers every request with its own payload, and carries out orders to misbehave.

use std::os::unix::process::parent_id;
use std::process::Command;
use std::ptr;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;
use rustix::thread::CpuSet;
use shm_transport::plugin_section;
use sim_kit::child;
use sim_kit::cli::PluginOptions;
use sim_kit::lane::{Endpoint, Message, Transport};
use sim_kit::{look, plugin, thief};

use crate::bell::{Bell, Failure, silent_pipe};
use crate::order::{Block, Order};
use crate::raw::{RawHub, RawRing};
use crate::spec::Lane;
use crate::wire::Wire;

type Side = <Wire as Transport>::PluginSide;

/// Runs until the transport fails or the host ends us.
pub(crate) fn run(options: &PluginOptions) -> anyhow::Result<()> {
    plugin::adopt_name();
    let name = std::env::args().next().unwrap_or_default();
    shm_debug::install_sigusr1_handler(&name).context("preparing to answer SIGUSR1")?;
    options.runtime.build(2)?.block_on(async {
        let endpoint = Wire::open(&options.hub_path, options.peer_id, options.doorbell_fd)?;
        let side = endpoint.clone();
        shm_debug::register_diagnostic(move |out| out.push_str(&plugin_section(&side.0, &name)));
        let raw = RawHub::of(&options.hub_path)?;
        let mut stage = Stage {
            endpoint,
            bell: Bell::new(options.doorbell_fd),
            requests: raw.ring(options.peer_id, Lane::HostToPeer),
            answers: raw.ring(options.peer_id, Lane::PeerToHost),
            swallowed: None,
        };
        loop {
            let request = stage.endpoint.recv().await?;
            match Order::of(&request) {
                None => stage.endpoint.send(request).await?,
                Some(order) => stage.obey(order, request).await?,
            }
        }
    })
}

struct Stage {
    endpoint: Side,
    bell: Bell,
    requests: RawRing,
    answers: RawRing,
    swallowed: Option<Message>,
}

impl Stage {
    async fn obey(&mut self, order: Order, request: Message) -> anyhow::Result<()> {
        match order {
            Order::EatToken | Order::EatTokenTwice | Order::Deaf(_) | Order::Block(..) => {
                self.endpoint.send(request).await?;
                self.neglect(order).await
            }
            Order::Unregister => {
                self.endpoint.send(request).await?;
                self.bell
                    .unregister()
                    .context("taking the doorbell out of epoll")
            }
            Order::Flood(count) => {
                self.endpoint.send(request).await?;
                for id in 0..u64::from(count) {
                    let message = Message {
                        id: u64::MAX - id,
                        channel: 9,
                        method: 0,
                        payload: vec![9; 8],
                    };
                    self.endpoint.send(message).await?;
                }
                Ok(())
            }
            Order::RunLast(cpu) => {
                run_last(cpu).context("giving up the processor")?;
                self.endpoint.send(request).await
            }
            Order::AnswerToStopped => {
                let host = parent_id();
                look::until(Duration::from_secs(10), || look::is_stopped(host)).await;
                self.endpoint.send(request).await
            }
            Order::AnswerAndTakeBack(fd) => self.answer_and_take_back(fd as i32, request).await,
            Order::Swallow => {
                self.swallowed = Some(request);
                Ok(())
            }
            Order::Ring => {
                if let Some(swallowed) = self.swallowed.take() {
                    return self.endpoint.send(swallowed).await;
                }
                self.bell.ring().context("ringing once more")
            }
            Order::RingThenPublish
            | Order::PublishOnly
            | Order::PublishAndDie
            | Order::AnswerUnrung(_) => self.answer_badly(order, request).await,
        }
    }

    /// The faults of a producer.
    async fn answer_badly(&mut self, order: Order, request: Message) -> anyhow::Result<()> {
        self.host_slept().await;
        match order {
            Order::RingThenPublish => {
                self.bell.ring().context("ringing too early")?;
                self.host_slept().await;
                self.answers.publish(&request);
                Ok(())
            }
            Order::AnswerUnrung(how) => {
                let failure = [Failure::Refused, Failure::Pipe, Failure::BadFd][how as usize % 3];
                let saved = self
                    .bell
                    .break_ring(failure)
                    .context("breaking the doorbell")?;
                // The transport may call this an error or a loss that it survives; the answer is published either way.
                let _ = self.endpoint.send(request).await;
                self.bell.mend(&saved).context("mending the doorbell")
            }
            Order::PublishAndDie => {
                self.answers.publish(&request);
                child::signal(std::process::id(), Signal::KILL).context("dying")
            }
            _ => {
                self.answers.publish(&request);
                Ok(())
            }
        }
    }

    /// Answers a host that is stopped, so that the token can be taken back before it is seen.
    async fn answer_and_take_back(&mut self, fd: i32, request: Message) -> anyhow::Result<()> {
        self.host_slept().await;
        let host = parent_id();
        child::signal(host, Signal::STOP)?;
        look::until(Duration::from_secs(10), || look::is_stopped(host)).await;
        let sent = self.endpoint.send(request).await;
        let taken = thief::steal_token(host, fd);
        // Whatever happened: the host must not stay stopped.
        child::signal(host, Signal::CONT)?;
        sent?;
        ensure!(
            taken.context("reaching the host's doorbell")?,
            "no token was queued on the host's doorbell"
        );
        Ok(())
    }

    /// Waits until the host took every token and sleeps again, so that none of an earlier answer wakes it later.
    async fn host_slept(&self) {
        let (bell, host) = (self.bell, parent_id());
        look::until(Duration::from_secs(10), || !bell.is_unheard()).await;
        // A host that keeps serving others is never idle; it has long looked by then.
        look::until(Duration::from_millis(200), || look::is_idle(host)).await;
    }

    /// The faults of a consumer.
    async fn neglect(&mut self, order: Order) -> anyhow::Result<()> {
        match order {
            // A token without an entry is a late one of a request that was taken before its ring: not the one to eat.
            Order::EatToken => {
                while self.requests.len() == 0 {
                    self.bell.rung().await?;
                    self.bell.take_all()?;
                }
                self.bell.rung().await?;
            }
            Order::EatTokenTwice => {
                while self.requests.len() == 0 || !self.bell.is_rung() {
                    if self.requests.len() == 0 {
                        self.bell.take_all()?;
                    }
                    std::thread::sleep(Duration::from_micros(100));
                }
                self.bell.take_all()?;
                self.bell.rung().await?;
            }
            Order::Deaf(None) => std::future::pending().await,
            Order::Deaf(Some(lasts)) => tokio::time::sleep(lasts).await,
            Order::Block(how, lasts) => block(how, lasts)?,
            _ => {}
        }
        Ok(())
    }
}

/// Blocks this thread, and with it everything that its runtime should do.
fn block(how: Block, lasts: Option<Duration>) -> anyhow::Result<()> {
    let seconds = lasts.map_or("infinity".to_owned(), |lasts| {
        format!("{}", lasts.as_secs_f64())
    });
    match how {
        // What a plugin does that runs a tool with a blocking `Command::status()`.
        Block::Wait4 => {
            let mut tool = Command::new("sleep");
            tool.arg(seconds);
            child::die_with_parent(&mut tool, &[]);
            tool.status().context("running a tool")?;
        }
        // And one that reads the tool's output.
        Block::Pipe => {
            let (reader, writer) = silent_pipe()?;
            let mut tool = Command::new("sleep");
            tool.arg(seconds);
            child::die_with_parent(&mut tool, &[]);
            let mut tool = tool.spawn().context("running a tool")?;
            drop(writer);
            let _ = rustix::io::read(&reader, &mut [0u8; 8])?;
            tool.wait()?;
        }
        Block::Nanosleep => std::thread::sleep(lasts.unwrap_or(Duration::from_secs(1 << 30))),
        Block::Futex => {
            let word = 0u32;
            let limit = lasts.map(|lasts| libc::timespec {
                tv_sec: lasts.as_secs() as libc::time_t,
                tv_nsec: libc::c_long::from(lasts.subsec_nanos()),
            });
            let limit = limit.as_ref().map_or(ptr::null(), ptr::from_ref);
            // SAFETY: `word` and `limit` outlive the call. Nobody else knows the word, so only the limit ends the wait.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    &raw const word,
                    libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG,
                    0,
                    limit,
                )
            };
        }
    }
    Ok(())
}

/// Binds every thread of this process to one processor, in the scheduling class that runs when nobody else wants to.
fn run_last(cpu: u32) -> anyhow::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu as usize);
    for thread in look::threads(std::process::id())? {
        rustix::thread::sched_setaffinity(Some(child::pid_of(thread.tid)?), &only)?;
        let lowest = libc::sched_param { sched_priority: 0 };
        // SAFETY: `lowest` is a valid parameter block for the call's duration.
        let result = unsafe {
            libc::sched_setscheduler(
                thread.tid as libc::pid_t,
                libc::SCHED_IDLE,
                &raw const lowest,
            )
        };
        if result < 0 {
            return Err(std::io::Error::last_os_error()).context("entering SCHED_IDLE");
        }
    }
    Ok(())
}
