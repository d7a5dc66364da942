//! Orders: requests that make a plugin misbehave. They travel as ordinary calls, so that any plugin can be hit at any
//! moment; the method says what is meant, the payload carries a number or two.

use std::time::Duration;

use sim_kit::lane::Message;

/// Upper half of the method id of every order.
const ORDER: u32 = 0x0fa0_0000;

/// How a plugin's thread blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Block {
    Wait4,
    Pipe,
    Nanosleep,
    Futex,
}

/// What a plugin shall do. "Answers first" means that the order itself is a healthy call, and the fault follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Answers first; then takes the next token and sleeps without looking at the ring.
    EatToken,
    /// Answers first; then waits until a token is queued, without sleeping on it, takes it and sleeps.
    EatTokenTwice,
    /// Rings, waits until the host has looked and slept, then publishes the answer.
    RingThenPublish,
    /// Publishes the answer and does not ring.
    PublishOnly,
    /// Publishes the answer and dies.
    PublishAndDie,
    /// Answers while its doorbell refuses (the number says how).
    AnswerUnrung(u32),
    /// Answers first; then its doorbell leaves epoll.
    Unregister,
    /// Answers first; then nobody polls the doorbell for this long (none: for ever).
    Deaf(Option<Duration>),
    /// Answers first; then its thread blocks for this long (none: for ever).
    Block(Block, Option<Duration>),
    /// Takes the order and keeps the answer to itself.
    Swallow,
    /// Answers first; then sends this many messages that nobody asked for.
    Flood(u32),
    /// Lets itself be denied this processor, then answers.
    RunLast(u32),
    /// Answers once the host is stopped.
    AnswerToStopped,
    /// Stops the host, answers, takes the token back out of the host's end (which has this number there), and lets the
    /// host continue.
    AnswerAndTakeBack(u32),
    /// Rings, and gives the answer that was swallowed, if one was.
    Ring,
}

impl Order {
    /// The request that carries it.
    pub(crate) fn request(self, id: u64) -> Message {
        let millis =
            |lasts: Option<Duration>| lasts.map_or(u32::MAX, |lasts| lasts.as_millis() as u32);
        let (code, number) = match self {
            Self::EatToken => (1, 0),
            Self::EatTokenTwice => (2, 0),
            Self::RingThenPublish => (3, 0),
            Self::PublishOnly => (4, 0),
            Self::PublishAndDie => (5, 0),
            Self::AnswerUnrung(how) => (6, how),
            Self::Unregister => (7, 0),
            Self::Deaf(lasts) => (8, millis(lasts)),
            Self::Swallow => (9, 0),
            Self::Flood(count) => (10, count),
            Self::RunLast(cpu) => (11, cpu),
            Self::AnswerToStopped => (12, 0),
            Self::Ring => (13, 0),
            Self::AnswerAndTakeBack(fd) => (14, fd),
            Self::Block(how, lasts) => (16 + how as u32, millis(lasts)),
        };
        Message {
            id,
            channel: 1,
            method: ORDER | code,
            payload: number.to_le_bytes().to_vec(),
        }
    }

    /// Reads an order; `None` for a plain request.
    pub(crate) fn of(request: &Message) -> Option<Self> {
        let code = request.method.checked_sub(ORDER)?;
        let number = u32::from_le_bytes(request.payload.get(..4)?.try_into().ok()?);
        let lasts = (number != u32::MAX).then(|| Duration::from_millis(u64::from(number)));
        Some(match code {
            1 => Self::EatToken,
            2 => Self::EatTokenTwice,
            3 => Self::RingThenPublish,
            4 => Self::PublishOnly,
            5 => Self::PublishAndDie,
            6 => Self::AnswerUnrung(number),
            7 => Self::Unregister,
            8 => Self::Deaf(lasts),
            9 => Self::Swallow,
            10 => Self::Flood(number),
            11 => Self::RunLast(number),
            12 => Self::AnswerToStopped,
            13 => Self::Ring,
            14 => Self::AnswerAndTakeBack(number),
            16 => Self::Block(Block::Wait4, lasts),
            17 => Self::Block(Block::Pipe, lasts),
            18 => Self::Block(Block::Nanosleep, lasts),
            19 => Self::Block(Block::Futex, lasts),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_way() {
        let second = Some(Duration::from_secs(1));
        for order in [
            Order::EatToken,
            Order::EatTokenTwice,
            Order::RingThenPublish,
            Order::PublishOnly,
            Order::PublishAndDie,
            Order::AnswerUnrung(2),
            Order::Unregister,
            Order::Deaf(None),
            Order::Deaf(second),
            Order::Block(Block::Wait4, None),
            Order::Block(Block::Pipe, second),
            Order::Block(Block::Nanosleep, second),
            Order::Block(Block::Futex, None),
            Order::Swallow,
            Order::Flood(9),
            Order::RunLast(3),
            Order::AnswerToStopped,
            Order::AnswerAndTakeBack(8),
            Order::Ring,
        ] {
            let request = order.request(5);
            assert_eq!(Order::of(&request), Some(order));
            assert!(request.payload.len() <= 16, "an order must travel inline");
        }
    }

    #[test]
    fn plain_requests_are_no_orders() {
        for method in [0, 1, ORDER, ORDER + 99, u32::MAX] {
            let request = Message {
                id: 1,
                channel: 1,
                method,
                payload: vec![0; 16],
            };
            assert_eq!(Order::of(&request), None);
        }
    }
}
