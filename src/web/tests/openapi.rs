//! What the document says of the objects that the routes answer.

use std::collections::BTreeSet;

use super::*;

#[test]
fn the_objects_of_the_document_are_those_of_the_api() {
    let scene = Scene::new();
    scene.succeed("web");
    let document = scene.get("/api/openapi.json").json();
    let schemas = &document["components"]["schemas"];
    let keys = |object: &Value| object.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    for (name, path, pointer) in [
        ("Health", "/api/health", ""),
        ("Summary", "/api/summary", ""),
        ("ProjectInList", "/api/projects", "/0"),
        ("Project", "/api/projects/home", ""),
        ("Repository", "/api/repositories", "/0"),
        ("RepositoryHealth", "/api/projects/home/repositories/web/health", ""),
        ("Deployment", "/api/deployments", "/0"),
        ("Widgets", "/widget/dashy?project=home", ""),
        ("ListItem", "/widget/dashy/list?project=home", "/0"),
        ("Error", "/api/projects/nobody", ""),
    ] {
        let answer = scene.get(path).json();
        let schema = &schemas[name];
        assert_eq!(keys(&schema["properties"]), keys(answer.pointer(pointer).unwrap()), "{name}");
        // Health is less for whoever is not logged in.
        if name != "Health" {
            let required = schema["required"].as_array().unwrap().iter().map(|key| key.as_str().unwrap().to_owned());
            assert_eq!(required.collect::<BTreeSet<_>>(), keys(&schema["properties"]), "{name}");
        }
    }
}

#[test]
fn the_document_needs_a_login_as_what_it_tells_of_does() {
    let scene = Scene::with(&[("Shiparr_AUTH_ENABLED", "true"), ("Shiparr_AUTH_PASSWORD", "open sesame")]);
    assert_eq!(scene.get("/api/openapi.json").status, 401);
    let document = scene.ask("GET", "/api/openapi.json", &[&basic("admin", "open sesame")], "");
    assert_eq!((document.status, document.header("content-type")), (200, Some("application/json")));
    assert_eq!(document.json()["openapi"], "3.1.0");
}
