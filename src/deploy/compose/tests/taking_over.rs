//! Stacks that somebody started by hand, as people do: in the stack's folder, with `docker compose up -d`.

use std::collections::BTreeSet;

use super::*;
use crate::config::Catalog;
use crate::deploy::takeover::tests::record;
use crate::deploy::takeover::{self, Judgement, Situation};

const LONG: &str = "image: 'shiparr-test/busybox:1', command: sleep 1000, init: true, stop_grace_period: 1s";

impl Lab {
    /// Moves the stack into a folder of its own that is called after the project, as Compose expects it.
    fn in_folder_of_its_name(&mut self) {
        let folder = self.folder.path().join(&self.stack.default_project);
        std::fs::create_dir(&folder).unwrap();
        std::fs::rename(self.folder.path().join("compose.yaml"), folder.join("compose.yaml")).unwrap();
        self.stack.root.clone_from(&folder);
        self.stack.folder = folder;
    }

    /// Writes a file of the stack.
    fn put(&self, name: &str, text: &str) {
        std::fs::write(self.stack.folder.join(name), text).unwrap();
    }

    fn by_hand(&self, folder: &Path, args: &[&str]) {
        let limit = Limit::after(LIMIT);
        let command = self.compose.client.compose(&|_| false, None, &limit).args(args).folder(folder);
        let captured = command.capture(&limit, 1 << 20).unwrap();
        assert!(captured.status.success(), "{args:?}: {}", captured.stderr);
    }

    fn check(&mut self, memory: Option<&Plan>, accepted: &BTreeSet<String>) -> Result<(Plan, Judgement), StepError> {
        let limit = Limit::after(LIMIT);
        let plan = self.plan()?;
        let survey = self.compose.survey(&limit)?;
        let mut own = record("web");
        own.compose_project = memory.map(|plan| plan.project.clone());
        own.up_folder = memory.map(|_| self.stack.folder.display().to_string());
        own.brought_up_services = memory.map(|plan| plan.services.keys().cloned().collect()).unwrap_or_default();
        own.brought_up_volumes = memory.map(|plan| plan.volumes.clone()).unwrap_or_default();
        own.accepted.clone_from(accepted);
        let situation = Situation {
            stack: &self.stack,
            plan: &plan,
            survey: &survey,
            own: &own,
            records: std::slice::from_ref(&own),
            catalog: &Catalog::default(),
            home: Some(Path::new("/nowhere/daemon")),
        };
        let judgement = takeover::check(&situation, &self.compose, &limit)?;
        Ok((plan, judgement))
    }

    fn first_check(&mut self) -> Result<(Plan, Judgement), StepError> {
        self.check(None, &BTreeSet::new())
    }

    fn refused(&mut self, expected: &[&str]) {
        let before = self.ids();
        let error = self.first_check().expect_err("it is refused");
        for part in expected {
            assert!(error.message.contains(part), "`{part}` is not in: {error}");
        }
        assert_eq!(self.ids(), before);
    }

    fn bring_up_as(&mut self, plan: &Plan, judgement: &Judgement) {
        let how = Up { remove_orphans: judgement.remove_orphans, recreate: judgement.recreate.clone() };
        let result = self.compose.up(&self.stack, plan, &how, &Limit::after(LIMIT), &mut self.log);
        assert!(result.is_ok(), "{}", self.log.text());
    }

    /// The ids of both projects' containers.
    fn ids(&self) -> BTreeSet<String> {
        let filter = |project: &str| format!("label=com.docker.compose.project={project}");
        [self.stack.default_project.clone(), self.other_project()]
            .iter()
            .flat_map(|project| {
                let listed = self.docker(&["ps", "-aq", "--no-trunc", "--filter", &filter(project)]);
                listed.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
            })
            .collect()
    }
}

/// With all that can make a configuration another one when it is asked for in another way.
fn a_full_stack(lab: &Lab) -> &'static str {
    for (name, text) in [
        ("compose.override.yaml", "services: {web: {environment: {OVERRIDDEN: here}, labels: [x=y]}}\n"),
        ("web.env", "FROM_FILE=1\n"),
        (".env", "FROM_DOTENV='pa$word'\nPASSED=through\n"),
        ("key.txt", "key"),
        ("app.conf", "conf"),
        ("base.yaml", &format!("services: {{base: {{{LONG}, volumes: ['./base:/base']}}}}\n")),
        ("included.yaml", &format!("services: {{cache: {{{LONG}, env_file: [web.env]}}}}\n")),
        ("Dockerfile", "FROM shiparr-test/busybox:1\nRUN echo built > /built\n"),
    ] {
        lab.put(name, text);
    }
    "include: [included.yaml]\n\
     services:\n  \
       web:\n    image: shiparr-test/busybox:1\n    command: sleep 1000\n    init: true\n    \
         container_name: ${COMPOSE_PROJECT_NAME}-named\n    env_file: [{path: web.env}, {path: absent.env, required: false}]\n    \
         environment: [PASSED, 'DOLLAR=${FROM_DOTENV}']\n    \
         volumes: ['./data:/data', '${PWD}/more:/more', 'named:/named', './app.conf:/app.conf:ro', '/anonymous']\n    \
         secrets: [key, passed]\n    configs: [app]\n    networks: [default, back]\n    ports: ['127.0.0.1::80']\n    \
         depends_on: {db: {condition: service_healthy}}\n  \
       db:\n    image: shiparr-test/busybox:1\n    command: sleep 1000\n    init: true\n    env_file: .env\n    \
         networks: {back: {aliases: [database]}}\n    healthcheck: {test: 'true', interval: 300ms}\n    \
         deploy: {replicas: 2, resources: {limits: {memory: 64m}}}\n  \
       extended: {extends: {file: base.yaml, service: base}}\n  \
       built: {build: ., command: sleep 1000, init: true}\n  \
       debug: {image: 'shiparr-test/busybox:1', command: sleep 1000, init: true, profiles: [debug]}\n\
     networks: {back: {}}\nvolumes: {named: {}}\n\
     secrets: {key: {file: ./key.txt}, passed: {environment: PASSED}}\nconfigs: {app: {file: ./app.conf}}\n"
}

#[test]
fn a_stack_that_is_taken_over_keeps_every_container() {
    Lab::run("", |lab| {
        lab.in_folder_of_its_name();
        let yaml = a_full_stack(lab);
        lab.put("compose.yaml", yaml);
        lab.by_hand(&lab.stack.folder, &["--profile", "debug", "up", "-d"]);
        let before = lab.ids();
        assert_eq!(before.len(), 7);
        lab.set(&[("FROM_DOTENV", "pa$word"), ("PASSED", "through")]);
        // What runs in an inactive profile is no orphan.
        let (plan, judgement) = lab.first_check().unwrap();
        assert_eq!(judgement, Judgement { remove_orphans: true, ..Judgement::default() });
        assert_eq!(plan.container_names.len(), 1);
        assert_eq!(plan.volumes, BTreeSet::from([format!("{}_named", plan.project)]));
        let folder = lab.stack.folder.clone();
        let mounts: Vec<_> = plan.mounts.iter().map(|mount| (mount.service.as_str(), mount.source.clone())).collect();
        let web = ["app.conf", "data", "key.txt", "more"].map(|name| ("web", folder.join(name)));
        assert_eq!(mounts, [&[("extended", folder.join("base"))][..], &web].concat());
        lab.bring_up_as(&plan, &judgement);
        assert_eq!(lab.ids(), before, "{}", lab.log.text());
        // So it does when the profile is chosen.
        lab.stack.profiles = vec!["debug".to_owned()];
        let (plan, judgement) = lab.check(Some(&plan), &BTreeSet::new()).unwrap();
        lab.bring_up_as(&plan, &judgement);
        assert_eq!(lab.ids(), before, "{}", lab.log.text());
    });
}

#[test]
fn a_stack_started_under_another_name_goes_on_under_it() {
    let yaml = format!("services: {{a: {{{LONG}, volumes: ['data:/data']}}}}\nvolumes: {{data: {{}}}}\n");
    Lab::run(&yaml, |lab| {
        let other = lab.other_project();
        lab.by_hand(&lab.stack.folder, &["-p", &other, "up", "-d"]);
        lab.refused(&[&format!("write `compose_project: {other}` for home/web")]);
        let before = lab.ids();
        lab.stack.project = Some(other);
        let (plan, judgement) = lab.first_check().unwrap();
        assert_eq!(judgement, Judgement { remove_orphans: true, ..Judgement::default() });
        lab.bring_up_as(&plan, &judgement);
        assert_eq!(lab.ids(), before);
        // From then on it may not become another one, because of the data if there is nothing else.
        lab.by_hand(&lab.stack.folder, &["-p", &plan.project, "down"]);
        lab.stack.project = None;
        let error = lab.check(Some(&plan), &BTreeSet::new()).unwrap_err();
        assert!(error.message.contains(&format!("volumes {}_data", plan.project)), "{error}");
    });
}

#[test]
fn two_folders_of_one_name_do_not_take_each_other_over() {
    Lab::run(&format!("services: {{a: {{{LONG}}}, mine: {{{LONG}}}}}"), |lab| {
        lab.in_folder_of_its_name();
        let project = lab.stack.default_project.clone();
        let theirs = lab.folder.path().join("theirs").join(&project);
        std::fs::create_dir_all(&theirs).unwrap();
        std::fs::write(theirs.join("compose.yaml"), format!("services: {{a: {{{LONG}}}, other: {{{LONG}}}}}")).unwrap();
        lab.by_hand(&theirs, &["up", "-d"]);
        let before = lab.ids();
        lab.refused(&[theirs.to_str().unwrap(), "`compose_project: web` for home/web", "--adopt"]);
        // Meant: this stack's services are made anew from here, and the others are left alone.
        lab.stack.asked.adopt = true;
        let (plan, judgement) = lab.first_check().unwrap();
        assert!(!judgement.remove_orphans);
        assert_eq!(judgement.recreate, BTreeSet::from(["a".to_owned()]));
        lab.bring_up_as(&plan, &judgement);
        let other = lab.docker(&["ps", "-q", "--no-trunc", "--filter", &format!("name={project}-other-1")]);
        assert!(before.contains(&other), "{}", lab.log.text());
        let after = lab.ids();
        assert_eq!((after.len(), after.intersection(&before).count()), (3, 1), "{}", lab.log.text());
        lab.stack.asked.adopt = false;
        let (_, later) = lab.check(Some(&plan), &judgement.accepted).unwrap();
        assert!(!later.remove_orphans && later.recreate.is_empty(), "{later:?}");
    });
}

#[test]
fn what_nobody_of_us_made_is_not_removed() {
    let yaml = format!("services: {{a: {{{LONG}}}, extra: {{{LONG}}}}}");
    Lab::run(&yaml, |lab| {
        lab.in_folder_of_its_name();
        lab.by_hand(&lab.stack.folder, &["up", "-d"]);
        lab.by_hand(&lab.stack.folder, &["run", "-T", "extra", "true"]);
        lab.by_hand(&lab.stack.folder, &["run", "-d", "-T", "extra", "sleep", "1000"]);
        lab.put("compose.yaml", &format!("services: {{a: {{{LONG}}}}}"));
        lab.refused(&["extra-1)", "--remove-orphans"]);
        lab.stack.asked.adopt = true;
        let (plan, judgement) = lab.first_check().unwrap();
        let before = lab.ids();
        lab.bring_up_as(&plan, &judgement);
        assert_eq!((before.len(), lab.ids()), (4, before), "{}", lab.log.text());
        // One-offs alone refuse nothing, and stay as well.
        lab.docker(&["rm", "-f", &format!("{}-extra-1", plan.project)]);
        lab.stack.asked.adopt = false;
        let (plan, judgement) = lab.check(Some(&plan), &BTreeSet::new()).unwrap();
        assert_eq!((judgement.remove_orphans, judgement.notes.len()), (false, 1), "{judgement:?}");
        let before = lab.ids();
        lab.bring_up_as(&plan, &judgement);
        assert_eq!((before.len(), lab.ids()), (3, before));
    });
}

#[test]
fn what_an_env_file_says_of_orphans_is_not_followed() {
    let yaml = format!("services: {{a: {{{LONG}}}, extra: {{{LONG}}}}}");
    Lab::run(&yaml, |lab| {
        lab.in_folder_of_its_name();
        lab.by_hand(&lab.stack.folder, &["up", "-d"]);
        let before = lab.ids();
        lab.put("compose.yaml", &format!("services: {{a: {{{LONG}}}}}"));
        let plan = lab.plan().unwrap();
        for (name, remove_orphans, left) in [("COMPOSE_REMOVE_ORPHANS", false, 2), ("COMPOSE_IGNORE_ORPHANS", true, 1)]
        {
            lab.set(&[(name, "true")]);
            lab.bring_up_as(&plan, &Judgement { remove_orphans, ..Judgement::default() });
            let after = lab.ids();
            assert!(after.len() == left && after.is_subset(&before), "{name}: {}", lab.log.text());
        }
    });
}

#[test]
fn a_home_folder_may_be_named_for_the_stack() {
    let yaml = format!("services: {{a: {{{LONG}, volumes: ['~/one:/one', '${{HOME}}/two:/two']}}}}");
    for mut environment in Lab::environments() {
        environment.retain(|(name, _)| name != "HOME");
        let mut lab = Lab::new(environment, &yaml);
        let error = lab.plan().unwrap_err().message;
        assert!(error.contains("variables that nobody sets: HOME;"), "{error}");
        lab.set(&[("HOME", "/nowhere/ada")]);
        let sources: Vec<PathBuf> = lab.plan().unwrap().mounts.into_iter().map(|mount| mount.source).collect();
        assert_eq!(sources, ["/nowhere/ada/one", "/nowhere/ada/two"].map(PathBuf::from));
    }
}

#[test]
fn volumes_tell_whose_they_are() {
    let yaml = |name: &str| {
        format!("services: {{a: {{{LONG}, volumes: ['data:/data']}}}}\nvolumes: {{data: {{name: {name}}}}}\n")
    };
    Lab::run("", |lab| {
        let (theirs, plain) =
            (format!("{}-theirs", lab.stack.default_project), format!("{}-plain", lab.stack.default_project));
        let limit = Limit::after(LIMIT);
        let names = BTreeSet::from([theirs.clone(), plain.clone(), "shiparr-test-absent".to_owned()]);
        assert_eq!(lab.compose.owners_of_volumes(&names, &limit).unwrap(), BTreeMap::new());
        let label = format!("com.docker.compose.project={}", lab.other_project());
        lab.docker(&["volume", "create", "--label", &label, &theirs]);
        lab.docker(&["volume", "create", &plain]);
        let owners = lab.compose.owners_of_volumes(&names, &limit).unwrap();
        assert_eq!(owners, BTreeMap::from([(theirs.clone(), Some(lab.other_project())), (plain.clone(), None)]));
        lab.put("compose.yaml", &yaml(&theirs));
        lab.refused(&[&format!("volume {theirs} was made for compose project `{}`", lab.other_project())]);
        lab.put("compose.yaml", &yaml(&plain));
        let judged = lab.first_check();
        lab.docker(&["volume", "rm", &plain]);
        assert_eq!(judged.unwrap().1.notes, [format!("not made by Compose, and used: volume {plain}")]);
    });
}

#[test]
fn a_name_that_another_container_has_is_refused_before_anything_changes() {
    Lab::run("", |lab| {
        let name = format!("{}-taken", lab.stack.default_project);
        lab.put("compose.yaml", &format!("services: {{a: {{{LONG}, container_name: {name}}}}}"));
        // A label alone makes no container of a compose project.
        let label = format!("com.docker.compose.project={}", lab.stack.default_project);
        lab.docker(&["create", "--name", &name, "--label", &label, "shiparr-test/busybox:1"]);
        lab.refused(&[&format!("`container_name: {name}` of service a"), "of no compose project"]);
        lab.docker(&["rm", &name]);
        lab.by_hand(&lab.stack.folder, &["-p", &lab.stack.default_project, "up", "-d"]);
        lab.first_check().unwrap();
    });
}
