package pipeline

import (
	"errors"
	"strings"
	"testing"
	"time"
)

func TestParseDigest(t *testing.T) {
	good := "sha256:" + strings.Repeat("0f", 32)
	if d, err := ParseDigest(good); err != nil || d.Short() != "0f0f0f0f0f0f" {
		t.Errorf("ParseDigest(%q) = %q, %v", good, d, err)
	}
	for _, bad := range []string{"", "sha256:", good[:70], good + "0", strings.ToUpper(good), "sha512:" + strings.Repeat("0", 128),
		"sha256:" + strings.Repeat("0F", 32), "sha256:" + strings.Repeat("zz", 32), " " + good} {
		if _, err := ParseDigest(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseDigest(%q) gave %v, want ErrInvalid", bad, err)
		}
	}
}

func TestParseImage(t *testing.T) {
	d := "sha256:" + strings.Repeat("0f", 32)
	img, err := ParseImage("localhost:5000/a/b@" + d)
	if err != nil || img.Repository != "localhost:5000/a/b" || img.String() != "localhost:5000/a/b@"+d {
		t.Errorf("got %v, %v", img, err)
	}
	for _, bad := range []string{"a/b", "a/b:1.0", "@" + d, "a/b:1.0@" + d, "a/b@sha256:12"} {
		if _, err := ParseImage(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("ParseImage(%q) gave %v, want ErrInvalid", bad, err)
		}
	}
}

func TestNewIDsAreOrderedAndDistinct(t *testing.T) {
	now := time.Now()
	a, b := NewRunID(now), NewRunID(now.Add(time.Millisecond))
	if len(a) != len("run_")+20 || !(a < b) {
		t.Errorf("ids %s and %s: want 20 characters, in order of time", a, b)
	}
	if NewRunID(now) == a {
		t.Error("two ids of one moment are equal")
	}
}
