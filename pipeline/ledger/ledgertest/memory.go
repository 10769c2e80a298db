// Package ledgertest is a log's storage in memory for tests, which fails on
// demand and lets itself be tampered with.
package ledgertest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
)

// ErrInjected is the failure that a test asked for.
var ErrInjected = errors.New("injected fault")

// Memory implements ledger.Storage, and what the API asks of a log besides. It
// fails the test's way: see Fail.
type Memory struct {
	mu          sync.Mutex
	waiting     [][]byte
	leaves      [][]byte
	gone        map[int64]bool
	hashes      []tlog.Hash
	checkpoints map[int64][]byte
	rows        []pipeline.RowCheck
	fault       map[string]fault
	busy        sync.Mutex // the lock of those that sequence
}

type fault struct {
	times int
	after bool
}

var _ ledger.Storage = (*Memory)(nil)

// New returns an empty storage.
func New() *Memory {
	return &Memory{checkpoints: map[int64][]byte{}, gone: map[int64]bool{}, fault: map[string]fault{}}
}

// Write adds leaves that wait for their places, as the transaction of a change does.
func (m *Memory) Write(leaves ...[]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting = append(m.waiting, leaves...)
}

// Fail makes the next calls of a method fail: before it has an effect, or after it.
func (m *Memory) Fail(method string, times int, after bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault[method] = fault{times, after}
}

// fails reports whether a call is to fail at that moment.
func (m *Memory) fails(method string, after bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := m.fault[method]
	if f.times == 0 || f.after != after {
		return nil
	}
	f.times--
	m.fault[method] = f
	return fmt.Errorf("%s: %w", method, ErrInjected)
}

// LogPending implements ledger.Storage.
func (m *Memory) LogPending(context.Context) (bool, error) {
	if err := m.fails("LogPending", false); err != nil {
		return false, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.waiting) > 0 || len(m.checkpoints) == 0, nil
}

// SequenceLog implements ledger.Storage.
func (m *Memory) SequenceLog(ctx context.Context, limit int, extend ledger.Extend) (int, bool, error) {
	if err := m.fails("SequenceLog", false); err != nil {
		return 0, false, err
	}
	if !m.busy.TryLock() {
		return 0, false, nil
	}
	defer m.busy.Unlock()
	m.mu.Lock()
	size := int64(-1)
	for n := range m.checkpoints {
		size = max(size, n)
	}
	checkpoint := m.checkpoints[size]
	size = max(size, 0)
	batch := slices.Clone(m.waiting[:min(limit, len(m.waiting))])
	consistent := size == int64(len(m.leaves)) && tlog.StoredHashCount(size) == int64(len(m.hashes))
	m.mu.Unlock()
	if !consistent {
		return 0, true, fmt.Errorf("entries, hashes and checkpoint are not of one size: %w", pipeline.ErrUnverified)
	}
	if len(batch) == 0 && checkpoint != nil {
		return 0, true, nil
	}
	hashes, signed, err := extend(size, checkpoint, batch, tlog.HashReaderFunc(func(indexes []int64) ([]tlog.Hash, error) {
		return m.LogHashes(ctx, indexes)
	}))
	if err != nil {
		return 0, true, err
	}
	m.mu.Lock()
	m.waiting = m.waiting[len(batch):]
	m.leaves = append(m.leaves, batch...)
	m.hashes = append(m.hashes, hashes...)
	m.checkpoints[int64(len(m.leaves))] = signed
	m.mu.Unlock()
	if err := m.fails("SequenceLog", true); err != nil {
		return 0, true, err
	}
	return len(batch), true, nil
}

// LogCheckpoint implements ledger.Storage.
func (m *Memory) LogCheckpoint(_ context.Context, size int64) ([]byte, error) {
	if err := m.fails("LogCheckpoint", false); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if size < 0 {
		for n := range m.checkpoints {
			size = max(size, n)
		}
	}
	if c, ok := m.checkpoints[size]; ok {
		return c, nil
	}
	return nil, fmt.Errorf("checkpoint: %w", pipeline.ErrNotFound)
}

// LogLeaves implements ledger.Storage.
func (m *Memory) LogLeaves(_ context.Context, from, to int64) ([][]byte, error) {
	if err := m.fails("LogLeaves", false); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := from; i < to; i++ {
		if i >= int64(len(m.leaves)) || m.gone[i] {
			return nil, fmt.Errorf("entry %d of the evidence log is missing: %w", i, pipeline.ErrUnverified)
		}
	}
	return slices.Clone(m.leaves[from:to]), nil
}

// LogHashes implements ledger.Storage.
func (m *Memory) LogHashes(_ context.Context, indexes []int64) ([]tlog.Hash, error) {
	if err := m.fails("LogHashes", false); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]tlog.Hash, len(indexes))
	for i, index := range indexes {
		if index < 0 || index >= int64(len(m.hashes)) {
			return nil, fmt.Errorf("hash %d of the evidence log is missing: %w", index, pipeline.ErrUnverified)
		}
		out[i] = m.hashes[index]
	}
	return out, nil
}

// LogEntries is the list of those that have their place.
func (m *Memory) LogEntries(_ context.Context, q pipeline.EntryQuery) (out []pipeline.LogEntry, err error) {
	if err := m.fails("LogEntries", false); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, leaf := range m.leaves {
		e, err := pipeline.ParseEntry(leaf)
		if err != nil {
			return nil, err
		}
		at := int64(i)
		switch {
		case q.Projects != nil && !slices.Contains(q.Projects, e.Project):
		case q.InProject && e.Project == "":
		case q.Kind != "" && q.Kind != e.Kind:
		case q.Subject != "" && q.Subject != e.Subject:
		case q.Image != "" && q.Image != e.Image:
		case q.Ascending && at < q.From, !q.Ascending && q.Before > 0 && at >= q.Before:
		default:
			out = append(out, pipeline.LogEntry{Index: at, Leaf: leaf})
		}
	}
	if !q.Ascending {
		slices.Reverse(out)
	}
	return out[:min(len(out), q.Limit)], nil
}

// CheckRows returns the rows that SetRows has set for those entries.
func (m *Memory) CheckRows(_ context.Context, from, to int64) (out []pipeline.RowCheck, err error) {
	if err := m.fails("CheckRows", false); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.rows {
		if r.Entry >= from && r.Entry < to || r.Entry < 0 && from == 0 {
			out = append(out, r)
		}
	}
	return out, nil
}

// SetRows sets what CheckRows finds.
func (m *Memory) SetRows(rows ...pipeline.RowCheck) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rows = rows
}

// Change lets somebody at the entries, hashes and checkpoints, as with SQL.
func (m *Memory) Change(f func(leaves *[][]byte, hashes *[]tlog.Hash, checkpoints map[int64][]byte)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.leaves, &m.hashes, m.checkpoints)
}

// Remove removes an entry and leaves a hole.
func (m *Memory) Remove(index int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone[index] = true
}
