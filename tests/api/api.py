"""The daemon and those who ask it, behind tests/api/run. The standard library, and schemathesis."""

import argparse
import base64
import hashlib
import hmac
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import schemathesis
from waiting import Failure, wait_until

IMAGE = "shiparr-test/busybox:1"
READY_LIMIT_SECONDS = 60
STOP_LIMIT_SECONDS = 90
ANSWER_LIMIT_SECONDS = 30
USER, PASSWORD, KEY, WEBHOOK_SECRET = "admin", "a password of the tests", "a-key-of-the-tests", "a secret of the tests"
VIEWER, VIEWER_PASSWORD = "viewer", "another password of the tests"
# What is wrong five times within a minute is not looked at any more.
WRONG_PASSWORDS_MAX = 5
# A deployment that schemathesis asks for may be one that cannot be done: it must not hold up those that follow it.
DEPLOY_LIMIT_SECONDS = 5
COMPOSE = f"services:\n  web:\n    image: {IMAGE}\n    init: true\n    command: [sh, -c, 'echo hello; exec sleep 3600']\n"
GIT = ["git", "-c", "user.name=Api", "-c", "user.email=api@example.com"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def basic(user, password):
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


class Scene:
    """A daemon on folders of its own, with a repository in each state that lasts."""

    def __init__(self, binary):
        self.run_name = f"shiparr-api-{os.getpid()}"
        self.binary, self.process = os.path.abspath(binary), None
        self.folder = Path(tempfile.mkdtemp(prefix="shiparr-api-"))
        self.runtime = Path(tempfile.mkdtemp(prefix="shiparr-api-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
        for name in ("projects", "data", "home", "work"):
            (self.folder / name).mkdir()
        self.remotes = {"web": self.remote("web", COMPOSE), "broken": self.remote("broken", "services: [\n")}

    def remote(self, name, compose):
        """A repository with one commit."""
        folder = self.folder / f"{name}.git"
        subprocess.run([*GIT, "init", "-q", "-b", "main", str(folder)], check=True)
        (folder / "compose.yaml").write_text(compose)
        subprocess.run([*GIT, "-C", str(folder), "add", "."], check=True)
        subprocess.run([*GIT, "-C", str(folder), "commit", "-q", "-m", "The \"first\" <b>version</b>"], check=True)
        return folder

    def write_project(self, *names):
        web, broken = self.remotes["web"], self.remotes["broken"]
        fields = {
            "web": f"url: {web}", "broken": f"url: {broken}", "by-hand": f"url: {web}\n    deploy: manual",
            "unreachable": f"url: {self.folder}/nothing.git", "gone": f"url: {web}\n    deploy: manual",
        }
        lines = ["project: home", "description: What the tests deploy", "defaults:", "  check_interval: 3600"]
        lines += [f"  timeout: {DEPLOY_LIMIT_SECONDS}", "  settle_time: 0", "repositories:"]
        for name in names:
            lines += [f"  {name}:", f"    {fields[name]}", f"    compose_project: {self.run_name}-{name}"]
        (self.folder / "projects" / "home.yaml").write_text("\n".join(lines) + "\n")

    def start(self, **settings):
        self.port = free_port()
        environment = {
            "PATH": os.environ["PATH"], "HOME": str(self.folder / "home"), "Shiparr_PORT": str(self.port),
            "Shiparr_CONFIG_PATH": str(self.folder / "projects"), "Shiparr_DATA_PATH": str(self.folder / "data"),
            "Shiparr_RUNTIME_PATH": str(self.runtime), "Shiparr_WEBHOOK_SECRET": WEBHOOK_SECRET,
            # See hooks.py.
            "Shiparr_TRUSTED_PROXIES": "127.0.0.1",
            **{name: os.environ[name] for name in ("DOCKER_HOST", "DOCKER_CONFIG") if name in os.environ}, **settings,
        }
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen([self.binary, "run"], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        wait_until(READY_LIMIT_SECONDS, "the daemon to answer", self.is_ready)

    def is_ready(self):
        if self.process.poll() is not None:
            raise Failure(f"the daemon ended: {(self.folder / 'log').read_text()[-1500:]}")
        try:
            return self.get("/api/health")
        except OSError:
            return None

    def get(self, path):
        with urllib.request.urlopen(self.request(path), timeout=ANSWER_LIMIT_SECONDS) as answer:
            return json.load(answer)

    def request(self, path, method="GET"):
        return urllib.request.Request(self.url() + path, method=method, headers=basic(USER, PASSWORD))

    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def make_states(self):
        """Deployed, failed, waiting, unreachable and orphaned."""
        self.write_project("web", "broken", "by-hand", "unreachable", "gone")
        self.start()
        wanted = {"web": "success", "broken": "failed", "by-hand": "waiting", "gone": "waiting", "unreachable": "never_deployed"}
        self.wait_for({"status": wanted})
        self.write_project("web", "broken", "by-hand", "unreachable")
        self.process.send_signal(signal.SIGHUP)
        self.wait_for({"orphaned": {name: name == "gone" for name in wanted}})

    def wait_for(self, wanted):
        [(field, values)] = wanted.items()
        found = lambda: {one["name"]: one[field] for one in self.get("/api/repositories")}
        wait_until(READY_LIMIT_SECONDS, f"{field} to be {values}", lambda: found() == values)

    def deploy_web(self):
        """Whatever was asked of it before, it runs then."""
        with urllib.request.urlopen(self.request("/api/projects/home/repositories/web/deploy", "POST"), timeout=ANSWER_LIMIT_SECONDS):
            pass
        status = lambda: self.get("/api/projects/home/repositories/web")["status"]
        wait_until(READY_LIMIT_SECONDS, "a deployment of web to succeed", lambda: status() == "success")

    def stop(self):
        """It must have lived until now, and end well."""
        if self.process.poll() is not None:
            raise Failure(f"the daemon ended with {self.process.returncode}")
        self.process.send_signal(signal.SIGTERM)
        if (code := self.process.wait(timeout=STOP_LIMIT_SECONDS)) != 0:
            raise Failure(f"the daemon ended with {code}")

    def leave(self, keep):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for name in ("web", "by-hand", "gone"):
            label = f"label=com.docker.compose.project={self.run_name}-{name}"
            for kind, remove in (("ps", ["rm", "-f"]), ("network", ["network", "rm"])):
                list_ = ["docker", "ps", "-aq"] if kind == "ps" else ["docker", "network", "ls", "-q"]
                ids = subprocess.run([*list_, "--filter", label], capture_output=True, text=True, check=False).stdout.split()
                if ids:
                    subprocess.run(["docker", *remove, *ids], capture_output=True, check=False)
        shutil.rmtree(self.runtime, ignore_errors=True)
        if keep:
            print(f"api: what is left is in {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)


def fetch_document(scene):
    """The document, stricter than it is for clients: an object has the properties that are named and no others."""
    document = scene.get("/api/openapi.json")
    for schema in document["components"]["schemas"].values():
        if schema.get("type") == "object":
            schema["additionalProperties"] = False
    for path in document["paths"]:
        # Endless: a deployment comes to its end, a container does not.
        if path.endswith("/logs") and not path.startswith("/api/deployments"):
            parameters = document["paths"][path]["get"]["parameters"]
            parameters.remove({"$ref": "#/components/parameters/Follow"})
    return document


def ask_by_hand(scene, document):
    """What schemathesis does not find by itself."""
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=scene.url())
    web = next(one for one in scene.get("/api/repositories") if one["name"] == "web")
    deployment = web["last_deployment"]["id"]
    push = {"ref": "refs/heads/main", "after": "1" * 40, "repository": {"clone_url": str(scene.remotes["web"])}, "pusher": {"login": "anna"}}
    signed = lambda body: {"X-Gitea-Signature": hmac.new(WEBHOOK_SECRET.encode(), body, hashlib.sha256).hexdigest()}
    count = 0

    def expect(method, path, status, headers=None, path_parameters=None, query=None, body=None):
        nonlocal count
        case = schema[path][method].Case(path_parameters=path_parameters or {}, query=query or {})
        raw = None if body is None else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if raw else {}
        sent |= basic(USER, PASSWORD) if headers is None else headers
        if raw and "webhook" in path:
            sent |= signed(raw)
        response = case.call(headers=sent, **({"data": raw} if raw else {}))
        if response.status_code != status:
            raise Failure(f"{method} {path} {query or ''}: {response.status_code} in place of {status}: {response.text[:300]}")
        case.operation.validate_response(response)
        count += 1
        return response

    by_id, by_name = {"id": web["id"]}, {"project": "home", "name": "web"}
    text = {"Accept": "text/plain", "X-Api-Key": KEY}
    expect("GET", "/api/repositories/{id}", 200, path_parameters=by_id)
    expect("GET", "/api/repositories/{id}/health", 200, path_parameters=by_id)
    expect("GET", "/api/projects/{project}/repositories/{name}/health", 503, path_parameters={**by_name, "name": "broken"})
    containers = expect("GET", "/api/projects/{project}/repositories/{name}/containers", 200, path_parameters=by_name).json()
    expect("GET", "/api/repositories/{id}/logs", 200, path_parameters=by_id, query={"tail": 1})
    expect("GET", "/containers/{id}/logs", 200, path_parameters={"id": containers[0]["name"]})
    expect("GET", "/containers/{id}/logs", 200, path_parameters={"id": containers[0]["id"]}, headers=text)
    expect("GET", "/api/deployments/{id}/logs", 200, path_parameters={"id": deployment})
    expect("GET", "/api/deployments/{id}/logs", 200, path_parameters={"id": deployment}, query={"follow": "1"})
    expect("GET", "/api/deployments/{id}/logs", 200, path_parameters={"id": deployment}, headers=text)
    expect("GET", "/api/deployments", 200, query={"limit": 1, "project": "home"})
    expect("POST", "/api/deployments/{id}/cancel", 409, path_parameters={"id": deployment})
    gone = {"project": "home", "name": "gone"}
    expect("POST", "/api/projects/{project}/repositories/{name}/deploy", 409, path_parameters=gone)
    expect("GET", "/widget/dashy", 200, query={"project": "home"})
    expect("GET", "/widget/dashy/list", 200, query={"project": "home"})
    gitea = {"path_parameters": {"provider": "gitea"}}
    expect("POST", "/webhook/{provider}", 202, headers={"X-Gitea-Event": "push", "X-Gitea-Delivery": str(scene.port)}, body=push, **gitea)
    expect("POST", "/webhook/{provider}", 200, headers={"X-Gitea-Event": "star"}, body={"action": "created"}, **gitea)
    expect("POST", "/webhook/{provider}", 400, headers={"X-Gitea-Event": "push"}, body={"ref": 1}, **gitea)
    expect("POST", "/webhook/{provider}", 401, headers={"Sec-Fetch-Site": "cross-site"}, path_parameters={"provider": "github"})
    tag = expect("GET", "/", 200).headers["etag"][0]
    expect("GET", "/", 304, headers={"If-None-Match": tag, "X-Api-Key": KEY})
    expect("GET", "/assets/{name}", 200, path_parameters={"name": "app.js"})
    if document["paths"]["/api/projects"]["get"]["security"]:
        expect("GET", "/api/health", 200, headers={})
        expect("GET", "/api/projects", 401, headers={})
        for status in [401] * WRONG_PASSWORDS_MAX + [429]:
            expect("GET", "/api/projects", status, headers={**basic(USER, f"wrong {count}"), "X-Forwarded-For": "192.0.2.1"})
        expect("GET", "/api/projects", 200, headers=basic(VIEWER, VIEWER_PASSWORD))
        expect("GET", "/api/repositories/{id}/logs", 403, path_parameters=by_id, headers=basic(VIEWER, VIEWER_PASSWORD))
        expect("POST", "/api/repositories/{id}/deploy", 403, path_parameters=by_id, headers=basic(VIEWER, VIEWER_PASSWORD))
    else:
        expect("GET", "/api/health", 403, headers={"Host": "shiparr.example.com"})
    with urllib.request.urlopen(scene.request("/api/events", "HEAD"), timeout=ANSWER_LIMIT_SECONDS) as head:
        if head.headers.get_content_type() not in document["paths"]["/api/events"]["get"]["responses"]["200"]["content"]:
            raise Failure(f"/api/events is {head.headers.get_content_type()}")
    print(f"api: {count} answers are as documented", flush=True)


def run_schemathesis(scene, document, arguments, *options):
    """Whether it found nothing."""
    file = scene.folder / "openapi.json"
    file.write_text(json.dumps(document))
    here = Path(__file__).parent.absolute()
    command = ["schemathesis", "--config-file", str(here / "schemathesis.toml"), "run", str(file), "--url", scene.url(), "--no-color"]
    command += ["--checks", "all", "--continue-on-failure", "--seed", str(arguments.seed), "--max-examples", str(arguments.examples)]
    # What it leaves behind it leaves in that folder.
    return subprocess.run([*command, *options], cwd=scene.folder / "work", env={**os.environ, "SCHEMATHESIS_HOOKS": str(here / "hooks.py")}, check=False).returncode == 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--examples", type=int, default=20)
    parser.add_argument("--keep", action="store_true")
    arguments = parser.parse_args()
    # What was started is ended also where a time limit ends this.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    scene = Scene(arguments.binary)
    try:
        scene.make_states()
        document = fetch_document(scene)
        ask_by_hand(scene, document)
        is_well = run_schemathesis(scene, document, arguments)
        scene.stop()
        guard = {"Shiparr_AUTH_PASSWORD": PASSWORD, "Shiparr_VIEWER_PASSWORD": VIEWER_PASSWORD, "Shiparr_API_KEY": KEY}
        scene.start(Shiparr_AUTH_ENABLED="true", **guard)
        document = fetch_document(scene)
        scene.deploy_web()
        ask_by_hand(scene, document)
        is_well &= run_schemathesis(scene, document, arguments, "--auth", f"{USER}:{PASSWORD}")
        scene.stop()
    except Failure as failure:
        print(f"api: {failure}", file=sys.stderr)
        is_well = False
    finally:
        scene.leave(arguments.keep)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
