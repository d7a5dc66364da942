//! `shmtrace nudge`: ring a stuck lane's doorbell once more, and say what came of it.
//!
//! Only a lane that the engine has proven stuck is rung, by the same rules as in a watch, unless `--force` says otherwise:
//! a token on a healthy lane does no harm, but proves nothing either. The datagram goes through a copy of the producer's
//! own end of the doorbell, which is closed at once.

mod prove;
mod ring;

use std::{fmt, io::Write, time::Duration};

use shmtrace_engine::{Direction, LaneId, input::Indexes};

use crate::{
    cli::PidTree,
    commands::inspect::{no_hub, with_descendants},
    discover::{Discovery, Hub},
    exit::Exit,
    observe::{Observer, mono_now},
    report::printable,
};

/// Refreshes that are made to settle who is who: a plugin that is just being started takes a moment.
const REFRESHES: u32 = 3;
/// How often the ring is looked at after the doorbell was rung.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// Arguments of `nudge`.
#[derive(Debug, clap::Args)]
pub struct Nudge {
    #[command(flatten)]
    trees: PidTree,

    /// Ring lanes of this peer only (an id); without it, every lane that is proven stuck
    #[arg(long, value_name = "ID", env = "SHMTRACE_PEER")]
    peer: Option<u16>,

    /// Ring lanes in this direction only
    #[arg(long, value_enum, value_name = "DIRECTION", env = "SHMTRACE_LANE")]
    lane: Option<super::watch::Lane>,

    /// How long the stuck state must stay unchanged to be proven
    #[arg(long, value_name = "DURATION", default_value = "50ms", env = "SHMTRACE_GRACE", value_parser = humantime::parse_duration)]
    grace: Duration,

    /// How long to wait for the consumer
    #[arg(long, value_name = "DURATION", default_value = "1s", env = "SHMTRACE_WAIT", value_parser = humantime::parse_duration)]
    wait: Duration,

    /// Ring although nothing is proven; needs --peer
    #[arg(long, requires = "peer", env = "SHMTRACE_FORCE")]
    force: bool,
}

/// What came of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Everything that waited was taken.
    Emptied { after: Duration, entries: u64 },
    /// Some of it was.
    Partly { left: u64, entries: u64 },
    /// The token was taken, and the ring left as it was.
    TookTheTokenOnly,
    /// The token still lies there.
    Ignored,
    /// There was nothing to be taken.
    WasEmpty,
    /// The ring could not be read any more.
    Gone,
}

impl Nudge {
    /// Runs the command.
    pub fn run(self) -> anyhow::Result<Exit> {
        let pids = with_descendants(&self.trees.roots()?)?;
        let mut world = Discovery::new();
        let mut topology = Vec::new();
        for number in 0..REFRESHES {
            if number > 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
            let changes = world.refresh(mono_now(), &pids);
            for note in changes.in_words() {
                anstream::eprintln!("shmtrace: {}", printable(&note));
            }
            topology.extend(changes.topology);
        }
        if world.hubs().next().is_none() {
            return Err(no_hub(&pids));
        }
        let lanes = self.lanes(&world)?;
        let proven = prove::stuck(&mut world, topology, self.grace);
        let mut out = anstream::stdout().lock();
        let mut rung = 0;
        let mut healed = true;
        for lane in lanes {
            let stuck = proven.contains(&lane);
            if !stuck && !self.force {
                continue;
            }
            rung += 1;
            healed &= self.ring(&mut world, lane, stuck, &mut out)?;
        }
        if rung == 0 {
            anstream::eprintln!(
                "shmtrace: no lane here is proven stuck, so no doorbell was rung; see `shmtrace dump --pid-tree ...`, \
                 or ring all the same with --force"
            );
        }
        Ok(if rung > 0 && healed {
            Exit::Clean
        } else {
            Exit::Error
        })
    }

    /// The lanes that are meant.
    fn lanes(&self, world: &Discovery) -> anyhow::Result<Vec<LaneId>> {
        let wanted = self.lane.map(super::watch::Lane::direction);
        let lanes: Vec<LaneId> = world
            .bindings()
            .filter(|binding| self.peer.is_none_or(|peer| binding.peer.0 == peer))
            .flat_map(|binding| {
                [Direction::ToPeer, Direction::ToHost].map(|direction| LaneId {
                    hub: binding.hub,
                    peer: binding.peer,
                    direction,
                })
            })
            .filter(|lane| wanted.is_none_or(|direction| lane.direction == direction))
            .collect();
        if let Some(peer) = self.peer
            && lanes.is_empty()
        {
            let known: Vec<String> = world
                .bindings()
                .map(|binding| binding.peer.0.to_string())
                .collect();
            anyhow::bail!(
                "there is no peer {peer} in this tree: there are {}",
                known.join(", ")
            );
        }
        Ok(lanes)
    }

    /// Rings one lane and says what came of it; true if it did what it should.
    fn ring(
        &self,
        world: &mut Discovery,
        lane: LaneId,
        stuck: bool,
        out: &mut impl Write,
    ) -> anyhow::Result<bool> {
        let name = lane_name(world, lane);
        let Some(before) = indexes(world, lane) else {
            writeln!(out, "{name}: its ring cannot be read")?;
            return Ok(false);
        };
        let state = if stuck {
            "proven stuck"
        } else {
            "not proven stuck"
        };
        writeln!(
            out,
            "{name}: {state}, head={} tail={} len={}; ringing once",
            before.head,
            before.tail,
            before.len()
        )?;
        ring::once(world, lane)?;
        let outcome = self.watch(world, lane, before);
        writeln!(
            out,
            "{}",
            Report {
                name: &name,
                outcome,
                stuck,
                wait: self.wait
            }
        )?;
        Ok(matches!(
            outcome,
            Outcome::Emptied { .. } | Outcome::WasEmpty
        ))
    }

    /// What the consumer does about it.
    fn watch(&self, world: &mut Discovery, lane: LaneId, before: Indexes) -> Outcome {
        let rung = std::time::Instant::now();
        let mut taken = 0;
        let mut left = before.len();
        while rung.elapsed() < self.wait {
            let Some(now) = indexes(world, lane) else {
                return Outcome::Gone;
            };
            taken = now.tail.saturating_sub(before.tail);
            left = now.len();
            // What was there before; more may have come since.
            if !before.is_empty() && now.tail >= before.head {
                return Outcome::Emptied {
                    after: rung.elapsed(),
                    entries: taken,
                };
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        let token = Observer::new()
            .lane(world, lane)
            .and_then(|seen| seen.token);
        match (before.len(), taken, token) {
            (0, ..) => Outcome::WasEmpty,
            (_, 0, Some(true)) => Outcome::Ignored,
            (_, 0, _) => Outcome::TookTheTokenOnly,
            _ => Outcome::Partly {
                left,
                entries: taken,
            },
        }
    }
}

/// An outcome in words.
struct Report<'a> {
    name: &'a str,
    outcome: Outcome,
    stuck: bool,
    wait: Duration,
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wait = humantime::format_duration(self.wait);
        write!(f, "{}: ", self.name)?;
        match self.outcome {
            Outcome::Emptied { after, entries } => {
                let after =
                    humantime::format_duration(Duration::from_micros(after.as_micros() as u64));
                let those = if entries == 1 {
                    "1 entry".to_owned()
                } else {
                    format!("{entries} entries")
                };
                write!(
                    f,
                    "the consumer took the token and emptied the ring ({those}) within {after}"
                )?;
                if self.stuck {
                    f.write_str(": the signal had been lost")
                } else {
                    Ok(())
                }
            }
            Outcome::Partly { left, entries } => write!(
                f,
                "the consumer took the token and {entries} entries, and left {left} for {wait}: it stops before the ring \
                 is empty"
            ),
            Outcome::TookTheTokenOnly => write!(
                f,
                "the consumer took the token and left the ring as it was for {wait}: it does not look at the ring after \
                 a wakeup"
            ),
            Outcome::Ignored => write!(
                f,
                "the token was not taken within {wait}: nobody listens to this doorbell (see `shmtrace explain \
                 not-draining` and `consumer-blocked`)"
            ),
            Outcome::WasEmpty => {
                f.write_str("the ring was empty before, so the token proves nothing")
            }
            Outcome::Gone => f.write_str("its ring cannot be read any more: the hub is gone"),
        }
    }
}

fn indexes(world: &Discovery, lane: LaneId) -> Option<Indexes> {
    let view = world
        .hub(lane.hub)?
        .reader()
        .glance()
        .ring(lane.peer, lane.direction)?;
    Some(view.indexes)
}

fn lane_name(world: &Discovery, lane: LaneId) -> String {
    let hub = world.hub(lane.hub);
    let name = hub
        .and_then(|hub| hub.binding(lane.peer))
        .map_or("", |binding| binding.name.as_str());
    let several = world.hubs().count() > 1;
    let path = if several {
        hub.map_or("", Hub::path)
    } else {
        ""
    };
    let mut words = format!("{} of peer {}", lane.direction, lane.peer.0);
    for more in [name, path].into_iter().filter(|word| !word.is_empty()) {
        words.push(' ');
        words.push_str(&printable(more));
    }
    words
}
