//! `/proc/PID/stat` and lines of `/proc/PID/status`.

/// What matters of `/proc/PID/stat` (or of a thread's).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// `comm`, unescaped; bytes that are not UTF-8 are replaced.
    pub comm: String,
    /// State letter.
    pub state: char,
    /// Parent's pid.
    pub parent: u32,
    /// Its process group; 0 if it has none.
    pub group: u32,
    /// Its session; 0 if it has none.
    pub session: u32,
    /// How many threads it has.
    pub threads: u32,
    /// Start time in clock ticks since boot.
    pub start: u64,
    /// Its field `wchan`. From Linux 5.16 on: it is in no running state, and may be looked into. Before: its wait channel is known.
    pub waits: bool,
}

impl Stat {
    /// A zombie or dead.
    pub fn is_dead(&self) -> bool {
        matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Parses `/proc/PID/stat`. The name stands in parentheses and may itself contain any of them.
pub fn parse_stat(bytes: &[u8]) -> Option<Stat> {
    let open = bytes.iter().position(|byte| *byte == b'(')?;
    let close = bytes.iter().rposition(|byte| *byte == b')')?;
    let comm = String::from_utf8_lossy(bytes.get(open + 1..close)?).into_owned();
    let rest = std::str::from_utf8(bytes.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    // -1 while the process is being reaped.
    let mut leader = || {
        fields
            .next()?
            .parse::<i32>()
            .ok()
            .map(|pid| u32::try_from(pid).unwrap_or(0))
    };
    let (group, session) = (leader()?, leader()?);
    // The session was field 6, the number of threads is field 20, and `start` field 22.
    let threads = fields.nth(13)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    let waits = fields.nth(12).is_some_and(|wchan| wchan != "0");
    Some(Stat {
        comm,
        state,
        parent,
        group,
        session,
        threads,
        start,
        waits,
    })
}

/// The rest of the first line of `status` that begins with `name` (which includes the colon).
pub(crate) fn status_field<'a>(status: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    status
        .split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(name))
        .map(<[u8]>::trim_ascii)
}

/// Where its command line lies, as `/proc/PID/stat` tells those who may look into the process.
pub(super) fn command_line_at(stat: &[u8]) -> Option<std::ops::Range<u64>> {
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    // `arg_start` and `arg_end` are fields 48 and 49; the state is field 3.
    let mut fields = rest.split_ascii_whitespace().skip(45);
    let (start, end) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_contain_anything() {
        let line = b"17 (a) S 1 (b) R 5 17 17 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711 99 1\n";
        let stat = parse_stat(line).unwrap();
        assert_eq!(stat.comm, "a) S 1 (b");
        assert_eq!((stat.state, stat.parent, stat.start), ('R', 5, 4711));
        assert_eq!(stat.threads, 1);
        assert_eq!((stat.group, stat.session), (17, 17));
        assert!(!stat.waits, "a short line does not tell");
        for (wchan, waits) in [("0", false), ("1", true)] {
            let line = format!(
                "17 (x) S 1 17 17 0 -1 64 1 2 3 4 5 6 7 8 20 0 1 0 4711 23 24 25 26 27 28 29 30 31 32 33 34 {wchan} 0"
            );
            assert_eq!(parse_stat(line.as_bytes()).unwrap().waits, waits);
        }
    }

    #[test]
    fn cut_lines_are_refused() {
        let line = b"17 (x) S 1 17 17 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4711";
        assert!(parse_stat(line).is_some());
        for end in 0..line.len() - 5 {
            assert_eq!(parse_stat(&line[..end]), None, "{end}");
        }
        assert_eq!(parse_stat(b")("), None);
    }

    #[test]
    fn status_lines_are_found_at_their_begin_only() {
        let status = b"Name:\tNSpid:\nNSpid:\t12\t3\n";
        assert_eq!(status_field(status, b"NSpid:"), Some(&b"12\t3"[..]));
        assert_eq!(status_field(status, b"pid:"), None);
    }
}
