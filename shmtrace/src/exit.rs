//! Exit codes, fixed for scripts.

use std::io;

use crate::probes::ProbeError;

/// How the program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// 0: nothing to complain about.
    Clean,
    /// 1: a runtime error.
    Error,
    /// 2: wrong usage.
    Usage,
    /// 3: a finding that `--fail-on` names.
    Finding,
    /// 4: only inconclusive: records were lost, or not all could be seen.
    Inconclusive,
    /// 5: not permitted or not supported here.
    NotPermitted,
    /// The status of a command that was run.
    Status(u8),
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Clean => 0,
            Exit::Error => 1,
            Exit::Usage => 2,
            Exit::Finding => 3,
            Exit::Inconclusive => 4,
            Exit::NotPermitted => 5,
            Exit::Status(status) => status,
        })
    }
}

/// An error that names its exit code; put it into a chain with `anyhow::Error::context` or return it as it is.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    exit: Exit,
    message: String,
}

impl Refusal {
    /// Wrong usage that clap cannot know about: exit 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            message: message.into(),
        }
    }

    /// Missing rights or support, with the remedy in the message: exit 5.
    pub fn not_permitted(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::NotPermitted,
            message: message.into(),
        }
    }
}

/// The exit code of an error: that of a [`Refusal`] or [`ProbeError`] in its chain, else 1.
pub fn code_of(error: &anyhow::Error) -> Exit {
    for cause in error.chain() {
        if let Some(refusal) = cause.downcast_ref::<Refusal>() {
            return refusal.exit;
        }
        if let Some(probes) = cause.downcast_ref::<ProbeError>() {
            return match probes {
                ProbeError::Failed { .. } => Exit::Error,
                ProbeError::NotBuilt
                | ProbeError::NotPermitted { .. }
                | ProbeError::Unsupported { .. } => Exit::NotPermitted,
            };
        }
    }
    Exit::Error
}

/// Whether an error is a reader that went away (`shmtrace ... | head`).
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        let io = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        // serde_json wraps what its writer said.
        let json = cause
            .downcast_ref::<serde_json::Error>()
            .and_then(serde_json::Error::io_error_kind);
        io.or(json) == Some(io::ErrorKind::BrokenPipe)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_went_away_is_known_through_every_wrapping() {
        let pipe = || io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&pipe().into()));
        assert!(is_broken_pipe(
            &anyhow::Error::from(pipe()).context("cannot write")
        ));
        assert!(is_broken_pipe(&anyhow::Error::from(serde_json::Error::io(
            pipe()
        ))));
        assert!(!is_broken_pipe(
            &io::Error::from(io::ErrorKind::NotFound).into()
        ));
    }

    #[test]
    fn a_refusal_keeps_its_code_through_every_wrapping() {
        let refusal = || anyhow::Error::from(Refusal::not_permitted("no"));
        assert_eq!(code_of(&refusal()), Exit::NotPermitted);
        assert_eq!(code_of(&refusal().context("more")), Exit::NotPermitted);
        assert_eq!(code_of(&Refusal::usage("no").into()), Exit::Usage);
        assert_eq!(code_of(&anyhow::anyhow!("no")), Exit::Error);
    }
}
