#![allow(clippy::disallowed_methods, reason = "tests start threads and look at the process environment")]

use std::time::Instant;

use super::*;

const LONG: Duration = Duration::from_secs(60);
/// A bound that says "it did not wait for the 60 seconds", also on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn environment() -> Vec<(OsString, OsString)> {
    vec![("PATH".into(), "/usr/bin:/bin".into())]
}

fn shell(script: &str) -> Command {
    Command::new("sh", &environment()).arg("-c").arg(script)
}

fn is_alive(pid: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = status.rsplit(") ").next().and_then(|rest| rest.chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

fn wait_until_gone(pid: &str) {
    let deadline = Instant::now() + SOON;
    while is_alive(pid) {
        assert!(Instant::now() < deadline, "process {pid} is still there");
        std::thread::yield_now();
    }
}

#[test]
fn the_child_sees_exactly_the_environment_that_it_was_given() {
    let command = Command::new("env", &environment()).env("NAME", "a value").folder("/");
    let captured = command.capture(&Limit::after(LONG), 1000).unwrap();
    let text = String::from_utf8(captured.stdout).unwrap();
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["NAME=a value", "PATH=/usr/bin:/bin", "PWD=/"]);
}

#[test]
fn output_status_and_folder_are_the_childs() {
    let captured = shell("pwd; echo trouble >&2; exit 3").folder("/usr").capture(&Limit::after(LONG), 1000).unwrap();
    assert_eq!(captured.stdout, b"/usr\n");
    assert_eq!(captured.stderr, "trouble\n");
    assert_eq!(captured.status.code(), Some(3));
}

#[test]
fn standard_input_is_empty_unless_given() {
    let captured = Command::new("cat", &environment()).capture(&Limit::after(LONG), 1000).unwrap();
    assert!(captured.status.success() && captured.stdout.is_empty());
}

#[test]
fn a_large_input_passes_through_while_output_is_read() {
    let input: Vec<u8> = (0..3_000_000_u32).map(|number| number as u8).collect();
    let command = Command::new("cat", &environment()).input(input.clone());
    let captured = command.capture(&Limit::after(LONG), input.len()).unwrap();
    assert!(captured.stdout == input);
}

#[test]
fn input_that_nobody_reads_is_no_error() {
    let captured = shell("exit 0").input(vec![b'x'; 1_000_000]).capture(&Limit::after(LONG), 10).unwrap();
    assert!(captured.status.success());
}

#[test]
fn too_much_output_is_refused_and_the_child_is_gone() {
    let began = Instant::now();
    let error = Command::new("yes", &environment()).capture(&Limit::after(LONG), 100_000).unwrap_err();
    assert!(matches!(error, CommandError::TooMuchOutput { limit_bytes: 100_000, .. }), "{error}");
    assert!(began.elapsed() < SOON);
}

#[test]
fn of_standard_error_the_last_part_is_kept() {
    let script = "i=0; while [ $i -lt 20000 ]; do echo line $i >&2; i=$((i+1)); done";
    let captured = shell(script).capture(&Limit::after(LONG), 10).unwrap();
    assert!(captured.stderr.starts_with(CUT) && captured.stderr.ends_with("line 19999\n"));
    assert_eq!(captured.stderr.len(), MAX_STDERR_BYTES + CUT.len_utf8());
}

#[test]
fn lines_come_as_they_are_written_and_from_both_outputs() {
    let mut lines = Vec::new();
    let script = r"printf 'one\ntwo\rthree\r\n'; printf 'four' >&2";
    let status = shell(script).stream(&Limit::after(LONG), &mut |output, line| lines.push((output, line.to_owned())));
    assert!(status.unwrap().success());
    lines.sort_by_key(|(output, _)| *output == Output::Err);
    let expected = [(Output::Out, "one"), (Output::Out, "two"), (Output::Out, "three"), (Output::Err, "four")];
    assert_eq!(lines, expected.map(|(output, line)| (output, line.to_owned())));
}

#[test]
fn merged_outputs_keep_their_order() {
    let mut lines = Vec::new();
    let script = "i=0; while [ $i -lt 500 ]; do echo $i; i=$((i+1)); echo $i >&2; i=$((i+1)); done";
    let status = shell(script).merged().stream(&Limit::after(LONG), &mut |output, line| {
        assert_eq!(output, Output::Out);
        lines.push(line.to_owned());
    });
    assert!(status.unwrap().success());
    assert!(lines.into_iter().eq((0..500).map(|number: u32| number.to_string())));
}

#[test]
fn a_line_is_handed_over_while_the_child_runs() {
    let limit = Limit::after(LONG);
    let cancelled = limit.clone();
    let began = Instant::now();
    let result = shell("echo ready; exec sleep 60").stream(&limit, &mut |_, line| {
        assert_eq!(line, "ready");
        cancelled.cancel();
    });
    assert!(matches!(result, Err(CommandError::Cancelled { .. })));
    assert!(began.elapsed() < SOON);
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let error = Command::new("no-such-program", &environment()).capture(&Limit::after(LONG), 10).unwrap_err();
    assert_eq!(error.to_string(), "no-such-program is not installed (or not on PATH)");
    let without_path = Command::new("cargo-or-anything", &[]).capture(&Limit::after(LONG), 10);
    assert!(matches!(without_path, Err(CommandError::NotFound { .. })));
}

#[test]
fn a_missing_folder_is_not_taken_for_a_missing_program() {
    let error = shell("true").folder("/no/such/folder").capture(&Limit::after(LONG), 10).unwrap_err();
    assert!(error.to_string().contains("/no/such/folder"), "{error}");
}

#[test]
fn a_program_that_may_not_be_run_says_why() {
    let error = Command::new("/etc/passwd", &environment()).capture(&Limit::after(LONG), 10).unwrap_err();
    assert!(matches!(error, CommandError::Start { .. }), "{error}");
}

#[test]
fn past_its_limit_the_child_gets_sigterm_and_its_last_words_are_heard() {
    let mut lines = Vec::new();
    let script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.01; done";
    let result =
        shell(script).stream(&Limit::after(Duration::from_secs(3)), &mut |_, line| lines.push(line.to_owned()));
    assert!(matches!(result, Err(CommandError::TimedOut { .. })));
    assert_eq!(lines, ["ready", "bye"]);
}

#[test]
fn a_child_that_ignores_sigterm_is_killed_with_its_group() {
    let limit = Limit::after(LONG);
    let cancelled = limit.clone();
    let mut pids = Vec::new();
    let began = Instant::now();
    let script = "trap '' TERM; sleep 60 & echo $!; echo $$; wait; while :; do sleep 1; done";
    let result = shell(script).grace(Duration::from_millis(200)).stream(&limit, &mut |_, line| {
        pids.push(line.to_owned());
        if pids.len() == 2 {
            cancelled.cancel();
        }
    });
    assert!(matches!(result, Err(CommandError::Cancelled { .. })));
    assert!(began.elapsed() < SOON);
    pids.iter().for_each(|pid| wait_until_gone(pid));
}

#[test]
fn a_grandchild_that_keeps_the_pipes_holds_nobody_up() {
    let began = Instant::now();
    let captured = shell("sleep 60 & echo $!").capture(&Limit::after(LONG), 100).unwrap();
    assert!(captured.status.success());
    assert!(began.elapsed() < SOON);
    wait_until_gone(String::from_utf8(captured.stdout).unwrap().trim());
}

#[test]
fn a_grandchild_that_lets_go_of_the_pipes_lives_on() {
    let captured = shell("sleep 60 >/dev/null 2>&1 & echo $!").capture(&Limit::after(LONG), 100).unwrap();
    let pid = String::from_utf8(captured.stdout).unwrap().trim().to_owned();
    assert!(is_alive(&pid));
    let killed = shell(&format!("kill {pid}")).capture(&Limit::after(LONG), 10).unwrap();
    assert!(killed.status.success());
}

#[test]
fn what_a_child_leaves_behind_gets_the_signal_too() {
    let limit = Limit::after(LONG);
    let cancelled = limit.clone();
    let mut lines = Vec::new();
    // The outer shell dies of SIGTERM without a word to the inner one.
    let inner = "trap \"echo told; exit 0\" TERM; echo ready; while :; do sleep 0.01; done";
    let result = shell(&format!("sh -c '{inner}' & wait")).stream(&limit, &mut |output, line| {
        // On the other output the inner shell says that its `sleep` was terminated.
        if output == Output::Out {
            lines.push(line.to_owned());
        }
        cancelled.cancel();
    });
    assert!(matches!(result, Err(CommandError::Cancelled { .. })));
    assert_eq!(lines, ["ready", "told"]);
}

#[test]
fn a_child_that_closes_its_outputs_is_waited_for() {
    let captured = shell("exec >&- 2>&-; sleep 0.3; exit 7").capture(&Limit::after(LONG), 10).unwrap();
    assert_eq!(captured.status.code(), Some(7));
}

#[test]
fn a_flooding_child_obeys_the_limit_and_is_slowed_by_its_reader() {
    let mut count = 0_u64;
    let began = Instant::now();
    let limit = Limit::after(Duration::from_secs(1));
    let result = Command::new("yes", &environment()).stream(&limit, &mut |_, line| {
        assert_eq!(line, "y");
        count += 1;
    });
    assert!(matches!(result, Err(CommandError::TimedOut { .. })));
    assert!(count > 0 && began.elapsed() < SOON);
}

#[test]
fn a_flood_without_line_breaks_comes_in_bounded_pieces() {
    let mut bytes = 0;
    let limit = Limit::after(Duration::from_secs(1));
    let result = Command::new("cat", &environment()).arg("/dev/zero").stream(&limit, &mut |_, piece| {
        assert!(piece.len() <= MAX_LINE_BYTES + 2 * CUT.len_utf8());
        bytes += piece.len();
    });
    assert!(matches!(result, Err(CommandError::TimedOut { .. })));
    assert!(bytes > 10 * MAX_LINE_BYTES);
}

#[test]
fn nothing_is_started_after_the_limit() {
    let limit = Limit::after(LONG);
    limit.cancel();
    let marker = tempfile::tempdir().unwrap();
    let result = Command::new("touch", &environment()).arg(marker.path().join("x")).capture(&limit, 10);
    assert!(matches!(result, Err(CommandError::Cancelled { .. })) && !marker.path().join("x").exists());
}

#[test]
fn a_reader_that_panics_leaves_no_child() {
    let pid = std::sync::Mutex::new(String::new());
    let result = std::panic::catch_unwind(|| {
        shell("echo $$; exec sleep 60").stream(&Limit::after(LONG), &mut |_, line| {
            line.clone_into(&mut pid.lock().unwrap());
            std::panic::resume_unwind(Box::new(()));
        })
    });
    assert!(result.is_err());
    let pid = pid.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "killed, and reaped");
}

#[test]
fn a_child_dies_with_the_thread_that_started_it() {
    let (send, receive) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let command = shell("echo $$; exec sleep 60").prepare(false).spawn().unwrap();
        send.send(command.id().to_string()).unwrap();
        command
    });
    let pid = receive.recv().unwrap();
    let mut child = thread.join().unwrap();
    wait_until_gone(&pid);
    assert!(!child.wait().unwrap().success());
}

#[test]
fn no_file_of_ours_reaches_the_child() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let captured = shell("ls -l /proc/self/fd").capture(&Limit::after(LONG), 10_000).unwrap();
    let listing = String::from_utf8(captured.stdout).unwrap();
    assert!(listing.contains("/dev/null") && !listing.contains(file.path().to_str().unwrap()), "{listing}");
}
