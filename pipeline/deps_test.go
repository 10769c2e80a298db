package pipeline_test

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/dray-project/dray"

// adapters do not know about one another; only cmd/drayd wires them.
var adapters = []string{
	"builder", "scanner", "signer", "api",
	"pipeline/postgres", "pipeline/registry", "pipeline/forge", "pipeline/policy", "pipeline/vex", "pipeline/ledger", "pipeline/notify", "pipeline/evidence",
}

// TestDependencyDirection keeps the direction of dependencies: everything
// imports pipeline, pipeline imports nothing, adapters do not import each other.
func TestDependencyDirection(t *testing.T) {
	deps := goListDeps(t)

	for _, d := range deps[module+"/pipeline"] {
		if external(d) && !strings.HasPrefix(d, "github.com/Masterminds/semver/") && d != module+"/pipeline" {
			t.Errorf("pipeline depends on %s; it may import the standard library and semver only", d)
		}
	}
	for _, a := range adapters {
		for pkg, all := range deps {
			if !within(pkg, a) {
				continue
			}
			for _, other := range adapters {
				if other == a {
					continue
				}
				if i := slices.IndexFunc(all, func(d string) bool { return within(d, other) }); i >= 0 {
					t.Errorf("%s depends on %s: adapters do not import each other", pkg, all[i])
				}
			}
		}
	}
	for pkg, all := range deps {
		for _, d := range all {
			if strings.HasPrefix(d, "github.com/aquasecurity/trivy/") && !within(pkg, "scanner") && !within(pkg, "cmd/drayd") && !within(pkg, "deploy/bench/rematchbench") {
				t.Errorf("%s depends on Trivy (%s); only scanner may, and cmd/drayd and its bench through it", pkg, d)
				break
			}
		}
	}
	for _, d := range deps[module+"/cmd/dray"] {
		for _, heavy := range []string{"github.com/moby/buildkit/", "github.com/aquasecurity/trivy/"} {
			if strings.HasPrefix(d, heavy) {
				t.Errorf("cmd/dray depends on %s: the command line stays small", d)
			}
		}
	}
}

func within(pkg, dir string) bool {
	return pkg == module+"/"+dir || strings.HasPrefix(pkg, module+"/"+dir+"/")
}

func external(pkg string) bool {
	first, _, _ := strings.Cut(pkg, "/")
	return strings.Contains(first, ".")
}

// goListDeps returns the dependencies of every package of the module, as they
// are when Trivy is compiled in.
func goListDeps(t *testing.T) map[string][]string {
	t.Helper()
	cmd := exec.Command("go", "list", "-f", `{{.ImportPath}} {{join .Deps " "}}`, module+"/...")
	cmd.Env = append(os.Environ(), "GOEXPERIMENT=jsonv2")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	deps := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		deps[f[0]] = f[1:]
	}
	if len(deps[module+"/pipeline"]) == 0 {
		t.Fatalf("go list knows no package %s/pipeline", module)
	}
	return deps
}
