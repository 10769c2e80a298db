package builder

import (
	"fmt"
	"log/slog"
	"testing"

	"github.com/dray-project/dray/pipeline"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestRank(t *testing.T) {
	var members []Member
	for i := range 5 {
		members = append(members, Member{Address: fmt.Sprintf("tcp://b%d:1234", i), Platforms: []pipeline.Platform{"linux/amd64", "linux/arm64"}})
	}
	load := map[int]int{}
	moved := 0
	for i := range 1000 {
		key := fmt.Sprintf("project-%d", i)
		first := rank(members, key, "linux/amd64")
		load[first[0]]++
		if again := rank(members, key, "linux/amd64"); again[0] != first[0] {
			t.Fatal("the same key has two homes")
		}
		// Without the last member only its own keys move.
		if less := rank(members[:4], key, "linux/amd64"); first[0] != 4 && less[0] != first[0] {
			moved++
		}
	}
	if moved != 0 {
		t.Errorf("%d keys moved that had no need to", moved)
	}
	for i, n := range load {
		if n < 120 || n > 280 {
			t.Errorf("member %d has %d of 1000 keys", i, n)
		}
	}
}

func TestRankNativeFirst(t *testing.T) {
	members := []Member{
		{Address: "a", Platforms: []pipeline.Platform{"linux/amd64", "linux/arm64"}},
		{Address: "b", Platforms: []pipeline.Platform{"linux/arm64"}},
		{Address: "c"},
	}
	for i := range 50 {
		key := fmt.Sprint(i)
		if got := rank(members, key, "linux/arm64")[0]; got != 1 {
			t.Fatalf("linux/arm64 goes to %s", members[got].Address)
		}
		if got := rank(members, key, "linux/amd64")[0]; got != 0 {
			t.Fatalf("linux/amd64 goes to %s", members[got].Address)
		}
	}
}

func platformOf(s string) pipeline.Platform { return pipeline.Platform(s) }
