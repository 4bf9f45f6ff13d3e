"""A container with systemd as process 1, looked at from outside: what one does on a host over ssh."""

import json
import subprocess
import threading
from pathlib import Path

from waiting import Failure, check, wait_until

HERE = Path(__file__).parent
COMMAND_LIMIT_SECONDS = 120
UP_LIMIT_SECONDS = 60
CONTROL_SOCKET = "/run/shiparr/shiparr.sock"
SERVICE, SOCKET, SECRETS = "shiparr.service", "shiparr.socket", "shiparr-secrets.service"
# Of a drop-in that a scenario writes; all of them go at its end.
DROP_IN = "lab.conf"


def docker(*arguments, limit_seconds=COMMAND_LIMIT_SECONDS, **options):
    """The host's own docker; answers what it printed."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=limit_seconds, check=False, **options)
    check(done.returncode == 0, f"docker {' '.join(arguments[:4])}: {done.stderr.strip()}")
    return done.stdout


class Background(threading.Thread):
    """Something that goes on meanwhile; `result` waits for it."""

    def __init__(self, act):
        super().__init__(daemon=True)
        self.act, self.answer, self.error = act, None, None
        self.start()

    def run(self):
        try:
            self.answer = self.act()
        except Exception as error:  # Whoever waits gets it.
            self.error = error

    def result(self, limit_seconds=COMMAND_LIMIT_SECONDS):
        self.join(limit_seconds)
        check(not self.is_alive(), f"what went on meanwhile did not end within {limit_seconds} s")
        if self.error:
            raise self.error
        return self.answer


class Host:
    """The container."""

    def __init__(self, name):
        self.name = name
        # At the same path inside and outside: what Docker binds from here, it finds.
        self.volume = f"{name}-data"
        docker("volume", "create", self.volume)
        self.shared = docker("volume", "inspect", "--format", "{{.Mountpoint}}", self.volume).strip()

    def boot(self):
        mount = f"type=volume,source={self.volume},destination={self.shared}"
        done = subprocess.run([HERE / "boot", self.name, "--mount", mount], capture_output=True, text=True, check=False)
        check(done.returncode == 0, f"it does not boot: {done.stdout}{done.stderr}")

    def reboot(self):
        docker("restart", self.name)
        look = lambda: self.read("systemctl is-system-running", may_fail=True) in ("running", "degraded")
        wait_until(UP_LIMIT_SECONDS, "systemd to be up again", look)

    def remove(self):
        subprocess.run(["docker", "rm", "--force", "--volumes", self.name], capture_output=True, check=False)
        subprocess.run(["docker", "volume", "rm", "--force", self.volume], capture_output=True, check=False)

    # ---- Commands and files ----

    def run(self, script, may_fail=False, stdin=None, user="root", limit_seconds=COMMAND_LIMIT_SECONDS):
        """Runs a shell script inside."""
        command = ["docker", "exec", "--interactive", "--user", user, self.name, "sh", "-euc", script]
        done = subprocess.run(command, input=stdin or "", capture_output=True, text=True, timeout=limit_seconds, check=False)
        if done.returncode != 0 and not may_fail:
            raise Failure(f"`{script.strip()}` ended with {done.returncode}: {(done.stdout + done.stderr).strip()[-1500:]}")
        return done

    def read(self, script, **options):
        """What a shell script prints."""
        return self.run(script, **options).stdout.strip()

    def write(self, path, text, mode="644"):
        self.run(f"install -D -m {mode} /dev/stdin {path}", stdin=text)

    def exists(self, path):
        return self.run(f"test -e {path}", may_fail=True).returncode == 0

    # ---- systemd ----

    def property(self, name, unit=SERVICE):
        return self.read(f"systemctl show --value --property={name} {unit}")

    def state(self, unit=SERVICE):
        return self.property("ActiveState", unit)

    def main_pid(self):
        return int(self.property("MainPID"))

    def drop_in(self, text, unit=SERVICE):
        """Written and known to systemd; a running service goes on as it was."""
        self.write(f"/etc/systemd/system/{unit}.d/{DROP_IN}", text)
        self.run("systemctl daemon-reload")

    def remove_drop_ins(self):
        self.run(f"rm -f /etc/systemd/system/*.d/{DROP_IN} && systemctl daemon-reload && systemctl reset-failed")

    def settings(self, text):
        """More lines of the service's settings, in place of those of an earlier call."""
        path = "/etc/shiparr/shiparr.env"
        self.run(f"sed -i '/^# lab:/,$d' {path} && cat >>{path}", stdin=f"# lab:\n{text}\n")

    def now(self):
        """The host's time, for `journal`."""
        return self.read("date +@%s.%6N")

    def journal(self, since, options=f"--unit={SERVICE}"):
        """Its entries since then, oldest first. By time: --after-cursor together with a filter skips an entry (systemd 252)."""
        lines = self.read(f"journalctl --quiet --output=json --since={since} {options}").splitlines()
        return [json.loads(line) for line in lines]

    def messages(self, since, options=f"--unit={SERVICE}"):
        return "\n".join(str(entry.get("MESSAGE")) for entry in self.journal(since, options))

    # ---- The API ----

    def ask(self, path, method="GET", control=False, body=None):
        """Answers status and JSON (or text), by one curl inside."""
        socket = f"--unix-socket {CONTROL_SOCKET}" if control else ""
        data = "--data-binary @-" if body is not None else ""
        options = f"--silent --show-error --max-time 30 --request {method} --write-out '\\n%{{http_code}}'"
        command = f"curl {options} {socket} {data} http://127.0.0.1:8080{path}"
        text, _, status = self.run(command, stdin=body).stdout.rpartition("\n")
        try:
            return int(status), json.loads(text)
        except ValueError:
            return int(status), text

    def get(self, path):
        status, answer = self.ask(path, control=True)
        check(status == 200, f"GET {path}: {status} {answer}")
        return answer
