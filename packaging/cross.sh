# shellcheck shell=bash
#
# Building for an architecture that this machine is not: packaging/build reads this file with `source`, after
# dependencies.sh.
#
# The compiler and linker are Debian's cross compilers. What is linked against is Debian 12's, the oldest system that the
# packages are for, unpacked into a folder of its own ($SYSROOT): this machine's apt learns of no other architecture.

SYSROOT_RELEASE=bookworm
SYSROOT_PACKAGES=(libc6-dev libgcc-s1 libssl-dev zlib1g-dev)

# Empty: the build is for this machine.
SYSROOT=
TRIPLET=

is_cross() { [ -n "$SYSROOT" ]; }

# prepare_cross_building ARCHITECTURE: amd64 or arm64.
prepare_cross_building() {
    local architecture=$1
    TRIPLET=$(dpkg-architecture -a "$architecture" -q DEB_HOST_MULTIARCH)
    have "$TRIPLET-gcc" || install_apt_packages "gcc-${TRIPLET//_/-}"
    have pkg-config || install_apt_packages pkg-config
    SYSROOT=$REPOSITORY_ROOT/target/sysroot/$SYSROOT_RELEASE-$architecture
    [ -d "$SYSROOT" ] || make_sysroot "$architecture"
}

make_sysroot() {
    local architecture=$1 folder mirror
    mirror=$(debian_mirror)
    [ -n "$mirror" ] || die "no apt source of Debian to take the libraries of $architecture from"
    say "unpacking Debian 12's libraries of $architecture (once, for $SYSROOT)"
    rm -rf "$SYSROOT.part"
    mkdir -p "$SYSROOT.part/DEBIAN"
    folder=$(mktemp -d)
    download_for_sysroot "$architecture" "$mirror" "$folder"
    local package
    for package in "$folder"/archives/*.deb; do
        dpkg-deb -x "$package" "$SYSROOT.part"
        # dpkg-shlibdeps looks here for the versions in which a library got its symbols.
        dpkg-deb -I "$package" symbols >>"$SYSROOT.part/DEBIAN/symbols" 2>/dev/null || true
    done
    rm -rf "$folder"
    make_links_relative "$SYSROOT.part"
    mv "$SYSROOT.part" "$SYSROOT"
}

# download_for_sysroot ARCHITECTURE MIRROR FOLDER: with what they depend on, through package lists of its own, as if
# nothing were installed.
download_for_sysroot() {
    local architecture=$1 mirror=$2 folder=$3
    mkdir -p "$folder/lists/partial" "$folder/archives/partial"
    : >"$folder/status"
    cat >"$folder/debian.sources" <<END
Types: deb
URIs: $mirror
Suites: $SYSROOT_RELEASE
Components: main
Architectures: $architecture
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
END
    local apt=(
        apt-get -q -o Acquire::Retries=3
        -o "APT::Architecture=$architecture" -o "APT::Architectures::=$architecture"
        -o "Dir::Etc::sourcelist=$folder/debian.sources" -o Dir::Etc::sourceparts=/dev/null
        -o "Dir::State::lists=$folder/lists" -o "Dir::State::status=$folder/status" -o "Dir::Cache=$folder"
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false
        -o Debug::NoLocking=true -o APT::Sandbox::User=
    )
    quietly "${apt[@]}" update || die "Debian 12's package lists of $architecture cannot be had from $mirror"
    quietly "${apt[@]}" install --download-only -y --no-install-recommends "${SYSROOT_PACKAGES[@]}" ||
        die "Debian 12's packages of $architecture cannot be had from $mirror"
}

# A link to /lib/… would lead the linker to this machine's own libraries.
make_links_relative() {
    local link
    while read -r -d '' link; do
        ln -sfnr "$1$(readlink "$link")" "$link"
    done < <(find "$1" -type l -lname '/*' -print0)
}

# build_cross RUST_TARGET: what is in .cargo/config.toml for targets counts too.
build_cross() {
    local target=$1 name=${1//-/_} libraries=$SYSROOT/usr/lib/$TRIPLET
    # The cross compiler may have libraries and headers of its own, of this machine's age: those of the folder go first.
    local compile="--sysroot=$SYSROOT -isystem $SYSROOT/usr/include/$TRIPLET -isystem $SYSROOT/usr/include"
    local link="-Clink-arg=--sysroot=$SYSROOT -Clink-arg=-B$libraries -Clink-arg=-L$libraries -Clink-arg=-L$SYSROOT/lib/$TRIPLET"
    have_rust_target "$target" || add_rust_target "$target"
    as_builder env \
        "CC_$name=$TRIPLET-gcc" "AR_$name=$TRIPLET-ar" "CFLAGS_$name=$compile" \
        "CARGO_TARGET_${name^^}_LINKER=$TRIPLET-gcc" "CARGO_TARGET_${name^^}_RUSTFLAGS=$link" \
        PKG_CONFIG_ALLOW_CROSS=1 "PKG_CONFIG_SYSROOT_DIR=$SYSROOT" \
        "PKG_CONFIG_LIBDIR=$libraries/pkgconfig:$SYSROOT/usr/share/pkgconfig" \
        cargo build --release --locked --target "$target"
}

have_rust_target() { [ -d "$(as_builder rustc --print sysroot)/lib/rustlib/$1/lib" ]; }

add_rust_target() {
    as_builder rustup --version >/dev/null 2>&1 ||
        die "Rust's standard library for $1 is not there, and no rustup to fetch it with (Debian: libstd-rust-dev of that architecture)"
    say "installing: Rust's standard library for $1 (rustup)"
    quietly as_builder rustup target add "$1" || die "rustup could not add the target $1"
}
