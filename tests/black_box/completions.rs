//! The completion scripts, in the shells that they are for.

use std::os::unix::net::UnixListener;
use std::process::Command;

use crate::support::*;

/// Prints what a script offers behind the words in `$@`.
const BASH: &str = r#"
set -euo pipefail
compopt() { :; }
source <(shiparr completions bash)
COMP_WORDS=(shiparr "$@") COMP_CWORD=$#
_shiparr shiparr "${@: -1}"
printf '%s\n' "${COMPREPLY[@]}"
"#;
const ZSH: &str = r#"
compdef() { : }
_describe() { print -rl -- "${(@P)4}" }
_files() { [[ $1 == -/ ]] && print -rl -- ${words[CURRENT]}*(/) }
eval "$(shiparr completions zsh)"
words=(shiparr "$@") CURRENT=$#words
_shiparr
"#;
const FISH: &str = r#"
shiparr completions fish | source
complete -C "shiparr $argv"
"#;

/// What a shell offers, without what it means.
fn offered(daemon: &Daemon, shell: &[&str], words: &str) -> Vec<String> {
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_shiparr"));
    let found = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(shell[0]);
    command.args(&shell[1..]).env("Shiparr_RUNTIME_PATH", daemon.runtime());
    command.env("PATH", format!("{}:{found}", program.parent().expect("a folder").display()));
    command.env("HOME", daemon.home()).env_remove("SHIPARR_URL");
    match shell[0] {
        "fish" => command.arg(words),
        _ => command.args(words.split(' ')),
    };
    let output = command.output().expect("start the shell");
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.stderr.is_empty(), "{shell:?}: {}", String::from_utf8_lossy(&output.stderr));
    let words = told.lines().map(|line| line.split(['\t', ':']).next().unwrap_or_default().to_owned());
    words.filter(|word| !word.is_empty()).collect()
}

#[test]
fn each_shell_offers_verbs_options_names_and_files() {
    if missing(&[parts::SHELLS]) {
        return;
    }
    let entry = |name| Entry::new(name, "/nowhere/web.git", &Stack::new()).rarely_checked();
    let daemon = Daemon::with(&[entry("media"), entry("notes")]);
    let shells: [&[&str]; 3] =
        [&["bash", "--norc", "-c", BASH, "bash"], &["zsh", "-fc", ZSH, "zsh"], &["fish", "--no-config", "-c", FISH]];
    for shell in shells {
        assert_eq!(offered(&daemon, shell, "depl"), ["deploy"], "{shell:?}");
        assert_eq!(offered(&daemon, shell, "logs --tail 5 --fol"), ["--follow"], "{shell:?}");
        assert_eq!(offered(&daemon, shell, "deploy home/"), ["home/media", "home/notes"], "{shell:?}");
        assert_eq!(offered(&daemon, shell, "deploy --follow no"), ["notes"], "{shell:?}");
        let folders = offered(&daemon, shell, "check /us");
        assert_eq!(folders.iter().map(|path| path.trim_end_matches('/')).collect::<Vec<&str>>(), ["/usr"], "{shell:?}");
    }
}

#[test]
fn a_daemon_that_is_not_there_or_says_nothing_offers_no_names() {
    let daemon = Daemon::new();
    let ask = || daemon.cli(&["complete", "--", "deploy", ""]);
    let absent = ask();
    assert!(absent.status.success() && absent.stdout.is_empty() && absent.stderr.is_empty(), "{absent:?}");
    // It takes connections, and never answers.
    let _silent = UnixListener::bind(daemon.runtime().join("shiparr.sock")).expect("listen");
    let silent = ask();
    assert!(silent.status.success() && silent.stdout.is_empty() && silent.stderr.is_empty(), "{silent:?}");
}
