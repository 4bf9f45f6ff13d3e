//! What a repository watches, and stacks of one checkout in one folder.

#![allow(clippy::disallowed_methods, reason = "tests")]

use std::path::{Path, PathBuf};

use super::tests::{Folder, listed, load, name, projects, repository};
use super::*;

/// A project with stacks in one checkout: the key, and more fields.
fn stacks(project: &str, stacks: &[(&str, &str)]) -> String {
    let stack = |(key, fields): &(&str, &str)| format!("  {key}: {{{fields}}}\n");
    format!(
        "project: {project}\ndefaults: {{url: github.com/user/stacks, local_path: /srv/stacks}}\nrepositories:\n{}",
        stacks.iter().map(stack).collect::<String>()
    )
}

fn shares(catalog: &Catalog) -> Vec<(&str, bool)> {
    catalog.repositories().map(|one| (one.name.name.as_str(), one.shares_local_path)).collect()
}

fn paths(paths: &[&str]) -> Vec<PathBuf> {
    paths.iter().map(PathBuf::from).collect()
}

#[test]
fn a_stack_watches_what_it_is_made_of() {
    for (fields, expected) in [
        ("", &[][..]),
        (", path: ./, env_file: common/.env", &[]),
        (", path: web", &["web"]),
        (", path: a/../web/, env_file: [.env.enc, ../common.env, ../common.env]", &["web", "common.env"]),
        (
            ", path: stacks/web, env_file: [../../common/.env, /etc/web.env], secret_files: [key.enc, ../tls/key.enc], \
             compose_files: [compose.yaml, ../compose.base.yaml]",
            &["stacks/web", "common/.env", "stacks/tls/key.enc", "stacks/compose.base.yaml"],
        ),
        (", path: web, env_file: ../webs/.env", &["web", "webs/.env"]),
        (", path: web, watch_paths: web/app/", &["web/app"]),
        (", path: web, watch_paths: [web, ./]", &[]),
        (", path: web, watch_paths: .", &[]),
    ] {
        let text = format!("project: p\nrepositories: {{a: {{url: github.com/u/a{fields}}}}}\n");
        let folder = Folder::with(&[("p.yaml", &text)]);
        assert_eq!(repository(&folder.first_load(), "p", "a").watch_paths, paths(expected), "{fields}");
    }
}

#[test]
fn stacks_of_one_checkout_share_a_folder_across_projects() {
    let other = "project: b\nrepositories:\n  four:\n    url: https://GitHub.com:443/user/stacks\n    branch: refs/heads/main\n    \
                 local_path: /srv/stacks/\n    path: four\n  alone: {url: github.com/user/stacks}\n";
    let a = [
        ("one", "path: stacks/one"),
        ("alike", "path: stacks/one-more"),
        ("two", "path: two, watch_paths: [two, common]"),
    ];
    let folder = Folder::with(&[("a.yaml", &stacks("a", &a)), ("b.yaml", other)]);
    let first = folder.first_load();
    assert_eq!(listed(&first, folder.0.path()), "");
    assert_eq!(shares(&first), [("one", true), ("alike", true), ("two", true), ("four", true), ("alone", false)]);

    folder.remove("a.yaml");
    let second = folder.load(&first);
    assert_eq!(shares(&second), [("four", false), ("alone", false)], "the others fell away");
    let key = [1; 32];
    let hash = |catalog: &Catalog| repository(catalog, "b", "four").config_hash(&key, &Environment::default());
    assert_eq!(hash(&first), hash(&second));

    // A file that falls back to its last good version shares as that one did.
    folder.write("a.yaml", &stacks("a", &a));
    let third = folder.load(&second);
    folder.write("a.yaml", "project: a\nrepositories: 5\n");
    assert_eq!(shares(&folder.load(&third)), shares(&first));
}

#[test]
fn links_do_not_hide_that_a_folder_is_shared() {
    let target = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(".", target.path().join("link")).expect("a link");
    let root = target.path().display();
    let text = format!(
        "project: p\ndefaults: {{url: github.com/u/a}}\nrepositories:\n  a: {{local_path: {root}/x, path: a}}\n  b: {{local_path: \
         {root}/link/x, path: b}}\n"
    );
    assert_eq!(shares(&Folder::with(&[("p.yaml", &text)]).first_load()), [("a", true), ("b", true)]);
}

#[test]
fn who_shares_already_is_not_displaced_by_what_another_one_changes() {
    let (one, two) = (stacks("a", &[("one", "path: one")]), stacks("b", &[("two", "path: two")]));
    let before = |path: &str, id| AcceptedRepository {
        id,
        local_path: "/srv/stacks".into(),
        path: path.into(),
        url: "https://github.com/user/stacks".to_owned(),
        branch: "main".to_owned(),
    };
    for (fields, field, expected) in [
        ("path: two/inner", "path", "overlaps `two`"),
        ("path: one, branch: next", "local_path", "another `branch`"),
        ("path: one, url: github.com/user/other", "local_path", "another `url`"),
        ("path: one, watch_paths: one/app", "watch_paths", "write `watch_paths: [one]`"),
        ("path: one, watch_paths: [one, two]", "watch_paths", "holds `two`, the stack of `b/two`"),
    ] {
        let folder = Folder::with(&[("a.yaml", &one), ("b.yaml", &two)]);
        let first = folder.first_load();
        assert_eq!((shares(&first), first.problems.len()), (vec![("one", true), ("two", true)], 0));
        folder.write("a.yaml", &stacks("a", &[("one", fields)]));

        let reloaded = folder.load(&first);
        assert_eq!(reloaded.projects, first.projects, "{fields}: a goes on as it was");
        let [problem] = &reloaded.problems[..] else { panic!("{:?}", reloaded.problems) };
        assert_eq!(problem.field, format!("repositories.one.{field}"));
        assert!(problem.message.contains(expected), "{}", problem.message);

        // The same when it was changed while the daemon was down, although a's record is the older one.
        let accepted = Accepted {
            files: ["a", "b"].map(|name| (name.to_owned(), folder.0.path().join(format!("{name}.yaml")))).into(),
            repositories: [(name("a", "one"), before("one", 1)), (name("b", "two"), before("two", 2))].into(),
        };
        let restarted = load(folder.0.path(), &Catalog::default(), &accepted);
        assert_eq!(
            (projects(&restarted), restarted.untouched.as_slice()),
            (vec!["b"], &["a".to_owned()][..]),
            "{fields}"
        );
    }
}

#[test]
fn who_comes_later_makes_way_for_one_that_does_not_watch_its_stack() {
    let folder = Folder::with(&[("b.yaml", &stacks("b", &[("two", "path: two, watch_paths: two/app")]))]);
    let first = folder.first_load();
    assert_eq!(repository(&first, "b", "two").watch_paths, [Path::new("two/app")], "alone it may watch what it likes");
    folder.write("a.yaml", &stacks("a", &[("one", "path: one")]));
    let second = folder.load(&first);
    assert_eq!(second.projects, first.projects);
    let found = listed(&second, folder.0.path());
    assert!(
        found.contains("a.yaml:2: repositories.one.local_path") && found.contains("`watch_paths: [two]`"),
        "{found}"
    );
}

#[test]
fn nobody_watches_the_whole_stack_of_another_one() {
    for (one, two, expected) in [
        ("", ", watch_paths: [stacks/two, stacks/one]", "repositories.two.watch_paths: it holds `stacks/one`"),
        ("", ", watch_paths: stacks", "repositories.two.watch_paths: it holds `stacks/one`"),
        ("", ", watch_paths: .", "repositories.two.watch_paths: it holds `stacks/one`"),
        (", watch_paths: stacks", "", "repositories.two.path: `stacks/two` is watched by `a/one`"),
        (", watch_paths: .", "", "repositories.two.path: `stacks/two` is watched by `a/one`"),
        (", watch_paths: [stacks/one, stacks/two/.env]", ", watch_paths: [stacks/two, common]", ""),
        (", env_file: ../two/.env", ", watch_paths: [stacks/two, stacks/one-more]", ""),
    ] {
        let (one, two) = (format!("path: stacks/one{one}"), format!("path: stacks/two{two}"));
        let a = stacks("a", &[("one", &one)]);
        let folder = Folder::with(&[("a.yaml", &a), ("b.yaml", &stacks("b", &[("two", &two)]))]);
        let catalog = folder.first_load();
        let found = listed(&catalog, folder.0.path());
        assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{one}, {two}: {found}");
        assert_eq!(projects(&catalog), if expected.is_empty() { vec!["a", "b"] } else { vec!["a"] });
    }
}

#[test]
fn a_thousand_stacks_share_a_folder_in_no_time() {
    let keys: Vec<String> = (0..1000).map(|number| format!("r{number}")).collect();
    let repositories: String = keys.iter().map(|key| format!("  {key}: {{path: stacks/{key}}}\n")).collect();
    let text = format!(
        "project: p\ndefaults: {{url: /srv/git/stacks, local_path: /srv/stacks}}\nrepositories:\n{repositories}"
    );
    let folder = Folder::with(&[("p.yaml", &text)]);
    let catalog = folder.first_load();
    assert_eq!(catalog.problems.len(), 0);
    assert!(catalog.repositories().all(|one| one.shares_local_path));
}
