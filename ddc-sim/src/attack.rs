//! An enemy of whoever reads a hub: it cuts, grows, scribbles on, hole-punches and replaces the file.
//!
//! The processes that map it must be stopped, or they would be hit too.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use clap::Args;
use rustix::fs::{CWD, FallocateFlags, FileType, fallocate, mknodat};
use serde_json::json;
use shm_transport::layout::{class, hub};
use sim_kit::report::line;
use sim_kit::traffic::Dice;

/// What to attack.
#[derive(Debug, Args)]
pub(crate) struct AttackOptions {
    /// The hub file
    #[arg(long)]
    hub: PathBuf,
    /// For how long
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Seed of the acts
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Time between two looks whether reading made pages in the file.
const EXAMINE: Duration = Duration::from_secs(2);
/// Looks in progress when the last page goes may still make one.
const IN_PROGRESS: Duration = Duration::from_millis(50);
/// For how long the file has no pages then: several looks.
const EMPTY: Duration = Duration::from_millis(300);
/// Acts without a pause, and the pause.
const BURST: u64 = 16;
const PAUSE: Duration = Duration::from_micros(200);

/// The file as it was, and the enemy's own view of it.
struct Victim {
    file: File,
    path: PathBuf,
    /// The control part as it was.
    sound: Vec<u8>,
    size: u64,
}

/// The role `attack`: acts for a time, leaves the file as it was, and tells what was done and found.
pub(crate) fn run(options: &AttackOptions) -> anyhow::Result<()> {
    let victim = Victim::open(&options.hub)?;
    let mut dice = Dice::new(options.seed, 0xa77a);
    let (mut acts, mut examinations, mut most_pages) = (0_u64, 0_u64, 0_u64);
    let end = Instant::now() + options.time;
    let mut examined = Instant::now();
    while Instant::now() < end {
        victim.act(&mut dice);
        acts += 1;
        if acts.is_multiple_of(BURST) {
            thread::sleep(PAUSE);
        }
        if examined.elapsed() >= EXAMINE {
            most_pages = most_pages.max(victim.blocks_made_by_readers()?);
            examinations += 1;
            examined = Instant::now();
        }
    }
    victim.restore().context("making the file whole again")?;
    line(
        &json!({"event": "attacked", "acts": acts, "examinations": examinations, "blocks": most_pages}),
    );
    Ok(())
}

impl Victim {
    fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::options()
            .read(true)
            .write(true)
            .open(path)
            .with_context(|| format!("opening {}", path.display()))?;
        let mut offset = [0; 8];
        file.read_exact_at(&mut offset, hub::SIZE_CLASS_OFFSET as u64)?;
        let control = usize::try_from(u64::from_ne_bytes(offset))? + class::COUNT * class::SIZE;
        let size = file.metadata()?.len();
        ensure!(
            control as u64 <= size,
            "{} is no hub: its control part ends behind it",
            path.display()
        );
        let mut sound = vec![0; control];
        file.read_exact_at(&mut sound, 0)?;
        Ok(Self {
            file,
            path: path.to_owned(),
            sound,
            size,
        })
    }

    /// One act. What fails (a rename of what is not there) is none.
    fn act(&self, dice: &mut Dice) {
        let control = self.sound.len() as u64;
        let below = |dice: &mut Dice, most: u64| dice.between(0, most.saturating_sub(1));
        let done = match below(dice, 10) {
            0 => self.file.set_len(below(dice, 2 * control)),
            1 => self.file.set_len(0),
            2 => {
                let (from, bytes) = (below(dice, control), 1 + below(dice, control));
                self.punch(from, bytes)
            }
            // A word anywhere; half of them in the header or the peer table.
            3..=5 => {
                let most = if below(dice, 2) == 0 { 2304 } else { control };
                let value = match below(dice, 3) {
                    0 => dice.roll(),
                    1 => u64::MAX - below(dice, 64),
                    _ => below(dice, 512),
                };
                let at = below(dice, most) / 4 * 4;
                self.file.write_all_at(&value.to_ne_bytes(), at)
            }
            6 => self.replace(below(dice, 4)),
            7 => fs::rename(self.away(), &self.path),
            _ => self.restore(),
        };
        drop(done);
    }

    fn away(&self) -> PathBuf {
        self.path.with_extension("away")
    }

    /// Something else takes the file's name: a file of rubbish, a FIFO without a writer, a loop of links, or nothing.
    fn replace(&self, with: u64) -> std::io::Result<()> {
        fs::rename(&self.path, self.away())?;
        match with {
            0 => fs::write(&self.path, b"RAPAHUB\0 and nothing else"),
            1 => Ok(mknodat(CWD, &self.path, FileType::Fifo, 0o600.into(), 0)?),
            2 => std::os::unix::fs::symlink(&self.path, &self.path),
            _ => Ok(()),
        }
    }

    fn restore(&self) -> std::io::Result<()> {
        if fs::symlink_metadata(self.away()).is_ok() {
            fs::rename(self.away(), &self.path)?;
        }
        self.file.set_len(self.size)?;
        self.file.write_all_at(&self.sound, 0)
    }

    fn punch(&self, from: u64, bytes: u64) -> std::io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        Ok(fallocate(&self.file, flags, from, bytes)?)
    }

    /// Takes every page away, and tells how many blocks there are after readers had time to look.
    fn blocks_made_by_readers(&self) -> anyhow::Result<u64> {
        self.restore()?;
        self.punch(0, self.size)?;
        thread::sleep(IN_PROGRESS);
        self.punch(0, self.size)?;
        thread::sleep(EMPTY);
        let blocks = self.file.metadata()?.blocks();
        self.restore()?;
        Ok(blocks)
    }
}
