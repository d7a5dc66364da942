//! Addresses in words, and stacks as the lines of a flame graph.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
};

use blazesym::symbolize::{
    Input, Symbolized, Symbolizer,
    source::{Elf, Source},
};

use super::modules::{Modules, Spot};

/// Folded stacks: `process;thread;outer;...;inner` and how much.
#[derive(Debug, Default)]
pub struct Folded {
    lines: BTreeMap<String, u64>,
}

impl Folded {
    /// Adds to a stack.
    pub fn add(&mut self, frames: &[String], amount: u64) {
        *self.lines.entry(frames.join(";")).or_default() += amount;
    }

    /// `stack amount`, sorted.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        self.lines
            .iter()
            .map(|(stack, amount)| format!("{stack} {amount}"))
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

/// Names frames; remembers what it looked up.
pub struct Namer {
    symbolizer: Symbolizer,
    user: HashMap<Spot, Vec<String>>,
    /// Functions of the kernel by address.
    kernel: BTreeMap<u64, String>,
}

impl Default for Namer {
    fn default() -> Self {
        Self::new()
    }
}

impl Namer {
    /// Reads the kernel's symbols, where that is permitted.
    pub fn new() -> Self {
        let symbols = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        Self {
            symbolizer: Symbolizer::new(),
            user: HashMap::new(),
            kernel: symbols.lines().filter_map(parse_symbol).collect(),
        }
    }

    /// A user's stack, given innermost first: names outermost first, and whether it can be a whole one.
    pub fn user(&mut self, modules: &Modules, pid: u32, stack: &[u64]) -> (Vec<String>, bool) {
        let mut inner_first: Vec<Vec<String>> = Vec::new();
        for (number, address) in stack.iter().enumerate() {
            // All but the innermost are return addresses: the call is before.
            let address = if number == 0 {
                *address
            } else {
                address.saturating_sub(1)
            };
            // An address outside of all code is rubbish that was taken for a frame, and so is all that follows.
            let Some(spot) = modules.find(pid, address) else {
                break;
            };
            inner_first.push(self.name(pid, &spot).to_vec());
        }
        let whole = inner_first.len() == stack.len();
        // One frame is what remains of a stack without frame pointers.
        let usable = whole && stack.len() > 1;
        let broken = (!whole).then(|| "[broken stack]".to_owned());
        let frames = inner_first.into_iter().rev().flatten();
        (broken.into_iter().chain(frames).collect(), usable)
    }

    /// A kernel's stack, innermost first, as names outermost first.
    pub fn kernel(&self, stack: &[u64]) -> Vec<String> {
        let mut names: Vec<String> = stack
            .iter()
            .rev()
            .map(|address| {
                let symbol = self.kernel.range(..=*address).next_back();
                symbol.map_or_else(
                    || "[kernel]_[k]".to_owned(),
                    |(_, name)| format!("{name}_[k]"),
                )
            })
            .collect();
        // The innermost are those of the program that took the stack.
        let own =
            |name: &String| name.starts_with("bpf_prog_") || name.starts_with("bpf_trace_run");
        while names.last().is_some_and(own) {
            names.pop();
        }
        names
    }

    /// The functions at a spot, inlined ones after the one that they are in.
    fn name(&mut self, pid: u32, spot: &Spot) -> &[String] {
        if !self.user.contains_key(spot) {
            let names = look_up(&self.symbolizer, pid, spot);
            self.user.insert(spot.clone(), names);
        }
        self.user.get(spot).map_or(&[], Vec::as_slice)
    }
}

fn look_up(symbolizer: &Symbolizer, pid: u32, spot: &Spot) -> Vec<String> {
    let file = spot.path.rsplit('/').next().unwrap_or_default();
    let unnamed = || vec![escaped(&format!("[{file}+{:#x}]", spot.offset))];
    if !spot.path.starts_with('/') || spot.path.starts_with("//") {
        return vec![escaped(&format!(
            "[{}]",
            spot.path.trim_matches(['[', ']', '/'])
        ))];
    }
    let path = spot.path.trim_end_matches(" (deleted)");
    let mut elf = Elf::new(Modules::openable(pid, path));
    // Debug information names inlined functions, too; a stripped library still names what it exports.
    for with_debug_information in [true, false] {
        elf.debug_syms = with_debug_information;
        let source = Source::Elf(elf.clone());
        if let Ok(Symbolized::Sym(symbol)) =
            symbolizer.symbolize_single(&source, Input::FileOffset(spot.offset))
        {
            let mut names = vec![escaped(&symbol.name)];
            names.extend(symbol.inlined.iter().map(|inlined| escaped(&inlined.name)));
            return names;
        }
    }
    unnamed()
}

/// A line of `/proc/kallsyms`: `address type name [module]`; addresses are 0 without the right to see them.
fn parse_symbol(line: &str) -> Option<(u64, String)> {
    let mut words = line.split_ascii_whitespace();
    let address = u64::from_str_radix(words.next()?, 16)
        .ok()
        .filter(|address| *address != 0)?;
    let kind = words.next()?;
    matches!(kind, "t" | "T" | "w" | "W").then_some(())?;
    Some((address, words.next()?.to_owned()))
}

/// A name that cannot be taken for a separator or a command to the terminal.
pub(crate) fn escaped(name: &str) -> String {
    crate::report::printable(name).replace(';', ":")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spot(path: &str, offset: u64) -> Spot {
        Spot {
            path: path.into(),
            offset,
        }
    }

    #[test]
    fn stacks_add_up() {
        let mut folded = Folded::default();
        let stack = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<Vec<_>>()
        };
        folded.add(&stack(&["a", "b"]), 2);
        folded.add(&stack(&["a"]), 1);
        folded.add(&stack(&["a", "b"]), 3);
        assert_eq!(folded.lines().collect::<Vec<_>>(), ["a 1", "a;b 5"]);
    }

    #[test]
    fn what_has_no_name_says_where_it_is() {
        let symbolizer = Symbolizer::new();
        assert_eq!(
            look_up(&symbolizer, 1, &spot("/no/such;file", 0x10)),
            ["[such:file+0x10]"]
        );
        assert_eq!(look_up(&symbolizer, 1, &spot("[vdso]", 0x10)), ["[vdso]"]);
        assert_eq!(look_up(&symbolizer, 1, &spot("//anon", 0x10)), ["[anon]"]);
    }

    #[test]
    fn functions_of_the_kernel_are_parsed() {
        assert_eq!(
            parse_symbol("ffffffff81000000 T _stext"),
            Some((0xffff_ffff_8100_0000, "_stext".to_owned()))
        );
        assert_eq!(parse_symbol("0000000000000000 T _stext"), None);
        assert_eq!(parse_symbol("ffffffff81000000 d data"), None);
    }
}
