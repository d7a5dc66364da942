//! The commands beside `watch`, as somebody at a terminal or a script uses them.

mod blocking;
mod canary;
mod filters;
mod hosts;
mod kill;
mod limits;
mod names;
mod namespaces;
mod nudge;
mod pages;
mod profile;
mod refusals;
mod rights;
mod run;
mod snapshots;
mod steady;
mod support;
mod terminal;
