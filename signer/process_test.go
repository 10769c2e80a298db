//go:build unix

package signer_test

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/signer"
	"github.com/dray-project/dray/signer/internal/signertest"
	"github.com/dray-project/dray/signer/verify"
)

// fileLocker is a pipeline.Locker between processes of one machine.
type fileLocker struct{ path string }

func (l fileLocker) Lock(context.Context, string) (func(), error) {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { _ = f.Close() }, nil
}

const processVariable = "DRAY_TEST_SIGNER_PROCESS"

// TestMain is the signing process when it is started as one: the image, the
// layouts, the key, the lock and a number are its arguments.
func TestMain(m *testing.M) {
	if os.Getenv(processVariable) == "" {
		os.Exit(m.Run())
	}
	if err := signingProcess(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func signingProcess(args []string) error {
	img, err := pipeline.ParseImage(args[0])
	if err != nil {
		return err
	}
	ctx := context.Background()
	s, err := signer.New(ctx, signer.Config{KeyFile: args[2], Password: pass(password), Locker: fileLocker{args[3]}, Layouts: strings.Split(args[1], ",")})
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(args[4])
	if err != nil {
		return err
	}
	_, err = s.Sign(ctx, img)
	_, err2 := s.Attest(ctx, img, summary("prod", n))
	return errors.Join(err, err2)
}

// Eight processes with eight keys sign one digest and attest to it at once.
func TestSigningProcesses(t *testing.T) {
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	var trusted []crypto.PublicKey
	for i, k := range sharedKeys() {
		trusted = append(trusted, publicKey(t, k.public))
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i, ".key")), k.private, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all, err := verify.New(t.Context(), verify.Config{TrustedKeys: trusted})
	if err != nil {
		t.Fatal(err)
	}
	onBoth(t, func(t *testing.T, reg *signertest.Registry) {
		img := reg.Image(t, "team/app")
		var group sync.WaitGroup
		failed := make([]error, len(trusted))
		for i := range trusted {
			group.Go(func() {
				cmd := exec.CommandContext(t.Context(), program, img.String(), strings.Join(bothLayouts, ","),
					filepath.Join(dir, fmt.Sprint(i, ".key")), filepath.Join(dir, "lock"), strconv.Itoa(i))
				cmd.Env = append(os.Environ(), processVariable+"=1")
				if out, err := cmd.CombinedOutput(); err != nil {
					failed[i] = fmt.Errorf("process %d: %w\n%s", i, err, out)
				}
			})
		}
		group.Wait()
		if err := errors.Join(failed...); err != nil {
			t.Fatal(err)
		}
		v, err := all.Verify(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		signatures, attestations := map[string]int{}, map[string]int{}
		for _, s := range v.Signatures {
			signatures[s.KeyID+" "+s.Layout]++
		}
		for _, a := range v.Attestations {
			attestations[a.KeyID+" "+a.Layout]++
		}
		for _, id := range all.KeyIDs() {
			for _, layout := range bothLayouts {
				if s, a := signatures[id+" "+layout], attestations[id+" "+layout]; s != 1 || a != 1 {
					t.Errorf("key %s has %d signatures and %d attestations in the %s layout, want one of each", id, s, a, layout)
				}
			}
		}
	})
}
