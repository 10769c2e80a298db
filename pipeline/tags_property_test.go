package pipeline_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/Masterminds/semver/v3"

	"github.com/dray-project/dray/pipeline"
)

// TestTagsFollowTheHighestRelease releases versions in any order. After each
// one, every floating tag names the highest release that it can name, whichever
// came when, and no full version has moved.
func TestTagsFollowTheHighestRelease(t *testing.T) {
	for seed := range uint64(40) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			b := setup(t)
			digests := map[string]pipeline.Digest{}
			var released []*semver.Version
			for n := range 12 {
				text := fmt.Sprintf("%d.%d.%d", r.IntN(3), r.IntN(3), r.IntN(3))
				if r.IntN(4) == 0 {
					text += fmt.Sprintf("-rc.%d", r.IntN(3))
				}
				if digests[text] != "" {
					continue
				}
				run := b.release(text, fmt.Sprintf("%02x%038x", n+1, 0))
				digests[text] = run.Image.Digest
				released = append(released, semver.MustParse(text))
				checkTags(t, b.TagsOf(devRepo), released, digests)
			}
		})
	}
}

func checkTags(t *testing.T, have map[string]pipeline.Digest, released []*semver.Version, digests map[string]pipeline.Digest) {
	t.Helper()
	want := map[string]*semver.Version{}
	offer := func(tag string, v *semver.Version) {
		if want[tag] == nil || v.GreaterThan(want[tag]) {
			want[tag] = v
		}
	}
	for _, v := range released {
		if have[v.Original()] != digests[v.Original()] {
			t.Errorf("%s moved to %s", v, have[v.Original()])
		}
		if v.Prerelease() != "" {
			continue
		}
		offer("latest", v)
		offer(fmt.Sprintf("%d.%d", v.Major(), v.Minor()), v)
		if v.Major() > 0 {
			offer(fmt.Sprint(v.Major()), v)
		}
	}
	for tag, v := range want {
		if have[tag] != digests[v.Original()] {
			t.Errorf("after %v, %s does not name %s", released, tag, v)
		}
	}
	if _, ok := have["0"]; ok {
		t.Error("a major of 0 has a tag")
	}
}
