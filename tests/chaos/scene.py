"""The daemon on folders of its own, what it deploys, and those who ask for it."""

import json
import mmap
import os
import random
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

from engine import SHARED_SOCKET, Engine, OwnEngine, Proxy
from remote import GitServer, MessageServer
from stacks import STACKS, UNTRACKED
from waiting import Failure, wait_until

# Enough for the checkouts, and little enough to be full soon.
DATA_DISK_SIZE = "160m"
READY_LIMIT_SECONDS = 60
STOP_LIMIT_SECONDS = 90
CALM_LIMIT_SECONDS = 240
ANSWER_LIMIT_SECONDS = 60


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Moments:
    """What just happened, for those who want to strike at that very moment."""

    def __init__(self):
        self.condition = threading.Condition()
        self.happened = []

    def __call__(self, name):
        with self.condition:
            self.happened.append(name)
            self.condition.notify_all()

    def wait_for(self, name, limit_seconds):
        """Whether it happened within the limit, from now on."""
        with self.condition:
            seen = len(self.happened)
            return self.condition.wait_for(lambda: name in self.happened[seen:], limit_seconds)


class Clock:
    """The daemon's wall clock, which can be set."""

    def __init__(self, folder):
        self.library, self.file = Path(folder) / "clock.so", Path(folder) / "clock"
        source = Path(__file__).parent / "clock.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", str(self.library), str(source)], check=True)
        self.file.write_bytes(struct.pack("=q", 0))
        with open(self.file, "r+b") as file:
            self.page = mmap.mmap(file.fileno(), 8)

    def set(self, offset_seconds):
        self.page[:] = struct.pack("=q", offset_seconds)


class SmallDisk:
    """A file system in memory over a folder."""

    def __init__(self, folder):
        self.folder = Path(folder)
        command = ["mount", "-t", "tmpfs", "-o", f"size={DATA_DISK_SIZE},mode=0755", "tmpfs", str(folder)]
        self.is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fill(self):
        with open(self.folder / "ballast", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(65536))
            except OSError:
                pass
            try:
                while True:
                    file.write(bytes(1))
            except OSError:
                pass

    def free(self):
        (self.folder / "ballast").unlink()

    def unmount(self):
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class Daemon:
    """The process, started again and again."""

    def __init__(self, binary, environment, log, moment):
        self.binary, self.environment, self.log, self.moment = binary, environment, log, moment
        self.process = self.reader = None

    def spawn(self):
        """Starts it and waits for nothing."""
        self.process = subprocess.Popen(
            [self.binary, "run"], env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        self.reader = threading.Thread(target=self.read, args=(self.process.stderr,), daemon=True)
        self.reader.start()

    def read(self, stream):
        with stream, open(self.log, "ab") as log:
            for line in stream:
                log.write(line)
                log.flush()
                for word in (b" begins ", b" succeeded ", b" queued as ", b" interrupted "):
                    if word in line:
                        self.moment(word.split()[0].decode())

    def start(self):
        """Starts it and waits until it answers."""
        self.spawn()
        wait_until(READY_LIMIT_SECONDS, "the daemon to answer /api/health", self.is_ready)

    def is_ready(self):
        if (code := self.process.poll()) is not None:
            raise Failure(f"the daemon ended with {code}: {self.log.read_text()[-1500:]}")
        try:
            return self.get("/api/health")
        except OSError:
            return None

    def ask(self, method, path, body=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.environment['Shiparr_PORT']}{path}", data=body, method=method)
        with urllib.request.urlopen(request, timeout=ANSWER_LIMIT_SECONDS) as answer:
            return json.load(answer)

    def get(self, path):
        return self.ask("GET", path)

    def kill_9(self):
        self.process.kill()
        self.process.wait()
        self.reader.join()

    def stop(self):
        """Answers its exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(timeout=STOP_LIMIT_SECONDS)
        self.reader.join()
        return code


class Actor(threading.Thread):
    """Does something again and again, with a pause that is never the same, while it is not held back."""

    def __init__(self, act, random_, pause_seconds):
        super().__init__(daemon=True)
        self.act, self.random, self.pause_seconds = act, random_, pause_seconds
        self.may_act, self.acting = threading.Event(), threading.Lock()
        self.error = None

    def run(self):
        try:
            while True:
                self.may_act.wait()
                with self.acting:
                    if self.may_act.is_set():
                        self.act()
                time.sleep(self.random.uniform(*self.pause_seconds))
        except Exception as error:  # The main thread tells it.
            self.error = error

    def go(self):
        self.may_act.set()

    def hold(self):
        """Returns when it does nothing any more."""
        self.may_act.clear()
        with self.acting:
            pass
        if self.error:
            raise self.error


class Scene:
    """All of it."""

    def __init__(self, arguments):
        self.run_name = f"chaos{os.getpid()}"
        self.folder = Path(tempfile.mkdtemp(prefix="shiparr-chaos-"))
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.runtime = Path(tempfile.mkdtemp(prefix="shiparr-chaos-", dir=memory))
        for name in ("projects", "data", "home", "remotes"):
            (self.folder / name).mkdir()
        self.seed = arguments.seed
        self.moments, self.clock = Moments(), Clock(self.folder)
        self.disk = SmallDisk(self.folder / "data")
        self.timeless_only = False
        self.accepted, self.refused, self.may_refuse = [], [], False
        self.inodes, self.figures = {}, ""
        self.stacks, self.engine, self.proxy, self.daemon = [], None, None, None
        try:
            self.set_up(arguments)
        except BaseException:
            self.leave(keep=False)
            raise

    def set_up(self, arguments):
        # The disk is mounted before, for an engine of its own sees only what was mounted when it started first.
        self.engine = OwnEngine(self.folder / "engine") if arguments.engine == "own" else Engine(SHARED_SOCKET)
        if arguments.engine == "own":
            self.engine.start()
            self.engine.load_image()
        self.proxy = Proxy(self.folder / "docker.sock", self.engine, self.moments)
        remotes = self.folder / "remotes"
        self.stacks = [kind(remotes, self.run_name, self.random(f"{kind.name} pushes")) for kind in STACKS]
        secret_random = self.random("secrets")
        self.token = f"token-{secret_random.getrandbits(64):016x}"
        hook = f"hook-{secret_random.getrandbits(64):016x}"
        self.remote = GitServer(remotes, f"chaos:{self.token}", self.moments)
        self.messages = MessageServer(hook)
        self.secrets = [self.token, hook] + [text for stack in self.stacks for text in getattr(stack, "plain_texts", [])]
        self.write_project()
        self.daemon = Daemon(arguments.binary, self.environment(hook), self.folder / "log", self.moments)
        self.untracked = self.make_untracked()
        self.pusher = Actor(self.push_something, self.random("pusher"), (0.1, 1.5))
        self.caller = Actor(self.ask_for_something, self.random("caller"), (0.1, 1.0))
        self.pusher.start()
        self.caller.start()

    def random(self, what):
        """Numbers of its own for each who needs some: threads take theirs in no order."""
        return random.Random(f"{self.seed} {what}")

    def write_project(self):
        lines = ["project: chaos", "tokens:", f'  "127.0.0.1:{self.remote.port}": chaos:${{CHAOS_TOKEN}}']
        lines += ["defaults:", "  check_interval: 1", "  settle_time: 1", "  health_timeout: 30", "  timeout: 60"]
        url = f"{self.messages.url}/${{CHAOS_HOOK}}"
        lines += ["global_notifications:", f"  success: ['{url}']", f"  failure: ['{url}']", "repositories:"]
        for stack in self.stacks:
            fields = {"url": f"{self.remote.url}/{stack.name}.git", "compose_project": stack.compose_project, **stack.fields()}
            lines += [f"  {stack.name}:"] + [f"    {name}: {value}" for name, value in fields.items()]
        (self.folder / "projects" / "chaos.yaml").write_text("\n".join(lines) + "\n")

    def environment(self, hook):
        key = next(stack.key for stack in self.stacks if hasattr(stack, "key"))
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder / "home"), "TZ": "UTC",
            "LD_PRELOAD": str(self.clock.library), "CHAOS_CLOCK": str(self.clock.file),
            "DOCKER_HOST": f"unix://{self.proxy.path}", "SOPS_AGE_KEY_FILE": str(key),
            "CHAOS_TOKEN": self.token, "CHAOS_HOOK": hook,
            "Shiparr_PORT": str(free_port()), "Shiparr_CONFIG_PATH": str(self.folder / "projects"),
            "Shiparr_DATA_PATH": str(self.folder / "data"), "Shiparr_RUNTIME_PATH": str(self.runtime),
            "Shiparr_LOG_LEVEL": "DEBUG", "Shiparr_HISTORY_LIMIT": "100000",
        }
        if "DOCKER_CONFIG" in os.environ:
            environment["DOCKER_CONFIG"] = os.environ["DOCKER_CONFIG"]
        return environment

    # ---- Folders ----

    def data(self):
        return self.folder / "data"

    def tree(self, stack):
        return self.data() / "deployments" / "chaos" / stack.name

    def make_untracked(self):
        """Puts people's own files where the stacks will be; answers them with their inodes."""
        made = {}
        for stack in self.stacks:
            for name, text in UNTRACKED.items():
                path = self.tree(stack) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                made[path] = (path.stat().st_ino, text)
        return made

    def wait_for_plain_text(self, limit_seconds):
        """Until a deployment has something decrypted, or the limit is over."""
        until = time.monotonic() + limit_seconds
        while time.monotonic() < until and not any(self.runtime.glob("secrets/*/*")):
            time.sleep(0.002)

    # ---- Those who act ----

    def push_something(self):
        stack = self.pusher.random.choice(self.stacks)
        stack.push_any(timeless=self.timeless_only, noise=self.pusher.random.random() < 0.1)

    def ask_for_something(self):
        """Asks for a deployment; what was accepted is remembered from then on."""
        stack = self.caller.random.choice(self.stacks)
        body = self.caller.random.choice([b"", b"{}", b'{"recreate": true}'])
        try:
            answer = self.daemon.ask("POST", f"/api/projects/chaos/repositories/{stack.name}/deploy", body)
        except urllib.error.HTTPError as error:
            if not self.may_refuse:
                self.refused.append(f"{error.code}: {error.read().decode(errors='replace')}")
            return
        except (OSError, ValueError):
            # Killed before it had answered: nothing was promised.
            return
        self.accepted.append((answer["deployment_id"], stack.name))
        self.moments("accepted")

    def go(self):
        self.pusher.go()
        self.caller.go()

    def hold(self):
        self.pusher.hold()
        self.caller.hold()

    def push_last(self, random_, good_share):
        """The last commits before a fault ends."""
        for stack in self.stacks:
            if stack.tip is None or (not stack.tip.is_good and random_.random() < good_share):
                stack.push("good")

    # ---- Calm ----

    def query(self, sql, *values):
        """Reads the database beside the daemon."""
        with sqlite3.connect(f"file:{self.data()}/Shiparr.db?mode=ro", uri=True, timeout=30) as database:
            rows = database.execute(sql, values).fetchall()
        database.close()
        return rows

    def newest_row(self, stack):
        """(id, status, commit, error) of the newest deployment that was not skipped."""
        rows = self.query(
            "SELECT d.id, d.status, d.commit_hash, d.error FROM deployments d JOIN repositories r ON r.id = d.repository_id "
            "WHERE r.name = ? AND d.status != 'skipped' ORDER BY d.id DESC LIMIT 1", stack.name)
        return rows[0] if rows else None

    def calm_down(self, limit_seconds=CALM_LIMIT_SECONDS):
        """Waits until nothing is pending or running and every tip is handled. What is tried again after some minutes is
        tried at once, because the clock jumps to that time."""
        wait_until(limit_seconds, lambda: "to calm down: " + "; ".join(self.unrest()), self.is_calm, every_seconds=0.2)

    def is_calm(self):
        unrest = self.unrest()
        if unrest and not self.query("SELECT 1 FROM deployments WHERE status IN ('pending', 'running')"):
            self.jump_to_retries()
        return not unrest

    def unrest(self):
        found = []
        for status, name, id_ in self.query(
                "SELECT d.status, r.name, d.id FROM deployments d JOIN repositories r ON r.id = d.repository_id WHERE d.status IN ('pending', 'running')"):
            found.append(f"deployment {id_} of {name} is {status}")
        for name, error in self.query("SELECT r.name, r.last_error FROM repositories r WHERE r.retry_at IS NOT NULL"):
            found.append(f"{name} waits for its next try ({error})")
        for stack in self.stacks:
            row = self.newest_row(stack)
            if row is None or row[2] != stack.tip.hash:
                found.append(f"{stack.name}: the newest deployment is {row}, the tip {stack.tip}")
        return found

    def jump_to_retries(self):
        """The daemon's clock shows the time when the next try is due, until that try is queued."""
        waiting = self.query("SELECT max(retry_at) FROM repositories")[0][0]
        if waiting is None:
            return
        self.clock.set(max(0, int(waiting / 1000 - time.time()) + 2))
        # Being asked to read its files again makes it look at the queue, which else happens every half minute.
        self.daemon.process.send_signal(signal.SIGHUP)
        due = lambda: not self.query("SELECT 1 FROM repositories WHERE retry_at <= ?", waiting)
        wait_until(60, "a retry that is due to be queued", due)
        self.clock.set(0)

    # ---- The end ----

    def count(self):
        """What there was to survive."""
        counted = "SELECT count(*), sum(status = 'success'), sum(error LIKE 'interrupted%') FROM deployments"
        deployments, successes, interrupted = self.query(counted)[0]
        commits = sum(len(stack.commits) for stack in self.stacks)
        self.figures = (
            f"{commits} commits, {len(self.accepted)} accepted triggers, {deployments} deployments, {successes} with success, "
            f"{interrupted} interrupted"
        )

    def leave(self, keep):
        """Ends and removes everything, by what was started here."""
        if self.daemon and self.daemon.process and self.daemon.process.poll() is None:
            self.daemon.kill_9()
        try:
            for stack in self.stacks:
                self.engine.remove_project(stack.compose_project)
        except OSError as error:
            print(f"chaos: not all containers could be removed: {error}", flush=True)
        own = isinstance(self.engine, OwnEngine)
        if own and self.engine.process and self.engine.process.poll() is None:
            self.engine.stop()
        if keep:
            # The small disk is memory: what is on it is kept on a real one.
            shutil.copytree(self.data(), self.folder / "data-kept", symlinks=True, ignore=shutil.ignore_patterns("ballast"))
        self.disk.unmount()
        shutil.rmtree(self.runtime, ignore_errors=True)
        shutil.rmtree(self.folder / "engine" if keep else self.folder, ignore_errors=True)
