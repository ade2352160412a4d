#!/bin/sh
# Makes the local base image sandboxrl/base:local from the distribution's own packages, without an image registry.
#
#   launch/base_image.sh [CACHE_FOLDER]     default ~/.cache/sandboxrl; the root filesystem is kept there as one tarball
#
# Needs root, debootstrap and a Docker daemon. SUITE chooses the release and MIRROR the package mirror (default: those
# of this machine). Does nothing when the image is there.
set -eu
IMAGE=sandboxrl/base:local
SUITE=${SUITE:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
CACHE=${1:-${XDG_CACHE_HOME:-$HOME/.cache}/sandboxrl}
TARBALL=$CACHE/base-$SUITE-$(dpkg --print-architecture).tar
PACKAGES=bash,ca-certificates,python3,python3-pip,procps

if docker image inspect "$IMAGE" >/dev/null 2>&1; then
    exit 0
fi
if [ ! -s "$TARBALL" ]; then
    mkdir -p "$CACHE"
    FOLDER=$(mktemp -d "$CACHE/base.XXXXXX")
    trap 'rm -rf "$FOLDER"' EXIT INT TERM
    debootstrap --variant=minbase --include="$PACKAGES" "$SUITE" "$FOLDER/tree" ${MIRROR:-} >"$FOLDER/log" 2>&1 || {
        tail -20 "$FOLDER/log" >&2
        exit 1
    }
    rm -rf "$FOLDER"/tree/var/cache/apt/archives/*.deb "$FOLDER"/tree/var/lib/apt/lists/*
    tar -C "$FOLDER/tree" --numeric-owner -cf "$FOLDER/base.tar" .
    mv "$FOLDER/base.tar" "$TARBALL"
fi
docker import --change 'CMD ["/bin/bash"]' --change 'LABEL sandboxrl.workdir=tmpfs' "$TARBALL" "$IMAGE" >/dev/null
