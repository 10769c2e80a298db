package main

import (
	"context"
	"crypto"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/evidence"
	"github.com/dray-project/dray/pipeline/ledger"
	"github.com/dray-project/dray/pipeline/vex"
	"github.com/dray-project/dray/signer/verify"
)

func (a *app) evidenceCommand() *cobra.Command {
	var project, to string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "evidence IMAGE",
		Short: "Fetch all that it takes to check an image without Dray, as one file",
		Long: `Fetch an image's evidence bundle: its manifests, signatures, attestations and
SBOMs, the scan, every decision with its rules, approvals and exceptions, where it
went, and the entries of the evidence log about all of that with their proofs.

The bundle is a tar archive. Whoever gets it checks it with dray verify --bundle,
with no server and no network. What it proves depends on the public keys that they
trust, so give them those another way than beside the bundle.`,
		Example: `  dray evidence sha256:2f1d0b7c… -o hello-go.evidence.tar
  dray verify --bundle hello-go.evidence.tar --key cosign.pub --log-key log.pub`,
		Args: exactly(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			digest, err := digestArg(args[0])
			if err != nil {
				return err
			}
			if to == "" {
				return usage("no file: give -o with the name of the bundle, or -o - for standard output")
			}
			cl, err := a.client()
			if err != nil {
				return err
			}
			ctx, cancel := deadline(cmd.Context(), timeout)
			defer cancel()
			if to == "-" {
				_, err := cl.Evidence(ctx, digest, project, a.stdout)
				return cause(ctx, err)
			}
			n, err := wholeFile(to, func(w io.Writer) (int64, error) { return cl.Evidence(ctx, digest, project, w) })
			if err != nil {
				return cause(ctx, fmt.Errorf("fetch the evidence of %s: %w", digest, err))
			}
			fmt.Fprintf(a.stderr, "%s: %d bytes\n", to, n)
			return nil
		},
	}
	projectFlag(c, &project)
	// What is printed is the bundle: the file takes the place of the format.
	c.Flags().StringVarP(&to, "output", "o", "", "file to write, - for standard output")
	c.Flags().DurationVar(&timeout, "timeout", 10*time.Minute, "give up after this long (0: never)")
	return c
}

// wholeFile writes a file that is there when it is whole, and not before.
func wholeFile(path string, write func(io.Writer) (int64, error)) (n int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".dray-evidence-*")
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if n, err = write(f); err != nil {
		return n, err
	}
	if err = f.Chmod(0o644); err != nil {
		return n, err
	}
	if err = f.Close(); err != nil {
		return n, err
	}
	return n, os.Rename(f.Name(), path)
}

// bundleOptions are what dray verify --bundle is told.
type bundleOptions struct {
	bundle, logKey, image, builder, source string
	policies, environments                 []string
	withoutLog                             bool
}

func (o *bundleOptions) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&o.bundle, "bundle", "", "check this evidence bundle, without any network (- for standard input)")
	f.StringVar(&o.logKey, "log-key", "", "with --bundle: file with the public key of the evidence log (default: the file that $DRAY_LOG_KEY names)")
	f.BoolVar(&o.withoutLog, "without-log", false, "with --bundle: do not look whether the log has its entries")
	f.StringVar(&o.image, "image", "", "with --bundle: the digest that the bundle has to be about")
	f.StringVar(&o.builder, "builder", "", "with --bundle: the builder.id that the provenance has to name")
	f.StringVar(&o.source, "source", "", "with --bundle: the repository that the provenance has to name")
	f.StringArrayVar(&o.policies, "policy", nil, "with --bundle: ENVIRONMENT=sha256:…, the gate under which the newest decision has to have passed (build=… for the build); may be repeated")
	f.StringArrayVarP(&o.environments, "environment", "e", nil, "with --bundle: an environment that the image has to have been promoted to; may be repeated")
}

// stray names a flag that has no meaning without --bundle.
func (o *bundleOptions) stray(c *cobra.Command) error {
	for _, name := range []string{"log-key", "without-log", "image", "builder", "source", "policy", "environment"} {
		if c.Flags().Changed(name) {
			return usage("--%s goes with --bundle", name)
		}
	}
	return nil
}

func (a *app) bundleTrust(o bundleOptions, keys []crypto.PublicKey) (t evidence.Trust, err error) {
	path := o.logKey
	if path == "" {
		path = a.getenv("DRAY_LOG_KEY")
	}
	switch {
	case o.withoutLog:
	case path == "":
		return t, usage("no key of the evidence log: give --log-key with its file, set DRAY_LOG_KEY, or say --without-log")
	default:
		k, err := ledger.ReadKeys(path)
		if err != nil {
			return t, fmt.Errorf("public key of the log: %w", err)
		}
		t.LogKey = k.String()
	}
	if o.image != "" {
		if t.Image, err = digestArg(o.image); err != nil {
			return t, err
		}
	}
	t.Policies = map[string]pipeline.Digest{}
	for _, p := range o.policies {
		environment, digest, ok := strings.Cut(p, "=")
		if !ok || environment == "" {
			return t, usage("--policy %q: want ENVIRONMENT=sha256:…", p)
		}
		if environment == "build" {
			environment = ""
		}
		if t.Policies[environment], err = pipeline.ParseDigest(digest); err != nil {
			return t, usage("--policy %q: %w", p, err)
		}
	}
	t.Builder, t.Source, t.Environments, t.VEX = o.builder, o.source, o.environments, vex.Reader{}
	t.Signatures = func(ctx context.Context, bundled http.RoundTripper, img pipeline.Image) (pipeline.Verified, error) {
		v, err := verify.New(ctx, verify.Config{TrustedKeys: keys, Transport: bundled, Now: a.now})
		if err != nil {
			return pipeline.Verified{}, err
		}
		return v.Verify(ctx, img)
	}
	t.Envelope = func(envelope []byte, image pipeline.Digest, predicateType string) (evidence.Statement, error) {
		st, err := verify.Envelope(envelope, image, predicateType, keys)
		return evidence.Statement{KeyID: st.KeyID, Predicate: st.Predicate, Digest: st.Digest}, err
	}
	return t, nil
}

// verifyBundle checks every claim of a bundle and prints what became of it.
func (a *app) verifyBundle(ctx context.Context, o bundleOptions, keys []crypto.PublicKey) error {
	trust, err := a.bundleTrust(o, keys)
	if err != nil {
		return err
	}
	f, err := a.bundleFile(o.bundle)
	if err != nil {
		return fmt.Errorf("--bundle: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("--bundle: %w", err)
	}
	b, err := evidence.Open(f, info.Size(), evidence.Limits{})
	if err != nil {
		return err
	}
	result, err := b.Verify(ctx, trust)
	if err != nil {
		return err
	}
	if err := a.print(result, func(w *writer) { w.proven(result) }, func() []string { return []string{result.Image.String()} }); err != nil {
		return err
	}
	if failed := result.Failed(); len(failed) > 0 {
		return fmt.Errorf("%d of %d claims about %s fail, such as: %s %s: %s: %w",
			len(failed), len(result.Claims), result.Image.Digest, failed[0].Claim, failed[0].About, failed[0].Detail, pipeline.ErrUnverified)
	}
	return nil
}

// bundleFile opens a regular file; what is none is put into one first.
func (a *app) bundleFile(path string) (*os.File, error) {
	var from io.Reader = a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		if info, err := f.Stat(); err != nil || info.Mode().IsRegular() {
			return f, err
		}
		defer f.Close()
		from = f
	}
	f, err := os.CreateTemp("", "dray-evidence-*")
	if err != nil {
		return nil, err
	}
	// It is gone when it is closed.
	if err := os.Remove(f.Name()); err != nil {
		_ = f.Close()
		return nil, err
	}
	const most = 1<<30 + 1
	if _, err := io.Copy(f, io.LimitReader(from, most)); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (w *writer) proven(r evidence.Result) {
	word := cell{"verified", green}
	if !r.Passed {
		word = cell{"NOT VERIFIED", red}
	}
	w.printf("%s %s of project %s, as collected %s\n\n", w.paint(word), oneLine(r.Image.String()), oneLine(r.Project), r.CollectedAt.UTC().Format(time.RFC3339))
	rows := [][]cell{}
	counts := map[evidence.Status]int{}
	for _, c := range r.Claims {
		counts[c.Status]++
		color := map[evidence.Status]string{evidence.Pass: green, evidence.Fail: red, evidence.Absent: yellow}[c.Status]
		rows = append(rows, []cell{{string(c.Status), color}, {text: c.Claim}, {text: oneLine(c.About)}, {text: oneLine(c.Detail)}})
	}
	w.table([]string{"RESULT", "CLAIM", "ABOUT", "WHAT WAS FOUND"}, rows)
	w.printf("\n%d passed, %d failed, %d not checked\n", counts[evidence.Pass], counts[evidence.Fail], counts[evidence.Absent])
}
