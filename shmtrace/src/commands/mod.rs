//! One module per command: its arguments and what it does.

pub mod kill;
pub mod record;
pub mod watch;
