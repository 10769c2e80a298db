package pipeline

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strings"
)

// jsonObject is a JSON object as it was written.
type jsonObject struct {
	names  []string
	values map[string]any
}

// maxJSONDepth is how deep a file that people write may nest.
const maxJSONDepth = 32

// maxProblems is how many problems of one file are told at once.
const maxProblems = 20

// strictJSON checks that raw is one JSON object of T's form: names as the json
// tags have them, nothing unknown, nothing twice, nothing null, every value of
// its type. It says where each problem is.
func strictJSON[T any](raw []byte) (*jsonObject, []FieldProblem) {
	decoder := json.NewDecoder(bytes.NewReader(raw))
	decoder.UseNumber()
	c := &strictChecker{}
	value, err := c.read(decoder, "", 0)
	if err == nil {
		if _, more := decoder.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("there is something after the end of the file's object")
		}
	}
	if err != nil {
		return nil, append(c.problems, FieldProblem{"", err.Error()})
	}
	object, ok := value.(*jsonObject)
	if !ok {
		return nil, []FieldProblem{{"", "want an object, got " + jsonKind(value)}}
	}
	c.check("", object, reflect.TypeFor[T]())
	return object, c.problems
}

type strictChecker struct{ problems []FieldProblem }

func (c *strictChecker) bad(path, format string, args ...any) {
	if len(c.problems) < maxProblems {
		c.problems = append(c.problems, FieldProblem{path, fmt.Sprintf(format, args...)})
	}
}

// read builds a tree of *jsonObject, []any, string, json.Number, bool and nil.
func (c *strictChecker) read(d *json.Decoder, path string, depth int) (any, error) {
	if depth > maxJSONDepth {
		return nil, fmt.Errorf("%.200s: nested more than %d deep", path, maxJSONDepth)
	}
	token, err := d.Token()
	if err != nil {
		return nil, notJSON(d, err)
	}
	switch token {
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := c.read(d, fmt.Sprintf("%s[%d]", path, len(list)), depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err := d.Token()
		return list, notJSON(d, err)
	case json.Delim('{'):
		object := &jsonObject{values: map[string]any{}}
		for d.More() {
			token, err := d.Token()
			if err != nil {
				return nil, notJSON(d, err)
			}
			name, _ := token.(string)
			at := fieldPath(path, name)
			if _, twice := object.values[name]; twice {
				c.bad(at, "is given twice")
			}
			v, err := c.read(d, at, depth+1)
			if err != nil {
				return nil, err
			}
			object.names = append(object.names, name)
			object.values[name] = v
		}
		_, err := d.Token()
		return object, notJSON(d, err)
	}
	return token, nil
}

func notJSON(d *json.Decoder, err error) error {
	if err == nil {
		return nil
	}
	// Which of these it is depends on the version of encoding/json.
	var syntax *json.SyntaxError
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || (errors.As(err, &syntax) && strings.HasPrefix(syntax.Error(), "unexpected end")) {
		return errors.New("not JSON: it ends in the middle")
	}
	return fmt.Errorf("not JSON, near byte %d: %w", d.InputOffset(), err)
}

func fieldPath(path, name string) string {
	name = fmt.Sprintf("%.80s", name)
	if path == "" {
		return name
	}
	return path + "." + name
}

func (c *strictChecker) check(path string, v any, t reflect.Type) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if v == nil {
		c.bad(path, "is empty: give a value, or leave the field out")
		return
	}
	want := func(ok bool, what string) bool {
		if !ok {
			c.bad(path, "want %s, got %s", what, jsonKind(v))
		}
		return ok
	}
	if into, ok := reflect.New(t).Interface().(encoding.TextUnmarshaler); ok {
		s, isText := v.(string)
		if want(isText, "text") {
			if err := into.UnmarshalText([]byte(s)); err != nil {
				c.bad(path, "%s", plainMessage(err))
			}
		}
		return
	}
	if t == reflect.TypeFor[json.RawMessage]() {
		_, ok := v.(*jsonObject)
		want(ok, "an object")
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		object, ok := v.(*jsonObject)
		if !want(ok, "an object") {
			return
		}
		fields, names := jsonFields(t)
		for _, name := range object.names {
			field, known := fields[name]
			if !known {
				c.bad(fieldPath(path, name), "is not known here; known are %s", strings.Join(names, ", "))
				continue
			}
			c.check(fieldPath(path, name), object.values[name], field)
		}
	case reflect.Slice:
		list, ok := v.([]any)
		if !want(ok, "a list") {
			return
		}
		for i, item := range list {
			c.check(fmt.Sprintf("%s[%d]", path, i), item, t.Elem())
		}
	case reflect.String:
		_, ok := v.(string)
		want(ok, "text")
	case reflect.Bool:
		_, ok := v.(bool)
		want(ok, "true or false")
	case reflect.Int:
		n, ok := v.(json.Number)
		if want(ok, "a number") {
			if whole, err := n.Int64(); err != nil || whole < math.MinInt32 || whole > math.MaxInt32 {
				c.bad(path, "want a whole number, got %.40s", n)
			}
		}
	default:
		c.bad(path, "no value is accepted here")
	}
}

// jsonFields are a struct's fields by their JSON names, and these in order.
func jsonFields(t reflect.Type) (map[string]reflect.Type, []string) {
	fields := map[string]reflect.Type{}
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			fields[name] = t.Field(i).Type
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return fields, names
}

func jsonKind(v any) string {
	switch v := v.(type) {
	case nil:
		return "nothing"
	case *jsonObject:
		return "an object"
	case []any:
		return "a list"
	case string:
		return "text"
	case bool:
		return fmt.Sprint(v)
	case json.Number:
		return fmt.Sprintf("the number %.40s", v)
	}
	return "something else"
}
