//! The transport that the stand-in speaks.

pub(crate) use rapace_peers::shm04::Shm04 as Wire;
