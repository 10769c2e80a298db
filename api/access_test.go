package api_test

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/dray-project/dray/api"
	"github.com/dray-project/dray/api/apitest"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger/ledgertest"
)

const projectFile = `{"apiVersion":"dray/v1","kind":"Project","name":"hello-go","environments":[{"name":"prod","repository":"prod.example/acme/{project}"}]}`

// wired gives an API everything that drayd would wire.
func wired(c *api.Config) {
	served, err := ledgertest.Serve(context.Background(), logged...)
	if err != nil {
		panic(err)
	}
	c.Ledger = served
	c.CheckProject = func(pipeline.Project) error { return nil }
	c.CheckVEX = func(d pipeline.VEXDocument, keys []string) error {
		if string(d.Signature) != "good" {
			return fmt.Errorf("signed by no trusted key: %w", pipeline.ErrUnverified)
		}
		return nil
	}
	c.Probe = func(_ context.Context, host string) (pipeline.RegistryProbe, error) {
		if host != "prod.example" {
			return pipeline.RegistryProbe{}, fmt.Errorf("registry %s: %w", host, pipeline.ErrNotFound)
		}
		return pipeline.RegistryProbe{Host: host, Referrers: pipeline.CapabilityYes}, nil
	}
	c.Retainer = retainer{}
	c.Evidence = func(_ context.Context, project string, d pipeline.Digest) (api.EvidenceBundle, error) {
		return bundle("evidence of " + project + " " + string(d)), nil
	}
	c.Eligibility = func(_ context.Context, r pipeline.PromotionRequest) (pipeline.Eligibility, error) {
		if r.Environment == "moon" {
			return pipeline.Eligibility{}, fmt.Errorf("project %s has no environment %q: %w", r.Project, r.Environment, pipeline.ErrInvalid)
		}
		if _, err := pipeline.ParseDigest(r.Image); err != nil || r.Project == "" || r.RequestedBy == "" || len(r.Grants) == 0 || r.Action == "" {
			return pipeline.Eligibility{}, fmt.Errorf("the request is not complete: %+v", r)
		}
		e := pipeline.Eligibility{Project: r.Project, Environment: r.Environment, Image: apitest.Good, Decision: apitest.WaitingDecision, Diff: apitest.Diff, Plan: apitest.Diff.Plan()}
		if r.Action == pipeline.ActionRollback {
			e.Decision.Rules = nil
		}
		return e, nil
	}
}

// logged is what the sample log holds.
var logged = []pipeline.Entry{
	{Kind: pipeline.EntryTokenCreated, At: apitest.Clock, Actor: "dray", Subject: "grace"},
	{Kind: pipeline.EntryTagMoved, At: apitest.Clock, Project: "hello-go", Actor: "dray", Subject: string(apitest.PromotionOne), Image: apitest.Good.Digest, Data: json.RawMessage(`{"tag":"<1.0>"}`)},
	{Kind: pipeline.EntryTagMoved, At: apitest.Clock, Project: "web", Actor: "dray", Subject: "prm_00000000000000000077"},
	{Kind: pipeline.EntryRunEnded, At: apitest.Clock, Project: "hello-go", Actor: "dray", Subject: string(apitest.RunGood)},
}

// An operation as the table below tries it.
type attempt struct {
	needs string // as the OpenAPI description has it
	body  string
	// path with everything filled in; the operation's own when empty.
	path string
}

var release = []string{"release-manager", "admin"}

// allowed are the roles that satisfy each need. It says so again, apart from
// the code.
var allowed = map[string][]string{
	"viewer":          {"viewer", "auditor", "developer", "release-manager", "admin"},
	"developer":       {"developer", "release-manager", "admin"},
	"release-manager": release,
	"approver":        {"release-manager"}, // what the sample environment's rules name
	"admin":           {"admin"},
	"server-admin":    {"admin"},
	"server-auditor":  {"auditor", "admin"},
}

// everywhere are the needs that only a role in everything satisfies.
var everywhere = []string{"server-admin", "server-auditor"}

// operations is every operation that asks for a role. One that is not here
// fails the test.
func operations() map[string]attempt {
	image := "/api/v1/images/" + string(apitest.Good.Digest)
	promotion := "/api/v1/promotions/" + string(apitest.PromotionWaiting)
	run := "/api/v1/runs/" + string(apitest.RunGood)
	project := "/api/v1/projects/hello-go"
	return map[string]attempt{
		"GET /api/v1/runs":                     {"viewer", "", ""},
		"GET /api/v1/runs/{id}":                {"viewer", "", run},
		"GET /api/v1/runs/{id}/events":         {"viewer", "", run + "/events?follow=false"},
		"POST /api/v1/runs/{id}/retry":         {"developer", "", "/api/v1/runs/run_00000000000000000009/retry"},
		"POST /api/v1/promotions":              {"release-manager", `{"image":"` + string(apitest.Good.Digest) + `","environment":"prod"}`, ""},
		"GET /api/v1/promotions":               {"viewer", "", ""},
		"GET /api/v1/promotions/{id}":          {"viewer", "", promotion},
		"GET /api/v1/promotions/{id}/events":   {"viewer", "", promotion + "/events?follow=false"},
		"POST /api/v1/promotions/{id}/cancel":  {"release-manager", `{"reason":"x"}`, promotion + "/cancel"},
		"GET /api/v1/images/{digest}":          {"viewer", "", image},
		"GET /api/v1/images/{digest}/sbom":     {"viewer", "", image + "/sbom?platform=linux/amd64"},
		"GET /api/v1/images/{digest}/diff":     {"viewer", "", image + "/diff?environment=prod"},
		"GET /api/v1/images/{digest}/evidence": {"viewer", "", image + "/evidence"},
		"GET /api/v1/packages":                 {"viewer", "", "/api/v1/packages?name=rsc.io/quote"},
		"GET /api/v1/audit/packages":           {"viewer", "", "/api/v1/audit/packages?name=rsc.io/quote"},
		"GET /api/v1/audit/findings":           {"viewer", "", "/api/v1/audit/findings?id=CVE-2025-1111"},
		"GET /api/v1/audit/images/{digest}":    {"viewer", "", "/api/v1/audit/images/" + string(apitest.Good.Digest)},
		"GET /api/v1/audit/people/{name}":      {"viewer", "", "/api/v1/audit/people/grace"},
		"GET /api/v1/projects":                 {"viewer", "", ""},
		"GET /api/v1/projects/{name}":          {"viewer", "", project},
		"PUT /api/v1/projects/{name}":          {"admin", projectFile, project},
		"GET /api/v1/projects/{name}/versions": {"viewer", "", project + "/versions"},
		"GET /api/v1/projects/{name}/vex":      {"viewer", "", project + "/vex"},
		"GET /api/v1/drift":                    {"viewer", "", ""},
		"GET /api/v1/registries":               {"viewer", "", ""},
		"GET /api/v1/log/entries":              {"viewer", "", ""},
		"GET /api/v1/log/proof":                {"viewer", "", "/api/v1/log/proof?index=1"},
		"GET /api/v1/log/tile/{path}":          {"server-auditor", "", "/api/v1/log/tile/entries/000.p/4"},
		"GET /api/v1/log/rows":                 {"server-auditor", "", ""},

		"POST /api/v1/promotions/{id}/approvals":                 {"approver", `{"plan":"` + string(apitest.Diff.Plan()) + `"}`, promotion + "/approvals"},
		"GET /api/v1/images/{digest}/provenance":                 {"viewer", "", image + "/provenance"},
		"GET /api/v1/images/{digest}/eligibility":                {"viewer", "", image + "/eligibility?environment=prod"},
		"GET /api/v1/projects/{name}/versions/{version}":         {"viewer", "", project + "/versions/1"},
		"GET /api/v1/projects/{name}/environments":               {"viewer", "", project + "/environments"},
		"GET /api/v1/audit/environments/{project}/{environment}": {"viewer", "", "/api/v1/audit/environments/hello-go/prod"},
		"GET /api/v1/projects/{name}/exceptions":                 {"viewer", "", project + "/exceptions"},
		"POST /api/v1/projects/{name}/exceptions":                {"release-manager", `{"finding":"CVE-1","reason":"x","expiresAt":"2026-04-01T00:00:00Z"}`, project + "/exceptions"},
		"DELETE /api/v1/projects/{name}/exceptions/{id}":         {"release-manager", "", project + "/exceptions/" + apitest.Exception},
		"POST /api/v1/projects/{name}/vex":                       {"release-manager", `{"document":"e30=","signature":"Z29vZA=="}`, project + "/vex"},
		"GET /api/v1/projects/{name}/retention":                  {"viewer", "", project + "/retention"},
		"POST /api/v1/projects/{name}/retention":                 {"admin", `{"plan":"` + string(apitest.Digest("e")) + `"}`, project + "/retention"},
		"GET /api/v1/projects/{name}/retention/last":             {"viewer", "", project + "/retention/last"},
		"DELETE /api/v1/projects/{name}/vex/{id}":                {"release-manager", "", project + "/vex/" + apitest.VEX},
		"POST /api/v1/registries/{host}/probe":                   {"server-admin", "", "/api/v1/registries/prod.example/probe"},
		"POST /api/v1/projects/{name}/environments/{environment}/rollback": {"release-manager", `{"to":"` + string(apitest.Good.Digest) + `"}`,
			project + "/environments/prod/rollback"},
	}
}

// public is what needs no role: what it is, and whether it needs a token.
var public = map[string]bool{
	"GET /api/v1/version": true, "GET /api/v1/public-key": false, "GET /api/v1/trusted-root.json": false, "GET /api/v1/schemas/project.json": false,
	"GET /api/v1/log/checkpoint": true, "GET /api/v1/log/consistency": true, "GET /api/v1/log/key": false, "GET /api/v1/rematches": true,
	"GET /livez": false, "GET /readyz": false, "POST /webhooks/github": false, "POST /webhooks/github/{project}": false,
}

// lists show what the caller may see, so nobody is refused.
var lists = []string{"GET /api/v1/runs", "GET /api/v1/promotions", "GET /api/v1/packages", "GET /api/v1/projects", "GET /api/v1/drift", "GET /api/v1/registries",
	"GET /api/v1/audit/packages", "GET /api/v1/audit/findings", "GET /api/v1/audit/people/{name}", "GET /api/v1/log/entries"}

// accessServer has everything that the table asks for: promotions that can be
// rolled back to, a run that can be retried, projects that trust a key.
func accessServer(t *testing.T) *server {
	s := newServer(t, wired)
	s.store.AddRun(pipeline.RunDetail{Run: pipeline.Run{ID: "run_00000000000000000009", Project: "hello-go", State: pipeline.StateFailed}})
	p := apitest.HelloGo
	p.TrustedVEXKeys = []string{apitest.PublicKey}
	p.Environments = slices.Clone(p.Environments)
	p.Environments[1].Approvals = []pipeline.ApprovalRule{{Role: pipeline.RoleReleaseManager}}
	s.store.AddProject(p, "grace")
	return s
}

// described reads what every operation says that it needs.
func (s *server) described() map[string]string {
	s.t.Helper()
	var doc struct {
		Paths map[string]map[string]struct {
			Needs    string              `json:"x-dray-needs"`
			Security []map[string]any    `json:"security"`
			Other    map[string]struct{} `json:"-"`
		}
	}
	s.ok(s.send("GET", "/openapi.json", ""), 200, &doc)
	out := map[string]string{}
	for path, methods := range doc.Paths {
		for method, op := range methods {
			name := strings.ToUpper(method) + " " + path
			out[name] = op.Needs
			if (op.Needs == "") == (len(op.Security) > 0) {
				s.t.Errorf("%s needs %q and has security %v", name, op.Needs, op.Security)
			}
		}
	}
	return out
}

// TestAuthorisation tries every operation with every role, in its project,
// everywhere and in another project.
func TestAuthorisation(t *testing.T) {
	table := operations()
	describing := newServer(t)
	for name, needs := range describing.described() {
		a, known := table[name]
		switch withToken, open := public[name]; {
		case open && (needs == "token") != withToken, open && needs != "token" && needs != "":
			t.Errorf("%s needs %q", name, needs)
		case !open && !known:
			t.Errorf("%s needs %q and is not in the table: say who may do it", name, needs)
		case !open && needs != a.needs:
			t.Errorf("%s needs %q, want %q", name, needs, a.needs)
		}
	}
	roles := []string{"", "viewer", "auditor", "developer", "release-manager", "admin", "security"}
	for _, name := range slices.Sorted(maps.Keys(table)) {
		a := table[name]
		method, path, _ := strings.Cut(name, " ")
		if a.path != "" {
			path = a.path
		}
		t.Run(name, func(t *testing.T) {
			s := accessServer(t)
			s.want(s.send(method, path, a.body), 401, "unauthenticated")
			for _, role := range roles {
				for _, project := range []string{"", "hello-go", "web"} {
					// Those who may come last: what they do changes the world.
					may := slices.Contains(allowed[a.needs], role) && project != "web" && (!slices.Contains(everywhere, a.needs) || project == "")
					if may {
						continue
					}
					s.attempt(role, project, method, path, name, a, false)
				}
			}
			for _, role := range allowed[a.needs] {
				for _, project := range []string{"", "hello-go"} {
					if slices.Contains(everywhere, a.needs) && project != "" {
						continue
					}
					fresh := s
					if method != "GET" {
						fresh = accessServer(t)
					}
					fresh.attempt(role, project, method, path, name, a, true)
				}
			}
		})
	}
}

func (s *server) attempt(role, project, method, path, name string, a attempt, may bool) {
	s.t.Helper()
	token := pipeline.Token{Name: "someone"}
	if role != "" {
		token.Grants = []pipeline.Grant{{Role: role, Project: project}}
	}
	s.store.Tokens["dray_tried"] = token
	got := s.send(method, path, a.body, "Authorization: Bearer dray_tried")
	reads := slices.Contains(allowed["viewer"], role) && project != "web"
	who := fmt.Sprintf("%s with %v", name, token.Grants)
	switch {
	case may || slices.Contains(lists, name):
		if got.StatusCode/100 != 2 {
			s.t.Errorf("%s: %d %s", who, got.StatusCode, got.body)
		}
	case slices.Contains(everywhere, a.needs), reads:
		p := s.want(got, 403, "forbidden")
		want := allowed[a.needs]
		if strings.Join(p.Roles, " ") != strings.Join(want, " ") || !strings.Contains(p.Detail, want[0]) {
			s.t.Errorf("%s: the problem names %v, want %v: %s", who, p.Roles, want, p.Detail)
		}
	default:
		s.want(got, 404, "not-found")
	}
}

// TestTenancy: what belongs to another project cannot be told from what does
// not exist, and lists are without it.
func TestTenancy(t *testing.T) {
	s := accessServer(t)
	for i := range 5 {
		s.store.AddRun(pipeline.RunDetail{Run: pipeline.Run{ID: pipeline.RunID(fmt.Sprintf("run_0000000000000000001%d", i)), Project: []string{"web", "base"}[i%2], State: pipeline.StateFailed}})
	}
	s.store.Tokens["dray_web"] = pipeline.Token{Name: "wanda", Grants: []pipeline.Grant{{Role: pipeline.RoleAdmin, Project: "web"}}}
	s.store.Tokens["dray_two"] = pipeline.Token{Name: "tom", Grants: []pipeline.Grant{{Role: pipeline.RoleViewer, Project: "web"}, {Role: pipeline.RoleViewer, Project: "base"},
		{Role: "security", Project: "hello-go"}, {Role: pipeline.RoleViewer, Project: "gone"}}}
	const web = "Authorization: Bearer dray_web"

	absent := map[string]string{
		string(apitest.Good.Digest): string(apitest.Digest("0")), string(apitest.PromotionWaiting): "prm_00000000000000000099",
		string(apitest.RunGood): "run_00000000000000000099", "run_00000000000000000009": "run_00000000000000000098", "hello-go": "nothing",
		apitest.Exception: "exc_00000000000000000099", apitest.VEX: "vex_00000000000000000099",
	}
	for name, a := range operations() {
		method, path, _ := strings.Cut(name, " ")
		if a.path != "" {
			path = a.path
		}
		if slices.Contains(lists, name) || slices.Contains(everywhere, a.needs) {
			continue
		}
		there := s.send(method, path, a.body, web)
		theirs := s.want(there, 404, "not-found")
		missingPath, missingBody := path, a.body
		for have, none := range absent {
			missingPath, missingBody = strings.ReplaceAll(missingPath, have, none), strings.ReplaceAll(missingBody, have, none)
			theirs.Detail = strings.ReplaceAll(theirs.Detail, have, none)
		}
		nowhere := s.want(s.send(method, missingPath, missingBody, web), 404, "not-found")
		if theirs.Detail != nowhere.Detail {
			t.Errorf("%s: %q can be told from %q", name, theirs.Detail, nowhere.Detail)
		}
	}

	for path, want := range map[string]string{
		"/runs":                             "web", // and no other project
		"/projects":                         "web",
		"/promotions":                       "",
		"/drift?all=true":                   "",
		"/registries":                       "other.example",
		"/packages?name=rsc.io/quote":       "web",
		"/audit/packages?name=rsc.io/quote": "web",
		"/audit/packages?name=rsc.io/quote&project=hello-go": "",
		"/audit/packages?name=rsc.io/quote&promoted=ever":    "",
		"/audit/findings?id=CVE-2025-1111":                   "web",
		"/audit/people/grace":                                "",
		"/log/entries":                                       "prm_00000000000000000077",
		"/log/entries?project=hello-go":                      "",
		"/log/entries?from=0":                                "web",
		"/runs?project=hello-go":                             "",
		"/promotions?project=hello-go":                       "",
		"/drift?project=hello-go":                            "",
		"/packages?name=x&project=hello":                     "",
		"/promotions?environment=prod":                       "",
		"/runs?state=succeeded":                              "",
		"/packages?name=q&promoted=true":                     "",
		"/projects?cursor=hello-go":                          "web",
		"/registries?cursor=zzz":                             "",
		"/runs?limit=1":                                      "web",
		"/packages?name=rsc.io/quote&limit=1":                "web",
	} {
		got := s.send("GET", "/api/v1"+path, "", web)
		s.ok(got, 200, nil)
		for _, other := range []string{"hello-go", "leaky", "prod.example", `"base"`} {
			if strings.Contains(got.body, other) {
				t.Errorf("%s shows %s: %s", path, other, got.body)
			}
		}
		if (want == "") != (strings.TrimSpace(got.body) == `{"items":[]}`) || !strings.Contains(got.body, want) {
			t.Errorf("%s: want %q, got %s", path, want, got.body)
		}
	}

	// A digest that several projects hold is the one that may be seen.
	var img api.ImageView
	s.ok(s.send("GET", "/api/v1/images/"+string(apitest.Shared.Digest), "", web), 200, &img)
	if img.Project != "web" {
		t.Errorf("%+v", img)
	}
	p := s.want(s.send("GET", "/api/v1/images/"+string(apitest.Shared.Digest), "", "Authorization: Bearer dray_two"), 409, "ambiguous")
	if strings.Join(p.Projects, " ") != "base web" {
		t.Errorf("%v", p.Projects)
	}

	// Lists over two projects are merged in order, page by page.
	var ids []string
	for path := "/api/v1/runs?limit=2"; path != ""; {
		var page api.List[pipeline.Run]
		got := s.send("GET", path, "", "Authorization: Bearer dray_two")
		s.ok(got, 200, &page)
		for _, r := range page.Items {
			ids = append(ids, string(r.ID)[len(r.ID)-2:]+r.Project)
		}
		path, _ = strings.CutSuffix(strings.TrimPrefix(got.Header.Get("Link"), "<"), `>; rel="next"`)
	}
	if got := strings.Join(ids, " "); got != "14web 13base 12web 11base 10web" {
		t.Errorf("merged %s", got)
	}
	// A role that the API does not know lets nobody read.
	s.want(s.send("GET", "/api/v1/projects/hello-go", "", "Authorization: Bearer dray_two"), 404, "not-found")
}

// What a dry run of a promotion asks for is less than the promotion.
func TestDryRunNeedsNoMoreThanReading(t *testing.T) {
	s := newServer(t, wired)
	body := fmt.Sprintf(`{"image":%q,"environment":"prod","dryRun":true,"breakGlass":"x"}`, apitest.Good.Digest)
	a := s.send("POST", "/api/v1/promotions", body, "Authorization: Bearer dray_viewer")
	var e pipeline.Eligibility
	s.ok(a, 200, &e)
	if e.Plan != apitest.Diff.Plan() || e.Decision.Passed || len(e.Decision.Rules) != 3 || a.Header.Get("Location") != "" || a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s", a.body)
	}
	s.want(s.send("POST", "/api/v1/promotions", strings.Replace(body, "true", "false", 1), "Authorization: Bearer dray_viewer"), 403, "forbidden")
	var all api.List[pipeline.Promotion]
	s.ok(s.get("/api/v1/promotions"), 200, &all)
	if len(all.Items) != 2 {
		t.Error("the dry run promoted")
	}
	s.want(s.send("POST", "/api/v1/promotions", strings.Replace(body, "prod", "moon", 1), auth), 422, "invalid")
	var raw map[string]json.RawMessage
	s.ok(a, 200, &raw)
	if raw["diff"] == nil || raw["decision"] == nil {
		t.Error(a.body)
	}
}
