#!/usr/bin/env python3
"""Measures what the object stores cost: their size beside a fresh clone, and the memory and time of large files.

    tests/bench/stores.py BINARY [pushes] [rewrites] [memory] [repack] [--pushes N]

Drives `shiparr git` as the daemon does, against a bare repository behind `git http-backend` and at a local path, and
prints one line a measurement. Needs git and some gigabytes in the temporary folder (TMPDIR)."""

import http.server
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MIB = 1024 * 1024
LARGE_BYTES = 300 * MIB
ENVIRONMENT = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
GIT_ENVIRONMENT = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
                   **{f"GIT_{who}_{what}": "bench@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}}


def git(folder, *args):
    done = subprocess.run(["git", *args], cwd=folder, env=GIT_ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, (args, done.stderr)
    return done.stdout.strip()


def disk_bytes(folder):
    """What `du` says."""
    return int(subprocess.run(["du", "-s", "-B1", str(folder)], capture_output=True, text=True).stdout.split()[0])


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self):
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        environment = {**GIT_ENVIRONMENT, "GIT_HTTP_EXPORT_ALL": "1", "GIT_PROJECT_ROOT": str(self.server.root),
                       "REQUEST_METHOD": self.command, "PATH_INFO": path, "QUERY_STRING": query,
                       "CONTENT_TYPE": self.headers.get("Content-Type", ""), "CONTENT_LENGTH": str(len(body)),
                       "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                       "GIT_PROTOCOL": self.headers.get("Git-Protocol", "")}
        backend = subprocess.Popen(["git", "-c", "safe.directory=*", "http-backend"], env=environment, stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE)
        backend.stdin.write(body)
        backend.stdin.close()
        head = []
        while (line := backend.stdout.readline().strip()):
            head.append(line.decode())
        status = [line[8:] for line in head if line.startswith("Status: ")] or ["200 OK"]
        self.wfile.write(f"HTTP/1.0 {status[0]}\r\n".encode() + "".join(f"{line}\r\n" for line in head).encode() + b"\r\n")
        shutil.copyfileobj(backend.stdout, self.wfile, MIB)
        backend.wait()

    do_GET = do_POST = answer


class Lab:
    """A remote, somebody's clone of it, and a host that follows it."""

    def __init__(self, binary, over_http):
        self.folder = tempfile.TemporaryDirectory(prefix="shiparr-stores-")
        self.root = Path(self.folder.name)
        self.binary, self.checked_out, self.hwm_bytes, self.seconds = binary, None, 0, 0.0
        git(self.root, "init", "-q", "--bare", "-b", "main", "remote.git")
        git(self.root, "clone", "-q", "remote.git", "clone")
        git(self.clone, "checkout", "-q", "-B", "main")
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.root = self.root
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        http_url = f"http://127.0.0.1:{self.server.server_port}/remote.git"
        self.url = http_url if over_http else str(self.root / "remote.git")

    clone = property(lambda self: self.root / "clone")
    data = property(lambda self: self.root / "data/git/p")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.folder.cleanup()

    def put(self, name, content):
        path = self.clone / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def push(self):
        git(self.clone, "add", "-A")
        git(self.clone, "commit", "-q", "-m", "Next")
        git(self.clone, "push", "-q", "-f", "origin", "HEAD:main")

    def child(self, kind):
        """One run of the child; its peak is in `hwm_bytes`, its time in `seconds`."""
        checkout = {"store": str(self.data / "r.git"), "local_path": str(self.root / "tree"), "checked_out": self.checked_out,
                    "saved": str(self.root / "data/saved/p/r"), "name": "p/r", "commit": None, "watch_paths": [],
                    "shares_local_path": False, "siblings": [], "skip_if_unchanged_since": None, "adopt": False,
                    "put_back_first": False}
        remote = {"url": self.url, "branch": "main", "credential": None, "insecure_http": False, "ca_file": None,
                  "ssh_key": None, "ssh_key_passphrase": None, "known_hosts": [], "https_proxy": None, "http_proxy": None,
                  "no_proxy": None}
        request = {"task": {kind: checkout}, "limit_milliseconds": 600_000, "remote": remote}
        begin = time.monotonic()
        child = subprocess.Popen([self.binary, "git"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT)
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
        answer = child.stdout.read()
        _, _, usage = os.wait4(child.pid, 0)
        self.seconds, self.hwm_bytes = time.monotonic() - begin, usage.ru_maxrss * 1024
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        return json.loads(answer)

    def deploy(self):
        """Fetches and checks out, and tidies as after the deployment; what went wrong, if anything."""
        self.tidy_seconds, self.tidy_hwm_bytes = 0.0, 0
        answer = self.child("FetchAndCheckout")
        if "Fetched" not in answer:
            return answer
        self.checked_out = answer["Fetched"]["commit"]["hash"]
        (self.data / "r.undo").unlink(missing_ok=True)
        if (self.data / "r.git/shiparr-untidy").exists():
            seconds, hwm_bytes, cpu_seconds = self.seconds, self.hwm_bytes, self.cpu_seconds
            answer = self.child("Tidy")
            assert answer == "Tidied", answer
            self.tidy_seconds, self.tidy_hwm_bytes = self.seconds, self.hwm_bytes
            self.seconds, self.hwm_bytes, self.cpu_seconds = seconds, hwm_bytes, cpu_seconds
        return None

    def must_deploy(self):
        problem = self.deploy()
        assert problem is None, problem
        tree, clone = str(self.root / "tree"), str(self.clone)
        subprocess.run(["diff", "-rq", "--exclude=.git", clone, tree], check=True)

    def clone_bytes(self):
        git(self.root, "clone", "-q", "--bare", "--single-branch", f"file://{self.root}/remote.git", "fresh.git")
        size = disk_bytes(self.root / "fresh.git")
        shutil.rmtree(self.root / "fresh.git")
        return size


def way(over_http):
    return "http v2" if over_http else "local path"


def words(chance, count):
    return "".join(f"{chance.choice(WORDS)} {chance.randrange(1000)}{chr(10) if n % 8 == 0 else ' '}" for n in range(count)).encode()


WORDS = "services image volumes ports restart environment networks depends healthcheck command build labels".split()


def pushes(binary, over_http, count):
    """Small commits to a repository of a few MB, a deployment after each."""
    chance = random.Random(1)
    with Lab(binary, over_http) as lab:
        for number in range(120):
            lab.put(f"stacks/{number % 12}/file-{number}.yaml", words(chance, 400 + 10 * number))
        for number in range(12):
            lab.put(f"images/{number}.png", chance.randbytes(200_000))
        lab.push()
        lab.must_deploy()
        worst, worst_at, times, clone_bytes = 0.0, 0, [], lab.clone_bytes()
        for push in range(count):
            number = chance.randrange(120)
            path = lab.clone / f"stacks/{number % 12}/file-{number}.yaml"
            lines = path.read_bytes().splitlines(True)
            for _ in range(chance.randrange(1, 4)):
                lines[chance.randrange(len(lines))] = words(chance, 8)
            path.write_bytes(b"".join(lines))
            if push % 40 == 7:
                name = f"images/{chance.randrange(12)}.png"
                content = bytearray((lab.clone / name).read_bytes())
                content[1000:2000] = chance.randbytes(1000)
                lab.put(name, bytes(content))
            lab.push()
            problem = lab.deploy()
            assert problem is None, problem
            times.append(lab.seconds)
            if push % 200 == 199:
                git(lab.root / "remote.git", "gc", "-q")
            if push % 20 == 0:
                clone_bytes = lab.clone_bytes()
            ratio = disk_bytes(lab.data) / clone_bytes
            if ratio > worst:
                worst, worst_at = ratio, push
        lab.must_deploy()
        end = disk_bytes(lab.data) / lab.clone_bytes()
        times.sort()
        print(f"{count} pushes, {way(over_http)}: store/clone at the end {end:.2f}, worst {worst:.2f} (push {worst_at}); clone"
              f" {lab.clone_bytes() / MIB:.1f} MiB; child median {times[len(times) // 2] * 1000:.0f} ms, longest {times[-1] * 1000:.0f} ms",
              flush=True)


def rewrites(binary, over_http):
    """Force pushes of 5 MB of chance: nothing of the old history is worth keeping."""
    chance = random.Random(2)
    with Lab(binary, over_http) as lab:
        lab.put("compose.yaml", b"services: {}\n")
        lab.push()
        ratios = []
        for number in range(50):
            git(lab.clone, "checkout", "-q", "--orphan", f"next-{number}")
            lab.put("blob", chance.randbytes(5 * MIB))
            lab.push()
            git(lab.clone, "checkout", "-q", "-B", "main")
            lab.must_deploy()
            ratios.append(disk_bytes(lab.data) / lab.clone_bytes())
        print(f"50 force pushes of 5 MiB, {way(over_http)}: store/clone at the end {ratios[-1]:.2f}, worst {max(ratios):.2f}", flush=True)


def change(path):
    with open(path, "r+b") as file:
        for at in (0, 12_345_678, LARGE_BYTES // 2):
            file.seek(at)
            file.write(b"changed here")


def memory(binary, over_http):
    """Deployments of a 300 MiB file: peaks and times."""
    chance = random.Random(3)
    for kind in ("chance", "zeros", "history"):
        with Lab(binary, over_http) as lab:
            large = lab.clone / "large.bin"
            with open(large, "wb") as file:
                for _ in range(LARGE_BYTES // MIB):
                    file.write(chance.randbytes(MIB) if kind != "zeros" else bytes(MIB))
            lab.put("compose.yaml", b"services: {}\n")
            lab.push()
            if kind == "history":
                change(large)
                lab.push()
                # As a server does it by night: one pack, with the one version as a delta of the other.
                git(lab.root / "remote.git", "-c", "pack.windowMemory=0", "repack", "-adfq")
            url = lab.url if over_http else f"file://{lab.url}"
            begin, cpu_begin = time.monotonic(), os.times()
            git(lab.root, "clone", "-q", url, "plain")
            plain, cpu = time.monotonic() - begin, os.times()
            plain_cpu = cpu.children_user + cpu.children_system - cpu_begin.children_user - cpu_begin.children_system
            shutil.rmtree(lab.root / "plain")
            told = lambda what: print(f"300 MiB of {kind}, {way(over_http)}, {what}: peak {lab.hwm_bytes / MIB:.0f} MiB, "
                                      f"{lab.seconds:.1f} s, {lab.cpu_seconds:.1f} s of CPU (git clone {plain:.1f} s, {plain_cpu:.1f} s); tidying {lab.tidy_hwm_bytes / MIB:.0f} MiB, {lab.tidy_seconds:.1f} s", flush=True)
            steps = [("first", lambda: None), ("nothing new", lambda: None), ("changed by a few bytes", lambda: (change_more(large), lab.push())),
                     ("changed on the host and in the remote", lambda: (change(lab.root / "tree/large.bin"), change_more(large), lab.push())),
                     ("touched", lambda: os.utime(lab.root / "tree/large.bin"))]
            for what, step in steps:
                step()
                problem = lab.deploy()
                told(what + (f": {problem}" if problem else ""))
            print(f"    store/clone {disk_bytes(lab.data) / lab.clone_bytes():.2f}", flush=True)


def change_more(path):
    with open(path, "r+b") as file:
        file.seek(random.randrange(LARGE_BYTES - 100))
        file.write(os.urandom(100))


def repack(binary, over_http):
    """What sixteen small pushes cost a store of 100 MiB, and which of them costs most."""
    chance = random.Random(4)
    with Lab(binary, over_http) as lab:
        for number in range(2000):
            lab.put(f"files/{number % 40}/{number}", chance.randbytes(50_000))
        lab.push()
        lab.must_deploy()
        times = []
        for push in range(40):
            lab.put("compose.yaml", f"# {push}\nservices: {{}}\n".encode())
            lab.push()
            assert lab.deploy() is None
            times.append((lab.seconds, push, lab.hwm_bytes // MIB, lab.tidy_seconds, lab.tidy_hwm_bytes // MIB))
        times.sort()
        tidying = [time for time in times if time[3]]
        print(f"small pushes to a store of 100 MiB, {way(over_http)}: median {times[20][0] * 1000:.0f} ms, longest "
              f"{times[-1][0] * 1000:.0f} ms (push {times[-1][1]}, peak {max(t[2] for t in times)} MiB); tidied {len(tidying)} times, at"
              f" most {max([t[3] for t in tidying], default=0):.1f} s, peak {max([t[4] for t in tidying], default=0)} MiB", flush=True)


def main():
    binary, *asked = sys.argv[1:]
    count = int(asked.pop(asked.index("--pushes") + 1)) if "--pushes" in asked else 1000
    asked = [name for name in asked if name != "--pushes"] or ["pushes", "rewrites", "memory", "repack"]
    for over_http in (True, False):
        for name in asked:
            if name == "pushes":
                pushes(binary, over_http, count)
            else:
                {"rewrites": rewrites, "memory": memory, "repack": repack}[name](binary, over_http)


if __name__ == "__main__":
    main()
