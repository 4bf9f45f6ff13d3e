//! A commit as one flat list of files, with those of its submodules in their places.
//!
//! A submodule's objects lie beside its parent's, in `modules/` of the parent's store. Its URL comes from the commit,
//! so it is not trusted: https and ssh only, relative ones under the parent's host, and the parent's credential only
//! for the parent's scheme, host and port.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use git2::{ObjectType, Oid, Repository, Tree, TreeEntry};

use super::checkout::{Entry, Files, Kind, folders_above};
use super::libgit::Failed;
use super::objects::{MAX_HELD_BYTES, Objects, copy_pieces};
use super::scope::Scope;
use super::smart_http::may_have_credential;
use super::tidy::HELD;
use super::{GitError, Remote, RemoteUrl, Scheme, fetch, one_line, store, tidy};
use crate::command::Limit;

/// How deep submodules may nest.
const MAX_DEPTH: usize = 5;
/// How many submodules one commit may have, nested ones included.
const MAX_SUBMODULES: usize = 100;
/// How many files and folders one commit may have; a tree can name the same trees again and again until nothing holds
/// them.
const MAX_FILES: usize = 500_000;
/// Longest path that the kernel takes.
const MAX_PATH_BYTES: usize = 4096;
/// How much of a path a message shows.
const MAX_SHOWN_CHARS: usize = 200;
/// Bound on `.gitmodules`.
const MAX_GITMODULES_BYTES: usize = 256 * 1024;

/// The modes of tree entries.
const MODE_EXECUTABLE: i32 = 0o100_755;
const MODE_LINK: i32 = 0o120_000;

/// The stores that files come from: the repository's own, then its submodules'.
pub(super) struct Sources {
    sources: Vec<Source>,
    /// Commits that the working tree is compared with, and the one that is to lie there.
    listed: Vec<(usize, Oid)>,
}

/// A store, and the way to its large files, once one is asked for.
struct Source {
    repository: Repository,
    objects: OnceCell<Objects>,
    /// Contents that lie in files of their own.
    copies: BTreeMap<Oid, PathBuf>,
}

impl Source {
    fn new(repository: Repository) -> Source {
        Source { repository, objects: OnceCell::new(), copies: BTreeMap::new() }
    }
}

/// A commit that is to be listed, in its place.
struct Place {
    source: usize,
    commit: Oid,
    /// The folder that it fills, with a slash at the end; empty for the repository itself.
    prefix: Vec<u8>,
    remote: Remote,
    depth: usize,
}

/// How submodules that are not in their stores are treated.
enum Missing<'a> {
    Fetch(&'a Limit, &'a mut Vec<String>),
    /// They have no files.
    Skip,
}

impl Sources {
    pub fn new(repository: Repository) -> Sources {
        Sources { sources: vec![Source::new(repository)], listed: Vec::new() }
    }

    /// The stores again that [`Sources::relative_paths`] named, and as the last one `copies`: files that hold contents.
    /// Stores that are gone, or damaged, have none.
    pub fn open(
        main: &Path,
        relative_paths: &[PathBuf],
        copies: BTreeMap<Oid, PathBuf>,
    ) -> Result<Sources, git2::Error> {
        let empty = || Repository::from_odb(git2::Odb::new()?);
        let open = |path: &PathBuf| Repository::open_bare(main.join(path)).or_else(|_| empty()).map(Source::new);
        let mut sources: Vec<Source> = relative_paths.iter().map(open).collect::<Result<_, _>>()?;
        sources.push(Source { copies, ..Source::new(empty()?) });
        Ok(Sources { sources, listed: Vec::new() })
    }

    /// Where the stores are, from the repository's own, which is the first.
    pub fn relative_paths(&self) -> Vec<PathBuf> {
        let main = self.main().path();
        let relative = |repository: &Repository| repository.path().strip_prefix(main).map(Path::to_owned);
        self.sources.iter().map(|source| relative(&source.repository).unwrap_or_default()).collect()
    }

    /// Keeps in each store the commits that were listed, and no others of earlier runs: their contents may have to be
    /// put back, or known again where a run was ended, whatever is fetched meanwhile.
    pub fn hold_listed(&self) -> Result<(), git2::Error> {
        let mut held: BTreeMap<&Path, (&Repository, BTreeSet<Oid>)> = BTreeMap::new();
        for Source { repository, .. } in &self.sources {
            held.entry(repository.path()).or_insert((repository, BTreeSet::new()));
        }
        for (source, commit) in &self.listed {
            let repository = &self.sources[*source].repository;
            held.entry(repository.path()).or_insert((repository, BTreeSet::new())).1.insert(*commit);
        }
        for (repository, commits) in held.values() {
            let name = |commit: &Oid| format!("{HELD}{commit}");
            let names: BTreeSet<String> = commits.iter().map(name).collect();
            for reference in repository.references_glob(&format!("{HELD}*"))? {
                let mut reference = reference?;
                if !reference.name().is_some_and(|name| names.contains(name)) {
                    reference.delete()?;
                }
            }
            for commit in commits {
                repository.reference(&name(commit), *commit, true, "may be put back")?;
            }
        }
        Ok(())
    }

    /// The repository's own store.
    pub fn main(&self) -> &Repository {
        &self.sources[0].repository
    }

    /// Keeps the stores of the submodules from growing; only after a checkout, which needs the old commits too.
    pub fn tidy(&self, limit: &Limit) {
        for source in &self.sources {
            tidy::tidy(&source.repository, limit.left());
        }
    }

    /// A file's content, of at most [`MAX_HELD_BYTES`].
    pub fn read(&self, entry: &Entry) -> Result<Vec<u8>, git2::Error> {
        let odb = self.source(entry).repository.odb()?;
        if odb.read_header(entry.oid)?.0 as u64 > MAX_HELD_BYTES {
            return Err(git2::Error::from_str("a content that is too large for memory"));
        }
        Ok(odb.read(entry.oid)?.data().to_vec())
    }

    /// Hands a file's content over, a large one in pieces.
    ///
    /// # Errors
    /// The store is damaged, or lacks space for undoing a large delta; or what `out` says.
    pub fn copy(&self, entry: &Entry, out: &mut impl Write) -> io::Result<()> {
        let store_failed = |error: git2::Error| io::Error::other(error.message().to_owned());
        let source = self.source(entry);
        if let Some(copy) = source.copies.get(&entry.oid) {
            return copy_pieces(&mut File::open(copy)?, out).map(drop);
        }
        let odb = source.repository.odb().map_err(store_failed)?;
        if self.size(entry).map_err(store_failed)? <= MAX_HELD_BYTES {
            return out.write_all(odb.read(entry.oid).map_err(store_failed)?.data());
        }
        if source.objects.get().is_none() {
            let folder = source.repository.path().join("objects");
            let _ = source.objects.set(Objects::open(&folder, &folder.join("pack"))?);
        }
        source.objects.get().map_or(Ok(()), |objects| objects.stream(entry.oid, out))
    }

    /// A file's size in bytes.
    pub fn size(&self, entry: &Entry) -> Result<u64, git2::Error> {
        let source = self.source(entry);
        if let Some(copy) = source.copies.get(&entry.oid) {
            return copy.metadata().map(|data| data.len()).map_err(|error| git2::Error::from_str(&error.to_string()));
        }
        let (size, kind) = source.repository.odb()?.read_header(entry.oid)?;
        if kind == ObjectType::Blob { Ok(size as u64) } else { Err(git2::Error::from_str("a file that is no blob")) }
    }

    /// The files of a commit that are in the scope; submodules are fetched.
    pub fn fetch_and_flatten(
        &mut self,
        commit: Oid,
        scope: &Scope,
        remote: &Remote,
        limit: &Limit,
        notes: &mut Vec<String>,
    ) -> Result<Files, Failed> {
        self.list(commit, scope, remote, &mut Missing::Fetch(limit, notes))
    }

    /// The files of a commit that are in the scope, as far as the stores have them; none when they do not have the
    /// commit.
    pub fn flatten(&mut self, commit: Oid, scope: &Scope, remote: &Remote) -> Option<Files> {
        self.list(commit, scope, remote, &mut Missing::Skip).ok()
    }

    fn source(&self, entry: &Entry) -> &Source {
        &self.sources[entry.source]
    }

    fn list(
        &mut self,
        commit: Oid,
        scope: &Scope,
        remote: &Remote,
        missing: &mut Missing<'_>,
    ) -> Result<Files, Failed> {
        let mut files = Files::new();
        let mut places = vec![Place { source: 0, commit, prefix: Vec::new(), remote: remote.clone(), depth: 0 }];
        let mut submodules = 0;
        while let Some(place) = places.pop() {
            let inner = list_files(&self.sources[place.source].repository, &place, scope, &mut files)?;
            self.listed.push((place.source, place.commit));
            for (path, commit) in inner {
                submodules += 1;
                if submodules > MAX_SUBMODULES || place.depth >= MAX_DEPTH {
                    return Err(GitError::lasting(format!(
                        "the commit has more than {MAX_SUBMODULES} submodules, or nests them deeper than {MAX_DEPTH}"
                    ))
                    .into());
                }
                places.extend(self.enter(&place, path, commit, missing)?);
            }
        }
        for path in files.keys() {
            if folders_above(path).any(|folder| files.contains_key(folder)) {
                return Err(never_checked_out(path));
            }
        }
        Ok(files)
    }

    /// The place of a submodule; none where it is left out.
    fn enter(
        &mut self,
        parent: &Place,
        path: Vec<u8>,
        commit: Oid,
        missing: &mut Missing<'_>,
    ) -> Result<Option<Place>, Failed> {
        let shown = one_line(String::from_utf8_lossy(&[&parent.prefix[..], &path].concat()).into_owned());
        let repository = &self.sources[parent.source].repository;
        let declared = declared_submodules(repository, &repository.find_commit(parent.commit)?.tree()?)?;
        let Some(declared) = declared.get(&path) else {
            if let Missing::Fetch(_, notes) = missing {
                notes.push(format!("the submodule {shown} has no entry in .gitmodules and is left out"));
            }
            return Ok(None);
        };
        let remote = match missing {
            Missing::Fetch(..) => submodule_remote(&parent.remote, &declared.url)
                .map_err(|why| GitError::lasting(format!("the submodule {shown}: {why}")))?,
            // Nobody is asked, so it does not matter whether the URL, seen from where the parent is by now, would be
            // allowed.
            Missing::Skip => parent.remote.clone(),
        };
        let name = Oid::hash_object(ObjectType::Blob, declared.name.as_bytes())?.to_string();
        let folder = self.sources[parent.source].repository.path().join("modules").join(name);
        let repository = match missing {
            Missing::Fetch(limit, _) => {
                fetch_submodule(&folder, &remote, commit, limit).map_err(|failed| name_submodule(failed, &shown))?
            }
            Missing::Skip => match Repository::open_bare(&folder) {
                Ok(repository) if repository.find_commit(commit).is_ok() => repository,
                _ => return Ok(None),
            },
        };
        self.sources.push(Source::new(repository));
        let prefix = [&parent.prefix[..], &path, b"/"].concat();
        Ok(Some(Place { source: self.sources.len() - 1, commit, prefix, remote, depth: parent.depth + 1 }))
    }
}

fn fetch_submodule(folder: &Path, remote: &Remote, commit: Oid, limit: &Limit) -> Result<Repository, Failed> {
    let repository = match store::open(folder) {
        Ok(repository) => repository,
        Err(_) => store::rebuild(folder)?,
    };
    fetch::commit(&repository, remote, commit, limit)?;
    Ok(repository)
}

fn name_submodule(failed: Failed, shown: &str) -> Failed {
    match failed {
        Failed::Git(error) => {
            Failed::Git(GitError { message: format!("the submodule {shown}: {}", error.message), ..error })
        }
        Failed::Store(error) => Failed::Store(error),
    }
}

/// Adds the files of one commit that are in the scope; its submodules come back, by their path in it.
fn list_files(
    repository: &Repository,
    place: &Place,
    scope: &Scope,
    files: &mut Files,
) -> Result<Vec<(Vec<u8>, Oid)>, Failed> {
    let mut submodules = Vec::new();
    let mut entries = 0;
    let mut folders = vec![(place.prefix.clone(), repository.find_commit(place.commit)?.tree()?)];
    while let Some((prefix, tree)) = folders.pop() {
        for entry in &tree {
            let path = [&prefix, entry.name_bytes()].concat();
            if !scope.touches(&path) {
                continue;
            }
            check_name(&entry, &path)?;
            match entry.kind() {
                Some(ObjectType::Tree) => {
                    let folder = repository.find_tree(entry.id())?;
                    folders.push(([&path[..], b"/"].concat(), folder));
                }
                Some(ObjectType::Commit) => submodules.push((path[place.prefix.len()..].to_vec(), entry.id())),
                _ if scope.holds(&path) => {
                    let kind = match entry.filemode_raw() {
                        MODE_LINK => Kind::Link,
                        MODE_EXECUTABLE => Kind::Executable,
                        _ => Kind::File,
                    };
                    files.insert(path, Entry { oid: entry.id(), kind, source: place.source });
                }
                _ => {}
            }
            entries += 1;
            if entries.max(files.len()) > MAX_FILES {
                let why = format!("the commit has more than {MAX_FILES} files and folders");
                return Err(GitError::lasting(why).into());
            }
        }
    }
    Ok(submodules)
}

/// A tree can be made by hand: names that lead out of the working tree, or into `.git`, are refused.
fn check_name(entry: &TreeEntry<'_>, path: &[u8]) -> Result<(), Failed> {
    let name = entry.name_bytes();
    let leads_out =
        name.is_empty() || name == b"." || name == b".." || name.iter().any(|byte| matches!(byte, b'/' | 0));
    if leads_out || name.eq_ignore_ascii_case(b".git") || path.len() > MAX_PATH_BYTES {
        return Err(never_checked_out(path));
    }
    Ok(())
}

fn never_checked_out(path: &[u8]) -> Failed {
    let path = String::from_utf8_lossy(path).chars().take(MAX_SHOWN_CHARS).collect::<String>();
    GitError::lasting(format!("the commit holds a path that is never checked out: {path:?}")).into()
}

/// An entry of `.gitmodules`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Declared {
    name: String,
    url: String,
}

/// What `.gitmodules` of a commit says, by path.
pub(super) fn declared_submodules(
    repository: &Repository,
    tree: &Tree<'_>,
) -> Result<BTreeMap<Vec<u8>, Declared>, Failed> {
    let Some(entry) = tree.get_name(".gitmodules").filter(|entry| entry.kind() == Some(ObjectType::Blob)) else {
        return Ok(BTreeMap::new());
    };
    let odb = repository.odb()?;
    if odb.read_header(entry.id())?.0 > MAX_GITMODULES_BYTES {
        let why = format!("the commit's .gitmodules is larger than {MAX_GITMODULES_BYTES} bytes");
        return Err(GitError::lasting(why).into());
    }
    let text = String::from_utf8_lossy(odb.read(entry.id())?.data()).into_owned();
    Ok(read_gitmodules(&text))
}

/// Reads the sections `[submodule "NAME"]` with `path` and `url`. Read here and not by libgit2, whose `include.path`
/// would read files of this host.
fn read_gitmodules(text: &str) -> BTreeMap<Vec<u8>, Declared> {
    let mut sections: Vec<(Option<String>, Declared)> = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let name = section.strip_prefix("submodule").and_then(|rest| rest.trim().strip_prefix('"'));
            let name = name.and_then(|rest| rest.rsplit_once("\"]")).map(|(name, _)| name.replace('\\', ""));
            sections.push((None, Declared { name: name.unwrap_or_default(), url: String::new() }));
        } else if let (Some((key, value)), Some((path, declared))) = (line.split_once('='), sections.last_mut()) {
            let value = value.trim().trim_matches('"').to_owned();
            match key.trim().to_ascii_lowercase().as_str() {
                "path" => *path = Some(value.trim_end_matches('/').to_owned()),
                "url" => declared.url = value,
                _ => {}
            }
        }
    }
    let whole = sections.into_iter().filter(|(_, declared)| !declared.name.is_empty() && !declared.url.is_empty());
    whole.filter_map(|(path, declared)| Some((path?.into_bytes(), declared))).collect()
}

/// The remote of a submodule, with what of its parent's credentials may go there.
fn submodule_remote(parent: &Remote, url: &str) -> Result<Remote, String> {
    let is_relative = url.starts_with("./") || url.starts_with("../");
    let url = if is_relative { under_parent(&parent.url, url)? } else { url.parse()? };
    let may_be_http = is_relative && parent.url.scheme() == Scheme::Http;
    if !matches!(url.scheme(), Scheme::Https | Scheme::Ssh) && !may_be_http {
        return Err(format!("its URL {url} is neither https nor ssh"));
    }
    let same_host =
        (url.scheme(), url.host(), url.port()) == (parent.url.scheme(), parent.url.host(), parent.url.port());
    Ok(Remote {
        credential: parent.credential.clone().filter(|_| may_have_credential(parent, &url)),
        ssh_key: parent.ssh_key.clone().filter(|_| same_host),
        ca_file: parent.ca_file.clone().filter(|_| same_host),
        insecure_http: parent.insecure_http && same_host,
        url,
        ..parent.clone()
    })
}

/// A relative URL, as git reads it: from the parent's own URL, a `../` for each step up; never off its host.
fn under_parent(parent: &RemoteUrl, relative: &str) -> Result<RemoteUrl, String> {
    if parent.scheme() == Scheme::File {
        return Err(format!("its URL {relative} is relative to a folder of this host; only https and ssh are fetched"));
    }
    let (mut path, mut rest) = (parent.path(), relative);
    loop {
        if let Some(behind) = rest.strip_prefix("../") {
            let cut = path.rfind('/').filter(|at| *at > 0 || path.len() > 1);
            path = &path[..cut.ok_or_else(|| format!("its URL {relative} leads off the parent's host"))?];
            rest = behind;
        } else if let Some(behind) = rest.strip_prefix("./") {
            rest = behind;
        } else {
            break;
        }
    }
    if rest.split('/').any(|part| part == "..") {
        return Err(format!("its URL {relative} climbs in its middle"));
    }
    parent.with_path(&format!("{path}/{rest}"))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::git::Credential;
    use crate::http::Proxies;
    use crate::secrets::Secret;

    fn remote(url: &str) -> Remote {
        Remote {
            url: url.parse().unwrap(),
            branch: "main".to_owned(),
            credential: Some(Credential {
                user: "oauth2".to_owned(),
                secret: Secret::new("token"),
                source: "a test".to_owned(),
            }),
            insecure_http: false,
            ca_file: None,
            ssh_key: Some(PathBuf::from("/key")),
            ssh_key_passphrase: None,
            known_hosts: Vec::new(),
            proxies: Proxies::default(),
        }
    }

    #[test]
    fn relative_urls_stay_under_their_parents_host() {
        let under =
            |parent: &str, url: &str| submodule_remote(&remote(parent), url).map(|remote| remote.url.to_string());
        assert_eq!(under("https://h/a/b.git", "../c.git").unwrap(), "https://h/a/c.git");
        assert_eq!(under("https://h/a/b.git", "../../x/c.git").unwrap(), "https://h/x/c.git");
        assert_eq!(under("https://h/a/b.git", "./c").unwrap(), "https://h/a/b.git/c");
        assert_eq!(under("git@h:a/b.git", "../c.git").unwrap(), "git@h:a/c.git");
        assert_eq!(under("git@h:b.git", "../c.git").unwrap(), "git@h:c.git");
        assert_eq!(under("http://127.0.0.1/a.git", "../c.git").unwrap(), "http://127.0.0.1/c.git");
        for (parent, url) in [
            ("https://h/a/b.git", "../../../c.git"),
            ("https://h/a/b.git", "../x/../../../c"),
            ("file:///srv/a.git", "../b.git"),
        ] {
            assert!(under(parent, url).is_err(), "{parent} {url}");
        }
    }

    #[test]
    fn only_https_and_ssh_are_fetched() {
        for url in ["http://h/c.git", "file:///etc", "/etc", "ext::sh -c id", "git://h/c", "https://u:p@h/c.git"] {
            assert!(submodule_remote(&remote("https://h/a.git"), url).is_err(), "{url}");
        }
    }

    #[test]
    fn credentials_go_to_the_parents_host_only() {
        let has = |parent: &str, url: &str| {
            let submodule = submodule_remote(&remote(parent), url).unwrap();
            (submodule.credential.is_some(), submodule.ssh_key.is_some())
        };
        assert_eq!(has("https://h/a.git", "https://h/b.git"), (true, true));
        assert_eq!(has("https://h/a.git", "https://h:444/b.git"), (false, false));
        assert_eq!(has("https://h/a.git", "https://other/b.git"), (false, false));
        assert_eq!(has("https://h/a.git", "git@h:b.git"), (false, false));
        assert!(has("git@h:a.git", "git@h:b.git").1);
        assert!(!has("git@h:a.git", "git@other:b.git").1);
    }

    #[test]
    fn gitmodules_are_read_by_path() {
        let text = "[core]\n\tx = y\n[submodule \"one \\\"x\\\"\"]\n\tpath = libs/one\n\turl = ../one.git\n[submodule \"two\"]\n url=\"https://h/two\"\n path=two/\n[submodule \"no-url\"]\npath = three\n";
        let read = read_gitmodules(text);
        assert_eq!(read.len(), 2);
        assert_eq!(read[&b"libs/one"[..]], Declared { name: "one \"x\"".to_owned(), url: "../one.git".to_owned() });
        assert_eq!(read[&b"two"[..]].url, "https://h/two");
    }
}
