package pipelinetest

import (
	"errors"
	"fmt"
	"sync"
)

// ErrInjected is the failure that a test asked for.
var ErrInjected = errors.New("injected fault")

// Mode says how an effect fails.
type Mode int

// The ways in which an effect fails.
const (
	// FailBefore: the effect does not happen, and the caller is told so.
	FailBefore Mode = iota
	// FailAfter: the effect happens, and the caller is told that it did not.
	FailAfter
	// CrashBefore and CrashAfter: the process is gone at that moment. Nothing
	// that it tries afterwards has an effect, until Restart.
	CrashBefore
	CrashAfter
)

func (m Mode) String() string {
	return [...]string{"fail before", "fail after", "crash before", "crash after"}[m]
}

// Modes lists all of them.
func Modes() []Mode { return []Mode{FailBefore, FailAfter, CrashBefore, CrashAfter} }

// Faults counts the effects of a pipeline and makes one of them fail.
type Faults struct {
	mu    sync.Mutex
	at    int // the effect that fails, from 1; 0 for none
	mode  Mode
	dead  bool
	trace []string
}

// Arm makes the nth effect from now on fail, counting from 1.
func (f *Faults) Arm(n int, mode Mode) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.at, f.mode, f.trace = n, mode, nil
}

// Restart brings a crashed process back.
func (f *Faults) Restart() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.dead = false
}

// Trace names the effects so far, in order.
func (f *Faults) Trace() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.trace...)
}

// do runs an effect, or fails it.
func (f *Faults) do(name string, effect func() error) error {
	f.mu.Lock()
	if f.dead {
		f.mu.Unlock()
		return fmt.Errorf("%s: the process is gone: %w", name, ErrInjected)
	}
	f.trace = append(f.trace, name)
	hit := f.at == len(f.trace)
	mode := f.mode
	if hit && (mode == CrashBefore || mode == CrashAfter) {
		f.dead = true
	}
	f.mu.Unlock()
	if !hit {
		return effect()
	}
	if mode == FailAfter || mode == CrashAfter {
		if err := effect(); err != nil {
			return err
		}
	}
	return fmt.Errorf("%s: %s: %w", name, mode, ErrInjected)
}

// try is do, for those who may have no faults.
func (f *Faults) try(name string, effect func() error) error {
	if f == nil {
		return effect()
	}
	return f.do(name, effect)
}
