package postgres

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

func refused(address string) pipeline.Refusal {
	return pipeline.Refusal{Forge: "github", From: netip.MustParseAddr(address), Reason: "the signature does not verify"}
}

// TestRefusalsAreBounded: a flood fills neither the log nor the memory, and
// nothing that was counted is forgotten.
func TestRefusalsAreBounded(t *testing.T) {
	var k refusals
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	entries, counted := 0, 0
	add := func(address string) {
		for _, d := range k.add(now, refused(address)) {
			entries++
			counted += d.count
		}
	}
	const minutes, each = 10, 6000
	for range minutes {
		for i := range each {
			add(fmt.Sprintf("10.%d.%d.%d", i%7, i%251, i%200))
			now = now.Add(time.Minute / each)
		}
		if len(k.kinds) > maxRefusals+1 {
			t.Fatalf("%d kinds are counted", len(k.kinds))
		}
	}
	if most := (minutes + 1) * (maxRefusals + 1); entries > most || entries < minutes {
		t.Errorf("%d refusals made %d entries, want at most %d", minutes*each, entries, most)
	}
	now = now.Add(time.Hour)
	add("10.0.0.1")
	if counted != minutes*each+1 {
		t.Errorf("%d of %d refusals were counted", counted, minutes*each+1)
	}
}

func TestRefusalsByNetwork(t *testing.T) {
	var k refusals
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	for _, x := range []struct {
		after   time.Duration
		from    string
		written int // entries
		count   int // of the last
	}{
		{0, "192.0.2.1", 1, 1},
		{time.Second, "192.0.2.200", 0, 0},               // the same network
		{time.Second, "198.51.100.1", 1, 1},              // another one
		{time.Second, "2001:db8:1::1", 1, 1},             //
		{time.Second, "2001:db8:1:ffff::2", 0, 0},        // the same 48 bits
		{time.Second, "::ffff:192.0.2.7", 0, 0},          // an IPv4 address in another dress
		{time.Minute - 3*time.Second, "192.0.2.1", 1, 3}, // with the two from before
		{time.Second, "192.0.2.1", 1, 1},                 // what was left of IPv6, by the way
	} {
		now = now.Add(x.after)
		due := k.add(now, refused(x.from))
		if len(due) != x.written || (x.written > 0 && due[len(due)-1].count != x.count) {
			t.Errorf("%s at %s: %+v, want %d entries, the last of %d", x.from, now.Format(time.TimeOnly), due, x.written, x.count)
		}
	}
}

// TestRefusalsComeBack: what could not be written is counted with the next.
func TestRefusalsComeBack(t *testing.T) {
	var k refusals
	now := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	k.giveBack(k.add(now, refused("192.0.2.1")))
	if due := k.add(now.Add(time.Second), refused("192.0.2.2")); len(due) != 1 || due[0].count != 2 {
		t.Errorf("due is %+v, want one entry that counts both", due)
	}
}
