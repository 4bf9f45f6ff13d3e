//! GET `/metrics` as Prometheus sees it, and what packaging/monitoring/ makes of it.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

use crate::support::*;

const README: &str = include_str!("../../README.md");
const RULES: &str = include_str!("../../packaging/monitoring/shiparr.rules.yml");
const DASHBOARD: &str = include_str!("../../packaging/monitoring/grafana-dashboard.json");

/// Labels that Prometheus adds.
const LABELS_OF_PROMETHEUS: [&str; 2] = ["job", "instance"];

fn monitoring_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("packaging/monitoring")
}

fn promtool(args: &[&str], input: &str) -> Output {
    let mut child = Command::new("promtool")
        .args(args)
        .current_dir(monitoring_folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start promtool");
    child.stdin.take().expect("it has an input").write_all(input.as_bytes()).expect("write to promtool");
    child.wait_with_output().expect("wait for promtool")
}

#[track_caller]
fn assert_accepted(args: &[&str]) {
    let output = promtool(args, "");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "promtool {args:?}: {}", String::from_utf8_lossy(&said));
}

/// The expressions of the rules: what follows `expr:` up to the next key.
fn expressions_of_rules() -> Vec<String> {
    let after = RULES.split(" expr: ").skip(1);
    let until_next_key = |text: &str| {
        let key = ["\n        for:", "\n        labels:"].into_iter().filter_map(|key| text.find(key)).min();
        text[..key.expect("a rule has labels")].replace(">-", "")
    };
    after.map(until_next_key).collect()
}

fn dashboard() -> Json {
    serde_json::from_str(DASHBOARD).expect("the dashboard is JSON")
}

/// Everything under a key of this name, however deep.
fn all_of<'a>(value: &'a Json, name: &str, found: &mut Vec<&'a str>) {
    match value {
        Json::Object(object) => {
            found.extend(object.get(name).and_then(Json::as_str));
            object.values().for_each(|value| all_of(value, name, found));
        }
        Json::Array(values) => values.iter().for_each(|value| all_of(value, name, found)),
        _ => {}
    }
}

fn expressions_of_dashboard() -> Vec<String> {
    let dashboard = dashboard();
    let mut found = Vec::new();
    all_of(&dashboard, "expr", &mut found);
    found.into_iter().map(str::to_owned).collect()
}

/// The metrics that an expression names, each with what stands between its braces.
fn metrics_in(expression: &str) -> Vec<(&str, &str)> {
    let is_of_a_name = |character: char| character.is_ascii_alphanumeric() || character == '_';
    let mut found = Vec::new();
    let mut rest = expression;
    while let Some(start) = ["shiparr_", "process_"].into_iter().filter_map(|prefix| rest.find(prefix)).min() {
        let tail = &rest[start..];
        let end = tail.find(|character| !is_of_a_name(character)).unwrap_or(tail.len());
        let (name, after) = tail.split_at(end);
        let matchers = after.strip_prefix('{').and_then(|after| after.split_once('}')).map_or("", |(inner, _)| inner);
        found.push((name, matchers));
        rest = after;
    }
    found
}

/// A scrape: its text, and the names of its series.
struct Scrape {
    text: String,
    names: BTreeSet<String>,
}

impl Scrape {
    #[track_caller]
    fn of(daemon: &Daemon) -> Scrape {
        let answer = daemon.request("GET", "/metrics", &[], b"");
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
        let text = answer.text();
        let mut names = BTreeSet::new();
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
            let (name, kind) = line.split_once(' ').expect("a kind follows the name");
            let endings: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            names.extend(endings.iter().map(|ending| format!("{name}{ending}")));
        }
        Scrape { text, names }
    }

    fn value(&self, series: &str) -> Option<f64> {
        let line = self.text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.map(|value| value.parse().expect("a number"))
    }

    /// Whether everything that an expression asks for can be there.
    #[track_caller]
    fn assert_has_all_of(&self, expression: &str) {
        for (name, matchers) in metrics_in(expression) {
            assert!(self.names.contains(name), "no metric {name}, which is in: {expression}");
            for matcher in matchers.split(',') {
                let literal = matcher.split_once("=\"").filter(|(label, value)| {
                    !label.ends_with('~') && !value.contains('$') && !LABELS_OF_PROMETHEUS.contains(label)
                });
                let is_there = |line: &str| line.starts_with(name) && line.contains(matcher);
                assert!(literal.is_none() || self.text.lines().any(is_there), "no {name} with {matcher}");
            }
        }
    }
}

#[test]
fn a_scrape_tells_of_a_deployment_and_has_what_rules_and_dashboard_ask_for() {
    if missing(&[parts::DOCKER, parts::GIT, parts::PROMTOOL]) {
        return;
    }
    let (stack, receiver) = (Stack::new(), Receiver::start());
    let repo = Repo::with(&[("compose.yaml", &Stack::compose("1"))]);
    let server = GitServer::start(repo.root());
    let told = format!("{{success: [\"{}\"]}}", receiver.url("/well"));
    let entry = Entry::new("web", &server.url("stack"), &stack).field("notifications", &told);
    let mut daemon = Daemon::with(&[entry]);
    daemon.wait_for_commit("web", &repo.tip());
    let scrape = wait_until(SHORT, "the message about it to be counted", || {
        let scrape = Scrape::of(&daemon);
        (scrape.value("shiparr_notifications_total{result=\"sent\"}") == Some(1.0)).then_some(scrape)
    });
    let web = "{project=\"home\",repository=\"web\"}";
    assert_eq!(scrape.value("shiparr_deployments_total{type=\"poll\",status=\"success\"}"), Some(1.0));
    assert_eq!(scrape.value("shiparr_deployment_duration_seconds_count{status=\"success\"}"), Some(1.0));
    assert_eq!(scrape.value(&format!("shiparr_repository_up_to_date{web}")), Some(1.0));
    assert!(scrape.value(&format!("shiparr_repository_last_success_timestamp_seconds{web}")).is_some());
    assert!(scrape.value("shiparr_checks_total").is_some_and(|checks| checks >= 1.0));
    assert_eq!(scrape.value("shiparr_check_errors_total"), Some(0.0));
    assert_eq!(scrape.value("shiparr_docker_up"), Some(1.0));
    let checked = promtool(&["check", "metrics"], &scrape.text);
    let said = [checked.stdout, checked.stderr].concat();
    assert!(checked.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));

    let expressions = [expressions_of_rules(), expressions_of_dashboard()].concat();
    assert!(expressions.len() > 30, "{expressions:?}");
    for expression in &expressions {
        scrape.assert_has_all_of(expression);
    }

    for name in scrape.text.lines().filter_map(|line| line.strip_prefix("# HELP ")?.split(' ').next()) {
        assert!(README.contains(&format!("`{name}`")), "README.md has no {name}");
    }

    server.fault(Requests::All, Fault::Status(503));
    daemon.check_now("web");
    let failing = format!("shiparr_repository_check_failing{web}");
    wait_until(SHORT, "the failed check to be told", || {
        let scrape = Scrape::of(&daemon);
        let errors = scrape.value("shiparr_check_errors_total")?;
        (errors >= 1.0 && scrape.value(&failing) == Some(1.0)).then_some(())
    });
    assert_eq!(daemon.stop().code(), Some(0));
}

#[test]
fn the_alert_rules_and_the_expressions_of_the_dashboard_are_accepted() {
    if missing(&[parts::PROMTOOL]) {
        return;
    }
    assert_accepted(&["check", "config", "prometheus.yml"]);
    assert_accepted(&["check", "rules", "--lint=all", "--lint-fatal", "shiparr.rules.yml"]);
    assert_accepted(&["test", "rules", "shiparr.rules.test.yml"]);
    for name in RULES.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let test = fs::read_to_string(monitoring_folder().join("shiparr.rules.test.yml")).expect("the tests are there");
        assert!(test.contains(&format!("alertname: {name}\n")), "{name} has no test");
    }
    let folder = TempDir::new().expect("make a folder");
    let rules = folder.path().join("dashboard.rules.yml");
    let records = expressions_of_dashboard().into_iter().enumerate().map(|(number, expression)| {
        let expression = serde_json::to_string(&expression.replace("$__rate_interval", "5m")).expect("a string");
        format!("      - record: dashboard:{number}\n        expr: {expression}\n")
    });
    let text = format!("groups:\n  - name: dashboard\n    rules:\n{}", records.collect::<String>());
    fs::write(&rules, text).expect("write the rules");
    assert_accepted(&["check", "rules", rules.to_str().expect("the path is text")]);
}

#[test]
fn the_dashboard_can_be_imported_anywhere() {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("it has panels");
    let ids: BTreeSet<i64> = panels.iter().map(|panel| panel["id"].as_i64().expect("a panel has an id")).collect();
    assert_eq!(ids.len(), panels.len());
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        assert!(panel["title"].is_string() && panel["description"].is_string(), "{panel}");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{panel}");
        for target in panel["targets"].as_array().expect("it shows something") {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{panel}");
        }
    }
    let variables = dashboard["templating"]["list"].as_array().expect("it has variables");
    let names: Vec<&str> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
    assert_eq!(names, ["datasource", "job", "instance", "project"]);
    for expression in expressions_of_dashboard() {
        for (index, _) in expression.match_indices('$') {
            let is_known = |name: &&str| expression[index + 1..].starts_with(*name);
            assert!(names.iter().chain(&["__rate_interval"]).any(is_known), "{expression}");
        }
    }
}
