package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"

	"github.com/dray-project/dray/pipeline"
)

// eventBatch is how many events are read at once.
const eventBatch = 500

type streamInput struct {
	ID          string `path:"id" maxLength:"64"`
	After       int64  `query:"after" minimum:"0" doc:"Leave out the events up to and including this one."`
	Follow      bool   `query:"follow" default:"true" doc:"false: give what is there, one JSON object per line, and end."`
	LastEventID string `header:"Last-Event-ID" pattern:"^[0-9]{0,18}$" doc:"The last event that was received; wins over after, so that a reader which reconnects to the same address goes on where it was."`
}

type streamOutput struct {
	Body func(huma.Context)
}

// streamEnd is the data of a stream's last event.
type streamEnd struct {
	State  pipeline.State `json:"state"`
	Reason string         `json:"reason,omitempty"`
}

func streamOperation(a *API, tag, id, path, summary string) huma.Operation {
	responses := a.problems(404, 422)
	a.schema(pipeline.JobEvent{})
	responses["200"] = &huma.Response{
		Description: "The events from the first one on, each with its sequence number as id and its kind (state, stage, step, log) as event; " +
			"then, when the job is final, one more with event: end and the state. A comment every 15 seconds says that a quiet stream is alive.",
		Content: map[string]*huma.MediaType{
			"text/event-stream":    {Schema: &huma.Schema{Type: huma.TypeString}},
			"application/x-ndjson": {Schema: &huma.Schema{Ref: "#/components/schemas/JobEvent"}},
		},
	}
	return huma.Operation{
		OperationID: id,
		Method:      http.MethodGet,
		Path:        path,
		Summary:     summary,
		Description: "A server-sent event stream that is complete for whoever joins late, and that resumes with Last-Event-ID.",
		Tags:        []string{tag},
		Responses:   responses,
	}
}

// stream answers with the events of a job that is known to exist. final is
// asked once, when there are no more.
func (a *API) stream(in *streamInput, job pipeline.JobID, final func(context.Context) (streamEnd, error)) (*streamOutput, error) {
	after := in.After
	if in.LastEventID != "" {
		n, err := strconv.ParseInt(in.LastEventID, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("Last-Event-ID %q: want a number: %w", in.LastEventID, pipeline.ErrInvalid)
		}
		after = n
	}
	return &streamOutput{func(hctx huma.Context) {
		r, w := humago.Unwrap(hctx)
		out := &streamWriter{w: w, rc: http.NewResponseController(w)}
		var err error
		if in.Follow {
			w.Header().Set("Content-Type", "text/event-stream")
			w.Header().Set("Cache-Control", "no-cache")
			w.Header().Set("X-Accel-Buffering", "no") // nginx would hold the events back
			w.WriteHeader(http.StatusOK)
			if r.Method != http.MethodHead {
				err = a.follow(r.Context(), out, job, after, final)
			}
		} else {
			w.Header().Set("Content-Type", "application/x-ndjson")
			w.WriteHeader(http.StatusOK)
			if r.Method != http.MethodHead {
				err = a.dump(r.Context(), out, job, after)
			}
		}
		if err == nil {
			return
		}
		if r.Context().Err() == nil {
			a.Log.LogAttrs(r.Context(), slog.LevelWarn, "event stream broke off",
				slog.String("request", infoOf(r.Context()).id), slog.String("job", string(job)), slog.Any("error", err))
		}
		// The reader must not take what it has for all there is.
		panic(http.ErrAbortHandler)
	}}, nil
}

// dump writes what is there, one event per line.
func (a *API) dump(ctx context.Context, out *streamWriter, job pipeline.JobID, after int64) error {
	for {
		events, end, err := a.Store.Events(ctx, job, after, eventBatch)
		if err != nil {
			return err
		}
		for _, e := range events {
			line, err := json.Marshal(e)
			if err != nil {
				return err
			}
			out.buf.Write(append(line, '\n'))
			after = e.Seq
		}
		if err := out.flush(); err != nil {
			return err
		}
		if end || len(events) < eventBatch {
			return nil
		}
	}
}

// follow writes events as they come until the job is final. When this process
// shuts down it returns without the end event, and the reader resumes elsewhere.
func (a *API) follow(ctx context.Context, out *streamWriter, job pipeline.JobID, after int64, final func(context.Context) (streamEnd, error)) error {
	fmt.Fprint(&out.buf, "retry: 2000\n\n")
	if err := out.flush(); err != nil {
		return err
	}
	heartbeat := time.NewTicker(a.Heartbeat)
	defer heartbeat.Stop()
	wait := a.Poll
	for {
		events, end, err := a.Store.Events(ctx, job, after, eventBatch)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := out.event(strconv.FormatInt(e.Seq, 10), e.Kind, e); err != nil {
				return err
			}
			after = e.Seq
		}
		if end {
			last, err := final(ctx)
			if err != nil {
				return err
			}
			if err := out.event("", "end", last); err != nil {
				return err
			}
			return out.flush()
		}
		if len(events) > 0 {
			if err := out.flush(); err != nil {
				return err
			}
			heartbeat.Reset(a.Heartbeat)
			wait = a.Poll
			if len(events) == eventBatch {
				continue
			}
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-a.draining:
			timer.Stop()
			return nil
		case <-heartbeat.C:
			timer.Stop()
			fmt.Fprint(&out.buf, ": alive\n\n")
			if err := out.flush(); err != nil {
				return err
			}
		case <-timer.C:
			wait = min(wait*5/4, 5*a.Poll)
		}
	}
}

// streamWriter collects what is to be written and gives every write a deadline,
// so that a reader that stopped reading cannot hold on for ever.
type streamWriter struct {
	w   http.ResponseWriter
	rc  *http.ResponseController
	buf bytes.Buffer
}

func (s *streamWriter) event(id, kind string, data any) error {
	body, err := json.Marshal(data)
	if err != nil {
		return err
	}
	if id != "" {
		fmt.Fprintf(&s.buf, "id: %s\n", id)
	}
	fmt.Fprintf(&s.buf, "event: %s\ndata: %s\n\n", kind, body)
	return nil
}

func (s *streamWriter) flush() error {
	// Not every writer has deadlines; the flush below will tell what is wrong.
	_ = s.rc.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := s.w.Write(s.buf.Bytes()); err != nil {
		return err
	}
	s.buf.Reset()
	return s.rc.Flush()
}
