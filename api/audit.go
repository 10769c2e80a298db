package api

import (
	"context"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

// Auditor answers auditors' questions. Nothing that it returns is about a project
// outside the reach it is given.
type Auditor interface {
	// AuditPackages says which images contain packages, newest images first.
	AuditPackages(context.Context, pipeline.PackageAuditQuery) ([]pipeline.PackageAudit, error)
	// AuditFindings says which images have a finding, newest records first.
	AuditFindings(context.Context, pipeline.FindingAuditQuery) ([]pipeline.FindingAudit, error)
	// AuditImage tells an image's story, oldest first; of an image that no run
	// within reach built it is pipeline.ErrNotFound.
	AuditImage(context.Context, pipeline.Digest, pipeline.Reach, pipeline.Page) ([]pipeline.AuditEvent, error)
	// AuditPerson lists what somebody did, newest first.
	AuditPerson(ctx context.Context, name string, reach pipeline.Reach, page pipeline.Page) ([]pipeline.AuditEvent, error)
	// AuditEnvironment says what an environment held. The caller has checked that
	// the project may be read.
	AuditEnvironment(context.Context, pipeline.EnvironmentAuditQuery) ([]pipeline.EnvironmentAudit, error)
}

// AuditPageInput asks for a part of an audit, or for all of it in another format.
type AuditPageInput struct {
	PageInput
	Format string `query:"format" enum:"json,jsonl,csv" doc:"json is a page; jsonl (one object a line) and csv are everything from the cursor on, whatever limit says. Wins over Accept."`
	Accept string `header:"Accept" doc:"application/json, application/jsonl or text/csv."`
}

// AuditScopeInput narrows an audit to images.
type AuditScopeInput struct {
	Project     string    `query:"project" maxLength:"200" doc:"Only images of this project."`
	Environment string    `query:"environment" maxLength:"200" doc:"Only images that this environment holds, or with promoted=ever held."`
	Promoted    string    `query:"promoted" enum:"now,ever" doc:"Only images that an environment holds now, or ever held."`
	Since       time.Time `query:"since" doc:"With promoted=now: that came there since. With promoted=ever: that were there at or after this time. Else: recorded since." example:"2026-01-01T00:00:00Z"`
	Until       time.Time `query:"until" doc:"The same, before this time." example:"2026-04-01T00:00:00Z"`
}

func (in AuditScopeInput) scope(ctx context.Context, a *API) pipeline.AuditScope {
	return pipeline.AuditScope{Reach: a.reach(ctx), Project: in.Project, Environment: in.Environment, Promoted: in.Promoted,
		Since: moment(in.Since), Until: moment(in.Until)}
}

// reach is the caller's scope as the store takes it.
func (a *API) reach(ctx context.Context) pipeline.Reach {
	s := a.scope(ctx)
	return pipeline.Reach{All: s.all, Projects: s.projects}
}

func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

type auditPackagesInput struct {
	Name    string `query:"name" maxLength:"400" doc:"The package's exact name." example:"golang.org/x/crypto"`
	PURL    string `query:"purl" maxLength:"1000" doc:"A package URL. A version or a qualifier that it does not have does not narrow." example:"pkg:golang/golang.org/x/crypto"`
	Version string `query:"version" maxLength:"200" doc:"Only this exact version."`
	Range   string `query:"range" maxLength:"1000" doc:"Only versions in this range, by the rules of the package's ecosystem." example:"<0.31.0"`
	Licence string `query:"licence" maxLength:"200" doc:"Only packages under this licence, by SPDX identifier; GPL-3.0 is also GPL-3.0-only and GPL-3.0-or-later." example:"GPL-3.0"`
	AuditScopeInput
	AuditPageInput
}

type auditFindingsInput struct {
	ID      string `query:"id" required:"true" minLength:"1" maxLength:"200" doc:"The finding." example:"CVE-2024-45337"`
	Package string `query:"package" maxLength:"400" doc:"Only in the package of this name."`
	AuditScopeInput
	AuditPageInput
}

type auditImageInput struct {
	Digest  string `path:"digest" maxLength:"100"`
	Project string `query:"project" maxLength:"200" doc:"Only in this project; without it, in all that hold the digest and that you may read."`
	AuditPageInput
}

type auditPersonInput struct {
	Name    string `path:"name" maxLength:"200" doc:"As in requestedBy, approvedBy and author: the name of a token."`
	Project string `query:"project" maxLength:"200" doc:"Only in this project."`
	AuditPageInput
}

type auditEnvironmentInput struct {
	Project     string    `path:"project" maxLength:"200"`
	Environment string    `path:"environment" maxLength:"200"`
	At          time.Time `query:"at" doc:"What it held at this time." example:"2026-03-14T09:30:00Z"`
	From        time.Time `query:"from" doc:"With to: what it held between the two, and how the end differs from the beginning."`
	To          time.Time `query:"to"`
	AuditPageInput
}

func (a *API) registerAudit() {
	handle(a, auditOperation[pipeline.PackageAudit](a, "audit-packages", "/api/v1/audit/packages",
		"Find the images that contain packages, where they run, and who brought them there",
		"One of name, purl and licence is required. A version that cannot be compared with the range is listed and marked uncomparable: leaving it out would say that nobody has it.", 422),
		needRead, func(ctx context.Context, in *auditPackagesInput) (*streamOutput, error) {
			q := pipeline.PackageAuditQuery{AuditScope: in.scope(ctx, a), Name: in.Name, PURL: in.PURL, Version: in.Version, Range: in.Range, License: in.Licence}
			return audit(ctx, a, in.AuditPageInput, packageSheet, func(p pipeline.Page) ([]pipeline.PackageAudit, error) {
				q.Page = p
				return a.Store.AuditPackages(ctx, q)
			})
		})
	handle(a, auditOperation[pipeline.FindingAudit](a, "audit-findings", "/api/v1/audit/findings",
		"Find the images with a vulnerability, where they run, what mends it, and who accepted it", "", 422),
		needRead, func(ctx context.Context, in *auditFindingsInput) (*streamOutput, error) {
			q := pipeline.FindingAuditQuery{AuditScope: in.scope(ctx, a), Finding: in.ID, Package: in.Package}
			return audit(ctx, a, in.AuditPageInput, findingSheet, func(p pipeline.Page) ([]pipeline.FindingAudit, error) {
				q.Page = p
				return a.Store.AuditFindings(ctx, q)
			})
		})
	handle(a, auditOperation[pipeline.AuditEvent](a, "audit-image", "/api/v1/audit/images/{digest}",
		"Tell an image's whole story, oldest first", "Runs, decisions, approvals, promotions, tags, exceptions, drift.", 404, 422),
		needRead, func(ctx context.Context, in *auditImageInput) (*streamOutput, error) {
			d, err := pipeline.ParseDigest(in.Digest)
			if err != nil {
				return nil, err
			}
			reach := only(a.reach(ctx), in.Project)
			out, err := audit(ctx, a, in.AuditPageInput, eventSheet, func(p pipeline.Page) ([]pipeline.AuditEvent, error) {
				return a.Store.AuditImage(ctx, d, reach, p)
			})
			return out, found(err, "image", string(d))
		})
	handle(a, auditOperation[pipeline.AuditEvent](a, "audit-person", "/api/v1/audit/people/{name}",
		"List what somebody requested, approved, rejected, accepted and applied, newest first", "Whoever did nothing has an empty list.", 422),
		needRead, func(ctx context.Context, in *auditPersonInput) (*streamOutput, error) {
			reach := only(a.reach(ctx), in.Project)
			return audit(ctx, a, in.AuditPageInput, eventSheet, func(p pipeline.Page) ([]pipeline.AuditEvent, error) {
				return a.Store.AuditPerson(ctx, in.Name, reach, p)
			})
		})
	handle(a, auditOperation[pipeline.EnvironmentAudit](a, "audit-environment", "/api/v1/audit/environments/{project}/{environment}",
		"Say what an environment held at a time, and what changed between two times",
		"Without at, from and to: everything that it ever held, newest first.", 404, 422),
		needRead, func(ctx context.Context, in *auditEnvironmentInput) (*streamOutput, error) {
			if err := a.allow(ctx, needRead, in.Project, "project", in.Project); err != nil {
				return nil, err
			}
			q := pipeline.EnvironmentAuditQuery{Project: in.Project, Environment: in.Environment, At: moment(in.At), From: moment(in.From), To: moment(in.To)}
			out, err := audit(ctx, a, in.AuditPageInput, environmentSheet, func(p pipeline.Page) ([]pipeline.EnvironmentAudit, error) {
				q.Page = p
				return a.Store.AuditEnvironment(ctx, q)
			})
			if _, none := a.Store.ProjectVersion(ctx, in.Project, 0); err != nil && none != nil {
				return nil, found(err, "project", in.Project)
			}
			return out, found(err, "environment", in.Environment)
		})
}

// only narrows a reach to one project, if one is named.
func only(r pipeline.Reach, project string) pipeline.Reach {
	switch {
	case project == "":
		return r
	case r.Has(project):
		return pipeline.Reach{Projects: []string{project}}
	}
	return pipeline.Reach{}
}

// auditOperation describes a question whose answer has items of one type, in
// three formats.
func auditOperation[T any](a *API, id, path, summary, description string, problems ...int) huma.Operation {
	var list List[T]
	responses := a.problems(problems...)
	item := a.schema(*new(T))
	responses["200"] = &huma.Response{
		Description: "A page, or the whole as an export.",
		Headers:     map[string]*huma.Param{"Link": {Description: `The next page, with rel="next"; absent on the last, and of an export.`, Schema: &huma.Schema{Type: huma.TypeString}}},
		Content: map[string]*huma.MediaType{
			"application/json": {Schema: a.schema(list)},
			mediaJSONLines:     {Schema: item},
			mediaCSV:           {Schema: &huma.Schema{Type: huma.TypeString}},
		},
	}
	return huma.Operation{OperationID: id, Method: http.MethodGet, Path: path, Summary: summary, Description: description, Tags: []string{"audit"}, Responses: responses}
}
