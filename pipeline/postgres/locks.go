package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// locker hands out session-level advisory locks. Each held lock has a
// connection to itself, outside the pool: a lock is held for as long as a copy
// between registries takes, and if such holders lived in the pool, enough of
// them would leave no connection to finish with, and none would ever end.
//
// Within a process, waiters queue up here; only the first of each key takes a
// connection, so there are never more than keys that are locked at a time.
type locker struct {
	config *pgx.ConnConfig

	mu     sync.Mutex
	keys   map[string]*keyQueue
	idle   []*pgx.Conn
	closed bool
}

type keyQueue struct {
	turn chan struct{} // holds one value while the key is taken
	refs int
}

// maxIdleLocks is how many connections wait for the next lock.
const maxIdleLocks = 4

// unlockTimeout bounds what unlock may take; when it is over, the connection is
// dropped and the server frees the lock.
const unlockTimeout = 5 * time.Second

func newLocker(base *pgx.ConnConfig) *locker {
	return &locker{config: sessionConfig(base, "drayd lock"), keys: map[string]*keyQueue{}}
}

// sessionConfig is for a connection whose session is the point: while it lives,
// something is held. The server must notice its end soon, also when no packet
// says so because the machine is gone (the keepalives: about 11 s), and also
// while the session itself waits (client_connection_check_interval). And no
// limit meant for queries may end it.
func sessionConfig(base *pgx.ConnConfig, name string) *pgx.ConnConfig {
	c := base.Copy()
	for k, v := range map[string]string{
		"application_name":                 name,
		"tcp_keepalives_idle":              "5",
		"tcp_keepalives_interval":          "2",
		"tcp_keepalives_count":             "3",
		"client_connection_check_interval": "1s",
		"statement_timeout":                "0",
		"lock_timeout":                     "0",
		"idle_session_timeout":             "0",
	} {
		c.RuntimeParams[k] = v
	}
	if c.ConnectTimeout == 0 {
		c.ConnectTimeout = 10 * time.Second
	}
	return c
}

// lockKey puts a name into the 64-bit space of advisory locks. Different uses
// have different realms, so that they can share names.
func lockKey(realm, name string) int64 {
	sum := sha256.Sum256([]byte("dray/" + realm + "\x00" + name))
	return int64(binary.BigEndian.Uint64(sum[:8]))
}

// Lock waits until the key is free in every process that shares the database,
// or ctx is done. The lock is gone when unlock is called or when the connection
// breaks; who holds it must therefore also ask Holds before an effect.
func (s *Store) Lock(ctx context.Context, key string) (unlock func(), err error) {
	return s.locks.lock(ctx, key)
}

func (l *locker) lock(ctx context.Context, key string) (func(), error) {
	q, err := l.queue(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("lock %q: %w", key, err)
	}
	conn, err := l.acquire(ctx, lockKey("lock", key))
	if err != nil {
		l.leave(key, q, true)
		if ctx.Err() != nil { // the driver may name the broken connection instead
			err = fmt.Errorf("gave up waiting: %w", ctx.Err())
		}
		return nil, fmt.Errorf("lock %q: %w", key, err)
	}
	var once sync.Once
	return func() {
		once.Do(func() {
			l.release(conn, lockKey("lock", key))
			l.leave(key, q, true)
		})
	}, nil
}

// queue waits until no other goroutine of this process has the key.
func (l *locker) queue(ctx context.Context, key string) (*keyQueue, error) {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil, errors.New("the store is closed")
	}
	q, ok := l.keys[key]
	if !ok {
		q = &keyQueue{turn: make(chan struct{}, 1)}
		l.keys[key] = q
	}
	q.refs++
	l.mu.Unlock()
	select {
	case q.turn <- struct{}{}:
		return q, nil
	case <-ctx.Done():
		l.leave(key, q, false)
		return nil, fmt.Errorf("gave up waiting: %w", ctx.Err())
	}
}

func (l *locker) leave(key string, q *keyQueue, hadTurn bool) {
	if hadTurn {
		<-q.turn
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if q.refs--; q.refs == 0 {
		delete(l.keys, key)
	}
}

// acquire waits for the advisory lock on a connection that the caller then owns.
func (l *locker) acquire(ctx context.Context, id int64) (*pgx.Conn, error) {
	for {
		l.mu.Lock()
		var conn *pgx.Conn
		if n := len(l.idle); n > 0 {
			conn, l.idle = l.idle[n-1], l.idle[:n-1]
		}
		l.mu.Unlock()
		reused := conn != nil
		if !reused {
			var err error
			if conn, err = pgx.ConnectConfig(ctx, l.config); err != nil {
				return nil, fmt.Errorf("connect: %w", err)
			}
		}
		_, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, id)
		if err == nil {
			return conn, nil
		}
		closeConn(conn)
		if reused && ctx.Err() == nil {
			continue // it may have died while it was idle
		}
		return nil, err
	}
}

func (l *locker) release(conn *pgx.Conn, id int64) {
	ctx, cancel := context.WithTimeout(context.Background(), unlockTimeout)
	defer cancel()
	var held bool
	if err := conn.QueryRow(ctx, `SELECT pg_advisory_unlock($1)`, id).Scan(&held); err != nil || !held {
		closeConn(conn)
		return
	}
	l.mu.Lock()
	if !l.closed && len(l.idle) < maxIdleLocks {
		l.idle = append(l.idle, conn)
		conn = nil
	}
	l.mu.Unlock()
	if conn != nil {
		closeConn(conn)
	}
}

func (l *locker) close() {
	l.mu.Lock()
	idle := l.idle
	l.idle, l.closed = nil, true
	l.mu.Unlock()
	for _, conn := range idle {
		closeConn(conn)
	}
}

func closeConn(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), unlockTimeout)
	defer cancel()
	_ = conn.Close(ctx)
}
