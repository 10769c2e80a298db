package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/api/client"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
)

func (a *app) logCommand() *cobra.Command {
	return newGroup("log", "Follow and verify the evidence log", a.logVerify(), a.logShow(), a.logCheckpoint())
}

// logSource is a server's log.
type logSource struct{ *client.Client }

// Checkpoint implements ledger.Source.
func (s logSource) Checkpoint(ctx context.Context) ([]byte, error) { return s.LogCheckpoint(ctx) }

// Tile implements ledger.Source.
func (s logSource) Tile(ctx context.Context, path string) ([]byte, error) {
	return s.LogTile(ctx, path)
}

// logVerified is what dray log verify found.
type logVerified struct {
	Origin string `json:"origin"`
	Size   int64  `json:"size"`
	Root   string `json:"root"`
	// Consistent is how many earlier checkpoints the log was compared with, and
	// Recomputed how many entries.
	Consistent int   `json:"consistentWith"`
	Recomputed int64 `json:"recomputed"`
	// Rows are those that are not as the log says; null if they were not compared.
	Rows []pipeline.RowCheck `json:"rows"`
}

func (a *app) logVerify() *cobra.Command {
	var o struct {
		key, state  string
		since       []string
		all, noRows bool
		timeout     time.Duration
	}
	c := &cobra.Command{
		Use:   "verify",
		Short: "Check that the evidence log is what it was, and the database what the log says",
		Long: `Follow the evidence log from the checkpoint that was verified last, and check:

  - the newest checkpoint is signed by the log's key,
  - every earlier checkpoint is the beginning of the same log,
  - every new entry has the hash that the log has for it,
  - every row of the database that an entry names is as the newest one says.

What verified is kept in a state file, and the next time starts there. The
server is believed in nothing but the last of these, which only it can look up.

Without --key, and the first time, the key that the server names is trusted, as
ssh does with hosts. Get it from somebody you trust instead. A key file may have
several lines, for when the key was changed.

--since names a checkpoint that was kept elsewhere, or the file that checkpoints
are published to: then every one of them is compared.

The exit code is 6 when something does not verify. The token must be that of an
auditor or admin of everything.`,
		Example: `  dray log verify --key log.pub
  dray log verify --key log.pub --since checkpoints.jsonl
  dray log verify --all -o json`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			if o.state == "" {
				if o.state, err = a.logState(); err != nil {
					return err
				}
			}
			ctx, cancel := deadline(cmd.Context(), o.timeout)
			defer cancel()
			f := ledger.Follow{Source: logSource{cl}}
			trust, err := ledger.ReadTrust(o.state)
			switch {
			case err == nil:
				f.Trusted = append(f.Trusted, []byte(trust.Checkpoint))
			case !errors.Is(err, fs.ErrNotExist):
				return fmt.Errorf("--state: %w", err)
			}
			if f.Keys, err = a.logKeys(ctx, cl, o.key, trust.Key); err != nil {
				return cause(ctx, err)
			}
			if trust.Checkpoint != "" && !o.all {
				c, err := f.Keys.Open(f.Trusted[0])
				if err != nil {
					return fmt.Errorf("%s: %w", o.state, err)
				}
				f.From = c.N
			}
			for _, path := range o.since {
				more, err := ledger.ReadCheckpoints(path)
				if err != nil {
					return fmt.Errorf("--since: %w", err)
				}
				f.Trusted = append(f.Trusted, more...)
			}
			return a.verifyLog(ctx, cl, f, o.state, !o.noRows)
		},
	}
	c.Flags().StringVar(&o.key, "key", "", "file with the log's public key (default: the file that $DRAY_LOG_KEY names, else the key in the state file)")
	c.Flags().StringVar(&o.state, "state", "", "file that keeps what was verified (default: one for this server in your configuration directory)")
	c.Flags().StringArrayVar(&o.since, "since", nil, "file with checkpoints that the log must be consistent with; may be repeated")
	c.Flags().BoolVar(&o.all, "all", false, "recompute every entry, also those that were verified before")
	c.Flags().BoolVar(&o.noRows, "no-rows", false, "do not compare the database with the log")
	c.Flags().DurationVar(&o.timeout, "timeout", 0, "give up after this long (0: never)")
	return c
}

// verifyLog follows the log, keeps what verified, and compares the rows.
func (a *app) verifyLog(ctx context.Context, cl *client.Client, f ledger.Follow, state string, rows bool) error {
	got, err := f.Run(ctx)
	if err != nil {
		return cause(ctx, fmt.Errorf("verify the log: %w", err))
	}
	trust := ledger.Trust{Key: f.Keys.String(), Checkpoint: string(got.Signed), VerifiedAt: a.now().UTC()}
	if err := trust.Write(state); err != nil {
		return fmt.Errorf("keep what was verified: %w", err)
	}
	out := logVerified{Origin: got.Origin, Size: got.N, Root: got.Hash.String(), Consistent: got.Consistent, Recomputed: got.Entries}
	if rows {
		if out.Rows, err = logRows(ctx, cl); err != nil {
			return cause(ctx, fmt.Errorf("compare the database with the log: %w", err))
		}
	}
	err = a.print(out, func(w *writer) { w.logVerified(out) }, func() []string { return []string{out.Origin + " " + strconv.FormatInt(out.Size, 10)} })
	if err == nil && len(out.Rows) > 0 {
		err = fmt.Errorf("%s: %w", rowProblem(out.Rows[0]), pipeline.ErrUnverified)
		if more := len(out.Rows) - 1; more > 0 {
			err = fmt.Errorf("%w, and %d more", err, more)
		}
	}
	return err
}

// logRows returns the rows that are not as they should be, first those that an entry
// contradicts: others may only follow from them.
func logRows(ctx context.Context, cl *client.Client) ([]pipeline.RowCheck, error) {
	const most = 10_000
	all, others := []pipeline.RowCheck{}, []pipeline.RowCheck{}
	for from := int64(0); ; {
		page, err := cl.LogRows(ctx, from, 2000)
		if err != nil {
			return nil, err
		}
		for _, r := range page.Rows {
			if r.Entry < 0 {
				others = append(others, r)
			} else {
				all = append(all, r)
			}
		}
		if page.To >= page.Size || page.To <= from || len(all)+len(others) > most {
			return append(all, others...), nil
		}
		from = page.To
	}
}

// rowProblem names a row and what is wrong with it.
func rowProblem(r pipeline.RowCheck) string {
	switch {
	case r.Table == "log_entries" || r.Table == "stays":
		return fmt.Sprintf("row %s/%s: %s", r.Table, r.Key, r.Problem)
	case r.Entry < 0 && r.Want == "":
		return fmt.Sprintf("row %s/%s: no entry says that it is there: %s", r.Table, r.Key, r.Problem)
	case r.Have == "" && r.Want != "":
		return fmt.Sprintf("row %s/%s is gone: entry %d says %s: %s", r.Table, r.Key, r.Entry, r.Want, r.Problem)
	case r.Want != "":
		return fmt.Sprintf("row %s/%s was changed: entry %d says %s, and it is %s: %s", r.Table, r.Key, r.Entry, r.Want, r.Have, r.Problem)
	}
	return fmt.Sprintf("row %s/%s, entry %d: %s", r.Table, r.Key, r.Entry, r.Problem)
}

func (w *writer) logVerified(v logVerified) {
	w.printf("%s %s: %d entries\n", w.paint(cell{"verified", green}), v.Origin, v.Size)
	w.facts("root", v.Root, "consistent with", fmt.Sprintf("%d earlier checkpoints", v.Consistent), "recomputed", fmt.Sprintf("%d entries", v.Recomputed))
	switch {
	case v.Rows == nil:
		w.printf("The database was not compared.\n")
	case len(v.Rows) == 0:
		w.printf("Every row is as its newest entry says.\n")
	default:
		w.printf("%s %d rows are not as the log says:\n", w.paint(cell{"WRONG", red}), len(v.Rows))
		for _, r := range v.Rows {
			w.printf("  %s\n", oneLine(rowProblem(r)))
		}
	}
}

// logKeys finds the log's key: the one that was given, the one that verified
// before, or at first the one that the server names.
func (a *app) logKeys(ctx context.Context, cl *client.Client, path, known string) (ledger.Keys, error) {
	if path == "" {
		path = a.getenv("DRAY_LOG_KEY")
	}
	if path != "" {
		k, err := ledger.ReadKeys(path)
		if err != nil {
			return k, fmt.Errorf("public key of the log: %w", err)
		}
		return k, nil
	}
	if known != "" {
		return ledger.ParseKeys(known)
	}
	named, err := cl.LogKey(ctx)
	if err != nil {
		return ledger.Keys{}, err
	}
	k, err := ledger.ParseKeys(named)
	if err == nil {
		fmt.Fprintf(a.stderr, "Trusting the key that the server names, from now on: compare it with what its operator gave you.\n%s\n", k)
	}
	return k, err
}

// logState is the state file of this server.
func (a *app) logState() (string, error) {
	dir := a.getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := a.getenv("HOME")
		if home == "" {
			return "", usage("neither XDG_CONFIG_HOME nor HOME is set: say with --state where to keep what was verified")
		}
		dir = filepath.Join(home, ".config")
	}
	server := a.url
	if server == "" {
		server = a.getenv("DRAY_URL")
	}
	u, err := url.Parse(strings.TrimRight(server, "/"))
	if err != nil {
		return "", &usageError{err}
	}
	return filepath.Join(dir, "dray", "log", url.PathEscape(u.Host+u.Path)+".json"), nil
}

func (a *app) logShow() *cobra.Command {
	var q client.LogQuery
	var image string
	var limit int
	c := &cobra.Command{
		Use:   "show",
		Short: "List entries of the evidence log, newest first",
		Long: `List entries of the evidence log, newest first: those of the projects that you may
read, and all of them for auditors and admins of everything. With -o json, each
entry comes with its canonical form, which is what the log hashes.`,
		Example: `  dray log show --project hello-go
  dray log show --subject prm_06f3n8w2c41r0kd7t9qh -o json`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			q.Image = pipeline.Digest(image)
			list, err := pages(limit, func(limit int, cursor string) (client.List[client.LogEntry], error) {
				q.Limit, q.Cursor = limit, cursor
				return cl.LogEntries(cmd.Context(), q)
			})
			if err != nil {
				return fmt.Errorf("list entries of the log: %w", err)
			}
			return a.print(list, func(w *writer) { w.logEntries(list) }, func() []string {
				return names(list, func(e client.LogEntry) string { return strconv.FormatInt(e.Index, 10) })
			})
		},
	}
	c.Flags().StringVarP(&q.Project, "project", "p", "", "only this project's")
	c.Flags().StringVar(&q.Kind, "kind", "", "only of this kind, such as promotion.decided")
	c.Flags().StringVar(&q.Subject, "subject", "", "only about this run, promotion or exception")
	c.Flags().StringVar(&image, "image", "", "only about the image with this digest")
	c.Flags().IntVar(&limit, "limit", 50, "how many at most")
	return c
}

func (w *writer) logEntries(list []client.LogEntry) {
	if len(list) == 0 {
		w.printf("There is no such entry.\n")
		return
	}
	var rows [][]cell
	for _, e := range list {
		image := ""
		if e.Entry.Image != "" {
			image = e.Entry.Image.Short()
		}
		rows = append(rows, []cell{text(strconv.FormatInt(e.Index, 10)), text(e.Entry.At.UTC().Format(time.DateTime)), text(e.Entry.Kind),
			text(e.Entry.Project), text(e.Entry.Subject), text(image), text(e.Entry.Actor)})
	}
	w.table([]string{"INDEX", "AT (UTC)", "KIND", "PROJECT", "SUBJECT", "IMAGE", "BY"}, rows)
}

func (a *app) logCheckpoint() *cobra.Command {
	var key string
	c := &cobra.Command{
		Use:   "checkpoint",
		Short: "Print the evidence log's newest signed checkpoint",
		Long: `Print the evidence log's newest signed checkpoint, byte by byte. Keep it where
nobody who runs the server can write, and give it to dray log verify --since later:
history before it can then not be rewritten without your noticing.

With --key, its signature is checked first.`,
		Example: `  dray log checkpoint --key log.pub > checkpoint
  dray log verify --key log.pub --since checkpoint`,
		Args: exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			signed, err := cl.LogCheckpoint(cmd.Context())
			if err != nil {
				return fmt.Errorf("read the log's checkpoint: %w", err)
			}
			if key == "" {
				key = a.getenv("DRAY_LOG_KEY")
			}
			if key != "" {
				keys, err := ledger.ReadKeys(key)
				if err != nil {
					return fmt.Errorf("public key of the log: %w", err)
				}
				if _, err := keys.Open(signed); err != nil {
					return err
				}
			}
			_, err = a.stdout.Write(signed)
			return err
		},
	}
	c.Flags().StringVar(&key, "key", "", "file with the log's public key (default: the file that $DRAY_LOG_KEY names)")
	return c
}
