package main

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

var update = flag.Bool("update", false, "rewrite the golden files and the reference page")

// golden compares with testdata/golden/name, or rewrites it.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (go test ./cmd/dray -update rewrites it); got:\n%s", path, got)
	}
}

// TestTables compares every table with a golden file, a while after the sample
// world was made.
func TestTables(t *testing.T) {
	store, ctx := apitest.Sample(), context.Background()
	run := func(id pipeline.RunID) func(*writer) {
		return func(w *writer) {
			r, err := store.RunDetail(ctx, id)
			if err != nil {
				t.Fatal(err)
			}
			w.run(r)
		}
	}
	for name, draw := range map[string]func(*writer){
		"run-succeeded": run(apitest.RunGood),
		"run-refused":   run(apitest.RunRefused),
		"run-running":   run(apitest.RunOpen),
		"run-retry": func(w *writer) {
			r, err := store.RunDetail(ctx, apitest.RunOpen)
			if err != nil {
				t.Fatal(err)
			}
			r.RetryOf, r.RequestedBy = apitest.RunRefused, "grace"
			w.run(r)
		},
		"runs": func(w *writer) {
			runs, err := store.Runs(ctx, "", "", pipeline.Page{Limit: 10})
			if err != nil {
				t.Fatal(err)
			}
			w.runs(runs)
		},
		"promotion": func(w *writer) {
			p, err := store.PromotionDetail(ctx, apitest.PromotionOne)
			if err != nil {
				t.Fatal(err)
			}
			w.promotion(client.Promotion{PromotionDetail: p, VerifyCommands: []string{"cosign verify --key cosign.pub " + p.Destination.String()}})
		},
		"image": func(w *writer) {
			images, err := store.ImageDetails(ctx, apitest.Good.Digest, "")
			if err != nil {
				t.Fatal(err)
			}
			w.image(client.Image{ImageDetail: images[0], VerifyCommands: []string{"cosign verify --key cosign.pub " + images[0].Image.String()}})
		},
		"image-refused": func(w *writer) {
			images, err := store.ImageDetails(ctx, apitest.Bad.Digest, "")
			if err != nil {
				t.Fatal(err)
			}
			w.image(client.Image{ImageDetail: images[0]})
		},
		"promotion-waiting": func(w *writer) {
			p, err := store.PromotionDetail(ctx, apitest.PromotionWaiting)
			if err != nil {
				t.Fatal(err)
			}
			w.promotion(client.Promotion{PromotionDetail: p, Plan: apitest.Digest("d"), Approvals: []client.Approval{
				{Approval: p.Approvals[0], OtherPlan: true}, {Approval: pipeline.Approval{By: "hal", Rejected: true, At: apitest.Clock, Comment: "no\nway"}}}})
		},
		"promotions": func(w *writer) {
			list, err := store.Promotions(ctx, pipeline.PromotionQuery{Page: pipeline.Page{Limit: 10}})
			if err != nil {
				t.Fatal(err)
			}
			list[1].Action = pipeline.ActionRollback
			w.promotions(list)
		},
		"emergency": func(w *writer) {
			d := apitest.WaitingDecision
			d.Waiting, d.Passed, d.BreakGlass = false, true, &pipeline.BreakGlass{By: "grace", Reason: "INC-42", Rules: []string{"soak"}}
			d.Rules = []pipeline.RuleResult{d.Rules[0], {Rule: "soak", Passed: true, Overridden: true, Reason: "in staging for 1h of 24h"}}
			w.decision(d)
		},
		"eligibility": func(w *writer) {
			w.eligibility(pipeline.Eligibility{Project: "hello-go", Environment: "prod", Image: apitest.Good, Decision: apitest.WaitingDecision, Diff: apitest.Diff, Plan: apitest.Digest("d")})
		},
		"project": func(w *writer) {
			v, err := store.ProjectVersion(ctx, "hello-go", 0)
			if err != nil {
				t.Fatal(err)
			}
			v.Project.Environments[1].Rules = []pipeline.Rule{{Use: "no-shell"}, {Name: "main-only", Expr: `provenance.branch == "main"`}}
			v.Project.Environments[1].BreakGlass = &pipeline.BreakGlassRule{Roles: []string{"admin"}, Overrides: []string{"freeze", "soak"}}
			v.Project.Environments[1].Rollback = &pipeline.RollbackGate{Approvals: []pipeline.ApprovalRule{{Role: "admin"}}}
			w.project(v)
		},
		"projects": func(w *writer) {
			list, err := store.Projects(ctx)
			if err != nil {
				t.Fatal(err)
			}
			w.projects(list)
		},
		"versions": func(w *writer) {
			list, err := store.ProjectVersions(ctx, "hello-go", 0, 10)
			if err != nil {
				t.Fatal(err)
			}
			w.versions(list)
		},
		"applied": func(w *writer) {
			v, err := store.ProjectVersion(ctx, "hello-go", 0)
			if err != nil {
				t.Fatal(err)
			}
			w.applied(client.Applied{ProjectVersion: v, Changed: true, DryRun: true, Changes: []client.Change{
				{Path: "environments[prod].soak", From: []byte(`"1d"`), To: []byte(`"2d"`)}, {Path: "environments[prod].auto", To: []byte("true")}}})
		},
		"environments": func(w *writer) {
			list, err := store.Environments(ctx, "hello-go")
			if err != nil {
				t.Fatal(err)
			}
			w.environments(list)
		},
		"exceptions": func(w *writer) {
			list, err := store.Exceptions(ctx, "hello-go", true, pipeline.Page{Limit: 10})
			if err != nil {
				t.Fatal(err)
			}
			w.exceptions(list)
		},
		"vex": func(w *writer) {
			w.vex([]client.VEX{{VEXDocument: pipeline.VEXDocument{ID: apitest.VEX, UploadedBy: "grace", UploadedAt: apitest.Clock}, Author: "acme\x1b[2J",
				Statements: []client.VEXStatement{{Vulnerability: "CVE-1", Status: "fixed"}}}})
		},
		"drift": func(w *writer) {
			list, err := store.Drifts(ctx, "", true, pipeline.Page{Limit: 10})
			if err != nil {
				t.Fatal(err)
			}
			w.drifts(list)
		},
		"registries": func(w *writer) {
			list, err := store.Registries(ctx)
			if err != nil {
				t.Fatal(err)
			}
			w.registries(list)
		},
		"image-suppressed": func(w *writer) {
			images, err := store.ImageDetails(ctx, apitest.Good.Digest, "")
			if err != nil {
				t.Fatal(err)
			}
			at := apitest.Clock.AddDate(0, 0, 30)
			img := images[0]
			img.Findings = []pipeline.ImageFinding{img.Findings[0]}
			img.Findings[0].Suppressed = []pipeline.FindingSuppression{{Environment: "prod",
				Suppression: pipeline.Suppression{By: "exception", ID: apitest.Exception, Author: "grace", Reason: "not reachable", ExpiresAt: &at}}}
			img.Source.Lint = []pipeline.LintFinding{{Rule: "SecretsUsedInArgOrEnv", Line: 3, Detail: "do not use ENV for secrets", Remedy: "mount it"}}
			w.image(client.Image{ImageDetail: img})
		},
		"packages": func(w *writer) {
			uses, err := store.Packages(ctx, pipeline.PackageQuery{Name: "rsc.io/quote", Page: pipeline.Page{Limit: 10}})
			if err != nil {
				t.Fatal(err)
			}
			w.packages(uses)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := &writer{now: apitest.Clock.Add(5 * time.Minute)}
			draw(w)
			got := w.buf.String()
			golden(t, filepath.Join("testdata", "golden", name+".txt"), got)
			for line := range strings.Lines(got) {
				if strings.TrimRight(line, " \n") != strings.TrimRight(line, "\n") {
					t.Errorf("spaces at the end of %q", line)
				}
			}
			colored := &writer{now: w.now, color: true}
			draw(colored)
			if !strings.Contains(colored.buf.String(), "\x1b[") {
				t.Error("nothing is coloured")
			}
			if plain := uncolor(colored.buf.String()); plain != got {
				t.Errorf("colours move the columns:\n%s", plain)
			}
		})
	}
}

func uncolor(s string) string {
	for _, c := range []string{green, red, yellow, cyan, faint, bold, "0"} {
		s = strings.ReplaceAll(s, "\x1b["+c+"m", "")
	}
	return s
}

// What others wrote cannot steer the terminal.
func TestCleanText(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                    "plain",
		"höhe\tx":                  "höhe x",
		"\x1b[2J\x1b]0;owned\x07x": "[2J]0;ownedx",
		"a\r\nb\u202ec\u200b":      "a\nbc",
		"\x9b31m":                  "31m",
	} {
		if got := clean(in); got != want {
			t.Errorf("clean(%q) = %q, want %q", in, got, want)
		}
	}
	w := &writer{}
	w.runs([]pipeline.Run{{ID: "run_x", Project: "p", Event: pipeline.Event{Ref: "refs/heads/\x1b[31mred"}}})
	if strings.Contains(w.buf.String(), "\x1b") {
		t.Errorf("%q", w.buf.String())
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0.0s", 340 * time.Millisecond: "0.3s", 12 * time.Second: "12s",
		185 * time.Second: "3m05s", 130 * time.Minute: "2h10m",
	} {
		if got := duration(d); got != want {
			t.Errorf("duration(%v) = %q, want %q", d, got, want)
		}
	}
}
