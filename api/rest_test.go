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

func TestRuns(t *testing.T) {
	s := newServer(t)
	var page api.List[pipeline.Run]
	s.ok(s.get("/api/v1/runs"), 200, &page)
	if len(page.Items) != 3 || page.Items[0].ID != apitest.RunOpen || page.Items[2].ID != apitest.RunRefused {
		t.Errorf("%+v", page.Items)
	}
	s.ok(s.get("/api/v1/runs?project=hello-go&state=succeeded"), 200, &page)
	if len(page.Items) != 1 || page.Items[0].ID != apitest.RunGood {
		t.Errorf("%+v", page.Items)
	}
	a := s.get("/api/v1/runs?project=nothing")
	if strings.TrimSpace(a.body) != `{"items":[]}` {
		t.Errorf("an empty list is %s", a.body)
	}
	var run pipeline.RunDetail
	s.ok(s.get("/api/v1/runs/"+string(apitest.RunGood)), 200, &run)
	if run.State != pipeline.StateSucceeded || len(run.Stages) != 8 || run.Decision == nil || len(run.Tags) != 3 {
		t.Errorf("%+v", run)
	}
	s.want(s.get("/api/v1/runs/run_other"), 404, "not-found")
	for _, query := range []string{"state=done", "limit=0", "limit=101", "limit=x", "cursor=" + strings.Repeat("x", 201), "stat=succeeded"} {
		p := s.want(s.get("/api/v1/runs?"+query), 422, "invalid")
		if len(p.Errors) == 0 || p.Errors[0].Location == "" {
			t.Errorf("%s: %+v", query, p)
		}
	}
}

func TestPaging(t *testing.T) {
	s := newServer(t)
	for i := range 250 {
		s.store.AddRun(pipeline.RunDetail{Run: pipeline.Run{ID: pipeline.RunID(fmt.Sprintf("run_a%05d", i)), Project: "many & more", State: pipeline.StateSucceeded}})
	}
	path, pages, seen := "/api/v1/runs?project=many+%26+more&limit=100", 0, map[pipeline.RunID]bool{}
	for path != "" {
		var page api.List[pipeline.Run]
		a := s.get(path)
		s.ok(a, 200, &page)
		pages++
		for _, r := range page.Items {
			if seen[r.ID] {
				t.Fatalf("%s twice", r.ID)
			}
			seen[r.ID] = true
		}
		path = ""
		if link := a.Header.Get("Link"); link != "" {
			var ok bool
			path, ok = strings.CutSuffix(strings.TrimPrefix(link, "<"), `>; rel="next"`)
			if !ok {
				t.Fatalf("Link %q", link)
			}
		}
	}
	if pages != 3 || len(seen) != 250 {
		t.Errorf("%d pages, %d runs", pages, len(seen))
	}
	// A page that is exactly full and the last has no link.
	if a := s.get("/api/v1/runs?project=hello-go&limit=2"); a.Header.Get("Link") != "" {
		t.Errorf("Link %q", a.Header.Get("Link"))
	}
}

func TestRetry(t *testing.T) {
	s := newServer(t)
	path := "/api/v1/runs/" + string(apitest.RunRefused) + "/retry"
	var r, again pipeline.Run
	a := s.send("POST", path, "", auth)
	s.ok(a, 202, &r)
	if r.ID == apitest.RunRefused || r.RetryOf != apitest.RunRefused || r.RequestedBy != "grace" || r.State != pipeline.StateQueued || r.Project != "leaky" ||
		a.Header.Get("Location") != "/api/v1/runs/"+string(r.ID) || a.Header.Get("Idempotent-Replayed") == "true" {
		t.Errorf("%s, Location %s", a.body, a.Header.Get("Location"))
	}
	var detail pipeline.RunDetail
	s.ok(s.get(a.Header.Get("Location")), 200, &detail)
	if detail.RetryOf != apitest.RunRefused || detail.RequestedBy != "grace" {
		t.Errorf("%+v", detail)
	}

	// While it is open, it is the answer, whoever asks.
	s.store.Tokens["dray_ada"] = pipeline.Token{Name: "ada", Grants: []pipeline.Grant{{Role: pipeline.RoleReleaseManager}}}
	a = s.send("POST", path, "", "Authorization: Bearer dray_ada")
	s.ok(a, 202, &again)
	if again.ID != r.ID || again.RequestedBy != "grace" || a.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("again: %s", a.body)
	}
	var before pipeline.RunDetail
	s.ok(s.get("/api/v1/runs/"+string(apitest.RunRefused)), 200, &before)
	if before.State != pipeline.StateRefused || before.RetryOf != "" {
		t.Errorf("the first run became %+v", before)
	}

	for id, says := range map[string]string{
		string(apitest.RunGood): "succeeded", string(apitest.RunOpen): "still running", string(r.ID): "still queued",
	} {
		if p := s.want(s.send("POST", "/api/v1/runs/"+id+"/retry", "", auth), 409, "conflict"); !strings.Contains(p.Detail, says) || !strings.Contains(p.Detail, id) {
			t.Errorf("%s does not say %q", p.Detail, says)
		}
	}
	s.want(s.send("POST", "/api/v1/runs/run_other/retry", "", auth), 404, "not-found")
	s.want(s.send("POST", path, ""), 401, "unauthenticated")
	s.want(s.send("POST", path+"?force=true", "", auth), 422, "invalid")
	s.want(s.send("GET", path, "", auth), 405, "method-not-allowed")

	// One that failed can be retried by its own name or the first one's.
	s.store.End(r.ID.Job(), pipeline.StateFailed, "registry is away")
	s.ok(s.send("POST", "/api/v1/runs/"+string(r.ID)+"/retry", "", auth), 202, &again)
	if again.ID == r.ID || again.RetryOf != r.ID {
		t.Errorf("%+v", again)
	}
	s.store.End(again.ID.Job(), pipeline.StateSucceeded, "")
	if p := s.want(s.send("POST", path, "", auth), 409, "conflict"); !strings.Contains(p.Detail, string(again.ID)) {
		t.Errorf("%s does not name the run that succeeded", p.Detail)
	}

	// The row is committed and the answer is lost: asking again finds it.
	s.store.End(apitest.RunOpen.Job(), pipeline.StateFailed, "x")
	s.store.Fail("Retry", apitest.ErrInjected, 1, true)
	s.want(s.send("POST", "/api/v1/runs/"+string(apitest.RunOpen)+"/retry", "", auth), 500, "internal")
	a = s.send("POST", "/api/v1/runs/"+string(apitest.RunOpen)+"/retry", "", auth)
	s.ok(a, 202, nil)
	if a.Header.Get("Idempotent-Replayed") != "true" {
		t.Error("asking again made a second run")
	}
}

func TestPromote(t *testing.T) {
	s := newServer(t)
	body := fmt.Sprintf(`{"image":%q,"environment":"prod"}`, apitest.Good.Digest)
	var first, again pipeline.Promotion
	a := s.send("POST", "/api/v1/promotions", body, auth, "Idempotency-Key: one")
	s.ok(a, 202, &first)
	if first.RequestedBy != "grace" || first.State != pipeline.StateQueued || first.Image != apitest.Good ||
		a.Header.Get("Location") != "/api/v1/promotions/"+string(first.ID) {
		t.Errorf("%s, Location %s", a.body, a.Header.Get("Location"))
	}
	s.ok(s.get(a.Header.Get("Location")), 200, nil)

	a = s.send("POST", "/api/v1/promotions", body, auth, "Idempotency-Key: one")
	s.ok(a, 202, &again)
	if again.ID != first.ID || a.Header.Get("Idempotent-Replayed") != "true" {
		t.Errorf("again: %s", a.body)
	}
	other := strings.Replace(body, "prod", "staging", 1)
	s.want(s.send("POST", "/api/v1/promotions", other, auth, "Idempotency-Key: one"), 409, "conflict")
	s.store.Tokens["dray_ada"] = pipeline.Token{Name: "ada", Grants: []pipeline.Grant{{Role: pipeline.RoleReleaseManager}}}
	s.ok(s.send("POST", "/api/v1/promotions", body, "Authorization: Bearer dray_ada", "Idempotency-Key: one"), 202, &again)
	if again.ID == first.ID {
		t.Error("another requester's key gave the first promotion")
	}
	s.ok(s.send("POST", "/api/v1/promotions", body, auth), 202, &again)
	if again.ID == first.ID {
		t.Error("without a key it is a new promotion")
	}

	image := func(img string) string { return fmt.Sprintf(`{"image":%q,"environment":"prod"}`, img) }
	for name, tc := range map[string]struct {
		body, contentType, key string
		status                 int
		problem                string
	}{
		"not JSON":               {`{`, "", "", 400, "malformed"},
		"empty":                  {``, "", "", 400, "malformed"},
		"null":                   {`null`, "", "", 422, "invalid"},
		"nulls":                  {`{"image":null,"environment":null}`, "", "", 422, "invalid"},
		"no image":               {`{"environment":"prod"}`, "", "", 422, "invalid"},
		"unknown member":         {strings.Replace(body, `{`, `{"force":true,`, 1), "", "", 422, "invalid"},
		"a tag":                  {image("dev.example/acme/hello-go:1.0.0"), "", "", 422, "invalid"},
		"tag and digest":         {image("dev.example/acme/hello-go:1@" + string(apitest.Good.Digest)), "", "", 422, "invalid"},
		"unknown image":          {image(string(apitest.Digest("0"))), "", "", 404, "not-found"},
		"unknown environment":    {strings.Replace(body, "prod", "moon", 1), "", "", 422, "invalid"},
		"in two projects":        {image(string(apitest.Shared.Digest)), "", "", 409, "ambiguous"},
		"refused by its own run": {image(string(apitest.Bad.Digest)), "", "", 422, "refused"},
		"form":                   {`image=x`, "application/x-www-form-urlencoded", "", 415, "unsupported-media-type"},
		"key with a space":       {body, "", "a b", 422, "invalid"},
		"long key":               {body, "", strings.Repeat("x", 256), 422, "invalid"},
		"over a mebibyte":        {`{"image":"` + strings.Repeat("x", 1<<20) + `"}`, "", "", 413, "too-large"},
	} {
		t.Run(name, func(t *testing.T) {
			s.t = t
			headers := []string{auth}
			if tc.contentType != "" {
				headers = append(headers, "Content-Type: "+tc.contentType)
			}
			if tc.key != "" {
				headers = append(headers, "Idempotency-Key: "+tc.key)
			}
			p := s.want(s.send("POST", "/api/v1/promotions", tc.body, headers...), tc.status, tc.problem)
			if p.Detail == "" {
				t.Error("no detail")
			}
		})
	}
	s.t = t

	// The row is committed and the answer is lost: the key finds it again.
	s.store.Fail("Promote", apitest.ErrInjected, 1, true)
	s.want(s.send("POST", "/api/v1/promotions", body, auth, "Idempotency-Key: two"), 500, "internal")
	a = s.send("POST", "/api/v1/promotions", body, auth, "Idempotency-Key: two")
	s.ok(a, 202, nil)
	if a.Header.Get("Idempotent-Replayed") != "true" {
		t.Error("the retry made a second promotion")
	}
}

func TestPromotions(t *testing.T) {
	s := newServer(t)
	var page api.List[pipeline.Promotion]
	s.ok(s.get("/api/v1/promotions?project=hello-go"), 200, &page)
	if len(page.Items) != 2 || page.Items[0].ID != apitest.PromotionWaiting || page.Items[1].ID != apitest.PromotionOne {
		t.Errorf("%+v", page)
	}
	for query, want := range map[string]int{"state=waiting": 1, "state=waiting&environment=staging": 0, "environment=prod": 2, "state=succeeded&project=hello-go": 1, "project=web": 0} {
		s.ok(s.get("/api/v1/promotions?"+query), 200, &page)
		if len(page.Items) != want {
			t.Errorf("%s: %d, want %d", query, len(page.Items), want)
		}
	}
	s.want(s.get("/api/v1/promotions?state=done"), 422, "invalid")
	var p api.PromotionView
	s.ok(s.get("/api/v1/promotions/"+string(apitest.PromotionOne)), 200, &p)
	if p.Destination == nil || *p.Destination != apitest.Placed || len(p.Stages) != 7 || len(p.Verified) != 1 ||
		len(p.VerifyCommands) != 1 || p.VerifyCommands[0] != "dray verify "+apitest.Placed.String() {
		t.Errorf("%+v", p)
	}
	s.want(s.get("/api/v1/promotions/prm_other"), 404, "not-found")
}

func TestImages(t *testing.T) {
	s := newServer(t)
	path := "/api/v1/images/" + string(apitest.Good.Digest)
	var img api.ImageView
	s.ok(s.get(path), 200, &img)
	if img.Project != "hello-go" || len(img.Platforms) != 2 || len(img.Tags) != 3 || len(img.Findings) != 1 || len(img.Promotions) != 1 ||
		len(img.Attestations) != 2 || img.VerifyCommands[0] != "dray verify "+apitest.Good.String() {
		t.Errorf("%+v", img)
	}
	a := s.get(path + "/provenance")
	if a.StatusCode != 200 || !strings.Contains(a.body, "buildDefinition") || a.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%d %s", a.StatusCode, a.body)
	}
	a = s.get(path + "/sbom?platform=linux/arm64")
	if a.StatusCode != 200 || !strings.Contains(a.body, "CycloneDX") || a.Header.Get("Content-Type") != "application/vnd.cyclonedx+json" {
		t.Errorf("%d %s %s", a.StatusCode, a.Header.Get("Content-Type"), a.body)
	}
	if p := s.want(s.get(path+"/sbom"), 422, "invalid"); !strings.Contains(p.Detail, "linux/amd64, linux/arm64") {
		t.Errorf("%s", p.Detail)
	}
	s.want(s.get(path+"/sbom?platform=windows/amd64"), 404, "not-found")
	s.want(s.get(path+"?project=web"), 404, "not-found")
	s.want(s.get("/api/v1/images/"+string(apitest.Digest("0"))), 404, "not-found")
	for _, bad := range []string{"latest", "sha256:abc", "sha512:" + strings.Repeat("a", 128), strings.ToUpper(string(apitest.Good.Digest))} {
		s.want(s.get("/api/v1/images/"+bad), 422, "invalid")
	}
	// Several projects hold the digest: the answer names them.
	shared := "/api/v1/images/" + string(apitest.Shared.Digest)
	for _, suffix := range []string{"", "/sbom", "/provenance"} {
		p := s.want(s.get(shared+suffix), 409, "ambiguous")
		if strings.Join(p.Projects, " ") != "base web" {
			t.Errorf("projects %v", p.Projects)
		}
		s.ok(s.get(shared+suffix+"?project=web"), 200, nil)
	}
	// An image that was refused has no provenance; its lists are empty, not null.
	s.want(s.get("/api/v1/images/"+string(apitest.Bad.Digest)+"/provenance"), 404, "not-found")
	a = s.get("/api/v1/images/" + string(apitest.Bad.Digest))
	for _, member := range []string{"tags", "signatures", "attestations", "promotions"} {
		if !strings.Contains(a.body, `"`+member+`":[]`) {
			t.Errorf("%s is not an empty list: %s", member, a.body)
		}
	}
}

func TestPackages(t *testing.T) {
	s := newServer(t)
	for query, want := range map[string]int{
		"name=rsc.io/quote":                           2,
		"name=rsc.io/quote&version=v1.5.2":            1,
		"name=rsc.io/quote&promoted=true":             1,
		"name=rsc.io/quote&environment=prod":          1,
		"name=rsc.io/quote&environment=staging":       0,
		"name=rsc.io/quote&project=web":               1,
		"name=rsc.io/quote&project=web&promoted=true": 0,
		"name=rsc.io": 0,
	} {
		var page api.List[pipeline.PackageUse]
		s.ok(s.get("/api/v1/packages?"+query), 200, &page)
		if len(page.Items) != want {
			t.Errorf("%s: %d, want %d", query, len(page.Items), want)
		}
	}
	a := s.get("/api/v1/packages?name=rsc.io/quote&limit=1")
	if !strings.Contains(a.Header.Get("Link"), "cursor=0002") || !strings.Contains(a.Header.Get("Link"), "name=rsc.io%2Fquote") {
		t.Errorf("Link %q", a.Header.Get("Link"))
	}
	s.want(s.get("/api/v1/packages"), 422, "invalid")
	s.want(s.get("/api/v1/packages?name="), 422, "invalid")
	s.want(s.get("/api/v1/packages?name=x&promoted=perhaps"), 422, "invalid")
}

// What was sent in the wrong place is not sent back.
func TestProblemsEchoNoValues(t *testing.T) {
	s := newServer(t)
	a := s.send("POST", "/api/v1/promotions", fmt.Sprintf(`{"image":%q,"environment":"prod","token":"dray_precious"}`, apitest.Good.Digest), auth)
	if p := s.want(a, 422, "invalid"); p.Errors[0].Location != "body.token" {
		t.Errorf("%+v", p)
	}
	if strings.Contains(a.body, "dray_precious") {
		t.Errorf("echoed: %s", a.body)
	}
}

// Every sentinel of the domain has an answer of its own.
func TestSentinels(t *testing.T) {
	for err, want := range map[error]struct {
		status int
		name   string
	}{
		pipeline.ErrNotFound:    {404, "not-found"},
		pipeline.ErrInvalid:     {422, "invalid"},
		pipeline.ErrConflict:    {409, "conflict"},
		pipeline.ErrStale:       {409, "conflict"},
		pipeline.ErrAmbiguous:   {409, "ambiguous"},
		pipeline.ErrRefused:     {422, "refused"},
		pipeline.ErrUnverified:  {422, "unverified"},
		&pipeline.TagConflict{}: {409, "conflict"},
	} {
		s := newServer(t)
		s.store.Fail("RunDetail", err, 1, false)
		s.want(s.get("/api/v1/runs/x"), want.status, want.name)
	}
}

func TestOpenAPI(t *testing.T) {
	s := newServer(t)
	a := s.send("GET", "/openapi.json", "")
	var doc struct {
		OpenAPI    string
		Info       struct{ Title, Version string }
		Paths      map[string]map[string]json.RawMessage
		Components struct {
			Schemas         map[string]json.RawMessage
			SecuritySchemes map[string]json.RawMessage
		}
	}
	s.ok(a, 200, &doc)
	if !strings.HasPrefix(doc.OpenAPI, "3.1") || doc.Info.Title == "" || doc.Info.Version != "v0.0.0-test" {
		t.Errorf("%s %+v", doc.OpenAPI, doc.Info)
	}
	type operation struct {
		OperationID string
		Summary     string
		Security    []map[string][]string
		Parameters  []struct{ Name, In string }
		Responses   map[string]struct {
			Description string
			Content     map[string]json.RawMessage
		}
	}
	ids := map[string]string{}
	for path, methods := range doc.Paths {
		for method, rawOp := range methods {
			var op operation
			if err := json.Unmarshal(rawOp, &op); err != nil {
				t.Fatal(err)
			}
			where := strings.ToUpper(method) + " " + path
			if op.OperationID == "" || op.Summary == "" {
				t.Errorf("%s: operationId %q, summary %q", where, op.OperationID, op.Summary)
			}
			if other, taken := ids[op.OperationID]; taken {
				t.Errorf("%s and %s are both %s", where, other, op.OperationID)
			}
			ids[op.OperationID] = where
			success, problems := 0, 0
			for status, r := range op.Responses {
				switch {
				case status[0] == '2':
					success++
				case r.Content["application/problem+json"] == nil || r.Description == "":
					t.Errorf("%s: response %s is no problem", where, status)
				default:
					problems++
				}
			}
			if success == 0 || problems == 0 {
				t.Errorf("%s: %d successes, %d problems documented", where, success, problems)
			}
			if _, documented := op.Responses["401"]; len(op.Security) > 0 && !documented {
				t.Errorf("%s needs a token and documents no 401", where)
			}
			for _, name := range strings.Split(path, "/") {
				if name, ok := strings.CutPrefix(name, "{"); ok {
					found := false
					for _, p := range op.Parameters {
						found = found || p.In == "path" && p.Name == strings.TrimSuffix(name, "}")
					}
					if !found {
						t.Errorf("%s: parameter %s is not documented", where, name)
					}
				}
			}
		}
	}
	for _, want := range []string{"GET /api/v1/runs", "GET /api/v1/runs/{id}", "GET /api/v1/runs/{id}/events", "POST /api/v1/runs/{id}/retry", "POST /api/v1/promotions",
		"GET /api/v1/promotions", "GET /api/v1/promotions/{id}", "GET /api/v1/promotions/{id}/events", "GET /api/v1/images/{digest}",
		"GET /api/v1/images/{digest}/sbom", "GET /api/v1/images/{digest}/provenance", "GET /api/v1/packages", "GET /api/v1/public-key",
		"GET /api/v1/trusted-root.json", "POST /webhooks/github", "POST /webhooks/github/{project}", "GET /livez", "GET /readyz"} {
		found := false
		for _, where := range ids {
			found = found || where == want
		}
		if !found {
			t.Errorf("%s is not documented", want)
		}
	}
	// Every reference leads somewhere, and nothing of huma's own error is left.
	for rest := a.body; ; {
		_, after, ok := strings.Cut(rest, `"#/components/schemas/`)
		if !ok {
			break
		}
		name, tail, _ := strings.Cut(after, `"`)
		if doc.Components.Schemas[name] == nil {
			t.Errorf("schema %s is missing", name)
		}
		rest = tail
	}
	if doc.Components.Schemas["ErrorModel"] != nil || doc.Components.SecuritySchemes["token"] == nil {
		t.Error("wrong components")
	}
}

func TestVersion(t *testing.T) {
	s := newServer(t)
	var v struct{ Version string }
	s.ok(s.get("/api/v1/version"), 200, &v)
	if v.Version != "v0.0.0-test" {
		t.Errorf("%q", v.Version)
	}
}
