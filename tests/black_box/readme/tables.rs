//! What stands in the tables and the text of README.md.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::{README, ROOT};
use crate::support::{Daemon, Entry, Stack, files_below};

/// The first column of the tables whose first column has this title.
fn first_column(title: &str) -> Vec<&'static str> {
    let start = format!("\n| {title} |");
    let tables = README.split(start.as_str()).skip(1);
    let rows = tables.flat_map(|table| table.lines().skip(2).take_while(|line| line.starts_with('|')));
    let cells: Vec<&str> = rows.map(|row| row.split('|').nth(1).expect("a row has columns").trim()).collect();
    assert!(!cells.is_empty(), "no table of `{title}`");
    cells
}

/// What stands between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

pub(super) fn help(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_shiparr")).args(args).arg("--help").output().expect("start shiparr");
    assert!(output.status.success(), "{args:?}");
    String::from_utf8(output.stdout).expect("help is text")
}

#[test]
fn the_table_of_verbs_is_that_of_the_program() {
    let all = help(&[]);
    let commands = all.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("it lists verbs");
    let known: BTreeSet<&str> = commands.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let known: BTreeSet<&str> = known.into_iter().filter(|verb| *verb != "help").collect();
    let named = first_column("verb").into_iter().map(|cell| code(cell).next().expect("a verb"));
    let named: BTreeSet<&str> = named.map(|call| call.split(' ').nth(1).expect("a verb")).collect();
    assert_eq!(named, known);

    let start = README.find("\n## Command line\n").expect("the section");
    let section = README[start + 1..].split("\n## ").next().expect("the section");
    for verb in known {
        for word in help(&[verb]).split_whitespace().filter(|word| word.starts_with("--") && *word != "--help") {
            assert!(section.contains(word), "`shiparr {verb}` has {word}, and the README does not");
        }
    }
}

#[test]
fn verbs_that_need_the_control_socket_say_so() {
    for verb in ["prune", "notify-test"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shiparr"));
        let output = command.args([verb, "--url", "http://127.0.0.1:1"]).output().expect("start shiparr");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains("over the control socket only"), "{told}");
    }
}

#[test]
fn every_route_of_the_table_is_served() {
    let stack = Stack::new();
    let entry = Entry::new("web", "/nowhere/web.git", &stack).rarely_checked();
    let daemon = Daemon::with(&[entry]);
    let deployment = daemon.deploy("web");
    daemon.ended(deployment);
    let mut served = 0;
    for cell in first_column("method and route") {
        let (method, route) = cell.split_once(' ').expect("a method and a route");
        let route = code(route).next().expect("a route").replace("{id}", "1");
        let route = if route.contains("/repositories") { route.replace("{name}", "home") } else { route };
        // The answer of this one never ends.
        let method = if route == "/api/events" { "HEAD" } else { method };
        let answer = daemon.request(method, &route.replace("{name}", "home"), &[], b"");
        let text = answer.text();
        assert_ne!(answer.status, 405, "{method} {route}");
        assert!(!text.contains("there is no such route"), "{method} {route}: {text}");
        served += 1;
    }
    assert!(served >= 14, "the table is shorter than it was");
}

#[test]
fn the_errors_that_are_quoted_are_the_programs_own() {
    let mut source = String::new();
    for path in files_below(&Path::new(ROOT).join("src")) {
        source.push_str(&fs::read_to_string(path).expect("sources are text"));
    }
    // A string that goes on in the next line, and what is put in by the program.
    let source: String = source.split("\\\n").map(str::trim_start).collect();
    // The status code is put in, too.
    let quotes = first_column("it says").into_iter().flat_map(code).map(|quote| quote.replace("404", "…"));
    for quote in quotes {
        for fragment in quote.split('…') {
            let words = fragment.trim().trim_start_matches("NAME ").trim_end_matches(':');
            assert!(source.contains(words), "the program says `{words}` nowhere");
        }
    }
}

#[test]
fn links_and_paths_lead_somewhere() {
    for target in README.split("](").skip(1).map(|rest| rest.split(')').next().expect("a link ends")) {
        match target.strip_prefix('#') {
            Some(anchor) => assert!(anchors().contains(anchor), "no heading for #{anchor}"),
            None => assert!(target.starts_with("https://") || Path::new(ROOT).join(target).exists(), "{target}"),
        }
    }
    let ours = ["config/", "packaging/", "tests/"];
    let words = code(README).flat_map(str::split_whitespace);
    let paths: Vec<&str> = words.filter(|word| ours.iter().any(|folder| word.starts_with(folder))).collect();
    assert!(!paths.is_empty());
    for path in paths {
        assert!(Path::new(ROOT).join(path).exists(), "{path}");
    }
}

/// As GitHub makes them of headings.
fn anchors() -> BTreeSet<String> {
    let headings = README.lines().filter_map(|line| line.strip_prefix("### ").or_else(|| line.strip_prefix("## ")));
    let kept = |letter: char| letter.is_alphanumeric() || letter == '-';
    headings
        .map(|text| text.to_lowercase().replace(' ', "-").chars().filter(|letter| kept(*letter)).collect())
        .collect()
}
