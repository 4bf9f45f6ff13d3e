//! `shiparr compose REPO -- ARGS…`: Compose in the caller's terminal, on what a deployment would run it on.

use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use crossbeam_channel::{Receiver, Sender};
use serde::Deserialize;

use super::client::Client;
use super::lists::full_name;
use super::table::{only_prints, printable};
use crate::command::{Command, CommandError, Limit, MemoryFile};
use crate::config::Environment;
use crate::deploy::by_hand::{Tools, Variable};
use crate::model::RepositoryId;
use crate::users;

/// Time between SIGTERM and SIGKILL where the stack has to be given back; the daemon waits a little longer for it.
const GRACE: Duration = Duration::from_secs(10);
/// The daemon's first line is at most this long.
const MAX_LINE_BYTES: usize = 64 * 1024 * 1024;
/// What Compose learns of the caller's terminal; everything else of its environment is as in a deployment.
const OF_THE_TERMINAL: &[&str] = &[
    "TERM",
    "COLORTERM",
    "COLUMNS",
    "LINES",
    "NO_COLOR",
    "CLICOLOR",
    "CLICOLOR_FORCE",
    "COMPOSE_ANSI",
    "COMPOSE_MENU",
    "COMPOSE_PROGRESS",
];
/// Stands for the file with the variables where a command is only shown.
const VARIABLES: &str = "VARIABLES";

const ABOUT: &str = "\
Compose runs as a deployment runs it: same project, folder, files, profiles and decrypted variables;
what is typed after REPOSITORY is added to that. Paths are relative to the stack's folder.

Deployments of the repository wait meanwhile and begin by themselves afterwards; `shiparr cancel`
ends it. While a deployment is changing the stack, or somebody else works on it, it is refused;
--print takes the stack for a moment too. Run it as root, or where Shiparr is a user's own, as that
user: others, members of the group shiparr too, cannot read what a service's `env_file:` leads to.

Examples:
  shiparr compose home/web ps
  shiparr compose home/web logs -f
  shiparr compose home/web exec app sh
  shiparr compose home/web -- --profile debug up -d
  shiparr compose home/web --print";

/// What `compose` takes.
#[derive(Args)]
#[command(after_help = ABOUT)]
pub struct ComposeArgs {
    /// project/repository, or the repository's name where it is unique
    repository: String,
    /// Run nothing: show the command, the folder, the files, and the variables by name
    #[arg(long)]
    print: bool,
    /// As JSON, together with --print
    #[arg(long, requires = "print")]
    json: bool,
    /// What Compose is to do; a `--` before it keeps options of Compose from being taken for Shiparr's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

/// Runs Compose, and exits as it did (128 and the signal's number where one ended it); or shows what it would run.
///
/// # Errors
/// The daemon's refusal; a program that cannot be started; and a stack that had to be given back before it ended.
pub fn run(client: Client, environment: &Environment, args: &ComposeArgs) -> anyhow::Result<ExitCode> {
    client.require_socket("compose")?;
    if args.args.is_empty() && !args.print {
        bail!(
            "say what Compose is to do: `shiparr compose {0} ps`, say, or `shiparr compose {0} -- up -d web`",
            args.repository
        );
    }
    let repository = client.repository(&args.repository)?;
    let name = full_name(&repository);
    let held = Held::take(client, repository.id)?;
    if args.print {
        print(&held.tools, &args.args, args.json);
        return Ok(ExitCode::SUCCESS);
    }
    let Held { tools, limit, end } = held;
    let variables = tools.variables_file.is_some().then(|| MemoryFile::new(tools.dotenv.as_bytes())).transpose();
    let variables = variables.context("no file in memory can be made for the variables")?;
    let command = command(&tools, environment, variables.as_ref(), &args.args);
    drop(tools);
    match command.attend(&limit) {
        Ok(status) => Ok(exit_code(status)),
        Err(CommandError::Cancelled { .. }) => {
            bail!("{name}: Compose was stopped: {}", printable(&end.recv().unwrap_or_default()))
        }
        Err(CommandError::Start { source, .. }) if source.kind() == ErrorKind::PermissionDenied => {
            bail!(
                "{name}: this user may not run Compose there ({source}): run it as root, or where Shiparr is a user's own, as that user"
            )
        }
        Err(error) => Err(error.into()),
    }
}

/// A stack in the hands of this process, until that ends.
struct Held {
    tools: Tools,
    /// Cancelled when it has to be given back.
    limit: Limit,
    /// Why, then.
    end: Receiver<String>,
}

impl Held {
    fn take(client: Client, id: RepositoryId) -> anyhow::Result<Held> {
        let body = serde_json::json!({ "id": id, "who": who() });
        let limit = Limit::after(Duration::MAX);
        let (first_out, first) = crossbeam_channel::bounded(1);
        let (end_out, end) = crossbeam_channel::bounded(1);
        let ended = limit.clone();
        // Nobody waits for it: the connection that it holds is to stand until this process ends, and to end with it.
        #[expect(clippy::disallowed_methods, reason = "the command line has no daemon to start its threads")]
        std::thread::spawn(move || listen(&client, &body, &first_out, &end_out, &ended));
        let line: Vec<u8> = first.recv().context("the daemon ended the connection")??;
        let tools = serde_json::from_slice(&line)
            .context("the daemon's answer is not what this version expects: are both of one version?")?;
        Ok(Held { tools, limit, end })
    }
}

/// Holds the connection: hands on the daemon's first line, or why there is none; and cancels `limit` when the stack has
/// to be given back, once the reason is there.
fn listen(
    client: &Client,
    body: &serde_json::Value,
    first: &Sender<anyhow::Result<Vec<u8>>>,
    end: &Sender<String>,
    limit: &Limit,
) {
    #[derive(Deserialize)]
    struct End {
        end: String,
    }
    let mut is_first = true;
    let held = client.hold("/control/compose", body, MAX_LINE_BYTES, &mut |line| {
        if std::mem::take(&mut is_first) {
            let _ = first.try_send(Ok(line));
        } else if let Ok(End { end: why }) = serde_json::from_slice(&line) {
            let _ = end.try_send(why);
            limit.cancel();
            // The connection stands on: the stack is ours until Compose has ended.
        }
    });
    // Of several reasons the first one counts; where the first line came, nobody waits for it any more.
    match held {
        Ok(()) => drop(end.try_send("the daemon is gone".to_owned())),
        Err(error) => {
            let _ = end.try_send(format!("{error:#}"));
            let _ = first.try_send(Err(error));
        }
    }
    limit.cancel();
}

/// The call, with the variables in memory in place of the daemon's file.
fn command(tools: &Tools, caller: &Environment, variables: Option<&MemoryFile>, args: &[OsString]) -> Command {
    let mut environment: Vec<(OsString, OsString)> =
        tools.environment.iter().map(|(name, value)| (name.into(), value.into())).collect();
    let is_free = |name: &str| {
        !tools.variables.iter().any(|variable| variable.name == name)
            && !tools.environment.iter().any(|(known, _)| known == name)
    };
    let of_the_terminal = OF_THE_TERMINAL.iter().filter(|name| is_free(name));
    environment.extend(of_the_terminal.filter_map(|name| Some((name.into(), caller.get(name)?.to_owned()))));
    let path = variables.map(MemoryFile::path);
    let own = tools.arguments.iter().map(|argument| match (&path, &tools.variables_file) {
        (Some(path), Some(file)) if file == argument => path.as_os_str(),
        _ => OsStr::new(argument),
    });
    Command::new(&tools.program, &environment).args(own).args(args).folder(&tools.folder).grace(GRACE)
}

/// That of a program that was run in this terminal.
pub(super) fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Names, never values.
fn print(tools: &Tools, args: &[OsString], json: bool) {
    only_prints();
    let shown = |argument: &String| match tools.variables_file.as_ref() == Some(argument) {
        true => VARIABLES.to_owned(),
        false => argument.clone(),
    };
    let mut command = vec![tools.program.clone()];
    command.extend(tools.arguments.iter().map(shown));
    command.extend(args.iter().map(|argument| argument.to_string_lossy().into_owned()));
    if json {
        let Tools { folder, files, variables, .. } = tools;
        println!(
            "{}",
            serde_json::json!({ "command": command, "folder": folder, "files": files, "variables": variables })
        );
        return;
    }
    let quoted: Vec<String> = command.iter().map(|argument| quoted(argument)).collect();
    let files: Vec<String> = tools.files.iter().map(|file| file.display().to_string()).collect();
    let variables: Vec<String> =
        tools.variables.iter().map(|Variable { name, from }| format!("{name} (from {from})")).collect();
    for (head, lines) in [
        ("command", vec![quoted.join(" ")]),
        ("folder", vec![tools.folder.display().to_string()]),
        ("files", files),
        ("variables", if variables.is_empty() { vec!["none".to_owned()] } else { variables }),
    ] {
        for (index, line) in lines.iter().enumerate() {
            println!("{:<11}{}", if index == 0 { format!("{head}:") } else { String::new() }, printable(line));
        }
    }
    if tools.variables_file.is_some() {
        println!(
            "{VARIABLES} stands for a file in memory with their values, which is there only while `shiparr compose` runs Compose."
        );
    }
}

/// As a shell reads it.
pub(super) fn quoted(argument: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "-_./:=@%+,".contains(character);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        return argument.to_owned();
    }
    format!("'{}'", argument.replace('\'', r"'\''"))
}

/// The name of this process's user, or its number where the host's own list does not have it.
fn who() -> String {
    let uid = rustix::process::getuid().as_raw();
    users::user_name(uid).unwrap_or_else(|| format!("uid {uid}"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[arg(long, global = true)]
        url: Option<String>,
        #[command(flatten)]
        compose: ComposeArgs,
    }

    fn parse(line: &str) -> Result<(bool, Vec<String>), String> {
        let parsed = Line::try_parse_from(std::iter::once("compose").chain(line.split(' ')));
        let ComposeArgs { print, args, .. } = parsed.map_err(|error| error.to_string())?.compose;
        Ok((print, args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect()))
    }

    #[test]
    fn what_follows_the_repository_is_composes_unless_it_is_an_option_of_ours() {
        for (line, print, expected) in [
            ("web ps", false, "ps"),
            ("web logs -f --tail 3 web", false, "logs -f --tail 3 web"),
            ("web -- logs -f", false, "logs -f"),
            ("web -- --profile x up -d", false, "--profile x up -d"),
            ("web --profile x up -d", false, "--profile x up -d"),
            ("web --print", true, ""),
            ("web --print -- up -d", true, "up -d"),
            ("web --print --json up", true, "up"),
            ("web run --print", false, "run --print"),
            ("web exec app sh -c true -- --url", false, "exec app sh -c true -- --url"),
        ] {
            let expected: Vec<String> = expected.split_whitespace().map(str::to_owned).collect();
            assert_eq!(parse(line), Ok((print, expected)), "{line}");
        }
        assert!(parse("web --json ps").unwrap_err().contains("--print"));
    }

    fn tools() -> Tools {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let variable = |name: &str| Variable { name: name.to_owned(), from: ".env".to_owned() };
        Tools {
            program: "docker".to_owned(),
            arguments: ["compose", "--env-file", "/run/x/1"].map(str::to_owned).to_vec(),
            environment: vec![pair("PATH", "/bin"), pair("NO_COLOR", "1")],
            folder: "/srv".into(),
            files: Vec::new(),
            variables_file: Some("/run/x/1".to_owned()),
            variables: vec![variable("COLUMNS")],
            dotenv: String::new(),
        }
    }

    #[test]
    fn the_callers_terminal_is_added_and_sets_no_variable_of_the_stack() {
        let of_the_caller =
            [("TERM", "xterm"), ("COLUMNS", "80"), ("NO_COLOR", "0"), ("PATH", "/mine"), ("SECRET", "x")];
        let file = MemoryFile::new(b"").unwrap();
        let command = command(&tools(), &Environment::from_pairs(of_the_caller), Some(&file), &["ps".into()]);
        let environment = [("PATH", "/bin"), ("NO_COLOR", "1"), ("TERM", "xterm")];
        assert_eq!(command.environment(), environment.map(|(name, value)| (name.into(), value.into())));
        let path = file.path().into_os_string();
        assert_eq!(command.arguments(), ["compose".into(), "--env-file".into(), path, "ps".into()]);
    }

    #[test]
    fn a_shell_reads_back_what_was_quoted() {
        assert_eq!(quoted("--env-file=/a/b.env"), "--env-file=/a/b.env");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }
}
