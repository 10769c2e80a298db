package evidence

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/dray-project/dray/pipeline"
)

// checkpoint is what a log's key signed (C2SP tlog-checkpoint).
type checkpoint struct {
	origin string
	tree   tlog.Tree
	raw    []byte
}

// openCheckpoint reads a checkpoint that is signed by one of the keys (note
// verifier keys, one a line), whose name is the log's origin.
func openCheckpoint(raw []byte, keys string) (checkpoint, error) {
	var list []note.Verifier
	for line := range strings.Lines(keys) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		verifier, err := note.NewVerifier(line)
		if err != nil {
			return checkpoint{}, fmt.Errorf("the log's key: %w: %w", err, pipeline.ErrInvalid)
		}
		list = append(list, verifier)
	}
	if len(list) == 0 {
		return checkpoint{}, fmt.Errorf("there is no public key of the log: %w", pipeline.ErrInvalid)
	}
	n, err := note.Open(raw, note.VerifierList(list...))
	var unknown *note.UnverifiedNoteError
	if errors.As(err, &unknown) {
		var by []string
		for _, s := range unknown.Note.UnverifiedSigs {
			by = append(by, fmt.Sprintf("%.60q (%08x)", s.Name, s.Hash))
		}
		return checkpoint{}, fmt.Errorf("it is signed by %s and not by a key that is trusted, such as %q (%08x)",
			strings.Join(by, ", "), list[0].Name(), list[0].KeyHash())
	}
	if err != nil {
		return checkpoint{}, err
	}
	c, err := parseCheckpoint(n.Text)
	if err == nil && c.origin != n.Sigs[0].Name {
		err = fmt.Errorf("it is of the log %.100q, and the key is that of %q", c.origin, n.Sigs[0].Name)
	}
	c.raw = raw
	return c, err
}

func parseCheckpoint(text string) (c checkpoint, err error) {
	lines := strings.Split(text, "\n")
	if len(lines) < 4 {
		return c, errors.New("it has fewer than three lines")
	}
	c.origin = lines[0]
	if !isNumber(lines[1]) {
		return c, fmt.Errorf("the size of the tree is %.40q", lines[1])
	}
	if c.tree.N, err = strconv.ParseInt(lines[1], 10, 64); err != nil {
		return c, err
	}
	hash, err := base64.StdEncoding.DecodeString(lines[2])
	if err != nil || len(hash) != tlog.HashSize {
		return c, errors.New("the tree's hash is not 32 bytes in base64")
	}
	c.tree.Hash = tlog.Hash(hash)
	return c, nil
}

const proofHeader = "c2sp.org/tlog-proof@v1"

// formatProof writes a proof as C2SP tlog-proof has it: with the checkpoint, so
// that every other verifier of that format can check it by itself.
func formatProof(index int64, path [][]byte, checkpoint []byte) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nindex %d\n", proofHeader, index)
	for _, h := range path {
		b.WriteString(base64.StdEncoding.EncodeToString(h) + "\n")
	}
	b.WriteByte('\n')
	b.Write(checkpoint)
	return b.Bytes()
}

// parseProof is the inverse of formatProof.
func parseProof(raw []byte) (index int64, path tlog.RecordProof, checkpoint []byte, err error) {
	head, checkpoint, ok := bytes.Cut(raw, []byte("\n\n"))
	lines := strings.Split(string(head), "\n")
	if !ok || len(lines) < 2 || lines[0] != proofHeader {
		return 0, nil, nil, errors.New("it is no " + proofHeader)
	}
	digits, ok := strings.CutPrefix(lines[1], "index ")
	if !ok || !isNumber(digits) {
		return 0, nil, nil, errors.New("it has no index")
	}
	if index, err = strconv.ParseInt(digits, 10, 64); err != nil {
		return 0, nil, nil, err
	}
	if len(lines)-2 > 63 {
		return 0, nil, nil, errors.New("its path is longer than any tree is high")
	}
	for _, line := range lines[2:] {
		h, err := base64.StdEncoding.DecodeString(line)
		if err != nil || len(h) != tlog.HashSize {
			return 0, nil, nil, errors.New("its path has something that is not 32 bytes in base64")
		}
		path = append(path, tlog.Hash(h))
	}
	return index, path, checkpoint, nil
}

// verifyInclusion checks that the leaf is at that index of the checkpoint's tree.
func verifyInclusion(leaf []byte, index int64, path tlog.RecordProof, c checkpoint) error {
	if index < 0 || index >= c.tree.N {
		return fmt.Errorf("entry %d is not among the %d of the checkpoint", index, c.tree.N)
	}
	return tlog.CheckRecord(path, c.tree.N, c.tree.Hash, index, tlog.RecordHash(leaf))
}

// settle returns the log's newest checkpoint, which covers everything that was
// written before. Without a log it is that of an empty one.
func (c *collection) settle() (checkpoint, error) {
	if c.Log == nil {
		return checkpoint{}, nil
	}
	raw, err := c.Log.Settle(c.ctx)
	if err != nil {
		return checkpoint{}, fmt.Errorf("the evidence log: %w", err)
	}
	text, _, _ := bytes.Cut(raw, []byte("\n\n"))
	head, err := parseCheckpoint(string(text) + "\n")
	if err != nil {
		return checkpoint{}, fmt.Errorf("the evidence log's checkpoint: %w", err)
	}
	head.raw = raw
	return head, nil
}

// log adds the entries with their proofs.
func (c *collection) log(head checkpoint, entries []pipeline.LogEntry) error {
	if c.Log == nil {
		return nil
	}
	c.add(CheckpointName, head.raw)
	for _, e := range entries {
		proof, err := c.Log.Inclusion(c.ctx, e.Index, head.tree.N)
		if err != nil {
			return fmt.Errorf("prove entry %d of the evidence log: %w", e.Index, err)
		}
		c.add(fmt.Sprintf("log/%d.json", e.Index), e.Leaf)
		c.add(fmt.Sprintf("log/%d.tlog-proof", e.Index), formatProof(e.Index, proof.Proof, head.raw))
	}
	return nil
}

// entries lists, in their order, those about the image, about the jobs and the
// suppressions, and those by which the settings came into force.
func (c *collection) entries(size int64) ([]pipeline.LogEntry, error) {
	if c.Log == nil {
		return nil, nil
	}
	all := map[int64]pipeline.LogEntry{}
	// The log's first entry says since when there is a log.
	first, err := c.Log.Entries(c.ctx, pipeline.EntryQuery{Ascending: true, Limit: 1})
	if err != nil {
		return nil, fmt.Errorf("the evidence log: %w", err)
	}
	for _, e := range first {
		all[e.Index] = e
	}
	queries := []pipeline.EntryQuery{{Image: c.digest}, {Kind: pipeline.EntryProjectApplied}}
	for _, s := range c.subjects {
		queries = append(queries, pipeline.EntryQuery{Subject: s})
	}
	for _, q := range queries {
		q.Projects, q.Ascending, q.Limit = []string{c.project}, true, 1000
		for {
			list, err := c.Log.Entries(c.ctx, q)
			if err != nil {
				return nil, fmt.Errorf("the evidence log: %w", err)
			}
			for _, e := range list {
				if e.Index < size {
					all[e.Index] = e
				}
				q.From = e.Index + 1
			}
			if len(list) < q.Limit {
				break
			}
		}
	}
	out := make([]pipeline.LogEntry, 0, len(all))
	for _, e := range all {
		out = append(out, e)
	}
	slices.SortFunc(out, func(a, b pipeline.LogEntry) int { return int(a.Index - b.Index) })
	return out, nil
}
