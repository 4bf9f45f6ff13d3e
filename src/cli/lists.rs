//! The verbs that only show: status, history, health; and the test message.

use std::process::ExitCode;

use anyhow::Context;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Client, DeploymentView, RepositoryView};
use super::table::{Table, only_prints, printable};
use crate::model::Status;

/// `shiparr status`.
///
/// # Errors
/// The daemon's refusal.
pub fn status(client: &Client, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        let repositories: Value = client.get("/api/repositories")?;
        only_prints();
        println!("{repositories}");
        return Ok(ExitCode::SUCCESS);
    }
    let now = Timestamp::now();
    let mut table = Table::new(&["REPOSITORY", "STATUS", "BRANCH", "COMMIT", "DEPLOYED", "NEXT CHECK"]);
    let repositories: Vec<RepositoryView> = client.get("/api/repositories")?;
    for repository in &repositories {
        let last = repository.last_deployment.as_ref();
        table.row([
            full_name(repository),
            if repository.orphaned { "orphaned".to_owned() } else { repository.status.clone() },
            repository.branch.clone(),
            short(repository.last_commit_hash.as_deref()),
            last.and_then(|deployment| deployment.finished_at).map_or("-".to_owned(), |at| age(at, now)),
            repository.next_check_at.map_or("-".to_owned(), |at| until(at, now)),
        ]);
    }
    only_prints();
    if repositories.is_empty() {
        println!("No repositories yet: write a project file and look at it with `shiparr check`.");
    } else {
        table.print();
    }
    for repository in &repositories {
        if repository.status == "waiting" && !repository.orphaned {
            println!("{}", waiting(repository));
        }
        if let Some(error) = &repository.last_error {
            println!("{}: check failed: {}", full_name(repository), printable(error));
        }
        if let Some(deployment) = &repository.last_deployment {
            match (&deployment.error, deployment.status) {
                (Some(error), Status::Failed) => {
                    println!("{}: deployment {} failed: {}", full_name(repository), deployment.id, printable(error))
                }
                (Some(reason), Status::Pending) => {
                    println!("{}: deployment {} {}", full_name(repository), deployment.id, printable(reason))
                }
                _ => {}
            }
        }
    }
    print_problems(&client.get("/api/health")?);
    Ok(ExitCode::SUCCESS)
}

/// What waits for a person under `deploy: manual`, and what that person does.
fn waiting(repository: &RepositoryView) -> String {
    let name = full_name(repository);
    let what = match &repository.observed_commit {
        Some(commit) if repository.last_commit_hash.as_ref() != Some(commit) => short(Some(commit)),
        _ => "a changed configuration".to_owned(),
    };
    format!("{name}: {what} waits for you: `shiparr deploy {name}` deploys it")
}

/// `shiparr history REPO`.
///
/// # Errors
/// The daemon's refusal.
pub fn history(client: &Client, given: &str, limit: u32, json: bool) -> anyhow::Result<ExitCode> {
    let repository = client.repository(given)?;
    let page: Value = client.get(&format!("/api/repositories/{}/deployments?limit={limit}", repository.id))?;
    only_prints();
    if json {
        println!("{page}");
        return Ok(ExitCode::SUCCESS);
    }
    let deployments: Vec<DeploymentView> = serde_json::from_value(page)?;
    if deployments.is_empty() {
        println!("{} was never deployed.", full_name(&repository));
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["ID", "STATUS", "TRIGGER", "BY", "COMMIT", "ACCEPTED (UTC)", "SECONDS", "WHAT"]);
    for deployment in deployments {
        let what = deployment.error.or(deployment.commit_subject).unwrap_or_default();
        table.row([
            deployment.id.to_string(),
            deployment.status.to_string(),
            deployment.trigger.to_string(),
            deployment.actor.unwrap_or_else(|| "-".to_owned()),
            short(deployment.commit_hash.as_deref()),
            deployment.created_at.strftime("%Y-%m-%d %H:%M:%S").to_string(),
            deployment.duration_seconds.map_or("-".to_owned(), |seconds| format!("{seconds:.1}")),
            what,
        ]);
    }
    table.print();
    Ok(ExitCode::SUCCESS)
}

/// `shiparr health`: up is well enough for a container's health check; what is degraded is told.
///
/// # Errors
/// The daemon cannot be reached.
pub fn health(client: &Client, json: bool) -> anyhow::Result<ExitCode> {
    let response = client.get_any("/api/health")?;
    let health: Value = serde_json::from_slice(&response.body).context("the daemon's answer is not JSON")?;
    only_prints();
    if json {
        println!("{health}");
    } else {
        println!("{}", health["status"].as_str().or(health["message"].as_str()).unwrap_or("unknown"));
        print_problems(&health);
    }
    Ok(if response.status == 200 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[derive(Deserialize)]
struct Told {
    results: Vec<ToldOne>,
}

#[derive(Deserialize)]
struct ToldOne {
    repository: String,
    target: String,
    problem: Option<String>,
}

/// `shiparr notify-test [REPO]`.
///
/// # Errors
/// The daemon's refusal.
pub fn notify_test(client: &Client, given: Option<&str>, json: bool) -> anyhow::Result<ExitCode> {
    client.require_socket("notify-test")?;
    let name = given.map(|given| client.repository(given)).transpose()?.map(|repository| full_name(&repository));
    let told: Value = client.post("/control/notify-test", &serde_json::json!({ "repository": name }))?;
    only_prints();
    if json {
        println!("{told}");
    }
    let Told { results } = serde_json::from_value(told)?;
    if !json {
        if results.is_empty() {
            println!("No notification URLs are configured.");
        }
        for one in &results {
            let outcome = one.problem.as_deref().map_or("sent".to_owned(), printable);
            println!("{}: {}: {outcome}", one.repository, one.target);
        }
    }
    let all_were_sent = results.iter().all(|one| one.problem.is_none());
    Ok(if all_were_sent { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The checks of GET /api/health that are not ok, a line for each thing that is wrong.
fn print_problems(health: &Value) {
    for (name, check) in health["checks"].as_object().into_iter().flatten() {
        for line in problems(check) {
            println!("{name}: {}", printable(&line));
        }
    }
}

fn problems(check: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let list = |name: &str| check[name].as_array().cloned().unwrap_or_default();
    let mut lines: Vec<String> = check["message"].as_str().map(str::to_owned).into_iter().collect();
    for problem in list("problems") {
        let line = problem["line"].as_u64().map(|line| format!("{line}:")).unwrap_or_default();
        let field = problem["field"].as_str().filter(|field| !field.is_empty()).map(|field| format!(" {field}:"));
        lines.push(format!(
            "{}:{line}{} {}",
            text(&problem["file"]),
            field.unwrap_or_default(),
            text(&problem["message"])
        ));
    }
    for repository in list("repositories") {
        let name = text(&repository["repository"]);
        lines.push(format!("checks of {name} have failed for an hour: {}", text(&repository["error"])));
    }
    if lines.is_empty() && check["status"] != "ok" {
        lines.push(text(&check["status"]));
    }
    lines
}

/// `project/repository`.
pub fn full_name(repository: &RepositoryView) -> String {
    format!("{}/{}", repository.project, repository.name)
}

fn short(hash: Option<&str>) -> String {
    hash.and_then(|hash| hash.get(..7)).unwrap_or("-").to_owned()
}

fn age(at: Timestamp, now: Timestamp) -> String {
    format!("{} ago", span(now.duration_since(at).as_secs()))
}

fn until(at: Timestamp, now: Timestamp) -> String {
    format!("in {}", span(at.duration_since(now).as_secs()))
}

/// A length of time in its largest unit, as people say it.
fn span(seconds: i64) -> String {
    match seconds.max(0) {
        seconds @ 0..60 => format!("{seconds} s"),
        seconds @ 60..3600 => format!("{} min", seconds / 60),
        seconds @ 3600..86_400 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_of_a_check_has_its_line() {
        let config = serde_json::json!({"status": "failed", "problems": [
            {"file": "/p/a.yaml", "line": 3, "field": "repositories.x.url", "severity": "error", "message": "missing"},
            {"file": "/p", "line": null, "field": "", "severity": "error", "message": "cannot be read"}]});
        assert_eq!(problems(&config), ["/p/a.yaml:3: repositories.x.url: missing", "/p: cannot be read"]);
        let remotes = serde_json::json!({"status": "failed", "repositories": [{"repository": "a/b", "error": "401"}]});
        assert_eq!(problems(&remotes), ["checks of a/b have failed for an hour: 401"]);
        assert_eq!(problems(&serde_json::json!({"status": "failed", "message": "gone"})), ["gone"]);
        assert!(problems(&serde_json::json!({"status": "ok"})).is_empty());
    }

    #[test]
    fn spans_read_well() {
        let read: Vec<String> = [-5, 0, 59, 60, 3599, 3600, 86_400, 200_000].map(span).to_vec();
        assert_eq!(read, ["0 s", "0 s", "59 s", "1 min", "59 min", "1 h", "1 d", "2 d"]);
    }
}
