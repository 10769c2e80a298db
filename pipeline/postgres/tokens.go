package postgres

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/dray-project/dray/pipeline"
)

// TokenPrefix starts every token's secret, so that scanners for leaked secrets
// can tell what they found.
const TokenPrefix = "dray_"

// CreateToken makes a token and returns its secret, which cannot be read again.
// A token of that name that is in force is revoked in the same transaction. A
// nil expiresAt means that it does not expire.
func (s *Store) CreateToken(ctx context.Context, name string, grants []pipeline.Grant, expiresAt *time.Time) (secret string, t pipeline.Token, err error) {
	defer func() { err = wrap(err, "create token %q", name) }()
	if name == "" || len(name) > maxKey {
		return "", t, fmt.Errorf("a token's name has 1 to %d bytes: %w", maxKey, pipeline.ErrInvalid)
	}
	if len(grants) == 0 {
		return "", t, fmt.Errorf("a token that grants nothing is good for nothing: give it a role: %w", pipeline.ErrInvalid)
	}
	written := make([]string, len(grants))
	for i, g := range grants {
		if _, err := pipeline.ParseGrant(g.String()); err != nil {
			return "", t, err
		}
		written[i] = clean(g.String())
	}
	if expiresAt != nil && !expiresAt.After(time.Now()) {
		return "", t, fmt.Errorf("it would have expired at %s already: %w", expiresAt.UTC().Format(time.RFC3339), pipeline.ErrInvalid)
	}
	var random [32]byte
	if _, err := rand.Read(random[:]); err != nil {
		return "", t, err
	}
	secret = TokenPrefix + base64.RawURLEncoding.EncodeToString(random[:])
	hash := sha256.Sum256([]byte(secret))
	err = s.tx(ctx, func(tx pgx.Tx) error {
		// Two who replace the same token at once: the second waits, then revokes the first's.
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, lockKey("token", name)); err != nil {
			return err
		}
		if err := s.revokeToken(ctx, tx, name, "replaced"); err != nil && !errors.Is(err, pipeline.ErrNotFound) {
			return err
		}
		var id int64
		err := tx.QueryRow(ctx, `INSERT INTO tokens (name, hash, grants, expires_at) VALUES ($1, $2, $3, $4) RETURNING id, name, created_at, expires_at`,
			clean(name), hash[:], written, expiresAt).Scan(&id, &t.Name, &t.CreatedAt, &t.ExpiresAt)
		if err != nil {
			return err
		}
		made := data{}
		if t.ExpiresAt != nil {
			made["expiresAt"] = t.ExpiresAt.UTC()
		}
		listed(made, "grants", written)
		return s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryTokenCreated, Actor: actorDray, Subject: t.Name, Data: made.json()}, row("tokens", id))
	})
	if err != nil {
		return "", pipeline.Token{}, err
	}
	t.Grants, t.CreatedAt, t.ExpiresAt = slices.Clone(grants), t.CreatedAt.UTC(), utc(t.ExpiresAt)
	return secret, t, nil
}

// RevokeToken ends the token of that name at once.
func (s *Store) RevokeToken(ctx context.Context, name string) error {
	err := s.tx(ctx, func(tx pgx.Tx) error { return s.revokeToken(ctx, tx, name, "") })
	return wrap(err, "revoke token %q", name)
}

func (s *Store) revokeToken(ctx context.Context, tx pgx.Tx, name, why string) error {
	var id int64
	err := tx.QueryRow(ctx, `UPDATE tokens SET revoked_at = now() WHERE name = $1 AND revoked_at IS NULL RETURNING id`, clean(name)).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return pipeline.ErrNotFound
	}
	if err != nil {
		return err
	}
	return s.entry(ctx, tx, pipeline.Entry{Kind: pipeline.EntryTokenRevoked, Actor: actorDray, Subject: name,
		Data: data{"reason": why}.json()}, row("tokens", id))
}

// TokenBySecret finds the token with that secret, unless it has expired or was
// revoked. The error never holds the secret.
func (s *Store) TokenBySecret(ctx context.Context, secret string) (t pipeline.Token, err error) {
	if !strings.HasPrefix(secret, TokenPrefix) {
		return t, fmt.Errorf("token: %w", pipeline.ErrNotFound)
	}
	// Only the hash is compared: how long that takes says nothing of the secret.
	hash := sha256.Sum256([]byte(secret))
	var written []string
	err = s.pool.QueryRow(ctx, `
		SELECT name, grants, created_at, expires_at FROM tokens
		WHERE hash = $1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())`, hash[:]).
		Scan(&t.Name, &written, &t.CreatedAt, &t.ExpiresAt)
	if errors.Is(err, pgx.ErrNoRows) {
		return t, fmt.Errorf("token: %w", pipeline.ErrNotFound)
	}
	for _, w := range written {
		g, err := pipeline.ParseGrant(w)
		if err != nil {
			return pipeline.Token{}, wrap(err, "token %s", t.Name)
		}
		t.Grants = append(t.Grants, g)
	}
	t.CreatedAt, t.ExpiresAt = t.CreatedAt.UTC(), utc(t.ExpiresAt)
	return t, wrap(err, "token")
}
