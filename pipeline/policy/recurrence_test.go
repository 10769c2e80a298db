package policy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/teambition/rrule-go"

	"github.com/dray-project/dray/pipeline"
)

// randomRule makes a rule of RFC 5545 that both evaluators read the same way.
func randomRule(r *rand.Rand) string {
	freq := []string{"DAILY", "WEEKLY", "MONTHLY", "YEARLY"}[r.IntN(4)]
	parts := []string{"FREQ=" + freq}
	maybe := func(p float64, make func() string) {
		if r.Float64() < p {
			parts = append(parts, make())
		}
	}
	list := func(n, low, high int, negative bool) string {
		var out []string
		for range 1 + r.IntN(n) {
			v := low + r.IntN(high-low+1)
			if negative && r.IntN(3) == 0 {
				v = -v
			}
			out = append(out, fmt.Sprint(v))
		}
		slices.Sort(out)
		out = slices.Compact(out) // the library counts what is there twice as two
		return strings.Join(out, ",")
	}
	days := []string{"MO", "TU", "WE", "TH", "FR", "SA", "SU"}
	byDay := func(nth bool) string {
		var out []string
		for range 1 + r.IntN(3) {
			d := days[r.IntN(7)]
			if nth {
				d = fmt.Sprint([]int{1, 2, 3, 4, 5, -1, -2}[r.IntN(7)]) + d
			}
			out = append(out, d)
		}
		return "BYDAY=" + strings.Join(out, ",")
	}
	maybe(0.4, func() string { return fmt.Sprintf("INTERVAL=%d", 1+r.IntN(4)) })
	maybe(0.3, func() string { return "WKST=" + days[r.IntN(7)] })
	maybe(0.3, func() string { return "BYMONTH=" + list(3, 1, 12, false) })
	if freq != "WEEKLY" {
		maybe(0.3, func() string { return "BYMONTHDAY=" + list(4, 1, 31, true) })
	}
	weekNo := false
	if freq == "YEARLY" {
		maybe(0.15, func() string { return "BYYEARDAY=" + list(4, 1, 366, true) })
		if weekNo = r.IntN(6) == 0; weekNo {
			// At the end of years, the library takes weeks for the next year's.
			parts = append(parts, "BYWEEKNO="+list(3, 1, 51, false), byDay(false))
		}
	}
	if !weekNo {
		maybe(0.5, func() string { return byDay((freq == "MONTHLY" || freq == "YEARLY") && r.IntN(2) == 0) })
	}
	maybe(0.2, func() string { return "BYHOUR=" + list(3, 0, 23, false) })
	maybe(0.2, func() string { return "BYMINUTE=" + list(2, 0, 59, false) })
	// In a weekly rule, the library chooses from what is left of the first week.
	if freq != "WEEKLY" && slices.ContainsFunc(parts, func(p string) bool { return strings.HasPrefix(p, "BYDAY") || strings.HasPrefix(p, "BYMONTHDAY") }) {
		maybe(0.2, func() string { return "BYSETPOS=" + list(2, 1, 3, true) })
	}
	switch r.IntN(5) {
	case 0:
		parts = append(parts, fmt.Sprintf("COUNT=%d", 1+r.IntN(20)))
	case 1:
		parts = append(parts, "UNTIL="+time.Date(2020+r.IntN(10), time.Month(1+r.IntN(12)), 1+r.IntN(28), r.IntN(24), 0, 0, 0, time.UTC).Format(untilFormat)+"Z")
	}
	return strings.Join(parts, ";")
}

// synchronised moves a start to the first moment of its rule, as is required.
func synchronised(rule string, start wall, zone *time.Location) (recurrence, bool) {
	for range 2 {
		r, err := parseRecurrence(rule, start, zone)
		if err == nil {
			return r, true
		}
		_, rest, ok := strings.Cut(err.Error(), "the first is ")
		if !ok {
			return r, false
		}
		if start, err = parseWall(rest[:len(wallFormat)]); err != nil {
			return r, false
		}
	}
	return recurrence{}, false
}

// beginnings lists those of a rule up to a moment, in order.
func beginnings(r *recurrence, until time.Time) []time.Time {
	var out []time.Time
	if r.frequency == once {
		return []time.Time{r.instant(r.start)}
	}
	for p := r.period(r.start.day()); ; p += r.interval {
		if from, _ := r.days(p); wall(from)*daySeconds > wall(until.Unix())+2*daySeconds {
			return out
		}
		for _, w := range r.in(p, nil) {
			if at := r.instant(w); !at.After(until) && (r.until.IsZero() || !at.After(r.until)) {
				out = append(out, at.UTC())
			}
		}
	}
}

// TestRecurrenceAgainstLibrary compares thousands of random rules with an
// implementation that is widely used.
func TestRecurrenceAgainstLibrary(t *testing.T) {
	compared, moments := 0, 0
	for seed := range uint64(4000) {
		r := rand.New(rand.NewPCG(seed, 7))
		rule := randomRule(r)
		start := wall(time.Date(2019+r.IntN(6), time.Month(1+r.IntN(12)), 1+r.IntN(28), r.IntN(24), r.IntN(60), 0, 0, time.UTC).Unix())
		ours, ok := synchronised(rule, start, time.UTC)
		if !ok {
			continue // it never comes, or ends before it begins
		}
		option, err := rrule.StrToROption(rule)
		if err != nil {
			t.Fatalf("seed %d: %s: %v", seed, rule, err)
		}
		option.Dtstart = ours.instant(ours.start).UTC()
		theirs, err := rrule.NewRRule(*option)
		if err != nil {
			t.Fatalf("seed %d: %s: %v", seed, rule, err)
		}
		end := option.Dtstart.AddDate(9, 0, 0)
		got, want := beginnings(&ours, end), theirs.Between(option.Dtstart, end, true)
		if !slices.EqualFunc(got, want, time.Time.Equal) {
			t.Fatalf("seed %d: %s from %s: %d moments, the library has %d; first difference %v", seed, rule, option.Dtstart, len(got), len(want), firstDifference(got, want))
		}
		compared++
		moments += len(got)
	}
	t.Logf("%d rules, %d moments", compared, moments)
	if compared < 2000 {
		t.Errorf("only %d rules were compared", compared)
	}
}

func firstDifference(a, b []time.Time) []time.Time {
	for i := range min(len(a), len(b)) {
		if !a[i].Equal(b[i]) {
			return []time.Time{a[i], b[i]}
		}
	}
	return append(slices.Clone(a[min(len(a), len(b)):]), b[min(len(a), len(b)):]...)[:1]
}

func TestLatestIsTheLastOfAll(t *testing.T) {
	zones := []*time.Location{time.UTC, zone(t, "Europe/Zurich"), zone(t, "America/Sao_Paulo"), zone(t, "Pacific/Apia"), zone(t, "Asia/Kathmandu")}
	for seed := range uint64(1500) {
		r := rand.New(rand.NewPCG(seed, 11))
		start := wall(time.Date(2009+r.IntN(12), time.Month(1+r.IntN(12)), 1+r.IntN(28), r.IntN(24), 0, 0, 0, time.UTC).Unix())
		ours, ok := synchronised(randomRule(r), start, zones[r.IntN(len(zones))])
		if !ok {
			continue
		}
		first := ours.instant(ours.start)
		all := beginnings(&ours, first.AddDate(3, 0, 0))
		var seen memo
		for range 20 {
			at := first.Add(time.Duration(r.Int64N(int64(2 * 365 * 24 * time.Hour))))
			back := time.Duration(r.Int64N(int64(maxWindow)))
			var want time.Time
			for _, b := range all {
				if !b.After(at) && b.After(want) {
					want = b
				}
			}
			got, ok := ours.latest(at, back, &seen)
			if at.Sub(want) < back && (!ok || !got.Equal(want)) {
				t.Fatalf("seed %d: before %s it began at %s, not %s (%t)", seed, at, want, got, ok)
			}
			if ok && (got.After(want) || !slices.ContainsFunc(all, got.Equal)) {
				t.Fatalf("seed %d: %s is no beginning", seed, got)
			}
		}
	}
}

func zone(t testing.TB, name string) *time.Location {
	t.Helper()
	z, err := time.LoadLocation(name)
	if err != nil {
		t.Fatal(err)
	}
	return z
}

// A window begins when the clocks of its zone say so, on both sides of a change.
func TestClocksThatChange(t *testing.T) {
	for _, tt := range []struct{ name, zone, wall, want string }{
		{"winter", "Europe/Zurich", "2026-01-15T02:30", "2026-01-15T01:30Z"},
		{"summer", "Europe/Zurich", "2026-07-15T02:30", "2026-07-15T00:30Z"},
		{"shown twice, the first counts", "Europe/Zurich", "2026-10-25T02:30", "2026-10-25T00:30Z"},
		{"skipped, counted by the clock from before", "Europe/Zurich", "2026-03-29T02:30", "2026-03-29T01:30Z"},
		{"first moment after the gap", "Europe/Zurich", "2026-03-29T03:00", "2026-03-29T01:00Z"},
		{"midnight that is skipped", "America/Sao_Paulo", "2018-11-04T00:00", "2018-11-04T03:00Z"},
		{"a day that was skipped", "Pacific/Apia", "2011-12-30T12:00", "2011-12-30T22:00Z"},
		{"UTC", "UTC", "2026-03-29T02:30", "2026-03-29T02:30Z"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, err := parseWall(tt.wall)
			if err != nil {
				t.Fatal(err)
			}
			r := recurrence{zone: zone(t, tt.zone)}
			if got := r.instant(w).UTC().Format("2006-01-02T15:04Z"); got != tt.want {
				t.Errorf("%s in %s is %s, want %s", tt.wall, tt.zone, got, tt.want)
			}
		})
	}
}

func TestRecurrenceRefuses(t *testing.T) {
	start, err := parseWall("2026-01-02T17:00") // a Friday
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ rule, says string }{
		{"FREQ=SECONDLY", "want DAILY, WEEKLY"},
		{"FREQ=MINUTELY;INTERVAL=1", "want DAILY, WEEKLY"},
		{"FREQ=HOURLY", "use DAILY with BYHOUR"},
		{"INTERVAL=2", "FREQ is required"},
		{"FREQ=DAILY;FREQ=DAILY", "each once"},
		{"FREQ=DAILY;", "want parts"},
		{"FREQ=DAILY;INTERVAL=0", "want 1 to 1000"},
		{"FREQ=DAILY;INTERVAL=99999999999999999999", "want 1 to 1000"},
		{"FREQ=DAILY;COUNT=0", "COUNT=0: want 1 to"},
		{"FREQ=DAILY;COUNT=3;UNTIL=20270101", "exclude each other"},
		{"FREQ=DAILY;UNTIL=20250101", "before the start"},
		{"FREQ=DAILY;UNTIL=soon", "want 20270131T170000Z"},
		{"FREQ=DAILY;BYSECOND=1", "not a part that is supported"},
		{"FREQ=DAILY;BYEASTER=1", "not a part that is supported"},
		{"FREQ=WEEKLY;BYDAY=2FR", "for FREQ=MONTHLY"},
		{"FREQ=WEEKLY;BYDAY=XX", "want a day"},
		{"FREQ=WEEKLY;BYDAY=", "want parts"},
		{"FREQ=WEEKLY;BYMONTHDAY=3", "does not go with"},
		{"FREQ=YEARLY;BYWEEKNO=20", "with BYDAY"},
		{"FREQ=MONTHLY;BYYEARDAY=1", "for FREQ=YEARLY"},
		{"FREQ=MONTHLY;BYMONTHDAY=32", "want 1 to 31"},
		{"FREQ=MONTHLY;BYMONTHDAY=0", "want 1 to 31"},
		{"FREQ=DAILY;BYHOUR=-1", "want 0 to 23"},
		{"FREQ=DAILY;BYHOUR=17;BYSETPOS=1;BYMINUTE=0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31,32,33,34,35,36,37,38,39,40,41,42,43,44,45,46,47,48", "49 windows in one day; at most 24"},
		{"FREQ=DAILY;BYSETPOS=1", "needs another BY part"},
		{"FREQ=DAILY;INTERVAL=2;BYSETPOS=1", "needs another BY part"},
		{"FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "never comes"},
		{"FREQ=DAILY;INTERVAL=7;BYDAY=TU", "never comes"},
		{"FREQ=WEEKLY;BYDAY=SA", "the first is 2026-01-03T17:00: let the freeze start then"},
		{"FREQ=WEEKLY;BYHOUR=9", "the first is 2026-01-09T09:00"},
		{strings.Repeat("A", 1001), "at most 1000"},
	} {
		_, err := parseRecurrence(tt.rule, start, time.UTC)
		if !errors.Is(err, pipeline.ErrInvalid) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%.60s: %v, want it to say %q", tt.rule, err, tt.says)
		}
	}
}

// Weeks are numbered as the standard library does where they begin on Monday.
func TestWeekNumbers(t *testing.T) {
	r := recurrence{weekStart: time.Monday}
	for day := dayOf(1999, 1, 1); day < dayOf(2040, 1, 1); day++ {
		at := time.Unix(int64(day)*daySeconds, 0).UTC()
		year, want := at.ISOWeek()
		_, last := time.Date(year, 12, 28, 0, 0, 0, 0, time.UTC).ISOWeek() // is always in the last week
		if n, total := r.weekNumber(day); n != want || total != last {
			t.Fatalf("%s is in week %d of %d, want %d of %d", at.Format(time.DateOnly), n, total, want, last)
		}
	}
}

// No rule, however strange, may take long to refuse or to look at.
func FuzzRecurrence(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(randomRule(rand.New(rand.NewPCG(seed, 3))))
	}
	f.Add("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29;BYDAY=MO;INTERVAL=1000")
	f.Fuzz(func(t *testing.T, rule string) {
		start, _ := parseWall("2026-01-02T17:00")
		r, ok := synchronised(rule, start, time.UTC)
		if ok {
			r.latest(time.Date(2031, 5, 6, 7, 8, 9, 0, time.UTC), maxWindow, &memo{})
		}
	})
}
