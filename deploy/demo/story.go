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
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/deploy/site"
	"github.com/dray-project/dray/deploy/stack"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer/verify"
)

// usedPackage is in hello-go's binary; the story asks where it is.
const usedPackage = "github.com/google/uuid"

// story is what the demo tells. Each chapter proves what it shows, or fails.
type story struct {
	out    *printer
	config site.Config
	site   *site.Site
	run    pipeline.RunDetail
	promo  client.Promotion
	later  pipeline.RunDetail // of version 1.1.0
	cosign []string
}

type chapter struct {
	title string
	play  func(context.Context) error
}

func (s *story) chapters() []chapter {
	return []chapter{
		{"Start Postgres, buildkitd, two registries, a git server and drayd", s.start},
		{"Push hello-go at tag v1.0.0", s.push},
		{"Scanned, signed, attested, verified, recorded, tagged", s.recorded},
		{"One commit is one image: push its branch as well", s.again},
		{"Push leaky, which the gate must refuse", s.refused},
		{"Apply the way to prod: through staging, some time there, an approval", s.apply},
		{"Promote the digest of hello-go to staging", s.toStaging},
		{"Ask whether it could enter prod now", s.eligible},
		{"Promote it to prod", s.promote},
		{"Verify it in prod with the public key alone", s.verify},
		{"Push hello-go 1.1.0, which brings a finding in", s.next},
		{"Prod refuses it, with the reasons", s.refusedByProd},
		{"Accept the finding for two weeks, look at the difference, and promote", s.except},
		{"Roll prod back", s.rollback},
		{"Delete a signature behind Dray's back", s.tamper},
		{"Ask which promoted images contain a package", s.ask},
		{"Ask where a vulnerability is, and who let it pass", s.cve},
		{"Prove the image in prod where there is no network", s.prove},
		{"Change a row of the record with psql", s.rewrite},
	}
}

func (s *story) start(ctx context.Context) (err error) {
	if s.site, err = site.Start(ctx, s.config); err != nil {
		return err
	}
	if err := s.writeEnv(""); err != nil {
		return err
	}
	s.out.proved("drayd answers at %s", s.site.URL)
	s.out.proved("dev is %s at %s, without the referrers API", s.site.Stack.Dev.Kind, s.site.Stack.Dev.Host)
	s.out.proved("prod is %s at %s, with it", s.site.Stack.Prod.Kind, s.site.Stack.Prod.Host)
	return nil
}

// pushRef pushes a sample and returns its run. A ref that is on the server
// already starts nothing; its run is the one from then.
//
// With a commit, it is the run that built that one: a branch goes on.
func (s *story) pushRef(ctx context.Context, app, ref, commit string) (pipeline.Run, error) {
	w, err := s.site.Sample(ctx, app)
	if err != nil {
		return pipeline.Run{}, err
	}
	full := "refs/heads/" + ref
	if ref != "main" {
		full = "refs/tags/" + ref
		if err := w.Tag(ctx, ref, app+" "+ref); err != nil {
			return pipeline.Run{}, err
		}
	}
	s.out.command("git push origin " + ref)
	if err := w.Push(ctx, s.out.chatter(), ref); err != nil {
		return pipeline.Run{}, err
	}
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	run, err := s.site.RunOf(wait, app, full, commit)
	if err != nil {
		return run, err
	}
	s.out.proved("the delivery is accepted, and its run is %s", run.ID)
	return run, nil
}

// follow shows a run until it ends.
func (s *story) follow(ctx context.Context, id pipeline.RunID) (pipeline.RunDetail, error) {
	for e, err := range s.site.Client.Follow(ctx, id.Job(), 0) {
		if err != nil {
			return pipeline.RunDetail{}, err
		}
		s.out.event(e)
	}
	return s.site.Client.Run(ctx, id)
}

func (s *story) push(ctx context.Context) error {
	run, err := s.pushRef(ctx, "hello-go", "v1.0.0", "")
	if err != nil {
		return err
	}
	if s.run, err = s.follow(ctx, run.ID); err != nil {
		return err
	}
	if s.run.State != pipeline.StateSucceeded || s.run.Image == nil {
		return fmt.Errorf("run %s %s: %s", run.ID, s.run.State, s.run.Reason)
	}
	s.out.proved("commit %s became %s", s.run.Commit[:12], s.run.Image)
	return s.writeEnv(s.run.Image.Digest)
}

func (s *story) recorded(ctx context.Context) error {
	d := s.run.Image.Digest
	img, err := s.site.Client.Image(ctx, d, "hello-go")
	if err != nil {
		return err
	}
	platforms := []pipeline.Platform{"linux/amd64", "linux/arm64"}
	for _, want := range platforms {
		if !slices.ContainsFunc(img.Platforms, func(p pipeline.PlatformImage) bool { return p.Platform == want }) {
			return fmt.Errorf("the image has no platform %s: %v", want, img.Platforms)
		}
	}
	if img.Packages == 0 || img.Database.Digest == "" {
		return fmt.Errorf("the scan found %d packages with database %q", img.Packages, img.Database.Digest)
	}
	s.out.proved("scanned: %d packages, %d findings, database %s of %s", img.Packages, len(img.Findings),
		img.Database.Digest.Short(), img.Database.UpdatedAt.Format(time.RFC3339))
	for _, r := range img.Decision.Rules {
		if !r.Passed {
			return fmt.Errorf("rule %s refused: %s", r.Rule, r.Reason)
		}
		s.out.proved("rule %s passed: %s", r.Rule, r.Reason)
	}
	subjects := append(slices.Clone(img.Platforms), pipeline.PlatformImage{Platform: "index", Digest: d})
	for _, p := range subjects {
		if !slices.ContainsFunc(img.Signatures, func(g pipeline.Signature) bool { return g.Image.Digest == p.Digest }) {
			return fmt.Errorf("%s (%s) is not signed", p.Digest, p.Platform)
		}
		if !slices.ContainsFunc(img.Attestations, func(a pipeline.Attestation) bool {
			return a.Image.Digest == p.Digest && a.PredicateType == pipeline.PredicateProvenance
		}) {
			return fmt.Errorf("%s (%s) has no provenance", p.Digest, p.Platform)
		}
	}
	s.out.proved("signed, with provenance: the index and both platforms; %d signatures and %d attestations read back",
		len(img.Signatures), len(img.Attestations))
	want := []string{"1.0.0", "1.0", pipeline.ShaTag(s.run.Commit)}
	if told, err := s.told(ctx); err != nil {
		return err
	} else if !told {
		want = append(want, "1") // it has moved on since, when the story was told before
	}
	if err := s.holds(ctx, s.site.Dev("hello-go"), d, want); err != nil {
		return err
	}
	s.out.proved("tagged in dev: %s", strings.Join(want, ", "))
	s.out.proved("recorded at %s, by run %s from commit %s", img.RecordedAt.Format(time.RFC3339), img.Run, img.Source.Commit)
	return nil
}

// told reports whether 1.1.0 is out already, from a story told before.
func (s *story) told(ctx context.Context) (bool, error) {
	list, err := s.site.Client.Runs(ctx, client.RunsQuery{Project: "hello-go"})
	return slices.ContainsFunc(list.Items, func(r pipeline.Run) bool { return r.Event.Ref == "refs/tags/v1.1.0" }), err
}

// holds asks the registry itself what the tags name.
func (s *story) holds(ctx context.Context, repository string, d pipeline.Digest, tags []string) error {
	for _, t := range tags {
		ref, err := name.NewTag(repository+":"+t, name.Insecure)
		if err != nil {
			return err
		}
		desc, err := remote.Head(ref, remote.WithContext(ctx))
		if err != nil {
			return fmt.Errorf("tag %s: %w", ref, err)
		}
		if desc.Digest.String() != string(d) {
			return fmt.Errorf("tag %s names %s, want %s", ref, desc.Digest, d)
		}
	}
	return nil
}

func (s *story) again(ctx context.Context) error {
	run, err := s.pushRef(ctx, "hello-go", "main", s.run.Commit)
	if err != nil {
		return err
	}
	detail, err := s.follow(ctx, run.ID)
	if err != nil {
		return err
	}
	if detail.State != pipeline.StateSucceeded || *detail.Image != *s.run.Image {
		return fmt.Errorf("run %s %s with %v (%s), want %v", run.ID, detail.State, detail.Image, detail.Reason, s.run.Image)
	}
	s.out.proved("the same digest, without another build")
	return nil
}

func (s *story) refused(ctx context.Context) error {
	run, err := s.pushRef(ctx, "leaky", "main", "")
	if err != nil {
		return err
	}
	detail, err := s.follow(ctx, run.ID)
	if err != nil {
		return err
	}
	if detail.State != pipeline.StateRefused || detail.Decision == nil {
		return fmt.Errorf("run %s %s: %s; want it refused", run.ID, detail.State, detail.Reason)
	}
	refused := map[string]string{}
	for _, r := range detail.Decision.Rules {
		if !r.Passed {
			refused[r.Rule] = r.Reason
			s.out.proved("rule %s refused: %s", r.Rule, r.Reason)
			s.out.say("  what would change it: %s", r.Remedy)
		}
	}
	if !strings.Contains(refused["severity"], "CVE-2024-45337") || refused["non-root"] == "" {
		return fmt.Errorf("the refusal does not name the finding and the rule: %v", refused)
	}
	repo, err := name.NewRepository(s.site.Dev("leaky"), name.Insecure)
	if err != nil {
		return err
	}
	tags, err := remote.List(repo, remote.WithContext(ctx))
	if err != nil {
		return err
	}
	tags = slices.DeleteFunc(tags, func(t string) bool { return strings.HasPrefix(t, "cache-") })
	if len(tags) > 0 {
		return fmt.Errorf("the refused image carries tags: %v", tags)
	}
	s.out.proved("it carries no tag and no signature")
	return nil
}

func (s *story) promote(ctx context.Context) error {
	d := s.run.Image.Digest
	body, err := json.Marshal(map[string]string{"image": string(d), "environment": "prod", "project": "hello-go"})
	if err != nil {
		return err
	}
	s.out.command(fmt.Sprintf(`curl -X POST "$DRAY_URL/api/v1/promotions" -H "Authorization: Bearer $DRAY_TOKEN" -H "Idempotency-Key: demo-%s" \`, d.Short()))
	s.out.say("    --json '%s'", body)
	// The header with the token comes from standard input: arguments can be seen
	// by every user of the machine.
	cmd := exec.CommandContext(ctx, "curl", "--silent", "--show-error", "--fail-with-body", "-X", "POST", s.site.URL+"/api/v1/promotions",
		"-H", "@-", "-H", "Content-Type: application/json", "-H", "Idempotency-Key: demo-"+d.Short(), "--data", string(body))
	cmd.Stdin = strings.NewReader("Authorization: Bearer " + s.site.Token + "\n")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("curl: %w: %s%s", err, stdout.String(), stderr.String())
	}
	var asked struct {
		ID pipeline.PromotionID `json:"id"`
	}
	if err := json.Unmarshal(stdout.Bytes(), &asked); err != nil || asked.ID == "" {
		return fmt.Errorf("the answer names no promotion: %s", stdout.String())
	}
	s.out.proved("accepted as %s", asked.ID)
	waits, err := s.settled(ctx, asked.ID, pipeline.StateWaiting)
	if err != nil {
		return err
	}
	if waits.State == pipeline.StateWaiting {
		s.out.proved("it waits: %s", waits.Reason)
	}
	if err := s.approve(ctx, waits); err != nil {
		return err
	}
	for e, err := range s.site.Client.Follow(ctx, asked.ID.Job(), 0) {
		if err != nil {
			return err
		}
		s.out.event(e)
	}
	if s.promo, err = s.site.Client.Promotion(ctx, asked.ID); err != nil {
		return err
	}
	if s.promo.State != pipeline.StateSucceeded {
		return fmt.Errorf("promotion %s %s: %s", asked.ID, s.promo.State, s.promo.Reason)
	}
	tags := []string{"1.0.0", "1.0", "1", pipeline.ShaTag(s.run.Commit)} // also after the rollback of a story told before
	if err := s.holds(ctx, s.site.Prod("hello-go"), d, tags); err != nil {
		return err
	}
	s.out.proved("prod holds the same digest as %s", strings.Join(tags, ", "))
	return nil
}

func (s *story) verify(ctx context.Context) error {
	img := pipeline.Image{Repository: s.site.Prod("hello-go"), Digest: s.run.Image.Digest}
	s.out.command(fmt.Sprintf("bin/dray verify %s --key %s", img, s.shown(s.site.PublicKey)))
	// No URL and no token: nothing but the key and the registry.
	cmd := exec.CommandContext(ctx, filepath.Join(s.site.Bin, "dray"), "verify", img.String(), "--key", s.site.PublicKey)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NO_COLOR=1"}
	out := s.out.chatter()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("dray verify: %w", err)
	}
	s.out.proved("it verifies in prod, without asking Dray")
	for _, c := range verify.Commands(img, verify.CommandOptions{Key: s.shown(s.site.PublicKey), TrustedRoot: s.shown(s.site.TrustedRoot), PlainHTTP: true}) {
		s.cosign = append(s.cosign, c.String())
	}
	return nil
}

func (s *story) ask(ctx context.Context) error {
	s.out.command("bin/dray package find " + usedPackage + " --promoted")
	cmd := exec.CommandContext(ctx, filepath.Join(s.site.Bin, "dray"), "package", "find", usedPackage, "--promoted")
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NO_COLOR=1", "DRAY_URL=" + s.site.URL, "DRAY_TOKEN=" + s.site.Token}
	out := s.out.chatter()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("dray package find: %w", err)
	}
	uses, err := s.site.Client.Packages(ctx, pipeline.PackageQuery{Name: usedPackage, Promoted: true})
	if err != nil {
		return err
	}
	for _, u := range uses.Items {
		for _, p := range u.Promotions {
			if u.Image.Digest == s.run.Image.Digest && p.Environment == "prod" {
				s.out.proved("%s %s is in %s, in prod since %s, promoted by %s", usedPackage, u.Package.Version,
					u.Image.Digest.Short(), p.At.Format(time.RFC3339), p.RequestedBy)
				return nil
			}
		}
	}
	return errors.New("the answer does not name the image that was promoted to prod")
}

// shown is a path as somebody in the current directory would type it.
func (s *story) shown(path string) string {
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, path); err == nil && !strings.HasPrefix(rel, "..") {
			return rel
		}
	}
	return path
}

// writeEnv writes what a shell needs to go on from here.
func (s *story) writeEnv(d pipeline.Digest) error {
	v := s.site
	text := fmt.Sprintf(`# Written by the demo: ". .demo/env"
export DRAY_URL=%s
export DRAY_TOKEN=%s
export DRAY_APPROVER_TOKEN=%s
export DRAY_PUBLIC_KEY=%s
export DRAY_DEV_REGISTRY=%s
export DRAY_PROD_REGISTRY=%s
export DRAY_DIGEST=%s
export DRAY_GIT_URL=%s
`, v.URL, v.Token, v.Approver, strconv.Quote(v.PublicKey), v.Stack.Dev.Host, v.Stack.Prod.Host, d, v.Stack.Git.URL)
	path := filepath.Join(v.Dir, "env")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	return stack.GiveToInvoker(path)
}
