//! `shiparr check`: everything that is wrong with settings and project files, before the daemon meets it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueHint};

use crate::command::{Command, CommandError, Limit};
use crate::config::{Accepted, Basis, Catalog, Environment, Repository, Settings, Severity};
use crate::deploy::{self, same_paths};
use crate::notify;

/// Where the packages keep the service's settings.
const INSTALLED_ENV_FILE: &str = "/etc/shiparr/shiparr.env";
/// A program that is asked for its version answers within this.
const VERSION_LIMIT: Duration = Duration::from_secs(15);
/// A version fits in this.
const MAX_VERSION_BYTES: usize = 64 * 1024;

/// What `check` takes.
#[derive(Args)]
pub struct CheckArgs {
    /// Folder of project files, instead of Shiparr_CONFIG_PATH
    #[arg(value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// Settings of the service [default: /etc/shiparr/shiparr.env, where it may be read]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    env_file: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What was found.
#[derive(Default, serde::Serialize)]
struct Report {
    /// What keeps something from working.
    problems: Vec<String>,
    /// What somebody should look at.
    warnings: Vec<String>,
    /// What is left to other machines, and what was looked at.
    notes: Vec<String>,
}

/// Looks at everything and says what it found; exit 1 with problems.
///
/// # Errors
/// A named file that cannot be read.
pub fn run(environment: &Environment, args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let mut report = Report::default();
    let (environment, unset_names) = service_environment(environment, args, &mut report)?;
    match Settings::from_environment(&environment) {
        Err(error) => report.problems.extend(error.problems),
        Ok((mut settings, warnings)) => {
            report.warnings.extend(warnings);
            if let Some(dir) = &args.dir {
                settings.config_path.clone_from(dir);
            }
            look_at_projects(&settings, unset_names, &mut report);
        }
    }
    print(&report, args.json);
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The settings of the installed service, under those of this process; and how grave a name is that is not among them.
fn service_environment(
    process: &Environment,
    args: &CheckArgs,
    report: &mut Report,
) -> anyhow::Result<(Environment, Severity)> {
    if let Some(file) = &args.env_file {
        let file = Environment::from_file(file).map_err(anyhow::Error::msg)?;
        return Ok((file.with(process), Severity::Error));
    }
    let installed = Path::new(INSTALLED_ENV_FILE);
    match std::fs::File::open(installed) {
        Ok(_) => {
            let file = Environment::from_file(installed).map_err(anyhow::Error::msg)?;
            Ok((file.with(process), Severity::Error))
        }
        // Where nothing is installed, this process's own environment is all there is; a folder that was named need not
        // belong to this machine.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Ok((process.clone(), if args.dir.is_none() { Severity::Error } else { Severity::Warning }))
        }
        Err(error) => {
            report.warnings.push(format!(
                "{INSTALLED_ENV_FILE} cannot be read ({error}): run this as root, or name a file with --env-file"
            ));
            Ok((process.clone(), Severity::Warning))
        }
    }
}

fn look_at_projects(settings: &Settings, unset_names: Severity, report: &mut Report) {
    let basis = Basis { settings, previous: &Catalog::default(), accepted: &Accepted::default(), unset_names };
    let catalog = Catalog::load(&settings.config_path, &basis);
    for problem in &catalog.problems {
        let list = if problem.severity == Severity::Error { &mut report.problems } else { &mut report.warnings };
        list.push(problem.to_string());
    }
    for (name, hosts) in &catalog.elsewhere {
        report.notes.push(format!("{name} is for {}, not for this host ({})", hosts.join(", "), settings.hostname));
    }
    let repositories: Vec<&Repository> = catalog.repositories().collect();
    look_at_programs(settings, &repositories, report);
    look_at_paths(settings, &repositories, report);
    report.notes.push(format!(
        "{} projects with {} repositories in {}",
        catalog.projects.len(),
        repositories.len(),
        settings.config_path.display()
    ));
}

/// In a container: whether the folders are the same to Docker.
fn look_at_paths(settings: &Settings, repositories: &[&Repository], report: &mut Report) {
    let (driver, limit) = (deploy::driver(settings), Limit::after(VERSION_LIMIT));
    if driver.available(&limit).is_err() {
        return;
    }
    for repository in repositories {
        if let Err(error) = same_paths::check(repository, settings, driver.as_ref(), &limit) {
            report.problems.push(format!("{}: {error}", repository.name));
        }
    }
}

/// The programs that these repositories need.
fn look_at_programs(settings: &Settings, repositories: &[&Repository], report: &mut Report) {
    if !repositories.is_empty() {
        if let Err(error) = version(settings, &settings.docker_bin, &["compose", "version"]) {
            report
                .warnings
                .push(format!("Docker Compose v2 does not answer, nothing can be deployed on this host: {error}"));
        }
    }
    if repositories.iter().any(|repository| !repository.env_files.is_empty() || !repository.secret_files.is_empty()) {
        if let Err(error) = version(settings, &settings.sops_bin, &["--version"]) {
            report.warnings.push(format!("sops does not answer, encrypted files cannot be read: {error}"));
        }
    }
    look_at_urls(settings, repositories, report);
}

/// What shoutrrr says of every notification URL, each of them asked once.
fn look_at_urls(settings: &Settings, repositories: &[&Repository], report: &mut Report) {
    let notifier = notify::Notifier::new(
        settings.shoutrrr_bin.clone(),
        settings.environment.for_children(),
        settings.proxies.clone(),
    );
    let mut seen = Vec::new();
    for repository in repositories {
        let notifications = &repository.notifications;
        for template in notifications.success.iter().chain(&notifications.failure) {
            let Ok(url) = template.resolve(&settings.environment) else { continue };
            if seen.contains(&url) {
                continue;
            }
            if let Err(error) = notifier.verify(&url, &Limit::after(VERSION_LIMIT)) {
                report.warnings.push(format!("{}: notifications: {error}", repository.name));
            }
            seen.push(url);
        }
    }
}

fn version(settings: &Settings, program: &Path, args: &[&str]) -> Result<(), String> {
    let command = Command::new(program, &settings.environment.for_children()).args(args);
    let captured = command
        .capture(&Limit::after(VERSION_LIMIT), MAX_VERSION_BYTES)
        .map_err(|error: CommandError| error.to_string())?;
    if captured.status.success() {
        return Ok(());
    }
    Err(captured.stderr.lines().last().unwrap_or("it failed").to_owned())
}

fn print(report: &Report, json: bool) {
    if json {
        println!("{}", serde_json::json!(report));
        return;
    }
    for problem in &report.problems {
        println!("problem: {problem}");
    }
    for warning in &report.warnings {
        println!("warning: {warning}");
    }
    for note in &report.notes {
        println!("{note}");
    }
    match report.problems.len() {
        0 => println!("All is well."),
        1 => println!("1 problem."),
        many => println!("{many} problems."),
    }
}
