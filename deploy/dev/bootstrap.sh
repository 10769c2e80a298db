#!/bin/sh
# Installs the Debian packages that the demo or the tests need and that are
# missing, and checks that there is a Go that can build Dray.
#
#   deploy/dev/bootstrap.sh demo|test|bench
#
# Nothing of the user's own is touched. PostgreSQL's package would create and
# start a cluster named "main"; while it is being installed, and only then, a
# drop-in tells it not to. Dray's clusters live in its own directories.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

say() { printf '%s\n' "bootstrap: $*" >&2; }
die() { say "$*"; exit 1; }

# One line per package: name, the file that shows that it is there ("*" may
# stand for a version), and why it is needed.
packages() {
	cat <<-'LIST'
		postgresql /usr/lib/postgresql/*/bin/initdb a PostgreSQL cluster of its own
		runc /usr/sbin/runc runs the steps of a build under buildkitd
		git /usr/lib/git-core/git-http-backend the git server, and buildkitd's checkouts
		ca-certificates /etc/ssl/certs/ca-certificates.crt downloading Go modules
		curl /usr/bin/curl the requests that the demo shows
	LIST
	if [ "$1" != demo ]; then
		cat <<-'LIST'
			gcc /usr/bin/gcc Go's race detector
			libc6-dev /usr/include/stdlib.h Go's race detector
			jq /usr/bin/jq commands in the documents, and the script that the bench compares with
		LIST
	fi
}

present() {
	for file in $1; do # the pattern is expanded on purpose
		[ -e "$file" ] && return 0
	done
	return 1
}

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	else
		sudo "$@"
	fi
}

install_missing() {
	missing=
	while read -r name file why; do
		present "$file" && continue
		say "needs the Debian package $name: $why"
		missing="$missing $name"
	done <<-LIST
		$(packages "$1")
	LIST
	[ -n "$missing" ] || return 0

	command -v apt-get >/dev/null ||
		die "this is not Debian: please install what provides$missing, then run it again"
	if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null; then
		die "please run as root: apt-get install$missing"
	fi

	case " $missing " in
	*" postgresql "*) hold_cluster ;;
	esac
	say "installing$missing"
	# The package lists are fetched only where the packages cannot be had without.
	# shellcheck disable=SC2086 # a list of words
	if ! present "/var/lib/apt/lists/*_Packages*" || ! apt_install $missing; then
		as_root apt-get -qq update || die "apt-get update failed: is the Debian mirror reachable?"
		apt_install $missing || die "apt-get could not install$missing"
	fi
}

apt_install() {
	as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get -qq install -y --no-install-recommends -o Dpkg::Use-Pty=0 "$@" >&2
}

# hold_cluster keeps PostgreSQL's package from creating a cluster, until this
# script ends.
hold_cluster() {
	conf=/etc/postgresql-common/createcluster.d
	as_root mkdir -p "$conf"
	printf '%s\n' "create_main_cluster = off" | as_root tee "$conf/dray-bootstrap.conf" >/dev/null
	trap 'as_root rm -f "$conf/dray-bootstrap.conf"; as_root rmdir --ignore-fail-on-non-empty "$conf"' EXIT
	trap 'exit 1' HUP INT TERM
}

check_go() {
	command -v go >/dev/null || die "Go is not installed, or not in PATH: see https://go.dev/dl (1.26 or newer)"
	# Within the module, so that this is the Go that will build it: a Go that is
	# not the one that go.mod asks for fetches that one, where it may.
	version=$(cd "$root" && go env GOVERSION) ||
		die "this Go ($(GOTOOLCHAIN=local go version)) cannot build Dray, and fetching the one that go.mod names failed"
	case $version in
	go1.26*) ;;
	*) die "$version cannot build Dray, which needs Go 1.26: run it through make, which chooses the toolchain" ;;
	esac
}

# skopeo is one of the rivals of the bench, whose rows say so when it is missing.
install_rivals() {
	command -v skopeo >/dev/null || {
		say "installing skopeo, to measure against it"
		apt_install skopeo || say "skopeo cannot be installed: its rows stay empty"
	}
}

case ${1-} in
demo | test | bench)
	[ "$(uname -s)" = Linux ] || die "buildkitd needs Linux"
	install_missing "$1"
	[ "$1" != bench ] || install_rivals
	check_go
	;;
*)
	printf '%s\n' "usage: bootstrap.sh demo|test|bench" >&2
	exit 2
	;;
esac
