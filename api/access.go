package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

// need is what an operation asks of its caller: the least of the API's roles
// that may use it. It is part of the OpenAPI description as x-dray-needs.
type need string

const (
	// needNothing: not even a token.
	needNothing need = ""
	// needToken: any token that is good.
	needToken need = "token"
	// needRead, needDevelop, needRelease and needAdmin ask for a role in the
	// project that the request is about.
	needRead    need = "viewer"
	needDevelop need = "developer"
	needRelease need = "release-manager"
	needAdmin   need = "admin"
	// needApprove: needRead, and a role that the environment's approval rules name.
	needApprove need = "approver"
	// needServerAdmin: admin of everything, because it is about no one project.
	needServerAdmin need = "server-admin"
	// needAudit: auditor or admin of everything, because it is about every project
	// at once.
	needAudit need = "server-auditor"
)

// roles that satisfy a need.
func (n need) roles() []string {
	switch n {
	case needRead, needApprove:
		return []string{pipeline.RoleViewer, pipeline.RoleAuditor, pipeline.RoleDeveloper, pipeline.RoleReleaseManager, pipeline.RoleAdmin}
	case needDevelop:
		return []string{pipeline.RoleDeveloper, pipeline.RoleReleaseManager, pipeline.RoleAdmin}
	case needRelease:
		return []string{pipeline.RoleReleaseManager, pipeline.RoleAdmin}
	case needAudit:
		return []string{pipeline.RoleAuditor, pipeline.RoleAdmin}
	}
	return []string{pipeline.RoleAdmin}
}

func anyOf(have, want []string) bool {
	return slices.ContainsFunc(have, func(role string) bool { return slices.Contains(want, role) })
}

// scope is which projects a caller may read.
type scope struct {
	all      bool
	projects []string // sorted
}

func (s scope) has(project string) bool { return s.all || slices.Contains(s.projects, project) }

// scope of the request's caller. Asking counts as having asked what the caller
// may do: whoever asks shows only what is within.
func (a *API) scope(ctx context.Context) scope {
	i := infoOf(ctx)
	i.asked = append(i.asked, needRead)
	var s scope
	if i.token == nil {
		return s
	}
	for _, g := range i.token.Grants {
		switch {
		case !slices.Contains(needRead.roles(), g.Role):
		case g.Project == "":
			s.all = true
		case !slices.Contains(s.projects, g.Project):
			s.projects = append(s.projects, g.Project)
		}
	}
	slices.Sort(s.projects)
	return s
}

// hidden is the answer for what does not exist, and for what the caller may not
// know of: the two cannot be told apart.
func hidden(kind, name string) error {
	return fmt.Errorf("%s %.200s: %w", kind, name, pipeline.ErrNotFound)
}

// allow checks that the caller may do something in a project. To whom may not
// even read there, it says that the thing which was asked for is not found.
func (a *API) allow(ctx context.Context, n need, project, kind, name string) error {
	if !a.scope(ctx).has(project) {
		return hidden(kind, name)
	}
	have := pipeline.RolesIn(infoOf(ctx).token.Grants, project)
	if !anyOf(have, n.roles()) {
		return a.forbidden(ctx, "project "+project, n.roles(), have)
	}
	i := infoOf(ctx)
	i.asked = append(i.asked, n)
	return nil
}

// allowServer checks that the caller is an admin of everything.
func (a *API) allowServer(ctx context.Context) error {
	i := infoOf(ctx)
	if i.token == nil || !slices.Contains(i.token.Grants, pipeline.Grant{Role: pipeline.RoleAdmin}) {
		return a.forbidden(ctx, "this server", []string{pipeline.RoleAdmin}, nil)
	}
	i.asked = append(i.asked, needServerAdmin)
	return nil
}

// forbidden names the roles that would do.
func (a *API) forbidden(ctx context.Context, where string, roles, have []string) *Problem {
	detail := fmt.Sprintf("this needs the role %s for %s", strings.Join(roles, " or "), where)
	if t := infoOf(ctx).token; t != nil && len(have) > 0 {
		detail += fmt.Sprintf("; %s has %s", t.Name, strings.Join(have, ", "))
	}
	p := newProblem(ctx, http.StatusForbidden, problemForbidden, detail)
	p.Roles = roles
	return p
}

// dryRun says that a request to an operation which asks for n only reads.
func (a *API) dryRun(ctx context.Context, n need) {
	i := infoOf(ctx)
	if slices.Contains(i.asked, needRead) {
		i.asked = append(i.asked, n)
	}
}

// authorised is called with every answer that is about to go out. An operation
// that forgot to ask what its caller may do gives none.
func (a *API) authorised(ctx context.Context, op string, n need) error {
	if n == needNothing || n == needToken || slices.Contains(infoOf(ctx).asked, n) {
		return nil
	}
	return fmt.Errorf("operation %s did not check what its caller may do, so its answer is withheld", op)
}

// handle registers an operation, which asks for n and checks it itself through
// allow, allowServer, allowAudit or scope. Its errors go through problem.
func handle[I, O any](a *API, op huma.Operation, n need, h func(context.Context, *I) (*O, error)) {
	if n != needNothing {
		op.Security = []map[string][]string{{"token": {}}}
		also := []int{http.StatusUnauthorized}
		if n != needToken && n != needRead {
			also = append(also, http.StatusForbidden)
		}
		for status, response := range a.problems(also...) {
			op.Responses[status] = response
		}
		op.Extensions = map[string]any{"x-dray-needs": string(n)}
	}
	huma.Register(a.huma, op, func(ctx context.Context, in *I) (*O, error) {
		out, err := h(ctx, in)
		if err == nil {
			err = a.authorised(ctx, op.OperationID, n)
		}
		if err != nil {
			return nil, a.problem(ctx, err)
		}
		return out, nil
	})
}

// found turns whatever way the store says "not found" into one.
func found(err error, kind, name string) error {
	if errors.Is(err, pipeline.ErrNotFound) {
		return hidden(kind, name)
	}
	return err
}

// across lists what several projects have. fetch gets a project, or none for
// everything; newer orders the items as the store does. A project that the
// caller may not see has none.
func across[T any](ctx context.Context, a *API, project string, page pipeline.Page, newer func(x, y T) int, fetch func(project string) ([]T, error)) ([]T, error) {
	s := a.scope(ctx)
	switch {
	case project != "" && !s.has(project):
		return nil, nil
	case project != "" || s.all:
		return fetch(project)
	}
	var all []T
	for _, name := range s.projects {
		items, err := fetch(name)
		if err != nil {
			return nil, err
		}
		all = append(all, items...)
	}
	slices.SortStableFunc(all, newer)
	return all[:min(len(all), page.Limit)], nil
}

// byID orders items newest first: ids sort by creation.
func byID[T any](id func(T) string) func(x, y T) int {
	return func(x, y T) int { return strings.Compare(id(y), id(x)) }
}
