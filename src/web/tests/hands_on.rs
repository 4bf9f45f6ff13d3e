//! What a person does to a deployment, and looks at: cancelling, what waits for somebody, the stack's containers.

use super::*;
use crate::model::Chance;

fn cancel(scene: &Scene, id: DeploymentId) -> Reply {
    scene.ask("POST", &format!("/api/deployments/{id}/cancel"), &[], "")
}

fn assert_ended(scene: &Scene, id: DeploymentId) {
    let answer = cancel(scene, id);
    assert_eq!((answer.status, &answer.json()["error"]), (409, &json!("conflict")));
    assert_eq!(answer.json()["message"], format!("deployment {id} has ended"));
}

fn can_pass() -> Outcome {
    Outcome::Failed { error: "registry away".to_owned(), chance: Chance::CanPass }
}

#[test]
fn a_pending_deployment_is_cancelled_at_once() {
    let scene = Scene::new();
    let id = scene.queue("web");
    let answer = scene.control("POST", &format!("/api/deployments/{id}/cancel"), "");
    assert_eq!(answer.status, 202, "{}", answer.body);
    assert_eq!(answer.json(), json!({ "deployment_id": id, "status": "failed" }));
    let row = scene.store.deployment(id).unwrap().unwrap();
    assert_eq!((row.ending, row.started_at), (Some(Ending::Cancelled), None));
    assert_eq!(scene.daemon.wakes.load(Ordering::SeqCst), 1, "others may have waited for it");
    assert_ended(&scene, id);
}

#[test]
fn a_running_deployment_is_told_to_end() {
    let scene = Scene::new();
    let id = scene.start_deployment("web");
    scene.daemon.running.lock().unwrap().insert(id, Box::new(|| ()));
    assert_eq!(cancel(&scene, id).json(), json!({ "deployment_id": id, "status": "running" }));

    // One that nobody runs any more, and whose outcome is not there yet.
    let answer = cancel(&scene, id);
    assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")));
    scene.store.finish(id, &Outcome::Success, Timestamp::now()).unwrap();
    assert_ended(&scene, id);
    assert_eq!(cancel(&scene, 999).status, 404);
}

#[test]
fn one_that_ends_while_it_is_told_to_is_told_with_its_outcome() {
    let scene = Scene::new();
    let id = scene.start_deployment("web");
    let store = Arc::clone(&scene.store);
    let end = move || store.finish(id, &Outcome::Success, Timestamp::now()).unwrap();
    scene.daemon.running.lock().unwrap().insert(id, Box::new(end));
    assert_eq!(cancel(&scene, id).json(), json!({ "deployment_id": id, "status": "success" }));
}

#[test]
fn an_orphans_running_deployment_can_be_cancelled() {
    let scene = Scene::new();
    let id = scene.start_deployment("media");
    scene.daemon.running.lock().unwrap().insert(id, Box::new(|| ()));
    scene.store.sync(&[spec("home", &["web"])], &[], Timestamp::now()).unwrap();
    assert_eq!(cancel(&scene, id).status, 202);
}

#[test]
fn a_retry_that_waits_is_cancelled_by_the_deployment_that_failed() {
    let scene = Scene::new();
    let id = scene.start_deployment("web");
    scene.store.finish(id, &can_pass(), Timestamp::now()).unwrap();
    assert!(scene.store.next_retry_at().unwrap().is_some());
    assert_eq!(cancel(&scene, id).json(), json!({ "deployment_id": id, "status": "failed" }));
    assert_eq!(scene.store.next_retry_at().unwrap(), None);
    assert_ended(&scene, id);
}

#[test]
fn no_cancel_is_lost_while_the_row_starts() {
    for _ in 0..50 {
        let scene = Scene::new();
        let id = scene.queue("web");
        scene.daemon.running.lock().unwrap().insert(id, Box::new(|| ()));
        let store = Arc::clone(&scene.store);
        let starting = std::thread::spawn(move || store.start(id, "1", Timestamp::now()));
        let answer = cancel(&scene, id);
        let started = starting.join().unwrap().is_ok();
        let was_told = scene.daemon.running.lock().unwrap().is_empty();
        assert_eq!((answer.status, started), (202, was_told), "{}", answer.body);
    }
}

#[test]
fn what_waits_for_somebody_is_waiting_until_something_goes_on() {
    let scene = Scene::new();
    let mut project = spec("home", &["web", "media"]);
    project.repositories.iter_mut().for_each(|repository| repository.is_manual = true);
    scene.store.sync(&[project], &[], Timestamp::now()).unwrap();
    let status = || scene.get("/api/projects/home/repositories/web").json()["status"].clone();
    assert_eq!(status(), "never_deployed");
    let found = |number: u64| {
        let begun = scene.store.check_begins(scene.id("web"));
        scene.store.check_found(begun, &format!("{number:040x}").parse().unwrap(), true, Timestamp::now()).unwrap();
    };
    found(0xaa);
    assert_eq!(status(), "waiting");
    assert_eq!(scene.get("/widget/dashy?project=home").json()["widgets"][6]["value"], "unknown");
    let id = scene.store.enqueue(scene.id("web"), Trigger::Api, Asked::default(), Timestamp::now()).unwrap();
    assert_eq!(status(), "pending");
    scene.store.start(id.deployment_id, "1", Timestamp::now()).unwrap();
    assert_eq!(status(), "running");
    let hash: CommitHash = format!("{:040x}", 0xaa).parse().unwrap();
    let commit = Commit { hash: hash.clone(), subject: "Say hello".into(), author: "Ada".into() };
    scene.store.checked_out(id.deployment_id, &commit, &hash).unwrap();
    scene.store.finish(id.deployment_id, &Outcome::Success, Timestamp::now()).unwrap();
    assert_eq!(status(), "success");
    found(0xbb);
    assert_eq!(status(), "waiting");
    assert_eq!(scene.get("/widget/dashy?project=home").json()["widgets"][6]["value"], "running");
}

#[test]
fn the_containers_of_a_stack_have_their_shape() {
    let scene = Scene::new();
    let path = "/api/projects/home/repositories/web/containers";
    assert_eq!((scene.get(path).status, scene.get(path).json()), (200, json!([])), "nothing was ever brought up");

    let folder = tempfile::tempdir().unwrap();
    let docker = folder.path().join("docker");
    let (id, other) = ("a".repeat(64), "b".repeat(64));
    let listed = |id: &str, name: &str| {
        json!({"id": id, "name": name, "project": "web", "folder": "/srv/web", "service": "app"}).to_string()
    };
    let told = |id: &str, health: Value, state: &str, started_at: &str| {
        json!({"id": id, "image": "app:1", "state": state, "health": health, "exit_code": 3, "started_at": started_at})
            .to_string()
    };
    let script = format!(
        "#!/bin/sh\ncase $1 in\nps) printf '%s\\n' '{}' '{}' ;;\ninspect) printf '%s\\n' '{}' '{}' ;;\nesac\n",
        listed(&other, "web-app-2"),
        listed(&id, "web-app-1"),
        told(&other, Value::Null, "exited", "2026-01-15T14:30:00.123456789Z"),
        told(&id, json!("healthy"), "running", "2026-01-15T14:30:00Z"),
    );
    std::fs::write(&docker, script).unwrap();
    std::fs::set_permissions(&docker, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let scene = Scene::with(&[("Shiparr_DOCKER_BIN", docker.to_str().unwrap())]);
    let deployment = scene.start_deployment("web");
    let brought_up = BroughtUp {
        compose_project: "web".into(),
        folder: "/srv/web".into(),
        services: Default::default(),
        volumes: Default::default(),
    };
    scene.store.up_begins(deployment, &brought_up).unwrap();
    let expected = json!([
        {"id": id, "name": "web-app-1", "service": "app", "image": "app:1", "state": "running", "health": "healthy",
         "exit_code": null, "started_at": "2026-01-15T14:30:00Z"},
        {"id": other, "name": "web-app-2", "service": "app", "image": "app:1", "state": "exited", "health": null,
         "exit_code": 3, "started_at": "2026-01-15T14:30:00Z"},
    ]);
    assert_eq!(scene.get(path).json(), expected);
    assert_eq!(scene.get(&format!("/api/repositories/{}/containers", scene.id("web"))).json(), expected);
    assert_eq!(scene.ask("HEAD", path, &[], "").status, 200);
}
