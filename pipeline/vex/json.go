package vex

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// decode reads one JSON value, with numbers as they were written. It refuses
// two names in one object that differ in nothing but case: whoever else reads
// what was signed must not read something else in it.
func decode(raw []byte) (any, error) {
	if !utf8.Valid(raw) {
		return nil, errors.New("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	v, err := decodeValue(dec, 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON value")
	}
	return v, nil
}

func decodeValue(dec *json.Decoder, depth int) (any, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("nested more than %d deep", maxDepth)
	}
	t, err := dec.Token()
	if err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	switch t {
	case json.Delim('{'):
		object, seen := map[string]any{}, map[string]bool{}
		for dec.More() {
			t, err := dec.Token()
			if err != nil {
				return nil, fmt.Errorf("not JSON: %w", err)
			}
			name, ok := t.(string)
			if !ok {
				return nil, errors.New("not JSON: a field without a name")
			}
			folded := fold(name)
			if seen[folded] {
				return nil, fmt.Errorf("the field %.100q appears twice", name)
			}
			seen[folded] = true
			if object[name], err = decodeValue(dec, depth+1); err != nil {
				return nil, err
			}
		}
		_, err := dec.Token()
		return object, err
	case json.Delim('['):
		list := []any{}
		for dec.More() {
			v, err := decodeValue(dec, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := dec.Token()
		return list, err
	}
	return t, nil
}

// fold gives names that encoding/json takes for the same field the same form.
func fold(s string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, s)
}

// printable drops what could move a cursor or hide text, and keeps at most
// maxText characters.
func printable(s string) string {
	var b strings.Builder
	n := 0
	for _, r := range s {
		if n == maxText {
			break
		}
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			n++
		} else if unicode.IsSpace(r) {
			b.WriteByte(' ')
			n++
		}
	}
	return strings.TrimSpace(b.String())
}
