//! What the help and the manual page of each command have beyond their options: examples, and how it ends.
//!
//! One table, so that neither can have what the other lacks.

/// What is said of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guide {
    /// The command; empty = the program itself.
    pub command: &'static str,
    /// Command lines, each with what it is for.
    pub examples: &'static [(&'static str, &'static str)],
    /// Exit codes with what they mean here.
    pub exits: &'static [(u8, &'static str)],
}

const CLEAN: (u8, &str) = (0, "nothing was found that --fail-on names");
const ERROR: (u8, &str) = (1, "a runtime error, which stderr names");
const USAGE: (u8, &str) = (2, "wrong usage");
const FINDING: (u8, &str) = (3, "a finding that --fail-on names");
const INCONCLUSIVE: (u8, &str) = (
    4,
    "only inconclusive: records were lost, or not all could be seen",
);
const REFUSED: (u8, &str) = (
    5,
    "not permitted or not supported here; stderr says what to do",
);
const DONE: (u8, &str) = (0, "done");
const OF_A_WATCH: &[(u8, &str)] = &[CLEAN, ERROR, USAGE, FINDING, INCONCLUSIVE, REFUSED];

/// All of them.
pub const GUIDES: &[Guide] = &[
    Guide {
        command: "",
        examples: &[
            (
                "sudo shmtrace --pid-tree $(pgrep ddc)",
                "trace a running build",
            ),
            (
                "sudo -E shmtrace run --user -- ddc build",
                "trace a build from its first instruction, as yourself",
            ),
            (
                "sudo shmtrace doctor",
                "can it run here, and if not, what to do",
            ),
        ],
        exits: OF_A_WATCH,
    },
    Guide {
        command: "watch",
        examples: &[
            (
                "sudo shmtrace --pid-tree $(pgrep ddc)",
                "until ^C or the last process ends",
            ),
            (
                "sudo shmtrace watch --duration 30s --format json --fail-on any --pid-tree 4100",
                "in a script: exit status 3 if anything is proven",
            ),
            (
                "sudo shmtrace --events --peer 3 --pid-tree 4100",
                "a line for every doorbell event, findings of peer 3 only",
            ),
        ],
        exits: OF_A_WATCH,
    },
    Guide {
        command: "run",
        examples: &[
            ("sudo shmtrace run -- ddc build", "with the limit of 4G"),
            (
                "sudo -E shmtrace run --user --memory-max 8G -- ddc serve",
                "as the user who called sudo",
            ),
            (
                "sudo shmtrace run --fail-on any --expect-progress 10s -- ddc build",
                "in CI: exit status 3 if it hangs",
            ),
        ],
        exits: &[
            (3, "a finding that --fail-on names"),
            (2, "wrong usage"),
            (
                5,
                "not started: not permitted, or no memory limit can be had here",
            ),
            (126, "CMD cannot be executed"),
            (127, "there is no CMD"),
            (128, "plus N: CMD was ended by signal N"),
        ],
    },
    Guide {
        command: "record",
        examples: &[(
            "sudo shmtrace record -o hang.rec --pid-tree 4100",
            "for somebody else to look at",
        )],
        exits: OF_A_WATCH,
    },
    Guide {
        command: "replay",
        examples: &[
            ("shmtrace replay hang.rec", "needs no rights"),
            (
                "shmtrace replay --format json --verbose hang.rec",
                "with the suspects that came to nothing",
            ),
        ],
        exits: OF_A_WATCH,
    },
    Guide {
        command: "dump",
        examples: &[
            ("sudo shmtrace dump --pid-tree $(pgrep ddc)", "what hangs"),
            (
                "sudo shmtrace dump --signal --pid-tree 4100",
                "and what the program itself has to say",
            ),
        ],
        exits: &[DONE, ERROR, USAGE],
    },
    Guide {
        command: "inspect",
        examples: &[
            (
                "shmtrace inspect /tmp/dodeca-hub-4100.shm",
                "in use or left behind",
            ),
            (
                "sudo shmtrace inspect --watch --pid-tree 4100",
                "redrawn every second",
            ),
            (
                "shmtrace inspect --json FILE | jq '.peers[].recv_ring.len'",
                "in a script",
            ),
        ],
        exits: &[
            (0, "the hub holds together"),
            (1, "it does not (see its last lines), or a runtime error"),
            USAGE,
            (5, "a hub of another version"),
        ],
    },
    Guide {
        command: "kill",
        examples: &[
            (
                "shmtrace kill --dry-run --pid-tree $(pgrep ddc)",
                "what would be ended and removed",
            ),
            (
                "shmtrace kill --timeout 1s --pid-tree 4100",
                "SIGKILL after a second",
            ),
            ("shmtrace kill --stale", "hubs that nobody uses any more"),
        ],
        exits: &[
            (0, "all is gone"),
            (1, "something could not be ended or removed"),
            (
                2,
                "wrong usage, such as a tree that this process belongs to",
            ),
            (5, "not permitted"),
        ],
    },
    Guide {
        command: "profile",
        examples: &[
            (
                "sudo shmtrace profile -o busy.svg --pid-tree 4100",
                "ten seconds, as a flame graph",
            ),
            (
                "sudo shmtrace profile --off-cpu --duration 5s -o waits.svg --pid-tree 4100",
                "where it waits",
            ),
            (
                "sudo shmtrace profile --pid-tree 4100 | sort -k2 -n -t' ' | tail",
                "folded stacks",
            ),
        ],
        exits: &[DONE, ERROR, USAGE, REFUSED],
    },
    Guide {
        command: "nudge",
        examples: &[
            (
                "sudo shmtrace nudge --pid-tree 4100 --peer 3",
                "if a lane of peer 3 is proven stuck",
            ),
            (
                "sudo shmtrace nudge --pid-tree 4100 --peer 3 --lane to-peer --force",
                "in any case",
            ),
        ],
        exits: &[
            (0, "every lane that was rung was emptied"),
            (1, "nothing was rung, or it did not help"),
            USAGE,
            (5, "not permitted"),
        ],
    },
    Guide {
        command: "doctor",
        examples: &[
            ("sudo shmtrace doctor", "what works here"),
            (
                "sudo shmtrace doctor --self-test",
                "plant each fault, and see it found",
            ),
            (
                "sudo shmtrace doctor --json | jq -e .can_trace",
                "in a script",
            ),
        ],
        exits: &[
            (0, "it can trace here"),
            USAGE,
            (5, "it cannot; each \"no\" comes with its remedy"),
        ],
    },
    Guide {
        command: "explain",
        examples: &[
            ("shmtrace explain", "all of them in a line each"),
            (
                "shmtrace explain consumed-then-slept",
                "the page of a cause",
            ),
        ],
        exits: &[DONE, (2, "there is no such finding")],
    },
    Guide {
        command: "completions",
        examples: &[(
            "shmtrace completions bash > ~/.local/share/bash-completion/completions/shmtrace",
            "for bash",
        )],
        exits: &[DONE, USAGE],
    },
    Guide {
        command: "man",
        examples: &[
            ("shmtrace man run | man -l -", "read a page"),
            (
                "sudo shmtrace man --output-dir /usr/local/share/man/man1",
                "install all",
            ),
        ],
        exits: &[DONE, USAGE],
    },
    Guide {
        command: "schema",
        examples: &[(
            "shmtrace schema > ndjson-1.json",
            "check lines of --format json against it",
        )],
        exits: &[DONE],
    },
];

impl Guide {
    /// The guide of a command; empty = the program itself.
    pub fn of(command: &str) -> Option<&'static Self> {
        GUIDES.iter().find(|guide| guide.command == command)
    }

    /// As the end of a help text. Lines are not wrapped: they are to be copied.
    pub fn help(&self) -> String {
        let examples = self.examples.iter();
        let examples = examples.map(|(line, what)| format!("  {line}\n      {what}\n"));
        let exits = self.exits.iter();
        let exits = exits.map(|(code, meaning)| format!("  {code:<4} {meaning}\n"));
        let parts = std::iter::once("Examples:\n".to_owned())
            .chain(examples)
            .chain(std::iter::once("\nExit status:\n".to_owned()))
            .chain(exits);
        parts.collect::<String>().trim_end().to_owned()
    }
}
