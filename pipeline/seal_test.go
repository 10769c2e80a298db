package pipeline

import (
	"errors"
	"strings"
	"testing"
)

func TestSeal(t *testing.T) {
	text := NewSealKey()
	s, err := ParseSeal(text)
	if err != nil {
		t.Fatal(err)
	}
	leaf := []byte(`{"v":1}`)
	seal := s.Of(7, leaf)
	for what, good := range map[string]bool{
		"its own":         s.Good(7, leaf, seal),
		"another number":  !s.Good(8, leaf, seal),
		"another leaf":    !s.Good(7, []byte(`{"v":2}`), seal),
		"no seal":         !s.Good(7, leaf, nil),
		"a seal cut":      !s.Good(7, leaf, seal[:31]),
		"nothing at all":  !s.Good(0, nil, nil),
		"a seal too long": !s.Good(7, leaf, append(seal[:32:32], 0)),
	} {
		if !good {
			t.Error(what)
		}
	}

	// Another key: what the first sealed counts while it is listed.
	next := append([]byte("# since March\n\n"), NewSealKey()...)
	both, err := ParseSeal(append(next, text...))
	if err != nil {
		t.Fatal(err)
	}
	alone, err := ParseSeal(next)
	if err != nil {
		t.Fatal(err)
	}
	if !both.Good(7, leaf, seal) || alone.Good(7, leaf, seal) || !alone.Good(7, leaf, both.Of(7, leaf)) || s.Good(7, leaf, both.Of(7, leaf)) {
		t.Error("keys are not told apart")
	}
}

func TestParseSealRefuses(t *testing.T) {
	good := strings.Repeat("5e", 32)
	for _, text := range []string{"", "\n# only\n", "5e", good[:62], good + "5e", strings.Repeat("zz", 32), good + "\nx"} {
		_, err := ParseSeal([]byte(text))
		if !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", text, err)
		} else if strings.Contains(err.Error(), "5e5e") {
			t.Errorf("%q: the error shows the key: %v", text, err)
		}
	}
}
