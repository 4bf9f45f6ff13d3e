//! What is printed: tables for people with aligned columns, colour on a terminal only; and who reads it.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::SIGPIPE;

use crate::config::Environment;

/// Rows under headings.
pub struct Table {
    rows: Vec<Vec<String>>,
}

/// Wider cells are cut, so that a table stays one.
const MAX_CELL_CHARS: usize = 60;

/// From now on the process ends where nobody reads any more what it prints (`| head`), as other programs do; `println!`
/// would panic. Not while a child is attended, for a pipe to it that breaks would end this process too.
pub fn only_prints() {
    // Where the handler cannot be had, it panics as before.
    let _ = signal_hook::flag::register_conditional_shutdown(SIGPIPE, 128 + SIGPIPE, Arc::new(AtomicBool::new(true)));
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Table {
        Table { rows: vec![headings.iter().map(|heading| (*heading).to_owned()).collect()] }
    }

    /// Adds a row; control characters in it become blanks, so that no commit subject can move the cursor.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| tidy(&cell)).collect());
    }

    /// Prints it to standard output; the words of statuses are coloured on a terminal.
    pub fn print(&self) {
        let colour = colour_wanted(&Environment::of_process());
        for line in self.lines(colour) {
            println!("{line}");
        }
    }

    fn lines(&self, colour: bool) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        self.rows
            .iter()
            .map(|row| {
                let cells: Vec<String> = row
                    .iter()
                    .zip(&widths)
                    .map(|(cell, width)| {
                        let padding = " ".repeat(width - cell.chars().count());
                        let painted = if colour { paint(cell) } else { cell.clone() };
                        format!("{painted}{padding}")
                    })
                    .collect();
                cells.join("  ").trim_end().to_owned()
            })
            .collect()
    }
}

/// Colour goes to terminals only, and NO_COLOR (no-color.org) turns it off.
fn colour_wanted(environment: &Environment) -> bool {
    std::io::stdout().is_terminal()
        && environment.get("NO_COLOR").is_none()
        && environment.get("TERM").is_none_or(|terminal| terminal != "dumb")
}

fn paint(cell: &str) -> String {
    let code = match cell {
        "success" | "ok" => 32,
        "failed" => 31,
        "pending" | "running" | "waiting" | "orphaned" | "degraded" => 33,
        _ => return cell.to_owned(),
    };
    format!("\x1b[{code}m{cell}\x1b[0m")
}

/// A text from the daemon on one line, in which nothing steers the terminal: errors quote remotes and children.
pub fn printable(text: &str) -> String {
    text.replace(char::is_control, " ")
}

fn tidy(cell: &str) -> String {
    let mut text = printable(cell);
    if let Some((cut, _)) = text.char_indices().nth(MAX_CELL_CHARS) {
        text.truncate(cut);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_align_and_hostile_text_stays_text() {
        let mut table = Table::new(&["NAME", "STATUS"]);
        table.row(["a".to_owned(), "success".to_owned()]);
        table.row(["longer\x1b[2J\n".to_owned(), "failed".to_owned()]);
        assert_eq!(table.lines(false), ["NAME         STATUS", "a            success", "longer [2J   failed"]);
        assert_eq!(table.lines(true)[1], "a            \x1b[32msuccess\x1b[0m");
    }

    #[test]
    fn wide_cells_are_cut() {
        assert_eq!(tidy(&"ä".repeat(100)).chars().count(), MAX_CELL_CHARS + 1);
    }
}
