package api

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dray-project/dray/pipeline"
)

type vexListInput struct {
	ProjectInput
	All       bool `query:"all" doc:"Those that were revoked as well."`
	Documents bool `query:"documents" doc:"With the documents and signatures themselves."`
	PageInput
}

type addVEXInput struct {
	ProjectInput
	Body struct {
		Document  []byte `json:"document" minLength:"1" doc:"The OpenVEX document in base64, byte by byte as it was signed."`
		Signature []byte `json:"signature" minLength:"1" doc:"In base64: what cosign sign-blob wrote, the signature or the bundle."`
	}
}

// VEXView is a VEX document, and in short what it says.
type VEXView struct {
	pipeline.VEXDocument
	Document   []byte    `json:"document,omitempty"`
	Signature  []byte    `json:"signature,omitempty"`
	Author     string    `json:"author,omitempty" doc:"As the document has it."`
	Statements []VEXLine `json:"statements" nullable:"false" doc:"As the document has them, in short."`
}

// VEXLine is a statement in short.
type VEXLine struct {
	Vulnerability string `json:"vulnerability"`
	Status        string `json:"status"`
	Justification string `json:"justification,omitempty"`
}

type vexOutput struct{ Body VEXView }

func (a *API) registerVEX() {
	handle(a, huma.Operation{
		OperationID: "list-vex",
		Method:      http.MethodGet,
		Path:        "/api/v1/projects/{name}/vex",
		Summary:     "List a project's VEX documents, newest first",
		Tags:        []string{"exceptions"},
		Responses:   a.problems(404, 422),
	}, needRead, func(ctx context.Context, in *vexListInput) (*listOutput[VEXView], error) {
		if _, err := a.projectVersion(ctx, needRead, in.Name, 0); err != nil {
			return nil, err
		}
		docs, err := a.Store.VEXDocuments(ctx, in.Name, in.All, in.page())
		if err != nil {
			return nil, found(err, "project", in.Name)
		}
		var views []VEXView
		for _, d := range docs {
			views = append(views, vexView(d, in.Documents))
		}
		return listOf(ctx, in.PageInput, views, func(v VEXView) string { return v.ID }), nil
	})
	handle(a, huma.Operation{
		OperationID:   "add-vex",
		Method:        http.MethodPost,
		Path:          "/api/v1/projects/{name}/vex",
		Summary:       "Hand in a signed OpenVEX document",
		Description:   "It is taken only if a key that the project trusts (trustedVEXKeys) signed it.",
		Tags:          []string{"exceptions"},
		DefaultStatus: http.StatusCreated,
		Responses:     a.problems(400, 404, 408, 413, 415, 422, 501),
	}, needRelease, a.addVEX)
	handle(a, huma.Operation{
		OperationID:   "revoke-vex",
		Method:        http.MethodDelete,
		Path:          "/api/v1/projects/{name}/vex/{id}",
		Summary:       "Take a VEX document back",
		Description:   "It stays on record. Doing so again changes nothing.",
		Tags:          []string{"exceptions"},
		DefaultStatus: http.StatusOK,
		Responses:     a.problems(404, 422),
	}, needRelease, func(ctx context.Context, in *OneInput) (*vexOutput, error) {
		if err := a.allow(ctx, needRelease, in.Name, "VEX document", in.ID); err != nil {
			return nil, err
		}
		d, err := a.Store.RevokeVEX(ctx, in.Name, in.ID, infoOf(ctx).token.Name)
		note(ctx, slog.String("vex", in.ID))
		return &vexOutput{vexView(d, false)}, found(err, "VEX document", in.ID)
	})
}

func (a *API) addVEX(ctx context.Context, in *addVEXInput) (*vexOutput, error) {
	v, err := a.projectVersion(ctx, needRelease, in.Name, 0)
	if err != nil {
		return nil, err
	}
	if a.CheckVEX == nil {
		return nil, disabled(ctx, "check VEX documents")
	}
	d := pipeline.VEXDocument{Project: in.Name, Document: in.Body.Document, Signature: in.Body.Signature,
		UploadedBy: infoOf(ctx).token.Name, UploadedAt: a.Now().UTC()}
	if len(v.Project.TrustedVEXKeys) == 0 {
		return nil, fmt.Errorf("project %s trusts no key for VEX documents: set trustedVEXKeys in its project file: %w", in.Name, pipeline.ErrUnverified)
	}
	if err := a.CheckVEX(d, v.Project.TrustedVEXKeys); err != nil {
		return nil, fmt.Errorf("VEX document for project %s: %w", in.Name, err)
	}
	d, err = a.Store.AddVEX(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("VEX document for project %s: %w", in.Name, err)
	}
	note(ctx, slog.String("vex", d.ID))
	return &vexOutput{vexView(d, false)}, nil
}

func vexView(d pipeline.VEXDocument, whole bool) VEXView {
	v := VEXView{VEXDocument: d, Statements: []VEXLine{}}
	if whole {
		v.Document, v.Signature = d.Document, d.Signature
	}
	var doc struct {
		Author     string `json:"author"`
		Statements []struct {
			Vulnerability json.RawMessage `json:"vulnerability"`
			Status        string          `json:"status"`
			Justification string          `json:"justification"`
		} `json:"statements"`
	}
	if json.Unmarshal(d.Document, &doc) != nil {
		return v // it was checked when it came; this is for reading only
	}
	v.Author = doc.Author
	for _, s := range doc.Statements {
		// Version 0.0.1 of OpenVEX had a name where there is an object now.
		var object struct {
			Name string `json:"name"`
		}
		var name string
		if json.Unmarshal(s.Vulnerability, &object) == nil {
			name = object.Name
		} else {
			_ = json.Unmarshal(s.Vulnerability, &name) // stays empty
		}
		v.Statements = append(v.Statements, VEXLine{name, s.Status, s.Justification})
	}
	return v
}
