package pipeline

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

func TestEntryLeaf(t *testing.T) {
	e := Entry{Version: EntryVersion, Kind: EntryTagMoved, At: time.Date(2026, 3, 1, 13, 0, 0, 123456789, time.FixedZone("x", 3600)),
		Project: "app", Actor: "rita", Subject: "prm_1", Data: json.RawMessage("{ \"tag\": \"1.0\", \"html\": \"<&>\" }"),
		Rows: []EntryRow{{Table: "tags", Key: "a/b:1.0", Form: 1, Digest: "sha256:00"}}}
	leaf, err := e.Leaf()
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"v":1,"kind":"tag.moved","at":"2026-03-01T12:00:00.123456Z","project":"app","actor":"rita","subject":"prm_1","data":{"tag":"1.0","html":"<&>"},"rows":[{"table":"tags","key":"a/b:1.0","form":1,"digest":"sha256:00"}]}`
	if string(leaf) != want {
		t.Fatalf("leaf is\n%s, want\n%s", leaf, want)
	}
	again, err := ParseEntry(leaf)
	if err != nil {
		t.Fatal(err)
	}
	if twice, err := again.Leaf(); err != nil || string(twice) != want {
		t.Errorf("parsed and written again it is %s, %v", twice, err)
	}
	for what, bad := range map[string]string{
		"a space":               strings.Replace(want, `"v":1,`, `"v": 1,`, 1),
		"another order":         strings.Replace(want, `"v":1,"kind":"tag.moved",`, `"kind":"tag.moved","v":1,`, 1),
		"an unknown member":     strings.Replace(want, `"v":1,`, `"v":1,"x":1,`, 1),
		"another version":       strings.Replace(want, `"v":1,`, `"v":2,`, 1),
		"a member twice":        strings.Replace(want, `"v":1,`, `"v":1,"v":1,`, 1),
		"a time in a zone":      strings.Replace(want, "12:00:00.123456Z", "13:00:00.123456+01:00", 1),
		"more after it":         want + "{}",
		"an escape for nothing": strings.Replace(want, "rita", `\u0072ita`, 1),
	} {
		if _, err := ParseEntry([]byte(bad)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", what, err)
		}
	}
}
