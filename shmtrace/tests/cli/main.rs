//! The commands beside `watch`, as somebody at a terminal or a script uses them.

mod kill;
mod nudge;
mod pages;
mod profile;
mod run;
mod support;
