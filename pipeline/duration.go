package pipeline

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is written as people do: "90s", "36h", "14d", "1d12h". A day has 24
// hours. It is never negative.
type Duration time.Duration

// Std is the duration as the standard library has it.
func (d Duration) Std() time.Duration { return time.Duration(d) }

// ParseDuration reads "14d", and everything that time.ParseDuration reads but
// negative ones. The error wraps ErrInvalid.
func ParseDuration(s string) (Duration, error) {
	bad := func() (Duration, error) {
		return 0, fmt.Errorf(`duration %.40q: want a number with a unit, such as "90s", "36h" or "14d": %w`, s, ErrInvalid)
	}
	days, rest, ok := strings.Cut(s, "d")
	var out time.Duration
	if ok {
		n, err := strconv.ParseUint(days, 10, 32)
		if err != nil || n > 36500 {
			return bad()
		}
		out = time.Duration(n) * 24 * time.Hour
	} else {
		rest = s
	}
	if rest != "" {
		d, err := time.ParseDuration(rest)
		if err != nil || d < 0 || d > 876000*time.Hour {
			return bad()
		}
		out += d
	} else if !ok {
		return bad()
	}
	return Duration(out), nil
}

func (d Duration) String() string {
	days, rest := time.Duration(d)/(24*time.Hour), time.Duration(d)%(24*time.Hour)
	switch {
	case days == 0:
		return trimZeros(rest.String())
	case rest == 0:
		return fmt.Sprintf("%dd", days)
	}
	return fmt.Sprintf("%dd%s", days, trimZeros(rest.String()))
}

// trimZeros makes "36h" of "36h0m0s".
func trimZeros(s string) string {
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := ParseDuration(string(b))
	*d = v
	return err
}
