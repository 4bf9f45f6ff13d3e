//! What Compose would run, read from one call of `config --format json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::explain::message_of;
use crate::deploy::Mount;
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
    /// `container_name` of the active services that have one, by service.
    pub container_names: BTreeMap<String, String>,
    /// Names of the volumes that Compose makes for the active services.
    pub volumes: BTreeSet<String>,
    /// Files and folders of this host that active services mount, by service.
    pub mounts: Vec<Mount>,
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
    let (secrets, configs) = (config.secrets.unwrap_or_default(), config.configs.unwrap_or_default());
    let mounts = services.iter().flat_map(|(name, service)| service.mounts(name, &secrets, &configs)).collect();
    // Compose leaves out the volumes that no active service uses, and makes neither.
    let volumes = config.volumes.unwrap_or_default().into_values().filter_map(Volume::made_here).collect();
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
        container_names: services
            .iter()
            .filter_map(|(name, service)| Some((name.clone(), service.container_name.clone()?)))
            .collect(),
        volumes,
        mounts,
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
    if message.starts_with("cannot expand '~'") {
        // It would be taken for the name of a folder in the stack's.
        return Some("HOME");
    }
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
    volumes: Option<BTreeMap<String, Volume>>,
    secrets: Option<BTreeMap<String, FileObject>>,
    configs: Option<BTreeMap<String, FileObject>>,
}

#[derive(Deserialize)]
struct Volume {
    name: Option<String>,
    #[serde(default)]
    external: bool,
}

/// A secret or a config.
#[derive(Deserialize)]
struct FileObject {
    file: Option<String>,
}

#[derive(Deserialize)]
struct Service {
    container_name: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    volumes: Vec<ServiceVolume>,
    #[serde(default, deserialize_with = "or_default")]
    secrets: Vec<Reference>,
    #[serde(default, deserialize_with = "or_default")]
    configs: Vec<Reference>,
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

#[derive(Deserialize)]
struct ServiceVolume {
    #[serde(rename = "type", default)]
    kind: String,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Reference {
    #[serde(default)]
    source: String,
}

/// An absent list may be written as `null`.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Compose prints a plain `$` as `$$`.
fn unescaped(text: &str) -> PathBuf {
    PathBuf::from(text.replace("$$", "$"))
}

impl Volume {
    fn made_here(self) -> Option<String> {
        self.name.filter(|_| !self.external)
    }
}

impl Service {
    fn is_one_shot(&self) -> bool {
        let (name, expected) = ONE_SHOT;
        self.labels.as_ref().and_then(|labels| labels.get(name)?.as_str()).is_some_and(|value| value == expected)
    }

    fn mounts(
        &self,
        service: &str,
        secrets: &BTreeMap<String, FileObject>,
        configs: &BTreeMap<String, FileObject>,
    ) -> Vec<Mount> {
        let binds =
            self.volumes.iter().filter(|volume| volume.kind == "bind").filter_map(|bind| bind.source.as_deref());
        let file = |objects: &'_ BTreeMap<String, FileObject>, reference: &Reference| {
            objects.get(&reference.source).and_then(|object| object.file.clone())
        };
        let secrets = self.secrets.iter().filter_map(|reference| file(secrets, reference));
        let configs = self.configs.iter().filter_map(|reference| file(configs, reference));
        let objects = secrets.chain(configs).map(|file| unescaped(&file));
        let sources: BTreeSet<PathBuf> = binds.map(unescaped).chain(objects).collect();
        sources.into_iter().map(|source| Mount { service: service.to_owned(), source }).collect()
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
    fn reads_names_volumes_and_mounts() {
        let resolved = parse(
            br#"{"name": "x",
                "secrets": {"key": {"name": "x_key", "file": "/f/key"}, "env": {"environment": "HOME"}, "idle": {"file": "/f/idle"}},
                "configs": {"nginx": {"file": "/f/pa$$th"}, "inline": {"content": "file"}},
                "volumes": {"data": {"name": "x_data"}, "ext": {"name": "e", "external": true}, "other": {"name": "renamed"}},
                "services": {
                    "a": {"container_name": "mine", "secrets": [{"source": "key"}, {"source": "env", "target": "t"}],
                        "configs": [{"source": "nginx"}, {"source": "inline"}],
                        "volumes": [{"type": "bind", "source": "/f/data", "target": "/data", "bind": {}}, {"type": "tmpfs", "target": "/t"},
                            {"type": "volume", "source": "data", "target": "/n"}, {"type": "volume", "target": "/anonymous"}]},
                    "b": {"volumes": [{"type": "bind", "source": "/f/data", "target": "/data"}], "secrets": null}}}"#,
        )
        .unwrap();
        assert_eq!(resolved.container_names, BTreeMap::from([("a".into(), "mine".into())]));
        assert_eq!(resolved.volumes, BTreeSet::from(["x_data".into(), "renamed".into()]));
        let mounts: Vec<_> =
            resolved.mounts.iter().map(|mount| (&*mount.service, mount.source.to_str().unwrap())).collect();
        assert_eq!(mounts, [("a", "/f/data"), ("a", "/f/key"), ("a", "/f/pa$th"), ("b", "/f/data")]);
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
            "time=\"2026-01-01T00:00:00Z\" level=warning msg=\"cannot expand '~', because the environment lacks HOME\"\n",
            "something else\n",
        );
        assert_eq!(
            warnings(stderr),
            (
                BTreeSet::from(["FOO".to_owned(), "HOME".to_owned()]),
                BTreeSet::from(["/x/compose.yaml: `version` is obsolete".to_owned()])
            )
        );
    }
}
