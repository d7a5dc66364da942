//! The report, in markdown.

use std::{fmt::Write as _, time::Duration};

use anyhow::Result;

use super::{
    Corpus,
    faults::{Case, Trial, Verdict},
    health::Health,
};

pub(crate) fn text(
    corpus: &Corpus,
    faults: &[(Case, Vec<Result<Trial>>)],
    health: &[(&str, Result<Health>)],
) -> String {
    let mut text = String::from("# What is found, and what is not\n\n");
    write_all(corpus, faults, health, &mut text)
        .unwrap_or_else(|_| unreachable!("writing to a string does not fail"));
    text
}

fn write_all(
    corpus: &Corpus,
    faults: &[(Case, Vec<Result<Trial>>)],
    health: &[(&str, Result<Health>)],
    text: &mut String,
) -> std::fmt::Result {
    writeln!(
        text,
        "Measured by `cargo xtask corpus --runs {} --events {} --seed {}` with a grace of 50 ms.\n",
        corpus.runs, corpus.events, corpus.seed
    )?;
    writeln!(
        text,
        "## Planted faults\n\nAt random moments and peers, in trees of 1, 4 and 16 plugins with pauses between 0 and 2 ms, traced from \
         before the first call. The delay runs from the moment when the fault is in place to the finding.\n\n\
         | fault | planted | found | right class | right peer | right cause | cause unknown | cause wrong | delay median, ms | p99, ms |\n\
         |---|---|---|---|---|---|---|---|---|---|"
    )?;
    for (case, trials) in faults {
        write_case(case, trials, text)?;
    }
    let odd = faults
        .iter()
        .flat_map(|(case, trials)| trials.iter().filter_map(move |trial| odd(case, trial)));
    for (number, line) in odd.enumerate() {
        if number == 0 {
            writeln!(text, "\nNot as expected:\n")?;
        }
        writeln!(text, "* {line}")?;
    }
    writeln!(
        text,
        "\n## Healthy traffic\n\nNothing is wrong in these runs, so every finding is one too many.\n\n\
         | regime | watches | events | lost records | findings | time, s |\n|---|---|---|---|---|---|"
    )?;
    let mut total = Health::default();
    for (name, health) in health {
        match health {
            Ok(health) => {
                total.events += health.events;
                total.lost += health.lost;
                total.watches += health.watches;
                total.took += health.took;
                total.findings.extend(health.findings.iter().cloned());
                write_health(name, health, text)?;
            }
            Err(error) => writeln!(text, "| {name} | failed: {error:#} | | | | |")?,
        }
    }
    write_health("**all**", &total, text)?;
    for finding in &total.findings {
        writeln!(text, "\n```json\n{finding}\n```")?;
    }
    Ok(())
}

fn write_case(case: &Case, trials: &[Result<Trial>], text: &mut String) -> std::fmt::Result {
    let planted: Vec<&Trial> = trials.iter().flatten().collect();
    let count = |what: &dyn Fn(&Trial) -> bool| planted.iter().filter(|trial| what(trial)).count();
    let cause = |verdict| count(&|trial| trial.class_right && trial.cause == verdict);
    let mut delays: Vec<Duration> = planted
        .iter()
        .filter(|trial| trial.class_right)
        .map(|trial| trial.delay)
        .collect();
    delays.sort_unstable();
    let quantile = |percent: usize| {
        let place = delays.len().saturating_sub(1) * percent / 100;
        delays.get(place).map_or("-".to_owned(), |delay| {
            format!("{:.1}", delay.as_secs_f64() * 1e3)
        })
    };
    writeln!(
        text,
        "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
        case.name(),
        planted.len(),
        count(&|trial| trial.found.is_some()),
        count(&|trial| trial.class_right),
        count(&|trial| trial.class_right && trial.place_right),
        cause(Verdict::Right),
        cause(Verdict::Unknown),
        cause(Verdict::Wrong),
        quantile(50),
        quantile(99)
    )
}

/// A trial that did not go as it should, in words.
fn odd(case: &Case, trial: &Result<Trial>) -> Option<String> {
    let what = match trial {
        Err(error) => format!("{error:#}"),
        Ok(Trial { found: None, .. }) => "not found".to_owned(),
        Ok(Trial {
            found: Some((code, cause)),
            class_right,
            place_right,
            cause: verdict,
            ..
        }) => {
            let cause = cause.as_deref().unwrap_or("no cause");
            match (class_right, place_right, verdict) {
                (false, ..) => format!("first found as {code}, {cause}"),
                (true, false, _) => format!("{code} of another peer"),
                (true, true, Verdict::Wrong) => format!("{code} with cause {cause}"),
                _ => return None,
            }
        }
    };
    Some(format!("{}: {what}", case.name()))
}

fn write_health(name: &str, health: &Health, text: &mut String) -> std::fmt::Result {
    writeln!(
        text,
        "| {name} | {} | {} | {} | {} | {:.0} |",
        health.watches,
        health.events,
        health.lost,
        health.findings.len(),
        health.took.as_secs_f64()
    )
}
