//! What redraws, and only on a terminal that can do it: a line on stderr, so that it never gets into the data, and a page
//! of data on stdout.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write as _},
};

use terminal_size::{Height, Width, terminal_size_of};

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
        Self {
            wanted: wanted && moves_cursor() && io::stderr().is_terminal(),
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
        let columns = terminal_size_of(io::stderr())
            .map_or(COLUMNS, |(Width(columns), _)| usize::from(columns));
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

/// A page that is drawn over the one before.
#[derive(Debug)]
pub struct Page {
    drawn: bool,
}

impl Page {
    /// A page, if stdout is a terminal that understands cursor movements.
    pub fn new() -> Option<Self> {
        (moves_cursor() && io::stdout().is_terminal()).then_some(Self { drawn: false })
    }

    /// Draws it, as far as it fits. Nothing is wiped before its place is written again, so it does not flicker.
    pub fn draw(&mut self, text: &str) -> io::Result<()> {
        let (columns, rows) = terminal_size_of(io::stdout())
            .map_or((COLUMNS, usize::MAX), |(Width(columns), Height(rows))| {
                (usize::from(columns), usize::from(rows))
            });
        let mut out = io::stdout().lock();
        if !std::mem::replace(&mut self.drawn, true) {
            write!(out, "\x1b[2J")?;
        }
        write!(out, "\x1b[H")?;
        for line in fitting(text, rows) {
            writeln!(out, "{}\x1b[K", cut(&line, columns))?;
        }
        write!(out, "\x1b[J")?;
        out.flush()
    }
}

/// The lines that fit, with the last row left to the cursor; whether some do not is said in place of the last of them.
fn fitting(text: &str, rows: usize) -> Vec<Cow<'_, str>> {
    let mut lines: Vec<Cow<'_, str>> = text.lines().map(Cow::Borrowed).collect();
    let room = rows.saturating_sub(1);
    if lines.len() > room {
        let hidden = lines.len() - room.saturating_sub(1);
        lines.truncate(room.saturating_sub(1));
        lines.push(format!("... and {hidden} more lines: use a taller terminal").into());
    }
    lines
}

fn moves_cursor() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term != "dumb")
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
    use super::{cut, fitting};

    #[test]
    fn a_line_leaves_the_last_column_free() {
        assert_eq!(cut("12345678", 9), "12345678");
        assert_eq!(cut("12345678", 8), "1234567");
        assert_eq!(cut("größe", 4), "grö");
        assert_eq!(cut("x", 0), "");
    }

    #[test]
    fn a_page_leaves_the_last_row_free_and_says_what_it_hides() {
        assert_eq!(fitting("a\nb\nc\n", 4), ["a", "b", "c"]);
        let cut = fitting("a\nb\nc\n", 3);
        assert_eq!(cut, ["a", "... and 2 more lines: use a taller terminal"]);
        assert_eq!(fitting("a\n", 0).len(), 1);
    }
}
