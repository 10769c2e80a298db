package policy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

func hours(n float64) pipeline.Duration { return pipeline.Duration(n * float64(time.Hour)) }

// TestFreezeByTheMinute compares, for random windows, what the rule says with a
// count of every minute: whether it is frozen, and when that ends.
func TestFreezeByTheMinute(t *testing.T) {
	zones := []string{"", "Europe/Zurich", "America/New_York", "Pacific/Auckland", "Asia/Kathmandu", "Australia/Lord_Howe"}
	const span = 20 * 24 * 60 // minutes that are counted
	inside, tried := 0, 0
	for seed := range uint64(400) {
		r := rand.New(rand.NewPCG(seed, 5))
		// Around the changes of the clocks as well as far from them.
		from := time.Date(2026, []time.Month{3, 4, 7, 10, 11}[r.IntN(5)], 1+r.IntN(20), 0, 0, 0, 0, time.UTC)
		var ws windows
		for len(ws) < 1+r.IntN(4) {
			name := zones[r.IntN(len(zones))]
			start := wall(from.AddDate(-r.IntN(2), 0, -r.IntN(40)).Unix()) + wall(r.IntN(24*60))*60
			rule := ""
			if r.IntN(4) > 0 {
				rule = randomRule(r)
			}
			rec, ok := synchronised(rule, start, zone(t, name))
			if !ok {
				continue
			}
			length := time.Duration(1+r.IntN(140)) * time.Hour / 2
			w, err := compileFreeze(pipeline.Freeze{Name: fmt.Sprint(len(ws)), TimeZone: name, Start: format(rec.start), For: pipeline.Duration(length), Recur: rule})
			if err != nil {
				if !strings.Contains(err.Error(), "leave no gap") {
					t.Fatalf("seed %d: %s: %v", seed, rule, err)
				}
				continue
			}
			ws = append(ws, w)
		}
		// Minutes that are frozen, by painting every window there is.
		frozen := make([]bool, span)
		for _, w := range ws {
			for _, b := range beginnings(&w.recurrence, from.Add(span*time.Minute)) {
				for m := max(0, int(b.Sub(from)/time.Minute)); m < span && from.Add(time.Duration(m)*time.Minute).Before(b.Add(w.length)); m++ {
					frozen[m] = true
				}
			}
		}
		for i := range 40 {
			m := r.IntN(span)
			if frozenAt := slices.Index(frozen[m:], true); i%2 == 0 && frozenAt >= 0 {
				m = min(span-1, m+frozenAt+r.IntN(60))
			}
			f := good()
			f.Now = from.Add(time.Duration(m)*time.Minute + time.Duration(r.IntN(60))*time.Second)
			res := ws.judge(f)
			if res.Passed == frozen[m] || res.Pending != frozen[m] {
				t.Fatalf("seed %d: at %s passed is %t, and by the minute frozen is %t (%s)", seed, f.Now, res.Passed, frozen[m], res.Reason)
			}
			tried++
			if !frozen[m] {
				continue
			}
			inside++
			end := slices.Index(frozen[m:], false)
			switch until := res.Until; {
			case end < 0: // it ends after what was painted
				if until.Before(from.Add(span * time.Minute)) {
					t.Fatalf("seed %d: frozen at %s until %s, but by the minute longer", seed, f.Now, until)
				}
			case !until.Equal(from.Add(time.Duration(m+end) * time.Minute)):
				t.Fatalf("seed %d: frozen at %s until %s, by the minute until %s", seed, f.Now, until, from.Add(time.Duration(m+end)*time.Minute))
			default:
				f.Now = *until
				if again := ws.judge(f); !again.Passed {
					t.Fatalf("seed %d: at the end of the freeze it is frozen: %s", seed, again.Reason)
				}
				f.Now = until.Add(-time.Nanosecond)
				if again := ws.judge(f); again.Passed {
					t.Fatalf("seed %d: a moment before its end there is no freeze", seed)
				}
			}
		}
	}
	t.Logf("%d moments, %d of them frozen", tried, inside)
	if inside < 2000 || tried-inside < 2000 {
		t.Errorf("%d moments were frozen and %d were not; too few to tell", inside, tried-inside)
	}
}

func TestFreeze(t *testing.T) {
	weekend := pipeline.Freeze{Name: "weekend", TimeZone: "Europe/Zurich", Start: "2026-01-02T17:00", For: hours(63), Recur: "FREQ=WEEKLY;BYDAY=FR"}
	holidays := pipeline.Freeze{Name: "holidays", TimeZone: "Europe/Zurich", Start: "2026-12-23T12:00", For: pipeline.Duration(12 * 24 * time.Hour)}
	nights := pipeline.Freeze{Name: "nights", Start: "2026-01-01T20:00", For: hours(12), Recur: "FREQ=DAILY"}
	lunch := pipeline.Freeze{Name: "mornings", Start: "2026-01-01T08:00", For: hours(11), Recur: "FREQ=DAILY"}
	gapless := pipeline.Freeze{Name: "evenings", Start: "2026-01-01T19:00", For: hours(1), Recur: "FREQ=DAILY"}
	for _, tt := range []struct {
		name    string
		freezes []pipeline.Freeze
		now     string
		says    string
		until   string // empty: it is not frozen
	}{
		{"before", []pipeline.Freeze{weekend}, "2026-08-07T14:59:59Z", "no freeze now (weekend)", ""},
		{"begins by the clock of its zone in summer", []pipeline.Freeze{weekend}, "2026-08-07T15:00:00Z", "frozen by weekend until 2026-08-10 08:00 CEST (Europe/Zurich)", "2026-08-10T06:00:00Z"},
		{"and in winter", []pipeline.Freeze{weekend}, "2026-12-04T16:00:00Z", "until 2026-12-07 08:00 CET", "2026-12-07T07:00:00Z"},
		{"an hour of clock more when it turns back", []pipeline.Freeze{weekend}, "2026-10-24T10:00:00Z", "until 2026-10-26 07:00 CET", "2026-10-26T06:00:00Z"},
		{"is over at its end", []pipeline.Freeze{weekend}, "2026-08-10T06:00:00Z", "no freeze now", ""},
		{"one window", []pipeline.Freeze{holidays}, "2026-12-31T00:00:00Z", "frozen by holidays until 2027-01-04 12:00 CET", "2027-01-04T11:00:00Z"},
		{"one window, long gone", []pipeline.Freeze{holidays}, "2027-12-31T00:00:00Z", "no freeze now", ""},
		{"windows that overlap", []pipeline.Freeze{weekend, holidays}, "2027-01-02T00:00:00Z", "frozen by holidays and weekend until 2027-01-04 12:00 CET", "2027-01-04T11:00:00Z"},
		{"windows that follow one another", []pipeline.Freeze{nights, lunch}, "2026-08-05T21:00:00Z", "frozen by nights until 2026-08-06 19:00 UTC", "2026-08-06T19:00:00Z"},
		{"windows that leave no gap together", []pipeline.Freeze{nights, lunch, gapless}, "2026-08-05T21:00:00Z", "frozen by nights at least until ", "later"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPolicy(t)
			g := pipeline.Gate{Rules: []pipeline.Rule{{Use: "scanned"}}, Freezes: tt.freezes}
			if err := p.Check(g); err != nil {
				t.Fatal(err)
			}
			f := good()
			f.Now, _ = time.Parse(time.RFC3339, tt.now)
			began := time.Now()
			d := p.Judge(g, f)
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %s", took)
			}
			res := find(d, "freeze")
			if !strings.Contains(res.Reason, tt.says) {
				t.Errorf("reason %q does not say %q", res.Reason, tt.says)
			}
			switch {
			case tt.until == "":
				if !res.Passed || !d.Passed {
					t.Errorf("frozen: %+v", res)
				}
			case !res.Pending || res.Until == nil || res.Remedy == "" || !d.Waiting || d.Until == nil:
				t.Errorf("not pending: %+v", res)
			case tt.until == "later":
				if res.Until.Before(f.Now.AddDate(1, 0, 0)) {
					t.Errorf("until %s, though it does not end", res.Until)
				}
			case res.Until.Format(time.RFC3339) != tt.until:
				t.Errorf("until %s, want %s", res.Until.Format(time.RFC3339), tt.until)
			}
		})
	}
}

func TestFreezesThatCannotBe(t *testing.T) {
	p := newPolicy(t)
	ok := pipeline.Freeze{Name: "f", Start: "2026-01-02T17:00", For: hours(1)}
	for _, tt := range []struct {
		change func(*pipeline.Freeze)
		says   string
	}{
		{func(f *pipeline.Freeze) { f.Name = " " }, "freezes[0].name"},
		{func(f *pipeline.Freeze) { f.Start = "soon" }, `freeze f: start: "soon"`},
		{func(f *pipeline.Freeze) { f.Start = "2026-01-02T17:00Z" }, "without a zone"},
		{func(f *pipeline.Freeze) { f.Start = "1700-01-02T17:00" }, "start"},
		{func(f *pipeline.Freeze) { f.For = 0 }, "freeze f: for"},
		{func(f *pipeline.Freeze) { f.For = hours(24 * 367) }, "366 days"},
		{func(f *pipeline.Freeze) { f.TimeZone = "Mars/Olympus" }, "timeZone"},
		{func(f *pipeline.Freeze) { f.TimeZone = "../etc/passwd" }, "timeZone"},
		{func(f *pipeline.Freeze) { f.TimeZone = "Local" }, "another zone on every machine"},
		{func(f *pipeline.Freeze) { f.Recur = "FREQ=SECONDLY" }, "freeze f: recur: FREQ=SECONDLY"},
		{func(f *pipeline.Freeze) { f.Recur, f.For = "FREQ=DAILY", hours(24) }, "leave no gap"},
		{func(f *pipeline.Freeze) { f.Recur, f.For = "FREQ=DAILY;BYHOUR=5,17", hours(12) }, "leave no gap"},
		{func(f *pipeline.Freeze) { f.Recur, f.For = "FREQ=YEARLY", hours(366*24) }, "leave no gap"},
		{func(f *pipeline.Freeze) {
			f.Start, f.For = "2026-01-01T00:00", hours(1)
			f.Recur = "FREQ=YEARLY;BYDAY=MO,TU,WE,TH,FR,SA,SU;BYHOUR=0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23"
		}, "leave no gap"},
	} {
		f := ok
		tt.change(&f)
		began := time.Now()
		g := pipeline.Gate{Rules: []pipeline.Rule{{Use: "scanned"}}, Freezes: []pipeline.Freeze{f}}
		err := p.Check(g)
		if !errors.Is(err, pipeline.ErrInvalid) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%+v: %v, want it to say %q", f, err, tt.says)
		}
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%+v took %s to refuse", f, took)
		}
		// Whoever judges by it all the same is refused, and told why.
		if res := find(p.Judge(g, good()), "freeze"); res.Passed || res.Pending || !strings.Contains(res.Reason, tt.says) {
			t.Errorf("a freeze that cannot be used gave %+v", res)
		}
	}
	// As much work as a gate can make.
	var many []pipeline.Freeze
	for i := range maxFreezes {
		many = append(many, pipeline.Freeze{Name: fmt.Sprint(i), TimeZone: "Europe/Zurich", Start: fmt.Sprintf("2026-01-01T00:%02d", i), For: pipeline.Duration(59 * time.Minute),
			Recur: "FREQ=YEARLY;BYDAY=MO,TU,WE,TH,FR,SA,SU;BYHOUR=0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23"})
	}
	g := pipeline.Gate{Rules: []pipeline.Rule{{Use: "scanned"}}, Freezes: many}
	began := time.Now()
	if err := p.Check(g); err != nil {
		t.Error(err)
	}
	checked := time.Now()
	if res := find(p.Judge(g, good()), "freeze"); !res.Pending || !strings.Contains(res.Reason, "at least until") {
		t.Errorf("%+v", res)
	}
	t.Logf("checked in %s, judged in %s", checked.Sub(began), time.Since(checked))
	if took := time.Since(began); took > 30*time.Second {
		t.Errorf("it took %s", took)
	}
	if err := p.Check(pipeline.Gate{Rules: []pipeline.Rule{{Use: "scanned"}}, Freezes: []pipeline.Freeze{ok, ok}}); err == nil {
		t.Error("two freezes of one name were accepted")
	}
}
