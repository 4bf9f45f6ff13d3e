//! TLS in front of a Git remote: nginx with a certificate of its own authority.

use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use super::nginx::Nginx;

/// `https://HOST:PORT` in front of `http://127.0.0.1:BEHIND`.
pub struct Tls {
    port: u16,
    nginx: Nginx,
}

impl Tls {
    /// `https://127.0.0.1` with a free port: makes a certificate and starts nginx.
    pub fn in_front_of(behind: u16) -> Tls {
        let port = {
            let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind a free port");
            listener.local_addr().expect("a bound listener has an address").port()
        };
        Tls::start("IP:127.0.0.1", port, behind)
    }

    /// The same for a name and a port; that the name leads to 127.0.0.1 is the caller's part.
    pub fn of_name(name: &str, port: u16, behind: u16) -> Tls {
        Tls::start(&format!("DNS:{name}"), port, behind)
    }

    fn start(alternative_name: &str, port: u16, behind: u16) -> Tls {
        let folder = TempDir::with_prefix("shiparr-test-tls-").expect("make a folder");
        make_certificate(&folder, alternative_name);
        let here = folder.path().display().to_string();
        let server = format!(
            "    listen 127.0.0.1:{port} ssl;\n    ssl_certificate {here}/server.pem;\n    \
             ssl_certificate_key {here}/server.key;\n    location / {{ proxy_pass http://127.0.0.1:{behind}; }}"
        );
        Tls { port, nginx: Nginx::start(folder, port, &server) }
    }

    /// `https://127.0.0.1:PORT/NAME.git`.
    pub fn url(&self, name: &str) -> String {
        format!("https://127.0.0.1:{}/{name}.git", self.port)
    }

    /// The certificate of the authority.
    pub fn ca_file(&self) -> PathBuf {
        self.nginx.folder().join("ca.pem")
    }
}

fn make_certificate(folder: &TempDir, alternative_name: &str) {
    let run = |args: &str| {
        let output = Command::new("openssl")
            .args(args.split_whitespace())
            .current_dir(folder.path())
            .output()
            .expect("start openssl");
        assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let extensions = format!("subjectAltName={alternative_name}\n");
    fs::write(folder.path().join("extensions"), extensions).expect("write the extensions");
    run("req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=shiparr-test-authority");
    run("req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=127.0.0.1");
    run(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 2 -extfile extensions",
    );
}
