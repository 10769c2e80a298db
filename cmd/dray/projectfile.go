package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/policy"
)

// projectFile is a project file as it was read.
type projectFile struct {
	name string // of the file, for messages
	json []byte
	// lines of the fields, by their paths.
	lines map[string]int
	pipeline.ProjectFile
}

// readProjectFile reads YAML, of which JSON is a part; "-" is standard input.
func (a *app) readProjectFile(name string) (*projectFile, error) {
	in := a.stdin
	f := &projectFile{name: name, lines: map[string]int{}}
	if name == "-" {
		f.name = "standard input"
	} else {
		file, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read the project file: %w", err)
		}
		defer file.Close()
		in = file
	}
	raw, err := io.ReadAll(io.LimitReader(in, pipeline.MaxProjectFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the project file: %w", err)
	}
	if len(raw) > pipeline.MaxProjectFile {
		return nil, usage("%s: a project file has at most %d bytes", f.name, pipeline.MaxProjectFile)
	}
	if err := f.convert(raw); err != nil {
		return nil, usage("%s: %w", f.name, err)
	}
	if f.ProjectFile, err = pipeline.ParseProjectFile(f.json); err != nil {
		return nil, f.located(err)
	}
	return f, nil
}

// compile checks every gate as the server would.
func (f *projectFile) compile(ctx context.Context) error {
	judge, err := policy.New(ctx, policy.Config{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	var problems []string
	check := func(path, what string, g pipeline.Gate) {
		if err := judge.Check(g); err != nil {
			problems = append(problems, fmt.Sprintf("%s:%d: %s: %v", f.name, f.line(path), what, err))
		}
	}
	check("rules", "the project's gate", f.ApplyTo(pipeline.Project{}).BuildGate())
	for i, e := range f.Environments {
		path := fmt.Sprintf("environments[%d]", i)
		check(path, "environment "+e.Name, e.EntryGate(pipeline.ActionPromote))
		if e.Rollback != nil {
			check(path+".rollback", "environment "+e.Name+", rollback", e.EntryGate(pipeline.ActionRollback))
		}
	}
	if len(problems) > 0 {
		return &usageError{errors.New(strings.Join(problems, "\n"))}
	}
	return nil
}

// located puts the file's name and line before what is wrong with it, whether
// it was found here or by the server.
func (f *projectFile) located(err error) error {
	var problems []pipeline.FieldProblem
	var file *pipeline.FileError
	var p *client.Problem
	switch {
	case errors.As(err, &file):
		problems = file.Problems
	case errors.As(err, &p) && p.Status == 422 && len(p.Errors) > 0:
		for _, e := range p.Errors {
			problems = append(problems, pipeline.FieldProblem{Path: strings.TrimPrefix(strings.TrimPrefix(e.Location, "body"), "."), Message: e.Message})
		}
	default:
		return err
	}
	var lines []string
	for _, p := range problems {
		at := f.name
		if line := f.line(p.Path); line > 0 {
			at = fmt.Sprintf("%s:%d", f.name, line)
		}
		lines = append(lines, at+": "+p.String())
	}
	return &usageError{errors.New(strings.Join(lines, "\n"))}
}

// line of a path, or of the nearest thing around it.
func (f *projectFile) line(path string) int {
	for path != "" {
		if n, ok := f.lines[path]; ok {
			return n
		}
		path = path[:max(strings.LastIndexAny(path, ".["), 0)]
	}
	return 0
}

// convert writes YAML as JSON. What makes YAML dangerous or surprising is not
// read: anchors and aliases, tags, several documents.
func (f *projectFile) convert(raw []byte) error {
	decoder := yaml.NewDecoder(bytes.NewReader(raw))
	var doc, more yaml.Node
	if err := decoder.Decode(&doc); errors.Is(err, io.EOF) {
		return errors.New("the file is empty")
	} else if err != nil {
		return err
	}
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return errors.New("there is a second document; a project file has one")
	}
	var b bytes.Buffer
	if err := f.write(&b, doc.Content[0], "", 0); err != nil {
		return err
	}
	f.json = b.Bytes()
	return nil
}

// maxDepth is more than a project file needs.
const maxDepth = 32

func (f *projectFile) write(b *bytes.Buffer, n *yaml.Node, path string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("line %d: nested more than %d deep", n.Line, maxDepth)
	}
	if n.Kind == yaml.AliasNode || n.Anchor != "" {
		return fmt.Errorf("line %d: anchors and aliases are not read; write it out", n.Line)
	}
	if n.Style&yaml.TaggedStyle != 0 {
		return fmt.Errorf("line %d: the tag %.40s is not read", n.Line, n.Tag)
	}
	if _, first := f.lines[path]; !first {
		f.lines[path] = n.Line
	}
	switch n.Kind {
	case yaml.MappingNode:
		return f.writeMapping(b, n, path, depth)
	case yaml.SequenceNode:
		b.WriteByte('[')
		for i, item := range n.Content {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := f.write(b, item, fmt.Sprintf("%s[%d]", path, i), depth+1); err != nil {
				return err
			}
		}
		b.WriteByte(']')
		return nil
	}
	return writeScalar(b, n)
}

func (f *projectFile) writeMapping(b *bytes.Buffer, n *yaml.Node, path string, depth int) error {
	b.WriteByte('{')
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		switch {
		case key.Kind != yaml.ScalarNode || key.Anchor != "" || key.ShortTag() == "!!merge":
			return fmt.Errorf("line %d: want a plain name before the colon", key.Line)
		case seen[key.Value]:
			return fmt.Errorf("line %d: %.80s is given twice", key.Line, key.Value)
		}
		seen[key.Value] = true
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(key.Value)
		if err != nil {
			return err
		}
		b.Write(name)
		b.WriteByte(':')
		at := strings.TrimPrefix(path+"."+key.Value, ".")
		f.lines[at] = key.Line
		if err := f.write(b, n.Content[i+1], at, depth+1); err != nil {
			return err
		}
	}
	b.WriteByte('}')
	return nil
}

// writeScalar takes text as it is written: a date is text, and so is anything
// that YAML would read as a number and JSON would not.
func writeScalar(b *bytes.Buffer, n *yaml.Node) error {
	switch tag := n.ShortTag(); {
	case tag == "!!null":
		b.WriteString("null")
		return nil
	case tag == "!!bool":
		var v bool
		if err := n.Decode(&v); err != nil {
			return err
		}
		fmt.Fprint(b, v)
		return nil
	case (tag == "!!int" || tag == "!!float") && json.Valid([]byte(n.Value)):
		b.WriteString(n.Value)
		return nil
	}
	text, err := json.Marshal(n.Value)
	b.Write(text)
	return err
}
