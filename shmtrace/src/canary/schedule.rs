//! When a wakeup is lost on purpose, and what follows from finding it or not.

use std::time::Duration;

use shmtrace_engine::{Cause, Code, Finding, Mono, State};

/// The first one comes after this time at the latest, ns: whoever is blind should hear of it soon.
const FIRST: u64 = 10_000_000_000;
/// From the beginning to the first one, ns: its processes are found and matched meanwhile.
const SETTLES: u64 = 1_000_000_000;
/// In which it must be found, ns. It takes some 60 ms; a machine that is busy with everything else may need longer.
const PATIENCE: u64 = 10_000_000_000;
/// Before it is planted once more, ns.
const PAUSE: u64 = 2_000_000_000;
/// As often in a row it may stay unfound: records can be lost, and a machine can be suspended.
const ATTEMPTS: u32 = 3;

/// What the canary is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Make a hub and start a plugin.
    Begin,
    /// Lose a wakeup.
    Plant,
    /// Have everything taken.
    Heal,
    /// Remove the hub's name: whoever must know it does.
    Hide,
}

impl Order {
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::Begin => b'b',
            Self::Plant => b'p',
            Self::Heal => b'h',
            Self::Hide => b'n',
        }
    }

    pub(super) fn of(byte: u8) -> Option<Self> {
        [Self::Begin, Self::Plant, Self::Heal, Self::Hide]
            .into_iter()
            .find(|order| order.byte() == byte)
    }
}

/// How often it was planted and found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Planted, and found or not.
    pub planted: u64,
    /// Found, with its cause.
    pub found: u64,
    /// It is not found any more, or was not at some time.
    pub was_blind: bool,
    /// It is not found now.
    pub is_blind: bool,
}

/// Something to be said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// It was not found; why, as far as is known.
    Blind(String),
    /// It is found again.
    Sees,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing was made yet.
    Asleep,
    /// All is well.
    Idle,
    /// A wakeup was lost at this time.
    Planted(Mono),
    /// There is none any more.
    Ended,
}

/// Decides what is done when.
#[derive(Debug)]
pub(crate) struct Schedule {
    every: u64,
    phase: Phase,
    next: Mono,
    failed: u32,
    count: Count,
}

impl Schedule {
    /// Plants one each `every`.
    pub(crate) fn new(every: Duration, now: Mono) -> Self {
        let every = u64::try_from(every.as_nanos()).unwrap_or(u64::MAX);
        let first = every.min(FIRST).saturating_sub(SETTLES);
        Self {
            every,
            phase: Phase::Asleep,
            next: now.plus(first),
            failed: 0,
            count: Count::default(),
        }
    }

    pub(crate) fn count(&self) -> Count {
        self.count
    }

    /// What is to be done now, and said.
    pub(crate) fn turn(&mut self, now: Mono) -> (Option<Order>, Option<News>) {
        match self.phase {
            Phase::Asleep if now >= self.next => {
                self.phase = Phase::Idle;
                self.next = now.plus(SETTLES);
                (Some(Order::Begin), None)
            }
            Phase::Idle if now >= self.next => {
                self.phase = Phase::Planted(now);
                self.count.planted += 1;
                (Some(Order::Plant), None)
            }
            Phase::Planted(since) if now.since(since) >= PATIENCE => {
                (Some(Order::Heal), self.fail(now, since, "it was not seen"))
            }
            _ => (None, None),
        }
    }

    /// It was not found, or not as what it is.
    fn fail(&mut self, now: Mono, since: Mono, why: &str) -> Option<News> {
        self.phase = Phase::Idle;
        self.next = now.plus(PAUSE);
        self.failed += 1;
        if !self.failed.is_multiple_of(ATTEMPTS) {
            return None;
        }
        self.next = self.next.max(since.plus(self.every));
        self.blind(why)
    }

    /// Something was found in the canary's hub.
    pub(crate) fn found(&mut self, finding: &Finding) -> (Option<Order>, Option<News>) {
        let Phase::Planted(since) = self.phase else {
            return (None, None);
        };
        let is_it = finding.state == State::Missed
            && finding.code == Code::MissedWakeup
            && finding.cause == Some(Cause::ConsumedThenSlept);
        if !is_it {
            if !matches!(finding.state, State::Missed | State::Inconclusive) {
                return (None, None);
            }
            let why = format!(
                "it was seen as {} {}, cause {}: its records were not",
                finding.state.as_str(),
                finding.code.as_str(),
                finding.cause.map_or("unknown", Cause::as_str)
            );
            let now = finding.at.max(since);
            return (Some(Order::Heal), self.fail(now, since, &why));
        }
        self.phase = Phase::Idle;
        self.next = since.plus(self.every);
        self.failed = 0;
        self.count.found += 1;
        let news = std::mem::take(&mut self.count.is_blind).then_some(News::Sees);
        (Some(Order::Heal), news)
    }

    /// Its processes are gone.
    pub(crate) fn ended(&mut self) -> Option<News> {
        if self.phase == Phase::Ended {
            return None;
        }
        self.phase = Phase::Ended;
        self.blind("the process that plants it has ended")
    }

    fn blind(&mut self, why: &str) -> Option<News> {
        self.count.was_blind = true;
        let news = !std::mem::replace(&mut self.count.is_blind, true);
        news.then(|| News::Blind(why.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Runs second by second; what was ordered and said, with when.
    fn run(
        schedule: &mut Schedule,
        seconds: std::ops::Range<u64>,
    ) -> Vec<(u64, Option<Order>, Option<News>)> {
        let turns = seconds.map(|second| {
            let (order, news) = schedule.turn(Mono(second * SECOND));
            (second, order, news)
        });
        turns
            .filter(|(_, order, news)| order.is_some() || news.is_some())
            .collect()
    }

    #[test]
    fn one_each_minute_and_the_first_soon() {
        let mut schedule = Schedule::new(Duration::from_secs(60), Mono(0));
        let orders = run(&mut schedule, 0..11);
        assert_eq!(
            orders,
            [
                (9, Some(Order::Begin), None),
                (10, Some(Order::Plant), None)
            ]
        );
        let mut short = Schedule::new(Duration::from_secs(1), Mono(0));
        assert_eq!(run(&mut short, 0..2).len(), 2);
    }

    #[test]
    fn what_is_not_found_three_times_is_blindness_and_said_once() {
        let mut schedule = Schedule::new(Duration::from_secs(60), Mono(0));
        let said = run(&mut schedule, 0..300);
        let news: Vec<_> = said
            .iter()
            .filter_map(|(at, _, news)| Some((*at, news.clone()?)))
            .collect();
        assert_eq!(news, [(44, News::Blind("it was not seen".to_owned()))]);
        let planted = said
            .iter()
            .filter(|(_, order, _)| *order == Some(Order::Plant))
            .count();
        let healed = said
            .iter()
            .filter(|(_, order, _)| *order == Some(Order::Heal))
            .count();
        assert_eq!(planted, healed);
        let count = schedule.count();
        assert!(count.is_blind && count.was_blind && count.found == 0);
        assert_eq!(schedule.ended(), None, "said already");
    }
}
