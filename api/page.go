package api

import (
	"context"
	"fmt"
	"strconv"

	"github.com/dray-project/dray/pipeline"
)

// PageInput asks for a part of a list.
type PageInput struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"100" default:"50" doc:"How many items at most."`
	Cursor string `query:"cursor" maxLength:"200" doc:"Where the page starts: taken from the Link of the page before, never made up."`
}

// page asks the store for one item more than the caller wants, to know whether
// there is another page.
func (p PageInput) page() pipeline.Page { return pipeline.Page{Limit: p.Limit + 1, After: p.Cursor} }

// List is a page of items, newest first.
type List[T any] struct {
	Items []T `json:"items" nullable:"false"`
}

type listOutput[T any] struct {
	Link string `header:"Link" doc:"The next page, with rel=\"next\"; absent on the last."`
	Body List[T]
}

// listOf cuts the extra item off and links to the next page.
func listOf[T any](ctx context.Context, p PageInput, items []T, id func(T) string) *listOutput[T] {
	out := &listOutput[T]{Body: List[T]{Items: list(items)}}
	if len(items) <= p.Limit {
		return out
	}
	out.Body.Items = items[:p.Limit]
	u := infoOf(ctx).url
	if u == nil {
		return out
	}
	query := u.Query()
	query.Set("limit", strconv.Itoa(p.Limit))
	query.Set("cursor", id(out.Body.Items[p.Limit-1]))
	out.Link = fmt.Sprintf(`<%s?%s>; rel="next"`, u.EscapedPath(), query.Encode())
	return out
}

// list is never null in JSON.
func list[T any](items []T) []T {
	if items == nil {
		return []T{}
	}
	return items
}
