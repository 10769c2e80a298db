package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"path"
	"strconv"
	"strings"

	"github.com/dray-project/dray/pipeline"
)

// maker makes a ready-made rule of its arguments.
type maker func(arguments) (func(pipeline.Facts) pipeline.RuleResult, error)

// arguments of a ready-made rule, as they stand in the settings.
type arguments json.RawMessage

// into reads the arguments strictly: what the rule does not know is an error,
// because a misspelt argument would otherwise be a rule that was never asked for.
func (a arguments) into(v any) error {
	if t := bytes.TrimSpace(a); len(t) == 0 || bytes.Equal(t, []byte("null")) {
		return nil
	}
	dec := json.NewDecoder(bytes.NewReader(a))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("with: %s: %w", strings.TrimPrefix(err.Error(), "json: "), pipeline.ErrInvalid)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("with: there is more after the object: %w", pipeline.ErrInvalid)
	}
	return nil
}

// none refuses arguments to a rule that takes none.
func (a arguments) none() error { return a.into(&struct{}{}) }

// byteSize is a number of bytes, or text such as "200MiB" or "1.5GB".
type byteSize int64

func (b *byteSize) UnmarshalJSON(raw []byte) error {
	s := strings.Trim(string(raw), `"`)
	v, err := parseSize(s)
	*b = v
	return err
}

func parseSize(s string) (byteSize, error) {
	number := strings.TrimRight(s, "KMGTabcdefghijklmnopqrstuvwxyzB ")
	unit := strings.TrimSpace(s[len(number):])
	factor, ok := map[string]float64{"": 1, "B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
		"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}[unit]
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || !ok || math.IsNaN(n) || n < 0 || n*factor > 1<<53 || strings.ContainsAny(number, "xXpP_") {
		return 0, fmt.Errorf(`size %.40q: want bytes, or a number with a unit such as "200MiB" or "1.5GB": %w`, s, pipeline.ErrInvalid)
	}
	return byteSize(n * factor), nil
}

func (b byteSize) String() string {
	switch n := float64(b); {
	case b < 1<<10:
		return fmt.Sprintf("%d bytes", int64(b))
	case b < 1<<20:
		return trimNumber(n/(1<<10)) + " KiB"
	case b < 1<<30:
		return trimNumber(n/(1<<20)) + " MiB"
	default:
		return trimNumber(n/(1<<30)) + " GiB"
	}
}

func trimNumber(n float64) string {
	return strings.TrimSuffix(strconv.FormatFloat(n, 'f', 1, 64), ".0")
}

// globs are patterns of names: "*" stands for anything but a slash, "?" for one
// character, "**" at the end for everything below.
type globs []string

func (g globs) check(what string) error {
	for _, p := range g {
		if p == "" || len(p) > 256 {
			return fmt.Errorf("%s: %.60q is not a pattern of 1 to 256 characters: %w", what, p, pipeline.ErrInvalid)
		}
		if _, err := path.Match(strings.TrimSuffix(p, "**"), ""); err != nil {
			return fmt.Errorf("%s: pattern %.60q: %w: %w", what, p, err, pipeline.ErrInvalid)
		}
	}
	return nil
}

func (g globs) match(s string) bool {
	for _, p := range g {
		if globMatch(p, s) {
			return true
		}
	}
	return false
}

func globMatch(pattern, s string) bool {
	if pattern == "**" {
		return s != ""
	}
	if dir, ok := strings.CutSuffix(pattern, "/**"); ok {
		// As many leading elements as the pattern has, and at least one more.
		parts := strings.Split(s, "/")
		n := strings.Count(dir, "/") + 1
		if len(parts) <= n {
			return false
		}
		pattern, s = dir, strings.Join(parts[:n], "/")
	}
	ok, err := path.Match(pattern, s)
	return err == nil && ok
}
