# shellcheck shell=bash
#
# Base images made on this machine, under the names that the Dockerfile takes them by, so that it is built as it is where
# no registry can be asked: Debian 13 from apt's mirror, this machine's certificate authorities, and its Rust and Go.
#
# An image of such a name that is there already is taken as it is: the real one, or the one of an earlier run.

STAND_IN_SUITE=trixie
STAND_IN_DEBIAN=shiparr-test/debian:$STAND_IN_SUITE

# argument_of NAME: the default of a build argument, by the Dockerfile.
argument_of() { sed -n "s/^ARG $1=//p" "$REPOSITORY_ROOT/Dockerfile"; }

make_stand_ins() {
    make_debian_stand_in
    stand_in DEBIAN_IMAGE tag_debian
    stand_in RUST_IMAGE make_rust_stand_in
    stand_in GO_IMAGE make_go_stand_in
}

# stand_in ARGUMENT COMMAND…: makes the image that a build argument names, by a command that takes the name last.
stand_in() {
    local name
    name=$(argument_of "$1")
    [ -n "$name" ] || die "the Dockerfile names no $1"
    docker_image_is_there "$name" && return 0
    say "making a stand-in for $name"
    "${@:2}" "$name"
}

tag_debian() { docker tag "$STAND_IN_DEBIAN" "$1"; }

make_debian_stand_in() {
    docker_image_is_there "$STAND_IN_DEBIAN" && return 0
    say "making a Debian of $STAND_IN_SUITE"
    # shellcheck disable=SC2016 # $1 is the hooks'.
    import_debian "$STAND_IN_DEBIAN" "$(dpkg --print-architecture)" --include=ca-certificates \
        '--customize-hook=cp -r /usr/local/share/ca-certificates "$1/usr/local/share/"' \
        '--customize-hook=chroot "$1" update-ca-certificates'
}

# import_debian NAME ARCHITECTURE OPTION…: an image of a Debian without what slim images leave out. It is built and not
# imported: an older engine imports everything as an image of its own architecture.
import_debian() {
    local name=$1 architecture=$2 folder options=() context
    for folder in doc man info locale; do
        options+=("--dpkgopt=path-exclude=/usr/share/$folder/*")
    done
    context=$(mktemp -d)
    as_root mmdebstrap --quiet --variant=minbase --format=tar --architectures="$architecture" "${options[@]}" "${@:3}" \
        "$STAND_IN_SUITE" "$context/root.tar" "$(debian_mirror)"
    printf 'FROM scratch\nADD root.tar /\nCMD ["bash"]\n' >"$context/Dockerfile"
    docker buildx build --quiet --platform "linux/$architecture" --tag "$name" "$context" >/dev/null
    rm -rf "$context"
}

# build_on_debian NAME < CONTEXT.tar
build_on_debian() { docker build --quiet --tag "$1" - >/dev/null; }

# A Rust as rustup installs it, in the folders of the official image.
make_rust_stand_in() {
    local sysroot toolchain context
    have rustup || die "a stand-in for $1 is made of rustup's toolchain, and there is none: install rustup"
    sysroot=$(rustc --print sysroot)
    toolchain=$(basename "$sysroot")
    [ -d "$sysroot/lib/rustlib/aarch64-unknown-linux-gnu" ] || rustup target add aarch64-unknown-linux-gnu
    context=$(mktemp -d)
    cat >"$context/Dockerfile" <<END
FROM $STAND_IN_DEBIAN
ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo RUSTUP_TOOLCHAIN=$toolchain
ENV PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY toolchain /usr/local/rustup/toolchains/$toolchain
COPY rustup /usr/local/cargo/bin/
RUN cd /usr/local/cargo/bin && ln rustup cargo && ln rustup rustc
END
    cp -L "$(command -v rustup)" "$context/rustup"
    # What builds, and not what only a person reads.
    tar -c --transform "s,^$toolchain,toolchain," --exclude share --exclude 'bin/*clippy*' --exclude "$toolchain/bin/rust-*" \
        --exclude '*/miri' --exclude 'lib/rustlib/*/bin/llvm-*' \
        -C "$context" Dockerfile rustup -C "$(dirname "$sysroot")" "$toolchain" | build_on_debian "$1"
    rm -rf "$context"
}

make_go_stand_in() {
    local root context
    have go || die "the image is built with Go: install it"
    root=$(go env GOROOT)
    context=$(mktemp -d)
    cat >"$context/Dockerfile" <<END
FROM $STAND_IN_DEBIAN
ENV GOPATH=/go GOTOOLCHAIN=local PATH=/go/bin:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
COPY go /usr/local/go
END
    tar -c --transform "s,^$(basename "$root"),go," --exclude go/test --exclude go/doc \
        -C "$context" Dockerfile -C "$(dirname "$root")" "$(basename "$root")" | build_on_debian "$1"
    rm -rf "$context"
}
