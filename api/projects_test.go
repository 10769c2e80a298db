package api_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/pipeline"
)

const helloGo = "/api/v1/projects/hello-go"

func TestProjects(t *testing.T) {
	s := newServer(t, wired)
	var page api.List[pipeline.ProjectVersion]
	a := s.get("/api/v1/projects?limit=3")
	s.ok(a, 200, &page)
	if len(page.Items) != 3 || page.Items[0].Project.Name != "base" || !strings.Contains(a.Header.Get("Link"), "cursor=leaky") {
		t.Errorf("%v %s", a.Header, a.body)
	}
	s.ok(s.get("/api/v1/projects?limit=3&cursor=leaky"), 200, &page)
	if len(page.Items) != 1 || page.Items[0].Project.Name != "web" {
		t.Errorf("%+v", page)
	}
	var v pipeline.ProjectVersion
	a = s.get(helloGo)
	s.ok(a, 200, &v)
	if v.Version != 2 || a.Header.Get("ETag") != `"2"` || v.Project.Environments[1].Soak.String() != "1d" {
		t.Errorf("%v %s", a.Header, a.body)
	}
	a = s.get(helloGo + "/versions/1")
	s.ok(a, 200, &v)
	if v.Version != 1 || a.Header.Get("ETag") != `"1"` {
		t.Errorf("%s", a.body)
	}
	for _, missing := range []string{helloGo + "/versions/9", "/api/v1/projects/nothing", "/api/v1/projects/nothing/versions", "/api/v1/projects/nothing/environments"} {
		s.want(s.get(missing), 404, "not-found")
	}
	s.want(s.get(helloGo+"/versions/0"), 422, "invalid")
	a = s.get(helloGo + "/versions?limit=1")
	s.ok(a, 200, &page)
	if len(page.Items) != 1 || page.Items[0].Version != 2 || !strings.Contains(a.Header.Get("Link"), "cursor=2") {
		t.Errorf("%v %s", a.Header, a.body)
	}
	s.ok(s.get(helloGo+"/versions?limit=1&cursor=2"), 200, &page)
	if len(page.Items) != 1 || page.Items[0].Version != 1 {
		t.Errorf("%+v", page)
	}
	s.want(s.get(helloGo+"/versions?cursor=x"), 422, "invalid")
	var states api.List[pipeline.EnvironmentState]
	a = s.get(helloGo + "/environments")
	s.ok(a, 200, &states)
	if len(states.Items) != 2 || states.Items[0].Current != nil || states.Items[1].Waiting[0] != apitest.PromotionWaiting || !strings.Contains(a.body, `"waiting":[]`) {
		t.Errorf("%s", a.body)
	}
	a = s.send("GET", "/api/v1/schemas/project.json", "")
	if a.StatusCode != 200 || a.body != string(pipeline.ProjectSchema()) || a.Header.Get("Content-Type") != "application/schema+json" {
		t.Errorf("%d %v", a.StatusCode, a.Header)
	}
}

func TestApplyProject(t *testing.T) {
	s := newServer(t, func(c *api.Config) {
		wired(c)
		c.CheckProject = func(p pipeline.Project) error {
			if p.Repository == "" || p.CloneURL == "" || p.Source == "" {
				t.Errorf("what the settings say is gone: %+v", p)
			}
			for _, e := range p.Environments {
				if len(e.Rules) > 0 {
					return fmt.Errorf("environment %s, rule %s: undeclared reference: %w", e.Name, e.Rules[0].Name, pipeline.ErrInvalid)
				}
			}
			return nil
		}
	})
	file := pipeline.ProjectFileOf(apitest.HelloGo)
	file.Environments = append([]pipeline.Environment{{Name: "dev", Repository: "dev2.example/{project}"}}, file.Environments...)
	file.Environments[2].Soak, file.Environments[2].Approvals = 0, nil
	raw, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	body := string(raw)

	// A dry run says what would change, by name and not by place.
	var applied api.ProjectApplied
	a := s.send("PUT", helloGo+"?dryRun=true", body, auth)
	s.ok(a, 200, &applied)
	var paths []string
	for _, c := range applied.Changes {
		paths = append(paths, c.Path)
	}
	got := strings.Join(paths, " ")
	for _, want := range []string{"environments ", "environments[dev].repository", "environments[prod].soak", "environments[prod].approvals"} {
		if !strings.Contains(got+" ", want) {
			t.Errorf("%s is not among the changes %s", want, got)
		}
	}
	if strings.Contains(got, "[staging]") || !applied.DryRun || !applied.Changed || applied.Version != 2 || a.Header.Get("ETag") != `"2"` {
		t.Errorf("%s", a.body)
	}
	for _, c := range applied.Changes {
		if c.Path == "environments[prod].soak" && (string(c.From) != `"1d"` || c.To != nil) {
			t.Errorf("%s to %s", c.From, c.To)
		}
	}
	var v pipeline.ProjectVersion
	s.ok(s.get(helloGo), 200, &v)
	if v.Version != 2 {
		t.Error("the dry run applied it")
	}

	// Then it is applied, once.
	a = s.send("PUT", helloGo, body, auth, `If-Match: "2"`)
	s.ok(a, 200, &applied)
	if applied.Version != 3 || a.Header.Get("ETag") != `"3"` || applied.AppliedBy != "grace" || applied.Project.Environments[0].Repository != "dev2.example/hello-go" ||
		applied.Project.CloneURL != apitest.HelloGo.CloneURL {
		t.Errorf("%s", a.body)
	}
	s.want(s.send("PUT", helloGo, body, auth, `If-Match: "2"`), 412, "precondition-failed")
	for _, match := range []string{`If-Match: *`, `If-Match: "3"`, "X-None: x"} {
		var again api.ProjectApplied
		a = s.send("PUT", helloGo, body, auth, match)
		s.ok(a, 200, &again)
		if again.Changed || again.Version != 3 || len(again.Changes) != 0 || !strings.Contains(a.body, `"changes":[]`) {
			t.Errorf("%s: %s", match, a.body)
		}
	}
	// Somebody was faster between the look and the write.
	s.store.Fail("ApplyProject", pipeline.ErrConflict, 1, false)
	s.want(s.send("PUT", helloGo, strings.Replace(body, `"latest":true`, `"latest":false`, 1), auth, `If-Match: "3"`), 412, "precondition-failed")

	for name, tc := range map[string]struct {
		body, header, problem, location string
		status                          int
	}{
		"not JSON":        {"name: x", "", "invalid", "body", 422},
		"no body":         {"", "", "malformed", "", 400},
		"unknown":         {strings.Replace(body, `"auto":true`, `"autos":true`, 1), "", "invalid", "body.environments[1].autos", 422},
		"another name":    {strings.Replace(body, `"name":"hello-go"`, `"name":"web"`, 1), "", "invalid", "", 422},
		"circle":          {strings.Replace(body, `"after":["staging"]`, `"after":["prod"]`, 1), "", "invalid", "body", 422},
		"place of builds": {strings.Replace(body, "dev2.example/{project}", apitest.Good.Repository, 1), "", "invalid", "", 422},
		"rule":            {strings.Replace(body, `"auto":true`, `"rules":[{"name":"mine","expr":"x"}]`, 1), "", "invalid", "", 422},
		"YAML":            {body, "Content-Type: application/yaml", "unsupported-media-type", "", 415},
		"If-Match":        {body, "If-Match: yesterday", "invalid", "", 422},
		"too large":       {`{"name":"` + strings.Repeat("x", pipeline.MaxProjectFile) + `"}`, "", "too-large", "", 413},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			headers := []string{auth}
			if tc.header != "" {
				headers = append(headers, tc.header)
			}
			p := s.want(s.send("PUT", helloGo, tc.body, headers...), tc.status, tc.problem)
			if tc.location != "" && (len(p.Errors) == 0 || p.Errors[0].Location != tc.location) {
				t.Errorf("%+v", p)
			}
		})
	}
	s.t = t
	s.want(s.send("PUT", "/api/v1/projects/nothing", strings.Replace(body, `"name":"hello-go"`, `"name":"nothing"`, 1), auth), 404, "not-found")
	none := newServer(t)
	none.want(none.send("PUT", helloGo, body, auth), 501, "disabled")
}

func TestExceptions(t *testing.T) {
	s := newServer(t, atNow)
	path := helloGo + "/exceptions"
	var page api.List[pipeline.Exception]
	s.ok(s.get(path), 200, &page)
	if len(page.Items) != 1 {
		t.Errorf("%+v", page)
	}
	s.ok(s.get(path+"?all=true&limit=1"), 200, &page)
	if len(page.Items) != 1 || page.Items[0].ID != apitest.Exception {
		t.Errorf("%+v", page)
	}
	var e pipeline.Exception
	a := s.send("POST", path, `{"finding":"CVE-1","environment":"prod","package":"p","reason":"r","expiresAt":"2026-04-01T00:00:00Z"}`, auth)
	s.ok(a, 201, &e)
	if e.Author != "grace" || e.Project != "hello-go" || !strings.HasPrefix(e.ID, "exc_") {
		t.Errorf("%s", a.body)
	}
	for name, body := range map[string]string{
		"past":        `{"finding":"CVE-1","reason":"r","expiresAt":"2020-01-01T00:00:00Z"}`,
		"far":         `{"finding":"CVE-1","reason":"r","expiresAt":"2030-01-01T00:00:00Z"}`,
		"no end":      `{"finding":"CVE-1","reason":"r"}`,
		"no reason":   `{"finding":"CVE-1","reason":" ","expiresAt":"2026-04-01T00:00:00Z"}`,
		"image":       `{"finding":"CVE-1","image":"latest","reason":"r","expiresAt":"2026-04-01T00:00:00Z"}`,
		"environment": `{"finding":"CVE-1","environment":"moon","reason":"r","expiresAt":"2026-04-01T00:00:00Z"}`,
		"author":      `{"finding":"CVE-1","author":"ada","reason":"r","expiresAt":"2026-04-01T00:00:00Z"}`,
	} {
		if p := s.want(s.send("POST", path, body, auth), 422, "invalid"); p.Detail == "" {
			t.Errorf("%s: no detail", name)
		}
	}
	for range 2 {
		s.ok(s.send("DELETE", path+"/"+e.ID, "", auth), 200, &e)
	}
	if e.RevokedBy != "grace" {
		t.Errorf("%+v", e)
	}
	s.want(s.send("DELETE", "/api/v1/projects/web/exceptions/"+e.ID, "", auth), 404, "not-found")
	s.want(s.get("/api/v1/projects/nothing/exceptions"), 404, "not-found")
}

func TestVEX(t *testing.T) {
	s := newServer(t, atNow)
	path := helloGo + "/vex"
	body := `{"document":"e30K","signature":"Z29vZA=="}`
	if p := s.want(s.send("POST", path, body, auth), 422, "unverified"); !strings.Contains(p.Detail, "trustedVEXKeys") {
		t.Errorf("%s", p.Detail)
	}
	trusting := apitest.HelloGo
	trusting.TrustedVEXKeys = []string{apitest.PublicKey}
	s.store.AddProject(trusting, "grace")
	var v api.VEXView
	s.ok(s.send("POST", path, body, auth), 201, &v)
	if v.UploadedBy != "grace" || v.Document != nil {
		t.Errorf("%+v", v)
	}
	s.want(s.send("POST", path, strings.Replace(body, "Z29vZA==", "YmFk", 1), auth), 422, "unverified")
	s.want(s.send("POST", path, `{"document":"no base64!","signature":"YmFk"}`, auth), 422, "invalid")
	var page api.List[api.VEXView]
	s.ok(s.get(path), 200, &page)
	if len(page.Items) != 2 || page.Items[1].Author != "acme security" || page.Items[1].Statements[0].Vulnerability != "CVE-2024-45337" || page.Items[0].Document != nil {
		t.Errorf("%+v", page)
	}
	s.ok(s.get(path+"?documents=true"), 200, &page)
	if string(page.Items[0].Document) != "{}\n" || string(page.Items[0].Signature) != "good" {
		t.Errorf("%+v", page.Items[0])
	}
	none := newServer(t)
	none.want(none.send("POST", path, body, auth), 501, "disabled")
}

func TestRegistriesAndDrift(t *testing.T) {
	s := newServer(t, atNow)
	var probes api.List[pipeline.RegistryProbe]
	s.ok(s.get("/api/v1/registries"), 200, &probes)
	if len(probes.Items) != 2 || probes.Items[0].Host != "other.example" {
		t.Errorf("%+v", probes)
	}
	s.ok(s.send("POST", "/api/v1/registries/prod.example/probe", "", auth), 200, nil)
	s.want(s.send("POST", "/api/v1/registries/evil.example/probe", "", auth), 404, "not-found")
	none := newServer(t)
	none.want(none.send("POST", "/api/v1/registries/prod.example/probe", "", auth), 501, "disabled")
	var drift api.List[pipeline.Drift]
	for query, want := range map[string]int{"": 1, "?all=true": 2, "?project=web": 0, "?project=hello-go&all=true": 2} {
		s.ok(s.get("/api/v1/drift"+query), 200, &drift)
		if len(drift.Items) != want {
			t.Errorf("%s: %d, want %d", query, len(drift.Items), want)
		}
	}
}
