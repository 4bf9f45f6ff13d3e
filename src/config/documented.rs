//! The README names every field and every setting, and nothing else.

use std::collections::BTreeSet;

use super::fields::REPOSITORY_FIELDS;
use super::file::PROJECT_FIELDS;
use super::template::is_name;
use super::variables::NAMES;

const README: &str = include_str!("../../README.md");
const EXAMPLE_SETTINGS: &str = include_str!("../../config/shiparr.example.env");

/// What stands between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The names in the first column of the table that begins with this column's title.
fn first_column(title: &str) -> BTreeSet<&'static str> {
    let mut lines = README.lines().skip_while(|line| !line.starts_with(&format!("| {title} |")));
    assert!(lines.next().is_some(), "README.md has no table of `{title}`");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| code(row.split('|').nth(1).unwrap_or_default())).collect()
}

/// The paragraph that begins with these words.
fn paragraph(beginning: &str) -> &'static str {
    README.split("\n\n").find(|text| text.trim_start().starts_with(beginning)).expect("README.md has that paragraph")
}

#[test]
fn every_repository_field_is_in_the_table() {
    assert_eq!(first_column("repository field"), REPOSITORY_FIELDS.iter().copied().collect());
}

#[test]
fn every_field_of_a_project_is_named() {
    let named: BTreeSet<&str> = code(paragraph("At the top of a file")).filter(|word| word.len() > 1).collect();
    assert_eq!(named, PROJECT_FIELDS.iter().copied().collect());
}

#[test]
fn every_setting_is_in_the_table_and_in_the_example_file() {
    let named = first_column("variable");
    let with_prefix: BTreeSet<&str> = named.iter().filter_map(|name| name.strip_prefix("Shiparr_")).collect();
    // Every secret can come from a file: that is said once for all of them.
    let known = NAMES.iter().copied().filter(|name| !name.ends_with("_FILE"));
    assert_eq!(with_prefix, known.collect());

    let assignments = EXAMPLE_SETTINGS.lines().filter_map(|line| line.strip_prefix('#')?.split_once('='));
    let mut example: BTreeSet<&str> = assignments.map(|(name, _)| name).filter(|name| is_name(name)).collect();
    // The meaning of `Shiparr_WEBHOOK_SECRET` names it.
    assert!(example.remove("GITEA_WEBHOOK_SECRET"));
    assert_eq!(named, example);
}
