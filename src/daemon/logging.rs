//! How the daemon's own log looks: for people, for machines, for the journal.

use std::io::Write;

use jiff::Timestamp;
use log::{Level, Record};

use crate::config::settings::LogFormat;

/// Sends everything that is logged to standard error, in `format`, as far as `filter` (env_logger's syntax) lets it.
pub fn start(filter: &str, format: LogFormat) {
    let mut builder = env_logger::Builder::new();
    builder.parse_filters(filter).write_style(env_logger::WriteStyle::Never);
    builder.format(move |out, record| match format {
        LogFormat::Text => writeln!(out, "{} {:<7} {}", now(), word(record.level()), one_line(record)),
        LogFormat::Journal => {
            // sd-daemon(3): a line that begins with <N> carries the syslog priority N.
            writeln!(out, "<{}>{}", priority(record.level()), one_line(record))
        }
        LogFormat::Json => {
            let object = serde_json::json!({
                "time": now(),
                "level": word(record.level()),
                "target": record.target(),
                "message": record.args().to_string(),
            });
            writeln!(out, "{object}")
        }
    });
    builder.init();
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
    fn a_line_is_one_and_steers_no_terminal() {
        let record = Record::builder().args(format_args!("there is no `main`; there are \x1b[2Jx\r\ny")).build();
        assert_eq!(one_line(&record), "there is no `main`; there are  [2Jx  y");
    }
}
