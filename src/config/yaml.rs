//! YAML with the line of every key and value: anchors and `<<` resolved, bounded against files that grow when they are
//! read.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput, Tag};

/// A text counts as one value more for each so many bytes, so that repeating a long one costs what it weighs.
const BYTES_PER_VALUE: usize = 64;
/// Values in a file, those that aliases repeat counted again.
const MAX_VALUES: usize = 200_000;
/// Lists and maps in each other. A project file needs five.
const MAX_DEPTH: usize = 32;

/// A value and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    /// 1 for the first line.
    pub(crate) line: usize,
    pub(crate) value: Value,
}

/// A value. Texts, numbers and truth values are told apart by the field that they are for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// Nothing, `~` or `null`, without quotes.
    Null,
    Scalar(String),
    List(Vec<Node>),
    Map(Map),
}

/// A map in the file's order; merged keys come last.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Map {
    pub(crate) entries: Vec<Entry>,
    /// Keys that were there already.
    pub(crate) duplicates: Vec<Duplicate>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// The key's line.
    pub(crate) line: usize,
    pub(crate) value: Node,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Duplicate {
    pub(crate) key: String,
    pub(crate) line: usize,
    pub(crate) first_line: usize,
}

impl Map {
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

impl Value {
    /// What it is, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Scalar(_) => "a single value",
            Value::List(_) => "a list",
            Value::Map(_) => "a map",
        }
    }
}

/// Why a text cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    pub(crate) line: Option<usize>,
    pub(crate) message: String,
}

/// Reads a text that holds one document.
pub(crate) fn parse(text: &str) -> Result<Node, Fault> {
    read(text, true)
}

/// Reads a text that holds one document, with whatever tags: Compose has some of its own.
pub(crate) fn parse_with_any_tags(text: &str) -> Result<Node, Fault> {
    read(text, false)
}

fn read(text: &str, minds_tags: bool) -> Result<Node, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    // The parser would take a NUL for the end of the text, and drop what follows.
    let forbidden = |character: char| character.is_control() && !matches!(character, '\n' | '\r' | '\t' | '\u{85}');
    if let Some(at) = text.find(forbidden) {
        let line = 1 + text[..at].matches('\n').count();
        return Err(Fault {
            line: Some(line),
            message: "a control character; a project file is plain text".to_owned(),
        });
    }
    let mut builder =
        Builder { parser: Parser::new_from_str(text), anchors: HashMap::new(), values_left: MAX_VALUES, minds_tags };
    builder.document()
}

struct Builder<'text> {
    parser: Parser<'text, StrInput<'text>>,
    /// Anchored values that are complete, by the parser's number.
    anchors: HashMap<usize, Node>,
    values_left: usize,
    minds_tags: bool,
}

impl<'text> Builder<'text> {
    fn document(&mut self) -> Result<Node, Fault> {
        let mut root = None;
        loop {
            let (event, line) = self.next()?;
            match event {
                Event::StreamEnd => {
                    let empty = Fault { line: None, message: "the file is empty; expected a project".to_owned() };
                    return root.ok_or(empty);
                }
                Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd | Event::Nothing => {}
                _ if root.is_some() => return fault(line, "a second document; expected one project a file"),
                event => root = Some(self.node(event, line, 0)?),
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'text>, usize), Fault> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, span.start.line())),
            Some(Err(error)) => fault(error.marker().line(), &format!("not valid YAML: {}", error.info())),
            None => Ok((Event::StreamEnd, 1)),
        }
    }

    fn node(&mut self, event: Event<'text>, line: usize, depth: usize) -> Result<Node, Fault> {
        if depth > MAX_DEPTH {
            return fault(line, &format!("more than {MAX_DEPTH} lists and maps in each other"));
        }
        let (anchor, value) = match event {
            Event::Alias(anchor) => {
                let Some(node) = self.anchors.get(&anchor).cloned() else {
                    return fault(line, "an alias inside the value that it stands for");
                };
                self.pay(weight(&node), line)?;
                return Ok(node);
            }
            Event::Scalar(text, style, anchor, tag) => {
                let text = text.into_owned();
                self.pay(1 + text.len() / BYTES_PER_VALUE, line)?;
                (anchor, scalar(text, style, tag.as_deref().filter(|_| self.minds_tags), line)?)
            }
            Event::SequenceStart(anchor, tag) => {
                self.pay(1, line)?;
                collection_tag(tag.as_deref().filter(|_| self.minds_tags), "seq", line)?;
                (anchor, Value::List(self.list(depth)?))
            }
            Event::MappingStart(anchor, tag) => {
                self.pay(1, line)?;
                collection_tag(tag.as_deref().filter(|_| self.minds_tags), "map", line)?;
                (anchor, Value::Map(self.map(depth)?))
            }
            _ => return fault(line, "not valid YAML: a value was expected"),
        };
        let node = Node { line, value };
        if anchor != 0 {
            self.pay(weight(&node), line)?;
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Fault> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                (event, line) => items.push(self.node(event, line, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Map, Fault> {
        let mut map = Map::default();
        let mut lines: HashMap<String, usize> = HashMap::new();
        let mut merged = Vec::new();
        loop {
            let (event, line) = self.next()?;
            if event == Event::MappingEnd {
                break;
            }
            let merges = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, _, None) if text == "<<");
            let Value::Scalar(key) = self.node(event, line, depth + 1)?.value else {
                return fault(line, "a key that is not a plain text");
            };
            let (event, value_line) = self.next()?;
            let value = self.node(event, value_line, depth + 1)?;
            if let Some(first_line) = lines.get(&key) {
                map.duplicates.push(Duplicate { key, line, first_line: *first_line });
                continue;
            }
            lines.insert(key.clone(), line);
            if merges {
                merged = to_merge(value, line)?;
            } else {
                map.entries.push(Entry { key, line, value });
            }
        }
        // What stands in the map itself wins, then the earlier of several merged maps.
        for source in merged {
            map.duplicates.extend(source.duplicates);
            for entry in source.entries {
                if lines.insert(entry.key.clone(), entry.line).is_none() {
                    map.entries.push(entry);
                }
            }
        }
        Ok(map)
    }

    fn pay(&mut self, values: usize, line: usize) -> Result<(), Fault> {
        match self.values_left.checked_sub(values) {
            Some(left) => {
                self.values_left = left;
                Ok(())
            }
            None => fault(line, &format!("more than {MAX_VALUES} values, those that aliases repeat counted again")),
        }
    }
}

fn fault<T>(line: usize, message: &str) -> Result<T, Fault> {
    Err(Fault { line: Some(line), message: message.to_owned() })
}

fn weight(node: &Node) -> usize {
    1 + match &node.value {
        Value::Null => 0,
        Value::Scalar(text) => text.len() / BYTES_PER_VALUE,
        Value::List(items) => items.iter().map(weight).sum(),
        Value::Map(map) => map.entries.iter().map(|entry| 1 + weight(&entry.value)).sum(),
    }
}

fn scalar(text: String, style: ScalarStyle, tag: Option<&Tag>, line: usize) -> Result<Value, Fault> {
    let quoted = match tag {
        None => style != ScalarStyle::Plain,
        Some(tag) if tag.is_yaml_core_schema() => match tag.suffix.as_str() {
            "str" => true,
            "int" | "float" | "bool" | "null" => false,
            _ => return fault(line, &format!("the tag {tag} is not supported here")),
        },
        Some(tag) => return fault(line, &format!("the tag {tag} is not supported here")),
    };
    let null = !quoted && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL");
    Ok(if null { Value::Null } else { Value::Scalar(text) })
}

fn collection_tag(tag: Option<&Tag>, expected: &str, line: usize) -> Result<(), Fault> {
    match tag {
        Some(tag) if !tag.is_yaml_core_schema() || tag.suffix != expected => {
            fault(line, &format!("the tag {tag} is not supported here"))
        }
        _ => Ok(()),
    }
}

/// The maps behind `<<`: one, or a list of them.
fn to_merge(value: Node, line: usize) -> Result<Vec<Map>, Fault> {
    let items = match value.value {
        Value::List(items) => items,
        _ => vec![value],
    };
    items
        .into_iter()
        .map(|item| match item.value {
            Value::Map(map) => Ok(map),
            other => fault(line, &format!("`<<` merges maps, and this is {}", other.kind())),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A short form of a node for comparisons: `{key@line: value}`.
    fn short(node: &Node) -> String {
        match &node.value {
            Value::Null => "~".to_owned(),
            Value::Scalar(text) => format!("{text:?}"),
            Value::List(items) => format!("[{}]", items.iter().map(short).collect::<Vec<_>>().join(", ")),
            Value::Map(map) => {
                let entry = |entry: &Entry| format!("{}@{}: {}", entry.key, entry.line, short(&entry.value));
                format!("{{{}}}", map.entries.iter().map(entry).collect::<Vec<_>>().join(", "))
            }
        }
    }

    fn parsed(text: &str) -> String {
        short(&parse(text).unwrap_or_else(|fault| panic!("{text}: {fault:?}")))
    }

    fn refused(text: &str) -> (Option<usize>, String) {
        let fault = parse(text).map(|node| short(&node)).expect_err(text);
        (fault.line, fault.message)
    }

    #[test]
    fn values_keep_their_text_and_their_lines() {
        let text = "a: 010\nb: \"1\"\nc:\nd: ~\ne: \"\"\nf: [x, 1.10]\ng:\n  - y\n  - h: true\ni: |\n  two\n  lines\n";
        assert_eq!(
            parsed(text),
            "{a@1: \"010\", b@2: \"1\", c@3: ~, d@4: ~, e@5: \"\", f@6: [\"x\", \"1.10\"], \
             g@7: [\"y\", {h@9: \"true\"}], i@10: \"two\\nlines\\n\"}"
        );
        assert_eq!(parsed("\u{feff}a: 1\r\nb: 2\r\n"), "{a@1: \"1\", b@2: \"2\"}");
        assert_eq!(
            short(&parse_with_any_tags("a: !reset [b]\nc: !override {d: !x 1}\n").expect("valid")),
            "{a@1: [\"b\"], c@2: {d@2: \"1\"}}"
        );
        assert_eq!(parsed("--- \na: !!str null\nb: !!int 5\n...\n"), "{a@2: \"null\", b@3: \"5\"}");
    }

    #[test]
    fn anchors_and_merges_are_resolved() {
        assert_eq!(parsed("a: &x [1, 2]\nb: *x\n"), "{a@1: [\"1\", \"2\"], b@2: [\"1\", \"2\"]}");
        let base = "x-a: &a {p: 1, q: 1}\nx-b: &b {q: 2, r: 2}\n";
        assert_eq!(
            parsed(&format!("{base}c:\n  <<: *a\n  p: own\n")).rsplit_once("c@3: ").expect("c").1,
            "{p@5: \"own\", q@1: \"1\"}}"
        );
        assert_eq!(
            parsed(&format!("{base}c: {{<<: [*a, *b], s: 3}}\n")).rsplit_once("c@3: ").expect("c").1,
            "{s@3: \"3\", p@1: \"1\", q@1: \"1\", r@2: \"2\"}}"
        );
        assert_eq!(parsed("\"<<\": 1"), "{<<@1: \"1\"}");
    }

    #[test]
    fn a_repeated_key_is_kept_apart() {
        let Value::Map(map) = parse("a: 1\nb: 2\na: 3\n").expect("valid").value else { panic!("a map") };
        assert_eq!(map.entries.len(), 2);
        assert_eq!(map.duplicates, [Duplicate { key: "a".to_owned(), line: 3, first_line: 1 }]);
    }

    #[test]
    fn what_is_no_project_file_is_refused_with_its_line() {
        for (text, line, part) in [
            ("", None, "empty"),
            ("# only a comment\n", None, "empty"),
            ("a: 1\nb: [\n", Some(3), "not valid YAML"),
            ("a: b: c\n", Some(1), "not valid YAML"),
            ("a: 1\n---\nb: 2\n", Some(3), "second document"),
            ("a: 1\nb: \0 2\n", Some(2), "control character"),
            ("a: 1\n? [x]\n: 2\n", Some(2), "a key that is not a plain text"),
            ("a: &a [*a]\n", Some(1), "an alias inside"),
            ("a: *unknown\n", Some(1), "not valid YAML"),
            ("a: !secret b\n", Some(1), "tag !secret"),
            ("a: !!binary b\n", Some(1), "not supported here"),
            ("a: !reset [b]\n", Some(1), "tag !reset"),
            ("a:\n  <<: 5\n", Some(2), "`<<` merges maps"),
            ("a:\n  <<: [{b: 1}, c]\n", Some(2), "`<<` merges maps"),
        ] {
            let (found_line, message) = refused(text);
            assert!(message.contains(part), "{text}: {message}");
            assert_eq!(found_line, line, "{text}: {message}");
        }
    }

    #[test]
    fn files_that_grow_or_dig_are_stopped() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..20 {
            let before = format!("*a{}", level - 1);
            bomb.push_str(&format!("a{level}: &a{level} [{}]\n", [before.as_str(); 9].join(", ")));
        }
        assert!(refused(&bomb).1.contains("more than 200000 values"));
        let long = format!("a: &a \"{}\"\nb: [{}]\n", "x".repeat(500_000), ["*a"; 1000].join(", "));
        assert!(refused(&long).1.contains("more than 200000 values"));
        assert!(refused(&format!("a: {}{}", "[".repeat(40), "]".repeat(40))).1.contains("in each other"));
        let deep: String = (0..10_000).map(|depth| format!("{}a:\n", " ".repeat(depth % 200))).collect();
        assert!(parse(&deep).is_err());
    }

    #[test]
    fn no_text_makes_the_reader_panic() {
        // A small generator is enough: it walks through the characters that mean something in YAML.
        let alphabet: Vec<char> = "a:-[]{},&*!|>'\"%@`#?~<\\ \n\t.1é\u{85}\u{2028}".chars().collect();
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        for _ in 0..50_000 {
            let mut text = String::new();
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let mut bits = state;
            for _ in 0..(state % 24) {
                bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push(alphabet[(bits >> 33) as usize % alphabet.len()]);
            }
            let _ = parse(&text);
        }
    }
}
