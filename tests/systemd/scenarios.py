"""What the installed service has to do, in the order in which a host lives: installed, used, upgraded, removed. Each
scenario's first line of documentation is what it shows, and what is printed; it answers figures, or nothing."""

import hashlib
import hmac
import json
import re
import subprocess
from pathlib import Path

import readme
from host import CONTROL_SOCKET, HERE, SECRETS, SERVICE, SOCKET, Background, docker
from stacks import PROJECT
from waiting import check, wait_until

UNITS = (SERVICE, SOCKET, SECRETS)
RESTARTS = 10
MOST_EXPOSURE = 3.0
RESTART_LIMIT_SECONDS = 30
DATABASE = "/var/lib/shiparr/Shiparr.db"
ENABLE = "systemctl enable --now shiparr.socket shiparr.service"
WEBHOOK_SECRET = "a-secret-of-the-lab"
SECRET_TEXT, KEY_TEXT = "opened-by-the-lab", "a key of the lab"


class Load:
    """New connections all the time, from inside; see load.py."""

    def __init__(self, host):
        command = ["docker", "exec", "--interactive", host.name, "python3", "-c", (HERE / "load.py").read_text()]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        check(self.process.stdout.readline() == "ready\n", "the load did not start")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.communicate()

    def end(self):
        """Answers how many were answered, and fails where one was not."""
        output, _ = self.process.communicate(timeout=120)
        ways = json.loads(output)
        figures = "; ".join(
            f"{name}: {way['answered']} answered, {way['failed']} failed, longest {way['longest_seconds']} s" for name, way in ways.items())
        failures = [failure for way in ways.values() for failure in way["failures"]]
        check(not failures, f"{figures}: {failures}")
        check(all(way["answered"] for way in ways.values()), f"nothing was asked: {figures}")
        return figures


class Scenarios:
    """All of them, on one host."""

    def __init__(self, host, stacks, package, next_package):
        self.host, self.stacks, self.package, self.next_package = host, stacks, package, next_package

    def tidy(self):
        """After each scenario, also one that failed: nothing waits, and the service runs with its own settings."""
        self.stacks.release()
        self.host.remove_drop_ins()

    def restart(self):
        self.host.run(f"systemctl restart {SERVICE}")

    # ---- Installing ----

    def install(self):
        """A fresh install starts and enables nothing, and says in two lines how to"""
        output = self.apt(f"install {self.copy_in(self.package)}")
        lines = output.splitlines()
        at = [number for number, line in enumerate(lines) if ENABLE in line]
        check(len(at) == 1, f"`{ENABLE}` stands in {len(at)} lines of: {output[-800:]}")
        for unit in UNITS:
            enabled = self.host.read(f"systemctl is-enabled {unit}", may_fail=True)
            check(enabled == "disabled", f"{unit} is {enabled}")
            check(self.host.state(unit) == "inactive", f"{unit} is {self.host.state(unit)}")
        check("docker" in self.host.read("id -nG shiparr").split(), "the user shiparr is not in the group docker")
        check(self.host.read("getent passwd shiparr").split(":")[5] == "/var/lib/shiparr", "the home of shiparr")
        check(self.host.read("stat -c %U:%G:%a /run/shiparr") == "shiparr:shiparr:755", "the owner of /run/shiparr")
        check(self.host.exists("/etc/shiparr/shiparr.env") and self.host.exists("/etc/shiparr/projects"), "there is no /etc/shiparr")
        check(self.host.read("dpkg --verify shiparr") == "", "files of the package are not as they were packed")
        self.host.run("useradd --create-home --groups shiparr alice && useradd --create-home bob")

    def units(self):
        """systemd-analyze has nothing to say of the units, and the service's exposure is low enough"""
        verify, folder = "systemd-analyze verify --man=no", "/usr/lib/systemd"
        units = " ".join(f"{folder}/system/{unit}" for unit in UNITS)
        said = self.host.run(f"SYSTEMD_LOG_LEVEL=notice {verify} {units}")
        check(not said.stderr + said.stdout, f"systemd-analyze verify: {said.stderr}{said.stdout}")
        units = f"{folder}/user/{SERVICE} {folder}/user/{SOCKET}"
        said = self.host.run(f"SYSTEMD_LOG_LEVEL=notice XDG_RUNTIME_DIR=/run {verify} --user {units}")
        check(not said.stderr + said.stdout, f"XDG_RUNTIME_DIR=/run systemd-analyze --user verify: {said.stderr}{said.stdout}")
        overall = self.host.read(f"systemd-analyze security --no-pager {SERVICE} | tail -n 1")
        exposure = re.search(r"Overall exposure level for shiparr.service: ([0-9.]+)", overall)
        check(exposure and float(exposure.group(1)) <= MOST_EXPOSURE, f"more than {MOST_EXPOSURE}: {overall}")
        return f"exposure {exposure.group(1)}"

    # ---- Starting ----

    def start(self):
        """`enable --now` returns when the daemon answers, and its status line says what it is doing"""
        self.host.run(f"{ENABLE} 2>&1 && curl --silent --fail http://127.0.0.1:8080/api/health")
        check(self.host.get("/api/health")["status"] == "ok", f"health: {self.host.get('/api/health')}")
        for unit in UNITS:
            check(self.host.read(f"systemctl is-enabled {unit}") == "enabled", f"{unit} is not enabled")
        status = self.host.property("StatusText")
        check("0 repositories" in status, f"its status is `{status}`")
        check(self.host.read(f"stat -c %U:%G:%a {CONTROL_SOCKET}") == "root:shiparr:660", "the control socket's owner and mode")

    def activation(self):
        """With the service stopped, the first request starts it: by TCP, and by the control socket; both units restart together"""
        for control in (False, True):
            self.host.run(f"systemctl stop {SERVICE} 2>&1")
            check(self.host.state() == "inactive", f"after the stop it is {self.host.state()}")
            status, answer = self.host.ask("/api/health", control=control)
            check(status == 200, f"the first request: {status} {answer}")
            check(self.host.state() == "active", f"after a request it is {self.host.state()}")
        self.host.run(f"systemctl restart {SOCKET}")
        status, answer = self.host.ask("/api/health", control=True)
        check(status == 200 and self.host.state(SOCKET) == "active", f"after a restart of the socket unit: {status} {answer}")

    def ready(self):
        """The service is active only when the database is open and the first configuration is loaded"""
        self.host.run(f"systemctl stop {SERVICE} 2>&1")
        lock = f"import sqlite3, sys; sqlite3.connect('{DATABASE}').execute('BEGIN EXCLUSIVE'); print('locked', flush=True); sys.stdin.read()"
        command = ["docker", "exec", "--interactive", "--user", "shiparr", self.host.name, "python3", "-c", lock]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
            check(holder.stdout.readline() == "locked\n", "the database cannot be locked")
            self.host.run(f"systemctl start --no-block {SERVICE}")
            wait_until(10, "the daemon to run", lambda: self.program() == "/usr/bin/shiparr")
            self.host.run("sleep 1")
            check(self.host.state() == "activating", f"while it waits for its database, the service is {self.host.state()}")
            holder.stdin.close()
        wait_until(10, "the service to become active", lambda: self.host.state() == "active")
        check(self.host.property("NRestarts") == "0", "it was restarted in between")

    def members(self):
        """Members of the group shiparr may use the control socket, and others are told of the group"""
        self.host.run("shiparr status", user="alice")
        refused = self.host.run("shiparr status", user="bob", may_fail=True)
        check(refused.returncode != 0, "bob, who is in no group, may use the control socket")
        check("shiparr" in refused.stderr and "group" in refused.stderr, f"bob is told: {refused.stderr}")

    # ---- Deploying ----

    def deploy(self):
        """A real stack is deployed from its repository, and systemd's status line tells of it"""
        commit = self.stacks.push("web")
        self.stacks.hold()
        self.stacks.configure("web")
        wait_until(10, "the new project file to be read", lambda: "1 repositor" in self.host.property("StatusText")
                   or "deploying" in self.host.property("StatusText"))
        if not self.stacks.newest("web"):
            self.stacks.deploy("web")
        self.stacks.wait_until_held()
        status = self.host.property("StatusText")
        check(re.match(rf"deploying {PROJECT}/web {commit[:7]}\b", status), f"while deploying, the status is `{status}`")
        self.stacks.release()
        self.stacks.wait_for_success("web", "1")
        wait_until(5, "the status to tell that nothing goes on", lambda: "deploying" not in self.host.property("StatusText"))
        return f"`{status}`, then `{self.host.property('StatusText')}`"

    def elsewhere(self):
        """A checkout outside /var/lib/shiparr needs the drop-in that `check` prints; then its bind mounts work"""
        self.host.run(f"install -d -o shiparr -g shiparr {self.host.shared}/checkouts")
        folder = f"{self.host.shared}/checkouts/site"
        mount = "    volumes: ['./html:/www:ro']\n"
        self.stacks.push("site", {"html/index.html": "first\n"}, service=mount)
        self.stacks.configure("site", local_path=folder)
        said = self.host.run("shiparr check", may_fail=True)
        lines = (said.stdout + said.stderr).splitlines()
        wanted = [line.strip() for line in lines if line.strip().startswith("ReadWritePaths=")]
        check(wanted, f"`shiparr check` names no ReadWritePaths= for {folder}: {lines}")
        self.host.drop_in("[Service]\n" + wanted[0] + "\n")
        self.restart()
        self.stacks.deploy("site")
        self.stacks.wait_for_success("site", "1")
        seen = docker("exec", self.stacks.container("site"), "cat", "/www/index.html")
        check(seen == "first\n", f"the container sees {seen!r}")
        # The drop-in's place is taken by other scenarios: this one stays, as on a host.
        self.host.write("/etc/systemd/system/shiparr.service.d/checkouts.conf", "[Service]\n" + wanted[0] + "\n")

    def credentials(self):
        """LoadCredential= brings the age key and the webhooks' secret"""
        recipient = self.host.read("age-keygen -o /root/age.key 2>/dev/null && age-keygen -y /root/age.key")
        self.host.write("/root/webhook.secret", WEBHOOK_SECRET, mode="600")

        def encrypt(type_, text):
            sops = f"sops --encrypt --age {recipient} --input-type {type_} --output-type {type_} /dev/stdin"
            return self.host.run(sops, stdin=text).stdout

        files = {".env.enc": encrypt("dotenv", f"LAB_SECRET={SECRET_TEXT}\n"), "key.pem.enc": encrypt("binary", f"{KEY_TEXT}\n")}
        self.stacks.push("secret", files, service="    environment: {LAB_SECRET: '${LAB_SECRET}'}\n")
        drop_in = "[Service]\nLoadCredential=age_key:/root/age.key\nLoadCredential=webhook_secret:/root/webhook.secret\n"
        for unit in (SERVICE, SECRETS):
            self.host.write(f"/etc/systemd/system/{unit}.d/credentials.conf", drop_in)
        self.host.run("systemctl daemon-reload")
        self.stacks.configure("secret", env_file=".env.enc", secret_files="[key.pem.enc]")
        self.restart()
        if not self.stacks.newest("secret"):
            self.stacks.deploy("secret")
        self.stacks.wait_for_success("secret", "1")
        environment = docker("inspect", "--format", "{{.Config.Env}}", self.stacks.container("secret"))
        check(f"LAB_SECRET={SECRET_TEXT}" in environment, f"the container's environment: {environment}")
        self.check_webhooks()

    def check_webhooks(self):
        body = json.dumps({"ref": "refs/heads/main", "repository": {"clone_url": "https://example.com/nobody/knows.git"}})
        for secret, expected in ((WEBHOOK_SECRET, 200), ("another", 401)):
            signature = hmac.new(secret.encode(), body.encode(), hashlib.sha256).hexdigest()
            headers = f"--header 'X-Gitea-Event: push' --header 'X-Gitea-Signature: {signature}'"
            command = f"curl --silent --output /dev/null --write-out '%{{http_code}}' {headers} --data-binary @- http://127.0.0.1:8080/webhook/gitea"
            status = int(self.host.run(command, stdin=body).stdout)
            check(status == expected, f"a webhook signed with {'the' if expected == 200 else 'a wrong'} secret is answered {status}")

    def journal(self):
        """`journalctl -u shiparr -p err` shows the errors and nothing else"""
        since, errors = self.host.now(), f"--unit={SERVICE} --priority=err"
        self.host.write("/etc/shiparr/projects/broken.yaml", "project: broken\nrepositories: 7\n")
        wait_until(10, "an error about the broken project file", lambda: "broken.yaml" in self.host.messages(since, errors))
        self.host.run("rm /etc/shiparr/projects/broken.yaml")
        self.restart()
        entries = [entry for entry in self.host.journal(since) if entry["_COMM"] == "shiparr"]
        priorities = {str(entry["MESSAGE"]): entry["PRIORITY"] for entry in entries}
        check(not [text for text in priorities if re.match("<[0-7]>", text)], f"a priority stands in a message's text: {priorities}")
        wrong = [text for text, priority in priorities.items() if (priority == "3") != ("broken.yaml" in text)]
        check(not wrong, f"errors that are none, or errors that do not count as such: {wrong}")
        check("6" in priorities.values(), f"no entry is of priority 6: {priorities}")

    def reload(self):
        """`systemctl reload` reads the project files again, and systemd is told when it begins and ends"""
        self.host.settings("DISABLE_CONFIG_AUTO_RELOAD=true")
        self.restart()
        pid, since = self.host.main_pid(), self.host.now()
        self.host.write("/etc/shiparr/projects/second.yaml", "project: second\nrepositories: {}\n")
        with self.manager_tells_all():
            self.host.run(f"systemctl reload {SERVICE}")
            wait_until(10, "the second project", lambda: self.host.ask("/api/projects/second", control=True)[0] == 200)
            told = r"message from PID \d+ \(RELOADING=1, MONOTONIC_USEC=\d+\)(.|\n)*message from .*READY=1"
            wait_until(10, "systemd to be told of a reload and its end", lambda: re.search(told, self.host.messages(since, "_PID=1")))
        check(self.host.state() == "active" and self.host.main_pid() == pid, "the service did not go on as it was")
        self.host.run("rm /etc/shiparr/projects/second.yaml")
        self.host.settings("")
        self.restart()

    def manager_tells_all(self):
        """While this lasts, systemd's own log tells each notification that it gets."""
        return LogLevel(self.host)

    # ---- Restarting ----

    def watchdog(self):
        """A thread that hangs gets the service restarted by the watchdog; a long deployment does not"""
        since = self.host.now()
        hang = "/srv/lab/hang.env"
        self.host.write(hang, "Shiparr_DEBUG_HANG=worker\n")
        self.host.drop_in(f"[Service]\nWatchdogSec=3\nEnvironmentFile=-{hang}\n")
        self.restart()
        wait_until(20, "systemd to end the service by the watchdog", lambda: "Failed with result 'watchdog'" in self.host.messages(since))
        self.host.run(f"rm {hang}")
        wait_until(20, "systemd to start the service again", lambda: int(self.host.property("NRestarts")) >= 1 and self.host.state() == "active")
        pid = self.host.main_pid()
        self.stacks.hold()
        self.stacks.push("web", version="watched")
        self.stacks.deploy("web")
        self.stacks.wait_until_held()
        # Twice the watchdog's time: there is nothing to wait for but that nothing happens.
        self.host.run("sleep 7")
        self.stacks.release()
        self.stacks.wait_for_success("web", "watched")
        check(self.host.main_pid() == pid, "the service was restarted while it deployed")

    def restarts(self):
        """Ten restarts under a load of new connections lose none, by TCP and by the control socket"""
        with Load(self.host) as load:
            for _ in range(RESTARTS):
                self.host.run(f"systemctl restart {SERVICE}")
            return load.end()

    def killed(self):
        """After `kill -9` the service comes back, and what it had accepted is deployed"""
        self.stacks.push("web", version="killed")
        pid = self.host.main_pid()
        deployment = self.stacks.deploy("web")
        self.host.run(f"kill -9 {pid}")
        wait_until(RESTART_LIMIT_SECONDS, "the service to come back", lambda: self.host.main_pid() not in (0, pid) and self.host.state() == "active")
        done = self.stacks.wait_for_success("web", "killed")
        check(done["id"] >= deployment, f"deployment {deployment} was accepted, and the newest is {done['id']}")

    def graceful(self):
        """A restart waits for the running deployment, beyond TimeoutStopSec=, and then goes on"""
        self.host.drop_in("[Service]\nTimeoutStopSec=3\n")
        self.stacks.push("web", version="graceful")
        self.stacks.hold()
        deployment = self.stacks.deploy("web")
        self.stacks.wait_until_held()
        pid, since = self.host.main_pid(), self.host.now()
        with self.manager_tells_all():
            restart = Background(lambda: self.host.run(f"systemctl restart {SERVICE}"))
            wait_until(10, "the service to stop", lambda: self.host.state() == "deactivating")
            self.host.run("sleep 4")
            check(self.host.main_pid() == pid and self.host.state() == "deactivating", "it did not wait for the deployment")
            status = self.host.property("StatusText")
            told = self.host.messages(since, "_PID=1")
            self.stacks.release()
            restart.result()
        check("STOPPING=1" in told and "EXTEND_TIMEOUT_USEC=" in told, "systemd was not told STOPPING=1 and EXTEND_TIMEOUT_USEC=")
        check(self.host.main_pid() not in (0, pid), "the service was not restarted")
        done = self.stacks.wait_for_success("web", "graceful")
        check(done["id"] == deployment, f"deployment {deployment} had to be repeated as {done['id']}")
        return f"`{status}`"

    def alone(self):
        """Without the socket unit the service opens both sockets itself"""
        self.host.run(f"systemctl disable --now {SOCKET} 2>&1 && systemctl restart {SERVICE}")
        check(self.host.state(SOCKET) == "inactive", f"the socket unit is {self.host.state(SOCKET)}")
        for control in (False, True):
            status, answer = self.host.ask("/api/health", control=control)
            check(status == 200, f"control socket {control}: {status} {answer}")
        owner = self.host.read(f"stat -c %G:%a {CONTROL_SOCKET}")
        check(owner == "shiparr:660", f"the control socket is {owner}")
        self.host.run("shiparr status", user="alice")
        self.host.run(f"systemctl stop {SERVICE} && {ENABLE} 2>&1 && curl --silent --fail http://127.0.0.1:8080/api/health")
        check(self.host.state(SOCKET) == "active", f"the socket unit is {self.host.state(SOCKET)} again")

    # ---- Secrets in memory ----

    def secrets(self):
        """Mounted secrets outlive the service, and after a reboot they are there before Docker starts"""
        path = "/var/lib/shiparr/deployments/lab/secret/key.pem"
        look = f"readlink {path}; stat -L -c '%i %Y' {path}"
        check(self.host.read(f"cat {path}") == KEY_TEXT, "the secret file is not what was encrypted")
        link, before = self.host.read(look).splitlines()
        check(link.startswith("/run/shiparr/secrets/"), f"it links to {link}")
        self.host.run(f"systemctl restart {SERVICE}")
        self.host.run(f"systemctl stop {SERVICE} 2>&1")
        check(self.host.read(look).splitlines() == [link, before], "it did not outlive a restart and a stop of the service")
        # In Docker's place, for the Docker that is reached lies outside: it sees what a container of it would.
        seen = "/root/docker-saw"
        self.host.write("/etc/systemd/system/docker.service", (
            "[Unit]\nDescription=In Docker's place\n[Service]\nType=oneshot\nRemainAfterExit=yes\n"
            f"ExecStart=/bin/sh -c 'cat {path} >{seen} 2>&1'\n[Install]\nWantedBy=multi-user.target\n"))
        self.host.run(f"systemctl daemon-reload && systemctl enable docker.service 2>&1 && systemctl reenable {SECRETS} 2>&1")
        self.host.reboot()
        check(self.host.read(f"cat {seen}") == KEY_TEXT, f"when Docker started, there was: {self.host.read(f'cat {seen}')}")
        check(self.host.property("Result", SECRETS) == "success", f"{SECRETS}: {self.host.property('Result', SECRETS)}")
        # Nobody asked: the timers run after a boot by themselves.
        wait_until(RESTART_LIMIT_SECONDS, "the service to run after the boot", lambda: self.host.state() == "active")
        check(self.host.get("/api/health")["status"] == "ok", "health after the boot")

    # ---- A user's own ----

    def user(self):
        """A user's own service runs under their own systemd, with a socket of its own"""
        self.host.run(f"systemctl stop {SOCKET} {SERVICE} && usermod --append --groups docker bob && loginctl enable-linger bob")
        run = "export XDG_RUNTIME_DIR=/run/user/$(id -u bob); runuser -u bob -- "
        wait_until(20, "bob's systemd", lambda: self.host.run(run + "systemctl --user is-system-running", may_fail=True).stdout.strip() == "running")
        self.host.write("/home/bob/.config/shiparr/shiparr.env", "DOCKER_HOST=unix:///run/docker.sock\n")
        self.host.run("install -d -o bob /home/bob/.config/shiparr/projects")
        self.host.run(run + "systemctl --user start shiparr.socket shiparr.service")
        health = json.loads(self.host.read(run + "curl --silent --unix-socket $XDG_RUNTIME_DIR/shiparr/shiparr.sock http://localhost/api/health"))
        check(health["checks"]["docker"]["status"] == "ok", f"health: {health}")
        self.host.run(run + "shiparr status")
        self.host.run(run + "systemctl --user stop shiparr.socket shiparr.service; loginctl disable-linger bob")
        self.host.run(f"systemctl start {SOCKET} {SERVICE}")

    # ---- The package's life ----

    def upgrade(self):
        """An upgrade waits for the running deployment, loses no request, and the new program runs"""
        package = self.copy_in(self.next_package)
        self.stacks.push("web", version="upgraded")
        self.stacks.hold()
        deployment = self.stacks.deploy("web")
        self.stacks.wait_until_held()
        pid, before = self.host.main_pid(), self.version()
        with Load(self.host) as load:
            upgrade = Background(lambda: self.apt(f"install {package}"))
            wait_until(60, "apt to wait for the deployment", lambda: self.host.run("pgrep -f 'shiparr hold'", may_fail=True).returncode == 0)
            self.host.run("sleep 2")
            check(upgrade.is_alive() and self.host.main_pid() == pid, "the service was restarted in the middle of a deployment")
            self.stacks.release()
            upgrade.result()
            figures = load.end()
        done = self.stacks.wait_for_success("web", "upgraded")
        check(done["id"] == deployment, f"deployment {deployment} had to be repeated as {done['id']}")
        check(self.version() != before, f"it is still {before}")
        check(self.host.main_pid() != pid, "the service was not restarted")
        check(self.program() == "/usr/bin/shiparr", f"what runs is {self.program()}")
        return f"{before} to {self.version()}; {figures}"

    def stopped(self):
        """An upgrade of a service that is stopped leaves it so"""
        self.host.run(f"systemctl disable --now {SERVICE} {SOCKET} 2>&1")
        self.apt(f"install --reinstall {self.copy_in(self.next_package)}")
        for unit in (SERVICE, SOCKET):
            check(self.host.state(unit) == "inactive", f"{unit} is {self.host.state(unit)}")
            enabled = self.host.read(f"systemctl is-enabled {unit}", may_fail=True)
            check(enabled == "disabled", f"{unit} is {enabled}")
        self.host.run(f"{ENABLE} 2>&1")

    def remove(self):
        """Removing the package keeps the data, and an installation after it goes on with them"""
        newest, container = self.stacks.newest("web"), self.stacks.container("web")
        self.apt("remove shiparr")
        check(self.host.state() == "inactive" and not self.host.exists("/usr/bin/shiparr"), "something of the package is left")
        check(not self.host.exists(CONTROL_SOCKET), "the control socket is left")
        check(self.host.exists(DATABASE) and self.host.exists("/etc/shiparr/projects/lab.yaml"), "data are gone")
        check(self.stacks.container("web") == container, "a container was touched")
        self.apt(f"install {self.copy_in(self.next_package)}")
        self.host.run(f"{ENABLE} 2>&1")
        check(self.stacks.newest("web")["id"] == newest["id"], f"the newest deployment was {newest}, and is {self.stacks.newest('web')}")

    def purge(self):
        """Purging removes database, object stores and settings, keeps checkouts and saved files, and says so"""
        self.host.run("install -d -o shiparr /var/lib/shiparr/saved/lab && echo mine >/var/lib/shiparr/saved/lab/file && "
                      "echo data >/var/lib/shiparr/deployments/lab/web/untracked")
        container = self.stacks.container("web")
        output = self.apt("purge shiparr")
        for path in ("deployments", "saved"):
            check(f"/var/lib/shiparr/{path}" in output, f"it does not say that {path} stay: {output[-800:]}")
        kept = self.host.read("cd /var/lib/shiparr && cat saved/lab/file deployments/lab/web/untracked deployments/lab/web/compose.yaml")
        check(kept.startswith("mine\ndata\nservices:"), f"of people's data there is: {kept}")
        left = self.host.read("ls -A /var/lib/shiparr").split()
        check(sorted(left) == ["deployments", "saved"], f"in /var/lib/shiparr there is {left}")
        check(not self.host.exists("/etc/shiparr/shiparr.env"), "the settings are left")
        check(self.stacks.container("web") == container, "a container was touched")

    def first_project(self):
        """Whoever follows the README has a service that watches the first project"""
        readme.follow(self.host, self.copy_in(self.package))

    # ---- Helpers ----

    def copy_in(self, package):
        """Where a package of this machine lies on the host."""
        path = f"/root/{Path(package).name}"
        if not self.host.exists(path):
            docker("cp", str(package), f"{self.host.name}:{path}")
        return path

    def apt(self, arguments):
        """Answers what it printed."""
        return self.host.read(f"DEBIAN_FRONTEND=noninteractive apt-get --quiet --yes --no-install-recommends {arguments} 2>&1")

    def program(self):
        """What the service runs; one that was replaced is `(deleted)`."""
        return self.host.read(f"readlink /proc/{self.host.main_pid()}/exe", may_fail=True)

    def version(self):
        return self.host.read("dpkg-query --show --showformat '${Version}' shiparr")


class LogLevel:
    """systemd's own log, for as long as `with` lasts."""

    def __init__(self, host):
        self.host = host

    def __enter__(self):
        self.host.run("systemd-analyze log-level debug")

    def __exit__(self, *_):
        self.host.run("systemd-analyze log-level info")


# A host's life is told in this order.
ALL = ("install", "units", "start", "activation", "ready", "members", "deploy", "elsewhere", "credentials", "journal", "reload", "watchdog",
       "restarts", "killed", "graceful", "alone", "secrets", "user", "upgrade", "stopped", "remove", "purge", "first_project")
# Without these two nothing can be seen.
FIRST = ("install", "start")
# What else has to be there before a scenario.
NEEDS = {
    **{name: ("deploy",) for name in ("watchdog", "killed", "graceful", "upgrade", "remove", "purge")},
    "secrets": ("credentials",),
    "first_project": ("deploy", "purge"),
}


def with_needs(chosen):
    """The chosen scenarios and those that they need, in order."""
    wanted = {*FIRST, *chosen, *(need for name in chosen for need in NEEDS.get(name, ()))}
    return [name for name in ALL if name in wanted]
