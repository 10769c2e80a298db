package postgres

import (
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// fresh has a query planned for its very arguments: a plan that fits the hottest
// package as well as one that nobody has fits neither.
const fresh = pgx.QueryExecModeCacheDescribe

const (
	// fewImages is how many images of a scope are looked up beforehand. Of more,
	// those that it leaves are found on the way.
	fewImages = 50_000
	// fewProbes is how many pairs of an image and a package are looked for one by
	// one.
	fewProbes = 5000
)

// inScope adds what a scope asks of an image i, and reports whether it asks anything.
func inScope(w *where, s pipeline.AuditScope) bool {
	before := len(w.conds)
	if !s.Reach.All {
		w.add("i.project = ANY(%s::text[])", notNil(s.Reach.Projects))
	}
	w.addIf(s.Project != "", "i.project = %s", s.Project)
	switch s.Promoted {
	case pipeline.PromotedNow:
		// From the lanes, of which there are few.
		cond := `i.id IN (SELECT s.image FROM lanes l JOIN stays s ON s.promotion = l.current WHERE true`
		if s.Environment != "" {
			cond += " AND l.environment = " + w.arg(s.Environment)
		}
		if !s.Reach.All {
			cond += " AND l.project = ANY(" + w.arg(notNil(s.Reach.Projects)) + "::text[])"
		}
		if s.Project != "" {
			cond += " AND l.project = " + w.arg(s.Project)
		}
		if s.Since != nil {
			cond += " AND s.since >= " + w.arg(*s.Since)
		}
		if s.Until != nil {
			cond += " AND s.since < " + w.arg(*s.Until)
		}
		w.conds = append(w.conds, cond+")")
	case pipeline.PromotedEver:
		cond := `EXISTS (SELECT FROM stays s WHERE s.image = i.id`
		if s.Environment != "" {
			cond += " AND s.environment = " + w.arg(s.Environment)
		}
		if s.Since != nil {
			cond += " AND (s.until IS NULL OR s.until > " + w.arg(*s.Since) + ")"
		}
		if s.Until != nil {
			cond += " AND s.since < " + w.arg(*s.Until)
		}
		w.conds = append(w.conds, cond+")")
	default:
		first := "(SELECT min(r.recorded_at) FROM image_records r WHERE r.image = i.id)"
		if s.Since != nil {
			w.add(first+" >= %s", *s.Since)
		}
		if s.Until != nil {
			w.add(first+" < %s", *s.Until)
		}
	}
	return len(w.conds) > before
}

// cursor is the id of an item that is known by several values. Whoever sends one
// back that was made up gets pipeline.ErrInvalid.
func cursor(values ...any) string {
	b, err := json.Marshal(values)
	if err != nil {
		panic(err) // texts and numbers always marshal
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func fromCursor(s string, into ...any) error {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		var parts []json.RawMessage
		if err = json.Unmarshal(b, &parts); err == nil && len(parts) != len(into) {
			err = fmt.Errorf("%d values", len(parts))
		}
		for i := 0; err == nil && i < len(into); i++ {
			err = json.Unmarshal(parts[i], into[i])
		}
	}
	if err != nil {
		return fmt.Errorf("%.80q is not the id of an item: %w", s, pipeline.ErrInvalid)
	}
	return nil
}
