//! The manual pages in packaging/man. Settings and fields are compared in src/config/documented.rs.

use std::collections::{BTreeMap, BTreeSet};

use super::tables::help;

const MANUAL: &str = include_str!("../../../packaging/man/shiparr.8");

/// Each verb of the manual: its item, and the text below it.
fn verbs() -> BTreeMap<&'static str, &'static str> {
    let section =
        MANUAL.split("\n.Sh VERBS\n").nth(1).and_then(|rest| rest.split("\n.Sh ").next()).expect("the section");
    let list = section.split("\n.El\n").next().expect("the list of verbs");
    let items = list.split("\n.It Cm ").skip(1);
    items.map(|item| (item.split([' ', '\n']).next().expect("a verb"), item)).collect()
}

/// The long options of an item's first line.
fn options(item: &str) -> BTreeSet<&str> {
    let line = item.lines().next().unwrap_or_default();
    let words = line.split("Fl -").skip(1).filter_map(|rest| rest.split(' ').next());
    words.filter(|word| !word.is_empty()).collect()
}

#[test]
fn the_manual_has_the_verbs_and_options_of_the_program() {
    let all = help(&[]);
    let commands = all.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next()).expect("it lists verbs");
    let known: BTreeSet<&str> = commands.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let verbs = verbs();
    assert_eq!(verbs.keys().copied().collect::<BTreeSet<&str>>(), known);

    for (verb, item) in verbs.into_iter().filter(|(verb, _)| *verb != "help") {
        let told = help(&[verb]);
        let lines = told.lines().filter_map(|line| line.split("  ").find(|words| words.trim_start().starts_with('-')));
        let names = lines.flat_map(str::split_whitespace).filter_map(|word| word.strip_prefix("--"));
        let of_the_verb: BTreeSet<&str> = names.filter(|name| !["help", "url", "version"].contains(name)).collect();
        assert_eq!(options(item), of_the_verb, "{verb}");
        for default in told.split("[default: ").skip(1).filter_map(|rest| rest.split(']').next()) {
            // One that is a sentence is said in other words.
            let is_named = item.split([' ', '\n']).any(|word| word == default);
            assert!(default.contains(' ') || is_named, "{verb}: the default {default} is not in the manual");
        }
    }
}

#[test]
fn options_for_every_verb_are_described() {
    for option in [".It Fl -url Ar URL", ".It Fl -help , Fl h", ".It Fl -version , Fl V"] {
        assert!(MANUAL.contains(option), "{option}");
    }
}
