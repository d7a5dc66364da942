//! The canary within a watch: its engine, and what follows from what that finds.

use shmtrace_engine::{
    Config, Mono, Output, Request,
    input::{Event, Input, Topology},
};

use super::{Judge, Session, Totals, Tree};
use crate::{
    canary::{Belongings, Canary, Count, News, Order, Owner, Schedule},
    observe::mono_now,
    probes::Probes,
    recording::Step,
};

/// The usual grace, ns, whatever the watch's is.
const GRACE: u64 = 50_000_000;

/// A canary that is watched.
pub(super) struct Minded {
    canary: Canary,
    schedule: Schedule,
    pub(super) judge: Judge,
    news: Vec<News>,
    events: u64,
    /// Its hub has no name any more.
    hidden: bool,
}

impl Minded {
    /// Starts one and enters it among what the probes trace.
    pub(super) fn start(
        every: std::time::Duration,
        now: Mono,
        tree: &mut Tree,
        probes: &mut Probes,
    ) -> anyhow::Result<(Self, Belongings)> {
        let (canary, belongings) = Canary::start()?;
        tree.add(canary.pid(), probes)?;
        let minded = Self {
            canary,
            schedule: Schedule::new(every, now),
            judge: Judge::plain(Config {
                grace: GRACE,
                expect_progress: None,
            }),
            news: Vec::new(),
            events: 0,
            hidden: false,
        };
        Ok((minded, belongings))
    }

    /// Tells its engine something.
    pub(super) fn tell(&mut self, input: Input) -> anyhow::Result<()> {
        // All three have it open by now: who is killed leaves no file behind.
        if let Input::Topology(Topology::Peer(peer)) = &input
            && peer.plugin.is_some()
            && !std::mem::replace(&mut self.hidden, true)
        {
            self.follow((Some(Order::Hide), None));
        }
        self.judge.tell(input)
    }

    /// Tells its engine of an event.
    fn tell_event(&mut self, event: &Event) -> anyhow::Result<()> {
        self.events += 1;
        self.judge.tell_event(event)
    }

    /// Its events so far, which are none of the tree's.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Does what is due.
    pub(super) fn turn(&mut self, now: Mono) {
        let due = self.schedule.turn(now);
        self.follow(due);
    }

    /// The next thing that its engine wants to see; findings are looked through on the way.
    pub(super) fn next_request(&mut self) -> Option<Request> {
        loop {
            match self.judge.next()? {
                Output::Request(request) => return Some(request),
                Output::Finding(finding) => {
                    let follows = self.schedule.found(&finding);
                    self.follow(follows);
                }
            }
        }
    }

    fn follow(&mut self, (order, news): (Option<Order>, Option<News>)) {
        self.news.extend(news);
        if let Some(order) = order
            && let Err(error) = self.canary.order(order)
        {
            tracing::debug!("the canary takes no orders: {error}");
            self.news.extend(self.schedule.ended());
        }
    }

    /// What is to be said.
    pub(super) fn take_news(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    pub(super) fn count(&self) -> Count {
        self.schedule.count()
    }
}

impl Session<'_> {
    /// Answers the canary's engine, and says when its lost wakeup is not found, or is found again.
    pub(super) fn mind_canary(&mut self, now: Mono) -> anyhow::Result<()> {
        if let Some(canary) = &mut self.canary {
            canary.turn(now);
        }
        while let Some(request) = self.canary.as_mut().and_then(Minded::next_request) {
            self.look(request)?;
            self.advance(now.max(mono_now()))?;
        }
        for news in self.canary.as_mut().map_or(Vec::new(), Minded::take_news) {
            let (blind, words) = match news {
                News::Blind(why) => (
                    true,
                    format!(
                        "this watch is BLIND: the wakeup that its canary lost on purpose was not found ({why}); what it does \
                         not report may be there all the same; see `shmtrace doctor --self-test`"
                    ),
                ),
                News::Sees => (
                    false,
                    "this watch sees again: the wakeup that its canary lost was found".to_owned(),
                ),
            };
            self.report.canary(now, blind, &words)?;
            self.tally.note(words);
        }
        Ok(())
    }

    /// Tells the engine whose it is.
    pub(super) fn tell(&mut self, input: Input) -> anyhow::Result<()> {
        if let Input::Event(event) = &input {
            return self.tell_event(event);
        }
        match (self.belongings.owner(&input), &mut self.canary) {
            (Owner::Canary, Some(canary)) => canary.tell(input),
            (Owner::Both, Some(canary)) => {
                canary.judge.tell(input.clone())?;
                self.judge.tell(input)
            }
            (Owner::Watch | Owner::Both, _) => self.judge.tell(input),
            (Owner::Canary | Owner::Nobody, _) => Ok(()),
        }
    }

    /// The same for an event: there are a million a second at times.
    pub(super) fn tell_event(&mut self, event: &Event) -> anyhow::Result<()> {
        match &mut self.canary {
            Some(canary) if self.belongings.has(event.proc.pid) => canary.tell_event(event),
            _ => self.judge.tell_event(event),
        }
    }

    pub(super) fn step_engines(&mut self, step: &Step) -> anyhow::Result<()> {
        if let Some(canary) = &mut self.canary {
            canary.judge.step(step.clone())?;
        }
        self.judge.step(step.clone())
    }

    pub(super) fn totals(&self, now: Mono) -> Totals {
        let mut totals = self.tally.totals(now, &self.judge.summary());
        totals.canary = self.canary.as_ref().map(Minded::count);
        let of_canary = self.canary.as_ref().map_or(0, Minded::events);
        totals.events = totals.events.saturating_sub(of_canary);
        totals
    }
}
