//! `shiparr completions SHELL`, and what the scripts that it prints ask for: the words that fit.
//!
//! The scripts are a few lines each and know nothing of verbs and options. At each Tab they call the hidden verb
//! `complete` with the words up to the cursor. It prints a line for each word that fits, with what it means behind a
//! tab, or one line that has the shell offer its own: `:files` or `:folders`.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, Command, ValueEnum, ValueHint};

use super::client::{Client, RepositoryView};
use super::lists::full_name;
use crate::config::Environment;

/// Somebody waits at a prompt: where the daemon takes longer, no names are offered.
const NAMES_LIMIT: Duration = Duration::from_millis(200);
/// The argument of a verb that names a repository.
const REPOSITORY: &str = "repository";

/// A shell that has a script.
#[derive(Clone, Copy, ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// A word that fits, and what it means.
#[derive(Debug, PartialEq)]
struct Offer {
    word: String,
    meaning: String,
}

impl Offer {
    fn line(&self) -> String {
        let Offer { word, meaning } = self;
        if meaning.is_empty() { format!("{word}\n") } else { format!("{word}\t{meaning}\n") }
    }
}

/// Prints the script of a shell. The packages install these files as they are.
pub fn print_script(shell: Shell) -> ExitCode {
    print(match shell {
        Shell::Bash => include_str!("completions/shiparr.bash"),
        Shell::Zsh => include_str!("completions/shiparr.zsh"),
        Shell::Fish => include_str!("completions/shiparr.fish"),
    })
}

/// Prints what fits behind these words, of which the last is the one that is being typed.
pub fn print_offers(mut line: Command, environment: &Environment, words: &[String]) -> ExitCode {
    line.build();
    let offers = offers(&line, words, || repository_names(environment, words));
    print(&offers.iter().map(Offer::line).collect::<String>())
}

/// A shell that reads no further (`| head`) is no failure.
fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// What fits. `line` is built: options that every verb takes stand at each of them.
fn offers(line: &Command, words: &[String], names: impl FnOnce() -> Vec<String>) -> Vec<Offer> {
    let Some((current, before)) = words.split_last() else {
        return Vec::new();
    };
    let mut verb = line;
    let mut positionals = 0;
    let mut value_of = None;
    let mut are_options_over = false;
    for word in before {
        if value_of.take().is_some() {
            continue;
        } else if are_options_over || !word.starts_with('-') {
            match verb.find_subcommand(word) {
                Some(found) if positionals == 0 => verb = found,
                _ => positionals += 1,
            }
        } else if word == "--" {
            are_options_over = true;
        } else {
            value_of =
                verb.get_arguments().find(|option| is_called(option, word) && option.get_action().takes_values());
        }
    }
    let positional = || verb.get_positionals().nth(positionals);
    let mut offers = match value_of {
        Some(option) => values(option, current, names),
        None if current.starts_with('-') && !are_options_over && !is_in_trailing_words(verb, positionals) => {
            options(verb)
        }
        None if positionals == 0 && verb.has_subcommands() => verbs(verb),
        None => positional().map(|positional| values(positional, current, names)).unwrap_or_default(),
    };
    offers.retain(|offer| offer.word.starts_with(current.as_str()) || offer.word.starts_with(':'));
    offers
}

fn is_called(option: &Arg, word: &str) -> bool {
    let name = word.trim_start_matches('-');
    option.get_long() == Some(name) || option.get_short().is_some_and(|short| name == short.to_string())
}

/// Whether what comes next belongs to another program (`compose REPO ARGS…`).
fn is_in_trailing_words(verb: &Command, positionals: usize) -> bool {
    verb.get_positionals().position(Arg::is_trailing_var_arg_set).is_some_and(|first| positionals > first)
}

fn verbs(line: &Command) -> Vec<Offer> {
    let shown = line.get_subcommands().filter(|verb| !verb.is_hide_set());
    shown.map(|verb| offer(verb.get_name(), verb.get_about())).collect()
}

fn options(verb: &Command) -> Vec<Offer> {
    let shown = verb.get_arguments().filter(|option| !option.is_hide_set());
    shown.filter_map(|option| Some(offer(&format!("--{}", option.get_long()?), option.get_help()))).collect()
}

fn values(of: &Arg, current: &str, names: impl FnOnce() -> Vec<String>) -> Vec<Offer> {
    match of.get_value_hint() {
        ValueHint::FilePath => return vec![offer(":files", None)],
        ValueHint::DirPath => return vec![offer(":folders", None)],
        _ => {}
    }
    if of.get_id() == REPOSITORY {
        return with_short_names(&names(), current);
    }
    of.get_possible_values().iter().map(|value| offer(value.get_name(), value.get_help())).collect()
}

/// Full names, and, once somebody began to type one, the names that are unique without their project.
fn with_short_names(names: &[String], current: &str) -> Vec<Offer> {
    let short = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let is_unique = |word: &String| names.iter().filter(|name| short(name) == *word).count() == 1;
    let mut offers: Vec<Offer> = names.iter().map(|name| offer(name, None)).collect();
    if !current.is_empty() {
        offers.extend(names.iter().map(|name| short(name)).filter(is_unique).map(|word| offer(&word, None)));
    }
    offers
}

fn offer(word: &str, meaning: Option<&clap::builder::StyledStr>) -> Offer {
    let meaning = meaning.map(ToString::to_string).unwrap_or_default();
    Offer { word: word.to_owned(), meaning: meaning.lines().next().unwrap_or_default().to_owned() }
}

/// As the daemon of this host names them, over the control socket; none where that takes long or cannot be. No password
/// is sent anywhere because somebody pressed Tab.
fn repository_names(environment: &Environment, words: &[String]) -> Vec<String> {
    let is_elsewhere = environment.get("SHIPARR_URL").is_some() || words.iter().any(|word| word.starts_with("--url"));
    if is_elsewhere {
        return Vec::new();
    }
    let client = Client::of_this_host(environment);
    let repositories =
        client.and_then(|client| client.get_within::<Vec<RepositoryView>>("/api/repositories", NAMES_LIMIT));
    repositories.unwrap_or_default().iter().map(full_name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn words_for(line: &str) -> Vec<String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let names = || ["homelab/media", "homelab/notes", "edge/media"].map(str::to_owned).to_vec();
        let mut command = super::super::CommandLine::command();
        command.build();
        offers(&command, &words, names).into_iter().map(|offer| offer.word).collect()
    }

    #[test]
    fn verbs_options_and_names_are_offered_where_they_fit() {
        for (line, expected) in [
            ("de", &["deploy"][..]),
            ("--url http://host de", &["deploy"]),
            ("deploy --f", &["--follow"]),
            ("deploy homelab/media --u", &["--url"]),
            ("deploy ", &["homelab/media", "homelab/notes", "edge/media"]),
            ("deploy --follow --commit abc1234 n", &["notes"]),
            ("deploy med", &[]),
            ("logs homelab/m", &["homelab/media"]),
            ("logs --tail 5 -f e", &["edge/media"]),
            ("logs homelab/media ", &[]),
            ("compose homelab/media --p", &["--print"]),
            ("compose homelab/media exec --p", &[]),
            ("compose homelab/media -- --p", &[]),
            ("check ", &[":folders"]),
            ("check --env-file /etc/sh", &[":files"]),
            ("completions ", &["bash", "zsh", "fish"]),
            ("help deplo", &["deploy"]),
            ("no-such-verb ", &[]),
            ("deploy --commit=", &[]),
        ] {
            assert_eq!(words_for(line), expected, "{line}");
        }
    }

    #[test]
    fn what_is_not_for_people_is_not_offered() {
        let verbs = words_for("");
        assert!(verbs.contains(&"status".to_owned()));
        assert!(!verbs.contains(&"git".to_owned()) && !verbs.contains(&"complete".to_owned()), "{verbs:?}");
    }

    #[test]
    fn meanings_are_one_line() {
        let mut command = super::super::CommandLine::command();
        command.build();
        let found = offers(&command, &["deploy".to_owned(), "--rec".to_owned()], Vec::new);
        let meaning = "Make containers anew even where nothing changed".to_owned();
        assert_eq!(found, [Offer { word: "--recreate".to_owned(), meaning }]);
        assert_eq!(found[0].line(), "--recreate\tMake containers anew even where nothing changed\n");
        assert_eq!(offer(":files", None).line(), ":files\n");
    }
}
