package pipeline_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/pipelinetest"
)

const commitC = "cccccccccccccccccccccccccccccccccccccccc"

func keys(k ...uint64) []byte {
	var out []byte
	for _, k := range k {
		out = binary.BigEndian.AppendUint64(out, k)
	}
	return out
}

func TestChangesTouch(t *testing.T) {
	changed := pipeline.Changes{Keys: keys(1, 5, 9, 1<<63)}
	for _, c := range []struct {
		keys []byte
		want bool
	}{
		{keys(1, 5), true}, {keys(1, 2, 3, 9), true}, {keys(1, 1<<63), true}, {keys(1, 4, 6, 10), false}, {keys(1), false}, {keys(1, 1), false},
		// Of another form, or of none at all.
		{keys(2, 4), true}, {nil, true}, {[]byte{1, 2, 3}, true}, {append(keys(1, 4), 0), true},
	} {
		if got := changed.Touch(c.keys); got != c.want {
			t.Errorf("touches %x: %t, want %t", c.keys, got, c.want)
		}
	}
	if !(pipeline.Changes{All: true}).Touch(keys(1)) || !(pipeline.Changes{}).Touch(keys(1)) || (pipeline.Changes{Keys: keys(1)}).Touch(keys(1, 2)) {
		t.Error("everything, nothing known, and nothing changed")
	}
}

// held has commitA in prod and in staging, commitB in no environment, and commitC
// in staging before: nothing of it changes.
func held(t *testing.T) (*bundle, *pipelinetest.Rematches) {
	t.Helper()
	tolerant := staging()
	tolerant.Gate.IgnoreUnfixed = true
	b := setupWith(t, tolerant, pipeline.Environment{Name: "prod", Repository: prodRepo, Gate: criticalOnly})
	b.Untouched = []string{commitC}
	b.Findings[commitA] = []pipeline.Finding{{ID: "CVE-2026-0001", Severity: pipeline.SeverityLow, Package: "lib", Version: "1"}}
	b.release("1.1.0", commitB)
	c := b.release("0.9.0", commitC)
	a := b.release("1.0.0", commitA)
	b.wantState(b.ask(to(c.Image.Digest, "staging")), pipeline.StateSucceeded)
	b.wantState(b.ask(to(a.Image.Digest, "staging")), pipeline.StateSucceeded)
	b.wantState(b.ask(to(a.Image.Digest, "prod")), pipeline.StateSucceeded)
	return b, pipelinetest.NewRematches(b.Store)
}

// newDatabase knows a critical vulnerability without a fix, and withdraws another.
func newDatabase(b *bundle) {
	bad := pipeline.Finding{ID: "CVE-2026-0002", Severity: pipeline.SeverityCritical, Package: "lib", Version: "1"}
	b.Findings[commitA], b.Findings[commitB] = []pipeline.Finding{bad}, []pipeline.Finding{bad}
	b.SetDatabase("second")
}

func wantRematched(t *testing.T, b *bundle, r *pipelinetest.Rematches, pass pipeline.RematchPass) {
	t.Helper()
	// Two platforms each: A has one finding more and one less, B one more.
	want := pipeline.RematchPass{ID: pass.ID, Database: pass.Database, StartedAt: pass.StartedAt, FinishedAt: pass.FinishedAt,
		Images: 3, Unaffected: 1, Changed: 2, Appeared: 4, Gone: 2, Refused: 1}
	if pass != want || pass.FinishedAt == nil {
		t.Errorf("the pass is\n%+v, want\n%+v", pass, want)
	}
	for _, rec := range b.Store.Images() {
		now, err := r.CurrentFindings(t.Context(), rec.Run)
		if err != nil || len(now) != 2 || !slices.Equal(now[0], b.Findings[rec.Built.Source.Commit]) {
			t.Errorf("commit %s has %+v now, want %+v: %v", rec.Built.Source.Commit, now, b.Findings[rec.Built.Source.Commit], err)
		}
	}
	notices := r.Notices()
	if len(notices) != 1 {
		t.Fatalf("owners were told %d times, want once: %+v", len(notices), notices)
	}
	n := notices[0]
	var data struct {
		Passed, PassedBefore bool
		Reason               string
		Findings             []pipeline.Finding
	}
	if err := json.Unmarshal(n.Data, &data); err != nil {
		t.Fatal(err)
	}
	if n.Event != pipeline.NoticeFindings || n.Project != "app" || n.Environment != "prod" || n.Image == nil || !strings.Contains(n.Summary, "CVE-2026-0002") ||
		data.Passed || !data.PassedBefore || len(data.Findings) != 1 || data.Reason == "" {
		t.Errorf("owners were told %+v, %+v", n, data)
	}
	if v := r.Verdicts(); len(v) != 2 {
		t.Errorf("%d gates were asked again, want staging's and prod's: %+v", len(v), v)
	}
}

// TestRematchThroughCrashes: wherever a pass fails or dies, the next ones bring
// it to the same end, and nobody is told twice.
func TestRematchThroughCrashes(t *testing.T) {
	b, r := held(t)
	newDatabase(b)
	b.Faults.Arm(0, 0)
	scans := func() (n int) {
		for _, e := range b.Faults.Trace() {
			if strings.HasPrefix(e, "scanner.") || strings.HasPrefix(e, "registry.") {
				n++
			}
		}
		return n
	}
	pass, err := b.p.Rematch(t.Context(), b.Rematcher(), r)
	if err != nil {
		t.Fatal(err)
	}
	if n := scans(); n != 0 {
		t.Errorf("matching again has read images: %v", b.Faults.Trace())
	}
	effects := b.Faults.Trace()
	wantRematched(t, b, r, pass)
	b.Faults.Arm(0, 0)
	if again, err := b.p.Rematch(t.Context(), b.Rematcher(), r); err != nil || again != pass || len(b.Faults.Trace()) != 2 {
		t.Errorf("a second pass with the same database: %+v, %v, %v", again, err, b.Faults.Trace())
	}
	for n := 1; n <= len(effects); n++ {
		for _, mode := range pipelinetest.Modes() {
			t.Run(fmt.Sprintf("%03d %s %s", n, effects[n-1], mode), func(t *testing.T) {
				b, r := held(t)
				newDatabase(b)
				b.Faults.Arm(n, mode)
				if _, err := b.p.Rematch(t.Context(), b.Rematcher(), r); err == nil {
					t.Fatal("the fault was not felt")
				}
				b.Faults.Arm(0, 0)
				b.Faults.Restart()
				b.p = b.newPipeline()
				pass, err := b.p.Rematch(t.Context(), b.Rematcher(), r)
				if err != nil {
					t.Fatal(err)
				}
				wantRematched(t, b, r, pass)
			})
		}
	}
}

// TestRematchScansWhatIsNotKept: images from before analyses were kept are
// scanned once, and one that cannot be is said to have failed.
func TestRematchScansWhatIsNotKept(t *testing.T) {
	b, r := held(t)
	r.ForgetAnalyses()
	newDatabase(b)
	for _, rec := range b.Store.Images() {
		if rec.Built.Source.Commit == commitB {
			b.Forget(pipeline.Image{Repository: devRepo, Digest: rec.Built.Platforms[0].Digest})
		}
	}
	pass, err := b.p.Rematch(t.Context(), b.Rematcher(), r)
	if err != nil || pass.Scanned != 2 || pass.Failed != 1 || pass.Images != 3 || pass.Changed != 1 {
		t.Fatalf("pass without analyses: %+v, %v", pass, err)
	}
	b.SetDatabase("third")
	pass, err = b.p.Rematch(t.Context(), b.Rematcher(), r)
	if err != nil || pass.Scanned != 0 || pass.Failed != 1 || pass.Unaffected != 1 {
		t.Fatalf("the pass after that: %+v, %v", pass, err)
	}
}

// TestRematchDoesNotTellOfWhatDoesNotCount: an exception speaks for the finding.
func TestRematchDoesNotTellOfWhatDoesNotCount(t *testing.T) {
	b, r := held(t)
	newDatabase(b)
	b.Store.Exceptions = []pipeline.Exception{{ID: "exc_1", Project: "app", Environment: "prod", Finding: "CVE-2026-0002", Reason: "not reachable", Author: "ann",
		ExpiresAt: b.now.AddDate(1, 0, 0)}}
	pass, err := b.p.Rematch(t.Context(), b.Rematcher(), r)
	if err != nil || pass.Refused != 0 || pass.Changed != 2 || len(r.Notices()) != 0 {
		t.Fatalf("with an exception: %+v, %v, %+v", pass, err, r.Notices())
	}
}

// TestRematchLeavesNewerRecordsAlone: an image that was recorded again meanwhile
// was scanned with today's database.
func TestRematchLeavesNewerRecordsAlone(t *testing.T) {
	b, r := held(t)
	newDatabase(b)
	moved := &interrupt{RematchStore: r, before: func() { b.release("1.2.0", commitB) }}
	pass, err := b.p.Rematch(t.Context(), b.Rematcher(), moved)
	if err != nil || pass.Images != 2 {
		t.Fatalf("%+v, %v", pass, err)
	}
}

// interrupt does something right before matches that concern images in no
// environment are recorded.
type interrupt struct {
	pipeline.RematchStore
	before func()
}

func (i *interrupt) Unmatched(ctx context.Context, database pipeline.Digest, held bool, after string, limit int) ([]pipeline.Matchable, error) {
	list, err := i.RematchStore.Unmatched(ctx, database, held, after, limit)
	if !held && i.before != nil {
		i.before()
		i.before = nil
	}
	return list, err
}
