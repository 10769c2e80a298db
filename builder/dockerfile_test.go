package builder

import (
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

const someDigest = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"

func TestBases(t *testing.T) {
	for name, c := range map[string]struct {
		text   string
		target string
		args   map[string]string
		want   string // "line name[@digest] platform", separated by commas
	}{
		"one":          {text: "FROM alpine", want: "1 docker.io/library/alpine:latest linux/arm64"},
		"scratch":      {text: "FROM scratch", want: ""},
		"pinned":       {text: "FROM alpine@" + someDigest, want: "1 docker.io/library/alpine@" + someDigest + " linux/arm64"},
		"tag and pin":  {text: "FROM ghcr.io/a/b:1@" + someDigest, want: "1 ghcr.io/a/b:1@" + someDigest + " linux/arm64"},
		"stages":       {text: "FROM golang:1.26 AS build\nFROM build AS test\nFROM scratch\nCOPY --from=test /a /\n", want: "1 docker.io/library/golang:1.26 linux/arm64"},
		"not reached":  {text: "FROM golang AS build\nFROM node AS never\nFROM scratch\nCOPY --from=build /a /\n", want: "1 docker.io/library/golang:latest linux/arm64"},
		"target":       {text: "FROM a AS one\nFROM b AS two\n", target: "ONE", want: "1 docker.io/library/a:latest linux/arm64"},
		"target index": {text: "FROM a\nFROM b\n", target: "0", want: "1 docker.io/library/a:latest linux/arm64"},
		"copy image":   {text: "FROM scratch\nCOPY --from=busybox:musl /bin /bin\nCOPY --from=busybox:musl /etc /etc\n", want: "2 docker.io/library/busybox:musl linux/arm64"},
		"copy index":   {text: "FROM a\nFROM scratch\nCOPY --from=0 / /\n", want: "1 docker.io/library/a:latest linux/arm64"},
		"mount":        {text: "FROM a\nRUN --mount=type=bind,from=b:2,target=/m --mount=type=cache,target=/c true\n", want: "1 docker.io/library/a:latest linux/arm64,2 docker.io/library/b:2 linux/arm64"},
		"mount stage":  {text: "FROM b AS tools\nFROM a\nRUN --mount=from=tools,target=/m true\n", want: "1 docker.io/library/b:latest linux/arm64,2 docker.io/library/a:latest linux/arm64"},
		"args":         {text: "ARG V=1\nARG IMG=reg.example/go:${V}\nFROM ${IMG}-alpine\n", want: "3 reg.example/go:1-alpine linux/arm64"},
		"args given":   {text: "ARG V=1\nARG IMG=reg.example/go:${V}\nFROM $IMG\n", args: map[string]string{"V": "2"}, want: "3 reg.example/go:2 linux/arm64"},
		"default":      {text: "FROM a:${NONE:-3}\n", want: "1 docker.io/library/a:3 linux/arm64"},
		"build":        {text: "FROM --platform=$BUILDPLATFORM a\n", want: "1 docker.io/library/a:latest linux/amd64"},
		"fixed":        {text: "FROM --platform=linux/s390x a\n", want: "1 docker.io/library/a:latest linux/s390x"},
		"by arch":      {text: "FROM a AS base-amd64\nFROM b AS base-arm64\nFROM base-${TARGETARCH}\n", want: "2 docker.io/library/b:latest linux/arm64"},
		"same name":    {text: "FROM golang AS golang\nRUN true\nFROM scratch\nCOPY --from=golang / /\n", want: "1 docker.io/library/golang:latest linux/arm64"},
		"later stage":  {text: "FROM scratch\nCOPY --from=late / /\nFROM a AS late\n", target: "0", want: "3 docker.io/library/a:latest linux/arm64"},
		"escape":       {text: "# escape=`\nFROM a `\n  AS x\n", want: "2 docker.io/library/a:latest linux/arm64"},
		"heredoc":      {text: "FROM a\nRUN <<EOF\nFROM evil\nEOF\n", want: "1 docker.io/library/a:latest linux/arm64"},
		"bom and crlf": {text: "\xef\xbb\xbfFROM a\r\nRUN true\r\n", want: "1 docker.io/library/a:latest linux/arm64"},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := parseDockerfile("Dockerfile", []byte(c.text), nil)
			if err != nil {
				t.Fatal(err)
			}
			list, err := d.bases(c.target, c.args, "linux/amd64", "linux/arm64")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, b := range list {
				s := string(rune('0'+b.line)) + " " + b.name
				if b.digest != "" {
					s += "@" + string(b.digest)
				}
				got = append(got, s+" "+string(b.platform))
			}
			if s := strings.Join(got, ","); s != c.want {
				t.Errorf("got  %s\nwant %s", s, c.want)
			}
		})
	}
}

func TestDockerfileRefusals(t *testing.T) {
	for name, c := range map[string]struct {
		text   string
		target string
		says   []string
	}{
		"empty":           {"", "", []string{"Dockerfile: "}},
		"comment":         {"# nothing\n", "", []string{"Dockerfile:1: ", "file with no instructions"}},
		"no from":         {"RUN true\n", "", []string{"Dockerfile:1: ", "no build stage"}},
		"args only":       {"ARG A\n", "", []string{"no FROM"}},
		"parser":          {"FROM a\n\nENV\n", "", []string{"Dockerfile:3: ", "ENV requires at least one argument"}},
		"instruction":     {"FROM a\nBREW x\n", "", []string{"Dockerfile:2: unknown instruction: BREW"}},
		"bad name":        {"FROM Alpine:Latest\n", "", []string{"Dockerfile:1: ", "must be lowercase"}},
		"bad copy":        {"FROM a\nCOPY --from=A?B / /\n", "", []string{"Dockerfile:2: ", "invalid reference"}},
		"sha512":          {"FROM a@sha512:" + strings.Repeat("a", 128) + "\n", "", []string{"Dockerfile:1: ", "want sha256"}},
		"blank":           {"ARG X\nFROM $X\n", "", []string{"Dockerfile:2: ", "is empty"}},
		"bad platform":    {"FROM --platform=a/b/c/d a\n", "", []string{"Dockerfile:1: "}},
		"no stage":        {"FROM a AS x\nFROM b AS y\n", "z", []string{`no stage "z"`, "stages are x, y"}},
		"unnamed stage":   {"FROM a\n", "z", []string{"stages are not named"}},
		"many stages":     {strings.Repeat("FROM a\n", maxStages+1), "", []string{"more than 500 stages"}},
		"growing args":    {"ARG A=xxxxxxxxxxxxxxxx\n" + strings.Repeat("ARG A=$A$A$A$A$A$A$A$A\n", 40) + "FROM $A\n", "", []string{"Dockerfile:4: ", "longer than 4096 bytes"}},
		"long word":       {"FROM " + strings.Repeat("$A", maxWord) + "\n", "", []string{"Dockerfile:1: ", "longer than"}},
		"security":        {"FROM a\nRUN --security=insecure x\n", "", []string{"Dockerfile:2: ", "security.insecure"}},
		"network":         {"FROM a\nRUN --network=host x\n", "", []string{"Dockerfile:2: ", "network.host"}},
		"syntax":          {"#syntax = evil.example/frontend:1\nFROM a\n", "", []string{"Dockerfile:1: ", "evil.example/frontend:1"}},
		"syntax, upper":   {"# SYNTAX=evil\nFROM a\n", "", []string{"evil"}},
		"syntax, c style": {"// syntax=evil\nFROM a\n", "", []string{"evil"}},
		"syntax, json":    {"{\"syntax\": \"evil\"}", "", []string{"evil"}},
		"syntax, shebang": {"#!/usr/bin/env x\n# syntax=evil\nFROM a\n", "", []string{"evil"}},
		"syntax, later":   {"# escape=`\n# syntax=evil\nFROM a\n", "", []string{"Dockerfile:2: ", "evil"}},
		"syntax, bom":     {"\xef\xbb\xbf# syntax=evil\nFROM a\n", "", []string{"evil"}},
		"syntax, tag":     {"# syntax=docker/dockerfile:1@sha256:" + strings.Repeat("b", 64) + "\nFROM a\n", "", []string{"not on the list"}},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			d, err := parseDockerfile("Dockerfile", []byte(c.text), []pipeline.Digest{someDigest})
			if err == nil {
				_, err = d.bases(c.target, nil, "linux/amd64", "linux/amd64")
			}
			wantPermanent(t, err, c.says...)
			if took := time.Since(start); took > time.Second {
				t.Errorf("it took %s", took)
			}
		})
	}
}

func TestAllowedFrontend(t *testing.T) {
	text := []byte("# syntax=docker/dockerfile:1@" + someDigest + "\nFROM a\n")
	if _, err := parseDockerfile("Dockerfile", text, []pipeline.Digest{someDigest}); err != nil {
		t.Error(err)
	}
}

func FuzzDockerfile(f *testing.F) {
	f.Add("ARG A=1\nFROM --platform=$BUILDPLATFORM a:$A AS b\nRUN --mount=from=c,target=/x true\nFROM b\nCOPY --from=0 / /\n")
	f.Add("FROM a\nRUN <<EOF cat\nx\nEOF\n")
	f.Add("# escape=`\nFROM ${A:-b}${C##x}${D//y/z}\n")
	f.Fuzz(func(t *testing.T, text string) {
		d, err := parseDockerfile("Dockerfile", []byte(text), nil)
		if err == nil {
			_, err = d.bases("", map[string]string{"A": "x"}, "linux/amd64", "linux/arm64")
		}
		if err != nil && !pipeline.IsPermanent(err) {
			t.Errorf("not permanent: %v", err)
		}
	})
}
