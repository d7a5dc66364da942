//! Attach and detach again and again, and kill the daemon where it stands: nobody may notice, and nothing may be left.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use clap::Args;

use super::{
    Verdict,
    kernel::{self, Identity, KINDS, Kind},
    scene::{Actor, Heard, count},
    table,
};
use crate::corpus::sim::Dice;

#[derive(Args)]
pub(crate) struct Attach {
    /// So many times attached and detached
    #[arg(long, default_value_t = 1000)]
    pub(super) times: u32,
    /// So many times killed, at random moments
    #[arg(long, default_value_t = 200)]
    pub(super) kills: u32,
    /// Seed of the moments
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
}

/// A watch lasts up to this, in ms.
const LONGEST_WATCH: u64 = 20;
/// A killed daemon lives up to this, in ms: less than attaching takes, and more.
const LONGEST_LIFE: u64 = 600;
/// The kernel frees objects some time after the last fd of them is gone.
const FREED_WITHIN: Duration = Duration::from_secs(20);
/// Time between two looks at the daemon's fds: the same fd in two of them was held for longer than one look.
const LOOKS: Duration = Duration::from_millis(20);

/// Looks at the fds of the traced processes, before and after.
const FD_LOOKS: u32 = 10;

/// What stood before.
struct Before {
    objects: BTreeMap<Kind, BTreeSet<u32>>,
    files: BTreeSet<String>,
    fds: BTreeMap<u32, usize>,
}

/// What was noticed on the way.
#[derive(Default)]
struct Seen {
    attach: Vec<Duration>,
    events: u64,
    lost: u64,
    findings: u64,
    not_clean: u64,
    /// BPF objects that the daemons had.
    objects: BTreeSet<(Kind, u32)>,
    /// Processes that killed daemons had started.
    children: BTreeSet<Identity>,
    /// Killed before they were attached.
    early: u32,
    held: BTreeSet<String>,
    looks: u64,
}

impl Attach {
    pub(super) fn run(&self, programs: &Path) -> Result<()> {
        let (host, mut pids) = Actor::host(programs, &["--plugins", "4", "--gap", "500us"])?;
        let mut witness = Actor::start(programs, "ddc-sim", &["witness"])?;
        witness.wait(|line| line["event"] == "witness")?;
        pids.push(witness.pid());
        let roots = [host.pid(), witness.pid()];
        let before = Before::look(&pids)?;
        let mut seen = Seen::default();
        let mut dice = Dice::new(self.seed);
        let started = Instant::now();

        for _ in 0..self.times {
            let duration = format!("{}ms", 1 + dice.below(LONGEST_WATCH));
            watch_once(programs, &roots, &pids, &duration, &mut seen)?;
        }
        let attached = started.elapsed();
        for _ in 0..self.kills {
            let life = Duration::from_millis(dice.below(LONGEST_LIFE));
            kill_once(programs, &roots, life, &mut seen)?;
        }
        let killed = started.elapsed().saturating_sub(attached);

        table();
        let mut verdict = Verdict::default();
        seen.attach.sort_unstable();
        Verdict::tell(
            "attached and detached",
            format_args!(
                "{} times in {:.0} s; attached within {} ms (median), {} ms (longest)",
                self.times,
                attached.as_secs_f64(),
                seen.attach
                    .get(seen.attach.len() / 2)
                    .map_or(0, Duration::as_millis),
                seen.attach.last().map_or(0, Duration::as_millis),
            ),
        );
        Verdict::tell(
            "killed with SIGKILL",
            format_args!(
                "{} times in {:.0} s, {} of them before the first look",
                self.kills,
                killed.as_secs_f64(),
                seen.early
            ),
        );
        verdict.expect(
            seen.findings + seen.not_clean + seen.lost == 0 && (seen.events > 0 || self.times == 0),
            "what the watches saw",
            format_args!(
                "{} events, {} lost, {} findings, {} exit codes other than 0",
                seen.events, seen.lost, seen.findings, seen.not_clean
            ),
        );
        verdict.expect(
            seen.held.is_empty() && (seen.looks > 0 || self.times == 0),
            "sockets of traced processes held in two looks",
            format_args!("{} (in {} looks)", seen.held.len(), seen.looks),
        );
        before.compare(&seen, &pids, &mut verdict)?;
        end(host, witness, &mut verdict)?;
        verdict.end()
    }
}

/// One watch, to its end in order, with a look at the daemon's fds now and then.
fn watch_once(
    programs: &Path,
    roots: &[u32],
    pids: &[u32],
    duration: &str,
    seen: &mut Seen,
) -> Result<()> {
    let started = Instant::now();
    let mut tracer = Actor::tracer(programs, roots, &["--duration", duration])?;
    let pid = tracer.pid();
    let over = AtomicBool::new(false);
    let (attach, objects, ended, held) = thread::scope(|scope| {
        let looker = scope.spawn(|| held_for_long(pid, pids, &over));
        let attach = tracer
            .wait(|line| line["type"] == "header")
            .map(|_| started.elapsed());
        let objects = kernel::objects_of(pid);
        let ended = tracer.end();
        over.store(true, Ordering::Relaxed);
        (attach, objects, ended, looker.join())
    });
    seen.attach.push(attach?);
    seen.objects.extend(objects);
    let (summary, status) = ended?;
    seen.events += count(&summary, "events");
    seen.lost += count(&summary, "lost");
    seen.findings += summary["findings"]
        .as_object()
        .map_or(1, |findings| findings.len() as u64);
    seen.not_clean += u64::from(!status.success());
    if let Ok((looks, held)) = held {
        seen.looks += looks;
        seen.held.extend(held);
    }
    Ok(())
}

/// Sockets of the traced processes that the daemon has fds of in two looks one after the other; how many looks.
fn held_for_long(daemon: u32, pids: &[u32], over: &AtomicBool) -> (u64, BTreeSet<String>) {
    let theirs: BTreeSet<String> = pids.iter().flat_map(|pid| kernel::sockets(*pid)).collect();
    let (mut looks, mut held, mut before) = (0, BTreeSet::new(), BTreeSet::new());
    // Relaxed: nothing is handed over.
    while !over.load(Ordering::Relaxed) {
        let now = &kernel::sockets(daemon) & &theirs;
        held.extend(&before & &now);
        before = now;
        looks += 1;
        thread::sleep(LOOKS);
    }
    (looks, held)
}

/// One daemon, killed at a moment.
fn kill_once(programs: &Path, roots: &[u32], life: Duration, seen: &mut Seen) -> Result<()> {
    let tracer = Actor::tracer(programs, roots, &[])?;
    thread::sleep(life);
    let objects = kernel::objects_of(tracer.pid());
    let children = kernel::descendants(tracer.pid());
    let attached = matches!(tracer.next_within(Duration::ZERO)?, Heard::Line(line) if line["type"] == "header");
    tracer.kill()?;
    seen.early += u32::from(!attached);
    seen.objects.extend(objects);
    seen.children.extend(children);
    Ok(())
}

impl Before {
    fn look(pids: &[u32]) -> Result<Self> {
        let mut objects = BTreeMap::new();
        for kind in KINDS {
            objects.insert(kind, kernel::ids(kind).context("cannot list BPF objects")?);
        }
        Ok(Self {
            objects,
            files: kernel::files(),
            fds: fd_counts(pids),
        })
    }

    /// What is there now that was not, once the kernel had time to free what is free.
    fn compare(&self, seen: &Seen, pids: &[u32], verdict: &mut Verdict) -> Result<()> {
        let deadline = Instant::now() + FREED_WITHIN;
        let (mut new, mut left, mut orphans);
        loop {
            (new, left) = (BTreeMap::new(), 0);
            for kind in KINDS {
                let now = kernel::ids(kind)?;
                let ours = |id: &&u32| seen.objects.contains(&(kind, **id));
                left += now.iter().filter(ours).count();
                new.insert(kind, (&now - &self.objects[&kind]).len());
            }
            orphans = seen
                .children
                .iter()
                .filter(|child| kernel::is_alive(child))
                .count();
            if left + orphans == 0 && new.values().all(|count| *count == 0)
                || Instant::now() > deadline
            {
                break;
            }
            thread::sleep(Duration::from_millis(100));
        }
        verdict.expect(
            left == 0 && !seen.objects.is_empty(),
            "programs, maps and links of the daemons that are still there",
            format_args!("{left} of {}", seen.objects.len()),
        );
        verdict.expect(
            orphans == 0,
            "processes of killed daemons that are still there",
            format_args!("{orphans} of {}", seen.children.len()),
        );
        // Somebody else on the machine may have made some.
        Verdict::tell(
            "BPF objects on the machine that were not there before",
            new.iter()
                .map(|(kind, count)| format!("{count} {kind:?}").to_lowercase())
                .collect::<Vec<_>>()
                .join(", "),
        );
        let files: Vec<String> = (&kernel::files() - &self.files).into_iter().collect();
        verdict.expect(
            files.is_empty(),
            "new pinned objects, mounts and files",
            if files.is_empty() {
                "0".to_owned()
            } else {
                files.join(", ")
            },
        );
        let fds = fd_counts(pids);
        verdict.expect(
            fds.iter().all(|(pid, now)| *now <= self.fds[pid]),
            "fds of the traced processes, before and after",
            format_args!(
                "{} and {}",
                self.fds.values().sum::<usize>(),
                fds.values().sum::<usize>()
            ),
        );
        Ok(())
    }
}

/// How many fds each process has all the time: the least of some looks, since the witness starts children.
fn fd_counts(pids: &[u32]) -> BTreeMap<u32, usize> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for _ in 0..FD_LOOKS {
        for pid in pids {
            let now = kernel::fds(*pid).len();
            let count = counts.entry(*pid).or_insert(now);
            *count = now.min(*count);
        }
        thread::sleep(LOOKS);
    }
    counts
}

/// What the traced processes noticed.
fn end(host: Actor, witness: Actor, verdict: &mut Verdict) -> Result<()> {
    let testimony = witness.hang_up()?;
    let noticed = ["interrupted", "wrong", "continued"].map(|name| count(&testimony, name));
    verdict.expect(
        noticed == [0; 3] && count(&testimony, "calls") > 0,
        "the witness's calls",
        format_args!(
            "{} calls: {} ended with EINTR, {} with another result, {} stops",
            testimony["calls"], noticed[0], noticed[1], noticed[2]
        ),
    );
    let (done, _) = host.finish()?;
    let wrong = ["mismatched", "unexpected", "lost", "refused"].map(|name| count(&done, name));
    verdict.expect(
        wrong == [0; 4] && count(&done, "round_trips") > 0,
        "the host's round trips",
        format_args!(
            "{}: {} answers differed, {} unexpected, {} lost, {} refused",
            done["round_trips"], wrong[0], wrong[1], wrong[2], wrong[3]
        ),
    );
    Ok(())
}
