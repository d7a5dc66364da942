//! What a plugin's command line says about itself: `--hub-path=PATH --peer-id=N --doorbell-fd=FD`.
//!
//! It is a claim: whoever uses it checks that the process maps the hub and that the fd is a datagram socket with a peer.

use std::{ffi::OsString, os::unix::ffi::OsStrExt as _};

use shmtrace_engine::PeerId;

/// The claims of one command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    /// `--hub-path`
    pub(crate) hub_path: Option<String>,
    /// `--peer-id`
    pub(crate) peer: Option<PeerId>,
    /// `--doorbell-fd`
    pub(crate) doorbell_fd: Option<u32>,
}

impl Claim {
    /// Reads `--name=value` and `--name value`.
    pub(crate) fn parse(words: &[OsString]) -> Self {
        let text = |name: &str| {
            value(words, name).map(|value| String::from_utf8_lossy(value).into_owned())
        };
        Self {
            hub_path: text("--hub-path"),
            peer: text("--peer-id").and_then(|id| id.parse().ok()).map(PeerId),
            doorbell_fd: text("--doorbell-fd").and_then(|fd| fd.parse().ok()),
        }
    }
}

fn value<'a>(words: &'a [OsString], name: &str) -> Option<&'a [u8]> {
    let mut words = words.iter().map(|word| word.as_bytes());
    while let Some(word) = words.next() {
        match word.strip_prefix(name.as_bytes()) {
            Some([]) => return words.next(),
            Some([b'=', value @ ..]) => return Some(value),
            _ => {}
        }
    }
    None
}

/// What to call a process: its `comm`, or the base name of `argv[0]` where `comm` is only the beginning of it (the
/// kernel keeps 15 bytes) or where it is named like a plugin.
pub(crate) fn name(comm: &str, words: &[OsString]) -> String {
    let first = words
        .first()
        .map(|word| String::from_utf8_lossy(word.as_bytes()).into_owned());
    let base = first
        .as_deref()
        .and_then(|path| path.rsplit('/').next())
        .unwrap_or_default();
    let longer = !comm.is_empty() && base.len() > comm.len() && base.starts_with(comm);
    let plugin = base.starts_with("dodeca-mod-") || base.starts_with("ddc-cell-");
    if longer || plugin {
        base.to_owned()
    } else {
        comm.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn both_spellings_are_read() {
        let expected = Claim {
            hub_path: Some("/tmp/h".into()),
            peer: Some(PeerId(3)),
            doorbell_fd: Some(9),
        };
        assert_eq!(
            Claim::parse(&words("x --hub-path=/tmp/h --peer-id=3 --doorbell-fd=9")),
            expected
        );
        assert_eq!(
            Claim::parse(&words("x --hub-path /tmp/h --peer-id 3 --doorbell-fd 9")),
            expected
        );
        assert_eq!(
            Claim::parse(&words("x --peer-id=-1 --doorbell-fd=x --peer-idx=4")),
            Claim::default()
        );
        assert_eq!(Claim::parse(&words("x --peer-id")), Claim::default());
        assert_eq!(Claim::parse(&[]), Claim::default());
    }

    #[test]
    fn names_say_as_much_as_there_is() {
        assert_eq!(
            name(
                "dodeca-mod-code",
                &words("/opt/dodeca-mod-code-execution --x")
            ),
            "dodeca-mod-code-execution"
        );
        assert_eq!(
            name("tokio-runtime", &words("dodeca-mod-css")),
            "dodeca-mod-css"
        );
        assert_eq!(name("ddc", &words("/usr/bin/ddc serve")), "ddc");
        assert_eq!(name("sh", &words("python3 x")), "sh");
        assert_eq!(name("kworker", &[]), "kworker");
    }
}
