"""The stacks that are deployed, each a repository of its own, and those who push to them."""

import os
import subprocess
import threading
from pathlib import Path

from engine import IMAGE

GIT = ["git", "-c", "user.name=Chaos", "-c", "user.email=chaos@example.com", "-c", "gc.autoDetach=false"]
# What does not compress and so takes the remote a while to send.
NOISE_BYTES = 400_000
BAD_SHARE = 0.25
# What no commit brings and no commit may touch, the ignored one included.
UNTRACKED = {"data/precious.txt": "years of work\n", "data/deep/er/photo.raw": "\x00\x01\x02 pixels", "state.db": "ignored, and precious\n"}


def sh(*args, stdin=None):
    """Runs a command and answers its output."""
    done = subprocess.run(args, input=stdin, capture_output=True, text=True, check=False, **({"stdin": subprocess.DEVNULL} if stdin is None else {}))
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, args))}: {done.stderr.strip()}")
    return done.stdout.strip()


class Commit:
    """What was pushed, and what has to come of it."""

    def __init__(self, hash_, version, kind, services, secret):
        self.hash, self.version, self.kind, self.services, self.secret = hash_, version, kind, services, secret
        self.is_good = kind == "good"

    def __str__(self):
        return f"{self.hash[:7]} (version {self.version}, {self.kind})"


class Stack:
    """A repository with one stack. Subclasses say what is in it."""

    name = ""
    bad_kinds = ("broken", "crash")
    # Those whose failure does not depend on how long something was up.
    timeless_bad_kinds = ("broken",)

    def __init__(self, folder, run, random):
        self.compose_project = f"{run}-{self.name}"
        self.random = random
        self.bare, self.work = Path(folder) / f"{self.name}.git", Path(folder) / f"{self.name}-work"
        self.commits, self.tip, self.lock = {}, None, threading.Lock()
        sh("git", "init", "-q", "--bare", "-b", "main", str(self.bare))
        sh("git", "init", "-q", "-b", "main", str(self.work))
        sh("git", "-C", str(self.work), "remote", "add", "origin", str(self.bare))

    def push(self, kind="good", noise=False):
        """Commits the next version and pushes it."""
        with self.lock:
            version = str(len(self.commits) + 1)
            files = {".gitignore": "*.db\n", "app.conf": f"version {version}\n", **self.files(version, kind)}
            if kind == "broken":
                files["compose.yaml"] = f"services: [ # {version}\n"
            for name, text in files.items():
                (self.work / name).parent.mkdir(parents=True, exist_ok=True)
                (self.work / name).write_text(text)
            if noise:
                (self.work / "noise").write_bytes(os.urandom(NOISE_BYTES))
            else:
                (self.work / "noise").unlink(missing_ok=True)
            git = [*GIT, "-C", str(self.work)]
            sh(*git, "add", "-A")
            sh(*git, "commit", "-qm", f"Version {version}, {kind}")
            commit = Commit(sh(*git, "rev-parse", "HEAD"), version, kind, self.services(), self.secret_of(version, kind))
            # The daemon may see it before the push is over.
            self.commits[commit.hash] = self.tip = commit
            sh(*git, "push", "-q", "origin", "main")
            return commit

    def push_any(self, timeless=False, noise=False):
        """A commit that is good most of the time."""
        kinds = self.timeless_bad_kinds if timeless else self.bad_kinds
        return self.push(self.random.choice(kinds) if self.random.random() < BAD_SHARE else "good", noise)

    def service(self, version, command, more=""):
        return (
            f"    image: {IMAGE}\n    restart: unless-stopped\n    init: true\n    command: {command}\n"
            f"    labels: {{chaos.version: '{version}'}}\n{more}"
        )

    def command(self, kind):
        return "[sh, -c, 'sleep 0.2; exit 3']" if kind == "crash" else "[sleep, '86400']"

    def services(self):
        return {"web"}

    def files(self, version, kind):
        raise NotImplementedError

    def secret_of(self, version, kind):
        """The plain text that this version's container has in its environment."""
        return None

    def fields(self):
        """More lines of its entry in the project file."""
        return {}

    def contents(self, commit):
        """The tracked files of a commit."""
        names = sh("git", "-C", str(self.bare), "ls-tree", "-r", "--name-only", commit.hash).splitlines()
        read = lambda name: subprocess.run(["git", "-C", str(self.bare), "show", f"{commit.hash}:{name}"], capture_output=True, check=True).stdout
        return {name: read(name) for name in names}


class Plain(Stack):
    """Two services, one after the other; a tracked file and an untracked folder are mounted."""

    name = "plain"
    bad_kinds = ("broken", "crash", "unset")
    timeless_bad_kinds = ("broken", "unset")

    def services(self):
        return {"web", "worker"}

    def files(self, version, kind):
        more = "    volumes: ['./app.conf:/app.conf:ro', './data:/srv/data']\n    depends_on: [worker]\n"
        unset = "    environment: {NEVER_SET: '${CHAOS_NOT_THERE}'}\n" if kind == "unset" else ""
        worker = self.service(version, self.command("good"), unset)
        return {"compose.yaml": f"services:\n  worker:\n{worker}  web:\n{self.service(version, self.command(kind), more)}"}


class Secret(Stack):
    """Its variables are encrypted, and change with the commits."""

    name = "secret"
    bad_kinds = ("broken", "crash", "undecryptable")
    timeless_bad_kinds = ("broken", "undecryptable")
    variants = 3

    def __init__(self, folder, run, random):
        super().__init__(folder, run, random)
        self.key = Path(folder) / "age-key.txt"
        sh("age-keygen", "-o", str(self.key))
        recipient = sh("age-keygen", "-y", str(self.key))
        self.plain_texts = [f"plain-text-{number}-{random.getrandbits(64):016x}" for number in range(self.variants)]
        self.encrypted = []
        for text in self.plain_texts:
            command = ["sops", "--encrypt", "--age", recipient, "--input-type", "dotenv", "--output-type", "dotenv", "/dev/stdin"]
            self.encrypted.append(sh(*command, stdin=f"CHAOS_SECRET={text}\n") + "\n")

    def files(self, version, kind):
        encrypted = self.encrypted[int(version) % self.variants]
        if kind == "undecryptable":
            encrypted = encrypted.replace("ENC[AES256_GCM,data:", "ENC[AES256_GCM,data:AAAA", 1)
        more = "    environment: {CHAOS_SECRET: '${CHAOS_SECRET}'}\n"
        return {".env.enc": encrypted, "compose.yaml": f"services:\n  web:\n{self.service(version, self.command(kind), more)}"}

    def secret_of(self, version, kind):
        return self.plain_texts[int(version) % self.variants]

    def fields(self):
        return {"env_file": ".env.enc"}


class Slow(Stack):
    """Its container does not listen to SIGTERM, so that a recreate takes its whole grace period."""

    name = "slow"

    def files(self, version, kind):
        command = self.command(kind) if kind == "crash" else "[sh, -c, 'trap : TERM; while :; do sleep 1; done']"
        service = self.service(version, command, "    stop_grace_period: 2s\n").replace("    init: true\n", "")
        return {"compose.yaml": f"services:\n  web:\n{service}"}


class Checked(Stack):
    """It has a health check."""

    name = "checked"
    bad_kinds = ("broken", "unhealthy")
    timeless_bad_kinds = ("broken", "unhealthy")

    def files(self, version, kind):
        test = "false" if kind == "unhealthy" else "test -e /tmp/well"
        check = f"    healthcheck: {{test: [CMD-SHELL, '{test}'], interval: 1s, timeout: 5s, retries: 2, start_period: 1s}}\n"
        command = "[sh, -c, 'mkdir -p /tmp; sleep 1; touch /tmp/well; sleep 86400']"
        service = self.service(version, command, check)
        return {"compose.yaml": f"services:\n  web:\n{service}"}


STACKS = (Plain, Secret, Slow, Checked)
