//! An ssh remote: sshd on loopback with keys of its own.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::wait::{SHORT, wait_until};

/// sshd with one host key and one user key that may log in as the user that runs the tests.
pub struct Ssh {
    folder: TempDir,
    port: u16,
    sshd: Option<Child>,
}

impl Ssh {
    /// Makes the keys and starts sshd.
    pub fn start() -> Ssh {
        let folder = TempDir::with_prefix("shiparr-test-ssh-").expect("make a folder");
        let port = {
            let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind a free port");
            listener.local_addr().expect("a bound listener has an address").port()
        };
        let mut ssh = Ssh { folder, port, sshd: None };
        ssh.make_key("user", "");
        ssh.make_key("locked", "open sesame");
        let authorized: String = ["user.pub", "locked.pub"]
            .map(|name| fs::read_to_string(ssh.folder.path().join(name)).expect("the key was made"))
            .concat();
        fs::write(ssh.folder.path().join("authorized"), authorized).expect("write the authorized keys");
        ssh.new_host_key();
        ssh
    }

    /// Gives the host another key; what was known of it is wrong from now on.
    pub fn new_host_key(&mut self) {
        self.stop();
        for name in ["host", "host.pub"] {
            let _ = fs::remove_file(self.folder.path().join(name));
        }
        self.make_key("host", "");
        let here = self.folder.path().display();
        let configuration = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {here}/host\nAuthorizedKeysFile {here}/authorized\n\
             PidFile none\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin prohibit-password\nUsePAM no\n",
            port = self.port
        );
        let file = self.folder.path().join("sshd_config");
        fs::write(&file, configuration).expect("write the configuration");
        // sshd wants this folder, which a package's start script would make.
        let _ = fs::create_dir_all("/run/sshd");
        let mut command = Command::new("/usr/sbin/sshd");
        command.arg("-D").arg("-e").arg("-f").arg(&file).stdin(Stdio::null()).stderr(Stdio::null());
        self.sshd = Some(command.spawn().expect("start sshd"));
        wait_until(SHORT, "sshd to listen", || TcpStream::connect(("127.0.0.1", self.port)).ok().map(drop));
    }

    /// `ssh://USER@127.0.0.1:PORT/path`.
    pub fn url(&self, path: &str) -> String {
        format!("ssh://root@127.0.0.1:{}{path}", self.port)
    }

    /// The private key that needs no passphrase.
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("user")
    }

    /// The private key whose passphrase is `open sesame`.
    pub fn locked_key(&self) -> PathBuf {
        self.folder.path().join("locked")
    }

    /// The line that known hosts hold of it.
    pub fn known_hosts_line(&self) -> String {
        let public = fs::read_to_string(self.folder.path().join("host.pub")).expect("the key was made");
        let mut words = public.split_whitespace();
        let (kind, key) = (words.next().expect("a kind"), words.next().expect("a key"));
        format!("[127.0.0.1]:{} {kind} {key}\n", self.port)
    }

    /// `SHA256:…` of the host's key.
    pub fn fingerprint(&self) -> String {
        let output = Command::new("ssh-keygen").args(["-l", "-f"]).arg(self.folder.path().join("host.pub")).output();
        let text = String::from_utf8(output.expect("start ssh-keygen").stdout).expect("it prints text");
        text.split_whitespace().nth(1).expect("a fingerprint").to_owned()
    }

    fn make_key(&self, name: &str, passphrase: &str) {
        let path = self.folder.path().join(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", passphrase, "-f"])
            .arg(&path)
            .status()
            .expect("start ssh-keygen");
        assert!(made.success());
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).expect("close the key");
    }

    fn stop(&mut self) {
        if let Some(mut sshd) = self.sshd.take() {
            let _ = sshd.kill();
            let _ = sshd.wait();
        }
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        self.stop();
    }
}
