package policy

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"
)

// mostShown is how large the facts of one rule's result may become, in bytes.
const mostShown = 8 << 10

// factPath is a fact that an expression refers to.
type factPath struct {
	name   string // "hygiene.size"
	fields []string
}

// walk visits an expression and all within it.
func walk(e ast.Expr, visit func(ast.Expr)) {
	ast.PostOrderVisit(e, ast.NewExprVisitor(visit))
}

// paths lists the facts that an expression refers to, as narrowly as it does:
// "hygiene.size" rather than "hygiene". Variables of loops are none.
func (l *language) paths(root ast.Expr) []factPath {
	known := map[string]bool{}
	for _, v := range l.vars {
		known[v.name] = true
	}
	var out []factPath
	add := func(fields []string) {
		name := strings.Join(fields, ".")
		if !slices.ContainsFunc(out, func(p factPath) bool { return p.name == name }) {
			out = append(out, factPath{name, fields})
		}
	}
	var visit func(e ast.Expr, hidden []string)
	visit = func(e ast.Expr, hidden []string) {
		if fields, ok := chain(e); ok {
			if !slices.Contains(hidden, fields[0]) && known[fields[0]] {
				add(fields)
			}
			return
		}
		switch e.Kind() {
		case ast.SelectKind:
			visit(e.AsSelect().Operand(), hidden)
		case ast.CallKind:
			if e.AsCall().IsMemberFunction() {
				visit(e.AsCall().Target(), hidden)
			}
			for _, a := range e.AsCall().Args() {
				visit(a, hidden)
			}
		case ast.ListKind:
			for _, x := range e.AsList().Elements() {
				visit(x, hidden)
			}
		case ast.MapKind:
			for _, x := range e.AsMap().Entries() {
				visit(x.AsMapEntry().Key(), hidden)
				visit(x.AsMapEntry().Value(), hidden)
			}
		case ast.ComprehensionKind:
			c := e.AsComprehension()
			visit(c.IterRange(), hidden)
			visit(c.AccuInit(), hidden)
			within := append(slices.Clone(hidden), c.IterVar(), c.AccuVar())
			visit(c.LoopCondition(), within)
			visit(c.LoopStep(), within)
			visit(c.Result(), within)
		}
	}
	visit(root, nil)
	slices.SortFunc(out, func(a, b factPath) int { return strings.Compare(a.name, b.name) })
	return out
}

// chain reads a.b.c.
func chain(e ast.Expr) ([]string, bool) {
	switch e.Kind() {
	case ast.IdentKind:
		return []string{strings.TrimPrefix(e.AsIdent(), ".")}, true
	case ast.SelectKind:
		fields, ok := chain(e.AsSelect().Operand())
		return append(fields, e.AsSelect().FieldName()), ok
	}
	return nil, false
}

// look reads the facts at those paths, shortened to what people would read:
// lists share what single values leave of the room.
func (l *language) look(f facts, paths []factPath) looked {
	out := looked{}
	left := mostShown
	lists := map[string]reflect.Value{}
	for _, p := range paths {
		v, ok := lookup(reflect.ValueOf(f), p.fields)
		switch {
		case !ok:
		case v.Kind() == reflect.Slice:
			lists[p.name] = v
		default:
			b, err := json.Marshal(v.Interface())
			if err != nil || len(b) > mostShown/4 {
				out[p.name] = fmt.Sprintf("too large to be shown (%d bytes)", len(b))
				continue
			}
			out[p.name] = json.RawMessage(b)
			left -= len(b)
		}
	}
	for i, name := range sortedKeys(lists) {
		shown, size := showList(lists[name], left/(len(lists)-i))
		out[name] = shown
		left -= size
	}
	return out
}

func lookup(v reflect.Value, fields []string) (reflect.Value, bool) {
	for _, name := range fields {
		if v.Kind() == reflect.Pointer {
			v = v.Elem()
		}
		if v.Kind() != reflect.Struct {
			return v, false
		}
		i := slices.IndexFunc(reflect.VisibleFields(v.Type()), func(f reflect.StructField) bool {
			tag, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			return !f.Anonymous && tag == name
		})
		if i < 0 {
			return v, false
		}
		v = v.FieldByIndex(reflect.VisibleFields(v.Type())[i].Index)
	}
	return v, true
}

// showList is as much of a list as fits into so many bytes of JSON.
func showList(v reflect.Value, most int) (list []any, size int) {
	list = []any{}
	for i := range v.Len() {
		b, err := json.Marshal(v.Index(i).Interface())
		if err != nil || size+len(b) > most {
			return append(list, fmt.Sprintf("and %d more", v.Len()-i)), size
		}
		list = append(list, json.RawMessage(b))
		size += len(b) + 1
	}
	return list, size
}
