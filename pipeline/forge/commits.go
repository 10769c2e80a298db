package forge

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

const (
	// maxCommits is how many of a push are kept, the newest.
	maxCommits = 250
	// maxTitle and maxName bound text for people, in characters.
	maxTitle = 200
	maxName  = 200
	// maxURL bounds a compare URL in bytes.
	maxURL = 2048
)

// commit is the part of GitHub's commit object that is read.
type commit struct {
	ID        field[string] `json:"id"`
	Message   field[string] `json:"message"`
	Timestamp field[string] `json:"timestamp"`
	Author    field[struct {
		Name field[string] `json:"name"`
	}] `json:"author"`
}

// parseCommits returns the newest commits of a push, oldest first as GitHub
// lists them, and whether older ones were left out. Only what is kept is held
// in memory and checked: a body has room for millions.
func parseCommits(raw json.RawMessage) (commits []pipeline.Commit, omitted bool, err error) {
	if len(raw) == 0 {
		return nil, false, nil
	}
	refuse := func(why any) ([]pipeline.Commit, bool, error) {
		return nil, false, fmt.Errorf("commits: %v: %w", why, pipeline.ErrInvalid)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('[') {
		return refuse("want a list")
	}
	var newest [maxCommits]commit
	n := 0
	for ; dec.More(); n++ {
		c := &newest[n%maxCommits]
		*c = commit{}
		if err := dec.Decode(c); err != nil {
			return refuse(err)
		}
	}
	for i := max(0, n-maxCommits); i < n; i++ {
		c, err := newest[i%maxCommits].read()
		if err != nil {
			return refuse(fmt.Sprintf("commit %d of %d: %v", i+1, n, err))
		}
		commits = append(commits, c)
	}
	return commits, n > maxCommits, nil
}

func (c commit) read() (out pipeline.Commit, err error) {
	id, err := c.ID.required("id")
	if err != nil {
		return out, err
	}
	if out.SHA, err = object("id", id); err != nil {
		return out, err
	}
	if out.SHA == "" {
		return out, fmt.Errorf("id is %s, which names no commit: %w", id, pipeline.ErrInvalid)
	}
	message, err := c.Message.optional("message")
	if err != nil {
		return out, err
	}
	title, _, _ := strings.Cut(strings.TrimSpace(message), "\n")
	out.Title = strings.TrimSpace(printable(title, maxTitle))
	author, err := c.Author.optional("author")
	if err != nil {
		return out, err
	}
	name, err := author.Name.optional("author.name")
	if err != nil {
		return out, err
	}
	out.Author = printable(name, maxName)
	timestamp, err := c.Timestamp.optional("timestamp")
	if err != nil {
		return out, err
	}
	out.At = commitTime(timestamp)
	return out, nil
}

// commitTime is zero for what is no time that JSON can hold: git takes any
// number for a commit's time, and a strange one is no reason to lose a push.
func commitTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if t = t.UTC(); err != nil || t.Year() < 1 || t.Year() > 9999 {
		return time.Time{}
	}
	return t
}

// checkCompare returns the URL if it is one of the repository at the forge that
// the clone URL names, over https, and otherwise "".
func checkCompare(compare, source, cloneURL string) string {
	u, err := url.Parse(compare)
	if err != nil || len(compare) > maxURL || u.Scheme != "https" || u.User != nil || u.RawQuery != "" || u.Fragment != "" ||
		printable(compare, maxURL) != compare || strings.ContainsAny(compare, "\\ <>\"'`") {
		return ""
	}
	host := forgeHost(cloneURL)
	if host == "" || !strings.EqualFold(u.Host, host) {
		return ""
	}
	path := u.Path
	if len(path) <= len(source)+2 || !strings.EqualFold(path[:len(source)+2], "/"+source+"/") {
		return ""
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "." || part == ".." {
			return ""
		}
	}
	return u.String()
}

// forgeHost is the host of a forge's pages: that of the clone URL, which with
// ssh has a port of its own.
func forgeHost(cloneURL string) string {
	if u, err := url.Parse(cloneURL); err == nil && u.Host != "" {
		switch u.Scheme {
		case "https":
			return u.Host
		case "ssh", "git+ssh":
			return u.Hostname()
		}
		return ""
	}
	// git@github.com:acme/hello-go.git
	if at, rest, ok := strings.Cut(cloneURL, "@"); ok && !strings.ContainsAny(at, ":/") {
		if host, _, ok := strings.Cut(rest, ":"); ok && host != "" && !strings.ContainsAny(host, "/@") {
			return host
		}
	}
	return ""
}
