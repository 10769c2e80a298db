//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// work is one thing to do, by each tool.
type work struct {
	name   string
	signed bool
	// within: in one registry, from one repository to another. again: the
	// destination has the image. retag: another tag in the same repository.
	within, again, retag bool
	// floor in requests for who has met the image before, and why; first is that
	// for who has not. bare is the floor without a look for what is attached,
	// which the others do not take unless they are told.
	floor, first, bare int
	why                string
}

// works lists them with their floors. Below these, something is taken on trust
// that others may change, or is not confirmed.
//
//	A blob is read, its upload opened, and sent: 3 requests; mounted: 1. A
//	manifest is read and written: 2 requests; who has met it knows what its digest
//	names. A tag is written and read back: 2.
//
//	What is attached must be looked for, also when nothing is: the source's tags
//	are listed once, and the referrers API is asked for each manifest, those of
//	signatures too. Without the API, each fallback tag that there is is read, and
//	what it lists, which may be gone. Each legacy tag is read.
//
//	At the destination, a subject's referrers are listed once, or its fallback tag
//	is read, written and read back, as is each legacy tag: others write there too.
//
//	Who has not met the image reads each manifest, finds out whether there is an
//	API, and confirms each blob and manifest that the destination has.
func (s *site) works() []work {
	const tag = 2
	var list []work
	for _, signed := range []bool{false, true} {
		look, attach, all, own, unread := 1, 0, blobs, manifests, manifests
		have := 0 // what is attached is read where it was
		switch {
		case s.api && signed:
			look += manifests + referrers + legacy + legacy
			attach = 3*legacy + signedSubjects
			all, own, unread = all+attachedBlobs, own+referrers, unread+referrers
		case s.api:
			look += manifests
		case signed:
			look += signedSubjects + referrers + legacy
			attach = 3*legacy + 3*signedSubjects
			all, own = all+attachedBlobs, own+referrers
			fallthrough
		default:
			unread++ // the question for the API
		}
		if signed {
			have = legacy + signedSubjects
		}
		add := func(name string, w work) {
			w.name, w.signed = name, signed
			if signed {
				w.name += ", signed"
			}
			list = append(list, w)
		}
		add("promotion, blobs present", work{
			again: true, bare: tag, floor: tag + look, first: tag + look + unread + all + own + have,
			why: fmt.Sprintf("the tag's write and read-back, %d to look for what is attached", look),
		})
		add("within one registry (mount)", work{
			within: true, bare: all + own, floor: all + own + look + attach, first: all + own + look + attach + unread,
			why: fmt.Sprintf("%d mounts, %d manifests, %d to look for what is attached, %d to attach it", all, own, look, attach),
		})
		add("cold copy", work{
			bare: 3*all + 2*own, floor: 3*all + own + look + attach, first: 3*all + own + look + attach + unread,
			why: fmt.Sprintf("%d x (read, open, send), %d manifests, %d to look for what is attached, %d to attach it", all, own, look, attach),
		})
	}
	return append(list, work{name: "retag", retag: true, bare: tag, floor: tag, first: tag + 1, why: "the tag's write and read-back"})
}

// result is what one tool needed.
type result struct {
	requests  int64
	now, slow float64 // seconds at 0 and at 20 ms
}

func (s *site) work(ctx context.Context, w work) error {
	results := map[string]result{}
	order := []string{"dray, running", "dray, first time", "crane", "regctl", "skopeo"}
	for _, tool := range order {
		r, err := s.measure(ctx, w, tool)
		if errors.Is(err, exec.ErrNotFound) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", tool, err)
		}
		results[tool] = r
	}
	for i, tool := range order {
		r, ok := results[tool]
		label := ""
		if i == 0 {
			label = w.name
		}
		if !ok {
			fmt.Fprintf(s.out, "%-36s %-26s %9s\n", label, tool, "not installed")
			continue
		}
		floor, mark := w.floor, ""
		switch tool {
		case "dray, running":
			mark = "1.10"
		case "dray, first time":
			floor, mark = w.first, "1.10"
		case "regctl":
			floor = w.bare
		default:
			floor = w.bare
			if w.signed {
				tool += " (not what is attached)"
			}
		}
		fmt.Fprintf(s.out, "%-36s %-26s %9d %9.3f %9.3f %7d %7.2f %7s\n", label, tool, r.requests, r.now, r.slow, floor, float64(r.requests)/float64(floor), mark)
	}
	if w.retag {
		fmt.Fprintf(s.out, "%-36s %-26s %37s %7.1f %7s\n", "  times faster than regctl at 20 ms", "dray, running", "", results["regctl"].slow/results["dray, running"].slow, "10")
	}
	fmt.Fprintf(s.out, "%-36s floor %d: %s; %d without the look\n", "", w.floor, w.why, w.bare)
	return nil
}

func (s *site) measure(ctx context.Context, w work, tool string) (r result, err error) {
	for _, wait := range []time.Duration{0, latency} {
		var seconds []float64
		for range s.n {
			took, n, err := s.once(ctx, w, tool, wait)
			if err != nil {
				return r, err
			}
			seconds = append(seconds, took)
			r.requests = n
		}
		if wait == 0 {
			r.now = median(seconds)
		} else {
			r.slow = median(seconds)
		}
	}
	return r, nil
}

// once does the work and returns the seconds and the requests. Of the command
// lines, that is the whole process; of Dray, which runs as a service, the work.
func (s *site) once(ctx context.Context, w work, tool string, wait time.Duration) (seconds float64, requests int64, err error) {
	name, digest := "plain", s.plain
	if w.signed {
		name, digest = "signed", s.signed
	}
	host := s.to.host
	if w.within {
		host = s.from.host
	}
	src := s.from.host + "/bench/" + name
	dst := s.fresh(host)
	if w.retag {
		dst = src
	}
	s.next++
	tag := fmt.Sprintf("t%d", s.next)
	s.wait(0)
	if tool == "dray, running" || tool == "dray, first time" {
		d, err := startDray(ctx, s.from.host, s.to.host)
		if err != nil {
			return 0, 0, err
		}
		defer d.stop()
		if tool == "dray, running" {
			// It built or promoted this image, and knows its manifests.
			if _, err := d.do("copy "+src+"@"+digest+" "+s.fresh(host), "tag "+src+"@"+digest+" v1"); err != nil {
				return 0, 0, err
			}
		}
		if w.again {
			// Somebody promoted it before: this service, or another.
			by := d
			if tool == "dray, first time" {
				if by, err = startDray(ctx, s.from.host, s.to.host); err != nil {
					return 0, 0, err
				}
				defer by.stop()
			}
			if _, err := by.do("copy " + src + "@" + digest + " " + dst); err != nil {
				return 0, 0, err
			}
		}
		lines := []string{"copy " + src + "@" + digest + " " + dst}
		switch {
		case w.retag:
			lines = []string{"tag " + dst + "@" + digest + " " + tag}
		case w.again:
			lines = append(lines, "tag "+dst+"@"+digest+" "+tag)
		}
		s.wait(wait)
		s.counted()
		seconds, err = d.do(lines...)
		return seconds, s.counted(), err
	}
	if w.again {
		if _, err := s.command(ctx, tool, false, src+":v1", dst+":before"); err != nil {
			return 0, 0, err
		}
	}
	s.wait(wait)
	s.counted()
	began := time.Now()
	_, err = s.command(ctx, tool, w.retag, src+":v1", dst+":"+tag)
	return time.Since(began).Seconds(), s.counted(), err
}

// command runs one of the tools, as its user would for an image with everything
// attached to it, as far as it can, and returns the most memory that it had.
func (s *site) command(ctx context.Context, tool string, retag bool, src, dst string) (mib float64, err error) {
	var cmd *exec.Cmd
	switch tool {
	case "crane":
		cmd = exec.CommandContext(ctx, filepath.Join(s.bin, "crane"), "copy", "--insecure", src, dst)
	case "regctl":
		args := []string{"image", "copy"}
		for _, h := range []string{s.from.host, s.to.host, s.direct[0], s.direct[1]} {
			args = append(args, "--host", "reg="+h+",tls=disabled")
		}
		if !retag {
			args = append(args, "--referrers", "--digest-tags")
		}
		cmd = exec.CommandContext(ctx, filepath.Join(s.bin, "regctl"), append(args, src, dst)...)
	case "skopeo":
		path, err := exec.LookPath("skopeo")
		if err != nil {
			return 0, exec.ErrNotFound
		}
		cmd = exec.CommandContext(ctx, path, "copy", "--insecure-policy", "--all", "--quiet", "--src-tls-verify=false", "--dest-tls-verify=false",
			"docker://"+src, "docker://"+dst)
	}
	// Nothing is left from one call to the next: skopeo keeps notes.
	home, err := os.MkdirTemp(s.dir, "home-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(home) //nolint:errcheck // scratch
	cmd.Env = append(os.Environ(), "HOME="+home, "XDG_RUNTIME_DIR="+home, "XDG_DATA_HOME="+home,
		"_CONTAINERS_ROOTLESS_UID=1000") // otherwise root's notes are at one place for all
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	done := make(chan struct{})
	most := watch(cmd.Process.Pid, done)
	err = cmd.Wait()
	close(done)
	if err != nil {
		return 0, fmt.Errorf("%w\n%s", err, out.Bytes()[max(0, out.Len()-1000):])
	}
	return most(), nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
