"""The benchmark behind tests/bench/run. Standard library only; everything is measured beside something that does the same job."""

import argparse
import json
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from http.client import HTTPConnection
from pathlib import Path

import service
import web
from lab import Daemon, GitServer, Nginx, Table, idle, new_remote, project, push, sh

IMAGE = "shiparr-test/busybox:1"
DEPLOY_ROUNDS = 15
CHECKS = 1000
LOAD_SECONDS = 5
ROWS = 1_000_000


def stack(project_name, version):
    return (
        f"name: {project_name}\nservices:\n  web:\n    image: {IMAGE}\n    init: true\n    command: [sleep, '86400']\n"
        f"    labels: {{bench.version: '{version}'}}\n"
    )


def wait_for_version(compose_project, version):
    """Waits until the engine says that the container of this version runs."""
    filters = json.dumps({"label": [f"com.docker.compose.project={compose_project}", f"bench.version={version}"], "status": ["running"]})
    path = "/containers/json?filters=" + urllib.request.quote(filters)
    connection = HTTPConnection("docker")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect("/var/run/docker.sock")
    until = time.perf_counter() + 60
    while time.perf_counter() < until:
        connection.request("GET", path)
        if json.load(connection.getresponse()):
            connection.close()
            return time.perf_counter()
        time.sleep(0.002)
    raise SystemExit(f"bench: version {version} of {compose_project} does not run after 60 s")


def remove_stack(compose_project):
    containers = sh("docker", "ps", "-aq", "--filter", f"label=com.docker.compose.project={compose_project}").split()
    if containers:
        sh("docker", "rm", "-f", *containers)
    networks = sh("docker", "network", "ls", "-q", "--filter", f"label=com.docker.compose.project={compose_project}").split()
    if networks:
        sh("docker", "network", "rm", *networks)

def bench_deploy(binary, folder, table):
    ours, theirs = "shiparr-bench-daemon", "shiparr-bench-script"
    for name in (ours, theirs):
        remove_stack(name)
        (Path(folder) / name).mkdir()
    _, our_work = new_remote(Path(folder) / ours, {"compose.yaml": stack(ours, 0)})
    _, their_work = new_remote(Path(folder) / theirs, {"compose.yaml": stack(theirs, 0)})
    fields = {"url": str(Path(folder) / ours / "remote.git"), "check_interval": 86400, "settle_time": 0}
    daemon = Daemon(binary, Path(folder) / "daemon", {"bench": project("bench", {"stack": fields})})
    clone = Path(folder) / "clone"
    sh("git", "clone", "-q", str(Path(folder) / theirs / "remote.git"), str(clone))
    script = "git fetch -q && git checkout -q origin/main && exec docker compose up -d"
    try:
        wait_for_version(ours, 0)
        sh("sh", "-c", script, cwd=clone)
        wait_for_version(theirs, 0)
        our_times, their_times = [], []
        for version in range(1, DEPLOY_ROUNDS + 1):
            push(our_work, {"compose.yaml": stack(ours, version)})
            push(their_work, {"compose.yaml": stack(theirs, version)})
            idle(daemon)
            began = time.perf_counter()
            daemon.post("/api/projects/bench/repositories/stack/deploy")
            our_times.append(wait_for_version(ours, version) - began)
            idle(daemon)
            began = time.perf_counter()
            running = subprocess.Popen(["sh", "-c", script], cwd=clone, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            their_times.append(wait_for_version(theirs, version) - began)
            running.wait()
        table.add("deploy: POST until the new container runs, median", statistics.median(our_times), "s",
                  "git fetch, checkout, docker compose up -d", statistics.median(their_times), "ratio at most 1.05")
    finally:
        daemon.stop()
        remove_stack(ours)
        remove_stack(theirs)


def bench_check(binary, folder, table):
    remotes = Path(folder) / "remotes"
    remotes.mkdir()
    (remotes / "many").mkdir()
    bare, work = new_remote(remotes / "many", {"compose.yaml": stack("shiparr-bench-check", 0)})
    tip = sh("git", "-C", str(work), "rev-parse", "HEAD")
    (bare / "packed-refs").write_text(
        "# pack-refs with: peeled fully-peeled sorted \n" + "".join(sorted(f"{tip} refs/pull/{n}/head\n" for n in range(5000)))
    )
    server = GitServer(remotes)
    url = f"{server.url}/many/remote.git"
    fields = {"url": url, "check_interval": 1, "settle_time": 0}
    names = {f"r{n}": {**fields, "compose_project": f"shiparr-bench-check-{n}"} for n in range(10)}
    daemon = Daemon(binary, Path(folder) / "daemon", {"bench": project("bench", names)})
    try:
        time.sleep(2)
        while daemon.get("/api/deployments?status=pending") or daemon.get("/api/deployments?status=running"):
            time.sleep(0.2)
        # The first deployments were written; what follows finds nothing.
        time.sleep(2)
        requests, sent, cpu, written = server.requests, server.sent_bytes, daemon.cpu_seconds(), daemon.write_bytes()
        while server.requests - requests < CHECKS:
            time.sleep(0.2)
        checks = server.requests - requests
        cpu_ms = (daemon.cpu_seconds() - cpu) * 1000 / checks
        received = (server.sent_bytes - sent) / checks
        written = daemon.write_bytes() - written
        sent = server.sent_bytes
        sh("git", "-c", "protocol.version=0", "ls-remote", url, "refs/heads/main")
        reference_bytes = server.sent_bytes - sent
        reference_ms = git_ls_remote_cpu_ms(url)
        table.add("check that finds nothing, 5,000 refs: CPU time", cpu_ms, "ms", "git ls-remote", reference_ms, "at most 2 ms")
        table.add("check that finds nothing, 5,000 refs: received", received, "bytes", "git ls-remote, protocol 0", reference_bytes, "at most 2048 bytes")
        table.add(f"{checks} checks that find nothing: written to disk", written, "bytes", "-", 0, "0 bytes")
    finally:
        daemon.stop()
        for n in range(10):
            remove_stack(f"shiparr-bench-check-{n}")


def git_ls_remote_cpu_ms(url):
    """User and system time of one `git ls-remote`, by its own accounting."""
    times = []
    for _ in range(10):
        process = subprocess.Popen(["git", "ls-remote", url, "refs/heads/main"], stdout=subprocess.DEVNULL)
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
        times.append((usage.ru_utime + usage.ru_stime) * 1000)
    return statistics.median(times)


def bench_memory(binary, folder, counts, table):
    remotes = Path(folder) / "remotes"
    remotes.mkdir()
    new_remote(remotes, {"compose.yaml": "services: {}\n"})
    server = GitServer(remotes)
    shell = subprocess.Popen(["python3", "-c", "import time; print(flush=True); time.sleep(600)"], stdout=subprocess.PIPE)
    shell.stdout.readline()
    reference_kb = int(Path(f"/proc/{shell.pid}/status").read_text().split("VmRSS:")[1].split()[0])
    shell.kill()
    shell.wait()
    began = time.perf_counter()
    sh("docker", "compose", "version")
    reference_start = time.perf_counter() - began
    targets = {10: ("at most 14 MB", "50 ms"), 1000: ("at most 48 MB", "500 ms")}
    for count in counts:
        # A branch that is not there: every repository is checked, and none deployed.
        fields = {"url": f"{server.url}/remote.git", "branch": "none-such", "check_interval": 86400}
        names = {f"r{n}": {**fields, "compose_project": f"shiparr-bench-memory-{n}"} for n in range(count)}
        before = server.requests
        daemon = Daemon(binary, Path(folder) / f"daemon-{count}", {"bench": project("bench", names)})
        first_start = daemon.ready_seconds
        while server.requests - before < count:
            time.sleep(0.2)
        time.sleep(3)
        memory, threads = daemon.status("VmRSS"), daemon.status("Threads")
        daemon.stop()
        starts = []
        for _ in range(5):
            daemon = Daemon(binary, Path(folder) / f"daemon-{count}", {})
            starts.append(daemon.ready_seconds)
            daemon.stop()
        memory_target, start_target = targets.get(count, ("-", "-"))
        table.add(f"resident memory at rest, {count} repositories", memory / 1024, "MB", "an idle python3", reference_kb / 1024, memory_target)
        table.add(f"threads, {count} repositories", threads, "threads", "repositories", count, "-")
        table.add(f"first start until ready, {count} repositories", first_start * 1000, "ms", "docker compose version", reference_start * 1000, "-")
        table.add(f"start until ready, {count} repositories, median", statistics.median(starts) * 1000, "ms", "docker compose version",
                  reference_start * 1000, f"at most {start_target}")


def wrk(url):
    """Requests a second and the 99th percentile in ms, at 16 connections."""
    text = sh("wrk", "-t2", "-c16", f"-d{LOAD_SECONDS}s", "--latency", url)
    rate = float(text.split("Requests/sec:")[1].split()[0])
    shown = text.split("99%")[1].split()[0]
    for unit, factor in (("us", 0.001), ("ms", 1.0), ("s", 1000.0)):
        if shown.endswith(unit):
            return rate, float(shown.removesuffix(unit)) * factor
    raise SystemExit(f"bench: wrk's answer is not understood: {shown}")


def bench_http(binary, folder, table):
    names = {f"r{n}": {"url": "/none/such.git", "check_interval": 86400, "compose_project": f"shiparr-bench-http-{n}"} for n in range(10)}
    daemon = Daemon(binary, Path(folder) / "daemon", {"bench": project("bench", names)})
    nginx = Nginx(folder, {"health": json.dumps(daemon.get("/api/health"))})
    try:
        reference, reference_p99 = wrk(f"http://127.0.0.1:{nginx.port}/health")
        for path, target in (("/api/health", 20000), ("/api/projects", 12000)):
            rate, p99 = wrk(f"http://127.0.0.1:{daemon.port}{path}")
            table.add(f"GET {path}, 16 connections: requests a second", rate, "1/s", "nginx, a file of that size", reference, f"at least {target}")
            table.add(f"GET {path}, 16 connections: p99", p99, "ms", "nginx, a file of that size", reference_p99, "-")
    finally:
        nginx.stop()
        daemon.stop()


def bench_history(binary, folder, table):
    fields = {"url": "/none/such.git", "check_interval": 86400}
    daemon = Daemon(binary, Path(folder) / "daemon", {"bench": project("bench", {"few": {**fields, "compose_project": "a"}, "many": {**fields, "compose_project": "b"}})})
    ids = {repository["name"]: repository["id"] for repository in daemon.get("/api/repositories")}
    for name in ids:
        daemon.post(f"/api/repositories/{ids[name]}/deploy")
    idle(daemon)
    daemon.stop()
    database = sqlite3.connect(Path(folder) / "daemon/data/Shiparr.db")
    database.execute("PRAGMA synchronous = OFF")
    columns = [row[1] for row in database.execute("PRAGMA table_info(deployments)") if row[1] != "id"]
    listed = ", ".join(f'"{column}"' for column in columns)
    copy = (
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) INSERT INTO deployments ({listed}) "
        f"SELECT {listed} FROM n, (SELECT * FROM deployments WHERE repository_id = ? AND status = 'failed' LIMIT 1)"
    )
    database.execute(copy, (9, ids["few"]))
    database.execute(copy, (ROWS, ids["many"]))
    database.commit()
    database.close()
    daemon = Daemon(binary, Path(folder) / "daemon", {})
    try:
        times = {name: [] for name in ids}
        for _ in range(200):
            for name, number in ids.items():
                began = time.perf_counter()
                daemon.get(f"/api/repositories/{number}/deployments?limit=10")
                times[name].append(time.perf_counter() - began)
        table.add(f"a page of the history among {ROWS:,} rows, median", statistics.median(times["many"]) * 1000, "ms", "the same page of ten rows",
                  statistics.median(times["few"]) * 1000, "ratio at most 2")
    finally:
        daemon.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True)
    parser.add_argument("--repositories", default="10,1000")
    parser.add_argument("--json", default="target/bench.json")
    parser.add_argument("--only", default="deploy,check,memory,http,history,webhook,events,slow,metrics,service")
    args = parser.parse_args()
    binary = str(Path(args.binary).resolve())
    counts = [int(count) for count in args.repositories.split(",")]
    parts = {
        "deploy": lambda folder, table: bench_deploy(binary, folder, table),
        "check": lambda folder, table: bench_check(binary, folder, table),
        "memory": lambda folder, table: bench_memory(binary, folder, counts, table),
        "http": lambda folder, table: bench_http(binary, folder, table),
        "history": lambda folder, table: bench_history(binary, folder, table),
        "webhook": lambda folder, table: web.bench_webhook(binary, folder, table),
        "events": lambda folder, table: web.bench_events(binary, folder, table),
        "slow": lambda folder, table: web.bench_slow(binary, folder, table),
        "metrics": lambda folder, table: web.bench_metrics(binary, folder, table),
        "service": lambda folder, table: service.bench_service(binary, folder, counts, table),
    }
    table = Table()
    table.add("size of the binary", os.path.getsize(binary) / 1e6, "MB", "docker", os.path.getsize(shutil.which("docker")) / 1e6, "-")
    for name in args.only.split(","):
        with tempfile.TemporaryDirectory(prefix="shiparr-bench-") as folder:
            parts[name](folder, table)
    Path(args.json).parent.mkdir(parents=True, exist_ok=True)
    Path(args.json).write_text(json.dumps(table.rows, indent=2) + "\n")
    print(f"written to {args.json}", file=sys.stderr)


if __name__ == "__main__":
    main()
