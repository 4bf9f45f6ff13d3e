//! GET `/api/openapi.json`: the HTTP API in OpenAPI 3.1, for programs.
//!
//! `openapi.json` beside this file says what each route takes and answers. What follows from the route table and the
//! settings is put in where it is served: the routes of a repository by its name, which are those by its id; who may
//! ask for what; and the errors that the gate and the rules answer in place of any route.

use serde_json::{Map, Value, json};

use super::access::Access;
use super::answer::{Answer, Failure};
use super::request::Method;
use super::routes::{self, Call};
use crate::config::Settings;

const DOCUMENT: &str = include_str!("openapi.json");

/// What every route may be answered with by the gate, and where the query is not readable or the database is busy.
const ANYWHERE: [(&str, &str); 5] = [
    ("400", "BadRequest"),
    ("408", "Timeout"),
    ("413", "BodyTooLarge"),
    ("431", "HeadTooLarge"),
    ("503", "Unavailable"),
];
/// Where somebody has to log in.
const GUARDED: [(&str, &str); 2] = [("401", "Unauthorized"), ("429", "TooManyFailures")];
/// Where the rules against other sites, or what a viewer may do, are in the way.
const FORBIDDEN: [(&str, &str); 1] = [("403", "Forbidden")];

/// GET `/api/openapi.json`.
pub fn openapi(call: &Call<'_>) -> Result<Answer, Failure> {
    let document = document(&call.context.settings);
    let document = document.map_err(|error| Failure::new(500, "internal", format!("the document: {error}")))?;
    Ok(Answer::json(&document))
}

/// The document, true for these settings.
fn document(settings: &Settings) -> Result<Value, serde_json::Error> {
    let mut document: Value = serde_json::from_str(DOCUMENT)?;
    document["info"]["version"] = json!(env!("CARGO_PKG_VERSION"));
    if let Some(url) = &settings.public_url {
        document["servers"] = json!([{ "url": url.to_string() }]);
    }
    if let Some(paths) = document["paths"].as_object_mut() {
        add_routes_by_name(paths);
    }
    for (method, pattern, access) in routes::served() {
        if let Some(operation) = document["paths"].get_mut(pattern).and_then(|path| path.get_mut(verb(method))) {
            complete(operation, method, access, settings);
        }
    }
    Ok(document)
}

/// What a path calls a method.
fn verb(method: Method) -> &'static str {
    match method {
        Method::Get => "get",
        Method::Post => "post",
        Method::Options => "options",
        Method::Other => "",
    }
}

fn add_routes_by_name(paths: &mut Map<String, Value>) {
    let [by_id, by_name] = routes::REPOSITORY_PREFIXES;
    let mut added = Map::new();
    for (path, item) in paths.iter() {
        let Some(rest) = path.strip_prefix(by_id) else { continue };
        let mut item = item.clone();
        item["parameters"] = json!([reference("parameters", "Project"), reference("parameters", "RepositoryName")]);
        for id in item.as_object_mut().into_iter().flatten().filter_map(|(_, part)| part.get_mut("operationId")) {
            *id = json!(format!("{}ByName", id.as_str().unwrap_or_default()));
        }
        added.insert(format!("{by_name}{rest}"), item);
    }
    paths.extend(added);
}

/// Adds who may ask, and the errors that are not of the route's own making.
fn complete(operation: &mut Value, method: Method, access: Access, settings: &Settings) {
    let is_guarded = access > Access::of_everybody(settings);
    operation["security"] = if is_guarded { json!([{ "basic": [] }, { "key": [] }]) } else { json!([]) };
    // While nobody has to log in, the host has to be one that no page on the web can name. A webhook's signature is all
    // that is asked of it.
    let is_webhook = method.writes() && access == Access::Open;
    let may_be_forbidden = !is_webhook && (settings.auth.is_none() || method.writes() || access == Access::Full);
    let guarded = GUARDED.iter().filter(|_| is_guarded);
    let forbidden = FORBIDDEN.iter().filter(|_| may_be_forbidden);
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    for (status, name) in ANYWHERE.iter().chain(guarded).chain(forbidden) {
        responses.entry(*status).or_insert_with(|| reference("responses", name));
    }
}

fn reference(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::Environment;

    fn served(settings: &[(&'static str, &str)]) -> Value {
        let pairs = settings.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let (settings, _) = Settings::from_environment(&Environment::from_pairs(pairs)).unwrap();
        document(&settings).unwrap()
    }

    const GUARD: [(&str, &str); 2] = [("Shiparr_AUTH_ENABLED", "true"), ("Shiparr_AUTH_PASSWORD", "open sesame")];

    #[test]
    fn the_document_has_the_routes_that_are_served_and_no_others() {
        let document = served(&[]);
        let mut documented = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys().filter(|key| *key != "parameters") {
                documented.insert(format!("{method} {path}"));
            }
        }
        let table: BTreeSet<String> =
            routes::served().map(|(method, pattern, _)| format!("{} {pattern}", verb(method))).collect();
        assert_eq!(documented, table);
    }

    #[test]
    fn what_is_referred_to_is_there_and_nothing_else_is() {
        let document = served(&GUARD);
        let mut referred = BTreeSet::new();
        collect_references(&document, &mut referred);
        let mut defined = BTreeSet::new();
        for (kind, parts) in document["components"].as_object().unwrap() {
            let parts = parts.as_object().unwrap().keys().filter(|_| kind != "securitySchemes");
            defined.extend(parts.map(|name| format!("#/components/{kind}/{name}")));
        }
        assert_eq!(referred, defined);
    }

    fn collect_references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(fields) => {
                found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
                fields.values().for_each(|value| collect_references(value, found));
            }
            Value::Array(items) => items.iter().for_each(|item| collect_references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_path_has_the_parameters_that_it_names_and_every_operation_an_id_of_its_own() {
        let document = served(&[]);
        let mut ids = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            let named = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
            let parameters = item["parameters"].as_array().into_iter().flatten().map(|parameter| {
                let pointer = parameter["$ref"].as_str().map(|reference| reference.trim_start_matches('#'));
                let parameter = pointer.map_or(parameter, |pointer| document.pointer(pointer).unwrap());
                parameter["name"].as_str().unwrap()
            });
            assert!(named.eq(parameters), "{path}");
            for operation in item.as_object().unwrap().values().filter(|part| part.is_object()) {
                assert!(ids.insert(operation["operationId"].to_string()), "{path}: {operation}");
            }
        }
        assert!(ids.contains("\"deployByName\""));
    }

    #[test]
    fn the_settings_show() {
        let open = served(&[]);
        assert_eq!((&open["info"]["version"], &open["servers"]), (&json!(env!("CARGO_PKG_VERSION")), &Value::Null));
        let operation = |document: &Value, path: &str, method: &str| document["paths"][path][method].clone();
        let deploy = operation(&open, "/api/repositories/{id}/deploy", "post");
        assert_eq!((&deploy["security"], &deploy["responses"]["401"]), (&json!([]), &Value::Null));
        assert!(operation(&open, "/api/health", "get")["responses"]["403"].is_object());

        let guarded = served(&[GUARD[0], GUARD[1], ("Shiparr_PUBLIC_URL", "https://nas.example.com/shiparr")]);
        assert_eq!(guarded["servers"], json!([{ "url": "https://nas.example.com/shiparr" }]));
        let asked = json!([{ "basic": [] }, { "key": [] }]);
        for (path, method, security, has_429, has_403) in [
            ("/api/health", "get", json!([]), false, false),
            ("/api/deployments", "get", asked.clone(), true, false),
            ("/containers/{id}/logs", "get", asked.clone(), true, true),
            ("/api/projects/{project}/repositories/{name}/deploy", "post", asked.clone(), true, true),
            ("/webhook/{provider}", "post", json!([]), false, false),
            ("/widget/dashy", "get", asked, true, false),
            ("/widget/dashy", "options", json!([]), false, false),
        ] {
            let operation = operation(&guarded, path, method);
            let has = |status: &str| operation["responses"].get(status).is_some();
            assert_eq!(operation["security"], security, "{method} {path}");
            assert_eq!((has("429"), has("403"), has("431")), (has_429, has_403, true), "{method} {path}");
        }
        let public = served(&[GUARD[0], GUARD[1], ("Shiparr_WIDGET_PUBLIC", "true")]);
        assert_eq!(operation(&public, "/widget/dashy", "get")["security"], json!([]));
    }
}
