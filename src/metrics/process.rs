//! What Prometheus' client libraries tell of a process, under the same names.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use super::text::{Kind, Text};

/// Writes the process metrics. What the system does not tell is left out.
pub fn write(text: &mut Text) {
    if let Some(stat) = fs::read_to_string("/proc/self/stat").ok().and_then(|line| Stat::parse(&line)) {
        let ticks = clock_ticks_per_second() as f64;
        text.metric("process_cpu_seconds_total", Kind::Counter, "Total user and system CPU time spent in seconds.")
            .value(stat.cpu_ticks as f64 / ticks);
        text.metric("process_resident_memory_bytes", Kind::Gauge, "Resident memory size in bytes.")
            .value(stat.resident_pages * page_size() as u64);
        text.metric("process_virtual_memory_bytes", Kind::Gauge, "Virtual memory size in bytes.")
            .value(stat.virtual_bytes);
        text.metric("process_threads", Kind::Gauge, "Number of OS threads in the process.").value(stat.threads);
        if let Some(booted) = booted_at_seconds() {
            let help = "Start time of the process since unix epoch in seconds.";
            text.metric("process_start_time_seconds", Kind::Gauge, help)
                .value(booted as f64 + stat.started_ticks as f64 / ticks);
        }
    }
    if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
        // One of them is the folder that is being read.
        text.metric("process_open_fds", Kind::Gauge, "Number of open file descriptors.")
            .value(descriptors.count().saturating_sub(1));
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        text.metric("process_max_fds", Kind::Gauge, "Maximum number of open file descriptors.").value(most);
    }
}

/// Seconds since the epoch. Of this clock, so that a host that learns the time late corrects it.
fn booted_at_seconds() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.parse().ok()
}

/// What `/proc/self/stat` tells (proc(5)).
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    started_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    fn parse(line: &str) -> Option<Stat> {
        // The program's name may hold spaces and parentheses; the state, proc(5)'s third field, comes behind the last one.
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Stat {
            cpu_ticks: field(14)? + field(15)?,
            threads: field(20)?,
            started_ticks: field(22)?,
            virtual_bytes: field(23)?,
            resident_pages: field(24)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_behind_the_name() {
        let line = "1234 (a) b (c) S 1 1234 1234 0 -1 4194560 100 0 0 0 70 30 0 0 20 0 12 0 5000 8192000 640 18446744073709551615";
        let stat =
            Stat { cpu_ticks: 100, threads: 12, started_ticks: 5000, virtual_bytes: 8_192_000, resident_pages: 640 };
        assert_eq!(Stat::parse(line), Some(stat));
        assert_eq!(Stat::parse("1234 (a) S 1"), None);
    }

    #[test]
    fn this_process_is_told_of() {
        let mut text = Text::default();
        write(&mut text);
        let text = text.into_string();
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
        };
        let now = jiff::Timestamp::now().as_second() as f64;
        let started = value("process_start_time_seconds");
        assert!((now - 86_400.0..=now + 2.0).contains(&started), "{started} and now {now}");
        assert!(value("process_threads") >= 1.0 && value("process_cpu_seconds_total") >= 0.0);
        assert!(value("process_resident_memory_bytes") < value("process_virtual_memory_bytes"));
        assert!((1.0..value("process_max_fds")).contains(&value("process_open_fds")));
    }
}
