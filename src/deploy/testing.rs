//! A repository to deploy, for tests: a working tree, a real age key and a store.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::journal::Journal;
use crate::command::{Command, Limit};
use crate::config::catalog::{Accepted, Basis, Catalog};
use crate::config::{Environment, Repository, Settings, Severity};
use crate::model::{Asked, DeploymentId, Trigger};
use crate::secrets::Scrubber;
use crate::store::{ProjectSpec, RepositorySpec, Store};

/// Far more than anything here takes.
pub const LIMIT: Duration = Duration::from_secs(60);

/// A repository with a working tree, an age key and a store, all in one folder.
pub struct Lab {
    pub folder: tempfile::TempDir,
    pub settings: Settings,
    store: Arc<Store>,
    deployment: DeploymentId,
    pub repository: Repository,
    /// What programs see.
    pub children: Vec<(OsString, OsString)>,
}

impl Lab {
    /// `fields` are those of the repository, as YAML on one line.
    pub fn new(fields: &str) -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let children = Environment::of_process().for_children();
        let ran = Command::new("age-keygen", &children).args(["-o", &path("key")]).capture(&Limit::after(LIMIT), 9999);
        assert!(ran.unwrap().status.success());
        let environment = Environment::of_process().with(&Environment::from_pairs([
            ("Shiparr_CONFIG_PATH", path("projects")),
            ("Shiparr_DATA_PATH", path("data")),
            ("Shiparr_RUNTIME_PATH", path("runtime")),
            ("SOPS_AGE_KEY_FILE", path("key")),
            ("FROM_OUTSIDE", "interpolated value".to_owned()),
        ]));
        for name in ["projects", "data", "runtime", "tree/stack"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let yaml = format!(
            "project: home\nrepositories:\n  web: {{url: /nowhere, path: stack, local_path: {}, {fields}}}\n",
            path("tree")
        );
        std::fs::write(folder.path().join("projects/home.yaml"), yaml).unwrap();
        let (settings, _) = Settings::from_environment(&environment).unwrap();
        let basis = Basis {
            settings: &settings,
            previous: &Catalog::default(),
            accepted: &Accepted::default(),
            unset_names: Severity::Error,
        };
        let catalog = Catalog::load(&settings.config_path, &basis);
        let repository = catalog.repositories().next().unwrap_or_else(|| panic!("{:?}", catalog.problems)).clone();
        let (store, deployment) = queued(&settings);
        Lab { settings, store, deployment, repository, children, folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("tree/stack").join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub fn write_encrypted(&self, name: &str, kind: &str, text: &str) {
        let run = |program: &str, args: &[&str], input: &str| {
            let command = Command::new(program, &self.children).args(args).input(input);
            let ran = command.capture(&Limit::after(LIMIT), 1 << 20).unwrap();
            assert!(ran.status.success(), "{}", ran.stderr);
            String::from_utf8(ran.stdout).unwrap()
        };
        let key = self.folder.path().join("key");
        let recipient = run("age-keygen", &["-y", key.to_str().unwrap()], "");
        let kind = ["--input-type", kind, "--output-type", kind, "/dev/stdin"];
        let args = [&["-e", "--age", recipient.trim()][..], &kind].concat();
        self.write(name, &run("sops", &args, text));
    }

    pub fn journal(&self) -> Journal {
        Journal::new(Arc::clone(&self.store), self.deployment, Scrubber::new())
    }

    pub fn log(&self) -> String {
        let lines = self.store.log_lines(self.deployment, 0, 1000).unwrap();
        lines.into_iter().map(|line| line.message + "\n").collect()
    }
}

fn queued(settings: &Settings) -> (Arc<Store>, DeploymentId) {
    let store = Arc::new(Store::open(&settings.data_path, 200).unwrap());
    let repository = RepositorySpec {
        name: "web".to_owned(),
        git_url: "/nowhere".to_owned(),
        branch: "main".to_owned(),
        path: "stack".to_owned(),
        local_path: "/nowhere".to_owned(),
        check_interval_seconds: 60,
        is_manual: false,
        config_hash: String::new(),
    };
    let project = ProjectSpec {
        name: "home".to_owned(),
        description: None,
        config_file: "home.yaml".to_owned(),
        repositories: vec![repository],
    };
    let now = jiff::Timestamp::now();
    store.sync(&[project], &[], now).unwrap();
    let id = store.repositories(None).unwrap()[0].id;
    let queued = store.enqueue(id, Trigger::Api, Asked::default(), now).unwrap();
    (store, queued.deployment_id)
}
