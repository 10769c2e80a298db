package api

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"log/slog"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"unicode"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/dray-project/dray/pipeline"
)

const (
	mediaJSONLines = "application/jsonl"
	mediaCSV       = "text/csv"
	// exportAtOnce is how many items of an export are in memory.
	exportAtOnce = 500
)

// sheet says how items look in CSV, and what orders them.
type sheet[T any] struct {
	id      func(T) string
	columns []string
	row     func(T) []string
}

// format is what the caller wants: json, jsonl or csv.
func (in AuditPageInput) format() (string, error) {
	if in.Format != "" || strings.TrimSpace(in.Accept) == "" {
		return in.Format, nil
	}
	best, quality := "", 0.0
	for part := range strings.SplitSeq(in.Accept, ",") {
		media, params, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		q := 1.0
		if params["q"] != "" {
			if q, err = strconv.ParseFloat(params["q"], 64); err != nil {
				continue
			}
		}
		format := map[string]string{"application/json": "json", "application/*": "json", "*/*": "json",
			mediaJSONLines: "jsonl", "application/x-ndjson": "jsonl", mediaCSV: "csv", "text/*": "csv"}[media]
		if format != "" && q > quality {
			best, quality = format, q
		}
	}
	if best == "" {
		return "", fmt.Errorf("accept header: want application/json, %s or %s: %w", mediaJSONLines, mediaCSV, pipeline.ErrInvalid)
	}
	return best, nil
}

// audit answers with a page, or with everything as an export. The first items are
// read before anything is said, so that what goes wrong is still a problem.
func audit[T any](ctx context.Context, a *API, in AuditPageInput, s sheet[T], fetch func(pipeline.Page) ([]T, error)) (*streamOutput, error) {
	format, err := in.format()
	if err != nil {
		return nil, err
	}
	if format != "jsonl" && format != "csv" {
		items, err := fetch(in.page())
		if err != nil {
			return nil, err
		}
		page := listOf(ctx, in.PageInput, items, s.id)
		return &streamOutput{func(hctx huma.Context) { writeJSON(hctx, page.Link, page.Body) }}, nil
	}
	first, err := fetch(pipeline.Page{Limit: exportAtOnce, After: in.Cursor})
	if err != nil {
		return nil, err
	}
	return &streamOutput{func(hctx huma.Context) {
		r, w := humago.Unwrap(hctx)
		media := mediaJSONLines
		if format == "csv" {
			media = mediaCSV + "; charset=utf-8; header=present"
			w.Header().Set("Content-Disposition", `attachment; filename="audit.csv"`)
		}
		w.Header().Set("Content-Type", media)
		w.WriteHeader(http.StatusOK)
		if r.Method == http.MethodHead {
			return
		}
		if err := export(&streamWriter{w: w, rc: http.NewResponseController(w)}, format, s, first, fetch); err != nil {
			if r.Context().Err() == nil {
				a.Log.LogAttrs(r.Context(), slog.LevelWarn, "an export broke off", slog.String("request", infoOf(r.Context()).id), slog.Any("error", err))
			}
			// The reader must not take what it has for all there is.
			panic(http.ErrAbortHandler)
		}
	}}, nil
}

func writeJSON(hctx huma.Context, link string, v any) {
	_, w := humago.Unwrap(hctx)
	if link != "" {
		w.Header().Set("Link", link)
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(v) // the caller may be gone
}

// export writes items as they are read, some at a time.
func export[T any](out *streamWriter, format string, s sheet[T], items []T, fetch func(pipeline.Page) ([]T, error)) error {
	write := func(item T) error {
		line, err := json.Marshal(item)
		if err != nil {
			return err
		}
		out.buf.Write(append(line, '\n'))
		return nil
	}
	if format == "csv" {
		sheet := csv.NewWriter(&out.buf)
		sheet.UseCRLF = true // RFC 4180
		write = func(item T) error {
			cells := s.row(item)
			for i := range cells {
				cells[i] = harmless(cells[i])
			}
			err := sheet.Write(cells)
			sheet.Flush()
			return err
		}
		if err := sheet.Write(s.columns); err != nil {
			return err
		}
		sheet.Flush()
	}
	for {
		for _, item := range items {
			if err := write(item); err != nil {
				return err
			}
		}
		if err := out.flush(); err != nil {
			return err
		}
		if len(items) < exportAtOnce {
			return nil
		}
		last := s.id(items[len(items)-1])
		var err error
		if items, err = fetch(pipeline.Page{Limit: exportAtOnce, After: last}); err != nil {
			return err
		}
		// A buffer that one long item made large is not kept for the rest.
		if out.buf.Cap() > 4<<20 {
			out.buf = bytes.Buffer{}
		}
	}
}

// harmless keeps a cell from being a formula where a spreadsheet opens it, and
// from steering a terminal: a package can be named as its author likes.
func harmless(cell string) string {
	cell = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, cell)
	switch first := strings.TrimLeft(cell, " \u00a0\u3000\ufeff"); {
	case first == "":
		return cell
	case strings.ContainsRune("=+-@|%＝＋－＠", []rune(first)[0]):
		return "'" + cell
	}
	return cell
}
