//! Containers for tests.
#![allow(clippy::disallowed_methods, reason = "tests read the environment that they run in")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::{StackLabels, docker};
use crate::command::Limit;
use crate::config::{Environment, Settings};

/// Containers of a compose project, made by hand; they go when this is dropped.
pub struct Lab {
    /// Those of this machine.
    pub settings: Settings,
    /// What its containers have.
    pub labels: StackLabels,
}

impl Lab {
    /// None yet.
    pub fn new() -> Lab {
        let pairs = ["PATH", "HOME"].map(|name| (name, std::env::var_os(name).unwrap_or_default()));
        let (settings, _) = Settings::from_environment(&Environment::from_pairs(pairs)).unwrap();
        static LABS: AtomicUsize = AtomicUsize::new(0);
        let number = LABS.fetch_add(1, Ordering::Relaxed);
        let project = format!("shiparr-test-logs-{}-{number}", std::process::id());
        Lab { settings, labels: StackLabels { project, folder: "/srv/a, folder".to_owned() } }
    }

    /// Runs docker; it has to succeed.
    pub fn docker(&self, args: &[&str]) -> String {
        let output =
            docker(&self.settings).args(args).capture(&Limit::after(Duration::from_secs(60)), 1 << 20).unwrap();
        assert!(output.status.success(), "{args:?}: {}", output.stderr);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs one to its end; its name.
    pub fn start(&self, service: &str, folder: &str, script: &str) -> String {
        self.run(&["run"], service, folder, script)
    }

    /// With a verb and options of Docker; its name.
    pub fn run(&self, verb: &[&str], service: &str, folder: &str, script: &str) -> String {
        let name = format!("{}-{service}", self.labels.project);
        let [project, folder, label] = [
            format!("com.docker.compose.project={}", self.labels.project),
            format!("com.docker.compose.project.working_dir={folder}"),
            format!("com.docker.compose.service={service}"),
        ];
        let image = "shiparr-test/busybox:1";
        let labels = ["--label", &project, "--label", &folder, "--label", &label];
        let common = ["--network", "none", "--name", &name];
        let args = [verb, &common[..], &labels[..], &[image, "sh", "-c", script]];
        self.docker(&args.concat());
        name
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let label = format!("label=com.docker.compose.project={}", self.labels.project);
        let ids = self.docker(&["ps", "--all", "--quiet", "--filter", &label]);
        let ids: Vec<&str> = ids.split_whitespace().collect();
        if !ids.is_empty() {
            self.docker(&[&["container", "rm", "--force"], &ids[..]].concat());
        }
    }
}
