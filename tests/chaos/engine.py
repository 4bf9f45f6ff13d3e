"""Docker, as far as it has to fail: an engine that can be restarted, and a socket in front of it that can be cut."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import quote

SHARED_SOCKET = "/var/run/docker.sock"
IMAGE = "shiparr-test/busybox:1"
START_LIMIT_SECONDS = 60
STOP_LIMIT_SECONDS = 60
# What of a request says in which step of an `up` Compose is.
STEP = re.compile(rb"^(?:POST|DELETE) (?:/v[0-9.]+)?/containers/(?:(create)|[^/ ]+/(start|stop|rename|kill)|[^/? ]+)[? ]")


class Unix(HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path, timeout=60):
        super().__init__("docker", timeout=timeout)
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


class Engine:
    """What an engine answers."""

    def __init__(self, path):
        self.socket = path

    def ask(self, method, path):
        connection = Unix(self.socket)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status >= 400:
                raise OSError(f"{method} {path}: {answer.status} {body.decode(errors='replace').strip()}")
            return json.loads(body) if body else None
        finally:
            connection.close()

    def containers(self, compose_project):
        """All containers of a compose project, as `docker inspect` shows them."""
        filters = quote(json.dumps({"label": [f"com.docker.compose.project={compose_project}"]}))
        found = self.ask("GET", f"/containers/json?all=true&filters={filters}")
        return [self.ask("GET", f"/containers/{container['Id']}/json") for container in found]

    def remove_project(self, compose_project):
        """Removes containers and networks, by label."""
        filters = quote(json.dumps({"label": [f"com.docker.compose.project={compose_project}"]}))
        for container in self.ask("GET", f"/containers/json?all=true&filters={filters}"):
            self.ask("DELETE", f"/containers/{container['Id']}?force=true")
        for network in self.ask("GET", f"/networks?filters={filters}"):
            self.ask("DELETE", f"/networks/{network['Id']}")


class OwnEngine(Engine):
    """An engine in namespaces of its own: its bridge and its packet filter rules are nobody else's, and when the first
    process of its process namespace is killed, all of its containers are gone in the same moment, as in a power cut."""

    SCRIPT = (
        'ip link set lo up && exec dockerd --data-root "$1/root" --exec-root "$1/exec" --pidfile "$1/exec/pid" '
        '--host "unix://$1/docker.sock" --bip 172.31.255.1/24 >>"$1/log" 2>&1'
    )

    def __init__(self, folder):
        super().__init__(Path(folder) / "docker.sock")
        self.folder = Path(folder)
        self.folder.mkdir()
        self.process = None

    @staticmethod
    def can_run():
        """Whether this user and this machine can have one."""
        if os.geteuid() != 0 or not shutil.which("dockerd") or not shutil.which("ip"):
            return False
        probe = ["unshare", "--net", "--pid", "--mount", "--fork", "--mount-proc", "true"]
        return subprocess.run(probe, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0

    def start(self):
        # What is on a tmpfs is gone after a reboot, and an engine that was killed stumbles over its own pid file.
        shutil.rmtree(self.folder / "exec", ignore_errors=True)
        (self.folder / "exec").mkdir()
        self.process = subprocess.Popen(
            ["unshare", "--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "sh", "-c", self.SCRIPT, "sh", str(self.folder)],
            stdin=subprocess.DEVNULL, start_new_session=True,
        )
        until = time.monotonic() + START_LIMIT_SECONDS
        while True:
            try:
                self.ask("GET", "/version")
                return
            except (OSError, ValueError):
                if time.monotonic() > until or self.process.poll() is not None:
                    raise RuntimeError(f"the engine did not start: {(self.folder / 'log').read_text()[-2000:]}") from None
                time.sleep(0.05)

    def load_image(self):
        """From the shared engine, which has it."""
        saved = subprocess.Popen(["docker", "--host", f"unix://{SHARED_SOCKET}", "save", IMAGE], stdout=subprocess.PIPE)
        subprocess.run(["docker", "--host", f"unix://{self.socket}", "load", "--quiet"], stdin=saved.stdout, capture_output=True, check=True)
        saved.stdout.close()
        if saved.wait() != 0:
            raise RuntimeError(f"the engine at {SHARED_SOCKET} has no image {IMAGE}: tests/run unit makes it")

    def stop(self):
        """As `systemctl stop docker` does: containers get their signal and their grace period."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            os.kill(int(child), signal.SIGTERM)
        self.process.wait(timeout=STOP_LIMIT_SECONDS)

    def kill(self):
        """The engine and all containers, at once."""
        self.process.kill()
        self.process.wait()


class Proxy:
    """A socket in front of an engine's. `moment` is called with the step that a passing request belongs to."""

    def __init__(self, path, engine, moment):
        self.path, self.engine, self.moment = str(path), engine, moment
        self.flowing = threading.Event()
        self.flowing.set()
        self.streams, self.lock = set(), threading.Lock()
        self.listener = None
        self.open()

    def open(self):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(self.path)
        self.listener.listen(128)
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def close(self):
        """The engine's socket is gone, and what was connected is cut."""
        os.unlink(self.path)
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()

    def cut(self):
        """What is connected is cut; new connections go through."""
        with self.lock:
            for stream in self.streams:
                end(stream)

    def hang(self):
        """Connections are accepted, and nothing passes."""
        self.flowing.clear()

    def flow(self):
        """Everything that was held passes on."""
        self.flowing.set()

    def accept(self, listener):
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self.connect, args=(client,), daemon=True).start()

    def connect(self, client):
        with client, socket.socket(socket.AF_UNIX) as server:
            try:
                server.connect(str(self.engine.socket))
            except OSError:
                return
            pair = {client, server}
            with self.lock:
                self.streams |= pair
            answers = threading.Thread(target=self.pump, args=(server, client, False), daemon=True)
            answers.start()
            self.pump(client, server, True)
            answers.join()
            with self.lock:
                self.streams -= pair

    def pump(self, source, target, look):
        try:
            while data := source.recv(65536):
                self.flowing.wait()
                if look and (step := STEP.match(data)):
                    self.moment((step[1] or step[2] or b"remove").decode())
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            end(source)
            end(target)


def end(stream):
    try:
        stream.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
