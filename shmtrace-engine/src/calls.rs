//! Calls of one peer, as far as the descriptors in its rings tell: which are open?
//!
//! Two ways of matching are known, and a peer shows which is its own: an answer bears the message id of its request, or
//! each call has a channel to itself. Where neither can be seen nothing is said.

use std::collections::{BTreeMap, VecDeque};

use crate::{ids::Direction, input::DescriptorObservation};

/// Channels remembered per direction; the lowest numbers go first.
const MOST_CHANNELS: usize = 1024;
/// Requests and answers remembered.
const MOST_MESSAGES: usize = 512;
/// After a gap in the answers, only so many of the latest requests can be told to be open.
const SURE: usize = 16;
/// So many channels with requests are one channel for each call.
const MANY: usize = 4;

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) index: u64,
    pub(crate) method: u32,
    pub(crate) channel: u32,
    pub(crate) msg_id: u64,
}

impl Message {
    fn name(self) -> (u32, u64) {
        (self.channel, self.msg_id)
    }
}

/// The calls of one peer.
#[derive(Debug, Clone, Default)]
pub(crate) struct Calls {
    /// The last message to the peer on each channel.
    to_peer: BTreeMap<u32, Message>,
    /// Channels on which something came back.
    to_host: BTreeMap<u32, Message>,
    /// Requests without an answer, the oldest first.
    asked: VecDeque<Message>,
    /// The latest answers: one can be seen before its request.
    answered: VecDeque<(u32, u64)>,
    /// First indexes that have not been seen.
    next_request: u64,
    next_answer: u64,
    /// An answer with the id of its request was seen.
    ids_match: bool,
}

impl Calls {
    /// A descriptor was seen; those of a lane come in ring order.
    pub(crate) fn saw(&mut self, seen: &DescriptorObservation) {
        let message = Message {
            index: seen.index,
            method: seen.method,
            channel: seen.channel,
            msg_id: seen.msg_id,
        };
        // Channel 0 carries control messages, which want no answer.
        if message.channel == 0 {
            return;
        }
        match seen.lane.direction {
            Direction::ToPeer => self.request(message),
            Direction::ToHost => self.answer(message),
        }
    }

    fn request(&mut self, message: Message) {
        let only = !self.to_peer.contains_key(&message.channel);
        remember(&mut self.to_peer, message);
        // What waits is seen again at each look.
        if message.index < self.next_request {
            return;
        }
        self.next_request = message.index + 1;
        if self.answered.contains(&message.name()) {
            self.ids_match = true;
            return;
        }
        let mut answered = self.answered.iter();
        if only && answered.any(|(channel, _)| *channel == message.channel) {
            return;
        }
        if self.asked.len() == MOST_MESSAGES {
            self.asked.pop_front();
        }
        self.asked.push_back(message);
    }

    fn answer(&mut self, message: Message) {
        remember(&mut self.to_host, message);
        if message.index < self.next_answer {
            return;
        }
        if message.index > self.next_answer {
            // The answers in between went by unseen.
            let old = self.asked.len().saturating_sub(SURE);
            self.asked.drain(..old);
        }
        self.next_answer = message.index + 1;
        let before = self.asked.len();
        self.asked.retain(|asked| asked.name() != message.name());
        if self.asked.len() < before {
            self.ids_match = true;
        } else {
            self.answer_by_channel(message.channel);
        }
        if self.answered.len() == MOST_MESSAGES {
            self.answered.pop_front();
        }
        self.answered.push_back(message.name());
    }

    /// The only request on a channel is the one that an answer on it is for, whatever its id: the first ids of both sides
    /// may be the same by chance.
    fn answer_by_channel(&mut self, channel: u32) {
        let on_it = |asked: &&Message| asked.channel == channel;
        if self.asked.iter().filter(on_it).count() == 1 {
            self.asked.retain(|asked| asked.channel != channel);
        }
    }

    /// Whether open calls of this peer can be told from answered ones.
    pub(crate) fn tell(&self) -> bool {
        self.ids_match || self.to_peer.len() >= MANY
    }

    /// The latest request without an answer.
    pub(crate) fn open(&self) -> Option<Message> {
        if self.ids_match {
            return self.asked.back().copied();
        }
        // A message on a channel on which nothing ever came back.
        self.to_peer
            .values()
            .filter(|message| !self.to_host.contains_key(&message.channel))
            .max_by_key(|message| message.index)
            .copied()
    }
}

fn remember(channels: &mut BTreeMap<u32, Message>, message: Message) {
    channels.insert(message.channel, message);
    if channels.len() > MOST_CHANNELS {
        channels.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::{Calls, MOST_CHANNELS, MOST_MESSAGES, SURE};
    use crate::{
        ids::{Direction, HubId, LaneId, PeerId},
        input::DescriptorObservation,
    };

    fn saw(calls: &mut Calls, direction: Direction, index: u64, channel: u32, msg_id: u64) {
        calls.saw(&DescriptorObservation {
            lane: LaneId {
                hub: HubId(0),
                peer: PeerId(0),
                direction,
            },
            index,
            waiting: false,
            msg_id,
            channel,
            method: 0,
            flags: 0,
        });
    }

    fn open(calls: &Calls) -> Option<u64> {
        calls.open().map(|message| message.msg_id)
    }

    #[test]
    fn answers_with_the_ids_of_their_requests_in_any_order() {
        let mut calls = Calls::default();
        for index in 0..3 {
            saw(&mut calls, Direction::ToPeer, index, 1, 70 + index);
        }
        saw(&mut calls, Direction::ToHost, 0, 1, 72);
        saw(&mut calls, Direction::ToHost, 1, 1, 70);
        assert!(calls.tell());
        assert_eq!(open(&calls), Some(71));
        saw(&mut calls, Direction::ToHost, 2, 1, 71);
        assert_eq!(open(&calls), None);
    }

    #[test]
    fn an_answer_may_be_seen_before_its_request() {
        let mut calls = Calls::default();
        saw(&mut calls, Direction::ToHost, 0, 1, 70);
        saw(&mut calls, Direction::ToPeer, 0, 1, 70);
        assert_eq!(open(&calls), None);
        assert!(calls.tell());
    }

    #[test]
    fn requests_whose_answers_may_have_gone_by_are_not_open_and_the_latest_are() {
        let mut calls = Calls::default();
        saw(&mut calls, Direction::ToPeer, 0, 1, 500);
        saw(&mut calls, Direction::ToHost, 0, 1, 500);
        for index in 1..100 {
            saw(&mut calls, Direction::ToPeer, index, 1, index);
        }
        saw(&mut calls, Direction::ToHost, 90, 1, 99);
        assert_eq!(open(&calls), Some(98));
        assert!(calls.asked.len() < SURE);
    }

    #[test]
    fn first_ids_that_are_the_same_by_chance_open_no_answered_call() {
        let mut calls = Calls::default();
        for (index, id) in [(0, 1), (1, 4), (2, 7)] {
            let channel = 1 + 2 * id as u32;
            saw(&mut calls, Direction::ToPeer, index, channel, id);
            saw(&mut calls, Direction::ToHost, index, channel, index + 1);
        }
        assert_eq!(open(&calls), None);
        // Nor if the answer is seen first.
        saw(&mut calls, Direction::ToHost, 3, 21, 4);
        saw(&mut calls, Direction::ToPeer, 3, 21, 10);
        assert_eq!(open(&calls), None);
        saw(&mut calls, Direction::ToPeer, 4, 27, 13);
        assert_eq!(open(&calls), Some(13));
    }

    #[test]
    fn the_oldest_of_very_many_open_calls_are_forgotten() {
        let mut calls = Calls::default();
        let most = MOST_CHANNELS as u64 + 10;
        for index in 0..most {
            saw(&mut calls, Direction::ToPeer, index, index as u32, index);
        }
        assert_eq!(calls.asked.len(), MOST_MESSAGES);
        assert_eq!(calls.to_peer.len(), MOST_CHANNELS);
        assert_eq!(open(&calls), Some(most - 1));
    }

    #[test]
    fn a_channel_for_each_call() {
        let mut calls = Calls::default();
        for index in 0..4u32 {
            saw(
                &mut calls,
                Direction::ToPeer,
                index.into(),
                1 + 2 * index,
                9,
            );
        }
        for index in 0..3u32 {
            saw(
                &mut calls,
                Direction::ToHost,
                index.into(),
                1 + 2 * index,
                8,
            );
        }
        assert!(calls.tell());
        assert_eq!(calls.open().map(|message| message.channel), Some(7));
        // A control message wants no answer.
        saw(&mut calls, Direction::ToPeer, 4, 0, 9);
        saw(&mut calls, Direction::ToHost, 3, 7, 8);
        assert_eq!(open(&calls), None);
    }
}
