package postgres_test

import (
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres"
	"github.com/dray-project/dray/pipeline/postgres/postgrestest"
)

var admin = []pipeline.Grant{{Role: pipeline.RoleAdmin}}

func TestTokens(t *testing.T) {
	pool := postgrestest.New(t)
	s := newStore(t, pool)
	works := func(secret string) bool {
		t.Helper()
		_, err := s.TokenBySecret(t.Context(), secret)
		if err != nil && !errors.Is(err, pipeline.ErrNotFound) {
			t.Fatal(err)
		}
		if err != nil && len(secret) > 8 && strings.Contains(err.Error(), secret[5:]) {
			t.Fatalf("%v shows the secret", err)
		}
		return err == nil
	}

	secret, tok, err := s.CreateToken(t.Context(), "ci", admin, nil)
	check(t, err)
	if !strings.HasPrefix(secret, postgres.TokenPrefix) || len(secret) != len(postgres.TokenPrefix)+43 {
		t.Fatalf("the secret has the form %q", secret)
	}
	if tok.Name != "ci" || tok.CreatedAt.IsZero() || tok.ExpiresAt != nil {
		t.Fatalf("the token is %+v", tok)
	}
	got, err := s.TokenBySecret(t.Context(), secret)
	check(t, err)
	if !reflect.DeepEqual(got, tok) {
		t.Fatalf("found %+v, made %+v", got, tok)
	}
	for _, wrong := range []string{"", "dray_", secret + "x", secret[:len(secret)-1], strings.TrimPrefix(secret, "dray_"), strings.ToUpper(secret)} {
		if works(wrong) {
			t.Errorf("the secret %q works", wrong)
		}
	}

	// No table holds the secret, in whatever form.
	var kept bool
	check(t, pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM tokens t WHERE t::text LIKE '%' || $1 || '%' OR position(convert_to($1, 'UTF8') in hash) > 0)`,
		strings.TrimPrefix(secret, postgres.TokenPrefix)).Scan(&kept))
	if kept {
		t.Error("the secret is in the database")
	}

	// A second of the same name replaces the first.
	second, _, err := s.CreateToken(t.Context(), "ci", admin, nil)
	check(t, err)
	if works(secret) || !works(second) {
		t.Error("the replaced token works, or the new one does not")
	}
	other, _, err := s.CreateToken(t.Context(), "other", admin, nil)
	check(t, err)
	check(t, s.RevokeToken(t.Context(), "ci"))
	if works(second) || !works(other) {
		t.Error("the revoked token works, or another one does not")
	}
	if err := s.RevokeToken(t.Context(), "ci"); !errors.Is(err, pipeline.ErrNotFound) {
		t.Errorf("revoked twice: %v", err)
	}

	soon := time.Now().Add(time.Hour)
	short, tok, err := s.CreateToken(t.Context(), "short", admin, &soon)
	check(t, err)
	if tok.ExpiresAt == nil || !works(short) {
		t.Fatalf("%+v does not work", tok)
	}
	meddle(t, pool, `UPDATE tokens SET expires_at = now() - interval '1 second' WHERE name = 'short'`)
	if works(short) {
		t.Error("an expired token works")
	}
	past := time.Now().Add(-time.Second)
	for _, f := range []func() error{
		func() error { _, _, err := s.CreateToken(t.Context(), "", admin, nil); return err },
		func() error { _, _, err := s.CreateToken(t.Context(), "late", admin, &past); return err },
	} {
		if err := f(); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("a bad token: %v", err)
		}
	}
}

func TestTokenReplacedInParallel(t *testing.T) {
	s := newStore(t, postgrestest.New(t))
	secrets := make([]string, 8)
	var wg sync.WaitGroup
	for i := range secrets {
		wg.Go(func() {
			var err error
			if secrets[i], _, err = s.CreateToken(t.Context(), "ci", admin, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n := 0
	for _, secret := range secrets {
		if _, err := s.TokenBySecret(t.Context(), secret); err == nil {
			n++
		}
	}
	if n != 1 {
		t.Fatalf("%d of the secrets work, want 1", n)
	}
}
