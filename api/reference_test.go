package api_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/dray-project/dray/api"
)

// TestReferencePage: the page about the API has every address, every problem
// and every role.
func TestReferencePage(t *testing.T) {
	raw, err := os.ReadFile("../docs/reference/api.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(raw)
	for name := range newServer(t).described() {
		method, path, _ := strings.Cut(name, " ")
		line := ""
		for l := range strings.Lines(page) {
			if strings.HasPrefix(l, "|") && (strings.Contains(l, " "+path+"`") || strings.Contains(l, " "+path+"?")) && strings.Contains(l, method) {
				line = l
			}
		}
		if line == "" {
			t.Errorf("the page's table does not have %s", name)
		}
	}
	for _, name := range api.ProblemNames() {
		if !strings.Contains(page, "| `"+name+"` |") {
			t.Errorf("the page does not describe the problem %s", name)
		}
	}
	for role := range allowed {
		if role != "approver" && !slices.Contains(everywhere, role) && !strings.Contains(page, "`"+role+"`") {
			t.Errorf("the page does not describe the role %s", role)
		}
	}
}
