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
	"strings"

	"github.com/dray-project/dray/pipeline/evidence"
)

// cve asks what an auditor asks first when a vulnerability is in the news.
func (s *story) cve(ctx context.Context) error {
	if _, err := s.dray(ctx, s.site.Token, true, "audit", "cve", highFinding, "--project", "hello-go"); err != nil {
		return err
	}
	out, err := s.dray(ctx, s.site.Token, false, "audit", "cve", highFinding, "--project", "hello-go", "-o", "jsonl")
	if err != nil {
		return err
	}
	if !strings.Contains(out, string(s.later.Image.Digest)) {
		return fmt.Errorf("the answer does not name %s, which has %s", s.later.Image.Digest, highFinding)
	}
	s.out.proved("%s is in hello-go 1.1.0, with who accepted it and until when", highFinding)
	return nil
}

// prove takes everything about the image in prod to where there is no network.
func (s *story) prove(ctx context.Context) error {
	d := s.run.Image.Digest
	bundle := filepath.Join(s.site.Dir, "hello-go.evidence.tar")
	if _, err := s.dray(ctx, s.site.Token, true, "evidence", string(d), "--project", "hello-go", "-o", s.shown(bundle)); err != nil {
		return err
	}
	check := []string{"verify", "--bundle", bundle, "--key", s.site.PublicKey, "--log-key", s.site.LogKey, "--image", string(d), "--environment", "prod"}
	alone := s.alone(ctx)
	out, err := s.offline(ctx, alone, append(check, "-o", "json")...)
	if err != nil {
		return err
	}
	var result evidence.Result
	if err := json.Unmarshal(out, &result); err != nil {
		return fmt.Errorf("dray verify --bundle: %w", err)
	}
	s.out.command(fmt.Sprintf("%sbin/dray verify --bundle %s --key %s --log-key %s --environment prod", strings.Join(append(alone, ""), " "),
		s.shown(bundle), s.shown(s.site.PublicKey), s.shown(s.site.LogKey)))
	passed := 0
	for _, c := range result.Claims {
		if c.Status == evidence.Pass {
			passed++
		}
		// The rest is for who runs the command.
		if c.Claim == "provenance" && c.About == "index" || c.Claim == "approvals" && strings.HasPrefix(c.About, "prod") || c.Claim == "inventory" ||
			c.Claim == "decision" && strings.HasPrefix(c.About, "prod") || c.About == evidence.CheckpointName {
			s.out.say("%-11s %-11s %s: %s", c.Status, c.Claim, c.About, c.Detail)
		}
	}
	if !result.Passed || passed < 30 {
		return fmt.Errorf("%d claims passed: %+v", passed, result.Failed())
	}
	how := "without asking Dray"
	if len(alone) > 0 {
		how = "where there is no network"
	}
	s.out.proved("%d claims about the image in prod were checked %s", passed, how)

	raw, err := os.ReadFile(bundle)
	if err != nil {
		return err
	}
	if len(s.promo.Approvals) == 0 {
		return errors.New("the promotion to prod was not approved")
	}
	by := s.promo.Approvals[0].By
	other := strings.Repeat("x", len(by))
	changed := bytes.ReplaceAll(raw, []byte(`"by": "`+by+`"`), []byte(`"by": "`+other+`"`))
	if bytes.Equal(changed, raw) {
		return fmt.Errorf("the bundle does not say that %s approved", by)
	}
	forged := filepath.Join(s.site.Dir, "forged.evidence.tar")
	if err := os.WriteFile(forged, changed, 0o644); err != nil {
		return err
	}
	defer os.Remove(forged) //nolint:errcheck // it is in the demo's own directory
	check[2] = forged
	if _, err := s.offline(ctx, alone, check...); exit(err) != 6 {
		return fmt.Errorf("a bundle with another approver was not refused: %w", err)
	}
	s.out.proved("with another name for who approved, it is refused")
	return nil
}

// alone is what runs a program without a network, if this machine can.
func (s *story) alone(ctx context.Context) []string {
	if exec.CommandContext(ctx, "unshare", "-n", "true").Run() != nil {
		return nil
	}
	return []string{"unshare", "-n"}
}

// offline runs dray without the address of a server or a token.
func (s *story) offline(ctx context.Context, alone []string, args ...string) ([]byte, error) {
	words := append(append([]string{}, alone...), append([]string{filepath.Join(s.site.Bin, "dray")}, args...)...)
	cmd := exec.CommandContext(ctx, words[0], words[1:]...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "NO_COLOR=1"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.Bytes(), nil
}

// rewrite changes history in the database, as somebody with its password could.
func (s *story) rewrite(ctx context.Context) error {
	state := filepath.Join(s.site.Dir, "log-state")
	verify := []string{"log", "verify", "--key", s.shown(s.site.LogKey), "--state", s.shown(state)}
	if _, err := s.dray(ctx, s.site.Token, true, verify...); err != nil {
		return err
	}
	if len(s.promo.Approvals) == 0 {
		return errors.New("the promotion to prod was not approved")
	}
	by, id := s.promo.Approvals[0].By, string(s.promo.ID)
	set := func(name string) error {
		dsn, err := s.site.Stack.Postgres.Database(ctx, "dray")
		if err != nil {
			return err
		}
		sql := fmt.Sprintf("UPDATE approvals SET author = '%s' WHERE promotion = '%s'", name, id)
		s.out.command(`psql dray -c "` + sql + `"`)
		out, err := exec.CommandContext(ctx, "psql", dsn, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql).CombinedOutput()
		if err != nil {
			return fmt.Errorf("psql: %w: %s", err, strings.TrimSpace(string(out)))
		}
		return nil
	}
	if err := set("somebody-else"); err != nil {
		return err
	}
	out, err := s.dray(ctx, s.site.Token, true, verify...)
	back := set(by)
	if exit(err) != 6 || !strings.Contains(out, "row approvals/") {
		return errors.Join(fmt.Errorf("a row that was changed was not noticed: %w", err), back)
	}
	s.out.proved("the log names the row that was changed")
	if back != nil {
		return back
	}
	if _, err := s.dray(ctx, s.site.Token, false, verify...); err != nil {
		return err
	}
	s.out.proved("put back, every row is again what the log says")
	return nil
}
