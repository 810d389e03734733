#!/bin/sh
# Install Debian packages that a target needs, or say which are missing.  Usage: need.sh PACKAGE...
set -eu
if ! command -v apt-get >/dev/null; then
    echo "Please install: $* (this is not Debian, so it cannot be done for you)" >&2
    exit 1
fi
if [ "$(id -u)" = 0 ]; then run=""; elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then run="sudo"; else
    echo "Please run as root: apt-get install $*" >&2
    exit 1
fi
$run apt-get update -q
DEBIAN_FRONTEND=noninteractive $run apt-get install -q -y --no-install-recommends "$@"
