//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
)

// highFinding is what hello-go 1.1.0 brings in.
const highFinding = "CVE-2024-45338"

// apply makes staging and the gate of prod known.
func (s *story) apply(ctx context.Context) error {
	text, err := os.ReadFile("deploy/demo/project.yaml.in")
	if err != nil {
		return err
	}
	v := s.site
	filled := strings.NewReplacer("{{staging}}", v.Stack.Dev.Host+"/staging", "{{prod}}", v.Stack.Prod.Host).Replace(string(text))
	path := filepath.Join(v.Dir, "project.yaml")
	if err := os.WriteFile(path, []byte(filled), 0o644); err != nil {
		return err
	}
	if _, err := s.dray(ctx, v.Token, true, "project", "apply", "-f", s.shown(path)); err != nil {
		return err
	}
	s.out.proved("its settings are a version of their own; prod now wants staging, 5 s there, and a release manager's approval")
	_, err = s.dray(ctx, v.Token, true, "registry", "list")
	return err
}

// dray runs the command line as the bearer of the token and returns what it
// printed; shown, for the reader to see.
func (s *story) dray(ctx context.Context, token string, shown bool, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, filepath.Join(s.site.Bin, "dray"), args...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NO_COLOR=1", "DRAY_URL=" + s.site.URL, "DRAY_TOKEN=" + token}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if shown {
		var words []string
		for _, a := range args {
			if strings.ContainsAny(a, " ;&|") {
				a = "'" + a + "'"
			}
			words = append(words, a)
		}
		s.out.command("bin/dray " + strings.Join(words, " "))
		chatter := s.out.chatter()
		fmt.Fprint(chatter, stderr.String()+stdout.String())
	}
	if err != nil {
		return stdout.String(), fmt.Errorf("dray %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// exit is the exit code behind an error of dray.
func exit(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return 0
}

// promotion asks for one, once: the key makes the story repeatable.
func (s *story) promotion(ctx context.Context, image pipeline.Digest, environment, key string) (client.Promotion, error) {
	p, err := s.site.Client.Promote(ctx, pipeline.PromotionRequest{Image: string(image), Environment: environment, Project: "hello-go", IdempotencyKey: key})
	if err != nil {
		return client.Promotion{}, err
	}
	return s.site.Client.Promotion(ctx, p.ID)
}

// settled waits until a promotion is over, or rests in one of the states.
func (s *story) settled(ctx context.Context, id pipeline.PromotionID, rest ...pipeline.State) (client.Promotion, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for {
		p, err := s.site.Client.Promotion(ctx, id)
		if err != nil || p.State.Final() || slices.Contains(rest, p.State) {
			return p, err
		}
		select {
		case <-ctx.Done():
			return p, fmt.Errorf("promotion %s is still %s: %s", id, p.State, p.Reason)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (s *story) succeeded(p client.Promotion, err error) error {
	if err == nil && p.State != pipeline.StateSucceeded {
		err = fmt.Errorf("promotion %s %s: %s", p.ID, p.State, p.Reason)
	}
	return err
}

func (s *story) toStaging(ctx context.Context) error {
	d := s.run.Image.Digest
	s.out.command(fmt.Sprintf("bin/dray promote %s staging --wait", d.Short()+"…"))
	p, err := s.promotion(ctx, d, "staging", "demo-staging-"+d.Short())
	if err != nil {
		return err
	}
	if err := s.succeeded(s.settled(ctx, p.ID)); err != nil {
		return err
	}
	if err := s.holds(ctx, s.site.Staging("hello-go"), d, []string{"1.0.0"}); err != nil {
		return err
	}
	s.out.proved("staging holds %s", d.Short())
	return nil
}

// eligible shows why prod does not take the image yet.
func (s *story) eligible(ctx context.Context) error {
	d := string(s.run.Image.Digest)
	text, err := s.dray(ctx, s.site.Token, true, "promote", d, "prod", "--project", "hello-go", "--dry-run")
	if code := exit(err); err != nil && code != 3 {
		return err
	}
	if !strings.Contains(text, "approvals") {
		return fmt.Errorf("the answer does not speak of approvals:\n%s", text)
	}
	s.out.proved("nothing was promoted; every rule says why")
	return nil
}

// approve speaks as a release manager who did not ask.
func (s *story) approve(ctx context.Context, p client.Promotion) error {
	if p.State != pipeline.StateWaiting {
		return nil
	}
	if _, err := s.dray(ctx, s.site.Approver, true, "approve", string(p.ID), "--yes"); err != nil {
		return err
	}
	s.out.proved("alex approved the difference that was shown, and no other")
	return nil
}

// next releases a version with a finding that prod does not take.
func (s *story) next(ctx context.Context) error {
	w, err := s.site.NextSample(ctx, "hello-go", "1.1", "Read the titles of pages")
	if err != nil {
		return err
	}
	if err := w.Tag(ctx, "v1.1.0", "hello-go v1.1.0"); err != nil {
		return err
	}
	s.out.command("git push origin main v1.1.0")
	if err := w.Push(ctx, s.out.chatter(), "main", "v1.1.0"); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	run, err := s.site.RunOf(wait, "hello-go", "refs/tags/v1.1.0", "")
	if err != nil {
		return err
	}
	if s.later, err = s.follow(ctx, run.ID); err != nil {
		return err
	}
	if s.later.State != pipeline.StateSucceeded {
		return fmt.Errorf("run %s %s: %s", run.ID, s.later.State, s.later.Reason)
	}
	d := s.later.Image.Digest
	p, err := s.promotion(ctx, d, "staging", "demo-staging-"+d.Short())
	if err != nil {
		return err
	}
	if err := s.succeeded(s.settled(ctx, p.ID)); err != nil {
		return err
	}
	s.out.proved("1.1.0 is %s, and staging took it", d.Short())
	return nil
}

func (s *story) refusedByProd(ctx context.Context) error {
	d := s.later.Image.Digest
	p, err := s.promotion(ctx, d, "prod", "demo-refused-"+d.Short())
	if err != nil {
		return err
	}
	if p, err = s.settled(ctx, p.ID); err != nil {
		return err
	}
	if _, err := s.dray(ctx, s.site.Token, true, "promotion", "show", string(p.ID)); err != nil {
		return err
	}
	if p.State != pipeline.StateRefused || !strings.Contains(p.Reason, highFinding) {
		return fmt.Errorf("promotion %s %s: %s; want it refused because of %s", p.ID, p.State, p.Reason, highFinding)
	}
	s.out.proved("refused: %s", p.Reason)
	return nil
}

func (s *story) except(ctx context.Context) error {
	d := s.later.Image.Digest
	known, err := s.dray(ctx, s.site.Token, false, "exception", "list", "--project", "hello-go", "-o", "json")
	if err != nil {
		return err
	}
	if !strings.Contains(known, highFinding) {
		if _, err := s.dray(ctx, s.site.Approver, true, "exception", "add", highFinding, "--project", "hello-go", "--environment", "prod",
			"--expires", "14d", "--reason", "only titles are read, and pages are at most 1 MiB"); err != nil {
			return err
		}
	}
	if _, err := s.dray(ctx, s.site.Token, true, "diff", string(d), "prod", "--project", "hello-go"); err != nil {
		return err
	}
	p, err := s.promotion(ctx, d, "prod", "demo-prod-"+d.Short())
	if err != nil {
		return err
	}
	if p, err = s.settled(ctx, p.ID, pipeline.StateWaiting); err != nil {
		return err
	}
	if err := s.approve(ctx, p); err != nil {
		return err
	}
	p, err = s.settled(ctx, p.ID)
	if err := s.succeeded(p, err); err != nil {
		return err
	}
	if p.Decision == nil || len(p.Decision.Suppressed) == 0 {
		return errors.New("the decision does not show what was accepted")
	}
	f := p.Decision.Suppressed[0]
	s.out.proved("prod took it; the decision shows that %s was accepted by %s until %s", f.ID, f.Suppression.Author, f.Suppression.ExpiresAt.Format(time.DateOnly))
	return nil
}

func (s *story) rollback(ctx context.Context) error {
	text, err := s.dray(ctx, s.site.Token, false, "environment", "list", "hello-go", "-o", "json")
	if err != nil {
		return err
	}
	var list []pipeline.EnvironmentState
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return err
	}
	if slices.ContainsFunc(list, func(e pipeline.EnvironmentState) bool { // not when the story was told before
		return e.Environment == "prod" && e.Current != nil && e.Current.Image.Digest == s.later.Image.Digest
	}) {
		if _, err := s.dray(ctx, s.site.Token, true, "rollback", "hello-go", "prod", "--note", "titles come out wrong", "--wait"); err != nil {
			return err
		}
	}
	if err := s.holds(ctx, s.site.Prod("hello-go"), s.run.Image.Digest, []string{"1.0.0", "1.0", "1"}); err != nil {
		return err
	}
	if err := s.holds(ctx, s.site.Prod("hello-go"), s.later.Image.Digest, []string{"1.1.0", "1.1"}); err != nil {
		return err
	}
	s.out.proved("prod is back at 1.0.0: the tag 1 names it again, and 1.1.0 still names what it always did")
	return nil
}

// tamper deletes a signature in prod, as anybody with its password could.
func (s *story) tamper(ctx context.Context) error {
	img := pipeline.Image{Repository: s.site.Prod("hello-go"), Digest: s.run.Image.Digest}
	before, err := s.drifts(ctx)
	if err != nil {
		return err
	}
	var victim pipeline.Digest
	for _, v := range s.promo.Verified {
		for _, g := range v.Signatures {
			if v.Image.Digest == img.Digest && g.Layout == "bundle" {
				victim = g.Manifest
			}
		}
	}
	ref, err := name.NewDigest(img.Repository+"@"+string(victim), name.Insecure)
	if err != nil {
		return err
	}
	s.out.command("curl -X DELETE http://" + ref.Context().RegistryStr() + "/v2/hello-go/manifests/" + string(victim))
	if err := remote.Delete(ref, remote.WithContext(ctx)); err != nil {
		return fmt.Errorf("delete the signature %s: %w", ref, err)
	}
	s.out.proved("the signature %s is gone from prod", victim.Short())
	wait, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		now, err := s.drifts(ctx)
		if err != nil {
			return err
		}
		for _, d := range now {
			if d.Subject == string(victim) && d.RepairedAt != nil && !slices.ContainsFunc(before, func(o pipeline.Drift) bool { return o.ID == d.ID }) {
				if _, err := s.dray(ctx, s.site.Token, true, "drift", "list", "--all"); err != nil {
					return err
				}
				if _, err := remote.Head(ref, remote.WithContext(ctx)); err != nil {
					return fmt.Errorf("the signature was not put back: %w", err)
				}
				s.out.proved("Dray noticed, and put it back: %s", d.Repair)
				return nil
			}
		}
		select {
		case <-wait.Done():
			return errors.New("nobody noticed that the signature is gone")
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (s *story) drifts(ctx context.Context) ([]pipeline.Drift, error) {
	text, err := s.dray(ctx, s.site.Token, false, "drift", "list", "--all", "--project", "hello-go", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list []pipeline.Drift
	return list, json.Unmarshal([]byte(text), &list)
}
