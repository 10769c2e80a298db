package main

import (
	"fmt"
	"io"
	"reflect"
	"strings"
	"time"
)

// WriteReference writes the reference page of the settings, from the types
// themselves: docs/reference/settings.md is what it prints.
func WriteReference(w io.Writer) error {
	var b strings.Builder
	b.WriteString(`# Settings of drayd

<!-- Written by "drayd settings". Change cmd/drayd/settings.go, then run "make docs". -->

drayd reads a YAML file (` + "`--config`, or `DRAY_CONFIG`" + `), then the environment, then
flags; the later one wins. A name that is not on this page is an error, so a
typing mistake does not go unnoticed. ` + "`drayd check`" + ` tries every setting and
connection and says what is wrong.

A duration is written as ` + "`90s`, `30m` or `72h`" + `. A list in an environment variable
or a flag has commas between its items. What ends in ` + "`_file`" + ` names a file whose
content is the value, without the line end: the way to hand over a secret.

## Single settings

| setting and flag | environment | type | default | |
|---|---|---|---|---|
`)
	for _, l := range settingLeaves() {
		def := "`" + l.Default + "`"
		if l.Default == "" {
			def = ""
		}
		fmt.Fprintf(&b, "| `--%s` | `%s` | %s | %s | %s |\n", l.Path, l.Env, typeName(l.Type), def, l.Help)
	}
	b.WriteString("\n## Lists, in the file only\n")
	t := reflect.TypeFor[Settings]()
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct {
			fmt.Fprintf(&b, "\n### `%s`\n\n%s\n\n| setting | type | |\n|---|---|---|\n", f.Tag.Get("koanf"), f.Tag.Get("help"))
			listRows(&b, f.Type.Elem(), "")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func listRows(b *strings.Builder, t reflect.Type, prefix string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name := prefix + f.Tag.Get("koanf")
		switch {
		case f.Type.Kind() == reflect.Struct:
			listRows(b, f.Type, name+".")
		case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			fmt.Fprintf(b, "| `%s` | list | %s |\n", name, f.Tag.Get("help"))
			listRows(b, f.Type.Elem(), name+"[].")
		default:
			fmt.Fprintf(b, "| `%s` | %s | %s |\n", name, typeName(f.Type), f.Tag.Get("help"))
		}
	}
}

func typeName(t reflect.Type) string {
	switch {
	case t == reflect.TypeFor[time.Duration]():
		return "duration"
	case t.Kind() == reflect.Slice:
		return "list"
	case t.Kind() == reflect.Bool:
		return "true or false"
	case t.Kind() == reflect.Int:
		return "number"
	default:
		return "text"
	}
}
