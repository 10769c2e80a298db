package policy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Limits of a recurrence rule.
const (
	maxRuleLength = 1000
	maxInterval   = 1000
	maxCount      = 5000
	maxTimes      = 24                    // windows in one day
	maxYears      = 100                   // that are looked at for the first and the last window
	firstYear     = 1970                  // of a start
	lastYear      = 2200                  // of a start
	wallFormat    = "2006-01-02T15:04"    // of a start
	untilFormat   = "20060102T150405"     // of UNTIL
	wallSeconds   = "2006-01-02T15:04:05" // of a start, with seconds
)

func parseWall(s string) (wall, error) {
	for _, format := range []string{wallFormat, wallSeconds} {
		if t, err := time.Parse(format, s); err == nil && t.Year() >= firstYear && t.Year() <= lastYear {
			return wall(t.Unix()), nil
		}
	}
	return 0, fmt.Errorf(`%.60q: want a date and a time without a zone, such as "2026-12-20T17:00": %w`, s, pipeline.ErrInvalid)
}

// parseRecurrence reads the rule of a freeze. An empty one stands for a single
// window.
func parseRecurrence(rule string, start wall, zone *time.Location) (recurrence, error) {
	y, m, d := date(start.day())
	r := recurrence{zone: zone, start: start, interval: 1, weekStart: time.Monday}
	second := int(mod(int64(start), daySeconds))
	if rule == "" {
		return r, nil
	}
	count, err := r.parse(rule)
	if err != nil {
		return r, err
	}
	if r.times == nil {
		r.times = []int{second}
	}
	// What the rule does not say, the start does.
	if len(r.byWeekNo)+len(r.byYearDay)+len(r.byMonthDay)+len(r.byDay) == 0 {
		switch r.frequency {
		case yearly:
			if len(r.byMonth) == 0 {
				r.byMonth = []int{int(m)}
			}
			r.byMonthDay = []int{d}
		case monthly:
			r.byMonthDay = []int{d}
		case weekly:
			r.byDay = []nthDay{{day: weekday(start.day())}}
		}
	}
	first, ok := r.first(y)
	if !ok {
		return r, fmt.Errorf("%.200q never comes: %w", rule, pipeline.ErrInvalid)
	}
	if first != start {
		return r, fmt.Errorf("start %s is not one of the moments of %.200q; the first is %s: let the freeze start then: %w",
			format(start), rule, format(first), pipeline.ErrInvalid)
	}
	if count > 0 {
		r.until = r.nth(count, y)
	}
	if !r.until.IsZero() && r.until.Before(r.instant(start)) {
		return r, fmt.Errorf("UNTIL is before the start: %w", pipeline.ErrInvalid)
	}
	return r, nil
}

func format(w wall) string { return time.Unix(int64(w), 0).UTC().Format(wallFormat) }

func (r *recurrence) first(year int) (wall, bool) {
	for p, end := r.period(r.start.day()), r.period(dayOf(year+maxYears, 1, 1)); p < end; p += r.interval {
		if list := r.in(p, nil); len(list) > 0 {
			return list[0], true
		}
	}
	return 0, false
}

// nth is the moment of the nth window; zero when it is farther away than anybody
// looks.
func (r *recurrence) nth(n, year int) time.Time {
	for p, end := r.period(r.start.day()), r.period(dayOf(year+maxYears, 1, 1)); p < end; p += r.interval {
		list := r.in(p, nil)
		if n <= len(list) {
			return r.instant(list[n-1])
		}
		n -= len(list)
	}
	return time.Time{}
}

// parse reads the parts of a rule; count is 0 where it has none.
func (r *recurrence) parse(rule string) (count int, err error) {
	bad := func(format string, args ...any) (int, error) {
		return 0, fmt.Errorf(format+": %w", append(args, pipeline.ErrInvalid)...)
	}
	if len(rule) > maxRuleLength {
		return bad("a rule of %d characters; at most %d are allowed", len(rule), maxRuleLength)
	}
	var hours, minutes []int
	seen := map[string]bool{}
	for part := range strings.SplitSeq(strings.ToUpper(strings.TrimPrefix(rule, "RRULE:")), ";") {
		name, value, ok := strings.Cut(part, "=")
		if !ok || value == "" || seen[name] {
			return bad(`%.60q: want parts such as FREQ=WEEKLY, each once, with ";" between them`, part)
		}
		seen[name] = true
		switch name {
		case "FREQ":
			frequencies := map[string]frequency{"DAILY": daily, "WEEKLY": weekly, "MONTHLY": monthly, "YEARLY": yearly}
			if r.frequency, ok = frequencies[value]; !ok {
				return bad("FREQ=%.20s: want DAILY, WEEKLY, MONTHLY or YEARLY; for several windows in a day, use DAILY with BYHOUR", value)
			}
		case "INTERVAL":
			r.interval, err = number(value, 1, maxInterval)
		case "COUNT":
			count, err = number(value, 1, maxCount)
		case "UNTIL":
			r.until, err = r.parseUntil(value)
		case "WKST":
			var d nthDay
			if d, err = parseDay(value); err == nil && d.n != 0 {
				err = fmt.Errorf("want a day such as MO: %w", pipeline.ErrInvalid)
			}
			r.weekStart = d.day
		case "BYMONTH":
			r.byMonth, err = numbers(value, 1, 12, false)
		case "BYMONTHDAY":
			r.byMonthDay, err = numbers(value, 1, 31, true)
		case "BYYEARDAY":
			r.byYearDay, err = numbers(value, 1, 366, true)
		case "BYWEEKNO":
			r.byWeekNo, err = numbers(value, 1, 53, true)
		case "BYSETPOS":
			r.bySetPos, err = numbers(value, 1, 366, true)
		case "BYHOUR":
			hours, err = numbers(value, 0, 23, false)
		case "BYMINUTE":
			minutes, err = numbers(value, 0, 59, false)
		case "BYDAY":
			for item := range strings.SplitSeq(value, ",") {
				var d nthDay
				if d, err = parseDay(item); err != nil {
					break
				}
				r.byDay = append(r.byDay, d)
			}
		default:
			return bad("%.20s is not a part that is supported", name)
		}
		if err != nil {
			return 0, fmt.Errorf("%s=%.60s: %w", name, value, err)
		}
	}
	nth := slices.ContainsFunc(r.byDay, func(d nthDay) bool { return d.n != 0 })
	// RFC 5545, section 3.3.10, says which parts do not go together.
	switch {
	case r.frequency == once:
		return bad("FREQ is required")
	case count > 0 && seen["UNTIL"]:
		return bad("COUNT and UNTIL exclude each other")
	case nth && r.frequency != monthly && r.frequency != yearly:
		return bad("BYDAY with a number is for FREQ=MONTHLY and FREQ=YEARLY")
	case nth && seen["BYWEEKNO"]:
		return bad("BYDAY with a number does not go with BYWEEKNO")
	case seen["BYWEEKNO"] && (r.frequency != yearly || len(r.byDay) == 0):
		return bad("BYWEEKNO is for FREQ=YEARLY, with BYDAY")
	case seen["BYYEARDAY"] && r.frequency != yearly:
		return bad("BYYEARDAY is for FREQ=YEARLY")
	case seen["BYMONTHDAY"] && r.frequency == weekly:
		return bad("BYMONTHDAY does not go with FREQ=WEEKLY")
	case seen["BYSETPOS"] && len(seen) == 2+count0(seen):
		return bad("BYSETPOS needs another BY part to choose from")
	}
	second := int(mod(int64(r.start), daySeconds))
	if hours != nil || minutes != nil {
		if hours == nil {
			hours = []int{second / 3600}
		}
		if minutes == nil {
			minutes = []int{second / 60 % 60}
		}
		for _, h := range hours {
			for _, m := range minutes {
				r.times = append(r.times, h*3600+m*60+second%60)
			}
		}
		slices.Sort(r.times)
		r.times = slices.Compact(r.times)
		if len(r.times) > maxTimes {
			return bad("%d windows in one day; at most %d are allowed", len(r.times), maxTimes)
		}
	}
	return count, nil
}

// count0 counts the parts that choose nothing.
func count0(seen map[string]bool) (n int) {
	for _, name := range []string{"INTERVAL", "COUNT", "UNTIL", "WKST"} {
		if seen[name] {
			n++
		}
	}
	return n
}

// parseUntil takes a moment in UTC, one in the freeze's zone, or a day, which
// counts to its end.
func (r *recurrence) parseUntil(s string) (time.Time, error) {
	if t, err := time.Parse(untilFormat+"Z", s); err == nil {
		return t, nil
	}
	if t, err := time.Parse(untilFormat, s); err == nil {
		return r.instant(wall(t.Unix())), nil
	}
	if t, err := time.Parse("20060102", s); err == nil {
		return r.instant(wall(t.Unix() + daySeconds - 1)), nil
	}
	return time.Time{}, fmt.Errorf("want 20270131T170000Z, or 20270131T170000 or 20270131 in the zone of the freeze: %w", pipeline.ErrInvalid)
}

func parseDay(s string) (nthDay, error) {
	if len(s) >= 2 {
		if d := slices.Index([]string{"SU", "MO", "TU", "WE", "TH", "FR", "SA"}, s[len(s)-2:]); d >= 0 {
			day := nthDay{day: time.Weekday(d)}
			if len(s) == 2 {
				return day, nil
			}
			n, err := strconv.Atoi(s[:len(s)-2])
			if err == nil && n != 0 && n >= -53 && n <= 53 {
				day.n = n
				return day, nil
			}
		}
	}
	return nthDay{}, fmt.Errorf("%.20q: want a day such as MO, or 2FR, or -1SU: %w", s, pipeline.ErrInvalid)
}

func number(s string, low, high int) (int, error) {
	n, err := strconv.Atoi(s)
	if err != nil || n < low || n > high {
		return 0, fmt.Errorf("want %d to %d: %w", low, high, pipeline.ErrInvalid)
	}
	return n, nil
}

func numbers(s string, low, high int, negative bool) ([]int, error) {
	var out []int
	for item := range strings.SplitSeq(s, ",") {
		n, err := strconv.Atoi(item)
		if err != nil || max(n, -n) < low || max(n, -n) > high || n < 0 && !negative {
			hint := ""
			if negative {
				hint = ", or negative to count from the end"
			}
			return nil, fmt.Errorf("%.20q: want %d to %d%s: %w", item, low, high, hint, pipeline.ErrInvalid)
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
