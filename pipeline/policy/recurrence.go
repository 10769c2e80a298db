package policy

import (
	"slices"
	"time"
)

// wall is a reading of clock and calendar without a zone: the seconds since 1970
// if it were UTC.
type wall int64

const daySeconds = 24 * 60 * 60

func (w wall) day() int { return int((int64(w) - mod(int64(w), daySeconds)) / daySeconds) }

func mod[T int | int64](a, b T) T { return (a%b + b) % b }

// date is a day's place in the calendar.
func date(day int) (int, time.Month, int) { return time.Unix(int64(day)*daySeconds, 0).UTC().Date() }

func dayOf(year int, month time.Month, day int) int {
	return int(time.Date(year, month, day, 0, 0, 0, 0, time.UTC).Unix() / daySeconds)
}

func weekday(day int) time.Weekday { return time.Weekday(mod(day+4, 7)) } // 1970-01-01 was a Thursday

type frequency int

const (
	once frequency = iota
	daily
	weekly
	monthly
	yearly
)

// nthDay is a weekday, or the nth of its month or year; from the end if negative.
type nthDay struct {
	n   int
	day time.Weekday
}

// recurrence is a compiled rule of RFC 5545, section 3.3.10. It is evaluated day
// by day and only where somebody looks, so that no rule, however strange, takes
// more than a bounded effort.
type recurrence struct {
	zone  *time.Location
	start wall

	frequency  frequency
	interval   int
	until      time.Time // zero: for ever
	weekStart  time.Weekday
	byMonth    []int
	byMonthDay []int
	byYearDay  []int
	byWeekNo   []int
	byDay      []nthDay
	bySetPos   []int
	times      []int // seconds of the day, sorted
}

// instant is when the clocks of the zone show w. What they show twice is the
// first; what they skip is counted by the clock from before the change
// (RFC 5545, section 3.3.5).
func (r *recurrence) instant(w wall) time.Time {
	_, before := time.Unix(int64(w)-daySeconds, 0).In(r.zone).Zone()
	_, after := time.Unix(int64(w)+daySeconds, 0).In(r.zone).Zone()
	for _, offset := range [...]int{before, after} {
		t := time.Unix(int64(w)-int64(offset), 0)
		if _, o := t.In(r.zone).Zone(); o == offset {
			return t
		}
	}
	return time.Unix(int64(w)-int64(before), 0)
}

// period numbers the period that a day is in: days, weeks, months or years.
func (r *recurrence) period(day int) int {
	switch r.frequency {
	case weekly:
		d := day + 4 - int(r.weekStart)
		return (d - mod(d, 7)) / 7
	case monthly:
		y, m, _ := date(day)
		return y*12 + int(m) - 1
	case yearly:
		y, _, _ := date(day)
		return y
	}
	return day
}

// days are the first day of a period and the first of the next.
func (r *recurrence) days(period int) (int, int) {
	switch r.frequency {
	case weekly:
		d := period*7 - 4 + int(r.weekStart)
		return d, d + 7
	case monthly:
		y, m := period/12, time.Month(period%12+1)
		return dayOf(y, m, 1), dayOf(y, m+1, 1)
	case yearly:
		return dayOf(period, 1, 1), dayOf(period+1, 1, 1)
	}
	return period, period + 1
}

// memo holds what the periods that were looked at last contain.
type memo map[int][]wall

// in lists the beginnings within a period that are not before the start.
func (r *recurrence) in(period int, seen *memo) []wall {
	if seen != nil {
		if list, ok := (*seen)[period]; ok {
			return list
		}
		if *seen == nil || len(*seen) > 400 {
			*seen = memo{}
		}
	}
	var list []wall
	from, to := r.days(period)
	for day := from; day < to; day++ {
		if !r.matches(day) {
			continue
		}
		for _, t := range r.times {
			list = append(list, wall(day)*daySeconds+wall(t))
		}
	}
	if len(r.bySetPos) > 0 {
		list = r.positions(list)
	}
	list = slices.DeleteFunc(list, func(w wall) bool { return w < r.start })
	if seen != nil {
		(*seen)[period] = list
	}
	return list
}

func (r *recurrence) positions(list []wall) []wall {
	var out []wall
	for _, n := range r.bySetPos {
		if n < 0 {
			n += len(list) + 1
		}
		if n >= 1 && n <= len(list) {
			out = append(out, list[n-1])
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// latest is the last beginning that is neither after t nor much more than back
// before it.
func (r *recurrence) latest(t time.Time, back time.Duration, seen *memo) (time.Time, bool) {
	if r.frequency == once {
		at := r.instant(r.start)
		return at, !at.After(t)
	}
	// Where clocks change, the order of readings is not quite that of moments;
	// no clock was ever changed by more than a day.
	_, offset := t.In(r.zone).Zone()
	newest := wall(t.Unix()) + wall(offset) + daySeconds
	oldest := newest - wall(back/time.Second) - 3*daySeconds
	first := r.period(r.start.day())
	p := r.period(newest.day())
	var best time.Time
	found := false
	for p -= mod(p-first, r.interval); p >= first; p -= r.interval {
		if _, end := r.days(p); wall(end)*daySeconds <= oldest {
			break
		}
		list := r.in(p, seen)
		i, _ := slices.BinarySearch(list, newest+1)
		for _, w := range slices.Backward(list[:i]) {
			if w < oldest {
				break
			}
			at := r.instant(w)
			if at.After(t) || !r.until.IsZero() && at.After(r.until) {
				continue
			}
			if !found {
				oldest = max(oldest, w-daySeconds)
			}
			if !found || at.After(best) {
				best, found = at, true
			}
		}
	}
	return best, found
}

// matches reports whether a day is in the rule, times and positions aside.
func (r *recurrence) matches(day int) bool {
	y, m, d := date(day)
	monthStart, monthEnd := dayOf(y, m, 1), dayOf(y, m+1, 1)
	yearStart, yearEnd := dayOf(y, 1, 1), dayOf(y+1, 1, 1)
	if len(r.byMonth) > 0 && !slices.Contains(r.byMonth, int(m)) {
		return false
	}
	if !counted(r.byMonthDay, d, monthEnd-monthStart) || !counted(r.byYearDay, day-yearStart+1, yearEnd-yearStart) {
		return false
	}
	if len(r.byWeekNo) > 0 {
		n, total := r.weekNumber(day)
		if !counted(r.byWeekNo, n, total) {
			return false
		}
	}
	if len(r.byDay) == 0 {
		return true
	}
	// "The second Friday" is of the month, or of the year in a yearly rule that
	// names no months.
	from, to := monthStart, monthEnd
	if r.frequency == yearly && len(r.byMonth) == 0 {
		from, to = yearStart, yearEnd
	}
	nth, last := (day-from)/7+1, -((to-1-day)/7 + 1)
	return slices.ContainsFunc(r.byDay, func(b nthDay) bool {
		return b.day == weekday(day) && (b.n == 0 || b.n == nth || b.n == last)
	})
}

// counted reports whether list is empty or has n, which counts from 1 to total,
// or from the end if negative.
func counted(list []int, n, total int) bool {
	return len(list) == 0 || slices.Contains(list, n) || slices.Contains(list, n-total-1)
}

// weekNumber is the number of a day's week, and how many weeks that year has.
// Week 1 is the first with four days or more in the year.
func (r *recurrence) weekNumber(day int) (n, total int) {
	firstWeek := func(year int) int {
		d := dayOf(year, 1, 1)
		back := mod(int(weekday(d))-int(r.weekStart), 7)
		if back <= 3 {
			return d - back
		}
		return d + 7 - back
	}
	y, _, _ := date(day)
	switch {
	case day < firstWeek(y):
		y--
	case day >= firstWeek(y+1):
		y++
	}
	return (day-firstWeek(y))/7 + 1, (firstWeek(y+1) - firstWeek(y)) / 7
}
