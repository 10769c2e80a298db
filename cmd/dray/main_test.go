package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/registry/registrytest"
	"github.com/dray-project/dray/signer"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"dray": main})
}

// TestScripts runs the command line, as a process, against the real API over a
// sample store, and against a real registry.
func TestScripts(t *testing.T) {
	world := signedWorld(t)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits,
		},
		Setup: func(env *testscript.Env) error {
			url, err := sampleServer(env)
			if err != nil {
				return err
			}
			env.Setenv("DRAY_URL", url)
			env.Setenv("DRAY_TOKEN", "dray_test")
			env.Setenv("GOOD", string(apitest.Good.Digest))
			env.Setenv("SHARED", string(apitest.Shared.Digest))
			env.Setenv("BAD", string(apitest.Bad.Digest))
			env.Setenv("RUN", string(apitest.RunGood))
			env.Setenv("REFUSED", string(apitest.RunRefused))
			env.Setenv("OPEN", string(apitest.RunOpen))
			env.Setenv("PROMOTION", string(apitest.PromotionOne))
			env.Setenv("WAITING", string(apitest.PromotionWaiting))
			env.Setenv("PLAN", string(apitest.Diff.Plan()))
			env.Setenv("EXCEPTION", apitest.Exception)
			env.Setenv("VEX", apitest.VEX)
			env.Setenv("SIGNED", world.signed.String())
			env.Setenv("UNSIGNED", world.unsigned.String())
			env.Setenv("TAGGED", world.signed.Repository+":1.0.0")
			for file, text := range map[string][]byte{"cosign.pub": world.public, "other.pub": world.other} {
				if err := os.WriteFile(filepath.Join(env.WorkDir, file), text, 0o600); err != nil {
					return err
				}
			}
			return nil
		},
	})
}

// exits runs dray and demands an exit code: exits 3 promote …
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: exits CODE [dray's arguments]")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec("dray", args[1:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// sampleServer serves the sample world; a promotion to prod succeeds, one to
// staging is refused, and one to slow never ends. The first retry of a run is
// refused again, a retry of that fails, and the next one never ends.
func sampleServer(env *testscript.Env) (string, error) {
	store := apitest.Sample()
	store.Promotable = append(store.Promotable, "slow", "broken", "waits")
	var wg sync.WaitGroup
	trusting := apitest.HelloGo
	trusting.TrustedVEXKeys = []string{apitest.PublicKey}
	store.AddProject(trusting, "grace")
	store.Retried = func(r pipeline.Run) { wg.Go(func() { retry(store, r) }) }
	store.Promoted = func(p pipeline.Promotion) { wg.Go(func() { promote(store, p) }) }
	cleaner, err := newCleaner(&wg)
	if err != nil {
		return "", err
	}
	plan, err := cleaner.Plan(context.Background(), apitest.HelloGo.Name)
	if err != nil {
		return "", err
	}
	env.Setenv("RETENTION_PLAN", string(plan.Digest))
	a, err := api.New(api.Config{
		Store:          store,
		PublicKeyPEM:   []byte(apitest.PublicKey),
		TrustedRoot:    []byte(`{}`),
		VerifyCommands: func(img pipeline.Image) []string { return []string{"cosign verify --key cosign.pub " + img.String()} },
		Log:            slog.New(slog.DiscardHandler),
		Version:        "v1.2.3-server",
		Poll:           5 * time.Millisecond,
		Now:            func() time.Time { return apitest.Now },
		CheckProject: func(p pipeline.Project) error {
			for _, e := range p.Environments {
				if len(e.Rules) > 0 && e.Rules[0].Expr == "nonsense" {
					return fmt.Errorf("environment %s, rule %s: undeclared reference to 'nonsense': %w", e.Name, e.Rules[0].Name, pipeline.ErrInvalid)
				}
			}
			return nil
		},
		CheckVEX: func(d pipeline.VEXDocument, _ []string) error {
			if string(d.Signature) != "good\n" {
				return fmt.Errorf("no trusted key signed it: %w", pipeline.ErrUnverified)
			}
			return nil
		},
		Eligibility: eligibility,
		Retainer:    cleaner,
		Probe: func(_ context.Context, host string) (pipeline.RegistryProbe, error) {
			switch host {
			case "prod.example":
				return pipeline.RegistryProbe{Host: host, Referrers: pipeline.CapabilityYes, ProbedAt: apitest.Clock}, nil
			case "broken.example":
				return pipeline.RegistryProbe{Host: host, Error: "connection refused", ProbedAt: apitest.Clock}, nil
			}
			return pipeline.RegistryProbe{}, fmt.Errorf("registry %s is not in the settings: %w", host, pipeline.ErrNotFound)
		},
	})
	if err != nil {
		return "", err
	}
	srv := httptest.NewServer(a)
	env.Defer(func() {
		a.Drain()
		srv.Close()
		wg.Wait()
	})
	return srv.URL, nil
}

func retry(store *apitest.Store, r pipeline.Run) {
	job := r.ID.Job()
	store.Append(job, pipeline.JobEvent{Kind: pipeline.KindStage, Stage: pipeline.StageResolve, Attempt: 1, State: "started"})
	before, err := store.RunDetail(context.Background(), r.RetryOf)
	switch {
	case err != nil:
		store.End(job, pipeline.StateFailed, err.Error())
	case before.RetryOf == "":
		store.End(job, pipeline.StateRefused, "severity: as before")
	case before.State == pipeline.StateRefused:
		store.End(job, pipeline.StateFailed, "registry dev.example is unreachable")
	}
}

// eligibility passes in staging, waits in prod and refuses elsewhere.
func eligibility(_ context.Context, r pipeline.PromotionRequest) (pipeline.Eligibility, error) {
	e := pipeline.Eligibility{Project: r.Project, Environment: r.Environment, Image: apitest.Good, Decision: apitest.WaitingDecision, Diff: apitest.Diff, Plan: apitest.Diff.Plan()}
	switch r.Environment {
	case "prod":
	case "staging":
		e.Decision = pipeline.Decision{Passed: true, Rules: []pipeline.RuleResult{{Rule: "severity", Passed: true, Reason: "no finding"}}}
	default:
		e.Decision = pipeline.Decision{Rules: []pipeline.RuleResult{{Rule: "non-root", Reason: "starts as root", Remedy: "set a USER"}}}
	}
	return e, nil
}

func promote(store *apitest.Store, p pipeline.Promotion) {
	job := p.ID.Job()
	stage := func(s pipeline.Stage, state string) {
		store.Append(job, pipeline.JobEvent{Kind: pipeline.KindStage, Stage: s, Attempt: 1, State: state})
	}
	stage(pipeline.StageAdmit, "started")
	stage(pipeline.StageAdmit, "succeeded")
	stage(pipeline.StageGate, "started")
	switch p.Environment {
	case "staging":
		stage(pipeline.StageGate, "failed")
		store.End(job, pipeline.StateRefused, "severity: 1 finding(s) of severity critical or above")
	case "broken":
		stage(pipeline.StageGate, "succeeded")
		store.End(job, pipeline.StateFailed, "copy: registry prod.example is unreachable")
	case "prod":
		stage(pipeline.StageGate, "succeeded")
		store.End(job, pipeline.StateSucceeded, "")
	case "waits":
		store.Wait(p.ID, apitest.WaitingDecision, apitest.Diff)
		store.Wait(p.ID, apitest.WaitingDecision, apitest.Diff) // it looked again, and found the same
	}
}

// world is a registry with a signed and an unsigned image.
type world struct {
	signed, unsigned pipeline.Image
	public, other    []byte
}

func signedWorld(t *testing.T) world {
	t.Helper()
	host := registrytest.Olareg(t)
	private, public, err := signer.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	_, other, err := signer.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := world{public: public, other: other,
		signed: pushRandom(t, host, "acme/hello", "1.0.0"), unsigned: pushRandom(t, host, "acme/raw", "1.0.0")}
	s, err := signer.New(t.Context(), signer.Config{Key: private, Locker: &locker{}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Sign(t.Context(), w.signed); err != nil {
		t.Fatal(err)
	}
	_, err = s.Attest(t.Context(), w.signed, pipeline.Statement{
		PredicateType: pipeline.PredicateProvenance,
		Predicate:     json.RawMessage(`{"buildDefinition":{"buildType":"https://dray.example/build/v1","externalParameters":{}},"runDetails":{"builder":{"id":"https://dray.example"}}}`),
	})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func pushRandom(t *testing.T, host, repository, tag string) pipeline.Image {
	t.Helper()
	img, err := random.Image(1024, 1)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(host + "/" + repository + ":" + tag)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return pipeline.Image{Repository: host + "/" + repository, Digest: pipeline.Digest(digest.String())}
}

// locker is enough for one process.
type locker struct{ mu sync.Mutex }

func (l *locker) Lock(context.Context, string) (func(), error) {
	l.mu.Lock()
	return l.mu.Unlock, nil
}
