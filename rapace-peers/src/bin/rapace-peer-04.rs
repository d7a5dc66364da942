//! Host and plugin on `rapace-transport-shm` 0.4.0.

fn main() -> anyhow::Result<()> {
    rapace_peers::cli::main::<rapace_peers::shm04::Shm04>()
}
