"""What the parts of the benchmark stand on: daemons, remotes, other servers to compare with, and the table."""

import json
import math
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import git_backend

READY_LIMIT_SECONDS = 60
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")


def sh(*args, cwd=None, env=None):
    """Runs a command, fails loudly, returns its output."""
    done = subprocess.run(args, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"bench: {' '.join(args)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class GitServer:
    """`git http-backend` behind a loopback server that counts requests and the bytes of its answers."""

    def __init__(self, root):
        self.requests = 0
        self.sent_bytes = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers, content = git_backend.answer(self, body, root)
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
                outer.requests += 1
                outer.sent_bytes += len(content)

            do_GET = do_POST = answer

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            # A thousand first checks come at once.
            request_queue_size = 1024

            def handle_error(self, *_):
                """A daemon that is stopped leaves in the middle of an answer."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


class Daemon:
    """A daemon with folders of its own, ready when it answers. Further settings are given by their names."""

    def __init__(self, binary, folder, projects, **settings):
        self.folder = Path(folder)
        config = self.folder / "projects"
        config.mkdir(parents=True, exist_ok=True)
        for name, text in projects.items():
            (config / f"{name}.yaml").write_text(text)
        self.port = free_port()
        self.runtime = Path(tempfile.mkdtemp(prefix="shiparr-bench-", dir="/dev/shm"))
        env = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "Shiparr_PORT": str(self.port),
            "Shiparr_CONFIG_PATH": str(config), "Shiparr_DATA_PATH": str(self.folder / "data"),
            "Shiparr_RUNTIME_PATH": str(self.runtime), "Shiparr_LOG_LEVEL": "WARNING",
            **settings,
        }
        began = time.perf_counter()
        self.log = open(self.folder / "log", "a")
        self.process = subprocess.Popen([binary, "run"], env=env, stdin=subprocess.DEVNULL, stderr=self.log)
        while True:
            try:
                self.get("/api/health")
                break
            except OSError:
                if time.perf_counter() - began > READY_LIMIT_SECONDS or self.process.poll() is not None:
                    raise SystemExit(f"bench: the daemon did not get ready: {(self.folder / 'log').read_text()}")
                time.sleep(0.001)
        self.ready_seconds = time.perf_counter() - began

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.load(answer)

    def post(self, path):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=b"{}", method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def status(self, name):
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1])
        raise KeyError(name)

    def cpu_seconds(self):
        """User and system time of the process and of the children that it waited for."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(int(field) for field in fields[11:15]) / CLOCK_TICKS

    def write_bytes(self):
        text = Path(f"/proc/{self.process.pid}/io").read_text()
        return int(text.split("write_bytes: ")[1].split()[0])

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=90)
        shutil.rmtree(self.runtime, ignore_errors=True)


class Nginx:
    """Serves files, by name to content, and answers 202 to whatever is sent to /hook."""

    def __init__(self, folder, files):
        root = Path(folder) / "nginx"
        root.mkdir()
        for name, content in files.items():
            (root / name).write_text(content)
        self.port = free_port()
        (root / "nginx.conf").write_text(
            f"daemon off; worker_processes 2; pid {root}/pid; error_log {root}/error;\nevents {{}}\n"
            "http { access_log off; keepalive_requests 1000000; "
            f"server {{ listen 127.0.0.1:{self.port}; root {root}; location = /hook {{ return 202; }} }} }}\n"
        )
        # Its workers are another user.
        os.chmod(folder, 0o755)
        self.process = subprocess.Popen(["nginx", "-p", str(root), "-c", str(root / "nginx.conf")], stderr=subprocess.DEVNULL)
        until = time.perf_counter() + READY_LIMIT_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            except OSError:
                if time.perf_counter() > until or self.process.poll() is not None:
                    raise SystemExit("bench: nginx did not get ready")
                time.sleep(0.01)

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Table:
    """Figures, each beside what it was measured against."""

    def __init__(self):
        self.rows = []

    def add(self, name, value, unit, beside, reference, target):
        ratio = value / reference if reference else None
        self.rows.append({"name": name, "value": value, "unit": unit, "beside": beside, "reference": reference, "ratio": ratio, "target": target})
        shown = "-" if ratio is None else f"{ratio:.3f}"
        print(f"{name:<52} {value:>12.3f} {unit:<9} {shown:>9} of {beside} ({reference:.3f} {unit}); target {target}", flush=True)


def project(name, repositories):
    """A project file with these repositories: name to lines of YAML."""
    lines = [f"project: {name}", "repositories:"]
    for repository, fields in repositories.items():
        lines.append(f"  {repository}:")
        lines += [f"    {key}: {value}" for key, value in fields.items()]
    return "\n".join(lines) + "\n"


def new_remote(folder, files):
    """A bare repository and a clone to push from."""
    bare, work = Path(folder) / "remote.git", Path(folder) / "work"
    sh("git", "init", "-q", "--bare", "-b", "main", str(bare))
    sh("git", "init", "-q", "-b", "main", str(work))
    sh("git", "-C", str(work), "remote", "add", "origin", str(bare))
    push(work, files)
    return bare, work


def push(work, files):
    for name, text in files.items():
        (work / name).write_text(text)
    sh("git", "-C", str(work), "add", "-A")
    sh("git", "-C", str(work), "-c", "user.name=Bench", "-c", "user.email=bench@example.com", "commit", "-qm", "Next version")
    sh("git", "-C", str(work), "push", "-q", "origin", "main")


def idle(daemon):
    """Waits until the daemon has nothing to do."""
    while daemon.get("/api/deployments?status=pending") or daemon.get("/api/deployments?status=running"):
        time.sleep(0.02)


def ask(port, path, method="GET", body=None, headers=None):
    """One request on a connection of its own: seconds until the whole answer is there, its status and its body."""
    began = time.perf_counter()
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        return time.perf_counter() - began, answer.status, content
    finally:
        connection.close()


def percentile(values, percent):
    """The smallest of the values that as many per cent of them do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]
