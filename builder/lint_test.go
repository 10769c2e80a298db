package builder

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// lintConfigs are the base images that these tests know: debian, with a variable.
func lintConfigs() map[string][]byte {
	return map[string][]byte{
		"docker.io/library/debian:12": []byte(`{"os":"linux","architecture":"amd64","config":{"Env":["PATH=/bin","JAVA_HOME=/opt/java"],"OnBuild":["RUN evil"]},"rootfs":{"type":"layers","diff_ids":["sha256:aa"]}}`),
		"docker.io/library/armed:1":   []byte(`{"os":"linux","architecture":"arm64","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:aa"]}}`),
		"docker.io/library/ready:1":   []byte(`{"os":"linux","architecture":"amd64","config":{"Shell":["/bin/bash","-o","pipefail","-c"],"Healthcheck":{"Test":["CMD","true"]}},"rootfs":{"type":"layers","diff_ids":["sha256:aa"]}}`),
	}
}

func lintText(t *testing.T, text string, p pipeline.Plan) ([]pipeline.LintFinding, error) {
	t.Helper()
	d, err := parseDockerfile("Dockerfile", []byte(text), nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Platforms) == 0 {
		p.Platforms = []pipeline.Platform{"linux/amd64"}
	}
	return d.lint(t.Context(), p, "linux/amd64", lintConfigs())
}

// ruled are the findings of one rule as "line detail".
func ruled(found []pipeline.LintFinding, rule string) string {
	var out []string
	for _, f := range found {
		if f.Rule == rule {
			out = append(out, fmt.Sprintf("%d %s", f.Line, f.Detail))
		}
	}
	return strings.Join(out, "\n")
}

func TestLintRules(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range []struct {
		rule, bad string
		says      string // the finding
		good      string
	}{
		{"ConsistentInstructionCasing", "FROM debian:12\nRUN true\nrun true\n", "3 Command 'run'", "from debian:12\nrun true\n"},
		{"DuplicateStageName", "FROM debian:12 AS a\nFROM debian:12 AS a\n", "2 Duplicate stage name \"a\"", "FROM debian:12 AS a\nFROM debian:12 AS b\n"},
		{"ExposeInvalidFormat", "FROM debian:12\nEXPOSE 127.0.0.1:80:80\n", "2 EXPOSE", "FROM debian:12\nEXPOSE 80\n"},
		{"ExposeProtoCasing", "FROM debian:12\nEXPOSE 80/TCP\n", "2 Defined protocol '80/TCP'", "FROM debian:12\nEXPOSE 80/tcp\n"},
		{"FromAsCasing", "FROM debian:12 as a\n", "1 'as' and 'FROM'", "FROM debian:12 AS a\n"},
		{"FromPlatformFlagConstDisallowed", "FROM --platform=linux/amd64 debian:12\n", "1 FROM --platform", "FROM --platform=$BUILDPLATFORM debian:12\n"},
		{"InvalidBaseImagePlatform", "FROM armed:1\n", "1 Base image armed:1 was pulled with platform \"linux/arm64", "FROM debian:12\n"},
		{"InvalidDefaultArgInFrom", "ARG TAG\nFROM debian:$TAG\n", "2 Default value for ARG debian:$TAG", "ARG TAG=12\nFROM debian:$TAG\n"},
		{"InvalidDefinitionDescription", "# check=experimental=all\n\n# something else\nFROM debian:12 AS a\n", "4 Comment for FROM", "# check=experimental=all\n\n# a is a stage\nFROM debian:12 AS a\n"},
		{"JSONArgsRecommended", "FROM debian:12\nCMD app --flag\n", "2 JSON arguments recommended for CMD", "FROM debian:12\nCMD [\"app\", \"--flag\"]\n"},
		{"LegacyKeyValueFormat", "FROM debian:12\nENV A b\n", "2 \"ENV key=value\"", "FROM debian:12\nENV A=b\n"},
		{"MaintainerDeprecated", "FROM debian:12\nMAINTAINER me\n", "2 Maintainer", "FROM debian:12\nLABEL org.opencontainers.image.authors=me\n"},
		{"MultipleInstructionsDisallowed", "FROM debian:12\nCMD [\"a\"]\nCMD [\"b\"]\n", "2 Multiple CMD", "FROM debian:12\nCMD [\"a\"]\n"},
		{"NoEmptyContinuation", "FROM debian:12\nRUN a \\\n\n  b\n", "4 Empty continuation line", "FROM debian:12\nRUN a \\\n  b\n"},
		{"RedundantTargetPlatform", "FROM --platform=$TARGETPLATFORM debian:12\n", "1 Setting platform", "FROM debian:12\n"},
		{"ReservedStageName", "FROM debian:12 AS context\n", "1 Stage name should not use", "FROM debian:12 AS ctx\n"},
		{"SecretsUsedInArgOrEnv", "FROM debian:12\nARG API_KEY\n", "2 Do not use ARG or ENV", "FROM debian:12\nARG API_PORT\n"},
		{"StageNameCasing", "FROM debian:12 AS Build\n", "1 Stage name 'Build'", "FROM debian:12 AS build\n"},
		{"UndefinedArgInFrom", "FROM debian:12${MISSING}\n", "1 FROM argument 'MISSING'", "ARG GIVEN=\nFROM debian:12${GIVEN}\n"},
		{"UndefinedVar", "FROM debian:12\nCOPY $MISSING /a\n", "2 Usage of undefined variable '$MISSING'", "FROM debian:12\nARG A=b\nCOPY $A ${JAVA_HOME}/c /a/\n"},
		{"UndefinedVar", "FROM scratch\nCOPY $JAVA_HOME /a\n", "2 Usage of undefined variable '$JAVA_HOME'", "FROM unknown:1\nCOPY $JAVA_HOME /a\n"},
		{"UndefinedVar", "FROM debian:12 AS a\nFROM a\nCOPY $MISSING /a\n", "3 Usage", "FROM unknown:1 AS a\nFROM a AS b\nCOPY $JAVA_HOME /a\n"},
		{"UndefinedVar", "FROM debian:12\nCOPY $MISSING /a\n", "2 Usage", "FROM debian:12@" + someDigest + "\nCOPY $JAVA_HOME /a\n"},
		{"WorkdirRelativePath", "FROM debian:12\nWORKDIR app\n", "2 Relative workdir \"app\"", "FROM debian:12\nWORKDIR /app\n"},
		{"CopyIgnoredFile", "FROM debian:12\nCOPY secret/a b /\n", "2 Attempting to Copy file \"secret/a\"", "FROM debian:12 AS a\nFROM debian:12\nCOPY --from=a secret/a /\nCOPY b ${C} /\n"},
		{"CopyIgnoredFile", "FROM debian:12\nADD ./secret/../secret /\n", "2 Attempting to Add file \"secret\"", "FROM debian:12\nADD https://example.org/secret /\nCOPY . /\n"},

		{"DL3002", "FROM debian:12\nUSER app\nUSER root\n", "3 The last USER is root", "FROM debian:12\nUSER root\nUSER 65532:65532\n"},
		{"DL3002", "FROM debian:12 AS a\nUSER 0:0\nFROM a\nRUN x\n", "2 The last USER", "FROM debian:12 AS a\nUSER root\nFROM debian:12\n"},
		{"DL3006", "FROM debian\n", "1 The base image debian has no tag", "FROM debian:12 AS a\nFROM a AS b\nFROM scratch AS c\nFROM debian@" + someDigest + "\n"},
		{"DL3006", "ARG B=debian\nFROM $B\n", "2 The base image $B has no tag", "ARG B=debian:12\nFROM $B\n"},
		{"DL3007", "FROM debian:latest\n", "1 The base image debian:latest", "FROM debian:latest@" + someDigest + "\n"},
		{"DL3008", "FROM debian:12\nRUN apt-get update && apt-get install -y --no-install-recommends -t stable curl git=1.2 ./x.deb $MORE\n", "2 Packages are installed in whatever version there is: curl", "FROM debian:12\nRUN apt-get install -y curl=1.2 && echo apt-get install git # apt-get install git\n"},
		{"DL3008", "FROM debian:12\nRUN [\"apt-get\", \"install\", \"curl\"]\n", "2 Packages", "FROM debian:12\nRUN [\"echo\", \"apt-get\", \"install\", \"curl\"]\n"},
		{"DL3008", "FROM debian:12\nRUN <<EOF\nset -e\nDEBIAN_FRONTEND=x /usr/bin/apt-get -qq install 'curl' >/dev/null\nEOF\n", "2 Packages are installed in whatever version there is: curl", "FROM debian:12\nRUN cat <<EOF\napt-get install curl\nEOF\n"},
		{"DL3008", "FROM debian:12\nRUN if true; then (sudo apt install \\\n  # why\n  curl); fi\n", "2 Packages are installed in whatever version there is: curl", "FROM debian:12\n# hadolint ignore=DL3007,DL3008\nRUN apt-get install curl\n"},
		{"DL3009", "FROM debian:12\nRUN apt-get update && apt-get install -y curl=1\n", "2 The package lists", "FROM debian:12\nRUN apt-get update && apt-get install -y curl=1 && rm -rf /var/lib/apt/lists/*\n"},
		{"DL3009", "FROM debian:12 AS a\nRUN apt-get update\nFROM a\n", "2 The package lists", "FROM debian:12 AS a\nRUN apt-get update\nFROM debian:12\nRUN --mount=type=cache,target=/var/lib/apt apt-get update\n"},
		{"DL3015", "FROM debian:12\nRUN apt-get install -y curl=1\n", "2 Packages that are only recommended", "FROM debian:12\nRUN apt-get install -y curl=1 --no-install-recommends && apt-get -o APT::Install-Recommends=false install git=2 && apt-get -oAPT::Install-Recommends=0 install x=1\n"},
		{"DL3020", "FROM debian:12\nADD app.conf /etc/\n", "2 ADD copies \"app.conf\"", "FROM debian:12\nADD app.tar.gz https://example.org/x git@example.org:a.git $X /etc/\n"},
		{"DL3057", "FROM debian:12\nRUN true\n", "1 The image has no health check", "FROM debian:12\nHEALTHCHECK CMD true\n"},
		{"DL3057", "FROM debian:12 AS a\nHEALTHCHECK CMD true\nFROM debian:12\n", "3 The image", "FROM debian:12 AS a\nHEALTHCHECK NONE\nFROM a\n"},
		{"DL3057", "# check=skip=DL3006\nFROM debian\n", "2 The image", "FROM ready:1\n"},
		{"DL4006", "FROM debian:12\nRUN curl x | sh\n", "2 The failure of curl", "FROM debian:12\nSHELL [\"/bin/bash\", \"-o\", \"pipefail\", \"-c\"]\nRUN curl x | sh\n"},
		{"DL4006", "FROM debian:12\nSHELL [\"/bin/sh\", \"-c\"]\nRUN a || b; FOO=1 '/opt/c' x|&d\n", "3 The failure of c,", "FROM debian:12\nRUN a || b; echo 'a | b' \"c | d\" >| e && set -o pipefail && a | b\n"},
		{"DL4006", "FROM debian:12 AS a\nSHELL [\"bash\", \"-o\", \"pipefail\", \"-c\"]\nFROM debian:12\nRUN a | b\n", "4 The failure", "FROM debian:12 AS a\nSHELL [\"bash\", \"-o\", \"pipefail\", \"-c\"]\nFROM a\nRUN a | b\n"},
		{"DL4006", "FROM debian:12\nRUN `a|b`\n", "2 The failure", "FROM ready:1\nRUN a | b\n"},
		{"DL4006", "FROM debian:12\nRUN a | b\n", "2 The failure", "# check=skip=all\nFROM debian:12\nRUN a | b\n"},
	} {
		seen[c.rule] = true
		t.Run(c.rule, func(t *testing.T) {
			plan := pipeline.Plan{Ignore: []string{"secret"}, Args: map[string]string{"TAG": "12"}}
			found, err := lintText(t, c.bad, plan)
			if err != nil {
				t.Errorf("%q: %v", c.bad, err)
			}
			if got := ruled(found, c.rule); !strings.HasPrefix(got, c.says) || strings.Contains(got, "\n") {
				t.Errorf("%q: found %q, want %q", c.bad, got, c.says)
			}
			for _, f := range found {
				if f.Remedy == "" || !strings.HasPrefix(f.URL, "https://") {
					t.Errorf("%+v has no remedy or address", f)
				}
			}
			found, err = lintText(t, c.good, plan)
			if err != nil {
				t.Errorf("%q: %v", c.good, err)
			}
			if got := ruled(found, c.rule); got != "" {
				t.Errorf("%q: found %q", c.good, got)
			}
		})
	}
	for _, r := range LintRules() {
		if !seen[r.Name] {
			t.Errorf("no test of %s", r.Name)
		}
	}
}

// The rules are those of the BuildKit that is built in, and the page has them all.
func TestLintRulesAreComplete(t *testing.T) {
	dir, err := exec.Command("go", "list", "-f", "{{.Dir}}", "github.com/moby/buildkit/frontend/dockerfile/linter").Output()
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile(strings.TrimSpace(string(dir)) + "/ruleset.go")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, m := range regexp.MustCompile(`Name:\s+"(\w+)"`).FindAllSubmatch(source, -1) {
		want[string(m[1])] = true
	}
	page, err := os.ReadFile("../docs/reference/hygiene.md")
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| \\[`(\\w+)`\\]\\((\\S+)\\) \\| (.+) \\|$").FindAllSubmatch(page, -1) {
		documented[string(m[1])] = string(m[2]) + " " + string(m[3])
	}
	for _, r := range LintRules() {
		if !strings.HasPrefix(r.Name, "DL") && !want[r.Name] {
			t.Errorf("BuildKit has no rule %s", r.Name)
		}
		delete(want, r.Name)
		if got := documented[r.Name]; got != r.URL+" "+r.Remedy {
			t.Errorf("docs/reference/hygiene.md says of %s: %q; want\n| [`%s`](%s) | %s |", r.Name, got, r.Name, r.URL, r.Remedy)
		}
		delete(documented, r.Name)
	}
	if len(want) > 0 {
		t.Errorf("rules of BuildKit's without a remedy: %v", want)
	}
	if len(documented) > 0 {
		t.Errorf("docs/reference/hygiene.md has rules that do not exist: %v", documented)
	}
}

func TestLintTargetAndArguments(t *testing.T) {
	const text = "ARG TAG=12\nFROM debian:$TAG AS one\nMAINTAINER me\nFROM other:$TAG AS two\nUSER root\n"
	found, err := lintText(t, text, pipeline.Plan{Target: "one", Args: map[string]string{"TAG": "latest", "SOURCE_DATE_EPOCH": "https://example.org/x"}})
	if err != nil {
		t.Fatal(err)
	}
	if ruled(found, "DL3002") != "" || ruled(found, "DL3007") != "2 The base image debian:$TAG is whatever is latest when it is built\n4 The base image other:$TAG is whatever is latest when it is built" {
		t.Errorf("found %+v", found)
	}
	if found, err = lintText(t, text, pipeline.Plan{}); err != nil || ruled(found, "DL3002") == "" || ruled(found, "DL3007") != "" {
		t.Errorf("found %+v, %v", found, err)
	}
	// The same every time.
	for range 5 {
		again, err := lintText(t, text, pipeline.Plan{})
		if err != nil || fmt.Sprint(again) != fmt.Sprint(found) {
			t.Errorf("found %+v, then %+v, %v", found, again, err)
		}
	}
}

func TestLintTellsNoSecrets(t *testing.T) {
	const secret = "hunter2hunter2"
	for _, text := range []string{
		"ARG TOKEN\nFROM --platform=linux/$TOKEN debian:12\n",
		"ARG TOKEN=" + secret + "\nFROM debian:$TOKEN\nCOPY $TOKEN /a\nEXPOSE $TOKEN/TCP\n",
		"FROM debian:12\nENV DB_PASSWORD=\"" + secret + "\"\nWORKDIR " + secret + "\nADD " + secret + " /a\n",
		"FROM debian:12\nARG TOKEN\nEXPOSE 1:$TOKEN\nWORKDIR $TOKEN\nCOPY --from=$TOKEN a b\n",
		"FROM debian:12\nWORKDIR https://me:" + secret + "@example.org/x\n",
	} {
		found, err := lintText(t, text, pipeline.Plan{Ignore: []string{secret}, Args: map[string]string{"TOKEN": secret}})
		if got := fmt.Sprint(found, err); strings.Contains(got, secret) {
			t.Errorf("%q: %s", text, got)
		}
	}
}

// What the checks would do to Dray itself is bounded before they start.
func TestHostileLint(t *testing.T) {
	doubling := func(line string) string {
		return "FROM debian:12\nARG A=aaaaaaaaaaaaaaaa\n" + strings.Repeat(line, 40)
	}
	for name, c := range map[string]struct {
		text string
		says string // the error, or nothing
	}{
		"doubling":             {doubling("ENV A=$A$A\n"), "can grow past"},
		"doubling in two":      {doubling("ENV B=$A$A\nENV A=$B\n"), "can grow past"},
		"doubling over stages": {strings.Repeat("FROM debian:12 AS a\nENV A=$A$A\n", 1) + strings.Repeat("FROM a AS a\nENV A=${A}x$A$A\n", 40), "can grow past"},
		"doubling arguments":   {doubling("ARG A=$A$A\n"), "can grow past"},
		"substitution":         {doubling("ENV A=${A//a/$A}\n"), "can grow past"},
		"default values":       {doubling("ENV A=${B:-$A$A}${A+$A}\n"), "can grow past"},
		"many uses":            {"FROM debian:12\nENV A=" + strings.Repeat("x", 60<<10) + "\n" + strings.Repeat("LABEL a=$A$A$A$A$A$A$A$A\n", 100), "can grow past"},
		"many runs":            {"FROM debian:12\nARG A=" + strings.Repeat("x", 60<<10) + "\n" + strings.Repeat("RUN true\n", 1000), "can grow past"},
		"many instructions":    {"FROM debian:12\n" + strings.Repeat("ENV a=b\n", 100_000), "more than 2000 instructions"},
		"many variables":       {"FROM debian:12\nENV a=1" + many(" \\\n v%d=1", 50_000) + "\n", "more than 2000 variables"},
		"many guesses":         {"FROM debian:12\nENV" + many(" v%d=1", 1900) + "\nWORKDIR /" + many("$x%d", 5000) + "\n", "too many variables"},
		"long names":           {"FROM debian:12\nENV " + strings.Repeat("x", 10_000) + "=1\n", "a variable's name"},
		"long words":           {"FROM debian:12\nENV A=" + strings.Repeat(strings.Repeat("x", 1000)+"\\\n", 100) + "\n", "can grow past"},
		"many stages":          {many("FROM debian:12 AS s%d\nENV a=b\nRUN $a | $b\n", 499), ""},
		"nested braces":        {"FROM debian:12\nWORKDIR /" + strings.Repeat(strings.Repeat("${a:-", 1000)+"\\\n", 150) + "\n", "nested deeper"},
		"nested quotes":        {"FROM debian:12\nRUN " + strings.Repeat("$(\"`(", 10_000) + "\n", ""},
		"many findings":        {"FROM debian:12\n" + strings.Repeat("ADD a b\n", 60_000), "more than 2000 instructions"},
		"many patterns":        {"FROM debian:12\n" + strings.Repeat("COPY a/b/c/d/e/f/g/h c\n", 1500), ""},
		"a loop of triggers":   {"FROM debian:12 AS a\nONBUILD COPY --from=b / /\nONBUILD RUN x \\\n y\nFROM a AS b\nFROM b AS c\n", ""},
		"checks as errors":     {"# check=error=true\nFROM debian:12 AS A\n", ""},
		"base trigger":         {"FROM debian:12\n", ""},
		"what cannot be built": {"FROM debian:12\nCOPY --from=$A / /\n", "variable expansion is not supported"},
	} {
		t.Run(name, func(t *testing.T) {
			begin := spent(t)
			ignore := strings.Split(many("**/x%d*?[a-z]/y,", 5000), ",")
			found, err := lintText(t, c.text, pipeline.Plan{Ignore: ignore[:len(ignore)-1]})
			if c.says == "" && err != nil && !strings.Contains(err.Error(), "buildkit's checks") || c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) {
				t.Errorf("got %.500v, want %q", err, c.says)
			}
			if len(found) == 0 || len(found) > maxFindings {
				t.Errorf("%d findings", len(found))
			}
			// Not a measure of speed: with the race detector it is ten times as slow.
			// What is not bounded takes hours here.
			if took := spent(t) - begin; took > 2*time.Minute {
				t.Errorf("it ran away: %s of processor time", took)
			}
		})
	}
}

func many(format string, n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, format, i)
	}
	return b.String()
}

// Any Dockerfile that parses is checked, or refused, without a fault and in time.
func FuzzLint(f *testing.F) {
	f.Add("FROM debian:12\nRUN apt-get install -y x | y\nENV A=$B\n")
	f.Add("# check=error=true;skip=all\nARG A=1\nFROM a:$A AS x\nONBUILD RUN a\nFROM x\nADD a b\n")
	f.Add("FROM a\nRUN <<EOF bash\na | b\nEOF\nSHELL [\"x\"]\nEXPOSE 1/TCP\nUSER 0\n")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDockerfile("Dockerfile", []byte(text), nil)
		if err != nil {
			return
		}
		begin := spent(t)
		plan := pipeline.Plan{Platforms: []pipeline.Platform{"linux/amd64"}, Args: map[string]string{"A": "x"}}
		_, _ = d.lint(t.Context(), plan, "linux/amd64", lintConfigs())
		if took := spent(t) - begin; took > lintTimeout/2 {
			t.Errorf("it took %s", took)
		}
	})
}

// spent is the processor time of this process so far: what a hostile file costs
// does not depend on what else the machine does.
func spent(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
