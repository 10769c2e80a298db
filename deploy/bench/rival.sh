#!/bin/bash
# What somebody would write instead of Dray for one release: build both
# platforms with a registry cache, scan, sign, attest, verify, tag. It uses the
# command lines that such scripts use, and does nothing twice.
#
#   rival.sh REPOSITORY GIT_URL COMMIT VERSION
#
# From the environment: BIN (directory of the tools), BUILDKIT (address), KEY
# (private key, COSIGN_PASSWORD opens it), PUBLIC_KEY, DATABASE (Trivy's),
# SCRATCH (a directory that stays between runs, for Trivy's cache).
set -euo pipefail
repository=$1 url=$2 commit=$3 version=$4
step() { [ -z "${STEPS:-}" ] || echo "$(date +%s.%N) $*" >>"$STEPS"; }

step build
epoch=1700000000
"$BIN/buildctl" --addr "$BUILDKIT" build --progress quiet \
	--frontend dockerfile.v0 --opt "context=$url#$commit" \
	--opt platform=linux/amd64,linux/arm64 --opt "build-arg:SOURCE_DATE_EPOCH=$epoch" \
	--import-cache "type=registry,ref=$repository:cache" \
	--export-cache "type=registry,ref=$repository:cache,mode=max,image-manifest=true,oci-mediatypes=true,compression=zstd" \
	--output "type=image,name=$repository,push=true,push-by-digest=true,oci-mediatypes=true,rewrite-timestamp=true" \
	--metadata-file "$SCRATCH/metadata.json"
digest=$(jq -r '."containerimage.digest"' "$SCRATCH/metadata.json")
image=$repository@$digest
mapfile -t platforms < <("$BIN/crane" manifest "$image" | jq -r '.manifests[] | select(.platform.os != "unknown") | .digest')

step scan
for platform in "${platforms[@]}"; do
	"$BIN/trivy" --quiet --cache-dir "$SCRATCH/trivy" image --insecure --image-src remote --db-repository "$DATABASE" --skip-version-check \
		--offline-scan --scanners vuln --severity CRITICAL --exit-code 1 --format json --output "$SCRATCH/report.json" "$repository@$platform"
	"$BIN/trivy" --quiet --cache-dir "$SCRATCH/trivy" image --insecure --image-src remote --skip-version-check --offline-scan \
		--format cyclonedx --output "$SCRATCH/sbom-${platform#sha256:}.json" "$repository@$platform"
done

step sign
cosign=("$BIN/cosign3")
local=(--key "$KEY" --tlog-upload=false --use-signing-config=false --yes --allow-http-registry)
"${cosign[@]}" sign "${local[@]}" --recursive "$image" 2>>"$SCRATCH/cosign.log"

step attest
jq -n --arg uri "git+$url" --arg commit "$commit" '{buildDefinition: {buildType: "script", externalParameters: {source: $uri},
	resolvedDependencies: [{uri: $uri, digest: {gitCommit: $commit}}]}, runDetails: {builder: {id: "script"}}}' >"$SCRATCH/provenance.json"
for subject in "$digest" "${platforms[@]}"; do
	"${cosign[@]}" attest "${local[@]}" --type slsaprovenance1 --predicate "$SCRATCH/provenance.json" "$repository@$subject" 2>>"$SCRATCH/cosign.log"
done
for platform in "${platforms[@]}"; do
	"${cosign[@]}" attest "${local[@]}" --type cyclonedx --predicate "$SCRATCH/sbom-${platform#sha256:}.json" "$repository@$platform" 2>>"$SCRATCH/cosign.log"
done

step verify
for subject in "$digest" "${platforms[@]}"; do
	"${cosign[@]}" verify --key "$PUBLIC_KEY" --insecure-ignore-tlog=true --allow-http-registry "$repository@$subject" >"$SCRATCH/verified.json" 2>>"$SCRATCH/cosign.log"
done

step tag
for tag in "$version" "${version%.*}" "${version%%.*}" "sha-${commit:0:12}"; do
	"$BIN/crane" tag "$image" "$tag"
done
step done
