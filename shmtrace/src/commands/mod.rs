//! One module per command: its arguments and what it does.

pub mod dump;
pub mod inspect;
pub mod kill;
pub mod record;
pub mod watch;
