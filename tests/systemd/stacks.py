"""What is deployed: stacks in Git repositories on the host itself, and a Compose that can be made to wait."""

from host import docker
from waiting import Failure, check, wait_until

IMAGE = "shiparr-test/busybox:1"
PROJECT = "lab"
DEPLOYMENT_LIMIT_SECONDS = 60
HOLD = "/srv/lab/hold"
# In front of the real plugin on the client's search path. While the file is there, an `up` waits.
HELD_COMPOSE = f"""#!/bin/sh
case " $* " in
    *" up "*) while [ -e {HOLD} ]; do sleep 0.1; done ;;
esac
exec /usr/libexec/docker/cli-plugins/docker-compose "$@"
"""


class Stacks:
    """The repositories of one project, and the containers that come of them."""

    def __init__(self, host):
        self.host = host
        self.fields = {}

    def install(self):
        self.host.write("/usr/local/lib/docker/cli-plugins/docker-compose", HELD_COMPOSE, mode="755")
        self.host.run("mkdir -p /srv/lab /srv/git && git config --system user.name Lab && git config --system user.email lab@example.com "
                      "&& git config --system init.defaultBranch main")

    def compose_project(self, name):
        """Unique on the Docker that all share."""
        return f"{self.host.name}-{name}"

    def push(self, name, files=None, service="", version="1"):
        """A commit on the stack's branch; answers its hash. The first one makes the repository."""
        compose = (
            f"services:\n  web:\n    image: {IMAGE}\n    init: true\n    command: [sleep, '86400']\n"
            f"    labels: {{lab.version: '{version}'}}\n{service}"
        )
        work = f"/srv/work/{name}"
        self.host.run(f"[ -d {work} ] || {{ git init -q --bare /srv/git/{name}.git && git clone -q /srv/git/{name}.git {work} 2>&1; }}")
        for path, text in {"compose.yaml": compose, **(files or {})}.items():
            self.host.write(f"{work}/{path}", text)
        return self.host.read(f"cd {work} && git add -A && git commit -q -m 'Version {version}' && git push -q origin HEAD && git rev-parse HEAD")

    def configure(self, name, **fields):
        """Adds a repository to the project file, or changes its fields."""
        self.fields[name] = {
            "url": f"/srv/git/{name}.git", "compose_project": self.compose_project(name),
            "check_interval": 3600, "settle_time": 1, "health_timeout": 30, **fields,
        }
        lines = [f"project: {PROJECT}", "repositories:"]
        for repository, its in self.fields.items():
            lines += [f"  {repository}:"] + [f"    {field}: {value}" for field, value in its.items()]
        self.host.write(f"/etc/shiparr/projects/{PROJECT}.yaml", "\n".join(lines) + "\n")

    # ---- Deployments ----

    def newest(self, name):
        """The newest deployment of a repository that was not skipped, or nothing."""
        status, answer = self.host.ask(f"/api/projects/{PROJECT}/repositories/{name}/deployments?limit=5", control=True)
        found = [deployment for deployment in answer if deployment["status"] != "skipped"] if status == 200 else []
        return found[0] if found else None

    def deploy(self, name):
        """Asks for a deployment; answers its id."""
        status, answer = self.host.ask(f"/api/projects/{PROJECT}/repositories/{name}/deploy", method="POST", control=True, body="{}")
        check(status == 202, f"deploying {name}: {status} {answer}")
        return answer["deployment_id"]

    def wait_for_success(self, name, version):
        """Until that version runs and its deployment is recorded as a success; answers the deployment."""
        found = None

        def is_done():
            nonlocal found
            found = self.newest(name)
            if found and found["status"] == "failed" and not found["error"].startswith("interrupted"):
                raise Failure(f"the deployment of {name} failed: {found['error']}")
            return found and found["status"] == "success" and self.running_version(name) == version

        wait_until(DEPLOYMENT_LIMIT_SECONDS, lambda: f"version {version} of {name} to run and be a success, but {found}", is_done)
        return found

    def running_version(self, name):
        """By the label of the stack's running container, as this machine's Docker tells it."""
        label = f"label=com.docker.compose.project={self.compose_project(name)}"
        return docker("ps", "--filter", label, "--format", '{{.Label "lab.version"}}').strip()

    def container(self, name):
        label = f"label=com.docker.compose.project={self.compose_project(name)}"
        return docker("ps", "--quiet", "--filter", label).strip()

    def hold(self):
        """From now on an `up` waits."""
        self.host.run(f"touch {HOLD}")

    def wait_until_held(self):
        """Until a deployment's `up` waits."""
        look = lambda: self.host.run("pgrep -f '^/bin/sh .*/docker-compose .* up '", may_fail=True).returncode == 0
        wait_until(DEPLOYMENT_LIMIT_SECONDS, "a deployment to come to its `up`", look)

    def release(self):
        self.host.run(f"rm -f {HOLD}")

    def remove(self):
        """Containers and networks, also of a run that failed at any moment."""
        kinds = ((("ps", "--all"), ("rm", "--force", "--volumes")), (("network", "ls"), ("network", "rm")))
        for list_, remove in kinds:
            for name in self.fields:
                found = docker(*list_, "--quiet", "--filter", f"label=com.docker.compose.project={self.compose_project(name)}").split()
                if found:
                    docker(*remove, *found)
