"""Shiparr as a service: how soon it is ready, what a restart loses, and how large what people download is."""

import os
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

from lab import READY_LIMIT_SECONDS, ask, free_port, project, sh

STARTS = 5
RESTARTS = 10
CLIENTS = 4


class Service:
    """A daemon as a service manager starts it: it says when it is ready, and may be handed a listening socket."""

    def __init__(self, binary, folder, projects):
        self.binary, self.folder = binary, Path(folder)
        config = self.folder / "projects"
        config.mkdir(parents=True, exist_ok=True)
        for name, text in projects.items():
            (config / f"{name}.yaml").write_text(text)
        self.runtime = Path(tempfile.mkdtemp(prefix="shiparr-bench-", dir="/dev/shm"))
        self.port = free_port()
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(self.runtime / "notify"))
        self.notify.settimeout(READY_LIMIT_SECONDS)
        self.process = None

    def start(self, listener=None):
        """Starts it, and answers how many seconds it took until READY=1."""
        env = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "Shiparr_CONFIG_PATH": str(self.folder / "projects"),
            "Shiparr_DATA_PATH": str(self.folder / "data"), "Shiparr_RUNTIME_PATH": str(self.runtime),
            "Shiparr_LOG_LEVEL": "ERROR", "NOTIFY_SOCKET": str(self.runtime / "notify"),
        }
        command = [self.binary, "run"]
        handed_over = ()
        if listener is None:
            env["Shiparr_PORT"] = str(self.port)
        else:
            # The first descriptor is number 3 (sd_listen_fds(3)), and the process must be the one that is meant.
            number = listener.fileno()
            handed_over = (number,)
            script = f'exec 3<&{number}; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=shiparr; exec "$0" run'
            command = ["bash", "-c", script, self.binary]
        began = time.perf_counter()
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, pass_fds=handed_over)
        while b"READY=1" not in self.notify.recv(4096).split(b"\n"):
            pass
        return time.perf_counter() - began

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=90)

    def remove(self):
        self.notify.close()
        shutil.rmtree(self.runtime, ignore_errors=True)


def bench_ready(binary, folder, counts, table):
    began = time.perf_counter()
    sh("docker", "compose", "version")
    reference = time.perf_counter() - began
    targets = {10: "at most 50 ms", 1000: "at most 500 ms"}
    for count in counts:
        names = {f"r{n}": {"url": "/none/such.git", "check_interval": 86400, "compose_project": f"shiparr-bench-ready-{n}"} for n in range(count)}
        service = Service(binary, Path(folder) / f"service-{count}", {"bench": project("bench", names)})
        service.start()
        service.stop()
        times = []
        for _ in range(STARTS):
            times.append(service.start())
            service.stop()
        service.remove()
        table.add(f"exec until READY=1, {count} repositories, median", statistics.median(times) * 1000, "ms", "docker compose version",
                  reference * 1000, targets.get(count, "-"))


class Clients:
    """Ask again and again, each time on a new connection, and count."""

    def __init__(self, port):
        self.asked = self.lost = 0
        self.longest_seconds = 0.0
        self.port, self.lock, self.over = port, threading.Lock(), threading.Event()
        self.threads = [threading.Thread(target=self.go_on) for _ in range(CLIENTS)]
        for thread in self.threads:
            thread.start()

    def go_on(self):
        while not self.over.is_set():
            seconds, status = 0.0, 0
            try:
                seconds, status, _ = ask(self.port, "/api/health", headers={"Connection": "close"})
            except OSError:
                # Nobody listens: as fast as one can, this would count nothing but itself.
                time.sleep(0.01)
            with self.lock:
                self.asked += 1
                self.lost += status != 200
                self.longest_seconds = max(self.longest_seconds, seconds)

    def stop(self):
        self.over.set()
        for thread in self.threads:
            thread.join()


def lost_in_restarts(service, listener, port):
    service.start(listener)
    clients = Clients(port)
    for _ in range(RESTARTS):
        service.stop()
        service.start(listener)
    clients.stop()
    service.stop()
    return clients


def bench_restarts(binary, folder, table):
    """With a socket that stays, as systemd's, beside a daemon that binds its own."""
    names = {f"r{n}": {"url": "/none/such.git", "check_interval": 86400} for n in range(10)}
    service = Service(binary, Path(folder) / "restarts", {"bench": project("bench", names)})
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        with_socket = lost_in_restarts(service, listener, listener.getsockname()[1])
    without = lost_in_restarts(service, None, service.port)
    service.remove()
    table.add(f"requests lost in {RESTARTS} restarts, of {with_socket.asked}", with_socket.lost, "requests", f"without the socket unit, of {without.asked}",
              without.lost, "0")
    table.add(f"longest wait in {RESTARTS} restarts", with_socket.longest_seconds * 1000, "ms", "without the socket unit",
              without.longest_seconds * 1000, "-")


def bench_sizes(binary, table):
    """Of packages and image as they were built last; of none that was not."""
    size = os.path.getsize(binary)
    for package in sorted(Path("target/packages").glob("*.deb")) + sorted(Path("target/packages").glob("*.rpm")):
        target = "at most 3 MB" if package.suffix == ".deb" else "-"
        table.add(f"size of {package.name}", package.stat().st_size / 1e6, "MB", "the binary", size / 1e6, target)
    images = sh("docker", "images", "--no-trunc", "--filter", "label=org.opencontainers.image.title=Shiparr", "--format", "{{.Repository}}:{{.Tag}}")
    for image in images.split():
        image_size = int(sh("docker", "image", "inspect", "--format", "{{.Size}}", image))
        table.add(f"size of the image {image}", image_size / 1e6, "MB", "the binary", size / 1e6, "-")


def bench_service(binary, folder, counts, table):
    bench_ready(binary, folder, counts, table)
    bench_restarts(binary, folder, table)
    bench_sizes(binary, table)
