//! Remotes through libgit2: ssh, local paths, and http(s) servers that do not know protocol v2.

use std::cell::{Cell, RefCell};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use git2::cert::Cert;
use git2::{
    AutotagOption, CertificateCheckStatus, ConfigLevel, Cred, CredentialType, Direction, ErrorClass, ErrorCode,
    FetchOptions, ProxyOptions, RemoteCallbacks, RemoteRedirect, Repository,
};

use super::known_hosts::KnownHost;
use super::smart_http::{full_reference, may_have_credential, no_such_branch, refusal, siblings_of};
use super::{GitError, Remote, RemoteUrl, Scheme};
use crate::model::CommitHash;

/// User of an ssh remote that names none.
const SSH_USER: &str = "git";
/// Where libgit2 puts what it fetches, for as long as it does.
const FETCHED: &str = "refs/shiparr/fetched";

/// How much of a pack libgit2 maps into memory at once, and of all packs together.
const MAPPED_WINDOW_BYTES: usize = 8 * 1024 * 1024;
const MAX_MAPPED_BYTES: usize = 32 * 1024 * 1024;

/// Sets what libgit2 keeps for the whole process. Nothing of this host's Git configuration counts: it could redirect a
/// URL, or hold a credential.
///
/// # Errors
/// libgit2's own.
pub(super) fn configure_process(ca_file: Option<&Path>) -> Result<(), git2::Error> {
    // At its start libgit2 reads all certificate authorities of the system, which takes 20 ms, and it hardly ever
    // speaks TLS here: `Connection::new` names them where it does. Nobody else may see the variable: libcurl goes by it
    // too. SAFETY: the child has one thread here.
    unsafe { std::env::set_var("SSL_CERT_FILE", "/dev/null") };
    // SAFETY: as below. What is mapped counts as memory, and a pack of any size would be as a whole.
    unsafe {
        git2::opts::set_mwindow_size(MAPPED_WINDOW_BYTES)?;
        git2::opts::set_mwindow_mapped_limit(MAX_MAPPED_BYTES)?;
    }
    let levels = [ConfigLevel::System, ConfigLevel::Global, ConfigLevel::XDG, ConfigLevel::ProgramData];
    for level in levels {
        // SAFETY: the child has one thread here, and no repository is open yet.
        unsafe { git2::opts::set_search_path(level, "/dev/null/none")? };
    }
    // SAFETY: as above.
    unsafe { std::env::remove_var("SSL_CERT_FILE") };
    // SAFETY: as above. Trees and remotes of other owners are normal, and none of their configuration or hooks is ever
    // run.
    unsafe { git2::opts::set_verify_owner_validation(false)? };
    if let Some(ca_file) = ca_file {
        // SAFETY: as above.
        unsafe { git2::opts::set_ssl_cert_file(ca_file)? };
    }
    Ok(())
}

/// The branch's commit, as libgit2 learns it.
pub(super) fn tip(remote: &Remote) -> Result<CommitHash, GitError> {
    let hash = Connection::new(remote)?.tip()?;
    hash.to_string().parse().map_err(|_| GitError::lasting("a reference without a hash"))
}

/// Opens a remote that is a folder of this host; it, and the branch's commit.
pub(super) fn open_folder(remote: &Remote, folder: &Path) -> Result<(Repository, git2::Oid), GitError> {
    let connection = Connection::new(remote)?;
    let tip = connection.tip()?;
    let repository = Repository::open(folder).map_err(|error| connection.explain(&error))?;
    Ok((repository, tip))
}

/// Fetches the branch; its commit. Errors about the store come as [`Failed::Store`].
pub(super) fn fetch(repository: &Repository, remote: &Remote) -> Result<git2::Oid, Failed> {
    let connection = Connection::new(remote)?;
    let mut handle = repository.remote_anonymous(&connection.url())?;
    let connected = handle.connect_auth(Direction::Fetch, Some(connection.callbacks()), Some(connection.proxy()));
    let mut connected = connected.map_err(|error| connection.explain(&error))?;
    let (reference, _) = connection.find_tip(connected.list().map_err(|error| connection.explain(&error))?)?;
    // What came from another branch or URL before may not be an ancestor; the name is only a place to fetch to.
    let fetched =
        connected.remote().fetch(&[format!("+{reference}:{FETCHED}")], Some(&mut connection.fetch_options()), None);
    fetched.map_err(|error| connection.failed(error))?;
    let mut fetched = repository.find_reference(FETCHED)?;
    let commit = fetched.peel_to_commit()?.id();
    // It would keep what it points at in the store when a later fetch goes another way.
    fetched.delete()?;
    Ok(commit)
}

/// Fetches all branches and tags, for a commit that none is known to end in.
pub(super) fn fetch_all(repository: &Repository, remote: &Remote) -> Result<(), Failed> {
    let connection = Connection::new(remote)?;
    let mut handle = repository.remote_anonymous(&connection.url())?;
    let all = ["+refs/heads/*:refs/shiparr/heads/*", "+refs/tags/*:refs/shiparr/tags/*"];
    handle.fetch(&all, Some(&mut connection.fetch_options()), None).map_err(|error| connection.failed(error))
}

/// What stopped a step that has to do with a remote and with the store.
#[derive(Debug)]
pub(super) enum Failed {
    /// The remote, or what it holds.
    Git(GitError),
    /// The object store could not be read or written.
    Store(git2::Error),
}

impl From<GitError> for Failed {
    fn from(error: GitError) -> Failed {
        Failed::Git(error)
    }
}

impl From<git2::Error> for Failed {
    fn from(error: git2::Error) -> Failed {
        Failed::Store(error)
    }
}

/// Whether libgit2 stopped for want of space rather than for damage.
pub(super) fn is_disk_full(error: &git2::Error) -> bool {
    error.message().contains("No space left") || error.message().contains("quota exceeded")
}

/// A remote with what its callbacks need to remember.
struct Connection<'a> {
    remote: &'a Remote,
    /// Why a callback refused: says more than libgit2's own error.
    refused: RefCell<Option<GitError>>,
    /// libgit2 asks again and again for a credential that was refused; each is offered once.
    offered: Cell<bool>,
}

impl<'a> Connection<'a> {
    fn new(remote: &'a Remote) -> Result<Connection<'a>, GitError> {
        if remote.url.scheme() == Scheme::Ssh {
            remote.ssh_key.as_deref().map_or(Ok(()), check_key_file)?;
            let (host, port) = (remote.url.host().unwrap_or_default(), remote.url.port().unwrap_or_default());
            Home::fill(&KnownHost::read(&host, port, &remote.known_hosts)?)?;
        }
        if let (Scheme::Https, None) = (remote.url.scheme(), &remote.ca_file) {
            if let Some(file) = openssl_probe::probe().cert_file {
                // SAFETY: nothing else talks to a remote in this process now.
                unsafe { git2::opts::set_ssl_cert_file(file) }.map_err(|error| GitError::lasting(error.message()))?;
            }
        }
        Ok(Connection { remote, refused: RefCell::new(None), offered: Cell::new(false) })
    }

    /// The branch's commit, as libgit2 learns it.
    fn tip(&self) -> Result<git2::Oid, GitError> {
        let mut handle = git2::Remote::create_detached(self.url()).map_err(|error| self.explain(&error))?;
        let connected = handle.connect_auth(Direction::Fetch, Some(self.callbacks()), Some(self.proxy()));
        let connected = connected.map_err(|error| self.explain(&error))?;
        Ok(self.find_tip(connected.list().map_err(|error| self.explain(&error))?)?.1)
    }

    /// The URL as libgit2 is to read it: it would decode a local path, and has the port of a relative one elsewhere.
    fn url(&self) -> String {
        let url = &self.remote.url;
        if url.is_relative_to_home() {
            let (user, host) = (url.user().unwrap_or(SSH_USER), url.host_with_port().unwrap_or_default());
            if host.starts_with('[') {
                // It reads no IPv6 address in that form; `~` is the home folder for git itself, if not for every forge.
                return format!("ssh://{user}@{host}/~{}", url.path());
            }
            return format!("[{user}@{host}]:{}", &url.path()[1..]);
        }
        url.folder().map_or_else(|| url.as_str().to_owned(), |folder| folder.display().to_string())
    }

    fn callbacks(&self) -> RemoteCallbacks<'_> {
        let mut callbacks = RemoteCallbacks::new();
        callbacks.credentials(|url, user, allowed| {
            let answer = if self.remote.url.scheme() == Scheme::Ssh {
                self.ssh_credential(user, allowed)
            } else {
                self.http_credential(url)
            };
            answer.unwrap_or_else(|error| Err(self.refuse(error)))
        });
        if self.remote.url.scheme() == Scheme::Ssh {
            callbacks.certificate_check(|certificate, _| match self.check_host_key(certificate) {
                Ok(()) => Ok(CertificateCheckStatus::CertificateOk),
                Err(error) => Err(self.refuse(error)),
            });
        }
        callbacks
    }

    fn fetch_options(&self) -> FetchOptions<'_> {
        let mut options = FetchOptions::new();
        options.remote_callbacks(self.callbacks());
        options.proxy_options(self.proxy());
        options.download_tags(AutotagOption::None);
        options.update_fetchhead(false);
        options.follow_redirects(RemoteRedirect::None);
        options
    }

    fn proxy(&self) -> ProxyOptions<'_> {
        let mut options = ProxyOptions::new();
        let (url, proxies) = (&self.remote.url, &self.remote.proxies);
        let proxy = match url.scheme() {
            Scheme::Https => proxies.https.as_deref(),
            Scheme::Http => proxies.http.as_deref(),
            Scheme::Ssh | Scheme::File => None,
        };
        if let Some(proxy) = proxy.filter(|_| !is_asked_directly(url, proxies.none.as_deref())) {
            let proxy = if proxy.contains("://") { proxy.to_owned() } else { format!("http://{proxy}") };
            options.url(&proxy);
        }
        options
    }

    /// The reference to follow and its commit, among those that the remote lists.
    fn find_tip(&self, listed: &[git2::RemoteHead<'_>]) -> Result<(String, git2::Oid), GitError> {
        let reference = full_reference(&self.remote.branch);
        let peeled = format!("{reference}^{{}}");
        let find = |name: &str| listed.iter().find(|head| head.name() == name).map(git2::RemoteHead::oid);
        if let Some(hash) = find(&peeled).or_else(|| find(&reference)) {
            return Ok((reference, hash));
        }
        let prefix = siblings_of(&reference);
        let names = listed.iter().map(|head| head.name().to_owned());
        let names: Vec<String> = names.filter(|name| name.starts_with(prefix) && !name.ends_with("^{}")).collect();
        Err(no_such_branch(self.remote, &names, false))
    }

    fn refuse(&self, error: GitError) -> git2::Error {
        let message = error.message.clone();
        self.refused.replace(Some(error));
        git2::Error::from_str(&message)
    }

    /// A credential for http(s); libgit2 names the place that it stands before after a redirect.
    fn http_credential(&self, url: &str) -> Result<Result<Cred, git2::Error>, GitError> {
        // A redirect can lead to a URL that is none of ours: nothing is said there.
        let Ok(asked) = url.parse::<RemoteUrl>() else {
            return Err(GitError::lasting(format!(
                "{} redirects to where Shiparr sends no credential",
                self.remote.url
            )));
        };
        match &self.remote.credential {
            Some(credential) if !self.offered.get() && may_have_credential(self.remote, &asked) => {
                self.offered.set(true);
                Ok(Cred::userpass_plaintext(&credential.user, credential.secret.expose()))
            }
            _ => Err(refusal(self.remote, &asked, 401)),
        }
    }

    fn ssh_credential(
        &self,
        user: Option<&str>,
        allowed: CredentialType,
    ) -> Result<Result<Cred, git2::Error>, GitError> {
        let user = user.or(self.remote.url.user()).unwrap_or(SSH_USER);
        if allowed.contains(CredentialType::USERNAME) {
            return Ok(Cred::username(user));
        }
        if self.offered.replace(true) || !allowed.contains(CredentialType::SSH_KEY) {
            return Err(self.ssh_refusal(user));
        }
        let passphrase = self.remote.ssh_key_passphrase.as_ref().map(|passphrase| passphrase.expose());
        match &self.remote.ssh_key {
            Some(key) => Ok(Cred::ssh_key(user, None, key, passphrase)),
            None => Ok(Cred::ssh_key_from_agent(user)),
        }
    }

    fn ssh_refusal(&self, user: &str) -> GitError {
        let url = &self.remote.url;
        GitError::lasting(match &self.remote.ssh_key {
            Some(key) => format!(
                "{url} does not accept the key {} for the user {user}: add its public half there as a deploy key (and check `ssh_key_passphrase`)",
                key.display()
            ),
            None => format!("{url} does not accept any key of the ssh agent for the user {user}: set `ssh_key`"),
        })
    }

    fn check_host_key(&self, certificate: &Cert<'_>) -> Result<(), GitError> {
        let url = &self.remote.url;
        let (host, port) = (url.host().unwrap_or_default(), url.port().unwrap_or_default());
        let key = certificate.as_hostkey().and_then(git2::cert::CertHostkey::hostkey);
        let key = key.ok_or_else(|| GitError::passing(format!("{host} did not show its host key")))?;
        KnownHost::read(&host, port, &self.remote.known_hosts)?.check(key)
    }

    /// libgit2's error, or what a callback said before it.
    fn explain(&self, error: &git2::Error) -> GitError {
        if let Some(refused) = self.refused.take() {
            return refused;
        }
        let url = &self.remote.url;
        if url.scheme() == Scheme::File && !Path::new(url.path()).is_dir() {
            // libgit2 calls this an unsupported protocol. The path may be on a disk that is mounted later.
            return GitError::passing(format!("there is no Git repository at {}", url.path()));
        }
        let is_about_keys = error.code() == ErrorCode::Auth || error.message().contains("failed to authenticate");
        if url.scheme() == Scheme::Ssh && is_about_keys {
            // A key that cannot be read, or for which the passphrase is wrong, is not told apart from one that is
            // refused.
            return self.ssh_refusal(url.user().unwrap_or(SSH_USER));
        }
        let status = error.message().rsplit_once("status code: ").and_then(|(_, status)| status.trim().parse().ok());
        match (error.code(), status) {
            (ErrorCode::Auth, _) => refusal(self.remote, url, 401),
            (_, Some(status @ (401 | 403 | 404))) => refusal(self.remote, url, status),
            _ => GitError::passing(format!("{url}: {}", error.message().replace('\n', " "))),
        }
    }

    /// An error of a fetch, which may be the remote's or the store's.
    fn failed(&self, error: git2::Error) -> Failed {
        let of_store = matches!(
            error.class(),
            ErrorClass::Odb | ErrorClass::Indexer | ErrorClass::Zlib | ErrorClass::Object | ErrorClass::Reference
        );
        if of_store && self.refused.borrow().is_none() && !is_disk_full(&error) {
            return Failed::Store(error);
        }
        Failed::Git(self.explain(&error))
    }
}

/// A private key that others can read is none.
fn check_key_file(key: &Path) -> Result<(), GitError> {
    const GROUP_AND_OTHERS: u32 = 0o077;
    const OTHERS: u32 = 0o007;
    let metadata = std::fs::metadata(key)
        .and_then(|metadata| std::fs::File::open(key).map(|_| metadata))
        .map_err(|error| GitError::lasting(format!("cannot read the ssh key {}: {error}", key.display())))?;
    // As ssh does it: a group is of no matter where somebody else owns the file (`root:shiparr`, 0640).
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    let forbidden = if ours { GROUP_AND_OTHERS } else { OTHERS };
    if metadata.mode() & forbidden != 0 {
        let (key, mode) = (key.display(), metadata.mode() & 0o777);
        return Err(GitError::lasting(format!(
            "others can read the ssh key {key} (mode {mode:04o}): run `chmod 600 {key}`"
        )));
    }
    Ok(())
}

/// Whether a `NO_PROXY` list names the host: names and domains, addresses, or `*`.
fn is_asked_directly(url: &RemoteUrl, no_proxy: Option<&str>) -> bool {
    let host = url.host().unwrap_or_default();
    let matches = |entry: &str| {
        let entry = entry.trim().trim_start_matches('.').to_ascii_lowercase();
        entry == "*" || entry == host || (!entry.is_empty() && host.ends_with(&format!(".{entry}")))
    };
    no_proxy.is_some_and(|list| list.split([',', ' ']).any(matches))
}

/// A home folder of this process's own for libgit2, which reads the kinds of key that it asks an ssh host for from
/// `~/.ssh/known_hosts` and from nowhere else. Without it a host would show a key of a kind that is not among the known
/// ones.
///
/// Everybody can write where it lies: its name is one that nobody can foresee, and it is used only where this process
/// made it.
#[derive(Debug)]
pub(super) struct Home;

/// Where the folder of this process is, and whether it has made it.
struct HomeFolder {
    path: PathBuf,
    is_made: AtomicBool,
}

static HOME: OnceLock<HomeFolder> = OnceLock::new();

impl Home {
    /// Names the folder to libgit2, which looks at `HOME` when it is first used. It is made once an ssh host is asked.
    pub fn announce() -> Home {
        remove_left_over_homes();
        // SAFETY: the child has one thread here.
        unsafe { std::env::set_var("HOME", &home().path) };
        Home
    }

    /// Writes what is known of a host to where libgit2 reads it.
    fn fill(known: &KnownHost<'_>) -> Result<(), GitError> {
        let home = home();
        let fill = || {
            let ssh = home.path.join(".ssh");
            if !home.is_made.load(Ordering::Relaxed) {
                // Not `create_dir_all`: a folder that somebody else made under this name is refused.
                std::fs::DirBuilder::new().mode(0o700).create(&home.path)?;
                std::fs::create_dir(&ssh)?;
                home.is_made.store(true, Ordering::Relaxed);
            }
            std::fs::write(ssh.join("known_hosts"), known.as_file())
        };
        fill().map_err(|error| GitError::passing(format!("cannot write {}: {error}", home.path.display())))
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if home().is_made.load(Ordering::Relaxed) {
            // It holds public keys only; one that stays is removed by the next child.
            let _ = std::fs::remove_dir_all(&home().path);
        }
    }
}

/// How the names of such folders begin; the process id follows, and chance.
const HOME_PREFIX: &str = "shiparr-ssh-";

/// In shared memory where there is some: a check writes nothing to the disk.
fn home_base() -> PathBuf {
    let shared_memory = PathBuf::from("/dev/shm");
    if shared_memory.is_dir() { shared_memory } else { std::env::temp_dir() }
}

fn home() -> &'static HomeFolder {
    HOME.get_or_init(|| {
        let mut chance = [0; 8];
        // Without chance the name can be foreseen, and a folder that somebody made under it is still refused.
        let _ = getrandom::fill(&mut chance);
        let name = format!("{HOME_PREFIX}{}-{:016x}", std::process::id(), u64::from_ne_bytes(chance));
        HomeFolder { path: home_base().join(name), is_made: AtomicBool::new(false) }
    })
}

/// Removes those of children that were killed.
fn remove_left_over_homes() {
    let ours = rustix::process::geteuid().as_raw();
    for entry in std::fs::read_dir(home_base()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(HOME_PREFIX)) else { continue };
        let process = rest.split_once('-').map_or(rest, |(process, _)| process);
        let is_gone = !Path::new("/proc").join(process).exists() || process == std::process::id().to_string();
        let is_ours = entry.metadata().is_ok_and(|metadata| metadata.is_dir() && metadata.uid() == ours);
        if is_gone && is_ours {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::git::testing::{credential, remote};

    #[test]
    fn a_home_that_somebody_else_made_is_not_written_to() {
        let made = home().path.join(".ssh");
        std::fs::create_dir_all(&made).unwrap();
        let precious = tempfile::NamedTempFile::new().unwrap();
        std::os::unix::fs::symlink(precious.path(), made.join("known_hosts")).unwrap();
        std::fs::write(precious.path(), "precious").unwrap();
        let error = Home::fill(&KnownHost::read("h", 22, &[]).unwrap()).unwrap_err();
        assert!(error.message.contains("exists"), "{error}");
        assert_eq!(std::fs::read_to_string(precious.path()).unwrap(), "precious");
        std::fs::remove_dir_all(&home().path).unwrap();
    }

    #[test]
    fn a_place_that_cannot_be_read_as_a_url_gets_no_credential() {
        let remote = Remote { credential: credential("token"), ..remote("https://h/p") };
        let connection = Connection { remote: &remote, refused: RefCell::new(None), offered: Cell::new(false) };
        for url in ["https://other/a b", "https://other/p?q", "https://other/p", "https://h:444/p", "http://h/p", ""] {
            assert!(connection.http_credential(url).is_err(), "{url}");
        }
        assert!(connection.http_credential("https://h/p").is_ok());
    }
}
