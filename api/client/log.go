package client

import (
	"context"
	"net/url"
	"strconv"

	"github.com/dray-project/dray/pipeline"
)

// LogCheckpoint returns the evidence log's newest signed checkpoint. What it says
// is for the caller to verify.
func (c *Client) LogCheckpoint(ctx context.Context) ([]byte, error) {
	return c.getRaw(ctx, "/api/v1/log/checkpoint", nil)
}

// LogKey returns the public key that the server says its log is signed with.
func (c *Client) LogKey(ctx context.Context) (string, error) {
	key, err := c.getRaw(ctx, "/api/v1/log/key", nil)
	return string(key), err
}

// LogTile returns what is at a path of c2sp.org/tlog-tiles that starts with
// "tile/". It takes a token of an auditor or admin of everything.
func (c *Client) LogTile(ctx context.Context, path string) ([]byte, error) {
	return c.getRaw(ctx, "/api/v1/log/"+path, nil)
}

// LogQuery narrows a list of entries; empty fields do not.
type LogQuery struct {
	Project, Kind, Subject string
	Image                  pipeline.Digest
	PageQuery
}

// LogEntry is an entry with its place in the log.
type LogEntry struct {
	Index int64          `json:"index"`
	Entry pipeline.Entry `json:"entry"`
	// Leaf is the entry's canonical form, which the log hashes.
	Leaf []byte `json:"leaf"`
}

// LogEntries lists entries of the evidence log, newest first.
func (c *Client) LogEntries(ctx context.Context, q LogQuery) (List[LogEntry], error) {
	v := url.Values{}
	setIf(v, "project", q.Project)
	setIf(v, "kind", q.Kind)
	setIf(v, "subject", q.Subject)
	setIf(v, "image", string(q.Image))
	q.set(v)
	return getList[LogEntry](ctx, c, "/api/v1/log/entries", v)
}

// LogProof returns the proof that an entry is in the log of that size; 0 is the
// newest. It is for the caller to verify.
func (c *Client) LogProof(ctx context.Context, index, size int64) (p pipeline.Inclusion, err error) {
	v := url.Values{"index": {strconv.FormatInt(index, 10)}}
	if size > 0 {
		v.Set("size", strconv.FormatInt(size, 10))
	}
	err = c.getJSON(ctx, "/api/v1/log/proof", v, &p)
	return p, err
}

// LogConsistency returns the proof that the log of one size is the beginning of
// that of another, and the second size; 0 is the newest.
func (c *Client) LogConsistency(ctx context.Context, from, to int64) (size int64, proof [][]byte, err error) {
	v := url.Values{"from": {strconv.FormatInt(from, 10)}}
	if to > 0 {
		v.Set("to", strconv.FormatInt(to, 10))
	}
	var out struct {
		To    int64    `json:"to"`
		Proof [][]byte `json:"proof"`
	}
	err = c.getJSON(ctx, "/api/v1/log/consistency", v, &out)
	return out.To, out.Proof, err
}

// LogRows are the rows of the database that are not as a range of entries says.
type LogRows struct {
	// To is the first entry that was not looked at, and Size how many there are.
	To   int64               `json:"to"`
	Size int64               `json:"size"`
	Rows []pipeline.RowCheck `json:"rows"`
}

// LogRows compares the database with what at most limit entries from an index on
// say of it.
func (c *Client) LogRows(ctx context.Context, from, limit int64) (rows LogRows, err error) {
	err = c.getJSON(ctx, "/api/v1/log/rows", url.Values{"from": {strconv.FormatInt(from, 10)}, "limit": {strconv.FormatInt(limit, 10)}}, &rows)
	return rows, err
}
