//! The report, in markdown.

use std::fmt::{Result, Write as _};

use super::{
    faults::{Cause, Faults, Trial},
    health::{Health, Healthy},
    machine::Source,
    proofs::Proofs,
};
use crate::mutants::Mutants;

const HEAD: &str = "# What is found, and what is not

`cargo xtask corpus` (root) measures all of this and writes this page; `cargo xtask mutants` does its last part. Every
figure stands below the command that yields it. The parts can run one at a time (`--part proofs`, `faults`, `health`).

";

const FAULTS: &str = "At random moments and on random peers, on every lane and in every variant in turn, in trees of 1, 4 and 16 plugins, \
with pauses between 0 and 1 ms, hosts on one thread and on several, traced from before the first call. A trial is *right* if \
the first finding has the right class and peer and its cause is right or unknown. *Others* are findings beside the right one. \
The delay runs from the moment when the fault is in place to the finding. *Lasts* is how long the detector's rule wants \
the state to last (the grace of 50 ms, or more where a state must last longer to mean anything). `masked` is a lost wakeup \
that another ring heals after 20 ms, before the grace is over; its delay includes that. The published rapace crates cannot be \
made to misbehave, so theirs are the faults that come from outside: thefts and deaths.

| fault | planted | found first with the right class | right peer | right cause | unknown | wrong | with others | lasts, ms | delay median, ms | p99, ms | most, ms |
|---|---|---|---|---|---|---|---|---|---|---|---|
";

/// Inconclusive verdicts that are shown.
const INCONCLUSIVE_SHOWN: usize = 2;

const HEALTH: &str = "Nothing is wrong in these runs, so every finding is one too many. An inconclusive verdict is one too many \
unless records were lost. `attach and detach` is watched 200 times for 100 ms each, in mid-flight.

| regime | command | watches | events | lost records | findings | inconclusive | time, s |
|---|---|---|---|---|---|---|---|
";

pub(crate) fn text(
    proofs: Option<&Proofs>,
    faults: Option<&Faults>,
    health: Option<&Healthy>,
    mutants: Option<&Mutants>,
) -> String {
    let mut text = HEAD.to_owned();
    write_all(proofs, faults, health, mutants, &mut text)
        .unwrap_or_else(|_| unreachable!("writing to a string does not fail"));
    text
}

fn write_all(
    proofs: Option<&Proofs>,
    faults: Option<&Faults>,
    health: Option<&Healthy>,
    mutants: Option<&Mutants>,
    text: &mut String,
) -> Result {
    writeln!(text, "## Planted faults\n")?;
    match faults {
        Some(faults) => write_faults(faults, text)?,
        None => writeln!(text, "Not run.")?,
    }
    writeln!(text, "\n## Healthy traffic\n")?;
    match health {
        Some(health) => write_healthy(health, text)?,
        None => writeln!(text, "Not run.")?,
    }
    writeln!(text, "\n## The model and random interleavings\n")?;
    match proofs {
        Some(proofs) => write_proofs(proofs, text)?,
        None => writeln!(text, "Not run.")?,
    }
    writeln!(text, "\n## Rules broken on purpose\n")?;
    match mutants {
        Some(mutants) => write_mutants(mutants, text),
        None => writeln!(text, "Not run."),
    }
}

/// The runs that figures come from, each once.
fn write_sources<'a>(sources: impl Iterator<Item = &'a Source>, text: &mut String) -> Result {
    let mut told: Vec<&str> = Vec::new();
    for Source { command, load } in sources {
        if told.contains(&command.as_str()) {
            continue;
        }
        told.push(command);
        writeln!(
            text,
            "    {command}\n\nOn Linux {}, {} processors ({} % busy meanwhile), in {} s, commit {}.\n",
            load.kernel, load.processors, load.busy_percent, load.seconds, load.commit
        )?;
    }
    Ok(())
}

fn write_faults(faults: &Faults, text: &mut String) -> Result {
    write_sources(faults.groups.values().map(|group| &group.source), text)?;
    text.push_str(FAULTS);
    for (name, group) in &faults.groups {
        write_row(name, group.trials.iter(), true, text)?;
    }
    write_row("**all**", faults.trials(), false, text)?;
    let odd: Vec<String> = faults.trials().filter_map(odd).collect();
    if !odd.is_empty() {
        writeln!(text, "\nNot as expected ({}):\n", odd.len())?;
    }
    for line in odd {
        writeln!(text, "* {line}")?;
    }
    Ok(())
}

fn write_row<'a>(
    name: &str,
    trials: impl Iterator<Item = &'a Trial> + Clone,
    delays: bool,
    text: &mut String,
) -> Result {
    let tried = trials.filter(|trial| trial.failed.is_none());
    let count = |what: &dyn Fn(&Trial) -> bool| tried.clone().filter(|trial| what(trial)).count();
    let cause = |cause| count(&|trial| trial.class_right && trial.cause == cause);
    let mut times: Vec<u64> = tried
        .clone()
        .filter(|trial| trial.class_right)
        .map(|trial| trial.delay_us)
        .collect();
    times.sort_unstable();
    let time = |permille: usize| {
        // The smallest delay that so many are at most.
        let rank = (times.len() * permille).div_ceil(1000).max(1) - 1;
        let time = times.get(rank).filter(|_| delays);
        time.map_or("-".to_owned(), |us| {
            format!("{}.{}", us / 1000, us / 100 % 10)
        })
    };
    let lasts = tried.clone().map(|trial| trial.lasts_us / 1000).max();
    writeln!(
        text,
        "| {name} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        tried.clone().count(),
        count(&|trial| trial.class_right),
        count(&|trial| trial.class_right && trial.place_right),
        cause(Cause::Right),
        cause(Cause::Unknown),
        cause(Cause::Wrong),
        count(&|trial| !trial.others.is_empty()),
        lasts
            .filter(|_| delays)
            .map_or("-".to_owned(), |ms| ms.to_string()),
        time(500),
        time(990),
        time(1000)
    )
}

/// A trial that did not go as it should, in words.
fn odd(trial: &Trial) -> Option<String> {
    let what = if let Some(why) = &trial.failed {
        format!("could not be tried: {why}")
    } else if trial.good() && trial.others.is_empty() {
        return None;
    } else {
        let first = trial.first.as_deref().unwrap_or("nothing");
        format!("first {first}; others: {}", trial.others.join(", "))
    };
    let lost = if trial.lost > 0 {
        format!(" ({} records lost)", trial.lost)
    } else {
        String::new()
    };
    Some(format!("{}, seed {}: {what}{lost}", trial.name, trial.seed))
}

fn write_healthy(health: &Healthy, text: &mut String) -> Result {
    write_sources(health.regimes.iter().map(|health| &health.source), text)?;
    text.push_str(HEALTH);
    let mut total = Health {
        name: "**all**".to_owned(),
        ..Health::default()
    };
    for regime in &health.regimes {
        total.events += regime.events;
        total.lost += regime.lost;
        total.watches += regime.watches;
        total.seconds += regime.seconds;
        total.findings.extend(regime.findings.iter().cloned());
        total
            .inconclusive
            .extend(regime.inconclusive.iter().cloned());
        write_health(regime, text)?;
    }
    write_health(&total, text)?;
    for regime in &health.regimes {
        if let Some(why) = &regime.failed {
            writeln!(
                text,
                "\n{} could not be watched to its end: {why}",
                regime.name
            )?;
        }
    }
    // What could not be judged for want of records is much the same each time.
    let examples = total.inconclusive.iter().take(INCONCLUSIVE_SHOWN);
    for finding in total.findings.iter().chain(examples) {
        writeln!(text, "\n```json\n{finding:.2000}\n```")?;
    }
    Ok(())
}

fn write_health(health: &Health, text: &mut String) -> Result {
    writeln!(
        text,
        "| {} | `{}` | {} | {} | {} | {} | {} | {:.0} |",
        health.name,
        health.args,
        health.watches,
        health.events,
        health.lost,
        health.findings.len(),
        health.inconclusive.len(),
        health.seconds
    )
}

fn write_proofs(proofs: &Proofs, text: &mut String) -> Result {
    writeln!(
        text,
        "    {}\n\n{} states explored, {} disagreements: {} tests passed, {} failed. In each state that can be reached the engine's \
         verdict is compared with what the model itself says, after every way into it. (A disagreement fails the test.)\n",
        proofs.model.command,
        proofs.states,
        if proofs.model.failed == 0 {
            "0"
        } else {
            "some"
        },
        proofs.model.passed,
        proofs.model.failed
    )?;
    for setup in &proofs.setups {
        writeln!(text, "* {setup}")?;
    }
    writeln!(
        text,
        "\n    {}\n\nRandom interleavings of producers, consumers and faults, {} cases for each property, with records delayed by up to \
         50 ms, reordered between processors, and dropped: {} properties held, {} did not.",
        proofs.interleavings.command,
        proofs.cases,
        proofs.interleavings.passed,
        proofs.interleavings.failed
    )
}

fn write_mutants(mutants: &Mutants, text: &mut String) -> Result {
    writeln!(
        text,
        "    cargo xtask mutants\n\nEach rule of the engine is broken in a copy, one at a time; some test must fail. {} rules broken, {} \
         noticed.\n\n| what is broken | in | noticed by |\n|---|---|---|",
        mutants.all.len(),
        mutants.all.iter().filter(|mutant| mutant.noticed()).count()
    )?;
    for mutant in &mutants.all {
        writeln!(
            text,
            "| {} | {} | {} |",
            mutant.name,
            mutant.file,
            mutant.shown()
        )?;
    }
    Ok(())
}
