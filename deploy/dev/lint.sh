#!/bin/bash
# Every check that needs no server. All of them run, then it fails if one did.
set -uo pipefail
cd "$(dirname "$0")/../.."
failed=0

check() { # check NAME COMMAND...: what it prints is shown when it fails
	local name=$1 out
	shift
	printf '%-40s' "$name"
	if out=$("$@" 2>&1); then
		echo ok
	else
		echo FAILED
		printf '%s\n' "$out" | sed 's/^/    /'
		failed=1
	fi
}

# Files that git knows or would add: not what lies in bin/ or .demo/.
files() { git ls-files -z -co --exclude-standard "$@"; }

formatted() {
	local out
	out=$(files '*.go' | xargs -0 gofmt -s -l) && [ -z "$out" ] || { printf '%s\n' "$out"; return 1; }
}

shell_syntax() {
	local file bad=0
	while IFS= read -r -d '' file; do
		case $(head -c 20 "$file") in
		'#!/bin/bash'*) bash -n "$file" || bad=1 ;;
		'#!/bin/sh'*) sh -n "$file" || bad=1 ;;
		esac
	done < <(files '*.sh' '.ci/*')
	return $bad
}

in_module() { ( cd "$1" && shift && "$@" ); }

check gofmt formatted
check "go vet" go vet ./...
# What a plain "go vet ./..." on somebody's machine sees: the scanner's files
# are left out, and what is left must still be whole.
check "go vet, without jsonv2" env GOEXPERIMENT= go vet ./...
# staticcheck.conf says which checks are left out, and why.
check staticcheck bin/staticcheck ./...
for module in deploy/demo/apps/*/; do
	check "go vet $module" in_module "$module" env GOFLAGS=-mod=mod go vet ./...
done
check "shell syntax" shell_syntax
check "go mod tidy" go mod tidy -diff
check "go mod tidy, deploy/dev" in_module deploy/dev go mod tidy -diff
check "go mod verify" go mod verify
exit $failed
