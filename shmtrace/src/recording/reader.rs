//! Reading a recording, which may have been cut or damaged on its way.

use std::io::{self, BufRead};

use thiserror::Error;

use super::{FORMAT, Header, MAGIC, Step};

/// Bytes of a line at most; an observation of a large process takes a few hundred KiB.
const LONGEST_LINE: u64 = 64 << 20;

/// Why a recording cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// Reading failed.
    #[error("cannot read the recording")]
    Io(#[from] io::Error),
    /// Something else.
    #[error("this is not a recording of shmtrace: its first line is not a header ({0})")]
    Foreign(String),
    /// Another version.
    #[error(
        "the recording has format {found}, this shmtrace reads format {FORMAT}: use the shmtrace that wrote it ({version})"
    )]
    Format {
        /// Its format.
        found: u32,
        /// Who wrote it.
        version: String,
    },
    /// A line in the middle is damaged.
    #[error("line {line} of the recording is damaged: {what}")]
    Damaged {
        /// Which, from 1.
        line: u64,
        /// How.
        what: String,
    },
}

/// An open recording: its header, then its steps as an iterator.
pub struct Recording<R> {
    /// The header.
    pub header: Header,
    input: R,
    line: u64,
    buffer: Vec<u8>,
    cut: bool,
}

impl<R: BufRead> Recording<R> {
    /// Reads the header.
    pub fn open(mut input: R) -> Result<Self, ReadError> {
        let mut buffer = Vec::new();
        io::Read::take(&mut input, LONGEST_LINE).read_until(b'\n', &mut buffer)?;
        let header: Header =
            serde_json::from_slice(&buffer).map_err(|e| ReadError::Foreign(e.to_string()))?;
        if header.recording != MAGIC {
            return Err(ReadError::Foreign(format!(
                "it calls itself {:?}",
                header.recording
            )));
        }
        if header.format != FORMAT {
            return Err(ReadError::Format {
                found: header.format,
                version: header.version,
            });
        }
        Ok(Self {
            header,
            input,
            line: 1,
            buffer,
            cut: false,
        })
    }

    /// Whether the last line was incomplete: the recorder was killed.
    pub fn was_cut(&self) -> bool {
        self.cut
    }

    /// The next step; `None` at the end.
    pub fn next_step(&mut self) -> Result<Option<Step>, ReadError> {
        self.buffer.clear();
        self.line += 1;
        let read =
            io::Read::take(&mut self.input, LONGEST_LINE).read_until(b'\n', &mut self.buffer)?;
        if read == 0 {
            return Ok(None);
        }
        if self.buffer.last() != Some(&b'\n') {
            if read as u64 == LONGEST_LINE {
                return Err(ReadError::Damaged {
                    line: self.line,
                    what: format!("it is longer than {} MiB", LONGEST_LINE >> 20),
                });
            }
            self.cut = true;
            return Ok(None);
        }
        serde_json::from_slice(&self.buffer)
            .map(Some)
            .map_err(|e| ReadError::Damaged {
                line: self.line,
                what: e.to_string(),
            })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    const HEADER: &str = r#"{"recording":"shmtrace","format":1,"version":"0.1.0","start_time":"2026-01-01T00:00:00Z","start_mono_ns":5,"kernel":"6","roots":[1],"grace_ns":7,"expect_progress_ns":null}"#;

    fn open(text: &str) -> Result<Recording<&[u8]>, ReadError> {
        Recording::open(text.as_bytes())
    }

    #[test]
    fn a_cut_last_line_is_no_error() {
        let text = format!("{HEADER}\n{{\"attached\":5}}\n{{\"attac");
        let mut recording = open(&text).unwrap();
        assert!(matches!(recording.next_step(), Ok(Some(Step::Attached(_)))));
        assert!(matches!(recording.next_step(), Ok(None)));
        assert!(recording.was_cut());
    }

    #[test]
    fn a_damaged_line_is_named() {
        let text = format!("{HEADER}\n{{\"attached\":5}}\n{{\"atta\":5}}\n{{\"attached\":5}}\n");
        let mut recording = open(&text).unwrap();
        recording.next_step().unwrap();
        assert!(matches!(
            recording.next_step(),
            Err(ReadError::Damaged { line: 3, .. })
        ));
    }

    #[test]
    fn a_line_without_end_is_damage_and_not_the_end() {
        let endless = io::BufReader::new(io::repeat(b' '));
        let text = format!("{HEADER}\n");
        let mut recording = Recording::open(text.as_bytes().chain(endless)).unwrap();
        let refused = recording.next_step();
        assert!(
            matches!(&refused, Err(ReadError::Damaged { line: 2, what }) if what.contains("64 MiB")),
            "{refused:?}"
        );
    }

    #[test]
    fn other_files_and_formats_are_refused() {
        assert!(matches!(open("hello\n"), Err(ReadError::Foreign(_))));
        assert!(matches!(open(""), Err(ReadError::Foreign(_))));
        let newer = HEADER.replace("\"format\":1", "\"format\":2");
        assert!(matches!(
            open(&newer),
            Err(ReadError::Format { found: 2, .. })
        ));
        let other = HEADER.replace("\"shmtrace\"", "\"strace\"");
        assert!(matches!(open(&other), Err(ReadError::Foreign(_))));
    }
}
