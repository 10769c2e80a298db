package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// maxEvent bounds one event of a stream.
const maxEvent = 4 << 20

// maxFailures is how many connections in a row may fail, without a single event
// on any of them, before Follow gives up: about a minute and a half.
const maxFailures = 20

// errBroken says that a stream ended without its end event.
var errBroken = errors.New("the stream broke off")

// Follow yields the events of a run or promotion after the given sequence
// number, those that are there and those to come, and ends when the job is
// final. Each event comes once and in order: a broken connection is taken up
// again where it was. An error is the last thing that is yielded; it is ctx's
// when ctx is done.
func (c *Client) Follow(ctx context.Context, job pipeline.JobID, after int64) iter.Seq2[pipeline.JobEvent, error] {
	return func(yield func(pipeline.JobEvent, error) bool) {
		failures := 0
		for {
			before := after
			done, err := c.stream(ctx, job, after, func(e pipeline.JobEvent) bool {
				after = e.Seq
				return yield(e, nil)
			})
			switch {
			case done:
				return
			case ctx.Err() != nil:
				err = ctx.Err()
			case transient(err):
				if after > before {
					failures = 0
				}
				failures++
				if failures < maxFailures {
					if err = c.wait(ctx, failures); err == nil {
						continue
					}
				}
			}
			yield(pipeline.JobEvent{}, fmt.Errorf("follow %s: %w", job, err))
			return
		}
	}
}

// Events yields the events of a job after the given sequence number that are
// there now. An error is the last thing that is yielded.
func (c *Client) Events(ctx context.Context, job pipeline.JobID, after int64) iter.Seq2[pipeline.JobEvent, error] {
	return func(yield func(pipeline.JobEvent, error) bool) {
		err := c.dump(ctx, job, after, yield)
		if err != nil {
			yield(pipeline.JobEvent{}, fmt.Errorf("events of %s: %w", job, err))
		}
	}
}

func (c *Client) dump(ctx context.Context, job pipeline.JobID, after int64, yield func(pipeline.JobEvent, error) bool) error {
	q := url.Values{"follow": {"false"}}
	if after > 0 {
		q.Set("after", strconv.FormatInt(after, 10))
	}
	resp, err := c.send(ctx, http.MethodGet, eventsPath(job), q, http.Header{"Accept": {"application/x-ndjson"}}, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	decoder := json.NewDecoder(resp.Body)
	for {
		var e pipeline.JobEvent
		if err := decoder.Decode(&e); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("the answer broke off: %w", err)
		}
		if !yield(e, nil) {
			return nil
		}
	}
}

func eventsPath(job pipeline.JobID) string {
	kind := "runs"
	if strings.HasPrefix(string(job), "prm_") {
		kind = "promotions"
	}
	return "/api/v1/" + kind + "/" + url.PathEscape(string(job)) + "/events"
}

// stream reads one connection. done means that the job is final or that the
// caller wants no more.
func (c *Client) stream(ctx context.Context, job pipeline.JobID, after int64, yield func(pipeline.JobEvent) bool) (done bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	header := http.Header{"Accept": {"text/event-stream"}}
	if after > 0 {
		header.Set("Last-Event-ID", strconv.FormatInt(after, 10))
	}
	resp, err := c.send(ctx, http.MethodGet, eventsPath(job), nil, header, nil)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	// A connection that is silent for too long is dead, whatever TCP thinks.
	idle := time.AfterFunc(c.idle, cancel)
	defer idle.Stop()
	scanner := bufio.NewScanner(resp.Body)
	scanner.Buffer(make([]byte, 0, 64<<10), maxEvent)
	var kind string
	var data []byte
	for scanner.Scan() {
		idle.Reset(c.idle)
		line := scanner.Bytes()
		if len(line) > 0 {
			name, value, _ := bytes.Cut(line, []byte(":"))
			value = bytes.TrimPrefix(value, []byte(" "))
			switch string(name) {
			case "event":
				kind = string(value)
			case "data":
				data = append(data, value...)
			}
			continue
		}
		if kind == "end" {
			return true, nil
		}
		if len(data) > 0 {
			var e pipeline.JobEvent
			if err := json.Unmarshal(data, &e); err != nil {
				return false, &Problem{Title: "Not an event stream", Detail: "read an event: " + err.Error()}
			}
			// The caller's time with an event is not the connection's silence.
			idle.Stop()
			if e.Seq > after {
				after = e.Seq
				if !yield(e) {
					return true, nil
				}
			}
			idle.Reset(c.idle)
		}
		kind, data = "", data[:0]
	}
	if err := scanner.Err(); err != nil && !errors.Is(err, context.Canceled) {
		return false, fmt.Errorf("%w: %w", errBroken, err)
	}
	return false, errBroken
}
