#!/bin/sh
# Runs a command as root, where it is not root already, in this environment.
# buildkitd needs root; compiling does not, and must not leave files of root's
# in the user's caches.
set -eu
if [ "$(id -u)" = 0 ]; then
	exec "$@"
fi
command -v sudo >/dev/null || {
	echo "buildkitd needs root: please run this as root, or install sudo" >&2
	exit 1
}
# sudo replaces PATH even where it keeps the rest of the environment.
exec sudo --preserve-env env "PATH=$PATH" "HOME=$HOME" GOFLAGS="${GOFLAGS-} -buildvcs=false" \
	GOCACHE="${TMPDIR:-/tmp}/dray-root-go-cache" "$@"
