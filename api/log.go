package api

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

// Ledger is what the API asks of the evidence log.
type Ledger interface {
	// Checkpoint returns the newest signed checkpoint, and Size how many entries
	// it is of; pipeline.ErrNotFound before the first one.
	Checkpoint(context.Context) ([]byte, error)
	Size(context.Context) (int64, error)
	// Tile returns what is at a path of c2sp.org/tlog-tiles, which starts with
	// "tile/". It never changes.
	Tile(ctx context.Context, path string) ([]byte, error)
	// Prove proves that an entry is in the tree of that size; 0 is the newest.
	Prove(ctx context.Context, index, size int64) (pipeline.Inclusion, error)
	// ProveTree proves that one tree is the beginning of another; 0 is the newest.
	ProveTree(ctx context.Context, from, to int64) (size int64, proof [][]byte, err error)
	LogEntries(context.Context, pipeline.EntryQuery) ([]pipeline.LogEntry, error)
	// CheckRows compares the database with what the entries in that range say of
	// it, and with from 0 also looks for rows of which no entry says anything.
	CheckRows(ctx context.Context, from, to int64) ([]pipeline.RowCheck, error)
	// PublicKey is the key that checkpoints are signed with, as signed notes write
	// it, one a line; empty if this process does not know it.
	PublicKey() string
}

type tileInput struct {
	Path string `path:"path" maxLength:"100" doc:"<level>/<number>[.p/<width>], or entries/<number>[.p/<width>]." example:"0/x001/234.p/5"`
}

type tileOutput struct {
	ContentType  string `header:"Content-Type" hidden:"true"`
	CacheControl string `header:"Cache-Control"`
	Body         []byte
}

type entriesInput struct {
	Project string `query:"project" maxLength:"200" doc:"Only this project's."`
	Kind    string `query:"kind" maxLength:"100" doc:"Only of this kind." example:"tag.moved"`
	Subject string `query:"subject" maxLength:"200" doc:"Only about this run, promotion or exception."`
	Image   string `query:"image" maxLength:"100" doc:"Only about the image with this digest."`
	From    int64  `query:"from" minimum:"-1" default:"-1" doc:"Index to start at, oldest first. Without, the newest come first."`
	PageInput
}

// EntryView is an entry with its place in the log.
type EntryView struct {
	Index int64          `json:"index" doc:"The entry's place, from 0."`
	Entry pipeline.Entry `json:"entry"`
	Leaf  []byte         `json:"leaf" doc:"The entry's canonical form in base64, byte by byte: what the log hashes."`
}

type proofInput struct {
	Index int64 `query:"index" required:"true" minimum:"0" doc:"The entry's index."`
	Size  int64 `query:"size" minimum:"0" doc:"Size of the tree that the proof is for. Default: the newest checkpoint's."`
}

type proofOutput struct{ Body pipeline.Inclusion }

type consistencyInput struct {
	From int64 `query:"from" required:"true" minimum:"1" doc:"Size of the smaller tree."`
	To   int64 `query:"to" minimum:"0" doc:"Size of the greater tree. Default: the newest checkpoint's."`
}

// Consistency is the proof that one tree is the beginning of another.
type Consistency struct {
	From  int64    `json:"from"`
	To    int64    `json:"to"`
	Proof [][]byte `json:"proof" nullable:"false" doc:"RFC 6962, section 2.1.2: hashes in base64."`
}

type consistencyOutput struct{ Body Consistency }

type rowsInput struct {
	From  int64 `query:"from" minimum:"0" doc:"First entry whose rows are compared. With 0, rows that no entry names are looked for as well."`
	Limit int64 `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"How many entries."`
}

// RowChecks are the rows that are not as the log says.
type RowChecks struct {
	From int64               `json:"from"`
	To   int64               `json:"to" doc:"The first entry that was not looked at: where to go on."`
	Size int64               `json:"size" doc:"How many entries the newest checkpoint is of."`
	Rows []pipeline.RowCheck `json:"rows" nullable:"false"`
}

type rowsOutput struct{ Body RowChecks }

// forever is for what never changes. Only the caller may keep it: others need a
// token of their own.
const forever = "private, max-age=31536000, immutable"

func (a *API) registerLog() {
	handle(a, huma.Operation{
		OperationID: "get-log-checkpoint",
		Method:      http.MethodGet,
		Path:        "/api/v1/log/checkpoint",
		Summary:     "Get the evidence log's newest signed checkpoint (C2SP tlog-checkpoint)",
		Tags:        []string{"log"},
		Responses:   a.raw("text/plain", "A signed note", 404, 501),
	}, needToken, func(ctx context.Context, _ *struct{}) (*rawOutput, error) {
		if a.Ledger == nil {
			return nil, disabled(ctx, "serve the evidence log")
		}
		signed, err := a.Ledger.Checkpoint(ctx)
		return &rawOutput{"text/plain; charset=utf-8", signed}, err
	})
	handle(a, huma.Operation{
		OperationID: "get-log-key",
		Method:      http.MethodGet,
		Path:        "/api/v1/log/key",
		Summary:     "Get the public key that the evidence log's checkpoints are signed with",
		Tags:        []string{"log"},
		Responses:   a.raw("text/plain", "A key of signed notes (C2SP signed-note), one a line", 501),
	}, needNothing, func(ctx context.Context, _ *struct{}) (*rawOutput, error) {
		if a.Ledger == nil || a.Ledger.PublicKey() == "" {
			return nil, disabled(ctx, "give the evidence log's key")
		}
		return &rawOutput{"text/plain; charset=utf-8", []byte(a.Ledger.PublicKey() + "\n")}, nil
	})
	handle(a, huma.Operation{
		OperationID: "get-log-tile",
		Method:      http.MethodGet,
		Path:        "/api/v1/log/tile/{path...}",
		Summary:     "Get a tile of the evidence log: hashes or a bundle of entries (C2SP tlog-tiles)",
		Description: "What is at a path never changes.",
		Tags:        []string{"log"},
		Responses:   a.raw("application/octet-stream", "The tile", 404, 422, 501),
	}, needAudit, func(ctx context.Context, in *tileInput) (*tileOutput, error) {
		if err := a.allowAudit(ctx); err != nil {
			return nil, err
		}
		if a.Ledger == nil {
			return nil, disabled(ctx, "serve the evidence log")
		}
		data, err := a.Ledger.Tile(ctx, "tile/"+in.Path)
		return &tileOutput{"application/octet-stream", forever, data}, err
	})
	handle(a, huma.Operation{
		OperationID: "list-log-entries",
		Method:      http.MethodGet,
		Path:        "/api/v1/log/entries",
		Summary:     "List entries of the evidence log, newest first",
		Description: "Entries of the projects that the caller may read; auditors and admins of everything see all.",
		Tags:        []string{"log"},
		Responses:   a.problems(422, 501),
	}, needRead, a.logEntries)
	handle(a, huma.Operation{
		OperationID: "prove-log-entry",
		Method:      http.MethodGet,
		Path:        "/api/v1/log/proof",
		Summary:     "Prove that an entry is in the evidence log",
		Tags:        []string{"log"},
		Responses:   a.problems(404, 422, 501),
	}, needRead, a.logProof)
	handle(a, huma.Operation{
		OperationID: "prove-log-consistency",
		Method:      http.MethodGet,
		Path:        "/api/v1/log/consistency",
		Summary:     "Prove that the evidence log of one size is the beginning of that of another",
		Tags:        []string{"log"},
		Responses:   a.problems(404, 422, 501),
	}, needToken, func(ctx context.Context, in *consistencyInput) (*consistencyOutput, error) {
		if a.Ledger == nil {
			return nil, disabled(ctx, "serve the evidence log")
		}
		to, proof, err := a.Ledger.ProveTree(ctx, in.From, in.To)
		return &consistencyOutput{Consistency{in.From, to, list(proof)}}, err
	})
	handle(a, huma.Operation{
		OperationID: "check-log-rows",
		Method:      http.MethodGet,
		Path:        "/api/v1/log/rows",
		Summary:     "Compare the database with what a range of entries says of it",
		Tags:        []string{"log"},
		Responses:   a.problems(404, 422, 501),
	}, needAudit, a.logRows)
}

// allowAudit checks that the caller may read what is about no one project.
func (a *API) allowAudit(ctx context.Context) error {
	if !audits(ctx) {
		return a.forbidden(ctx, "this server", needAudit.roles(), nil)
	}
	i := infoOf(ctx)
	i.asked = append(i.asked, needAudit)
	return nil
}

// audits reports whether the caller reads everything.
func audits(ctx context.Context) bool {
	t := infoOf(ctx).token
	return t != nil && anyOf(pipeline.RolesIn(t.Grants, ""), needAudit.roles())
}

func (a *API) logEntries(ctx context.Context, in *entriesInput) (*listOutput[EntryView], error) {
	s := a.scope(ctx)
	if a.Ledger == nil {
		return nil, disabled(ctx, "serve the evidence log")
	}
	q := pipeline.EntryQuery{Kind: in.Kind, Subject: in.Subject, Ascending: in.From >= 0, From: in.From, Limit: in.Limit + 1}
	if in.Image != "" {
		d, err := pipeline.ParseDigest(in.Image)
		if err != nil {
			return nil, err
		}
		q.Image = d
	}
	switch {
	case in.Project != "" && s.has(in.Project):
		q.Projects = []string{in.Project}
	case in.Project != "":
		q.Projects = []string{}
	case s.all:
		q.InProject = !audits(ctx)
	default:
		q.Projects = list(s.projects)
	}
	if in.Cursor != "" {
		after, err := strconv.ParseInt(in.Cursor, 10, 64)
		if err != nil || after < 0 {
			return nil, fmt.Errorf("cursor %.40q: take it from the Link of the page before: %w", in.Cursor, pipeline.ErrInvalid)
		}
		if q.Ascending {
			q.From = after + 1
		} else if q.Before = after; after == 0 {
			return &listOutput[EntryView]{Body: List[EntryView]{Items: []EntryView{}}}, nil
		}
	}
	entries, err := a.Ledger.LogEntries(ctx, q)
	if err != nil {
		return nil, err
	}
	views := make([]EntryView, 0, len(entries))
	for _, e := range entries {
		// One that somebody changed may not even parse: it is shown as it is, for
		// whoever verifies, and must not hide the others.
		parsed, err := pipeline.ParseEntry(e.Leaf)
		if err != nil {
			parsed = pipeline.Entry{Kind: "unreadable"}
		}
		views = append(views, EntryView{e.Index, parsed, e.Leaf})
	}
	return listOf(ctx, in.PageInput, views, func(v EntryView) string { return strconv.FormatInt(v.Index, 10) }), nil
}

func (a *API) logProof(ctx context.Context, in *proofInput) (*proofOutput, error) {
	s := a.scope(ctx)
	if a.Ledger == nil {
		return nil, disabled(ctx, "serve the evidence log")
	}
	p, err := a.Ledger.Prove(ctx, in.Index, in.Size)
	name := strconv.FormatInt(in.Index, 10)
	if err != nil {
		return nil, found(err, "entry", name)
	}
	if !audits(ctx) {
		e, err := pipeline.ParseEntry(p.Leaf)
		if err != nil || e.Project == "" || !s.has(e.Project) {
			return nil, hidden("entry", name)
		}
	}
	p.Proof = list(p.Proof)
	return &proofOutput{p}, nil
}

func (a *API) logRows(ctx context.Context, in *rowsInput) (*rowsOutput, error) {
	if err := a.allowAudit(ctx); err != nil {
		return nil, err
	}
	if a.Ledger == nil {
		return nil, disabled(ctx, "serve the evidence log")
	}
	size, err := a.Ledger.Size(ctx)
	if err != nil {
		return nil, err
	}
	if in.From > size {
		return nil, fmt.Errorf("entry %d of a log of %d: %w", in.From, size, pipeline.ErrInvalid)
	}
	to := min(in.From+in.Limit, size)
	rows, err := a.Ledger.CheckRows(ctx, in.From, to)
	return &rowsOutput{RowChecks{in.From, to, size, list(rows)}}, err
}

// plainPaths names path parameters that take the rest of the path as OpenAPI
// does, which has no such thing.
func (a *API) plainPaths() {
	paths := a.huma.OpenAPI().Paths
	for path, item := range paths {
		if plain, ok := strings.CutSuffix(path, "...}"); ok {
			delete(paths, path)
			paths[plain+"}"] = item
		}
	}
}
