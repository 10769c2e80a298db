package client

import (
	"context"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Formats of an export.
const (
	FormatJSONLines = "jsonl"
	FormatCSV       = "csv"
)

// Audit is an auditor's question: a list of T, in pages or as an export.
type Audit[T any] struct {
	c     *Client
	path  string
	query url.Values
}

// Page returns a part of the answer.
func (a Audit[T]) Page(ctx context.Context, p PageQuery) (List[T], error) {
	q := url.Values{}
	for k, v := range a.query {
		q[k] = v
	}
	p.set(q)
	return getList[T](ctx, a.c, a.path, q)
}

// Export copies the whole answer to w as FormatJSONLines or FormatCSV, and holds
// little of it in memory. An export that broke off is an error; what was written
// by then is not all there is.
func (a Audit[T]) Export(ctx context.Context, format string, w io.Writer) error {
	q := url.Values{}
	for k, v := range a.query {
		q[k] = v
	}
	q.Set("format", format)
	resp, err := a.c.send(ctx, http.MethodGet, a.path, q, http.Header{"Accept": {"*/*"}}, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(w, resp.Body)
	return err
}

func setTime(q url.Values, name string, t *time.Time) {
	if t != nil {
		q.Set(name, t.UTC().Format(time.RFC3339Nano))
	}
}

func setScope(q url.Values, s pipeline.AuditScope) {
	setIf(q, "project", s.Project)
	setIf(q, "environment", s.Environment)
	setIf(q, "promoted", s.Promoted)
	setTime(q, "since", s.Since)
	setTime(q, "until", s.Until)
}

// AuditPackages asks which images contain packages. Reach and Page of the query
// are not sent: the token says what it may see.
func (c *Client) AuditPackages(q pipeline.PackageAuditQuery) Audit[pipeline.PackageAudit] {
	v := url.Values{}
	setIf(v, "name", q.Name)
	setIf(v, "purl", q.PURL)
	setIf(v, "version", q.Version)
	setIf(v, "range", q.Range)
	setIf(v, "licence", q.License)
	setScope(v, q.AuditScope)
	return Audit[pipeline.PackageAudit]{c, "/api/v1/audit/packages", v}
}

// AuditFindings asks which images have a finding.
func (c *Client) AuditFindings(q pipeline.FindingAuditQuery) Audit[pipeline.FindingAudit] {
	v := url.Values{}
	setIf(v, "id", q.Finding)
	setIf(v, "package", q.Package)
	setScope(v, q.AuditScope)
	return Audit[pipeline.FindingAudit]{c, "/api/v1/audit/findings", v}
}

// AuditImage asks for an image's story, oldest first; project may be empty.
func (c *Client) AuditImage(d pipeline.Digest, project string) Audit[pipeline.AuditEvent] {
	v := url.Values{}
	setIf(v, "project", project)
	return Audit[pipeline.AuditEvent]{c, "/api/v1/audit/images/" + url.PathEscape(string(d)), v}
}

// AuditPerson asks what somebody did, newest first; project may be empty.
func (c *Client) AuditPerson(name, project string) Audit[pipeline.AuditEvent] {
	v := url.Values{}
	setIf(v, "project", project)
	return Audit[pipeline.AuditEvent]{c, "/api/v1/audit/people/" + url.PathEscape(name), v}
}

// AuditEnvironment asks what an environment held.
func (c *Client) AuditEnvironment(q pipeline.EnvironmentAuditQuery) Audit[pipeline.EnvironmentAudit] {
	v := url.Values{}
	setTime(v, "at", q.At)
	setTime(v, "from", q.From)
	setTime(v, "to", q.To)
	return Audit[pipeline.EnvironmentAudit]{c, "/api/v1/audit/environments/" + url.PathEscape(q.Project) + "/" + url.PathEscape(q.Environment), v}
}
