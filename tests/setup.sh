# shellcheck shell=bash
#
# What the tests need beyond what packaging/dependencies.sh finds or installs: tests/run and tests/coverage read this
# file with `source`, and call `set_up_tests`.
#
# What is built here is kept outside the repository, in $TESTS_CACHE, and built once.

REPOSITORY_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source-path=SCRIPTDIR source=../packaging/dependencies.sh
source "$REPOSITORY_ROOT/packaging/dependencies.sh"

TESTS_CACHE=${SHIPARR_TESTS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/shiparr-tests}
TEST_IMAGE=shiparr-test/busybox:1

# A second, newer Compose beside the distribution's: its output and its checks differ, and both are tested. It builds
# images only with a buildx of its own age.
COMPOSE_5_VERSION=v5.5.0
BUILDX_VERSION=v0.30.1
COMPOSE_5_FOLDER=$TESTS_CACHE/compose-$COMPOSE_5_VERSION-buildx-$BUILDX_VERSION
SHOUTRRR_VERSION=v0.13.2
SHOUTRRR_FOLDER=$TESTS_CACHE/shoutrrr-$SHOUTRRR_VERSION
GO_BUILDS_LIMIT_SECONDS=900

# What asks a daemon whatever its OpenAPI document allows, and what it does not.
SCHEMATHESIS_VERSION=4.32.5
SCHEMATHESIS_FOLDER=$TESTS_CACHE/schemathesis-$SCHEMATHESIS_VERSION

# What runs and judges the Ansible role.
ANSIBLE_CORE_VERSION=2.19.14
ANSIBLE_LINT_VERSION=26.10.1
ANSIBLE_FOLDER=$TESTS_CACHE/ansible-$ANSIBLE_CORE_VERSION-lint-$ANSIBLE_LINT_VERSION

# built_deb ARCHITECTURE [REVISION]: the package that packaging/build makes, below the repository's top.
built_deb() { printf 'target/packages/shiparr_%s-%s_%s.deb\n' "$(program_version)" "${2:-1}" "$1"; }

# Installs what is missing, makes the image, and begins what takes long in the background.
set_up_tests() {
    begin_go_builds
    set_up_rust
    set_up_shellcheck
    # systemd for its tools, which judge the units.
    install_apt_packages curl openssl python3 systemd
    set_up_manual
    # For the completion scripts.
    install_apt_packages zsh fish
    # For its sshd alone, which the tests start as they need it, and for promtool.
    install_without_starting openssh-server ssh.service ssh.socket
    install_without_starting prometheus prometheus.service
    install_docker
    docker_answers || die "the tests use Docker: run them as root, or as someone in the docker group"
    install_compose
    install_buildx
    install_age
    install_sops
    install_busybox
    import_busybox_image "$TEST_IMAGE"
    say "Docker Engine $(docker version --format '{{.Server.Version}}'), Compose $(compose_version), image $TEST_IMAGE"
    # What was installed cannot be missing: a test that cannot run is then a failure, not a test to skip.
    export SHIPARR_TESTS_REQUIRE_ALL=1
}

# What shows manual pages, and judges them.
set_up_manual() { install_apt_packages mandoc groff; }

# A browser without a window, and what drives it, for the tests of the status page.
set_up_browser() {
    if ! have chromium || ! have chromedriver; then
        install_apt_packages chromium chromium-driver
    fi
    say "$(chromium --version 2>/dev/null)"
}

# What makes base images where none can be pulled, and what runs a program of arm64.
set_up_image() { install_apt_packages git mmdebstrap qemu-user-static; }

set_up_schemathesis() {
    install_python_program "$SCHEMATHESIS_FOLDER" schemathesis "schemathesis==$SCHEMATHESIS_VERSION"
    say "$("$SCHEMATHESIS_FOLDER/bin/schemathesis" --version)"
}

# Ansible, and the host that it reaches over ssh.
set_up_ansible() {
    install_apt_packages openssh-client
    install_python_program "$ANSIBLE_FOLDER" ansible-lint "ansible-core==$ANSIBLE_CORE_VERSION" "ansible-lint==$ANSIBLE_LINT_VERSION"
    say "$("$ANSIBLE_FOLDER/bin/ansible" --version | head -n 1)"
}

# install_python_program FOLDER PROGRAM REQUIREMENT…
# Python programs have a folder of their own each: distributions leave theirs alone.
install_python_program() {
    local folder=$1 program=$2
    shift 2
    [ ! -x "$folder/bin/$program" ] || return 0
    python3 -c 'import ensurepip' 2>/dev/null || install_apt_packages python3-venv
    say "installing: $* (once, for $TESTS_CACHE)"
    rm -rf "$folder"
    mkdir -p "$TESTS_CACHE"
    if ! { python3 -m venv "$folder" && quietly "$folder/bin/pip" install --disable-pip-version-check "$@"; }; then
        rm -rf "$folder"
        die "$program could not be installed"
    fi
}

# What looks at packages, and runs programs of arm64. What makes them is for packaging/build to install.
set_up_packages() { install_apt_packages lintian rpmlint rpm qemu-user-static; }

# The image of a host with systemd, for the tests of what is installed.
set_up_systemd() {
    local image
    image=$("$REPOSITORY_ROOT/tests/systemd/image")
    say "a host with systemd: image $image"
}

set_up_shellcheck() { have shellcheck || install_apt_packages shellcheck; }

set_up_rust() {
    find_rust_toolchain
    install_build_libraries
    install_rust_components
    say "$(rustc --version)"
}

# Formatter and linter: rustup's components, or the distribution's packages.
install_rust_components() {
    cargo fmt --version >/dev/null 2>&1 || install_rust_component rustfmt rustfmt
    cargo clippy --version >/dev/null 2>&1 || install_rust_component clippy rust-clippy
}

# install_rust_component COMPONENT PACKAGE
install_rust_component() {
    if have rustup; then
        say "installing: $1 (rustup)"
        quietly rustup component add "$1" || die "rustup could not add $1"
    else
        install_apt_packages "$2"
    fi
}

# install_without_starting PACKAGE UNIT…
# Debian starts a service when its package is installed. Nobody asked for one here.
install_without_starting() {
    local policy=/usr/sbin/policy-rc.d package=$1
    shift
    apt_package_is_installed "$package" && return 0
    if [ -e "$policy" ]; then
        install_apt_packages "$package"
        return 0
    fi
    # shellcheck disable=SC2016 # $1 is the inner shell's.
    as_root sh -c 'printf "#!/bin/sh\nexit 101\n" >"$1" && chmod 755 "$1"' sh "$policy"
    # In a subshell, so that the policy goes also when the installation ends this script.
    if ! (install_apt_packages "$package"); then
        as_root rm -f "$policy"
        exit 1
    fi
    as_root rm -f "$policy"
    if systemd_is_running; then
        as_root systemctl disable --quiet "$@" >/dev/null 2>&1 || true
    fi
}

# ---------------------------------------------------------------------------------------------------------------------
# Programs that are built from their Go modules

GO_BUILDS_PID=

# In the background with the lowest priority, so that the tests' own build goes first.
begin_go_builds() {
    if go_builds_are_done || ! have go; then
        return 0
    fi
    mkdir -p "$TESTS_CACHE"
    say "building in the background (once, for $TESTS_CACHE): shoutrrr $SHOUTRRR_VERSION, Compose $COMPOSE_5_VERSION, buildx $BUILDX_VERSION"
    # A process group of its own, so that all of it can be ended at its limit.
    set -m
    build_go_programs >"$TESTS_CACHE/go-builds.log" 2>&1 </dev/null &
    GO_BUILDS_PID=$!
    set +m
}

go_builds_are_done() {
    [ -x "$SHOUTRRR_FOLDER/shoutrrr" ] && [ -x "$COMPOSE_5_FOLDER/cli-plugins/docker-compose" ] &&
        [ -x "$COMPOSE_5_FOLDER/cli-plugins/docker-buildx" ]
}

build_go_programs() {
    build_go_program "$SHOUTRRR_FOLDER/shoutrrr" "github.com/nicholas-fedor/shoutrrr@$SHOUTRRR_VERSION" ./shoutrrr \
        "-X github.com/nicholas-fedor/shoutrrr/internal/meta.Version=${SHOUTRRR_VERSION#v}" ||
        say "shoutrrr failed"
    # Compose comes last: its presence says that the folder is complete.
    build_go_program "$COMPOSE_5_FOLDER/cli-plugins/docker-buildx" "github.com/docker/buildx@$BUILDX_VERSION" ./cmd/buildx \
        "-X github.com/docker/buildx/version.Version=$BUILDX_VERSION" &&
        build_go_program "$COMPOSE_5_FOLDER/cli-plugins/docker-compose" "github.com/docker/compose/v5@$COMPOSE_5_VERSION" ./cmd \
            "-X github.com/docker/compose/v5/internal.Version=$COMPOSE_5_VERSION"
}

# build_go_program OUTPUT MODULE@VERSION PACKAGE LINKER_FLAGS
build_go_program() {
    local output=$1 module=$2 package=$3 linker_flags=$4 source copy
    [ ! -x "$output" ] || return 0
    source=$(go mod download -json "$module" | sed -n 's/^[[:space:]]*"Dir": "\(.*\)",\{0,1\}$/\1/p')
    [ -n "$source" ] || return 1
    copy=$(mktemp -d)
    mkdir -p "$(dirname "$output")"
    # Go's module cache is read-only, and a build in it would be one of a dependency.
    cp -r "$source/." "$copy" && chmod -R u+w "$copy"
    (cd "$copy" && nice -n 19 go build -mod=readonly -trimpath -ldflags "-s -w $linker_flags" -o "$output.part" "$package") &&
        mv "$output.part" "$output"
    rm -rf "$copy"
}

# Waits for the builds, within their limit, and tells the tests where the programs are.
# A machine without Go does without: those tests say that they had no Compose 5.
finish_go_builds() {
    local deadline=$((SECONDS + GO_BUILDS_LIMIT_SECONDS))
    if [ -n "$GO_BUILDS_PID" ]; then
        say "waiting for the builds in the background"
        while kill -0 "$GO_BUILDS_PID" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do
            sleep 1
        done
        end_go_builds
    fi
    # The folder is one that DOCKER_CONFIG can name: the docker client then takes its plugins from there.
    if [ -x "$COMPOSE_5_FOLDER/cli-plugins/docker-compose" ]; then
        export SHIPARR_TEST_COMPOSE_5=$COMPOSE_5_FOLDER/cli-plugins/docker-compose
        say "Compose 5: $SHIPARR_TEST_COMPOSE_5"
    else
        warn_go_program_is_absent "Compose $COMPOSE_5_VERSION"
    fi
    if [ -x "$SHOUTRRR_FOLDER/shoutrrr" ]; then
        export PATH=$SHOUTRRR_FOLDER:$PATH
        say "shoutrrr: $SHOUTRRR_FOLDER/shoutrrr"
    else
        warn_go_program_is_absent "shoutrrr $SHOUTRRR_VERSION"
    fi
}

warn_go_program_is_absent() {
    if have go; then
        tail -n 5 "$TESTS_CACHE/go-builds.log" >&2 || true
        warn "$1 could not be built: what needs it is not tested"
    else
        warn "$1 needs Go to be built, which is not there: what needs it is not tested"
    fi
}

# Ends the builds where they still run.
end_go_builds() {
    [ -n "$GO_BUILDS_PID" ] || return 0
    kill -TERM -- "-$GO_BUILDS_PID" 2>/dev/null || true
    wait "$GO_BUILDS_PID" 2>/dev/null || true
    GO_BUILDS_PID=
}
