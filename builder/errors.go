package builder

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	gatewaypb "github.com/moby/buildkit/frontend/gateway/pb"
	solvererrors "github.com/moby/buildkit/solver/errdefs"
	"github.com/moby/buildkit/util/grpcerrors"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"

	"github.com/dray-project/dray/pipeline"
)

const (
	// attempts at one platform, the first included.
	attempts = 3
	// firstWait before an attempt is repeated; the next waits are twice as long.
	firstWait = time.Second
)

// errTimeout is the cause of a context that ran out of Config.Timeout.
var errTimeout = errors.New("the build took too long")

// limit applies Config.Timeout.
func (b *Builder) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, b.cfg.Timeout, errTimeout)
}

// retry repeats what failed for want of infrastructure, a few times and soon.
// What takes longer to mend is the run's own retry. do returns the address
// that it used.
func (b *Builder) retry(ctx context.Context, platform pipeline.Platform, rec *recorder, do func() (string, error)) error {
	wait := firstWait
	for n := 1; ; n++ {
		address, err := do()
		if err == nil || pipeline.IsPermanent(err) || ctx.Err() != nil || n == attempts {
			return err
		}
		b.cfg.Log.Warn("buildkitd failed, trying again", "address", address, "platform", platform, "attempt", n, "error", err)
		rec.note(platform, fmt.Sprintf("attempt %d of %d failed and is repeated: %s", n, attempts, firstLine(err.Error())))
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
		wait *= 2
	}
}

// explain turns BuildKit's error into one that says where and what, and
// whether trying again can help. Errors that carry their own judgement pass.
func (b *Builder) explain(ctx context.Context, err error, st *stream, m *member) error {
	if pipeline.IsPermanent(err) {
		return err
	}
	if ctx.Err() != nil {
		if !errors.Is(context.Cause(ctx), errTimeout) {
			return fmt.Errorf("stopped at buildkitd %s: %w", m.address, ctx.Err())
		}
		// A daemon that hangs is worth another try, a step that hangs is not.
		if now := m.probe(context.WithoutCancel(ctx), 0); now.Err != nil {
			return fmt.Errorf("not done within %s and buildkitd does not answer: %w", b.cfg.Timeout, now.Err)
		}
		return pipeline.Permanent(fmt.Errorf("not done within %s at buildkitd %s: make the build faster or raise the builder's timeout",
			b.cfg.Timeout, m.address))
	}
	text := tidyMessage(solveNoise.ReplaceAllString(err.Error(), ""))
	at, line := where(err)

	var exit *gatewaypb.ExitError
	// Codes above 255 belong to no process: the step was stopped.
	if errors.As(err, &exit) && exit.ExitCode <= 255 {
		return pipeline.Permanent(stepError(at, line, exit, err, st))
	}
	switch code := grpcerrors.Code(err); {
	case code == codes.Unavailable, code == codes.Canceled, code == codes.DeadlineExceeded, code == codes.ResourceExhausted, transient(text):
		return fmt.Errorf("buildkitd at %s: %s", m.address, text)
	case strings.Contains(text, "failed to push"):
		return fmt.Errorf("buildkitd at %s: %s", m.address, text)
	case strings.Contains(text, "failed to fetch remote") && denied(text):
		return pipeline.Permanent(fmt.Errorf("%s%s: the git server refuses: a private repository needs git credentials for its origin in Dray's settings", at, text))
	case strings.Contains(text, "denied by policy"):
		return pipeline.Permanent(fmt.Errorf("%s%s: an image is used that the Dockerfile does not name by itself (an ONBUILD trigger of a base image?); "+
			"name it in a FROM line, pinned by digest", at, text))
	case at != "":
		return pipeline.Permanent(fmt.Errorf("%s%s", at, text))
	case userError.MatchString(text):
		return pipeline.Permanent(errors.New(text))
	}
	return fmt.Errorf("buildkitd at %s: %s", m.address, text)
}

// where is the place in the Dockerfile that an error points at, as
// "Dockerfile:3: ", and the text of that line.
func where(err error) (at, line string) {
	for _, s := range solvererrors.Sources(err) {
		if s.Info == nil || len(s.Ranges) == 0 || s.Ranges[0].Start == nil {
			continue
		}
		n := int(s.Ranges[0].Start.Line)
		at = fmt.Sprintf("%s:%d: ", s.Info.Filename, n)
		if lines := strings.Split(string(s.Info.Data), "\n"); n >= 1 && n <= len(lines) {
			line = cutText(cleanLine(lines[n-1]), maxStepName)
		}
	}
	return at, line
}

// stepError describes a build step that ran and failed.
func stepError(at, line string, exit *gatewaypb.ExitError, err error, st *stream) error {
	command, tail := line, []string(nil)
	var v *solvererrors.VertexError
	if errors.As(err, &v) {
		var name string
		name, tail = st.failed(digest.Digest(v.Vertex.GetDigest()))
		if _, after, ok := strings.Cut(name, "] "); ok {
			command = after
		}
	}
	note := ""
	if exit.ExitCode == 137 {
		note = " (killed, most likely for want of memory)"
	}
	msg := fmt.Sprintf("%s%s: exit code %d%s", at, command, exit.ExitCode, note)
	if len(tail) > 0 {
		msg += "\nits last lines:\n  " + strings.Join(tail, "\n  ")
	}
	return errors.New(cutText(msg, 4*maxMessage))
}

// transient tells the failures of networks and machines by their words, where
// no code survives the way through buildkitd.
func transient(text string) bool { return transientError.MatchString(text) }

func denied(text string) bool { return deniedError.MatchString(text) }

// refIsGone: the server answered, and has no such ref.
func refIsGone(err error) bool {
	return strings.Contains(err.Error(), "repository does not contain ref")
}

// commitIsGone: the server answered, and does not give that object.
func commitIsGone(err error) bool {
	return goneError.MatchString(err.Error())
}

var (
	transientError = regexp.MustCompile(`(?i)connection refused|connection reset|broken pipe|i/o timeout|handshake timeout|no route to host|` +
		`network is unreachable|no such host|temporary failure in name resolution|could not resolve host|server misbehaving|` +
		`failed to connect to|failed to do request|unexpected EOF|transport is closing|error reading from server|` +
		`too many requests|toomanyrequests|bad gateway|service unavailable|gateway time-?out|internal server error|` +
		`unexpected status[^\n]*: (429|5\d\d)\b|returned error: (429|5\d\d)\b|` +
		`no space left on device|cannot allocate memory|no active sessions?|context deadline exceeded`)
	deniedError = regexp.MustCompile(`(?i)\b(401|403)\b|unauthorized|forbidden|access denied|authorization failed|authentication (failed|required)|could not read Username`)
	goneError   = regexp.MustCompile(`(?i)not our ref|unadvertised object|couldn't find remote ref|could not get object info|not a valid object name|bad object|bad file|unknown revision|fatal: git cat-file|did not match any|commit can not be found`)
	// What BuildKit says before it comes to the point.
	solveNoise = regexp.MustCompile(`^failed to solve: |failed to compute cache key: |failed to calculate checksum of ref \S+: `)
	userError  = regexp.MustCompile(`(?i)dockerfile parse error|failed to process|failed to parse|target stage|failed to compute cache key|` +
		`failed to calculate checksum|is not allowed|unknown instruction|not found`)
)

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
