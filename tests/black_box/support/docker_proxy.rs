//! A socket in front of the real engine's, so that an engine can go away and come back for one daemon alone.

use std::fs;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

const ENGINE: &str = "/var/run/docker.sock";

/// Forwards connections to the engine while it is open.
pub struct DockerProxy {
    folder: TempDir,
    open: Option<Open>,
}

struct Open {
    closing: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<UnixStream>>>,
    accepting: JoinHandle<()>,
}

impl DockerProxy {
    /// An open one.
    pub fn start() -> DockerProxy {
        let folder = TempDir::with_prefix("shiparr-test-docker-").expect("make a folder");
        let mut proxy = DockerProxy { folder, open: None };
        proxy.open();
        proxy
    }

    /// For `DOCKER_HOST`.
    pub fn host(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// The engine is there again.
    pub fn open(&mut self) {
        let listener = UnixListener::bind(self.socket()).expect("bind the socket");
        let closing = Arc::new(AtomicBool::new(false));
        let streams = Arc::default();
        let accepting = {
            let (closing, streams) = (Arc::clone(&closing), Arc::clone(&streams));
            thread::spawn(move || accept(&listener, &closing, &streams))
        };
        self.open = Some(Open { closing, streams, accepting });
    }

    /// The engine is gone: its socket is not there, and what was connected is cut.
    pub fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        open.closing.store(true, Ordering::SeqCst);
        let _ = UnixStream::connect(self.socket());
        fs::remove_file(self.socket()).expect("remove the socket");
        open.accepting.join().expect("the accepting thread does not panic");
        for stream in open.streams.lock().expect("nobody panics with it").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }
}

impl Drop for DockerProxy {
    fn drop(&mut self) {
        self.close();
    }
}

fn accept(listener: &UnixListener, closing: &AtomicBool, streams: &Mutex<Vec<UnixStream>>) {
    for client in listener.incoming().flatten() {
        if closing.load(Ordering::SeqCst) {
            return;
        }
        let Ok(engine) = UnixStream::connect(ENGINE) else { continue };
        let copies = [(&client, &engine), (&engine, &client)].map(|(from, to)| (from.try_clone(), to.try_clone()));
        for copy in copies {
            let (Ok(from), Ok(to)) = copy else { continue };
            thread::spawn(move || forward(from, to));
        }
        streams.lock().expect("nobody panics with it").extend([client, engine]);
    }
}

fn forward(mut from: UnixStream, mut to: UnixStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
}
