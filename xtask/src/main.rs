//! Project automation: `cargo xtask COMMAND`. Few dependencies, since this is the first thing that a new clone compiles.

mod apt;
mod bench;
mod corpus;
mod demo;
mod endure;
mod fuzz;
mod lint;
mod mutants;
mod process;
mod sanitize;
mod setup;
mod test;
mod toolchain;
mod vm_test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What people and CI do with this repository.
#[derive(Parser)]
#[command(bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Find or install what compiles the probes: a rustc with the source of core, and bpf-linker
    Setup,
    /// Compile everything, probes included
    Build(workspace::Build),
    /// Formatting and clippy, of the probes too; every warning is an error
    Lint,
    /// Run every test, those that need root too; nothing is skipped
    Test(test::Test),
    /// Plant a hang in real processes and watch shmtrace find it
    Demo(demo::Demo),
    /// Measure what tracing costs, side by side with other tracers
    Bench(bench::Bench),
    /// Plant every fault many times and watch healthy traffic; count what is found
    Corpus(corpus::Corpus),
    /// Break each rule of the engine in a copy; some test must fail
    Mutants(mutants::Task),
    /// Run the transport's tests under Miri or a thread sanitizer
    Sanitize(sanitize::Sanitize),
    /// Try out whether it can stay attached for days: harmless, unharmed by an enemy, and not growing
    #[command(subcommand)]
    Endure(endure::Endure),
    /// Feed everything that shmtrace reads with what nobody expects, until something breaks
    Fuzz(fuzz::Fuzz),
    /// Run the daemon on Debian's kernels from 5.10 to the newest, emulated
    VmTest(vm_test::VmTest),
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Task::Setup => setup::run().map(drop),
        Task::Build(build) => build.run(),
        Task::Lint => lint::run(),
        Task::Test(test) => test.run(),
        Task::Demo(demo) => demo.run(),
        Task::Bench(bench) => bench.run(),
        Task::Corpus(corpus) => corpus.run(),
        Task::Mutants(mutants) => mutants.run(),
        Task::Sanitize(sanitize) => sanitize.run(),
        Task::Endure(endure) => endure.run(),
        Task::Fuzz(fuzz) => fuzz.run(),
        Task::VmTest(vm_test) => vm_test.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
