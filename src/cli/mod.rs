//! The verbs of the command line. Those that need the daemon talk to it over its control socket, or to `--url`.

mod cancel;
mod check;
mod client;
mod completions;
mod compose;
mod deploy;
mod hand_over;
mod hold;
mod lists;
mod logs;
mod prune;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::config::settings::log_format;
use crate::config::{Environment, Settings};
use client::Client;

/// GitOps for Docker Compose hosts: a push becomes a running stack.
///
/// Without a verb it runs the daemon. Settings come from the environment (Shiparr_PORT, Shiparr_CONFIG_PATH and others,
/// see the README); projects from YAML files in Shiparr_CONFIG_PATH.
#[derive(Parser)]
#[command(name = "shiparr", version, max_term_width = 100)]
struct CommandLine {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    reach: Reach,
}

/// How the daemon is reached.
#[derive(Args)]
struct Reach {
    /// Talk to a daemon over HTTP instead of its control socket [env: SHIPARR_URL, with SHIPARR_USERNAME and
    /// SHIPARR_PASSWORD, or SHIPARR_API_KEY]
    #[arg(long, global = true, value_name = "URL")]
    url: Option<String>,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the daemon in the foreground
    Run {
        /// Check and deploy everything once; exit 0 when all of it is deployed, 1 when not
        #[arg(long)]
        once: bool,
    },
    /// Look for problems in the settings and the project files; exit 1 when there are some
    Check(check::CheckArgs),
    /// Show every repository and where it stands
    Status {
        /// Print JSON, as GET /api/repositories answers it
        #[arg(long)]
        json: bool,
    },
    /// Deploy a repository now, even when its commit is deployed already
    Deploy(deploy::DeployArgs),
    /// Run Compose on a repository's stack by hand, as a deployment does
    Compose(compose::ComposeArgs),
    /// End `shiparr compose` on a repository, else what is pending or running for it and a retry that waits; exit 1 when
    /// there is nothing
    Cancel(cancel::CancelArgs),
    /// Show the container logs of a repository's stack, or the log of one of its deployments
    Logs(logs::LogsArgs),
    /// List a repository's deployments, newest first
    History {
        /// project/repository, or the repository's name where it is unique
        repository: String,
        /// How many, at most 500
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=500))]
        limit: u32,
        /// Print JSON, as the API answers it
        #[arg(long)]
        json: bool,
    },
    /// Forget the records of repositories that no project file names any more; never containers, volumes or files
    Prune {
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Print JSON: the `orphans`, and which of them were `forgotten`; without --yes nothing is asked and none is
        #[arg(long)]
        json: bool,
    },
    /// Send a test message to the notification URLs of a repository, or of all of them
    NotifyTest {
        /// project/repository, or the repository's name where it is unique
        repository: Option<String>,
        /// Print JSON: `results`, with repository, target and problem of each URL
        #[arg(long)]
        json: bool,
    },
    /// Ask the daemon whether it is well; exit 0 when it is up
    Health {
        /// Print JSON, as GET /api/health answers it
        #[arg(long)]
        json: bool,
    },
    /// Make the secret files of deployed stacks before Docker starts; what shiparr-secrets.service runs
    #[command(hide = true)]
    RestoreSecrets,
    /// Print the script that completes Shiparr's command line in a shell
    Completions {
        /// Whose script
        shell: completions::Shell,
    },
    /// What fits behind these words; asked by those scripts
    #[command(hide = true)]
    Complete {
        /// Up to the cursor, without the program's name
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Run a command while no deployment does, and none begins; not for people
    #[command(hide = true)]
    Hold(hold::HoldArgs),
    /// The child that fetches and checks out; not for people
    #[command(hide = true)]
    Git,
    /// What a helper container runs, for the stack that holds Shiparr itself; not for people
    #[command(hide = true)]
    HandOver {
        /// Where its job lies
        folder: PathBuf,
    },
}

/// Parses the command line and runs the verb.
pub fn main() -> ExitCode {
    let line = CommandLine::parse();
    let environment = Environment::of_process();
    match line.run(environment) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("shiparr: {error:#}");
            ExitCode::FAILURE
        }
    }
}

impl CommandLine {
    fn run(self, environment: Environment) -> anyhow::Result<ExitCode> {
        let client = || Client::new(&environment, self.reach.url.as_deref());
        match self.verb.unwrap_or(Verb::Run { once: false }) {
            Verb::Run { once } => {
                Ok(to_log(&environment, |settings, warnings| crate::daemon::run(settings, &warnings, once)))
            }
            Verb::Check(args) => check::run(&environment, &args),
            Verb::Status { json } => lists::status(&client()?, json),
            Verb::Deploy(args) => deploy::run(&client()?, &args),
            Verb::Compose(args) => compose::run(client()?, &environment, &args),
            Verb::Cancel(args) => cancel::run(&client()?, &args),
            Verb::Logs(args) => logs::run(&client()?, &args),
            Verb::History { repository, limit, json } => lists::history(&client()?, &repository, limit, json),
            Verb::Prune { yes, json } => prune::run(&client()?, yes, json),
            Verb::NotifyTest { repository, json } => lists::notify_test(&client()?, repository.as_deref(), json),
            Verb::Health { json } => lists::health(&client()?, json),
            Verb::RestoreSecrets => {
                Ok(to_log(&environment, |settings, warnings| Ok(crate::daemon::restore_secrets(&settings, &warnings))))
            }
            Verb::Completions { shell } => Ok(completions::print_script(shell)),
            Verb::Complete { words } => Ok(completions::print_offers(CommandLine::command(), &environment, &words)),
            Verb::Hold(args) => hold::run(&environment, &args),
            Verb::Git => Ok(crate::git::child_main()),
            Verb::HandOver { folder } => hand_over::run(&folder),
        }
    }
}

/// Runs something of the daemon's; why it fails goes where its log does.
fn to_log(environment: &Environment, run: impl FnOnce(Settings, Vec<String>) -> anyhow::Result<ExitCode>) -> ExitCode {
    let settings = Settings::from_environment(environment).map_err(anyhow::Error::new);
    settings.and_then(|(settings, warnings)| run(settings, warnings)).unwrap_or_else(|error| {
        crate::daemon::say_why(&error, log_format(environment));
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }
}
