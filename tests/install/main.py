"""packaging/install and the Ansible role, run twice on a Debian host with systemd.

Fedora cannot be had here, nor Docker's own repository: what packaging/install chooses on other systems is seen with
stand-ins for their package managers, what it does on Fedora too.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Not by PYTHONPATH, which Ansible would have too.
sys.path[:0] = [str(ROOT / "tests/systemd"), str(ROOT / "tests/python")]

from host import Host, docker  # noqa: E402
from waiting import Failure, check, wait_until  # noqa: E402

HERE = Path(__file__).parent
SCRIPT = (ROOT / "packaging/install").read_text()
BUSYBOX = "shiparr-test/busybox:1"
WEB = "http://127.0.0.1:8000"
# Some twenty programs of Python on the host, which has to share.
PLAY_LIMIT_SECONDS = 300
DEPLOY_LIMIT_SECONDS = 60


def main():
    parser = argparse.ArgumentParser(prog="tests/install/run", description=__doc__.splitlines()[0])
    parser.add_argument("--package", required=True, type=Path)
    parser.add_argument("--image", required=True)
    parser.add_argument("--keep", action="store_true", help="the host stays, for a look into it")
    arguments = parser.parse_args()
    # Whoever ends it at its limit gets the containers removed too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    package = arguments.package.resolve()
    began = time.monotonic()
    step("pins agree with those of the quick start and the tests", pins_agree)
    step("a torn download runs nothing", torn_downloads)
    step("ansible-lint, production profile", lint)
    with Fakes(f"shiparr-install-fakes-{os.getpid()}", arguments.image, package) as fakes:
        step("what it chooses on other systems (stand-ins)", fakes.choices)
        step("what it refuses in one line", fakes.refusals)
        step("Fedora, with a stand-in for dnf", fakes.fedora)
    host = Host(f"shiparr-install-{os.getpid()}")
    try:
        step("boot", host.boot)
        bootstrap = Bootstrap(host, package)
        step("downloads that are not what they should be", bootstrap.bad_downloads)
        step("from a release page, twice", bootstrap.from_release_page)
        step("from a file, with a repository, twice", bootstrap.from_file)
        with tempfile.TemporaryDirectory() as folder:
            role = Role(host, package, Path(folder))
            step("the role: check mode on a blank host", role.blank_check)
            step("the role, twice", role.twice)
            step("the role: changes", role.changes)
    finally:
        if arguments.keep:
            print(f"install: kept: docker exec -it {host.name} bash; docker rm -fv {host.name}; docker volume rm {host.volume}")
        else:
            remove_stack(host)
            host.remove()
    print(f"install: all is well after {time.monotonic() - began:.0f} s")


def step(what, act):
    began = time.monotonic()
    try:
        act()
    except (Failure, subprocess.TimeoutExpired) as error:
        sys.exit(f"install: FAILED: {what}: {error}")
    print(f"install: {what}: {time.monotonic() - began:.1f} s", flush=True)


# ---- Without a host ----


def pins_agree():
    """Versions that are said in several files are the same."""
    def pin(file, name):
        found = re.search(rf"^{name}=v?(\S+)$", (ROOT / file).read_text(), re.MULTILINE)
        check(found, f"{file} has no {name}")
        return found.group(1)

    for name, other in [("SOPS_VERSION", "packaging/dependencies.sh"), ("SHOUTRRR_VERSION", "tests/setup.sh")]:
        ours, theirs = pin("packaging/install", name), pin(other, name)
        check(ours == theirs, f"{name} is {ours} in packaging/install and {theirs} in {other}")


def torn_downloads():
    """Whole it prints its help. Torn anywhere it prints none: at each of the last bytes, and at every so many before."""
    size = len(SCRIPT)
    for length in [*range(0, size, size // 40), *range(size - 16, size - 1), size]:
        done = subprocess.run(["sh", "-s", "--", "--help"], input=SCRIPT[:length], capture_output=True, text=True, timeout=10, check=False)
        ran = bool(done.stdout)
        check(ran == (length == size), f"torn after {length} of {size} bytes: {done.stdout[:200]}")


def lint():
    # It finds the role by the folder that it is called in.
    done = subprocess.run(
        ["ansible-lint", "--offline", "--nocolor", "--profile", "production", "."],
        cwd=ROOT / "packaging/ansible", capture_output=True, text=True, timeout=PLAY_LIMIT_SECONDS, check=False,
    )
    check(done.returncode == 0, done.stdout + done.stderr)


def run_script(name, options="", settings="", script=SCRIPT, user="root"):
    """As `curl … | sudo sh -s -- OPTIONS` does; answers the exit code and what it said."""
    command = ["docker", "exec", "--interactive", "--user", user, name, "sh", "-c", f"{settings} sh -s -- {options} 2>&1"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=PLAY_LIMIT_SECONDS, check=False)
    return done.returncode, done.stdout


# ---- With stand-ins ----


class Fakes:
    """A Debian container, without systemd, that can be made to look like other systems."""

    def __init__(self, name, image, package):
        self.name, self.image, self.package = name, image, package

    def __enter__(self):
        docker("run", "--detach", "--init", "--name", self.name, "--network", "none", self.image, "sleep", "600")
        docker("cp", str(HERE / "stand-in"), f"{self.name}:/stand-in")
        docker("cp", str(self.package), f"{self.name}:/shiparr.deb")
        self.run("install -D -m 755 /stand-in /fake/stand-in; mkdir -p /run/systemd/system")
        return self

    def __exit__(self, *_):
        subprocess.run(["docker", "rm", "--force", "--volumes", self.name], capture_output=True, check=False)

    def run(self, script):
        return docker("exec", self.name, "sh", "-euc", script)

    def become(self, system, codename, candidates, programs):
        """Another system, with these packages to be had and these programs stood in for."""
        self.run(
            f"""rm -rf /fake/bin /fake/log /fake/installed /fake/enabled /etc/shiparr
            mkdir -p /fake/bin /fake/enabled
            printf 'ID={system}\nPRETTY_NAME={system}\nVERSION_CODENAME={codename}\n' >/etc/os-release
            printf '%s\n' {" ".join(f"'{line}'" for line in candidates)} >/fake/candidates
            for program in {programs}; do ln -s /fake/stand-in /fake/bin/$program; done"""
        )

    def ask(self, options="--dry-run --package /shiparr.deb", settings="", user="root"):
        return run_script(self.name, options, f"PATH=/fake/bin:$PATH {settings}", user=user)

    def choices(self):
        distribution = ["docker.io 20.10", "docker-buildx 0.13", "iptables 1.8", "apparmor 3", "ca-certificates 2023"]
        for system, codename, candidates, expected in [
            ("debian", "bookworm", [*distribution, "docker-compose 1.29.2-3"], "docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin"),
            ("debian", "trixie", [*distribution, "docker-cli 26", "docker-compose 2.26.1-4"], "docker.io docker-cli docker-buildx iptables apparmor ca-certificates docker-compose"),
            ("ubuntu", "noble", [*distribution, "docker-compose-v2 2.24", "docker-compose 1.29"], "docker.io docker-buildx iptables apparmor ca-certificates docker-compose-v2"),
            ("debian", "trixie", [*distribution, "docker-ce 5:29", "docker-compose-plugin 5.0"], "docker-ce docker-ce-cli containerd.io docker-buildx-plugin docker-compose-plugin"),
        ]:
            self.become(system, codename, candidates, "apt-cache apt-get")
            code, said = self.ask()
            check(code == 0 and f"  - install Docker: {expected}\n" in said, said)
            own = f"add Docker's own package repository (https://download.docker.com/linux/{system})"
            check((own in said) == (codename == "bookworm"), said)
            check(said.endswith("This was a dry run: nothing was changed.\n"), said)
        # Its engine may be there without its client.
        self.become("debian", "trixie", [*distribution, "docker-cli 26", "docker-compose 2.26.1-4"], "apt-cache apt-get dockerd")
        code, said = self.ask()
        check(code == 0 and "  - install Docker: docker-cli docker-compose\n" in said, said)

    def refusals(self):
        self.become("arch", "", [], "")
        self.refused("arch is not known here")
        self.become("debian", "bookworm", [], "dpkg")
        self.refused("this system is 32-bit ARM (armhf), for which there is no package")
        self.refused("root is needed", user="nobody")
        self.become("debian", "bookworm", [], "")
        self.refused("no release page of Shiparr is published yet", options="")
        self.refused("http://192.0.2.1/SHA256SUMS: only https:// addresses are downloaded from", options="--package http://192.0.2.1/shiparr.deb")
        self.refused("--name: letters, digits, _ and - only", options="--repository https://example.com/a --name ../a")
        self.refused("--repository: no password or token inside the URL", options="--repository https://me:secret@example.com/a")
        self.refused("--branch: plain ASCII only", options="--repository https://example.com/a --branch 'a\"'")
        self.run("rmdir /run/systemd/system")
        self.refused("systemd does not run here")
        self.run("mkdir /run/systemd/system")

    def refused(self, expected, **how):
        code, said = self.ask(**how)
        check(code == 1 and said.count("\n") == 1 and said.startswith(f"error: {expected}"), f"expected {expected!r}: {code}, {said}")
        check("secret" not in said, said)

    def fedora(self):
        # A stand-in for sops on this machine's own web server has not the checksum of sops.
        self.run(
            """mkdir -p /www/v3.11.0 && echo 'not sops' >/www/v3.11.0/sops-v3.11.0.linux.amd64 && touch /shiparr-0.1.0-1.x86_64.rpm
            ln -sf /bin/echo /usr/local/bin/shoutrrr"""
        )
        docker("exec", "--detach", self.name, "python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/www", "8000")
        self.become("fedora", "", ["moby-engine 29.0.0", "docker-cli 29.0.0", "docker-compose 2.40.3", "age 1.2"], "dnf rpm systemctl")
        self.run("for try in $(seq 100); do curl -s http://127.0.0.1:8000/ >/www/up && exit; sleep 0.1; done; exit 1")
        install, settings = "--package /shiparr-0.1.0-1.x86_64.rpm", f"SOPS_DOWNLOADS={WEB}"
        code, said = self.ask(install, settings)
        check(code == 0 and "Shiparr runs." in said, said)
        check("does not have the checksum of sops 3.11.0, and was not installed" in said, said)
        weak = "dnf -y --setopt=install_weak_deps=False install"
        log = re.sub(r"/tmp/tmp\.\w+/", "", self.run("cat /fake/log; test ! -e /usr/local/bin/sops")).splitlines()
        check(log == [
            f"{weak} moby-engine docker-cli docker-compose",
            "systemctl enable --now docker.service",
            f"{weak} age",
            f"{weak} shiparr-0.1.0-1.x86_64.rpm",
            "systemctl enable --now shiparr.socket shiparr.service",
        ], log)
        self.run("ln -s /bin/true /fake/bin/sops")
        code, said = self.ask(install, settings)
        check(code == 0 and "Nothing to do" in said, said)


# ---- On a host ----


# All that an installation may touch, to compare.
SNAPSHOT = r"""
find /etc /usr/bin /usr/local /usr/lib/systemd /var/lib/apt/lists /var/lib/dpkg/status /var/cache/shiparr \( -type f -o -type l \) \
    -printf '%p %m %u %g %s %T@ %l\n' 2>/dev/null | sort
dpkg-query -W
systemctl is-enabled shiparr.service shiparr.socket shiparr-secrets.service 2>&1 || true
systemctl show --property=MainPID,ActiveEnterTimestampMonotonic,NRestarts shiparr.service shiparr.socket
"""


def stay_same(host, act):
    """Answers what `act` does, which leaves the host as it is."""
    before = host.read(SNAPSHOT)
    answer = act()
    after = host.read(SNAPSHOT)
    changed = set(before.splitlines()) ^ set(after.splitlines())
    check(not changed, "this changed:\n" + "\n".join(sorted(changed)[:20]))
    return answer


def purge(host):
    host.run("DEBIAN_FRONTEND=noninteractive apt-get -qq purge shiparr >/dev/null && rm -rf /etc/shiparr /var/lib/shiparr")


def health(host, options=""):
    answer = json.loads(host.read(f"curl -s --max-time 10 {options} http://127.0.0.1:8080/api/health"))
    check(answer["status"] == "ok", answer)


def deployments(host, options=""):
    return json.loads(host.read(f"curl -s --max-time 10 {options} http://127.0.0.1:8080/api/deployments"))


def remove_stack(host):
    """By its name, which no other run has."""
    label = f"label=com.docker.compose.project={host.name}"
    for kind, listing in [("container", ["ls", "--all"]), ("network", ["ls"])]:
        ids = docker(kind, *listing, "--quiet", "--filter", label).split()
        if ids:
            docker(kind, "rm", *(["--force"] if kind == "container" else []), *ids)


def lay_repository(host):
    """A Git repository on the host, with a stack in a folder of it."""
    host.write(
        "/srv/homelab.git/media/compose.yaml",
        f"name: {host.name}\nservices:\n  web:\n    image: {BUSYBOX}\n    command: [sleep, '3600']\n    stop_signal: SIGKILL\n    network_mode: none\n",
    )
    host.run(
        """cd /srv/homelab.git && git init -q --initial-branch=main && git add --all
        git -c user.name=Test -c user.email=test@localhost commit -q -m 'A stack'"""
    )


class Bootstrap:
    """packaging/install, on a host that has Docker."""

    def __init__(self, host, package):
        self.host, self.package = host, package

    def lay_releases(self):
        docker("exec", self.host.name, "mkdir", "-p", "/www")
        docker("cp", str(self.package), f"{self.host.name}:/www/")
        self.host.run(
            """cd /www
            printf '#!/bin/sh\n' >shoutrrr && chmod 755 shoutrrr && mkdir v0.13.2
            for word in amd64 arm64v8; do tar -czf v0.13.2/shoutrrr_linux_${word}_0.13.2.tar.gz shoutrrr; done
            (cd v0.13.2 && sha256sum *.tar.gz >checksums.txt)"""
        )
        docker("exec", "--detach", self.host.name, "python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", "/www", "8000")
        wait_until(10, "the web server", lambda: self.host.run(f"curl -s {WEB}/", may_fail=True).returncode == 0)

    def ask(self, options="", releases=WEB):
        return run_script(self.host.name, options, f"SHIPARR_RELEASES={releases} SHOUTRRR_DOWNLOADS={WEB}")

    def bad_downloads(self):
        self.lay_releases()
        stay_same(self.host, self.ask_for_bad_ones)
        self.host.run("cd /www && sha256sum *.deb >SHA256SUMS")

    def ask_for_bad_ones(self):
        name = self.package.name
        for sums, options, expected in [
            (f"{'0' * 64}  {name}", "", f"{WEB}/{name} does not have the checksum that SHA256SUMS says"),
            (f"{'0' * 64}  shiparr_9.9.9-1_other.deb", "", "SHA256SUMS names no .deb package for"),
            (f"{'0' * 64}  {name}.part", f"--package {WEB}/{name}", f"SHA256SUMS does not name {name}"),
            (f"{'0' * 64}  {name}", f"--package {WEB}/nothing/{name}", "the checksums of Shiparr's packages cannot be had"),
        ]:
            self.host.write("/www/SHA256SUMS", sums + "\n")
            code, said = self.ask(options)
            check(code == 1 and expected in said and said.count("\n") == 1, said)

    def from_release_page(self):
        """As `curl … | sudo sh`: what runs deploys nothing yet."""
        code, said = stay_same(self.host, lambda: self.ask("--dry-run"))
        check(code == 0 and "  - install shiparr " in said, said)
        code, said = self.ask()
        check(code == 0 and "Shiparr runs." in said and "Could not be had" not in said, said)
        health(self.host)
        check(deployments(self.host) == [], "it has deployed something")
        self.host.run("shoutrrr && runuser -u shiparr -- cat /etc/shiparr/projects/stacks.yaml >/dev/null && shiparr check")
        self.nothing_to_do()
        self.nothing_to_do(f"--package {WEB}/{self.package.name}")
        purge(self.host)

    def nothing_to_do(self, options="", releases=WEB):
        code, said = stay_same(self.host, lambda: self.ask(options, releases))
        check(code == 0 and said.endswith("Nothing to do: everything is installed, enabled and running.\n"), said)
        return said

    def from_file(self):
        """With a repository its stack runs in the end, and what somebody has written stays."""
        lay_repository(self.host)
        options = f"--package /www/{self.package.name} --repository file:///srv/homelab.git --path media"
        code, said = self.ask(options, releases="")
        check(code == 0 and "Shiparr runs." in said, said)
        wait_until(DEPLOY_LIMIT_SECONDS, "the stack to be deployed", lambda: [row["status"] for row in deployments(self.host)] == ["success"])
        self.host.run("printf '# mine\n' >>/etc/shiparr/projects/stacks.yaml; printf '# mine\n' >>/etc/shiparr/shiparr.env")
        said = self.nothing_to_do(options, releases="")
        check("so --repository writes nothing: add homelab there" in said, said)
        purge(self.host)
        # Its containers would stand in the way of another checkout of it.
        remove_stack(self.host)


class Role:
    """The Ansible role, run from this machine over ssh."""

    def __init__(self, host, package, folder):
        self.host, self.folder = host, folder
        key = folder / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        host.write("/root/.ssh/authorized_keys", key.with_suffix(".pub").read_text(), mode="600")
        address = docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", host.name).strip()
        (folder / "hosts.ini").write_text(
            f"[docker_hosts]\n{address} ansible_user=root ansible_ssh_private_key_file={key} ansible_python_interpreter=/usr/bin/python3\n"
        )
        (folder / "play.yml").write_text("- hosts: docker_hosts\n  become: true\n  gather_subset: [min]\n  roles: [shiparr]\n")
        self.variables = {
            "shiparr_package": str(package),
            "shiparr_settings": {"Shiparr_AUTH_ENABLED": True, "Shiparr_AUTH_USERNAME": "operator of this host"},
            "shiparr_credentials": {"auth_password": "a-long-password", "age_key": "AGE-SECRET-KEY-EXAMPLE"},
            "shiparr_read_write_paths": ["/srv/stacks"],
            "shiparr_projects": {"homelab": {"project": "homelab", "repositories": {"media": {
                "url": "file:///srv/homelab.git", "path": "media", "local_path": "/srv/stacks/media", "check_interval": 3600}}}},
        }
        self.login = "--user 'operator of this host:a-long-password'"

    def play(self, *options, failed=0):
        """Runs the role, and answers how many tasks changed something, and what Ansible said."""
        (self.folder / "variables.json").write_text(json.dumps(self.variables))
        environment = {
            **os.environ, "ANSIBLE_ROLES_PATH": str(ROOT / "packaging/ansible/roles"), "ANSIBLE_HOST_KEY_CHECKING": "False", "ANSIBLE_PIPELINING": "True",
            "ANSIBLE_SSH_ARGS": f"-o ControlMaster=auto -o ControlPersist=60s -o UserKnownHostsFile={self.folder}/known_hosts",
            "ANSIBLE_LOCAL_TEMP": str(self.folder / "ansible"), "ANSIBLE_NOCOLOR": "True", "LC_ALL": "C.UTF-8",
        }
        done = subprocess.run(
            ["ansible-playbook", "--inventory", "hosts.ini", "--extra-vars", "@variables.json", *options, "play.yml"],
            cwd=self.folder, env=environment, capture_output=True, text=True, timeout=PLAY_LIMIT_SECONDS, check=False,
        )
        counts = {name: int(count) for name, count in re.findall(r"(changed|unreachable|failed)=(\d+)", done.stdout)}
        check(counts.get("failed") == failed and counts.get("unreachable") == 0, done.stdout + done.stderr)
        for secret in self.variables["shiparr_credentials"].values():
            check(secret not in done.stdout + done.stderr, f"it shows a credential: {done.stdout}")
        return counts["changed"], done.stdout

    def blank_check(self):
        changed, said = stay_same(self.host, lambda: self.play("--check"))
        check(changed > 0, said)

    def twice(self):
        """The second time changes nothing, and shows no secret even at the highest verbosity."""
        self.play()
        health(self.host, self.login)
        wait_until(DEPLOY_LIMIT_SECONDS, "the stack to be deployed", lambda: [row["status"] for row in deployments(self.host, self.login)] == ["success"])
        check(self.host.read("stat -c '%a %U %G' /etc/shiparr/credentials/age_key /etc/shiparr/shiparr.env /etc/shiparr/projects/homelab.yaml")
              == "600 root root\n640 root shiparr\n640 root shiparr", "modes and owners")
        check(self.host.exists("/srv/stacks/media/media/compose.yaml"), "the checkout is not where local_path says")
        changed, said = stay_same(self.host, lambda: self.play("-vvv", "--diff"))
        check(changed == 0, said)

    def changes(self):
        """A project file that is wrong is not put in place, and what else changed then counts from the next time; one that is right is reloaded."""
        # What is installed is no matter from here on.
        self.variables.update(shiparr_install_docker=False, shiparr_package="")
        project, pid = self.variables["shiparr_projects"]["homelab"], self.host.main_pid()
        project["repositories"]["media"]["check_intervall"] = 60
        self.variables["shiparr_settings"]["Shiparr_HISTORY_LIMIT"] = 100
        self.play(failed=1)
        self.host.run("! grep check_intervall /etc/shiparr/projects/homelab.yaml && grep \"HISTORY_LIMIT='100'\" /etc/shiparr/shiparr.env")
        check(self.host.main_pid() == pid, "a play that failed restarts the daemon")
        del project["repositories"]["media"]["check_intervall"]
        self.play()
        check(self.host.main_pid() != pid, "settings of a play that failed do not restart the daemon in the next")
        health(self.host, self.login)
        project["description"], pid = "Changed", self.host.main_pid()
        self.play()
        check(self.host.main_pid() == pid, "a project file restarts the daemon")
        wait_until(10, "the project to be reloaded", lambda: json.loads(self.host.read(f"curl -s {self.login} http://127.0.0.1:8080/api/projects"))[0]["description"] == "Changed")


if __name__ == "__main__":
    main()
