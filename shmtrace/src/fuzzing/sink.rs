//! Both reports at once, and what they may print.

use std::{
    cell::RefCell,
    io::{self, Write},
    rc::Rc,
};

use shmtrace_engine::{Finding, input::Event};

use crate::{
    report::{Header, Json, Report, Text, WallClock},
    session::{Directory, Totals},
};

/// Reports as text and as JSON, into memory.
pub(crate) struct Sink {
    text: Text<Shared>,
    json: Json<Shared>,
    texts: Shared,
    lines: Shared,
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    pub(crate) fn new(clock: WallClock) -> Self {
        let (texts, lines) = (Shared::default(), Shared::default());
        Self {
            text: Text::new(texts.clone(), clock, true),
            json: Json::new(lines.clone(), clock),
            texts,
            lines,
        }
    }

    /// Panics if a terminal would obey something in the text but colours, or if a line is no JSON.
    pub(crate) fn check(&self) {
        let text = self.texts.0.borrow();
        assert_harmless(std::str::from_utf8(&text).expect("text is UTF-8"));
        let lines = self.lines.0.borrow();
        let lines = std::str::from_utf8(&lines).expect("JSON is UTF-8");
        for line in lines.lines() {
            assert!(!line.contains(char::is_control), "{line:?}");
            let _any: serde_json::Value = serde_json::from_str(line).expect("a line is JSON");
        }
    }
}

/// Panics if a terminal would obey something in it but colours.
pub(crate) fn assert_harmless(text: &str) {
    let mut rest = text;
    while let Some(at) = rest.find(|character: char| character.is_control() && character != '\n') {
        let colour = rest[at..].strip_prefix("\u{1b}[").and_then(|code| {
            code.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';')
                .strip_prefix('m')
        });
        rest = colour.unwrap_or_else(|| panic!("a terminal would obey {text:?}"));
    }
}

impl Report for Sink {
    fn header(&mut self, header: &Header) -> io::Result<()> {
        self.text.header(header)?;
        self.json.header(header)
    }

    fn finding(&mut self, finding: &Finding, names: &Directory) -> io::Result<()> {
        self.text.finding(finding, names)?;
        self.json.finding(finding, names)
    }

    fn event(&mut self, event: &Event, names: &Directory) -> io::Result<()> {
        self.text.event(event, names)?;
        self.json.event(event, names)
    }

    fn summary(&mut self, totals: &Totals, names: &Directory) -> io::Result<()> {
        self.text.summary(totals, names)?;
        self.json.summary(totals, names)
    }

    fn note(&mut self, _note: &str) -> io::Result<()> {
        Ok(())
    }

    fn alive(&mut self, _totals: &Totals, _names: &Directory) -> io::Result<()> {
        Ok(())
    }
}
