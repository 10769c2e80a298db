# make help lists what can be made.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# The scanner (Trivy) does not compile without it, and not with Go 1.27 either:
# a Go of another version than 1.26 fetches the one that go.mod names. A Go 1.26
# is left alone, so that a machine without a network never tries to fetch one.
export GOEXPERIMENT := jsonv2
ifeq (,$(filter go1.26 go1.26.%,$(shell GOTOOLCHAIN=local go env GOVERSION 2>/dev/null)))
export GOTOOLCHAIN := go1.26.8
endif

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
# No -trimpath and no CGO_ENABLED here: with either, nothing that was compiled
# would serve go vet and go test as well.
GOBUILD := go build -buildvcs=false
AS_ROOT := deploy/dev/as-root.sh
STATE   := $(CURDIR)/.demo

##@ Try it

.PHONY: demo
demo: bootstrap-demo build-demo ## Show everything for real on this machine; the stack stays up
	$(AS_ROOT) bin/dray-demo --dir $(STATE) --bin $(CURDIR)/bin

.PHONY: down
down: bin/dray-dev ## Stop what the demo started
	$(AS_ROOT) bin/dray-dev down --dir $(STATE)

.PHONY: status
status: bin/dray-dev ## Show what the demo's stack is doing
	$(AS_ROOT) bin/dray-dev status --dir $(STATE)

.PHONY: clean-demo
clean-demo: down ## Stop the demo and remove its state
	$(AS_ROOT) rm -rf $(STATE)

##@ Build

.PHONY: build
build: bin/drayd bin/dray ## Build drayd and dray into bin/

.PHONY: build-demo
build-demo: bin/dray-dev bin/buildctl bin/buildkitd bin/dray bin/drayd bin/dray-demo

# Go knows best what is up to date: these are always asked for.
.PHONY: FORCE
bin/dray bin/drayd bin/dray-dev bin/dray-demo bin/dray-bench bin/dray-copybench bin/dray-logbench bin/dray-auditbench bin/dray-rematchbench: FORCE | bin
bin/dray: ; $(GOBUILD) -ldflags '$(LDFLAGS)' -o $@ ./cmd/dray
bin/dray-dev: ; $(GOBUILD) -o $@ ./deploy/stack/cmd/dray-dev
bin/dray-demo: ; $(GOBUILD) -o $@ ./deploy/demo
bin/dray-bench: ; $(GOBUILD) -o $@ ./deploy/bench
bin/dray-copybench: ; $(GOBUILD) -o $@ ./deploy/bench/copybench
bin/dray-logbench: ; $(GOBUILD) -o $@ ./deploy/bench/logbench
bin/dray-rematchbench: ; $(GOBUILD) -o $@ ./deploy/bench/rematchbench
bin/dray-auditbench: ; $(GOBUILD) -o $@ ./deploy/bench/auditbench
bin/drayd:
	@test -e $@ || echo "building drayd, with the scanner in it; the first time takes about 10 minutes on two cores..."
	$(GOBUILD) -ldflags '$(LDFLAGS)' -o $@ ./cmd/drayd

bin:
	@mkdir -p $@

# The tools come from a module of their own, whose go.mod pins them, and are
# built again only when that file changes. $(call tool,name,package,module,variable
# that holds its version,how long the first time takes on two cores)
define tool
bin/$1: deploy/dev/go.mod deploy/dev/go.sum | bin
	@version=$$$$(cd deploy/dev && go list -m -f '{{.Version}}' $3); \
	echo "building $1 $$$$version from source$(if $5, (the first time takes about $5))..."; \
	cd deploy/dev && $(GOBUILD) -ldflags "-s -w$(if $4, -X $4=$$$$version)" -o ../../$$@ $2
	@touch $$@
endef
$(eval $(call tool,buildkitd,github.com/moby/buildkit/cmd/buildkitd,github.com/moby/buildkit,github.com/moby/buildkit/version.Version,2 minutes))
$(eval $(call tool,buildctl,github.com/moby/buildkit/cmd/buildctl,github.com/moby/buildkit,github.com/moby/buildkit/version.Version,1 minute))
$(eval $(call tool,cosign2,github.com/sigstore/cosign/v2/cmd/cosign,github.com/sigstore/cosign/v2,sigs.k8s.io/release-utils/version.gitVersion,2 minutes))
$(eval $(call tool,cosign3,github.com/sigstore/cosign/v3/cmd/cosign,github.com/sigstore/cosign/v3,sigs.k8s.io/release-utils/version.gitVersion,1 minute))
$(eval $(call tool,crane,github.com/google/go-containerregistry/cmd/crane,github.com/google/go-containerregistry,github.com/google/go-containerregistry/cmd/crane/cmd.Version,))
$(eval $(call tool,regctl,github.com/regclient/regclient/cmd/regctl,github.com/regclient/regclient,,))
$(eval $(call tool,staticcheck,honnef.co/go/tools/cmd/staticcheck,honnef.co/go/tools,,))

# Trivy's command comes from the module that Dray links it from: the same version
# on the same dependencies, and most of it is compiled already. What only the
# command needs is written to a copy of go.mod.
bin/trivy: go.mod | bin
	@version=$$(go list -m -f '{{.Version}}' github.com/aquasecurity/trivy); \
	echo "building trivy $$version from source..."; \
	mkdir -p .bench && cp go.mod go.sum .bench/ && \
	go get -modfile=.bench/go.mod -tool github.com/aquasecurity/trivy/cmd/trivy@$$version && \
	$(GOBUILD) -modfile=.bench/go.mod -ldflags "-s -w -X github.com/aquasecurity/trivy/pkg/version/app.ver=$${version#v}" \
		-o $@ github.com/aquasecurity/trivy/cmd/trivy

.PHONY: docs
docs: bin/drayd ## Write the reference pages that are generated
	bin/drayd settings > docs/reference/settings.md

##@ Check

.PHONY: test
test: bootstrap-test build-demo bin/cosign2 bin/cosign3 ## Run every test against servers of its own (ARGS='-run X', PKG=./builder)
	deploy/dev/test.sh '$(or $(PKG),./...)' $(ARGS)

.PHONY: lint
lint: bin/staticcheck ## gofmt, vet, staticcheck, module files and shell scripts
	deploy/dev/lint.sh

.PHONY: fmt
fmt: ## Format the Go code
	git ls-files -z -co --exclude-standard '*.go' | xargs -0 gofmt -s -w

.PHONY: bench
bench: bootstrap-bench build bin/dray-bench bin/dray-dev bin/buildctl bin/buildkitd bin/cosign3 bin/crane bin/trivy bench-copy bench-log bench-audit bench-rematch ## Measure Dray against what it replaces
	$(AS_ROOT) bin/dray-bench --dir $(CURDIR)/.bench/state --bin $(CURDIR)/bin

.PHONY: bench-copy
bench-copy: bootstrap-bench bin/dray-copybench bin/dray-dev bin/crane bin/regctl ## Measure the copies alone (ARGS='--n 3 --only olareg')
	bin/dray-copybench --bin $(CURDIR)/bin $(ARGS)

.PHONY: bench-rematch
bench-rematch: bootstrap-bench bin/dray-rematchbench bin/dray-dev bin/trivy ## Measure matching images again with a new database alone (ARGS='--images 1000')
	bin/dray-rematchbench --bin $(CURDIR)/bin $(ARGS)

.PHONY: bench-log
bench-log: bootstrap-bench bin/dray-logbench bin/dray-dev ## Measure the evidence log alone (ARGS='--n 3 --rate 1000')
	bin/dray-logbench --bin $(CURDIR)/bin $(ARGS)

.PHONY: bench-audit
bench-audit: bootstrap-bench bin/dray-auditbench bin/dray-dev ## Measure questions to the record alone (ARGS='--images 111112' asks 50 million rows)
	bin/dray-auditbench --bin $(CURDIR)/bin $(ARGS)

.PHONY: clean
clean: ## Remove what was built; the demo's state stays
	rm -rf bin

##@ Help

.PHONY: help
help: ## Show this
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: bootstrap-demo bootstrap-test bootstrap-bench
bootstrap-demo: ; @deploy/dev/bootstrap.sh demo
bootstrap-test: ; @deploy/dev/bootstrap.sh test
bootstrap-bench: ; @deploy/dev/bootstrap.sh bench
