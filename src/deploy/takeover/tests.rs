use std::path::PathBuf;

use jiff::Timestamp;

use super::*;
use crate::config::project::{Build, Pull, UnsetVariables};
use crate::config::{Accepted, Basis, Environment, Settings, Severity};
use crate::deploy::Mount;
use crate::model::{Asked, Chance, RepositoryName};

/// Neither is there, so they are compared by their text.
const HERE: &str = "/nowhere/stacks/web";
const ELSEWHERE: &str = "/nowhere/other/web";

/// `home/web`, to be brought up as compose project `web` from [`HERE`], with services `app` and `db` and volume
/// `web_data`, on a host with nothing on it, for the first time.
struct Lab {
    stack: Stack,
    plan: Plan,
    survey: Vec<Resident>,
    own: RepositoryRecord,
    services: BTreeSet<String>,
    volumes: BTreeSet<String>,
    accepted: BTreeSet<String>,
    others: Vec<RepositoryRecord>,
    catalog: Catalog,
    answers: Answers,
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// A repository that was never deployed.
pub fn record(name: &str) -> RepositoryRecord {
    RepositoryRecord {
        id: 1,
        name: RepositoryName { project: "home".to_owned(), name: name.to_owned() },
        git_url: format!("https://git.example.com/{name}"),
        branch: "main".to_owned(),
        path: "./".to_owned(),
        local_path: format!("/nowhere/stacks/{name}"),
        check_interval_seconds: 300,
        last_commit_hash: None,
        observed_commit: None,
        checked_out_commit: None,
        last_checked_at: None,
        next_check_at: None,
        last_error: None,
        failing_since: None,
        orphaned_at: None,
        retry_at: None,
        compose_project: None,
        up_folder: None,
        brought_up_services: BTreeSet::new(),
        brought_up_volumes: BTreeSet::new(),
        accepted: BTreeSet::new(),
        waiting: false,
        is_manual: false,
        created_at: Timestamp::UNIX_EPOCH,
        last_deployment: None,
        status: None,
    }
}

/// A record of a repository that was brought up.
fn deployed(name: &str, project: &str, folder: &str) -> RepositoryRecord {
    let record = record(name);
    RepositoryRecord { compose_project: Some(project.to_owned()), up_folder: Some(folder.to_owned()), ..record }
}

fn orphaned(record: RepositoryRecord) -> RepositoryRecord {
    RepositoryRecord { orphaned_at: Some(Timestamp::UNIX_EPOCH), ..record }
}

fn container(project: &str, service: &str, folder: &str) -> Resident {
    Resident {
        id: "0123456789abcdef0123456789abcdef".to_owned(),
        name: format!("{project}-{service}-1"),
        project: Some(project.to_owned()),
        folder: Some(folder.into()),
        files: Vec::new(),
        service: Some(service.to_owned()),
        is_one_off: false,
        has_ended: false,
        mounts: BTreeSet::new(),
    }
}

fn catalog(text: &str) -> Catalog {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("home.yaml"), text).unwrap();
    let settings = Settings::from_environment(&Environment::from_pairs([("Shiparr_DATA_PATH", "/data")])).unwrap().0;
    let basis = Basis {
        settings: &settings,
        previous: &Catalog::default(),
        accepted: &Accepted::default(),
        unset_names: Severity::Error,
    };
    let catalog = Catalog::load(folder.path(), &basis);
    assert!(catalog.problems.is_empty(), "{:?}", catalog.problems);
    catalog
}

impl Lab {
    fn new() -> Lab {
        let stack = Stack {
            root: HERE.into(),
            folder: HERE.into(),
            files: Vec::new(),
            project: None,
            default_project: "web".to_owned(),
            profiles: Vec::new(),
            variables_file: None,
            variables: BTreeMap::new(),
            unset_variables: UnsetVariables::Fail,
            build: Build::Auto,
            pull: Pull::Missing,
            asked: Asked::default(),
        };
        let plan = Plan {
            project: "web".to_owned(),
            services: BTreeMap::from([("app".to_owned(), 1), ("db".to_owned(), 1)]),
            volumes: set(&["web_data"]),
            ..Plan::default()
        };
        Lab {
            stack,
            plan,
            survey: Vec::new(),
            own: record("web"),
            services: BTreeSet::new(),
            volumes: BTreeSet::new(),
            accepted: BTreeSet::new(),
            others: Vec::new(),
            catalog: Catalog::default(),
            answers: Answers::default(),
        }
    }

    /// One that was deployed before, with these containers of its own.
    fn deployed() -> Lab {
        Lab {
            own: deployed("web", "web", HERE),
            services: set(&["app", "db"]),
            volumes: set(&["web_data"]),
            survey: vec![container("web", "app", HERE), container("web", "db", HERE)],
            ..Lab::new()
        }
    }

    fn with_situation<T>(&self, act: impl FnOnce(&Situation<'_>) -> T) -> T {
        let own = RepositoryRecord {
            brought_up_services: self.services.clone(),
            brought_up_volumes: self.volumes.clone(),
            accepted: self.accepted.clone(),
            ..self.own.clone()
        };
        let records: Vec<_> = std::iter::once(&own).chain(&self.others).cloned().collect();
        act(&Situation {
            stack: &self.stack,
            plan: &self.plan,
            survey: &self.survey,
            own: &own,
            records: &records,
            catalog: &self.catalog,
            home: Some(Path::new("/var/lib/daemon")),
        })
    }

    fn unknown_volumes(&self) -> BTreeSet<String> {
        self.with_situation(|situation| situation.unknown_volumes())
    }

    fn depends_on_all_services(&self) -> bool {
        self.with_situation(|situation| situation.depends_on_all_services())
    }

    fn judge(&self) -> Result<Judgement, StepError> {
        self.with_situation(|situation| judge(situation, &self.answers))
    }

    fn goes_on(&self) -> Judgement {
        self.judge().unwrap_or_else(|error| panic!("{error}"))
    }

    /// What it is refused with; each of `expected` stands in it.
    fn refused(&self, expected: &[&str]) -> String {
        let error = self.judge().expect_err("it is refused");
        for part in expected {
            assert!(error.message.contains(part), "`{part}` is not in: {error}");
        }
        assert!(!error.message.contains('\n'), "{error}");
        error.message
    }

    /// Goes on with `--adopt`, and then, with what was accepted, without.
    fn adopt(&mut self) -> Judgement {
        self.stack.asked.adopt = true;
        let adopted = self.goes_on();
        self.stack.asked.adopt = false;
        assert!(!adopted.accepted.is_empty(), "nothing had to be accepted");
        self.accepted.extend(adopted.accepted.clone());
        let later = self.goes_on();
        assert_eq!(later.remove_orphans, adopted.remove_orphans);
        assert_eq!(later.accepted, BTreeSet::new());
        adopted
    }
}

#[test]
fn nothing_is_in_the_way_of_a_first_or_a_further_deployment() {
    for lab in [Lab::new(), Lab::deployed()] {
        let expected = Judgement { remove_orphans: true, ..Judgement::default() };
        assert_eq!(lab.goes_on(), expected);
    }
    // The same stack, started by hand.
    let lab = Lab { own: record("web"), services: BTreeSet::new(), volumes: BTreeSet::new(), ..Lab::deployed() };
    assert_eq!(lab.goes_on(), Judgement { remove_orphans: true, ..Judgement::default() });
    assert!(!lab.depends_on_all_services());
    // Other stacks are none of its business.
    let mut lab = Lab::deployed();
    lab.survey.extend([container("media", "app", ELSEWHERE), Resident { project: None, ..container("x", "y", HERE) }]);
    assert_eq!(lab.goes_on(), Judgement { remove_orphans: true, ..Judgement::default() });
}

#[test]
fn what_another_repository_runs_under_is_taken_and_cannot_be_adopted() {
    let mut lab = Lab { others: vec![deployed("media", "web", "/deployments/media")], ..Lab::new() };
    lab.stack.asked.adopt = true;
    let message = lab.refused(&["home/media", "write `compose_project: home-web` for home/web"]);
    assert!(!message.contains("prune"), "{message}");
    // Two that run under one already: neither goes on.
    lab.own = deployed("web", "web", HERE);
    lab.refused(&["home/media"]);
    lab.others = vec![deployed("media", "media", HERE)];
    lab.goes_on();
}

#[test]
fn an_orphan_keeps_its_project_unless_it_is_the_same_stack_renamed() {
    let mut lab = Lab { others: vec![orphaned(deployed("old", "web", "/deployments/old"))], ..Lab::new() };
    lab.refused(&["home/old", "`shiparr prune`"]);
    lab.others = vec![orphaned(deployed("old", "web", HERE))];
    lab.goes_on();
}

#[test]
fn what_another_ones_project_file_names_is_taken_unless_it_is_held_already() {
    let text = "project: home\nrepositories:\n  media: {url: /r/a, compose_project: shared}\n  web: {url: /r/b}\n";
    let mut lab = Lab { catalog: catalog(text), ..Lab::new() };
    lab.plan.project = "shared".to_owned();
    lab.refused(&["is that of home/media"]);
    lab.own = deployed("web", "shared", HERE);
    lab.goes_on();
}

#[test]
fn the_line_to_write_names_a_project_that_nobody_has() {
    let mut lab = Lab { others: vec![deployed("a", "web", "/a"), deployed("b", "home-web", "/b")], ..Lab::new() };
    lab.refused(&["`compose_project: home-web-2`"]);
    lab.survey.push(container("home-web-2", "x", ELSEWHERE));
    lab.refused(&["`compose_project: home-web-3`"]);
}

#[test]
fn containers_of_another_folder_are_not_taken_over_unless_that_is_meant() {
    let mut lab = Lab::new();
    lab.survey = vec![container("web", "app", ELSEWHERE), container("web", "cron", ELSEWHERE)];
    lab.refused(&[
        "compose project `web` (web-app-1, web-cron-1) belong to /nowhere/other/web",
        "`compose_project: home-web` for home/web",
        "`shiparr deploy home/web --adopt`",
    ]);
    let adopted = lab.adopt();
    assert!(!adopted.remove_orphans);
    assert_eq!(adopted.recreate, set(&["app"]));
    assert!(adopted.notes.iter().any(|note| note.contains("without --remove-orphans") && note.contains("web-cron-1")));
    // One more folder was not accepted.
    lab.survey.push(container("web", "db", "/third"));
    let message = lab.refused(&["/third"]);
    assert!(!message.contains(ELSEWHERE), "{message}");
    // Nor is a container whose folder nobody knows.
    lab.survey = vec![Resident { folder: None, ..container("web", "db", "") }];
    lab.refused(&["belong to an unknown folder"]);
}

#[test]
fn further_files_that_a_stack_was_started_with_are_not_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path().to_str().unwrap();
    let path = |name: &str| folder.path().join(name);
    for name in ["compose.yaml", "compose.prod.yaml"] {
        std::fs::write(path(name), "").unwrap();
    }
    let mut lab = Lab::new();
    lab.stack.folder = here.into();
    lab.plan.files = vec![path("compose.yaml")];
    let mut app = container("web", "app", here);
    app.files = vec![path("compose.yaml"), path("compose.prod.yaml")];
    lab.survey = vec![app.clone(), container("web", "db", here)];
    lab.refused(&[
        "were started with compose.prod.yaml too",
        "write `compose_files: [compose.yaml, compose.prod.yaml]` for home/web",
    ]);
    lab.adopt();
    lab.accepted.clear();
    lab.plan.files.push(path("compose.prod.yaml"));
    lab.goes_on();
    // One that is gone cannot be named, and a file in place of another is what the commit says.
    lab.plan.files.pop();
    std::fs::rename(path("compose.prod.yaml"), path("other.yaml")).unwrap();
    lab.goes_on();
    lab.plan.files = vec![path("other.yaml")];
    lab.goes_on();
}

#[test]
fn a_stack_of_somebody_with_another_home_folder_keeps_its_data() {
    let mut lab = Lab::new();
    let mount = |source: &str| Mount { service: "app".to_owned(), source: source.into() };
    lab.plan.mounts = vec![mount("/srv/config"), mount("/var/lib/daemon/media/films")];
    let mut app = container("web", "app", HERE);
    app.mounts = ["/srv/config", "/home/ada/media/films", "web_data"].map(PathBuf::from).into();
    lab.survey = vec![app, container("web", "db", HERE)];
    lab.refused(&[
        "mounts /home/ada/media/films, and would mount /var/lib/daemon/media/films",
        "write `environment: {HOME: /home/ada}` for home/web",
    ]);
    lab.adopt();
    // A service that has moved its data is no such case, and one that has both neither.
    lab.accepted.clear();
    lab.plan.mounts[1] = mount("/var/lib/daemon/movies");
    assert_eq!(lab.goes_on().notes, Vec::<String>::new());
    lab.plan.mounts = vec![mount("/home/ada/media/films"), mount("/var/lib/daemon/media/films")];
    lab.goes_on();
    // What Shiparr brought up follows its commits.
    lab.plan.mounts.remove(0);
    lab.own = deployed("web", "web", HERE);
    lab.services = set(&["app", "db"]);
    lab.goes_on();
}

#[test]
fn two_stacks_in_one_project_are_not_for_us_to_part() {
    let mut lab = Lab::new();
    lab.survey = vec![container("web", "app", HERE), container("web", "cron", ELSEWHERE)];
    let message = lab.refused(&["web-app-1", ELSEWHERE, "its containers are left alone"]);
    // The line for a free name would be refused in its turn.
    assert!(!message.contains("compose_project:"), "{message}");
    assert!(!lab.adopt().remove_orphans);
    lab.survey.push(container("web", "db", ELSEWHERE));
    lab.accepted.clear();
    lab.refused(&["both have the services db"]);
    assert_eq!(lab.adopt().recreate, set(&["db"]));
}

#[test]
fn a_stack_that_was_in_another_folder_is_not_moved_away_from_its_data() {
    let mut lab = Lab::deployed();
    lab.stack.folder = PathBuf::from("/nowhere/stacks/new");
    lab.refused(&["come from /nowhere/stacks/web, where this stack was before", "put `path` and `local_path` back"]);
    lab.services.insert("gone".to_owned());
    lab.survey.push(container("web", "gone", HERE));
    let adopted = lab.adopt();
    assert!(adopted.remove_orphans);
    assert_eq!(adopted.recreate, set(&["app", "db"]));
}

#[test]
fn a_stack_started_under_another_name_keeps_it() {
    let mut lab = Lab::new();
    lab.survey = vec![container("docker", "app", HERE), container("docker", "db", HERE)];
    lab.refused(&[
        "containers of /nowhere/stacks/web belong to compose project `docker` (docker-app-1, docker-db-1)",
        "write `compose_project: docker` for home/web",
        "--adopt`",
    ]);
    lab.plan.project = "docker".to_owned();
    assert_eq!(lab.goes_on(), Judgement { remove_orphans: true, ..Judgement::default() });
    lab.plan.project = "web".to_owned();
    assert!(lab.adopt().remove_orphans);
    // What `docker compose run` left under another name is nobody's stack.
    lab.accepted.clear();
    lab.survey.iter_mut().for_each(|resident| resident.is_one_off = true);
    lab.goes_on();
    // A copy beside what this repository deployed is none either, but two work on the same data.
    let mut lab = Lab::deployed();
    lab.survey.push(container("try", "app", HERE));
    let message = lab.refused(&["`try` (try-app-1)", "docker compose -p try down"]);
    assert!(!message.contains("compose_project:"), "{message}");
    lab.adopt();
}

#[test]
fn a_renamed_repository_keeps_its_project() {
    // In the same folder: that one's containers tell.
    let mut lab = Lab { others: vec![orphaned(deployed("old", "old", HERE))], ..Lab::new() };
    lab.survey = vec![container("old", "app", HERE)];
    lab.refused(&["write `compose_project: old` for home/web"]);
    // In a folder named after the new key: that one's record does.
    let earlier = RepositoryRecord {
        git_url: lab.own.git_url.clone(),
        local_path: "/data/home/old".to_owned(),
        ..orphaned(deployed("old", "old", "/data/home/old"))
    };
    lab.survey = vec![container("old", "app", "/data/home/old")];
    lab.others = vec![earlier.clone()];
    lab.refused(&["home/old", "write `local_path: /data/home/old` and `compose_project: old` for home/web"]);
    assert!(lab.adopt().remove_orphans);
    lab.accepted.clear();
    lab.plan.project = "old".to_owned();
    lab.refused(&["write `local_path: /data/home/old` for home/web"]);
    lab.plan.project = "web".to_owned();
    // Nothing of it runs, or it is another stack of the same repository.
    lab.survey.clear();
    lab.goes_on();
    lab.survey = vec![container("old", "app", "/data/home/old")];
    lab.others = vec![RepositoryRecord { path: "other".to_owned(), ..earlier }];
    lab.goes_on();
}

#[test]
fn a_changed_project_leaves_nothing_behind() {
    let mut lab = Lab::deployed();
    lab.plan.project = "new".to_owned();
    lab.plan.volumes = set(&["new_data"]);
    assert_eq!(lab.unknown_volumes(), set(&["new_data", "web_data"]));
    lab.answers.volumes = BTreeMap::from([("web_data".to_owned(), Some("web".to_owned()))]);
    lab.refused(&[
        "from `web` to `new`",
        "containers web-app-1, web-db-1; volumes web_data",
        "write `compose_project: web` for home/web",
    ]);
    // The data alone is reason enough.
    lab.survey.clear();
    let message = lab.refused(&["(volumes web_data)"]);
    assert!(!message.contains("down"), "it would not help: {message}");
    lab.answers.volumes.clear();
    lab.goes_on();
    lab.survey = vec![container("web", "app", HERE), container("web", "app", ELSEWHERE)];
    let adopted = lab.adopt();
    assert!(adopted.remove_orphans);
    // Once it was brought up under the new name, the old one is still there, and still accepted.
    lab.own = deployed("web", "new", HERE);
    lab.goes_on();
}

#[test]
fn orphans_that_nobody_of_us_made_stay() {
    let mut lab = Lab::new();
    lab.survey = vec![container("web", "app", HERE), container("web", "extra", HERE)];
    assert!(lab.depends_on_all_services());
    lab.refused(&["(web-extra-1)", "docker rm -f web-extra-1", "--adopt`"]);
    // A service of an inactive profile has no orphans.
    lab.answers.services = set(&["app", "db", "extra"]);
    assert!(lab.goes_on().remove_orphans);
    lab.answers.services.clear();
    assert!(!lab.adopt().remove_orphans);
    // So it is later.
    let mut lab = Lab { accepted: lab.accepted, ..Lab::deployed() };
    lab.survey.extend([container("web", "extra", HERE), container("web", "old", HERE)]);
    lab.services.insert("old".to_owned());
    let judgement = lab.goes_on();
    assert!(!judgement.remove_orphans);
    assert!(judgement.notes.iter().any(|note| note.contains("web-old-1") && note.contains("stay")), "{judgement:?}");
    lab.survey.push(container("web", "another", HERE));
    lab.refused(&["(web-another-1)"]);
    lab.survey.retain(|resident| resident.service.as_deref() == Some("old"));
    assert!(lab.goes_on().remove_orphans);
}

#[test]
fn one_offs_are_neither_refused_nor_removed() {
    let one_off = |service: &str, has_ended: bool| Resident {
        is_one_off: true,
        has_ended,
        name: format!("web-{service}-run-1"),
        ..container("web", service, HERE)
    };
    let mut lab = Lab::deployed();
    lab.survey.push(one_off("app", false));
    assert!(lab.goes_on().remove_orphans);
    // Newer versions of Compose remove those that have ended; older ones those whose service is gone.
    for resident in [one_off("app", true), one_off("gone", false)] {
        let mut lab = Lab::deployed();
        lab.survey.push(resident);
        let judgement = lab.goes_on();
        assert!(!judgement.remove_orphans);
        assert!(judgement.notes[0].contains("docker compose run"), "{judgement:?}");
    }
}

#[test]
fn volumes_of_others_are_not_written_into() {
    let mut lab = Lab::new();
    assert_eq!(lab.unknown_volumes(), set(&["web_data"]));
    assert_eq!(Lab::deployed().unknown_volumes(), BTreeSet::new());
    lab.answers.volumes = BTreeMap::from([("web_data".to_owned(), Some("media".to_owned()))]);
    lab.refused(&["volume web_data was made for compose project `media`", "`external: true`"]);
    lab.adopt();
    lab.answers.volumes = BTreeMap::from([("web_data".to_owned(), Some("web".to_owned()))]);
    assert_eq!(lab.goes_on().notes, [""; 0]);
    lab.answers.volumes = BTreeMap::from([("web_data".to_owned(), None)]);
    assert_eq!(lab.goes_on().notes, ["not made by Compose, and used: volume web_data"]);
}

#[test]
fn a_container_name_that_is_taken_cannot_be_adopted() {
    let named = |resident: Resident| Resident { name: "mine".to_owned(), ..resident };
    let mut lab = Lab::new();
    lab.stack.asked.adopt = true;
    lab.plan.container_names = BTreeMap::from([("app".to_owned(), "mine".to_owned())]);
    lab.survey = vec![named(container("media", "app", ELSEWHERE))];
    let message =
        lab.refused(&["`container_name: mine` of service app", "`media` in /nowhere/other/web (0123456789ab)"]);
    assert!(!message.contains("--adopt"), "{message}");
    assert_eq!(lab.judge().unwrap_err().chance, Chance::CanPass);
    lab.survey = vec![Resident { project: None, ..named(container("", "", "")) }];
    lab.refused(&["of no compose project"]);
    // Its own container, one that is removed first, and one that is not made.
    lab.survey = vec![named(container("web", "app", HERE))];
    lab.goes_on();
    lab.own = deployed("web", "web", HERE);
    lab.services = set(&["old"]);
    lab.survey = vec![named(container("web", "old", HERE))];
    lab.goes_on();
    lab.survey = vec![named(container("media", "app", ELSEWHERE))];
    lab.plan.services.insert("app".to_owned(), 0);
    lab.goes_on();
    // One that stays.
    lab.plan.services.insert("app".to_owned(), 1);
    lab.survey = vec![named(container("web", "foreign", HERE))];
    lab.refused(&["`container_name: mine`"]);
}

#[test]
fn fewer_containers_than_there_are_is_worth_a_line_the_first_time() {
    let mut lab = Lab::new();
    lab.survey = vec![container("web", "app", HERE), container("web", "app", HERE)];
    assert!(lab.goes_on().notes[0].contains("app has 2 containers and the compose files say 1"));
    lab.own = deployed("web", "web", HERE);
    assert_eq!(lab.goes_on().notes, [""; 0]);
}

#[test]
fn labels_of_others_stay_on_one_line_and_lists_short() {
    let mut lab = Lab::new();
    lab.survey = (0..9).map(|number| container("web", &format!("s{number}"), "/a\n\u{1b}[31mb")).collect();
    lab.refused(&["web-s0-1, web-s1-1, web-s2-1 and 6 more", "/a\u{fffd}\u{fffd}[31mb"]);
}
