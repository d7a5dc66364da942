//! A line that redraws: on stderr, so that it never gets into the data, and only on a terminal that can do it.

use std::io::{self, IsTerminal as _, Write as _};

/// Columns where the terminal does not tell.
const COLUMNS: usize = 80;

/// The line.
#[derive(Debug)]
pub struct StatusLine {
    wanted: bool,
    shown: bool,
}

impl StatusLine {
    /// A line that is shown if it is `wanted` and stderr is a terminal that understands cursor movements.
    pub fn new(wanted: bool) -> Self {
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            wanted: wanted && !dumb && io::stderr().is_terminal(),
            shown: false,
        }
    }

    /// Whether it is ever shown.
    pub fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// Draws it over what it showed before. A line that did not fit could not be drawn over, so it is cut off.
    pub fn show(&mut self, line: &str) -> io::Result<()> {
        if !self.wanted {
            return Ok(());
        }
        let columns = terminal_size::terminal_size_of(io::stderr())
            .map_or(COLUMNS, |(terminal_size::Width(columns), _)| {
                usize::from(columns)
            });
        self.shown = true;
        let mut err = io::stderr().lock();
        write!(err, "\r\x1b[2K{}", cut(line, columns))?;
        err.flush()
    }

    /// Takes it away, so that something else can be printed.
    pub fn clear(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.shown) {
            let mut err = io::stderr().lock();
            write!(err, "\r\x1b[2K")?;
            err.flush()?;
        }
        Ok(())
    }
}

/// As much as fits without the cursor moving on to the next row.
fn cut(line: &str, columns: usize) -> &str {
    let end = line
        .char_indices()
        .nth(columns.saturating_sub(1))
        .map_or(line.len(), |(at, _)| at);
    &line[..end]
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_line_leaves_the_last_column_free() {
        assert_eq!(cut("12345678", 9), "12345678");
        assert_eq!(cut("12345678", 8), "1234567");
        assert_eq!(cut("größe", 4), "grö");
        assert_eq!(cut("x", 0), "");
    }
}
