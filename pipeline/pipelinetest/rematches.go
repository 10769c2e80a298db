package pipelinetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Rematches is what a Memory knows of re-matching: a pipeline.RematchStore that
// fails on demand, as the Memory does.
type Rematches struct {
	m        *Memory
	passes   []*pipeline.RematchPass
	states   map[pipeline.RunID]*matchState
	analyses map[pipeline.Digest]pipeline.Analysis
	notices  []pipeline.Notice
	verdicts []pipeline.Verdict
}

// matchState is what the newest match says of a record.
type matchState struct {
	database pipeline.Digest
	pass     pipeline.RematchID
	findings [][]pipeline.Finding
}

// NewRematches is empty: every record is matched with the database that it was
// scanned with.
func NewRematches(m *Memory) *Rematches {
	return &Rematches{m: m, states: map[pipeline.RunID]*matchState{}, analyses: map[pipeline.Digest]pipeline.Analysis{}}
}

// Notices returns what owners were told, in order.
func (r *Rematches) Notices() []pipeline.Notice {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return slices.Clone(r.notices)
}

// Verdicts returns what gates said, in order.
func (r *Rematches) Verdicts() []pipeline.Verdict {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return slices.Clone(r.verdicts)
}

// newest is the newest record of each image, in the order of the images.
func (r *Rematches) newest() (out []pipeline.ImageRecord) {
	at := map[string]int{}
	for _, rec := range r.m.images {
		key := rec.Project + " " + string(rec.Built.Image.Digest)
		if i, ok := at[key]; ok {
			out[i] = rec
			continue
		}
		at[key] = len(out)
		out = append(out, rec)
	}
	return out
}

func (r *Rematches) state(rec pipeline.ImageRecord) *matchState {
	s, ok := r.states[rec.Run]
	if !ok {
		s = &matchState{database: rec.Report.Database.Digest}
		for _, p := range rec.Report.Platforms {
			s.findings = append(s.findings, slices.Clone(p.Findings))
		}
		r.states[rec.Run] = s
	}
	return s
}

func (r *Rematches) analysis(d pipeline.Digest) pipeline.Analysis {
	if a, ok := r.analyses[d]; ok {
		return a
	}
	for _, rec := range slices.Backward(r.m.images) {
		for _, p := range rec.Report.Platforms {
			if p.Digest == d && len(p.Analysis.Data) > 0 {
				return p.Analysis
			}
		}
	}
	return pipeline.Analysis{}
}

// ForgetAnalyses makes all records those of a time when nothing was kept.
func (r *Rematches) ForgetAnalyses() {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	for _, rec := range r.m.images {
		for i := range rec.Report.Platforms {
			rec.Report.Platforms[i].Analysis = pipeline.Analysis{}
		}
	}
}

// StartRematch implements pipeline.RematchStore.
func (r *Rematches) StartRematch(_ context.Context, db pipeline.VulnerabilityDatabase) (p pipeline.RematchPass, err error) {
	err = r.m.write("StartRematch", func() error {
		i := slices.IndexFunc(r.passes, func(p *pipeline.RematchPass) bool { return p.Database.Digest == db.Digest })
		if i < 0 {
			i = len(r.passes)
			r.passes = append(r.passes, &pipeline.RematchPass{ID: pipeline.NewRematchID(r.m.now()), Database: db, StartedAt: r.m.now()})
		}
		p = *r.passes[i]
		return nil
	})
	return p, err
}

// Unmatched implements pipeline.RematchStore.
func (r *Rematches) Unmatched(_ context.Context, database pipeline.Digest, held bool, after string, limit int) (out []pipeline.Matchable, err error) {
	err = r.m.write("Unmatched", func() error {
		for n, rec := range r.newest() {
			s := r.state(rec)
			img := pipeline.Matchable{Cursor: fmt.Sprintf("%06d", n), Project: rec.Project, Image: rec.Built.Image, Run: rec.Run, From: s.database, Platforms: rec.Built.Platforms}
			for _, e := range r.m.projects[rec.Project].Environments {
				if f, ok := r.m.standingOf(rec.Project, e.Name, rec.Built.Image.Digest); ok && f.Current {
					img.Environments = append(img.Environments, e.Name)
				}
			}
			if s.database == database || (len(img.Environments) > 0) != held || img.Cursor <= after || len(out) == limit {
				continue
			}
			for _, p := range img.Platforms {
				img.Keys = append(img.Keys, r.analysis(p.Digest).Keys)
			}
			out = append(out, img)
		}
		return nil
	})
	return out, err
}

// Analyses implements pipeline.RematchStore.
func (r *Rematches) Analyses(_ context.Context, digests []pipeline.Digest) (out map[pipeline.Digest]pipeline.Analysis, err error) {
	err = r.m.write("Analyses", func() error {
		out = map[pipeline.Digest]pipeline.Analysis{}
		for _, d := range digests {
			if a := r.analysis(d); len(a.Data) > 0 {
				out[d] = a
			}
		}
		return nil
	})
	return out, err
}

// CurrentFindings implements pipeline.RematchStore.
func (r *Rematches) CurrentFindings(_ context.Context, run pipeline.RunID) (out [][]pipeline.Finding, err error) {
	err = r.m.write("CurrentFindings", func() error {
		for _, rec := range r.m.images {
			if rec.Run == run {
				out = slices.Clone(r.state(rec).findings)
				return nil
			}
		}
		return fmt.Errorf("record of run %s: %w", run, pipeline.ErrNotFound)
	})
	return out, err
}

// RecordMatches implements pipeline.RematchStore.
func (r *Rematches) RecordMatches(_ context.Context, id pipeline.RematchID, matches []pipeline.Match) error {
	return r.m.write("RecordMatches", func() error {
		pass, err := r.pass(id)
		if err != nil {
			return err
		}
		newest := r.newest()
		for _, m := range matches {
			i := slices.IndexFunc(newest, func(rec pipeline.ImageRecord) bool { return rec.Run == m.Run })
			if i < 0 {
				continue
			}
			s := r.state(newest[i])
			if s.pass == id || s.database == pass.Database.Digest {
				continue
			}
			r.record(pass, s, m)
		}
		return nil
	})
}

func (r *Rematches) record(pass *pipeline.RematchPass, s *matchState, m pipeline.Match) {
	s.pass = pass.ID
	pass.Images++
	switch {
	case m.Failed != "":
		pass.Failed++
		return
	case m.Unaffected:
		pass.Unaffected++
		s.database = pass.Database.Digest
		return
	case m.Scanned:
		pass.Scanned++
	}
	for i, a := range m.Analyses {
		r.analyses[m.Platforms[i].Digest] = a
	}
	appeared, gone := 0, 0
	for i, now := range m.Findings {
		appeared += missing(now, s.findings[i])
		gone += missing(s.findings[i], now)
	}
	if appeared+gone > 0 {
		pass.Changed++
	}
	pass.Appeared, pass.Gone = pass.Appeared+appeared, pass.Gone+gone
	s.database, s.findings = pass.Database.Digest, m.Findings
	for _, v := range m.Verdicts {
		if v.Passed && !v.Decision.Passed {
			pass.Refused++
		}
		r.verdicts = append(r.verdicts, v)
	}
	for _, n := range m.Notices {
		if !slices.ContainsFunc(r.notices, func(o pipeline.Notice) bool { return o.Key == n.Key }) {
			r.notices = append(r.notices, n)
		}
	}
}

// missing counts those of a that are not in b.
func missing(a, b []pipeline.Finding) (n int) {
	for _, f := range a {
		if !slices.Contains(b, f) {
			n++
		}
	}
	return n
}

// FinishRematch implements pipeline.RematchStore.
func (r *Rematches) FinishRematch(_ context.Context, id pipeline.RematchID) (p pipeline.RematchPass, err error) {
	err = r.m.write("FinishRematch", func() error {
		pass, err := r.pass(id)
		if err != nil {
			return err
		}
		if pass.FinishedAt == nil {
			now := r.m.now()
			pass.FinishedAt = &now
		}
		p = *pass
		return nil
	})
	return p, err
}

func (r *Rematches) pass(id pipeline.RematchID) (*pipeline.RematchPass, error) {
	for _, p := range r.passes {
		if p.ID == id {
			return p, nil
		}
	}
	return nil, fmt.Errorf("pass %s: %w", id, pipeline.ErrNotFound)
}

// SetDatabase brings a newer vulnerability database into force. The scanner's
// findings are those of Findings, which change with it.
func (w *World) SetDatabase(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.database = name
}

// db is the database in force.
func (w *World) db() pipeline.VulnerabilityDatabase {
	return pipeline.VulnerabilityDatabase{Reference: "memory", Digest: DigestOf("db" + w.database), UpdatedAt: time.Unix(1_700_000_000, 0).UTC()}
}

// Rematcher returns the world's rematcher. Every database may change
// everything, but for images whose commits are among Untouched.
func (w *World) Rematcher() pipeline.Rematcher { return worldRematcher{w} }

type worldRematcher struct{ *World }

func (w worldRematcher) Database(context.Context) (db pipeline.VulnerabilityDatabase, err error) {
	err = w.Faults.do("rematcher.Database", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		db = w.db()
		return nil
	})
	return db, err
}

func (w worldRematcher) Changes(context.Context, pipeline.Digest) (db pipeline.VulnerabilityDatabase, c pipeline.Changes, err error) {
	err = w.Faults.do("rematcher.Changes", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		db, c = w.db(), pipeline.Changes{Keys: []byte("worldkey" + "touched!")}
		return nil
	})
	return db, c, err
}

func (w worldRematcher) Rematch(_ context.Context, analyses []pipeline.Analysis) (db pipeline.VulnerabilityDatabase, out []pipeline.Rematched, err error) {
	err = w.Faults.do("rematcher.Rematch", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		db, out = w.db(), make([]pipeline.Rematched, len(analyses))
		for i, a := range analyses {
			commit, ok := strings.CutPrefix(string(a.Data), "commit ")
			if !ok {
				out[i].Unreadable = "it names no commit"
				continue
			}
			out[i].Findings = w.Findings[commit]
		}
		return nil
	})
	return db, out, err
}

// analysisOf is what the world's scanner keeps of a platform. Keys say whether a
// new database can matter to it.
func (w *World) analysisOf(d pipeline.Digest, p pipeline.Platform) pipeline.Analysis {
	for commit := range w.analysed {
		if d == DigestOf("manifest", commit, p) {
			key := "touched!"
			if slices.Contains(w.Untouched, commit) {
				key = "no touch"
			}
			return pipeline.Analysis{Data: []byte("commit " + commit), Keys: []byte("worldkey" + key)}
		}
	}
	return pipeline.Analysis{}
}
