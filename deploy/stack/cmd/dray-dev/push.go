//go:build linux

package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	noObject = "0000000000000000000000000000000000000000"
	// deliverIn is how long a receiver may be away or overloaded; whoever pushes
	// waits for it.
	deliverIn  = 15 * time.Second
	retryEvery = 250 * time.Millisecond
)

// pushEvents is the post-receive hook: for each ref that a push changed, it
// sends what GitHub sends, and prints the answer, which git shows to the pusher.
// That the receiver does not take an event fails no push; it has happened.
func pushEvents(ctx context.Context, flags *flag.FlagSet, args []string, stdin io.Reader, stdout io.Writer) error {
	repos := flags.String("repos", "", "the directory that holds OWNER/NAME.git")
	url := flags.String("url", "", "the git server's address")
	webhook := flags.String("webhook", "", "the URL that the events go to")
	secretFile := flags.String("secret-file", "", "the file with the secret that they are signed with")
	if err := parse(flags, args, "repos", "url", "webhook", "secret-file"); err != nil {
		return err
	}
	secret, err := readSecret(*secretFile)
	if err != nil {
		return err
	}
	// A hook runs in the bare repository.
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(*repos, dir)
	if err != nil || strings.HasPrefix(rel, "..") {
		return fmt.Errorf("%s is not a repository in %s", dir, *repos)
	}
	r := repo{dir: dir, name: strings.TrimSuffix(rel, ".git"), server: *url}
	d := deliverer{webhook: *webhook, secret: secret, client: &http.Client{Timeout: 30 * time.Second}}

	lines := bufio.NewScanner(stdin)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) != 3 {
			return fmt.Errorf("want lines of OLD NEW REF, have %q", lines.Text())
		}
		event, err := r.event(ctx, f[0], f[1], f[2])
		if err != nil {
			return err
		}
		answer, err := d.deliver(ctx, event)
		if err != nil {
			answer = "not delivered: " + err.Error()
		}
		fmt.Fprintf(stdout, "dray: %s: %s\n", strings.TrimPrefix(strings.TrimPrefix(f[2], "refs/heads/"), "refs/tags/"), answer)
	}
	return lines.Err()
}

// repo is the bare repository that was pushed to.
type repo struct {
	dir    string
	name   string // "acme/hello-go"
	server string
}

// event is what GitHub calls the push event's payload.
type event struct {
	Ref        string     `json:"ref"`
	Before     string     `json:"before"`
	After      string     `json:"after"`
	BaseRef    *string    `json:"base_ref"`
	Created    bool       `json:"created"`
	Deleted    bool       `json:"deleted"`
	Forced     bool       `json:"forced"`
	Compare    string     `json:"compare"`
	Commits    []commit   `json:"commits"`
	HeadCommit *commit    `json:"head_commit"`
	Repository repository `json:"repository"`
	Pusher     person     `json:"pusher"`
	Sender     account    `json:"sender"`
}

type commit struct {
	ID        string `json:"id"`
	TreeID    string `json:"tree_id"`
	Distinct  bool   `json:"distinct"`
	Message   string `json:"message"`
	Timestamp string `json:"timestamp"`
	URL       string `json:"url"`
	Author    person `json:"author"`
	Committer person `json:"committer"`
}

type person struct {
	Name  string `json:"name"`
	Email string `json:"email"`
}

type account struct {
	Login string `json:"login"`
	ID    int64  `json:"id"`
	Type  string `json:"type"`
}

type repository struct {
	ID            int64   `json:"id"`
	Name          string  `json:"name"`
	FullName      string  `json:"full_name"`
	Private       bool    `json:"private"`
	Owner         account `json:"owner"`
	HTMLURL       string  `json:"html_url"`
	CloneURL      string  `json:"clone_url"`
	DefaultBranch string  `json:"default_branch"`
}

func (r repo) event(ctx context.Context, before, after, ref string) (event, error) {
	owner, name, _ := strings.Cut(r.name, "/")
	page := r.server + "/" + r.name
	e := event{
		Ref: ref, Before: before, After: after,
		Created: before == noObject, Deleted: after == noObject,
		Compare: page + "/compare/" + before[:12] + "..." + after[:12],
		Commits: []commit{},
		Repository: repository{
			ID: number(r.name), Name: name, FullName: r.name,
			Owner:   account{Login: owner, ID: number(owner), Type: "Organization"},
			HTMLURL: page, CloneURL: page + ".git", DefaultBranch: "main",
		},
		Pusher: person{Name: "dev", Email: "dev@acme.example"},
		Sender: account{Login: "dev", ID: number("dev"), Type: "User"},
	}
	if e.Deleted {
		return e, nil
	}
	// after of an annotated tag is the tag; its head commit is the commit.
	head, err := r.commit(ctx, after+"^{commit}", page)
	if err != nil {
		return event{}, err
	}
	e.HeadCommit = &head
	if e.Created {
		return e, nil
	}
	if strings.HasPrefix(ref, "refs/heads/") {
		if _, err := r.git(ctx, "merge-base", "--is-ancestor", before, after); err != nil {
			e.Forced = true
		}
		// GitHub lists at most 2,048, the oldest first.
		list, err := r.git(ctx, "rev-list", "--reverse", "--max-count=2048", before+".."+after)
		if err != nil {
			return event{}, err
		}
		for id := range strings.FieldsSeq(list) {
			c, err := r.commit(ctx, id, page)
			if err != nil {
				return event{}, err
			}
			e.Commits = append(e.Commits, c)
		}
	}
	return e, nil
}

func (r repo) commit(ctx context.Context, rev, page string) (commit, error) {
	out, err := r.git(ctx, "log", "-1", "--format=%H%x00%T%x00%cI%x00%an%x00%ae%x00%cn%x00%ce%x00%B", rev, "--")
	if err != nil {
		return commit{}, err
	}
	f := strings.SplitN(out, "\x00", 8)
	if len(f) != 8 {
		return commit{}, fmt.Errorf("git log printed %q", out)
	}
	return commit{
		ID: f[0], TreeID: f[1], Distinct: true, Timestamp: f[2], URL: page + "/commit/" + f[0],
		Author: person{f[3], f[4]}, Committer: person{f[5], f[6]}, Message: strings.TrimSpace(f[7]),
	}, nil
}

func (r repo) git(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = r.dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSuffix(string(out), "\n"), nil
}

// number stands for the ids that GitHub gives; the same name has the same.
func number(name string) int64 { return int64(crc32.ChecksumIEEE([]byte(name))) }

type deliverer struct {
	webhook string
	secret  string
	client  *http.Client
}

// deliver sends the event until it is answered, under one delivery id, and says
// in words what the answer was.
func (d deliverer) deliver(ctx context.Context, e event) (string, error) {
	body, err := json.Marshal(e)
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, []byte(d.secret))
	mac.Write(body)
	signature := "sha256=" + hex.EncodeToString(mac.Sum(nil))
	id := uuid()

	limit, cancel := context.WithTimeout(ctx, deliverIn)
	defer cancel()
	for {
		answer, again, err := d.once(ctx, body, id, signature)
		if !again {
			return answer, err
		}
		t := time.NewTimer(retryEvery)
		select {
		case <-t.C:
		case <-limit.Done():
			t.Stop()
			return "", fmt.Errorf("given up after %v: %w", deliverIn, err)
		}
	}
}

func (d deliverer) once(ctx context.Context, body []byte, id, signature string) (answer string, again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.webhook, bytes.NewReader(body))
	if err != nil {
		return "", false, err
	}
	for name, value := range map[string]string{
		"Content-Type": "application/json", "User-Agent": "GitHub-Hookshot/dray-dev",
		"X-GitHub-Event": "push", "X-GitHub-Delivery": id, "X-GitHub-Hook-ID": "1",
		"X-Hub-Signature-256": signature,
	} {
		req.Header.Set(name, value)
	}
	res, err := d.client.Do(req)
	if err != nil {
		return "", errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.EOF), err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	if err != nil {
		return "", true, err
	}
	if res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests {
		return "", true, fmt.Errorf("%s: %s", res.Status, inWords(b))
	}
	if res.StatusCode >= 300 {
		return "", false, fmt.Errorf("refused with %s: %s", res.Status, inWords(b))
	}
	return inWords(b), false, nil
}

// inWords reads Dray's answer to a delivery, or its problem+json.
func inWords(body []byte) string {
	var a struct {
		Run, Note, Title, Detail string
		Duplicate                bool
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return fmt.Sprintf("%.200q", body)
	}
	switch {
	case a.Detail != "":
		return a.Detail
	case a.Title != "":
		return a.Title
	case a.Run != "" && a.Duplicate:
		return "accepted before, run " + a.Run
	case a.Run != "":
		return "accepted, run " + a.Run
	case a.Note != "":
		return a.Note
	}
	return fmt.Sprintf("%.200q", body)
}

// uuid returns a random UUID: RFC 9562, section 5.4.
func uuid() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
