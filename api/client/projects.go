package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/dray-project/dray/pipeline"
)

func projectPath(name string) string { return "/api/v1/projects/" + url.PathEscape(name) }

// Projects lists projects with the settings in force, by name.
func (c *Client) Projects(ctx context.Context, p PageQuery) (List[pipeline.ProjectVersion], error) {
	v := url.Values{}
	p.set(v)
	return getList[pipeline.ProjectVersion](ctx, c, "/api/v1/projects", v)
}

// Project returns one version of a project's settings; 0 is the one in force.
func (c *Client) Project(ctx context.Context, name string, version int) (v pipeline.ProjectVersion, err error) {
	path := projectPath(name)
	if version != 0 {
		path += "/versions/" + strconv.Itoa(version)
	}
	err = c.getJSON(ctx, path, nil, &v)
	return v, err
}

// ProjectVersions lists the versions of a project's settings, newest first.
func (c *Client) ProjectVersions(ctx context.Context, name string, p PageQuery) (List[pipeline.ProjectVersion], error) {
	v := url.Values{}
	p.set(v)
	return getList[pipeline.ProjectVersion](ctx, c, projectPath(name)+"/versions", v)
}

// Applied is what became of a project file.
type Applied struct {
	pipeline.ProjectVersion
	Changed bool     `json:"changed"`
	DryRun  bool     `json:"dryRun,omitempty"`
	Changes []Change `json:"changes"`
}

// Change is one setting that differs.
type Change struct {
	Path string          `json:"path"`
	From json.RawMessage `json:"from,omitempty"`
	To   json.RawMessage `json:"to,omitempty"`
}

// ApplyProject sets a project's gates and environments. file is a project file
// in JSON. With a base, a version that another has replaced since is an error
// that wraps pipeline.ErrConflict. Applying the same again changes nothing.
func (c *Client) ApplyProject(ctx context.Context, name string, file []byte, base int, dryRun bool) (a Applied, err error) {
	header := http.Header{}
	if base != 0 {
		header.Set("If-Match", strconv.Quote(strconv.Itoa(base)))
	}
	q := url.Values{}
	if dryRun {
		q.Set("dryRun", "true")
	}
	err = c.once(ctx, http.MethodPut, projectPath(name), q, header, json.RawMessage(file), &a)
	return a, err
}

// Environments says what each of a project's environments has, in order.
func (c *Client) Environments(ctx context.Context, project string) ([]pipeline.EnvironmentState, error) {
	l, err := getList[pipeline.EnvironmentState](ctx, c, projectPath(project)+"/environments", nil)
	return l.Items, err
}

// ExceptionsQuery asks for a project's exceptions or VEX documents.
type ExceptionsQuery struct {
	Project string
	All     bool // those that do not hold any more as well
	PageQuery
}

func (q ExceptionsQuery) values() url.Values {
	v := url.Values{}
	if q.All {
		v.Set("all", "true")
	}
	q.set(v)
	return v
}

// Exceptions lists the findings that somebody accepted, newest first.
func (c *Client) Exceptions(ctx context.Context, q ExceptionsQuery) (List[pipeline.Exception], error) {
	return getList[pipeline.Exception](ctx, c, projectPath(q.Project)+"/exceptions", q.values())
}

// AddException accepts a finding. The author is the token's bearer.
func (c *Client) AddException(ctx context.Context, e pipeline.Exception) (out pipeline.Exception, err error) {
	err = c.once(ctx, http.MethodPost, projectPath(e.Project)+"/exceptions", nil, nil, struct {
		Finding     string          `json:"finding"`
		Package     string          `json:"package,omitempty"`
		Environment string          `json:"environment,omitempty"`
		Image       pipeline.Digest `json:"image,omitempty"`
		Reason      string          `json:"reason"`
		ExpiresAt   time.Time       `json:"expiresAt"`
	}{e.Finding, e.Package, e.Environment, e.Image, e.Reason, e.ExpiresAt}, &out)
	return out, err
}

// RevokeException takes an exception back; again changes nothing.
func (c *Client) RevokeException(ctx context.Context, project, id string) (e pipeline.Exception, err error) {
	err = c.once(ctx, http.MethodDelete, projectPath(project)+"/exceptions/"+url.PathEscape(id), nil, nil, nil, &e)
	return e, err
}

// VEX is a VEX document, and in short what it says.
type VEX struct {
	pipeline.VEXDocument
	Document   []byte         `json:"document,omitempty"`
	Signature  []byte         `json:"signature,omitempty"`
	Author     string         `json:"author,omitempty"`
	Statements []VEXStatement `json:"statements"`
}

// VEXStatement is a statement in short.
type VEXStatement struct {
	Vulnerability string `json:"vulnerability"`
	Status        string `json:"status"`
	Justification string `json:"justification,omitempty"`
}

// VEXDocuments lists a project's VEX documents, newest first, without the
// documents themselves.
func (c *Client) VEXDocuments(ctx context.Context, q ExceptionsQuery) (List[VEX], error) {
	return getList[VEX](ctx, c, projectPath(q.Project)+"/vex", q.values())
}

// AddVEX hands in a document with its signature, byte by byte.
func (c *Client) AddVEX(ctx context.Context, project string, document, signature []byte) (v VEX, err error) {
	err = c.once(ctx, http.MethodPost, projectPath(project)+"/vex", nil, nil, map[string][]byte{"document": document, "signature": signature}, &v)
	return v, err
}

// RevokeVEX takes a document back; again changes nothing.
func (c *Client) RevokeVEX(ctx context.Context, project, id string) (v VEX, err error) {
	err = c.once(ctx, http.MethodDelete, projectPath(project)+"/vex/"+url.PathEscape(id), nil, nil, nil, &v)
	return v, err
}

// DriftQuery asks where registries are not as the record says.
type DriftQuery struct {
	Project string
	All     bool // what was repaired or resolved as well
	PageQuery
}

// Drift lists where registries are not as the record says, newest first.
func (c *Client) Drift(ctx context.Context, q DriftQuery) (List[pipeline.Drift], error) {
	v := url.Values{}
	setIf(v, "project", q.Project)
	if q.All {
		v.Set("all", "true")
	}
	q.set(v)
	return getList[pipeline.Drift](ctx, c, "/api/v1/drift", v)
}

// Registries lists what registries can do, by host.
func (c *Client) Registries(ctx context.Context, p PageQuery) (List[pipeline.RegistryProbe], error) {
	v := url.Values{}
	p.set(v)
	return getList[pipeline.RegistryProbe](ctx, c, "/api/v1/registries", v)
}

// ProbeRegistry tries now what a registry can do.
func (c *Client) ProbeRegistry(ctx context.Context, host string) (p pipeline.RegistryProbe, err error) {
	err = c.once(ctx, http.MethodPost, "/api/v1/registries/"+url.PathEscape(host)+"/probe", nil, nil, nil, &p)
	return p, err
}
