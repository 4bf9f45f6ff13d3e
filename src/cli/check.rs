//! `shiparr check`: everything that is wrong with settings and project files, before the daemon meets it.

mod docker;
mod places;
mod unit;

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueHint};

use super::table::only_prints;
use crate::command::{Command, CommandError, Limit};
use crate::config::{Accepted, Basis, Catalog, Environment, Repository, Settings, Severity};
use crate::deploy::{self, same_paths};
use crate::notify;
use crate::users::User;
use unit::Unit;

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
    let service = service(environment, args, &mut report)?;
    match Settings::from_environment(&service.environment) {
        Err(error) => report.problems.extend(error.problems),
        Ok((mut settings, warnings)) => {
            report.warnings.extend(warnings);
            if let Some(dir) = &args.dir {
                settings.config_path.clone_from(dir);
            }
            let unit = service.unit.as_ref();
            look_at_projects(&settings, unit.filter(|_| args.dir.is_none()), service.unset_names, &mut report);
        }
    }
    print(&report, args.json);
    Ok(if report.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What is judged.
struct Service {
    /// Its settings, under those of this process.
    environment: Environment,
    /// How grave a name is that is not among them.
    unset_names: Severity,
    /// Where the packages' unit is installed, and no other settings were named.
    unit: Option<Unit>,
}

/// The installed service, or what was named in its place.
fn service(process: &Environment, args: &CheckArgs, report: &mut Report) -> anyhow::Result<Service> {
    if let Some(file) = &args.env_file {
        let file = Environment::from_file(file).map_err(anyhow::Error::msg)?;
        return Ok(Service { environment: file.with(process), unset_names: Severity::Error, unit: None });
    }
    let Some(unit) = Unit::installed(process) else {
        let mut environment = Environment::default();
        let is_known = add_file(&mut environment, Path::new(INSTALLED_ENV_FILE), report)?;
        // Where nothing is installed, this process's own environment is all there is; a folder that was named need not
        // belong to this machine.
        let unset_names = match is_known {
            Some(true) => Severity::Error,
            Some(false) if args.dir.is_none() => Severity::Error,
            Some(false) | None => Severity::Warning,
        };
        return Ok(Service { environment: environment.with(process), unset_names, unit: None });
    };
    let mut environment = Environment::from_pairs(unit.environment.iter().cloned());
    let mut unset_names = Severity::Error;
    for file in &unit.environment_files {
        if add_file(&mut environment, file, report)?.is_none() {
            unset_names = Severity::Warning;
        }
    }
    if unit.has_credentials {
        match Unit::credentials_folder() {
            Some(folder) => {
                environment = environment.with(&Environment::from_pairs([("CREDENTIALS_DIRECTORY", folder)]))
            }
            None => unset_names = Severity::Warning,
        }
    }
    environment = environment.with(process);
    // Nobody else may look into the home of the service's user.
    let home = User::named(&unit.user).map(|user| user.home).filter(|_| rustix::process::geteuid().is_root());
    if let Some(home) = home {
        environment = environment.with(&Environment::from_pairs([("HOME", home)]));
    }
    Ok(Service { environment, unset_names, unit: Some(unit) })
}

/// Adds the variables of a file that may be missing; whether it is there. None where it may not be read, which is warned
/// of.
fn add_file(environment: &mut Environment, file: &Path, report: &mut Report) -> anyhow::Result<Option<bool>> {
    match std::fs::File::open(file) {
        Ok(_) => {
            let variables = Environment::from_file(file).map_err(anyhow::Error::msg)?;
            *environment = std::mem::take(environment).with(&variables);
            Ok(Some(true))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Some(false)),
        Err(error) => {
            let file = file.display();
            report
                .warnings
                .push(format!("{file} cannot be read ({error}): run this as root, or name a file with --env-file"));
            Ok(None)
        }
    }
}

fn look_at_projects(settings: &Settings, unit: Option<&Unit>, unset_names: Severity, report: &mut Report) {
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
    if let Some(unit) = unit {
        report.problems.extend(places::problems(unit, settings, &repositories));
    }
    look_at_programs(settings, unit, &repositories, report);
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
fn look_at_programs(settings: &Settings, unit: Option<&Unit>, repositories: &[&Repository], report: &mut Report) {
    if !repositories.is_empty() {
        report.warnings.extend(docker::program_problem(settings));
        report.warnings.extend(docker::socket_problem(settings, unit));
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
    only_prints();
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
