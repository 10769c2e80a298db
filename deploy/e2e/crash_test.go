//go:build linux

package e2e

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// slowBuild takes some seconds in a step, so that something can happen to it.
const slowBuild = `FROM {{base/busybox}}
RUN echo begun; sleep 4; echo "built at the %s try" > /result
USER 65532
`

// stepBegun is when the slow step has said its first line.
func stepBegun(e pipeline.JobEvent) bool {
	return e.Kind == pipeline.KindLog && e.Log != nil && e.Log.Text == "begun"
}

func TestKillDuringBuild(t *testing.T) {
	need(t)
	w := repository(t, "slow", map[string]string{"Dockerfile": strings.ReplaceAll(slowBuild, "%s", "first")})
	run, _ := push(t, w, "v1.0.0")
	reached(t, run.ID.Job(), "its build step said anything", stepBegun)
	kill(t)
	killed := time.Now()

	events := finished(t, run.ID.Job())
	d := succeeded(t, run.ID)
	if n := attempts(events, pipeline.StageBuild); n != 2 {
		t.Errorf("the build was attempted %d times, want 2", n)
	}
	for _, e := range events {
		if stageStarted(pipeline.StageBuild)(e) && e.Attempt == 2 && e.Time.Sub(killed) > 5*time.Second {
			t.Errorf("the run was taken up %s after the restart, want 5 s at most", e.Time.Sub(killed))
		}
	}
	img, err := at.Client.Image(t.Context(), d.Image.Digest, "slow")
	if err != nil || img.Run != run.ID {
		t.Fatalf("the image is recorded as %+v, %v", img.Run, err)
	}
	verified(t, *d.Image)
	verified(t, pipeline.Image{Repository: d.Image.Repository, Digest: img.Platforms[0].Digest})
}

func TestKillDuringPromotion(t *testing.T) {
	need(t)
	blob := make([]byte, 48<<20)
	if _, err := rand.Read(blob); err != nil {
		t.Fatal(err)
	}
	w := repository(t, "big", map[string]string{
		"Dockerfile": "FROM {{base/busybox}}\nCOPY blob /blob\nUSER 65532\n", "blob": string(blob)})
	d := released(t, w, "v1.0.0")

	// Every stage of a promotion is interrupted once, each in a promotion of its
	// own; the first of them is in the middle of the transfer.
	for _, stage := range []pipeline.Stage{pipeline.StageCopy, pipeline.StageGate, pipeline.StageConfirm, pipeline.StageRecord, pipeline.StageTag} {
		t.Run(string(stage), func(t *testing.T) {
			p, err := at.Client.Promote(t.Context(), pipeline.PromotionRequest{Image: string(d.Image.Digest), Environment: "prod"})
			if err != nil {
				t.Fatal(err)
			}
			reached(t, p.ID.Job(), string(stage), stageStarted(stage))
			kill(t)
			finished(t, p.ID.Job())
			got, err := at.Client.Promotion(t.Context(), p.ID)
			if err != nil {
				t.Fatal(err)
			}
			if got.State != pipeline.StateSucceeded || got.Destination == nil {
				t.Fatalf("promotion %s: %s", got.State, got.Reason)
			}
			verified(t, *got.Destination)
			for _, tag := range got.Tags {
				if !tag.Held {
					t.Errorf("tag %s: %s", tag.Tag, tag.Note)
				}
			}
		})
	}
}

// TestDrain: SIGTERM in the middle of a build ends drayd well before the build
// does, and the run goes on when drayd is back, without costing an attempt.
func TestDrain(t *testing.T) {
	need(t)
	w := repository(t, "drained", map[string]string{"Dockerfile": strings.ReplaceAll(slowBuild, "sleep 4", "sleep 8")})
	run, _ := push(t, w, "v1.0.0")
	reached(t, run.ID.Job(), "its build step said anything", stepBegun)
	began := time.Now()
	if err := at.Stack.StopDaemon(t.Context(), "drayd"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("drayd took %s to stop", took)
	}
	log, err := os.ReadFile(filepath.Join(at.Dir, "log", "drayd.log"))
	if err != nil || !strings.Contains(string(log), "drayd is down") {
		t.Errorf("drayd did not say good-bye (%v)", err)
	}
	if err := at.StartDrayd(t.Context()); err != nil {
		t.Fatal(err)
	}
	finished(t, run.ID.Job())
	verified(t, *succeeded(t, run.ID).Image)
}

// TestFrozenWorker: a drayd that stands still for a while is not taken for dead
// by itself, and ends its run once it goes on.
func TestFrozenWorker(t *testing.T) {
	need(t)
	w := repository(t, "moved", map[string]string{"Dockerfile": strings.ReplaceAll(slowBuild, "sleep 4", "sleep 2")})
	run, _ := push(t, w, "v1.0.0")
	reached(t, run.ID.Job(), "its build step said anything", stepBegun)
	if err := at.Stack.Kill("drayd", syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second)
	if err := at.Stack.Kill("drayd", syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	finished(t, run.ID.Job())
	verified(t, *succeeded(t, run.ID).Image)
}
