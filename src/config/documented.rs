//! The README and the manual pages name every field and every setting, with the default that it has, and nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::fields::REPOSITORY_FIELDS;
use super::file::PROJECT_FIELDS;
use super::template::is_name;
use super::tests::Folder;
use super::variables::NAMES;
use super::{Catalog, Environment, Repository, Settings};

const README: &str = include_str!("../../README.md");
const EXAMPLE_SETTINGS: &str = include_str!("../../config/shiparr.example.env");
const MANUAL: &str = include_str!("../../packaging/man/shiparr.8");
const PROJECT_MANUAL: &str = include_str!("../../packaging/man/shiparr-project.5");

/// Names that share a line, and their default in words.
type Documented = BTreeMap<BTreeSet<String>, String>;

/// What stands between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The first two columns of the table that begins with this column's title, as they are written.
fn table(title: &str) -> impl Iterator<Item = (&'static str, &'static str)> {
    let mut lines = README.lines().skip_while(move |line| !line.starts_with(&format!("| {title} |")));
    assert!(lines.next().is_some(), "README.md has no table of `{title}`");
    let rows = lines.skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let mut cells = row.split('|').skip(1).map(str::trim);
        (cells.next().expect("a first column"), cells.next().expect("a second column"))
    })
}

fn first_column(title: &str) -> BTreeSet<&'static str> {
    table(title).flat_map(|(names, _)| code(names)).collect()
}

/// Names with their default, of a table.
fn of_table(title: &str) -> Documented {
    let names = |cell: &str| code(cell).map(str::to_owned).collect();
    table(title).map(|(cell, default)| (names(cell), default.replace('`', ""))).collect()
}

/// The paragraph that begins with these words.
fn paragraph(beginning: &str) -> &'static str {
    README.split("\n\n").find(|text| text.trim_start().starts_with(beginning)).expect("README.md has that paragraph")
}

/// A section of a manual page.
fn section(manual: &'static str, title: &str) -> &'static str {
    let (_, rest) = manual.split_once(&format!("\n.Sh {title}\n")).expect("it has that section");
    rest.split("\n.Sh ").next().unwrap_or_default()
}

/// Names with their default, of a manual page: the items `.It MACRO name , MACRO name Pq default`.
fn of_manual(section: &str, name_macro: &str) -> Documented {
    let items = section.lines().filter_map(|line| line.strip_prefix(&format!(".It {name_macro} ")));
    items
        .map(|item| {
            let (names, default) = item.split_once(" Pq ").unwrap_or((item, ""));
            let names = names.split(' ').filter(|word| *word != "," && *word != name_macro);
            (names.map(str::to_owned).collect(), plain(default))
        })
        .collect()
}

/// Words without the macros between them.
fn plain(words: &str) -> String {
    let is_word = |word: &&str| !["Ev", "Pa", "Ic", "Li", "No"].contains(word);
    let words: Vec<&str> = words.split(' ').filter(is_word).collect();
    words.join(" ").replace(" ,", ",").replace(" ;", ";").replace(" :", ":").replace("\\&", "").replace("\\(ti", "~")
}

/// A default that is a value, not a description: the whole cell is code, and neither a folder nor another setting.
fn literal(default: &str) -> Option<&str> {
    let value = default.strip_prefix('`')?.strip_suffix('`')?;
    (!value.contains('`') && !value.starts_with("Shiparr_") && !value.starts_with("DATA/")).then_some(value)
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

#[test]
fn the_manual_has_the_settings_and_their_defaults_as_the_readme_has_them() {
    assert_eq!(of_manual(section(MANUAL, "ENVIRONMENT"), "Ev"), of_table("variable"));
}

#[test]
fn the_manual_of_project_files_has_the_fields_and_their_defaults_as_the_readme_has_them() {
    assert_eq!(of_manual(section(PROJECT_MANUAL, "A REPOSITORY"), "Ic"), of_table("repository field"));
    let of_a_project = of_manual(section(PROJECT_MANUAL, "THE PROJECT"), "Ic");
    let named: BTreeSet<&str> = of_a_project.keys().flatten().map(String::as_str).collect();
    assert_eq!(named, PROJECT_FIELDS.iter().copied().collect());
}

#[test]
fn both_name_the_same_credentials() {
    let in_readme = paragraph("Every secret can come from a file");
    let named: BTreeSet<&str> =
        code(in_readme).filter(|word| word.chars().all(|c| c.is_lowercase() || c == '_')).collect();
    assert!(named.len() > 5, "{named:?}");
    let (_, of_manual) = MANUAL.split_once("\n.Ss Secrets from files\n").expect("it has that section");
    let of_manual = of_manual.split("\n.Ss ").next().unwrap_or_default();
    let lines = of_manual.lines().filter_map(|line| line.strip_prefix(".Ql "));
    assert_eq!(lines.map(|line| line.split(' ').next().unwrap_or_default()).collect::<BTreeSet<&str>>(), named);
}

/// Everything but the machine, and where the values came from.
fn shown(settings: &Settings) -> String {
    let Settings {
        port,
        host,
        config_path,
        data_path,
        runtime_path,
        log_filter,
        log_format,
        auth,
        widget_public,
        allowed_hosts,
        public_url,
        trusted_proxies,
        deploy_timeout,
        shutdown_timeout,
        enable_image_prune,
        history_limit,
        ssh_known_hosts,
        docker_bin,
        sops_bin,
        shoutrrr_bin,
        disable_config_auto_reload,
        proxies,
        hostname: _,
        debug_hang: _,
        environment: _,
    } = settings;
    let listening =
        format!("{port} {host} {auth:?} {widget_public} {allowed_hosts:?} {public_url:?} {trusted_proxies:?}");
    let folders =
        format!("{config_path:?} {data_path:?} {runtime_path:?} {ssh_known_hosts:?} {log_filter} {log_format:?}");
    let limits = format!("{deploy_timeout:?} {shutdown_timeout:?} {enable_image_prune} {history_limit} {proxies:?}");
    format!("{listening} {folders} {limits} {docker_bin:?} {sops_bin:?} {shoutrrr_bin:?} {disable_config_auto_reload}")
}

#[test]
fn a_setting_that_is_set_to_its_documented_default_changes_nothing() {
    let read = |pairs: Vec<(&str, &str)>| {
        let environment = Environment::from_pairs(pairs);
        shown(&Settings::from_environment(&environment).map_err(|error| error.to_string()).expect("good settings").0)
    };
    let mut compared = 0;
    for (cell, default) in table("variable") {
        let Some(default) = literal(default) else { continue };
        for name in code(cell) {
            // Users count where auth is on.
            let auth = [("Shiparr_AUTH_ENABLED", "true"), ("Shiparr_AUTH_PASSWORD", "a-long-password")];
            let others = if name.ends_with("_USERNAME") { auth.to_vec() } else { Vec::new() };
            let with = others.iter().copied().chain([(name, default)]).collect();
            assert_eq!(read(with), read(others), "{name}={default}");
            compared += 1;
        }
    }
    assert!(compared >= 14, "only {compared} defaults are values");
}

#[test]
fn a_field_that_is_set_to_its_documented_default_changes_nothing() {
    let read = |lines: &str| -> Repository {
        let probed = "    healthcheck_url: http://127.0.0.1/\n";
        let text = format!("project: home\nrepositories:\n  web:\n    url: github.com/you/web\n{probed}{lines}");
        let folder = Folder::with(&[("home.yaml", &text)]);
        let catalog: Catalog = folder.first_load();
        assert!(catalog.problems.is_empty(), "{lines}: {:?}", catalog.problems);
        super::tests::repository(&catalog, "home", "web").clone()
    };
    let mut compared = 0;
    for (cell, default) in table("repository field") {
        let Some(default) = literal(default) else { continue };
        let name = code(cell).next().expect("a field");
        assert_eq!(read(&format!("    {name}: {default}\n")), read(""), "{name}");
        compared += 1;
    }
    assert!(compared >= 12, "only {compared} defaults are values");
}
