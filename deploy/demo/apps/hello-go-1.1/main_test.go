package main

import (
	"net/http/httptest"
	"testing"

	"github.com/google/uuid"
)

func TestGreets(t *testing.T) {
	for path, want := range map[string]string{
		"/":        "Hello, world!\n",
		"/Ada":     "Hello, Ada!\n",
		"/healthz": "ok\n",
	} {
		w := httptest.NewRecorder()
		handler().ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		if got := w.Body.String(); got != want {
			t.Errorf("GET %s: %q, want %q", path, got, want)
		}
		if path == "/healthz" {
			continue
		}
		if _, err := uuid.Parse(w.Header().Get("X-Request-Id")); err != nil {
			t.Errorf("GET %s: the request has no id: %v", path, err)
		}
	}
}

func TestTitle(t *testing.T) {
	for page, want := range map[string]string{
		"<html><head><title> Hello </title></head></html>": "Hello",
		"<p>no title</p>": "",
		"":                "",
	} {
		if got := title(page); got != want {
			t.Errorf("title(%q) = %q, want %q", page, got, want)
		}
	}
}
