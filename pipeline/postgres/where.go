package postgres

import (
	"fmt"
	"strings"
)

// where collects conditions and their arguments. A condition that does not
// apply is left out rather than made true by its argument: the planner then
// knows which index serves.
type where struct {
	conds []string
	args  []any
}

// add adds a condition; each %s in it stands for the next argument.
func (w *where) add(cond string, args ...any) {
	places := make([]any, len(args))
	for i, a := range args {
		places[i] = w.arg(a)
	}
	w.conds = append(w.conds, fmt.Sprintf(cond, places...))
}

func (w *where) addIf(ok bool, cond string, args ...any) {
	if ok {
		w.add(cond, args...)
	}
}

// arg adds an argument and returns its placeholder.
func (w *where) arg(a any) string {
	w.args = append(w.args, a)
	return fmt.Sprintf("$%d", len(w.args))
}

func (w *where) sql() string {
	if len(w.conds) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(w.conds, " AND ")
}
