#!/bin/bash
# Runs the tests against a Postgres cluster and a buildkitd of its own, which
# it starts before and stops after.
#
#   deploy/dev/test.sh PACKAGES [flags of go test]
#
# The race detector is on wherever Trivy is not linked in: with it, that alone
# would take longer to compile than everything else together.
set -euo pipefail
cd "$(dirname "$0")/../.."
packages=${1-./...}
shift || true

state=$PWD/.test
as_root=deploy/dev/as-root.sh
trap '"$as_root" bin/dray-dev down --dir "$state"' EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM

# Kept in a variable first: an error within $(...) of eval would go unseen.
environment=$("$as_root" bin/dray-dev up --dir "$state" --bin "$PWD/bin" --with postgres,buildkit --volatile)
eval "$environment"
export DRAY_TEST_COSIGN2=$PWD/bin/cosign2 DRAY_TEST_COSIGN3=$PWD/bin/cosign3 DRAY_TEST_BIN=$PWD/bin
# Debian packages for the base images, fetched once for all stacks.
export DRAY_TEST_CACHE=$state/cache

race=() plain=()
while read -r package trivy; do
	if [ -n "$trivy" ]; then plain+=("$package"); else race+=("$package"); fi
done < <(go list -test -f '{{if not .ForTest}}{{else}}{{.ForTest}}{{range .Deps}}{{if eq . "github.com/aquasecurity/trivy/pkg/types"}} trivy{{end}}{{end}}{{end}}' $packages | sort -u | awk '
	NF { if (!($1 in trivy)) trivy[$1] = ""; if (NF > 1) trivy[$1] = $2 }
	END { for (p in trivy) print p, trivy[p] }' | sort)

# Tests that start the stack need root, as buildkitd does.
status=0
run() { go test -exec "$PWD/$as_root" -timeout 30m "$@" || status=1; }
[ ${#race[@]} = 0 ] || run -race "$@" "${race[@]}"
[ ${#plain[@]} = 0 ] || run "$@" "${plain[@]}"
exit $status
