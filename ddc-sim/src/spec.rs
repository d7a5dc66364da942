//! `--fault KIND[:key=value,...]`: which fault, where, when.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sim_kit::traffic::Dice;

/// One direction of one peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lane {
    /// The peer's recv ring.
    HostToPeer,
    /// The peer's send ring.
    PeerToHost,
}

impl fmt::Display for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostToPeer => "host->peer",
            Self::PeerToHost => "peer->host",
        })
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $name:literal [$($variant:literal),*] [$($lane:ident),+];)+) => {
        /// The faults, named as the tracer names what it should find.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Kind { $($(#[$doc])* $kind,)+ }

        impl Kind {
            /// All of them.
            pub(crate) const ALL: &[Self] = &[$(Self::$kind,)+];

            /// The name on the command line and in the report.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$kind => $name,)+ }
            }

            /// Its variants, the default first.
            pub(crate) fn variants(self) -> &'static [&'static str] {
                match self { $(Self::$kind => &[$($variant),*],)+ }
            }

            /// The lanes on which it can be planted, the default first.
            pub(crate) fn lanes(self) -> &'static [Lane] {
                match self { $(Self::$kind => &[$(Lane::$lane),+],)+ }
            }
        }
    };
}

kinds! {
    /// The consumer takes the token and sleeps without looking at the ring.
    ConsumedThenSlept "consumed-then-slept" ["drain-after-check", "drain-twice"] [HostToPeer, PeerToHost];
    /// The same, healed by a later ring.
    Masked "masked" ["drain-after-check", "drain-twice"] [HostToPeer, PeerToHost];
    /// The producer rings, the consumer looks and sleeps, then the producer publishes.
    RungBeforePublish "rung-before-publish" [] [HostToPeer, PeerToHost];
    /// The producer publishes and does not ring.
    NeverRung "never-rung" [] [HostToPeer, PeerToHost];
    /// The producer publishes and dies before it rings.
    NeverRungDead "never-rung-dead" [] [PeerToHost];
    /// The ring fails.
    RingFailed "ring-failed" ["refused", "pipe", "badfd"] [HostToPeer, PeerToHost];
    /// Published to one peer, another peer's doorbell rung.
    WrongDoorbell "wrong-doorbell" [] [HostToPeer];
    /// Another process or thread takes the token.
    Stolen "stolen" ["process", "producer"] [HostToPeer, PeerToHost];
    /// The token stays queued: epoll never tells the consumer.
    NotDraining "not-draining" ["unregistered", "edge-lost"] [HostToPeer, PeerToHost];
    /// The consumer's only runtime thread sits in another system call.
    ConsumerBlocked "consumer-blocked" ["wait4", "pipe", "nanosleep", "futex"] [HostToPeer];
    /// The host waits for an answer to something that it never enqueued.
    NeverEnqueued "never-enqueued" [] [HostToPeer];
    /// The plugin takes the request and never answers.
    Unanswered "unanswered" [] [PeerToHost];
    /// The ring is full, the producer waits for room, the consumer does nothing.
    RingFull "ring-full" ["blocked", "asleep"] [HostToPeer, PeerToHost];
    /// Slots are in flight that no descriptor refers to.
    SlotsStuck "slots-stuck" ["exhausted", "leaked"] [HostToPeer];
    /// The single-producer rule is broken.
    RingCorrupt "ring-corrupt" ["tail-past-head", "head-back", "overfull", "overwritten"] [HostToPeer, PeerToHost];
    /// The plugin is gone, its entry still active.
    PeerDied "peer-died" ["idle", "call-open", "entries-left"] [HostToPeer];
    /// The plugin is woken and does not get to run.
    Starved "starved" ["idle-class", "quota"] [HostToPeer];
    /// The tree reaches its memory limit.
    MemoryLimit "memory-limit" [] [HostToPeer];
}

/// When a fault is planted, in round trips of its peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    After(u64),
    Random,
}

/// A fault as asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Spec {
    /// Which.
    pub(crate) kind: Kind,
    /// Which of its variants; empty if it has none.
    pub(crate) variant: &'static str,
    /// On which lane.
    pub(crate) lane: Lane,
    /// How long until a masked one heals.
    pub(crate) lasts: Option<Duration>,
    peer: Option<u16>,
    moment: Moment,
}

impl Spec {
    /// The seat that it hits; the dice decide where none was named.
    pub(crate) fn seat(&self, dice: &mut Dice, seats: usize) -> usize {
        match self.peer {
            Some(peer) => usize::from(peer),
            None => dice.between(0, seats.saturating_sub(1) as u64) as usize,
        }
    }

    /// After how many round trips of the peer; a random moment leaves at least half of its `share` for afterwards.
    pub(crate) fn after(&self, dice: &mut Dice, share: u64) -> u64 {
        match self.moment {
            Moment::After(calls) => calls,
            Moment::Random => dice.between(1, (share / 2).clamp(1, 300)),
        }
    }
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, rest) = text.split_once([':', ',']).unwrap_or((text, ""));
        let kind = *Kind::ALL
            .iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| {
                let names: Vec<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
                format!("{name:?} is no fault: choose one of {}", names.join(", "))
            })?;
        let mut spec = Self {
            kind,
            variant: kind.variants().first().copied().unwrap_or(""),
            lane: kind.lanes()[0],
            lasts: None,
            peer: Some(0),
            moment: Moment::After(100),
        };
        for setting in rest.split(',').filter(|setting| !setting.is_empty()) {
            let (key, value) = setting
                .split_once('=')
                .ok_or_else(|| format!("{setting:?} lacks a value: write key=value"))?;
            spec.set(key, value)?;
        }
        Ok(spec)
    }
}

impl Spec {
    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        let number = |what: &str| format!("{value:?} is no {what}: give a number or `random`");
        match key {
            "peer" if value == "random" => self.peer = None,
            "peer" => {
                self.peer = Some(value.parse().map_err(|_| number("peer"))?);
            }
            "after" if value == "random" => self.moment = Moment::Random,
            "after" => {
                let calls = value.parse().map_err(|_| number("count of round trips"))?;
                self.moment = Moment::After(calls);
            }
            "for" => {
                let lasts = humantime::parse_duration(value).map_err(|error| error.to_string())?;
                self.lasts = Some(lasts);
            }
            "variant" => {
                let variants = self.kind.variants();
                self.variant = variants
                    .iter()
                    .find(|variant| **variant == value)
                    .ok_or_else(|| {
                        format!(
                            "{} has no variant {value:?}: it has {variants:?}",
                            self.kind.name()
                        )
                    })?;
            }
            "lane" => {
                let lane = match value {
                    "host->peer" => Lane::HostToPeer,
                    "peer->host" => Lane::PeerToHost,
                    _ => {
                        return Err(format!(
                            "{value:?} is no lane: write host->peer or peer->host"
                        ));
                    }
                };
                if !self.kind.lanes().contains(&lane) {
                    return Err(format!("{} cannot be planted on {lane}", self.kind.name()));
                }
                self.lane = lane;
            }
            _ => {
                return Err(format!(
                    "{key:?} is no setting: there are peer, after, variant, lane and for"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_variant_and_lane_can_be_asked_for() {
        for kind in Kind::ALL {
            let plain: Spec = kind.name().parse().expect("a bare name");
            assert_eq!(plain.kind, *kind);
            for lane in kind.lanes() {
                let spec: Spec = format!("{}:peer=3,after=random,lane={lane}", kind.name())
                    .parse()
                    .expect("a lane");
                assert_eq!(
                    (spec.lane, spec.peer, spec.moment),
                    (*lane, Some(3), Moment::Random)
                );
            }
            for variant in kind.variants() {
                let spec: Spec = format!("{}:variant={variant}", kind.name())
                    .parse()
                    .expect("a variant");
                assert_eq!(spec.variant, *variant);
            }
        }
    }

    #[test]
    fn what_does_not_exist_is_refused() {
        for bad in [
            "",
            "hang",
            "never-rung:peer=x",
            "never-rung:peer",
            "never-rung:colour=red",
            "wrong-doorbell:lane=peer->host",
            "starved:variant=none",
            "masked:for=soon",
        ] {
            assert!(bad.parse::<Spec>().is_err(), "{bad} parsed");
        }
    }
}
