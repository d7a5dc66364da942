//! One module per command: its arguments and what it does.

pub mod doctor;
pub mod dump;
pub mod explain;
pub mod guide;
pub mod inspect;
pub mod kill;
pub mod nudge;
pub mod profile;
pub mod record;
pub mod run;
pub mod shell;
pub mod watch;
