"""The blocks of README.md that need a whole host, run there word for word, in its order."""

from host import HERE, SERVICE
from waiting import check

README = HERE.parent.parent / "README.md"
# Where somebody has cloned the repository and built the packages.
CLONE = "/root/shiparr"

# First lines, by which tests/black_box/readme.rs knows that these blocks are run here.
INSTALL = 'sudo apt install ./target/packages/shiparr_*_"$(dpkg --print-architecture)".deb'
PROJECT_FILE = "# /etc/shiparr/projects/first.yaml"
START = "sudo shiparr check\nsudo systemctl enable --now shiparr.socket shiparr.service"


def block(start):
    """The one that begins so."""
    found = [part.partition("\n")[2] for part in README.read_text().split("\n```")[1::2] if part.partition("\n")[2].startswith(start)]
    check(len(found) == 1, f"README.md has {len(found)} blocks that begin with `{start}`")
    return found[0]


def follow(host, package):
    """From a package, a copy of which lies on the host, to the first project."""
    # What is recommended is Docker, which is this machine's.
    host.write("/etc/apt/apt.conf.d/99readme", 'APT::Install-Recommends "false";\nAPT::Get::Assume-Yes "true";\n')
    # A blank host, also where not all scenarios run.
    host.run("apt-get --quiet purge shiparr 2>&1")
    host.run(f"install -D -t {CLONE}/target/packages {package}")
    host.run(f"cd {CLONE}\n{block(INSTALL)}")
    check(host.state() == "inactive", f"after the installation the service is {host.state()}")
    host.write("/etc/shiparr/projects/first.yaml", block(PROJECT_FILE))
    told = host.read(block(START))
    check("All is well." in told, f"`shiparr check` says: {told}")
    check("first/hello" in told, f"`shiparr status` does not name the repository: {told}")
    check("watches 1 repositories" in told, f"the log does not say what is watched: {told}")
    check(host.state() == "active", f"the service is {host.state(SERVICE)}")
