package pipeline

import (
	"fmt"
	"slices"
	"testing"
)

func TestVersionOfRef(t *testing.T) {
	for ref, want := range map[string]string{
		"refs/tags/v1.2.3":        "1.2.3",
		"refs/tags/1.2.3":         "1.2.3",
		"refs/tags/v1.2.3-rc.1":   "1.2.3-rc.1",
		"refs/tags/v1.2.3+build5": "1.2.3",
		"refs/tags/v1.2":          "",
		"refs/tags/vv1.2.3":       "",
		"refs/tags/v01.2.3":       "",
		"refs/tags/release":       "",
		"refs/heads/v1.2.3":       "",
		"":                        "",
	} {
		if got, _ := VersionOfRef(ref); got != want {
			t.Errorf("VersionOfRef(%q) = %q, want %q", ref, got, want)
		}
	}
}

func TestWantedTags(t *testing.T) {
	const commit = "0123456789abcdef0123456789abcdef01234567"
	for _, tt := range []struct {
		versions []string
		latest   bool
		want     []string
	}{
		{nil, true, []string{"sha-0123456789ab"}},
		{[]string{"1.2.3"}, false, []string{"sha-0123456789ab", "1.2.3", "1.2", "1"}},
		{[]string{"1.2.3"}, true, []string{"sha-0123456789ab", "1.2.3", "1.2", "1", "latest"}},
		{[]string{"1.2.3-rc.1"}, true, []string{"sha-0123456789ab", "1.2.3-rc.1"}},
		{[]string{"0.2.3"}, false, []string{"sha-0123456789ab", "0.2.3", "0.2"}},
		{[]string{"1.2.3", "1.3.0"}, false, []string{"sha-0123456789ab", "1.3.0", "1.2.3", "1.3", "1", "1.2"}},
	} {
		t.Run(fmt.Sprint(tt.versions, tt.latest), func(t *testing.T) {
			tags, err := wantedTags(commit, tt.versions, tt.latest)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, tag := range tags {
				got = append(got, tag.name)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
	if _, err := wantedTags(commit, []string{"one"}, false); !IsPermanent(err) {
		t.Errorf("a version that does not parse gave %v, want a permanent error", err)
	}
}
