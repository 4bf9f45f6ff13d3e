"""The parts of the benchmark about what asks the daemon over HTTP: forges, those who listen, slow clients, Prometheus."""

import hashlib
import hmac
import json
import multiprocessing
import resource
import selectors
import socket
import sqlite3
import subprocess
import time
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from lab import Daemon, GitServer, Nginx, ask, idle, new_remote, percentile, project

DELIVERIES = 100
LISTENERS = 100
CHANGES = 50
SLOW_CONNECTIONS = 2000
SLOW_SECONDS = 10
SCRAPES = 50
SCRAPED_REPOSITORIES = 1000
SCRAPED_HISTORY = 10
# A branch that no remote has: repositories that follow it are checked and never deployed by themselves, and a
# deployment that is asked for ends at the fetch.
NO_BRANCH = "none-such"
WEBHOOK_SECRET = "a secret of the benchmark"
WAIT_LIMIT_SECONDS = 120


def checked_daemon(binary, folder, count, **settings):
    """A daemon whose repositories `r0`, `r1` … were each checked once, and their URLs."""
    remotes = Path(folder) / "remotes"
    remotes.mkdir()
    bare, _ = new_remote(remotes, {"compose.yaml": "services: {}\n"})
    for number in range(count):
        (remotes / f"r{number}.git").symlink_to(bare)
    server = GitServer(remotes)
    urls = [f"{server.url}/r{number}.git" for number in range(count)]
    names = {f"r{number}": {"url": url, "branch": NO_BRANCH, "check_interval": 86400, "compose_project": f"shiparr-bench-web-{number}"}
             for number, url in enumerate(urls)}
    daemon = Daemon(binary, Path(folder) / "daemon", {"bench": project("bench", names)}, **settings)
    until = time.perf_counter() + WAIT_LIMIT_SECONDS
    while any(repository["last_checked_at"] is None for repository in daemon.get("/api/repositories")):
        if time.perf_counter() > until:
            daemon.stop()
            raise SystemExit(f"bench: not all of {count} repositories were checked within {WAIT_LIMIT_SECONDS} s")
        time.sleep(0.2)
    return daemon, urls


def add_percentiles(table, name, times, beside, references, target, percents=(50, 99)):
    """One row for each percentile of times in seconds."""
    for percent in percents:
        label = "longest" if percent == 100 else f"p{percent}"
        table.add(f"{name}, {label}", percentile(times, percent) * 1000, "ms", beside, percentile(references, percent) * 1000, target)


def bench_webhook(binary, folder, table):
    daemon, urls = checked_daemon(binary, folder, DELIVERIES, Shiparr_WEBHOOK_SECRET=WEBHOOK_SECRET)
    nginx = Nginx(folder, {})
    try:
        answered, started, reference_answered, reference_asked = [], [], [], []
        for number, url in enumerate(urls):
            body, headers = delivery(number, url)
            idle(daemon)
            sent_at = time.time()
            seconds, status, content = ask(daemon.port, "/webhook/github", "POST", body, headers)
            if status != 202:
                raise SystemExit(f"bench: delivery {number} was answered {status}: {content.decode()}")
            answered.append(seconds)
            idle(daemon)
            started.append(started_at(daemon, json.loads(content)["deployment_ids"]) - sent_at)
            reference_answered.append(ask(nginx.port, "/hook", "POST", body, headers)[0])
            began = time.perf_counter()
            subprocess.run(["git", "ls-remote", url, f"refs/heads/{NO_BRANCH}"], check=True, stdout=subprocess.DEVNULL)
            reference_asked.append(time.perf_counter() - began)
        name = f"{DELIVERIES} webhooks, each until 202"
        add_percentiles(table, name, answered, "nginx, return 202", reference_answered, "at most 10 ms")
        name = f"{DELIVERIES} webhooks, each until the deployment starts"
        add_percentiles(table, name, started, "git ls-remote", reference_asked, "at most 50 ms")
    finally:
        nginx.stop()
        daemon.stop()


def delivery(number, url):
    """A push to a repository as GitHub tells it: body and headers."""
    body = json.dumps({
        "ref": f"refs/heads/{NO_BRANCH}", "before": "1" * 40, "after": "2" * 40, "created": False, "deleted": False, "forced": False,
        "repository": {"id": number, "full_name": f"bench/r{number}", "clone_url": url, "html_url": url.removesuffix(".git")},
        "pusher": {"name": "bench", "email": "bench@example.com"}, "commits": [],
    }).encode()
    signature = hmac.new(WEBHOOK_SECRET.encode(), body, hashlib.sha256).hexdigest()
    return body, {
        "Content-Type": "application/json", "X-GitHub-Event": "push", "X-GitHub-Delivery": f"bench-{number}",
        "X-Hub-Signature-256": f"sha256={signature}",
    }


def started_at(daemon, deployment_ids):
    """When the only one of these deployments started, as seconds since the epoch. The API says whole seconds, the database more."""
    (deployment_id,) = deployment_ids
    database = sqlite3.connect(daemon.folder / "data/Shiparr.db")
    try:
        return database.execute("SELECT started_at FROM deployments WHERE id = ?", (deployment_id,)).fetchone()[0] / 1000
    finally:
        database.close()


class Listeners:
    """Clients of /api/events."""

    def __init__(self, port, count):
        self.selector = selectors.DefaultSelector()
        for _ in range(count):
            connection = socket.create_connection(("127.0.0.1", port), timeout=10)
            connection.sendall(f"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            if not connection.recv(64 * 1024).startswith(b"HTTP/1.1 200 "):
                raise SystemExit("bench: a listener was refused")
            connection.setblocking(False)
            self.selector.register(connection, selectors.EVENT_READ)

    def wait_for(self, text):
        """Waits until every one of them was told something with this text in it."""
        told = {key.fileobj: b"" for key in self.selector.get_map().values()}
        waiting = set(told)
        until = time.perf_counter() + WAIT_LIMIT_SECONDS
        while waiting:
            if time.perf_counter() > until:
                raise SystemExit(f"bench: {len(waiting)} listeners were not told of a change")
            for key, _ in self.selector.select(timeout=1):
                news = key.fileobj.recv(64 * 1024)
                if not news:
                    raise SystemExit("bench: a listener was dropped")
                told[key.fileobj] += news
                if text in told[key.fileobj]:
                    waiting.discard(key.fileobj)

    def close(self):
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        self.selector.close()


def bench_events(binary, folder, table):
    daemon, _ = checked_daemon(binary, folder, CHANGES)
    try:
        alone = times_to_tell(daemon, 1)
        together = times_to_tell(daemon, LISTENERS)
        add_percentiles(table, f"a change until the last of {LISTENERS} listeners has it", together, "one listener", alone, "-")
    finally:
        daemon.stop()


def times_to_tell(daemon, count):
    """From a POST that queues a deployment until the last of so many listeners was told of it, in seconds, once a repository."""
    listeners = Listeners(daemon.port, count)
    times = []
    try:
        for number in range(CHANGES):
            idle(daemon)
            connection = HTTPConnection("127.0.0.1", daemon.port, timeout=30)
            connection.connect()
            began = time.perf_counter()
            connection.request("POST", f"/api/projects/bench/repositories/r{number}/deploy", b"{}")
            listeners.wait_for(f'"repository":"r{number}"'.encode())
            times.append(time.perf_counter() - began)
            connection.close()
    finally:
        listeners.close()
    return times


def bench_slow(binary, folder, table):
    daemon, _ = checked_daemon(binary, folder, 10)
    context = multiprocessing.get_context("fork")
    all_are_open = context.Event()
    clients = context.Process(target=hold_slow_connections, args=(daemon.port, all_are_open), daemon=True)
    try:
        alone, failed = times_of_others(daemon.port, lambda: False)
        before = daemon.status("VmRSS")
        clients.start()
        beside, failed_beside = times_of_others(daemon.port, lambda: not all_are_open.is_set())
        during = daemon.status("VmRSS")
        if not clients.is_alive():
            raise SystemExit("bench: the slow connections were not held to the end")
        clients.kill()
        clients.join()
        times_of_others(daemon.port, lambda: False)
        after = daemon.status("VmRSS")
        name = f"GET /api/projects beside {SLOW_CONNECTIONS:,} slow connections"
        add_percentiles(table, name, beside, "without them", alone, "under 100 ms", percents=(50, 99, 100))
        table.add(f"{name}: failed", failed_beside, "requests", "without them", failed, f"none of {len(beside) + failed_beside}")
        name = f"resident memory with {SLOW_CONNECTIONS:,} slow connections"
        table.add(name, during / 1024, "MB", "before", before / 1024, "-")
        table.add(f"{name}, when they are gone", after / 1024, "MB", "before", before / 1024, "-")
    finally:
        if clients.is_alive():
            clients.kill()
        daemon.stop()


def times_of_others(port, must_go_on):
    """Somebody who asks fifty times a second, each time on a connection of its own: times in seconds, and how many requests failed."""
    times, failed = [], 0
    until = time.perf_counter() + SLOW_SECONDS
    limit = until + WAIT_LIMIT_SECONDS
    while time.perf_counter() < until or must_go_on():
        if time.perf_counter() > limit:
            raise SystemExit("bench: the slow connections could not be opened")
        try:
            seconds, status, _ = ask(port, "/api/projects")
        except (OSError, HTTPException):
            status = None
        if status == 200:
            times.append(seconds)
        else:
            failed += 1
        time.sleep(0.02)
    return times, failed


def hold_slow_connections(port, all_are_open):
    """In a process of its own: opens connections on which nothing is sent, or half a head. For each that the daemon closes, be it
    because more than it keeps are open, another one is opened within a second."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    selector = selectors.DefaultSelector()
    opened = 0
    while True:
        while len(selector.get_map()) < SLOW_CONNECTIONS:
            connection = socket.create_connection(("127.0.0.1", port), timeout=30)
            if opened % 2:
                connection.sendall(b"GET /api/projects HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
            selector.register(connection, selectors.EVENT_READ)
            opened += 1
        all_are_open.set()
        time.sleep(1)
        for key, _ in selector.select(timeout=0):
            # Whatever there is to read is the end, or the answer that comes before it.
            selector.unregister(key.fileobj)
            key.fileobj.close()


def bench_metrics(binary, folder, table):
    daemon, _ = checked_daemon(binary, folder, SCRAPED_REPOSITORIES)
    nginx = None
    try:
        daemon.post("/api/projects/bench/repositories/r0/deploy")
        idle(daemon)
        # While the daemon runs: all copies tell of the settings of one repository, and a start deploys anew where those changed.
        add_history(daemon.folder / "data/Shiparr.db")
        text = ask(daemon.port, "/metrics")[2].decode()
        series = text.count("\nshiparr_repository_last_success_timestamp_seconds{")
        if series != SCRAPED_REPOSITORIES:
            raise SystemExit(f"bench: /metrics tells of {series} repositories, not of {SCRAPED_REPOSITORIES}")
        nginx = Nginx(folder, {"metrics": text})
        ours, theirs = [], []
        for _ in range(SCRAPES):
            ours.append(ask(daemon.port, "/metrics")[0])
            theirs.append(ask(nginx.port, "/metrics")[0])
        name = f"GET /metrics, {SCRAPED_REPOSITORIES:,} repositories, {len(text) // 1000} kB"
        add_percentiles(table, name, ours, "nginx, a file of that size", theirs, "under 20 ms", percents=(50,))
    finally:
        if nginx:
            nginx.stop()
        daemon.stop()


def add_history(path):
    """Gives every repository some deployments that succeeded, copies of the one that is there."""
    database = sqlite3.connect(path)
    columns = [row[1] for row in database.execute("PRAGMA table_info(deployments)") if row[1] not in ("id", "repository_id", "status")]
    listed = ", ".join(f'"{column}"' for column in columns)
    copied = ", ".join(f'one."{column}"' for column in columns)
    database.execute(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO deployments (repository_id, status, {listed}) "
        f"SELECT r.id, 'success', {copied} FROM n, repositories r, (SELECT * FROM deployments WHERE status = 'failed' LIMIT 1) one",
        (SCRAPED_HISTORY,),
    )
    database.commit()
    database.close()
