//! Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};

use super::Histogram;

/// What the format is called in `Content-Type`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a metric's values mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, and begins at 0 when the process does.
    Counter,
    /// It goes up and down.
    Gauge,
    /// How many observations were within each of some bounds.
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

/// What a scrape answers, while it is written.
#[derive(Debug, Default)]
pub struct Text(String);

impl Text {
    /// Begins a metric. The values that follow are its own.
    pub fn metric(&mut self, name: &'static str, kind: Kind, help: &str) -> Metric<'_> {
        let (text, kind, help) = (&mut self.0, kind.as_str(), help.replace('\\', r"\\").replace('\n', r"\n"));
        push(text, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Metric { text, name }
    }

    /// All of it.
    pub fn into_string(self) -> String {
        self.0
    }
}

/// A metric whose values are being written.
pub struct Metric<'a> {
    text: &'a mut String,
    name: &'static str,
}

impl Metric<'_> {
    /// Its only value.
    pub fn value(&mut self, value: impl Display) {
        self.labelled(&Labels::default(), value);
    }

    /// One of its values.
    pub fn labelled(&mut self, labels: &Labels, value: impl Display) {
        let (name, Labels(labels)) = (self.name, labels);
        match labels.as_str() {
            "" => push(self.text, format_args!("{name} {value}\n")),
            labels => push(self.text, format_args!("{name}{{{labels}}} {value}\n")),
        }
    }

    /// One of its histograms.
    pub fn histogram(&mut self, labels: &Labels, histogram: &Histogram) {
        let (name, Labels(labels)) = (self.name, labels);
        let comma = if labels.is_empty() { "" } else { "," };
        let mut count = 0;
        for (bound, within) in histogram.buckets() {
            count += within;
            match bound {
                Some(bound) => {
                    push(self.text, format_args!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}\n"))
                }
                None => push(self.text, format_args!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}\n")),
            }
        }
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        push(self.text, format_args!("{name}_sum{braced} {}\n{name}_count{braced} {count}\n", histogram.sum()));
    }
}

/// The labels of a value, ready to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels(String);

impl Labels {
    /// Names and values; a value may hold any text.
    pub fn of<'a>(pairs: impl IntoIterator<Item = (&'static str, &'a str)>) -> Labels {
        let mut labels = String::new();
        for (name, value) in pairs {
            if !labels.is_empty() {
                labels.push(',');
            }
            push(&mut labels, format_args!("{name}=\""));
            for character in value.chars() {
                match character {
                    '\\' => labels.push_str(r"\\"),
                    '"' => labels.push_str(r#"\""#),
                    '\n' => labels.push_str(r"\n"),
                    other => labels.push(other),
                }
            }
            labels.push('"');
        }
        Labels(labels)
    }
}

fn push(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = text.write_fmt(what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_stand_under_their_help_and_type() {
        let mut text = Text::default();
        text.metric("a_total", Kind::Counter, "How many.\nAnd a \\.").value(3);
        let mut metric = text.metric("b_seconds", Kind::Gauge, "How long.");
        metric.labelled(&Labels::of([("project", "home"), ("repository", "web")]), 0.25);
        metric.labelled(&Labels::of([("project", "a\\b\"c\nd")]), 1_763_000_000_u64);
        let expected = "# HELP a_total How many.\\nAnd a \\\\.\n# TYPE a_total counter\na_total 3\n\
                        # HELP b_seconds How long.\n# TYPE b_seconds gauge\n\
                        b_seconds{project=\"home\",repository=\"web\"} 0.25\n\
                        b_seconds{project=\"a\\\\b\\\"c\\nd\"} 1763000000\n";
        assert_eq!(text.into_string(), expected);
    }

    #[test]
    fn the_buckets_of_a_histogram_add_up() {
        let mut histogram = Histogram::new(&[0.5, 10.0]);
        [0.25, 0.5, 9.0, 10.5].into_iter().for_each(|value| histogram.observe(value));
        let mut text = Text::default();
        let mut metric = text.metric("c_seconds", Kind::Histogram, "How long.");
        metric.histogram(&Labels::default(), &histogram);
        metric.histogram(&Labels::of([("status", "200")]), &Histogram::new(&[1.0]));
        let expected = "# HELP c_seconds How long.\n# TYPE c_seconds histogram\n\
                        c_seconds_bucket{le=\"0.5\"} 2\nc_seconds_bucket{le=\"10\"} 3\nc_seconds_bucket{le=\"+Inf\"} 4\n\
                        c_seconds_sum 20.25\nc_seconds_count 4\n\
                        c_seconds_bucket{status=\"200\",le=\"1\"} 0\nc_seconds_bucket{status=\"200\",le=\"+Inf\"} 0\n\
                        c_seconds_sum{status=\"200\"} 0\nc_seconds_count{status=\"200\"} 0\n";
        assert_eq!(text.into_string(), expected);
    }
}
