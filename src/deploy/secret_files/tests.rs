//! With the real sops, age, Docker and Compose.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;

use super::*;
use crate::command::Command;
use crate::deploy::testing::{LIMIT, Lab};
use crate::deploy::{Log, Stack, variables};
use crate::model::{Asked, LogLevel};
use crate::secrets::RuntimeFolder;

const KEY: [u8; 32] = [7; 32];

fn limit() -> Limit {
    Limit::after(LIMIT)
}

fn lab_with(files: &[&str]) -> Lab {
    let mut lab = Lab::new("");
    name(&mut lab, files);
    lab
}

fn name(lab: &mut Lab, files: &[&str]) {
    lab.repository.secret_files = files.iter().map(PathBuf::from).collect();
}

fn prepared(lab: &Lab) -> Result<SecretFiles, StepError> {
    prepare(&lab.repository, &lab.path(""), &lab.settings, &KEY, &limit(), &mut lab.journal())
}

/// Steps 2 and 3, with the mounts of a plan.
fn accepted(lab: &Lab, plan: &Plan) -> Result<SecretFiles, StepError> {
    let (_, plaintext) =
        variables::gather(&lab.repository, &lab.path(""), &lab.settings, "7", &limit(), &mut lab.journal())?;
    let files = prepared(lab)?;
    files.refuse(plan, &plaintext)?;
    Ok(files)
}

fn plan(mounts: &[(&str, PathBuf)]) -> Plan {
    let mount = |(service, source): &(&str, PathBuf)| Mount { service: (*service).to_owned(), source: source.clone() };
    Plan { mounts: mounts.iter().map(mount).collect(), ..Plan::default() }
}

/// A deployment with this plan that ends well; the services whose containers are to be made anew.
fn deployed(lab: &Lab, plan: &Plan) -> Vec<String> {
    let switched = accepted(lab, plan).unwrap().switch(plan).unwrap();
    switched.up_has_ended();
    switched.remove_unnamed().unwrap();
    switched.recreate().iter().cloned().collect()
}

fn is_there(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

#[test]
fn a_service_is_a_mounter_by_link_by_plaintext_and_by_what_leads_there() {
    let lab = lab_with(&["tls.key.enc", "./tls.key.enc", "sub/other.enc"]);
    std::fs::create_dir(lab.path("sub")).unwrap();
    lab.write_encrypted("tls.key.enc", "binary", "one");
    lab.write_encrypted("sub/other.enc", "binary", "two");
    symlink(lab.folder.path().join("tree"), lab.folder.path().join("linked")).unwrap();
    let link = lab.path("tls.key");
    deployed(&lab, &Plan::default());
    symlink("tls.key", lab.path("alias")).unwrap();
    let plan = plan(&[
        ("direct", link.clone()),
        ("around", lab.folder.path().join("linked/stack/tls.key")),
        ("alias", lab.path("alias")),
        ("target", std::fs::read_link(&link).unwrap()),
        ("other", lab.path("sub/other")),
        ("folder", lab.path("")),
    ]);
    assert_eq!(deployed(&lab, &plan), [""; 0]);
    lab.write_encrypted("tls.key.enc", "binary", "rotated");
    assert_eq!(deployed(&lab, &plan), ["alias", "around", "direct", "target"]);
}

#[test]
fn a_deployment_whose_up_did_not_end_well_makes_the_next_one_start_over() {
    let lab = lab_with(&["tls.key.enc"]);
    lab.write_encrypted("tls.key.enc", "binary", "one");
    let plan = plan(&[("web", lab.path("tls.key"))]);
    deployed(&lab, &plan);
    lab.write_encrypted("tls.key.enc", "binary", "two");
    drop(accepted(&lab, &plan).unwrap());
    assert_eq!(std::fs::read_to_string(lab.path("tls.key")).unwrap(), "one", "nothing was switched");
    accepted(&lab, &plan).unwrap().switch(&plan).unwrap();
    assert_eq!(std::fs::read_to_string(lab.path("tls.key")).unwrap(), "two");
    lab.write_encrypted("tls.key.enc", "binary", "one");
    assert_eq!(deployed(&lab, &plan), ["web"], "the branch was put back, and containers may have the other content");
    assert_eq!(deployed(&lab, &plan), [""; 0]);
}

#[test]
fn the_journal_hides_what_stands_in_text() {
    let lab = lab_with(&["config.sops.yaml", "app.env.enc", "blob.enc"]);
    lab.write_encrypted("config.sops.yaml", "yaml", "db:\n    password: \"correct horse\"\n");
    lab.write_encrypted("app.env.enc", "dotenv", "TOKEN=battery-staple\n");
    lab.write_encrypted("blob.enc", "binary", "-----BEGIN KEY-----\nMIIEvQIBADAN\n");
    let mut journal = lab.journal();
    let prepared = prepare(&lab.repository, &lab.path(""), &lab.settings, &KEY, &limit(), &mut journal).unwrap();
    journal.line(LogLevel::Info, "with correct horse, battery-staple and MIIEvQIBADAN");
    assert_eq!(lab.log(), "with ***, *** and ***\n");
    prepared.switch(&Plan::default()).unwrap();
    assert_eq!(std::fs::read_to_string(lab.path("config.yaml")).unwrap(), "db:\n    password: correct horse\n");
    assert_eq!(std::fs::read_to_string(lab.path("app.env")).unwrap(), "TOKEN=battery-staple\n");
}

#[test]
fn two_files_do_not_share_a_name() {
    let lab = lab_with(&["a.enc", "a.sops"]);
    lab.write_encrypted("a.enc", "binary", "one");
    lab.write_encrypted("a.sops", "binary", "two");
    let error = prepared(&lab).err().unwrap();
    assert!(error.message.contains("a.enc and ") && error.message.contains("rename one of them"), "{error}");
}

#[test]
fn a_mount_of_what_goes_or_is_encrypted_is_refused_with_the_line_to_write() {
    let mut lab = Lab::new("env_file: .env.enc");
    std::fs::create_dir(lab.path("sub")).unwrap();
    lab.write_encrypted(".env.enc", "dotenv", "A=1\n");
    lab.write_encrypted("sub/tls.key.enc", "binary", "one");
    lab.write_encrypted("app.yaml", "yaml", "a: 1\n");
    lab.write("plain", "one");
    std::fs::write(lab.folder.path().join("outside.enc"), std::fs::read(lab.path("app.yaml")).unwrap()).unwrap();
    let refused =
        |lab: &Lab, source: PathBuf| accepted(lab, &plan(&[("web", source)])).err().map(|error| error.message);
    let message = refused(&lab, lab.path(".env")).unwrap();
    assert!(
        message.contains("service `web` mounts ") && message.contains("write `secret_files: [.env.enc]`"),
        "{message}"
    );
    let message = refused(&lab, lab.path("sub/tls.key.enc")).unwrap();
    assert!(message.contains("`secret_files: [sub/tls.key.enc]`, and mount ./sub/tls.key instead"), "{message}");
    let message = refused(&lab, lab.path("app.yaml")).unwrap();
    assert!(message.contains("rename it to app.yaml.enc, write `secret_files: [app.yaml.enc]`"), "{message}");
    for fine in ["plain", "absent", "sub", "../../outside.enc", "sub/tls.key"] {
        assert_eq!(refused(&lab, lab.path(fine)), None, "{fine}");
    }

    name(&mut lab, &[".env.enc", "sub/tls.key.enc"]);
    assert_eq!(refused(&lab, lab.path(".env")), None, "its link stays now");
    let message = refused(&lab, lab.path("sub/tls.key.enc")).unwrap();
    assert!(message.contains("mount ./sub/tls.key, its decrypted form"), "{message}");
    deployed(&lab, &plan(&[("web", lab.path("sub/tls.key"))]));
    name(&mut lab, &[".env.enc"]);
    let message = refused(&lab, lab.path("sub/tls.key")).unwrap();
    assert!(message.contains("does not name it any more: write `secret_files: [sub/tls.key.enc]`"), "{message}");
}

#[test]
fn variables_of_a_secret_file_are_those_of_this_commit() {
    let mut lab = Lab::new("env_file: .env.enc");
    name(&mut lab, &[".env.enc"]);
    let value = |lab: &Lab| {
        let gathered =
            variables::gather(&lab.repository, &lab.path(""), &lab.settings, "7", &limit(), &mut lab.journal());
        gathered.unwrap().0.all.get("A").map(|value| value.expose().to_owned())
    };
    lab.write_encrypted(".env.enc", "dotenv", "A=1\n");
    deployed(&lab, &Plan::default());
    lab.write_encrypted(".env.enc", "dotenv", "A=2\n");
    assert_eq!(value(&lab).as_deref(), Some("2"));
    assert!(is_there(&lab.path(".env")) && !lab.log().contains("stays as it is"), "{}", lab.log());
    // Without `env_file` it is still the stack's own `.env`.
    let env_files = std::mem::take(&mut lab.repository.env_files);
    assert_eq!(value(&lab).as_deref(), Some("2"));
    // An `env_file` alone again: this time its link is the lasting one still, with this commit's content.
    name(&mut lab, &[]);
    assert_eq!(value(&lab), None);
    lab.repository.env_files = env_files;
    let switched = accepted(&lab, &Plan::default()).unwrap().switch(&Plan::default()).unwrap();
    assert_eq!(std::fs::read_to_string(lab.path(".env")).unwrap(), "A=2\n");
    switched.remove_unnamed().unwrap();
    assert!(!is_there(&lab.path(".env")));
}

#[test]
fn a_stack_without_secret_files_leaves_no_trace() {
    let lab = lab_with(&[]);
    assert_eq!(deployed(&lab, &Plan::default()), [""; 0]);
    assert!(restore(&lab.settings, &KEY, &limit()).problems.is_empty());
    for folder in [&lab.settings.runtime_path, &lab.settings.data_path] {
        assert!(!folder.join("secret-files").exists());
    }
}

#[test]
fn what_a_repository_has_that_nobody_knows_goes() {
    let lab = lab_with(&["tls.key.enc"]);
    lab.write_encrypted("tls.key.enc", "binary", "one");
    deployed(&lab, &Plan::default());
    assert!(forget_unknown(std::slice::from_ref(&lab.repository.name), &lab.settings, &KEY).is_empty());
    assert!(lab.path("tls.key").exists());
    assert!(forget_unknown(&[], &lab.settings, &KEY).is_empty());
    assert!(!is_there(&lab.path("tls.key")));
}

const COMPOSE_FILE: &str = r#"
x-service: &service
  image: shiparr-test/busybox:1
  command: [sleep, "600"]
  user: "1000"
  stop_grace_period: 0s
services:
  bound: {<<: *service, volumes: ["./tls.key:/secret:ro"]}
  given: {<<: *service, secrets: [{source: s, target: /secret}]}
  set: {<<: *service, configs: [{source: c, target: /secret}]}
secrets: {s: {file: certs/db.txt}}
configs: {c: {file: ./app.yaml}}
"#;

/// A stack on Docker; its containers and networks go with it.
struct Docker<'a> {
    lab: &'a Lab,
    project: String,
}

impl Docker<'_> {
    fn run(&self, args: &[&str]) -> Result<String, String> {
        let command = Command::new("docker", &self.lab.children).args(args).folder(self.lab.path(""));
        let ran = command.capture(&limit(), 1 << 20).unwrap();
        let text = String::from_utf8(ran.stdout).unwrap();
        if ran.status.success() { Ok(text) } else { Err(ran.stderr) }
    }

    fn compose(&self, args: &[&str]) {
        self.run(&[&["compose", "-p", &self.project], args].concat()).unwrap();
    }

    fn plan(&self) -> Plan {
        let stack = Stack {
            root: self.lab.repository.local_path.clone(),
            folder: self.lab.path(""),
            files: Vec::new(),
            project: Some(self.project.clone()),
            default_project: self.project.clone(),
            profiles: Vec::new(),
            variables_file: None,
            variables: BTreeMap::new(),
            unset_variables: self.lab.repository.unset_variables,
            build: self.lab.repository.build,
            pull: self.lab.repository.pull,
            asked: Asked::default(),
        };
        crate::deploy::driver(&self.lab.settings).plan(&stack, &limit(), &mut self.lab.journal()).unwrap()
    }

    fn container(&self, service: &str) -> String {
        format!("{}-{service}-1", self.project)
    }

    fn secret(&self, service: &str) -> String {
        self.run(&["exec", &self.container(service), "cat", "/secret"]).unwrap()
    }

    fn id(&self, service: &str) -> String {
        self.run(&["inspect", "--format", "{{.Id}}", &self.container(service)]).unwrap()
    }

    fn restart(&self) -> Result<String, String> {
        let all = ["bound", "given", "set"].map(|service| self.container(service));
        self.run(&["restart", "-t", "0", &all[0], &all[1], &all[2]])
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        for service in ["bound", "given", "set"] {
            let _ = self.run(&["rm", "-f", &self.container(service)]);
        }
        let _ = self.run(&["network", "rm", &format!("{}_default", self.project)]);
    }
}

#[test]
fn mounted_files_survive_restarts_and_reach_the_containers_that_mount_them() {
    let mut lab = lab_with(&["tls.key.enc", "certs/db.sops.txt", "app.sops.yaml"]);
    std::fs::create_dir(lab.path("certs")).unwrap();
    lab.write("compose.yaml", COMPOSE_FILE);
    lab.write_encrypted("tls.key.enc", "binary", "key 1");
    lab.write_encrypted("certs/db.sops.txt", "binary", "db 1");
    lab.write_encrypted("app.sops.yaml", "yaml", "app: 1\n");
    let project = format!("shiparr-secret-files-{}", std::process::id());
    let docker = Docker { lab: &lab, project: project.clone() };
    let all = |docker: &Docker<'_>| ["bound", "given", "set"].map(|service| docker.secret(service));

    let plan = docker.plan();
    assert_eq!(deployed(&lab, &plan), ["bound", "given", "set"]);
    docker.compose(&["up", "-d"]);
    assert_eq!(all(&docker), ["key 1", "db 1", "app: 1\n"], "for a user that is not root");
    assert_eq!(deployed(&lab, &plan), [""; 0]);
    docker.restart().unwrap();
    assert_eq!(RuntimeFolder::clean_leftovers(&lab.settings.runtime_path, &lab.settings.data_path, &[]), [""; 0]);
    assert!(restore(&lab.settings, &KEY, &limit()).repositories.is_empty(), "as a daemon starts");
    docker.restart().unwrap();
    assert_eq!(all(&docker), ["key 1", "db 1", "app: 1\n"]);

    let ids = ["bound", "given", "set"].map(|service| docker.id(service));
    lab.write_encrypted("tls.key.enc", "binary", "key 2");
    assert_eq!(deployed(&lab, &plan), ["bound"]);
    assert_eq!(docker.secret("bound"), "key 1", "a running container keeps what it has");
    docker.compose(&["up", "-d", "--no-deps", "--force-recreate", "bound"]);
    assert_eq!(all(&docker), ["key 2", "db 1", "app: 1\n"]);
    assert_ne!(docker.id("bound"), ids[0]);
    assert_eq!(["given", "set"].map(|service| docker.id(service)), ids[1..]);

    // A reboot: what cannot start leaves nothing in the link's place, and starts once the files are there again.
    std::fs::remove_dir_all(lab.settings.runtime_path.join("secret-files")).unwrap();
    let error = docker.restart().unwrap_err();
    assert!(error.contains("tls.key") && std::fs::read_link(lab.path("tls.key")).is_ok(), "{error}");
    let restored = restore(&lab.settings, &KEY, &limit());
    assert_eq!(restored.repositories, [lab.repository.name.clone()], "{restored:?}");
    docker.restart().unwrap();
    assert_eq!(all(&docker), ["key 2", "db 1", "app: 1\n"]);
    // By hand.
    docker.compose(&["up", "-d", "--force-recreate"]);
    assert_eq!(all(&docker), ["key 2", "db 1", "app: 1\n"]);

    drop(docker);
    lab.write("compose.yaml", "services: {bound: {image: 'shiparr-test/busybox:1', volumes: ['./tls.key:/secret']}}");
    name(&mut lab, &["tls.key.enc"]);
    let docker = Docker { lab: &lab, project };
    assert_eq!(deployed(&lab, &docker.plan()), [""; 0]);
    assert!(is_there(&lab.path("tls.key")) && !is_there(&lab.path("certs/db.txt")) && !is_there(&lab.path("app.yaml")));
    forget(&lab.repository.name, &lab.settings, &KEY).unwrap();
    assert!(!is_there(&lab.path("tls.key")));
    assert_eq!(std::fs::read_dir(lab.settings.runtime_path.join("secret-files")).unwrap().count(), 0);
}
