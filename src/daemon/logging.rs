//! How the daemon's own log looks: for people, for machines, for the journal.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::panic::PanicHookInfo;

use jiff::Timestamp;
use log::{Level, Record};

use crate::config::settings::LogFormat;

/// Sends everything that is logged to standard error, in `format`, as far as `filter` (env_logger's syntax) lets it.
pub fn start(filter: &str, format: LogFormat) {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(filter).write_style(env_logger::WriteStyle::Never);
    builder.format(move |out, record| writeln!(out, "{}", line(record, format)));
    builder.init();
    std::panic::set_hook(Box::new(log_panic));
}

/// Says why the daemon does not run, or runs no more: to people as every verb does, else as an error in the log, whether
/// that was started or not.
pub fn say_why(error: &anyhow::Error, format: LogFormat) {
    let text = format!("{error:#}");
    if format == LogFormat::Text {
        eprintln!("shiparr: {text}");
        return;
    }
    // Each problem is a line of its own.
    for problem in text.lines() {
        let mut record = Record::builder();
        record.level(Level::Error).target(module_path!());
        eprintln!("{}", line(&record.args(format_args!("{problem}")).build(), format));
    }
}

fn line(record: &Record<'_>, format: LogFormat) -> String {
    match format {
        LogFormat::Text => format!("{} {:<7} {}", now(), word(record.level()), one_line(record)),
        // sd-daemon(3): a line that begins with <N> carries the syslog priority N.
        LogFormat::Journal => format!("<{}>{}", priority(record.level()), one_line(record)),
        LogFormat::Json => serde_json::json!({
            "time": now(),
            "level": word(record.level()),
            "target": record.target(),
            "message": record.args().to_string(),
        })
        .to_string(),
    }
}

/// A panic is an error in the log, like others, rather than lines without a priority.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let payload = panic.payload();
    let text = payload.downcast_ref::<&str>().copied();
    let message = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message");
    let place = panic.location().map_or_else(String::new, |place| format!(" at {place}"));
    let line = format!("the thread `{}` panicked{place}: {message}", thread.name().unwrap_or("unnamed"));
    if !log::log_enabled!(Level::Error) {
        // Whoever wants no log of ours has to know all the same.
        eprintln!("{line}");
        return;
    }
    log::error!("{line}");
    let trace = Backtrace::capture();
    if trace.status() == BacktraceStatus::Captured {
        log::error!("{trace}");
    }
}

/// A message on one line, whatever a child or a remote put into it; nothing in it steers the terminal that shows it.
fn one_line(record: &Record<'_>) -> String {
    record.args().to_string().replace(char::is_control, " ")
}

fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// The levels by the names that `Shiparr_LOG_LEVEL` takes.
fn word(level: Level) -> &'static str {
    match level {
        Level::Error => "ERROR",
        Level::Warn => "WARNING",
        Level::Info => "INFO",
        Level::Debug => "DEBUG",
        Level::Trace => "TRACE",
    }
}

/// Syslog priorities, RFC 5424 section 6.2.1.
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_gets_the_priority_of_each_line() {
        for (level, expected) in
            [(Level::Error, "<3>x"), (Level::Warn, "<4>x"), (Level::Info, "<6>x"), (Level::Debug, "<7>x")]
        {
            let mut record = Record::builder();
            assert_eq!(line(&record.level(level).args(format_args!("x")).build(), LogFormat::Journal), expected);
        }
    }

    #[test]
    fn a_line_is_one_and_steers_no_terminal() {
        let record = Record::builder().args(format_args!("there is no `main`; there are \x1b[2Jx\r\ny")).build();
        assert_eq!(one_line(&record), "there is no `main`; there are  [2Jx  y");
    }
}
