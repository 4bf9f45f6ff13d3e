//! nginx on loopback, with a folder of its own for everything that it writes.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::wait::{SHORT, wait_until};

/// One that runs.
pub struct Nginx {
    folder: TempDir,
    process: Child,
}

impl Nginx {
    /// Starts it with what stands in its only `server`, which listens on this port of 127.0.0.1; `folder` may hold files
    /// that it names.
    pub fn start(folder: TempDir, port: u16, server: &str) -> Nginx {
        let here = folder.path().display();
        let configuration = format!(
            "daemon off;\npid {here}/pid;\nerror_log {here}/error.log;\nevents {{}}\nhttp {{\n  access_log off;\n  \
             client_body_temp_path {here}/body;\n  proxy_temp_path {here}/proxy;\n  fastcgi_temp_path {here}/fastcgi;\n  \
             uwsgi_temp_path {here}/uwsgi;\n  scgi_temp_path {here}/scgi;\n  server {{\n{server}\n  }}\n}}\n"
        );
        let file = folder.path().join("nginx.conf");
        fs::write(&file, configuration).expect("write the configuration");
        let process = Command::new("nginx")
            .arg("-c")
            .arg(&file)
            .arg("-e")
            .arg(folder.path().join("error.log"))
            .stdin(Stdio::null())
            .spawn()
            .expect("start nginx");
        let mut nginx = Nginx { folder, process };
        wait_until(SHORT, "nginx to listen", || {
            let ended = nginx.process.try_wait().expect("ask for its end");
            assert!(ended.is_none(), "nginx ended: {}", nginx.log());
            TcpStream::connect(("127.0.0.1", port)).ok().map(drop)
        });
        nginx
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("error.log")).unwrap_or_default()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // nginx takes its workers along only when it is asked to end.
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}
