//! Host and plugin on `rapace-core` 0.5.0.

fn main() -> anyhow::Result<()> {
    rapace_peers::cli::main::<rapace_peers::core05::Core05>()
}
