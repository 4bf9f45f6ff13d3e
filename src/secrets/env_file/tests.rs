#![allow(clippy::disallowed_methods, reason = "the tests ask the real Compose, with this process's PATH")]

use super::*;
use crate::command::{Command, Limit};

const NOTHING: Surroundings<'static> = Surroundings { lookup: &|_| None, blank_unset: false };

fn pairs(variables: &[Variable]) -> Vec<(&str, &str)> {
    variables.iter().map(|(name, value)| (name.as_str(), value.expose())).collect()
}

fn dotenv(text: &str) -> Vec<(String, String)> {
    let surroundings =
        Surroundings { lookup: &|name| (name == "HOME").then(|| "/root".to_owned()), blank_unset: false };
    let variables = parse_dotenv(text, surroundings).unwrap();
    variables.into_iter().map(|(name, value)| (name, value.expose().to_owned())).collect()
}

/// Every rule of the format in one file. `DOTENV_VARIABLES` holds what Compose makes of it.
const DOTENV_FILE: &str = "\u{feff}# a comment
PLAIN=value
SPACES =  around it   \r
export EXPORTED=yes
  INDENTED: colon
EMPTY=
COMMENTED=value # comment
HASH=val#ue
SINGLE='single $PLAIN ${PLAIN} \\n \"x\" # no comment'
SINGLE_QUOTE='it\\'s'
DOUBLE=\"double $PLAIN\\ttab \\\"quoted\\\" \\$PLAIN \\\\ \\q \\0101\"
MULTI=\"first
  second # line
third\"
MULTI_SINGLE='one
two'   # after it
EXPANDED=<$PLAIN-${PLAIN}-${UNSET_HERE:-fall ${PLAIN} back}-${EMPTY-kept}-${EMPTY:-filled}-${PLAIN:+set}-${UNSET_HERE+not}->
LITERAL=$$word costs 5$ or $1
REQUIRED=${PLAIN:?must be there}
AGAIN=first
AGAIN=second
SURROUNDED=$HOME/x
UNICODE=\"schön 🚢\"
dotted.name-x=1
LAST=no line break";

const DOTENV_VARIABLES: [(&str, &str); 20] = [
    ("PLAIN", "value"),
    ("SPACES", "around it"),
    ("EXPORTED", "yes"),
    ("INDENTED", "colon"),
    ("EMPTY", ""),
    ("COMMENTED", "value"),
    ("HASH", "val#ue"),
    ("SINGLE", "single $PLAIN ${PLAIN} \\n \"x\" # no comment"),
    ("SINGLE_QUOTE", "it's"),
    ("DOUBLE", "double value\ttab \"quoted\" $PLAIN \\ \\q A"),
    ("MULTI", "first\n  second # line\nthird"),
    ("MULTI_SINGLE", "one\ntwo"),
    ("EXPANDED", "<value-value-fall value back--filled-set-->"),
    ("LITERAL", "$word costs 5$ or $1"),
    ("REQUIRED", "value"),
    ("AGAIN", "second"),
    ("SURROUNDED", "/root/x"),
    ("UNICODE", "schön 🚢"),
    ("dotted.name-x", "1"),
    ("LAST", "no line break"),
];

#[test]
fn a_dotenv_file_means_what_compose_reads() {
    let found = dotenv(DOTENV_FILE);
    let expected: Vec<_> =
        DOTENV_VARIABLES.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_name_alone_is_taken_from_the_surroundings() {
    assert_eq!(
        dotenv("HOME\nNOT_THERE\nX=1\nHOME"),
        [("HOME".to_owned(), "/root".to_owned()), ("X".into(), "1".into())]
    );
}

#[test]
fn a_files_own_variables_come_first() {
    assert_eq!(dotenv("HOME=/own\nX=$HOME")[1].1, "/own");
}

#[test]
fn an_unset_variable_is_an_error_that_names_it_and_the_way_out() {
    let error = parse_dotenv("A=1\n\nPASSWORD=pa$word-secret\n", NOTHING).unwrap_err();
    assert_eq!(error.line, 3);
    assert!(error.message.contains("`word`") && error.message.contains("$$") && !error.to_string().contains("secret"));
    let blank = Surroundings { blank_unset: true, ..NOTHING };
    assert_eq!(pairs(&parse_dotenv("PASSWORD=pa$word", blank).unwrap()), [("PASSWORD", "pa")]);
}

#[test]
fn problems_of_a_dotenv_file_have_a_line_and_no_value() {
    for (text, line, part) in [
        ("A=1\nB=\"no end\n\n", 2, "no end"),
        ("A='x'\nsecret value=1", 2, "NAME=value"),
        ("\n\n{\"json\": 1}", 3, "NAME=value"),
        ("=x", 1, "NAME=value"),
        ("A=${secret", 1, "without a `}`"),
        ("A=${}", 1, "without a name"),
        ("A=${1secret}", 1, "without a name"),
        ("A=${NAME!secret}", 1, "no operator"),
        ("A=1\nB=${NAME:?secret}", 2, "required"),
        ("A=\"x\0\"", 1, "NUL"),
    ] {
        let error = parse_dotenv(text, NOTHING).unwrap_err();
        assert_eq!(error.line, line, "{text}");
        assert!(error.message.contains(part), "{text}: {error}");
        assert!(part == "no end" || !error.message.contains("secret"), "{error}");
    }
}

#[test]
fn references_in_references_have_a_bound() {
    let deep = format!("A={}x{}", "${N:-".repeat(100_000), "}".repeat(100_000));
    let error = parse_dotenv(&deep, NOTHING).unwrap_err();
    assert!(error.message.contains("deep"));
}

#[test]
fn flat_yaml_keeps_spellings() {
    let text = "---\n# comment\nPORT: 8080\nVERSION: 1.10\nYES: yes\nQUOTED: \"a \\\"b\\\" $C\\n\"\nNULL_ONE: ~\nNOTHING:\nBLOCK: |\n  a\n  b\nONE: &x v\nTWO: *x\nPORT: 0o17\n";
    let expected = [
        ("PORT", "0o17"),
        ("VERSION", "1.10"),
        ("YES", "yes"),
        ("QUOTED", "a \"b\" $C\n"),
        ("NULL_ONE", ""),
        ("NOTHING", ""),
        ("BLOCK", "a\nb\n"),
        ("ONE", "v"),
        ("TWO", "v"),
    ];
    assert_eq!(pairs(&parse_yaml_flat(text).unwrap()), expected);
    assert!(parse_yaml_flat("").unwrap().is_empty());
    assert!(parse_yaml_flat("# nothing\n").unwrap().is_empty());
    assert!(parse_yaml_flat("{}").unwrap().is_empty());
}

#[test]
fn problems_of_flat_yaml_name_the_key() {
    for (text, line, part) in [
        ("A: 1\nDB:\n  user: secret\n", 3, "`DB`"),
        ("A: 1\nLIST: [secret]\n", 2, "`LIST`"),
        ("- secret\n", 1, "flat"),
        ("just secret\n", 1, "NAME: value"),
        ("A: \"secret\n", 1, "valid YAML"),
        ("A: 1\n---\nB: 2\n", 2, "one YAML document"),
        ("bad name: secret\n", 1, "`bad name`"),
    ] {
        let error = parse_yaml_flat(text).unwrap_err();
        assert!(error.message.contains(part) && !error.message.contains("secret"), "{text}: {error}");
        assert_eq!(error.line, line, "{text}: {error}");
    }
}

#[test]
fn flat_json_keeps_spellings() {
    let text = "{\"B\": 1.10, \"A\": \"x\\n\\ud83d\\udea2 $C\", \"T\": true, \"N\": null, \"BIG\": 123456789012345678901234567890}";
    let expected =
        [("A", "x\n🚢 $C"), ("B", "1.10"), ("BIG", "123456789012345678901234567890"), ("N", ""), ("T", "true")];
    assert_eq!(pairs(&parse_json_flat(text).unwrap()), expected);
}

#[test]
fn problems_of_flat_json_name_the_key() {
    for (text, line, part) in [
        ("{\n \"A\": 1,\n \"DB\": {\"x\": \"secret\"}}", 3, "`DB`"),
        ("[\"secret\"]", 1, "JSON object"),
        ("{\"A\":\n \"secret}", 2, "JSON object"),
        ("{\"a b\": \"secret\"}", 1, "`a b`"),
        ("{\"A\": \"\\u0000secret\"}", 1, "NUL"),
    ] {
        let error = parse_json_flat(text).unwrap_err();
        assert!(error.message.contains(part) && !error.message.contains("secret"), "{text}: {error}");
        assert_eq!(error.line, line, "{text}: {error}");
    }
}

#[test]
fn the_syntax_follows_the_name() {
    assert_eq!(Syntax::of_name("x.YAML"), Syntax::Yaml);
    assert_eq!(Syntax::of_name("x.yml"), Syntax::Yaml);
    assert_eq!(Syntax::of_name("x.json"), Syntax::Json);
    assert_eq!(Syntax::of_name(".env"), Syntax::Dotenv);
    assert_eq!(Syntax::of_name("env"), Syntax::Dotenv);
}

/// Values with everything in them that means something to somebody.
const NASTY: [&str; 22] = [
    "",
    " ",
    "  both sides  ",
    "pa$word",
    "$",
    "$$",
    "${PLAIN}",
    "$$${x}$",
    "'",
    "\"",
    "\\",
    "\\\\",
    "\\\"",
    "\\'",
    "\\n \\t \\$ \\0101",
    "ends with \\",
    "# no comment",
    "a #b =c :d",
    "line one\nline two\n",
    "\r\n\ttabs\r",
    "schön 🚢 \u{feff}\u{a0}",
    "{\"json\": [\"a\", 'b']}",
];

/// The variables that the real Compose (no engine is asked) interpolates with from an env file.
fn read_by_compose(env_file: &str, names: &[String], docker_config: Option<&str>) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x.env"), env_file).unwrap();
    let labels: String = names.iter().map(|name| format!("      {name}: \"${{{name}}}\"\n")).collect();
    let stack = format!("services:\n  x:\n    image: x\n    labels:\n{labels}");
    std::fs::write(folder.path().join("compose.yaml"), stack).unwrap();
    let mut environment = vec![("PATH".into(), std::env::var_os("PATH").unwrap())];
    environment.extend(docker_config.map(|folder| ("DOCKER_CONFIG".into(), folder.into())));
    let captured = Command::new("docker", &environment)
        .args(["compose", "--env-file", "x.env", "config", "--format", "json"])
        .folder(folder.path())
        .capture(&Limit::after(std::time::Duration::from_secs(60)), 1 << 20)
        .unwrap();
    assert!(captured.status.success(), "{}", captured.stderr);
    let config: serde_json::Value = serde_json::from_slice(&captured.stdout).unwrap();
    let label = |name: &String| config["services"]["x"]["labels"][name].as_str().unwrap().replace("$$", "$");
    names.iter().map(label).collect()
}

/// Debian's Compose, and the newer one where it has been built.
fn composes() -> impl Iterator<Item = Option<String>> {
    let newer = std::env::var("SHIPARR_TEST_COMPOSE_5").ok();
    let folder = newer.and_then(|path| Some(std::path::Path::new(&path).parent()?.parent()?.to_str()?.to_owned()));
    std::iter::once(None).chain(folder.map(Some))
}

#[test]
fn compose_reads_rendered_values_back_exactly() {
    let variables: Vec<Variable> =
        NASTY.iter().enumerate().map(|(index, value)| (format!("V{index}"), Secret::new(*value))).collect();
    let names: Vec<String> = variables.iter().map(|(name, _)| name.clone()).collect();
    let text = render(variables.iter().map(|(name, value)| (name.as_str(), value)));
    assert_eq!(pairs(&parse_dotenv(&text, NOTHING).unwrap()), pairs(&variables), "our own reading");
    for docker_config in composes() {
        let read = read_by_compose(&text, &names, docker_config.as_deref());
        assert_eq!(read, NASTY);
    }
}

#[test]
fn compose_agrees_on_a_dotenv_file() {
    let expected: Vec<(&str, &str)> =
        DOTENV_VARIABLES.iter().copied().filter(|(name, _)| !name.contains('.') && *name != "SURROUNDED").collect();
    let names: Vec<String> = expected.iter().map(|(name, _)| (*name).to_owned()).collect();
    for docker_config in composes() {
        let read = read_by_compose(DOTENV_FILE, &names, docker_config.as_deref());
        assert_eq!(read, expected.iter().map(|(_, value)| *value).collect::<Vec<_>>());
    }
}
