package ledger

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Trust is what a follower remembers between two times: the key, and the last
// checkpoint that verified.
type Trust struct {
	Key        string    `json:"key"`
	Checkpoint string    `json:"checkpoint"`
	VerifiedAt time.Time `json:"verifiedAt"`
}

// ReadTrust reads what Write has written. fs.ErrNotExist passes.
func ReadTrust(path string) (t Trust, err error) {
	raw, err := readSmall(path)
	if err != nil {
		return t, err
	}
	if err := json.Unmarshal(raw, &t); err != nil || t.Key == "" || t.Checkpoint == "" {
		return Trust{}, fmt.Errorf("%s is not what dray log verify writes: %w", path, pipeline.ErrInvalid)
	}
	return t, nil
}

// Write replaces the file; a crash leaves the old one or the new one.
func (t Trust) Write(path string) (err error) {
	raw, err := json.MarshalIndent(t, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".trust-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the error that counts is returned
		}
	}()
	_, err = f.Write(append(raw, '\n'))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// published is a line of the file that checkpoints are published to.
type published struct {
	PublishedAt time.Time `json:"publishedAt"`
	Size        int64     `json:"size"`
	Checkpoint  string    `json:"checkpoint"`
}

const maxPublishedLine = 2 * maxCheckpoint

// ReadCheckpoints reads signed checkpoints from a file: one as a server gives it,
// what Trust.Write has written, or the file that checkpoints are published to,
// oldest first. Lines that a crash has cut off are passed over. The signatures are
// not looked at.
func ReadCheckpoints(path string) (signed [][]byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if t, err := ReadTrust(path); err == nil {
		return [][]byte{[]byte(t.Checkpoint)}, nil
	}
	start := make([]byte, 1)
	if _, err := io.ReadFull(f, start); err != nil || start[0] != '{' {
		raw, err := readSmall(path)
		if err != nil {
			return nil, err
		}
		if _, err := unverified(raw); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		return [][]byte{raw}, nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxPublishedLine)
	for lines.Scan() {
		var p published
		if json.Unmarshal(bytes.TrimSpace(lines.Bytes()), &p) == nil && p.Checkpoint != "" {
			signed = append(signed, []byte(p.Checkpoint))
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(signed) == 0 {
		return nil, fmt.Errorf("%s has no checkpoint: %w", path, pipeline.ErrInvalid)
	}
	return signed, nil
}

// appendPublished adds a line and returns when it is on disk.
func appendPublished(path string, p published) (err error) {
	line, err := json.Marshal(p)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if info.Size() > 0 {
		last := make([]byte, 1)
		if _, err := f.ReadAt(last, info.Size()-1); err != nil {
			return err
		}
		if last[0] != '\n' {
			line = append([]byte{'\n'}, line...) // a crash has cut off the line before
		}
	}
	if _, err := f.Write(line); err != nil {
		return err
	}
	if err := f.Sync(); err != nil || info.Size() > 0 {
		return err
	}
	// The file is new: its name must last as well.
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
