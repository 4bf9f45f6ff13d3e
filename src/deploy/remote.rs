//! From a configured repository to the remote that git talks to.

use crate::config::{Repository, Settings};
use crate::git::Remote;

/// The repository's remote with its credentials as they are now; the check and the deployment use the same.
///
/// # Errors
/// A token or passphrase that cannot be had now, in one line that says where it should come from.
pub fn of(repository: &Repository, settings: &Settings) -> Result<Remote, String> {
    let passphrase = repository.ssh_key_passphrase.as_ref().map(|template| {
        template.resolve(&settings.environment).map_err(|error| format!("`ssh_key_passphrase`: {error}"))
    });
    Ok(Remote {
        url: repository.url.clone(),
        branch: repository.branch.clone(),
        credential: repository.credential(&settings.environment)?,
        insecure_http: repository.insecure_http,
        ca_file: repository.ca_file.clone(),
        ssh_key: repository.ssh_key.clone(),
        ssh_key_passphrase: passphrase.transpose()?,
        known_hosts: settings.ssh_known_hosts.clone(),
        proxies: settings.proxies.clone(),
    })
}
