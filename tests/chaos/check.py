"""What has to be true after every fault, once everything is calm."""

import fcntl
import os
import subprocess
from pathlib import Path

from waiting import Failure, wait_until

HEALTHY_LIMIT_SECONDS = 30
CHILDREN_LIMIT_SECONDS = 30


def final_check(scene):
    """Everything; the daemon is stopped for a part of it, and runs again at the end. Raises with all that is wrong."""
    wrong = []
    if scene.refused:
        wrong.append(f"triggers were refused: {scene.refused[:3]}")
        scene.refused.clear()
    for stack in scene.stacks:
        wrong += check_deployed(scene, stack)
        wrong += check_containers(scene, stack)
    wrong += check_plain_text(scene)
    code = scene.daemon.stop()
    if code != 0:
        wrong.append(f"the daemon ended with {code} at SIGTERM")
    wrong += check_children(scene)
    wrong += check_locks(scene)
    wrong += check_database(scene)
    wrong += check_rows(scene)
    wrong += check_plain_text(scene)
    for stack in scene.stacks:
        wrong += check_tree(scene, stack)
    wrong += check_untracked(scene)
    if wrong:
        # What lies there before and after the stop is told once.
        raise Failure("\n".join(dict.fromkeys(wrong)))
    scene.daemon.start()


def check_deployed(scene, stack):
    """The last commit of the branch, if good, is the one that counts as deployed; a bad one never is."""
    repository = scene.daemon.get(f"/api/projects/chaos/repositories/{stack.name}")
    id_, status, commit, error = scene.newest_row(stack)
    last, tip = repository["last_commit_hash"], stack.tip
    wrong = []
    if tip.is_good and (last, status, commit) != (tip.hash, "success", tip.hash):
        wrong.append(f"{stack.name}: {tip} is good, but deployment {id_} of {commit} is {status} ({error}), last_commit_hash {last}")
    if not tip.is_good and (last == tip.hash or status != "failed"):
        wrong.append(f"{stack.name}: {tip} is bad, but deployment {id_} is {status}, last_commit_hash {last}")
    if repository["status"] != status:
        wrong.append(f"{stack.name}: the API says {repository['status']}, the last deployment {status}")
    return wrong


def check_containers(scene, stack):
    """Every service runs, under its own name, and in the version of a good tip."""
    if not any(commit.is_good for commit in stack.commits.values()):
        return []
    containers = scene.engine.containers(stack.compose_project)
    wrong = [f"{stack.name}: a container is called {container['Name']}" for container in containers if not is_own_name(stack, container)]
    services = {container["Config"]["Labels"]["com.docker.compose.service"]: container for container in containers}
    for service in sorted(stack.services() - services.keys()):
        wrong.append(f"{stack.name}: there is no container of {service}")
    if len(containers) > len(services):
        wrong.append(f"{stack.name}: more containers than services: {[container['Name'] for container in containers]}")
    for service, container in services.items():
        wrong += check_container(stack, service, container)
    return wrong


def is_own_name(stack, container):
    service = container["Config"]["Labels"]["com.docker.compose.service"]
    return container["Name"] == f"/{stack.compose_project}-{service}-1"


def check_container(stack, service, container):
    state, version = container["State"], container["Config"]["Labels"].get("chaos.version")
    commit = next((commit for commit in stack.commits.values() if commit.version == version), None)
    place = f"{stack.name}: {service} (version {version}, tip {stack.tip})"
    wrong = []
    # What a bad commit left does not run, or not well, and that was told.
    if commit is None or (commit.is_good and state["Status"] != "running"):
        wrong.append(f"{place} is {state['Status']} {state.get('Error', '')}".rstrip())
    if stack.tip.is_good and commit is not stack.tip:
        wrong.append(f"{place} is not of the last commit")
    if stack.tip.is_good and state.get("Health", {}).get("Status", "healthy") != "healthy":
        wrong.append(f"{place} is {state['Health']['Status']}")
    if commit and commit.secret and f"CHAOS_SECRET={commit.secret}" not in container["Config"]["Env"]:
        wrong.append(f"{place} has not the secret of its version")
    return wrong


def check_plain_text(scene):
    """No secret in any file of the data folder, the runtime folder or the log: nothing is being deployed."""
    wrong = []
    for folder in (scene.data(), scene.runtime, scene.folder / "home", scene.folder / "log"):
        patterns = [argument for secret in scene.secrets for argument in ("-e", secret)]
        command = ["grep", "--recursive", "--text", "--files-with-matches", "--fixed-strings", *patterns, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wrong += [f"a secret lies in plain text in {path}" for path in done.stdout.splitlines()]
    for stack in scene.stacks:
        wrong += [f"a link to a secret was left: {path}" for path in scene.tree(stack).glob(".env*") if path.is_symlink()]
    return wrong


def check_children(scene):
    """Nothing that the daemon started is left."""
    mark = f"HOME={scene.folder / 'home'}\0".encode()

    def left():
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
        return found

    try:
        wait_until(CHILDREN_LIMIT_SECONDS, lambda: f"children to end: {left()}", lambda: not left(), every_seconds=0.2)
    except Failure as failure:
        return [str(failure)]
    return []


def check_locks(scene):
    wrong = []
    for path in (scene.data() / "Shiparr.lock", scene.runtime / "runtime.lock"):
        with open(path, "a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                wrong.append(f"{path} is held")
    return wrong


def check_database(scene):
    problems = [row[0] for row in scene.query("PRAGMA integrity_check")]
    wrong = [] if problems == ["ok"] else [f"integrity_check: {problems[:5]}"]
    if broken := scene.query("PRAGMA foreign_key_check"):
        wrong.append(f"foreign_key_check: {broken[:5]}")
    return wrong


def check_rows(scene):
    """Every accepted trigger has an outcome, what was interrupted was tried again, and a success was one."""
    rows = {row[0]: row[1:] for row in scene.query(
        "SELECT d.id, r.name, d.status, d.commit_hash, d.error FROM deployments d JOIN repositories r ON r.id = d.repository_id ORDER BY d.id")}
    wrong = []
    for id_, name in scene.accepted:
        if id_ not in rows:
            wrong.append(f"deployment {id_} of {name} was accepted and is not there")
        elif rows[id_][0] != name:
            wrong.append(f"deployment {id_} was accepted for {name} and is of {rows[id_][0]}")
    newest = {row[0]: id_ for id_, row in rows.items()}
    commits = {stack.name: stack.commits for stack in scene.stacks}
    for id_, (name, status, commit, error) in rows.items():
        known = commits[name].get(commit)
        if status in ("pending", "running"):
            wrong.append(f"deployment {id_} of {name} is still {status}")
        if status == "success" and (known is None or not known.is_good):
            wrong.append(f"deployment {id_} of {name} is a success of {known or commit}")
        if status == "failed" and (error or "").startswith("interrupted") and newest[name] == id_:
            wrong.append(f"deployment {id_} of {name} was interrupted and not tried again")
        if status == "failed" and not error:
            wrong.append(f"deployment {id_} of {name} failed without an error")
    return wrong


def check_tree(scene, stack):
    """What is tracked is what the tip says, where the tip runs."""
    if not stack.tip.is_good:
        return []
    wrong = []
    expected = stack.contents(stack.tip)
    for name, content in expected.items():
        path = scene.tree(stack) / name
        if not path.is_file() or path.read_bytes() != content:
            wrong.append(f"{path} is not what {stack.tip} says")
    # It changes with every commit; a container that mounts this one file sees what is in this inode.
    inode = (scene.tree(stack) / "app.conf").stat().st_ino
    if scene.inodes.setdefault(stack.name, inode) != inode:
        wrong.append(f"{stack.name}: app.conf is another file now")
    ours = {str(scene.tree(stack) / name) for name in expected} | {str(path) for path in scene.untracked}
    for folder, _, files in os.walk(scene.tree(stack)):
        strange = [name for name in files if name != ".git" and os.path.join(folder, name) not in ours]
        wrong += [f"{folder}/{name} is neither of the tip nor anybody's" for name in strange]
    return wrong


def check_untracked(scene):
    wrong = []
    for path, (inode, text) in scene.untracked.items():
        if not path.is_file():
            wrong.append(f"{path}, which is untracked, is gone")
        elif path.read_text() != text:
            wrong.append(f"{path}, which is untracked, was changed")
        elif path.stat().st_ino != inode:
            wrong.append(f"{path}, which is untracked, is another file now")
    return wrong
