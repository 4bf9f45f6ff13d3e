//! What Compose would run, read from one call of `config --format json`.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::explain::message_of;
use crate::secrets::CIPHERTEXT;

/// The label of a service that is meant to end, and what it must say.
const ONE_SHOT: (&str, &str) = ("shiparr.oneshot", "true");

/// What is read of the resolved configuration.
#[derive(Debug, PartialEq)]
pub struct Resolved {
    /// The compose project.
    pub project: String,
    /// Active services and how many containers each has.
    pub services: BTreeMap<String, u32>,
    /// Whether an active service is built here.
    pub builds: bool,
    /// Active services that another one needs with `service_completed_successfully`, or that are labelled as such.
    pub one_shots: BTreeSet<String>,
    /// Where values stand that are still ciphertext: `services.web.environment.PASSWORD`.
    pub ciphertexts: Vec<String>,
}

/// Reads what `config --format json` printed: one object, in every version of Compose.
///
/// # Errors
/// It is not what was expected, in one line.
pub fn parse(json: &[u8]) -> Result<Resolved, String> {
    let value: Value = serde_json::from_slice(json).map_err(|error| format!("its output is not JSON: {error}"))?;
    let mut ciphertexts = Vec::new();
    find_ciphertexts(&value, &mut String::new(), &mut ciphertexts);
    let config = Config::deserialize(value).map_err(|error| format!("its output is not as expected: {error}"))?;
    let services = config.services.unwrap_or_default();
    let one_shots = services
        .values()
        .flat_map(|service| service.depends_on.iter().flatten())
        .filter(|(_, dependency)| dependency.condition == "service_completed_successfully")
        .map(|(name, _)| name.clone())
        .filter(|name| services.contains_key(name))
        .chain(services.iter().filter(|(_, service)| service.is_one_shot()).map(|(name, _)| name.clone()))
        .collect();
    Ok(Resolved {
        project: config.name,
        builds: services.values().any(|service| service.build.is_some()),
        one_shots,
        ciphertexts,
        // What a provider runs is no container of this project.
        services: services
            .into_iter()
            .filter(|(_, service)| service.provider.is_none())
            .map(|(name, service)| (name, service.containers()))
            .collect(),
    })
}

/// Variables of which Compose warned that nobody sets them, and its other warnings; each once and sorted, for Compose
/// has no order.
pub fn warnings(stderr: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut unset, mut others) = (BTreeSet::new(), BTreeSet::new());
    for line in stderr.lines() {
        let (level, message) = message_of(line);
        if level != Some("warning") {
            continue;
        }
        match unset_variable(&message) {
            Some(name) => unset.insert(name.to_owned()),
            None => others.insert(message.into_owned()),
        };
    }
    (unset, others)
}

fn unset_variable(message: &str) -> Option<&str> {
    message.strip_prefix("The \"")?.split_once("\" variable is not set.").map(|(name, _)| name)
}

fn find_ciphertexts(value: &Value, path: &mut String, found: &mut Vec<String>) {
    match value {
        Value::String(text) if text.starts_with(CIPHERTEXT) => found.push(path.clone()),
        Value::Array(values) => {
            for (index, value) in values.iter().enumerate() {
                find_below(value, &index.to_string(), path, found);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                find_below(value, name, path, found);
            }
        }
        _ => {}
    }
}

fn find_below(value: &Value, name: &str, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    if length > 0 {
        path.push('.');
    }
    path.push_str(name);
    find_ciphertexts(value, path, found);
    path.truncate(length);
}

#[derive(Deserialize)]
struct Config {
    name: String,
    services: Option<BTreeMap<String, Service>>,
}

#[derive(Deserialize)]
struct Service {
    build: Option<Value>,
    scale: Option<u32>,
    deploy: Option<Deploy>,
    depends_on: Option<BTreeMap<String, Dependency>>,
    provider: Option<Value>,
    labels: Option<BTreeMap<String, Value>>,
}

#[derive(Deserialize)]
struct Deploy {
    replicas: Option<u32>,
}

#[derive(Deserialize)]
struct Dependency {
    #[serde(default)]
    condition: String,
}

impl Service {
    fn is_one_shot(&self) -> bool {
        let (name, expected) = ONE_SHOT;
        self.labels.as_ref().and_then(|labels| labels.get(name)?.as_str()).is_some_and(|value| value == expected)
    }

    fn containers(&self) -> u32 {
        self.scale.or(self.deploy.as_ref().and_then(|deploy| deploy.replicas)).unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_services_counts_builds_and_one_shots() {
        let resolved = parse(
            br#"{"name": "x", "services": {
                "a": {"image": "i", "scale": 2, "depends_on": {"m": {"condition": "service_completed_successfully", "required": true}}},
                "m": {"image": "i", "deploy": {"replicas": 3, "resources": {}}, "build": {"context": "/x"}},
                "l": {"image": "i", "labels": {"shiparr.oneshot": "true", "other": "1"}},
                "n": {"image": "i", "labels": {"shiparr.oneshot": "false"}},
                "p": {"provider": {"type": "model"}},
                "z": {"image": "i", "deploy": {"replicas": 0}, "depends_on": null}}}"#,
        )
        .unwrap();
        assert_eq!(resolved.project, "x");
        assert_eq!(
            resolved.services,
            BTreeMap::from([("a".into(), 2), ("l".into(), 1), ("m".into(), 3), ("n".into(), 1), ("z".into(), 0)])
        );
        assert_eq!(resolved.one_shots, BTreeSet::from(["l".into(), "m".into()]));
        assert!(resolved.builds);
        assert!(parse(b"Usage: docker compose").is_err());
    }

    #[test]
    fn names_the_places_of_ciphertext() {
        let resolved = parse(
            br#"{"name": "x", "services": {"a": {"environment": {"P": "ENC[AES256_GCM,data:x]", "Q": "an ENC[AES256_GCM, inside"},
                "command": ["x", "ENC[AES256_GCM,data:y]"]}}}"#,
        )
        .unwrap();
        assert_eq!(resolved.ciphertexts, ["services.a.command.1", "services.a.environment.P"]);
    }

    #[test]
    fn tells_unset_variables_from_other_warnings() {
        let stderr = concat!(
            "time=\"2026-01-01T00:00:00Z\" level=warning msg=\"The \\\"FOO\\\" variable is not set. Defaulting to a blank string.\"\n",
            "time=\"2026-01-01T00:00:00Z\" level=warning msg=\"The \\\"FOO\\\" variable is not set. Defaulting to a blank string.\"\n",
            "time=\"2026-01-01T00:00:00Z\" level=warning msg=\"/x/compose.yaml: `version` is obsolete\"\n",
            "something else\n",
        );
        assert_eq!(
            warnings(stderr),
            (BTreeSet::from(["FOO".to_owned()]), BTreeSet::from(["/x/compose.yaml: `version` is obsolete".to_owned()]))
        );
    }
}
