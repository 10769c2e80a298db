package policy

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/env"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"github.com/Masterminds/semver/v3"

	"github.com/dray-project/dray/pipeline"
)

// Limits of an expression. What it costs is counted the same way everywhere, so
// that the same facts give the same answer; the time is for what is not counted.
const (
	maxExpression = 4096 // characters
	maxNesting    = 40   // of parentheses and calls
	maxLoops      = 4    // within one another, or after one another
	maxCost       = 3_000_000
	maxTime       = 5 * time.Second
	maxTypeDepth  = 3 // lists in lists
	checkEvery    = 100
)

// language is the dialect of CEL in which rules are written: the facts as
// declared types, the standard functions but dyn, and a few of Dray's own.
type language struct {
	env  *cel.Env
	vars []variable
}

// variable is one of the facts.
type variable struct {
	name string
	path []int // of the field in Facts
}

func newLanguage() (*language, error) {
	schema, err := newSchema(reflect.TypeFor[facts]())
	if err != nil {
		return nil, err
	}
	without := env.NewLibrarySubset().AddExcludedFunctions(env.NewFunction("dyn"))
	opts := []cel.EnvOption{
		cel.StdLib(cel.StdLibSubset(without)),
		cel.CustomTypeAdapter(schema), cel.CustomTypeProvider(schema),
		cel.DefaultUTCTimeZone(true), cel.CrossTypeNumericComparisons(true),
		cel.ParserExpressionSizeLimit(maxExpression), cel.ParserRecursionLimit(maxNesting),
		cel.ASTValidators(cel.ValidateDurationLiterals(), cel.ValidateTimestampLiterals(), cel.ValidateRegexLiterals(),
			cel.ValidateHomogeneousAggregateLiterals(), cel.ValidateComprehensionNestingLimit(maxLoops), cel.ValidateRegexProgramSizeLimit(1000)),
	}
	for s := pipeline.SeverityUnknown; s <= pipeline.SeverityCritical; s++ {
		opts = append(opts, cel.Constant(strings.ToUpper(s.String()), cel.IntType, types.Int(s)))
	}
	opts = append(opts, functions()...)
	l := &language{}
	root := schema.objects[factsType]
	for _, f := range root.order {
		l.vars = append(l.vars, variable{f.name, f.path})
		opts = append(opts, cel.Variable(f.name, f.celType))
	}
	l.env, err = cel.NewCustomEnv(opts...)
	return l, err
}

// functions that CEL does not have and rules want.
func functions() []cel.EnvOption {
	str := func(v ref.Val) string { s, _ := v.(types.String); return string(s) }
	// Arguments of any length are beyond what versions and names look like, and
	// their cost is not counted.
	tooLong := func(args ...ref.Val) bool {
		for _, a := range args {
			if len(str(a)) > 1024 {
				return true
			}
		}
		return false
	}
	return []cel.EnvOption{
		cel.Function("severity", cel.Overload("severity_string", []*cel.Type{cel.StringType}, cel.IntType,
			cel.UnaryBinding(func(v ref.Val) ref.Val {
				s, err := pipeline.ParseSeverity(str(v))
				if err != nil {
					return types.NewErr("%v", err)
				}
				return types.Int(s)
			}))),
		cel.Function("days", cel.Overload("days_int", []*cel.Type{cel.IntType}, cel.DurationType,
			cel.UnaryBinding(func(v ref.Val) ref.Val {
				n, ok := v.(types.Int)
				if !ok || n < 0 || n > 36500 {
					return types.NewErr("days: want 0 to 36500")
				}
				return types.Duration{Duration: time.Duration(n) * 24 * time.Hour}
			}))),
		cel.Function("compareVersions", cel.Overload("compare_versions_string_string", []*cel.Type{cel.StringType, cel.StringType}, cel.IntType,
			cel.BinaryBinding(func(x, y ref.Val) ref.Val {
				if tooLong(x, y) {
					return types.NewErr("compareVersions: a version is too long")
				}
				a, err := semver.NewVersion(str(x))
				if err != nil {
					return types.NewErr("compareVersions: %q is no semantic version", str(x))
				}
				b, err := semver.NewVersion(str(y))
				if err != nil {
					return types.NewErr("compareVersions: %q is no semantic version", str(y))
				}
				return types.Int(a.Compare(b))
			}))),
		cel.Function("glob", cel.MemberOverload("string_glob_string", []*cel.Type{cel.StringType, cel.StringType}, cel.BoolType,
			cel.BinaryBinding(func(s, pattern ref.Val) ref.Val {
				if tooLong(s, pattern) {
					return types.NewErr("glob: a name or a pattern is too long")
				}
				g := globs{str(pattern)}
				if err := g.check("glob"); err != nil {
					return types.NewErr("%v", err)
				}
				return types.Bool(g.match(str(s)))
			}))),
	}
}

// compile makes a rule of an expression.
func (l *language) compile(r pipeline.Rule) (func(facts) result, error) {
	if len(r.Reason) > 1000 || len(r.Remedy) > 1000 {
		return nil, fmt.Errorf("reason and remedy: at most 1000 characters each: %w", pipeline.ErrInvalid)
	}
	checked, issues := l.env.Compile(r.Expr)
	if err := issues.Err(); err != nil {
		return nil, fmt.Errorf("expr does not compile: %.1000s: %w", explain(err), pipeline.ErrInvalid)
	}
	if t := checked.OutputType(); !t.IsExactType(cel.BoolType) {
		return nil, fmt.Errorf("expr is of type %s: want bool, true to let the image pass: %w", t, pipeline.ErrInvalid)
	}
	if err := bounded(checked.NativeRep()); err != nil {
		return nil, fmt.Errorf("expr: %w", err)
	}
	program, err := l.env.Program(checked, cel.CostLimit(maxCost), cel.InterruptCheckFrequency(checkEvery))
	if err != nil {
		return nil, fmt.Errorf("expr cannot be used: %w", invalid(err))
	}
	brief := strings.Join(strings.Fields(r.Expr), " ")
	if len(brief) > 300 {
		brief = strings.ToValidUTF8(brief[:300], "") + "…"
	}
	paths := l.paths(checked.NativeRep().Expr())
	var used []variable
	for _, v := range l.vars {
		if slices.ContainsFunc(paths, func(p factPath) bool { return p.fields[0] == v.name }) {
			used = append(used, v)
		}
	}
	return func(f facts) result {
		looked := l.look(f, paths)
		ok, err := l.eval(program, f, used)
		switch {
		case err != nil:
			res := unusable(r.Name, err)
			res.Facts = looked
			return res
		case ok:
			return pass(looked, "this holds: %s", brief)
		}
		reason, remedy := r.Reason, r.Remedy
		if reason == "" {
			reason = "this does not hold: " + brief
		}
		if remedy == "" {
			remedy = "make this hold: " + brief
		}
		return refuse(looked, remedy, "%s", reason)
	}, nil
}

// explain puts the issues of a compiler on one line.
func explain(err error) string {
	var lines []string
	for line := range strings.Lines(err.Error()) {
		line = strings.TrimSpace(line)
		// Lines that begin with a bar show the source and point into it.
		if line != "" && !strings.HasPrefix(line, "|") {
			lines = append(lines, strings.TrimPrefix(line, "ERROR: <input>:"))
		}
	}
	return strings.Join(lines, "; ")
}

// eval shows an expression the facts that it uses, and no others: there may be
// many findings.
func (l *language) eval(program cel.Program, f facts, used []variable) (bool, error) {
	ctx, cancel := context.WithTimeout(context.Background(), maxTime)
	defer cancel()
	input := make(map[string]any, len(used))
	v := reflect.ValueOf(f)
	for _, u := range used {
		input[u.name] = toCEL(v.FieldByIndex(u.path))
	}
	out, _, err := program.ContextEval(ctx, input)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return false, fmt.Errorf("the expression took more than %s", maxTime)
	case err != nil && strings.Contains(err.Error(), "cost limit"):
		return false, errors.New("the expression costs too much to evaluate")
	case err != nil:
		return false, fmt.Errorf("%.500s", err.Error())
	}
	b, ok := out.(types.Bool)
	if !ok {
		return false, fmt.Errorf("the expression gave %s, not bool", out.Type().TypeName())
	}
	return bool(b), nil
}

// bounded refuses what could take unbounded work for little counted cost: deep
// lists of lists, which grow twofold with each step and are compared whole.
func bounded(a *ast.AST) error {
	for _, t := range a.TypeMap() {
		if depth(t) > maxTypeDepth {
			return fmt.Errorf("a value of type %.100s is nested too deeply: %w", t.String(), pipeline.ErrInvalid)
		}
	}
	var err error
	walk(a.Expr(), func(e ast.Expr) {
		if e.Kind() == ast.StructKind {
			err = fmt.Errorf("values of type %.60s cannot be made: %w", e.AsStruct().TypeName(), pipeline.ErrInvalid)
		}
	})
	return err
}

func depth(t *types.Type) int {
	deepest := 0
	if t.Kind() != types.ListKind && t.Kind() != types.MapKind {
		return 0
	}
	for _, p := range t.Parameters() {
		deepest = max(deepest, depth(p))
	}
	return deepest + 1
}
