// Package postgrestest gives each test a migrated database of its own on a real
// PostgreSQL server.
//
// With DRAY_TEST_POSTGRES, the address of a server as a superuser, that server
// is used. Otherwise the first test that asks starts a private cluster from the
// newest binaries in /usr/lib/postgresql or on the PATH, in a temporary
// directory, and the end of the test binary, whatever it is, removes it. Without
// either, the test is skipped, or fails if DRAY_TEST_REQUIRE is 1.
package postgrestest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/dray-project/dray/migrations"
	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/postgres"
)

// server is what all tests of the binary share: starting a cluster takes a
// second, and there is nowhere else to keep it between tests.
var server = sync.OnceValues(start)

// errNone: there is no PostgreSQL to test with.
var errNone = errors.New("no PostgreSQL: set DRAY_TEST_POSTGRES or install the postgresql package")

type testServer struct {
	admin    *pgx.ConnConfig
	template string
	mu       sync.Mutex
	count    int
}

// Seal is that of all databases of tests.
func Seal() *pipeline.Seal {
	s, err := pipeline.ParseSeal([]byte(strings.Repeat("5e", 32)))
	if err != nil {
		panic(err)
	}
	return s
}

// New returns a pool on a fresh, migrated database, which is dropped when the
// test ends.
func New(t testing.TB) *pgxpool.Pool {
	t.Helper()
	return Pool(t, DSN(t))
}

// Pool opens another pool on a database that DSN made.
func Pool(t testing.TB, dsn string) *pgxpool.Pool {
	t.Helper()
	pool, err := postgres.Connect(context.Background(), dsn, 10)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// DSN returns the address of a fresh, migrated database.
func DSN(t testing.TB) string {
	t.Helper()
	return database(t, true)
}

// Empty returns the address of a database without any table.
func Empty(t testing.TB) string {
	t.Helper()
	return database(t, false)
}

func database(t testing.TB, migrated bool) string {
	t.Helper()
	s, err := server()
	if errors.Is(err, errNone) && os.Getenv("DRAY_TEST_REQUIRE") != "1" {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.count++
	name := fmt.Sprintf("dray_test_%d_%d", os.Getpid(), s.count)
	s.mu.Unlock()
	template := "template0"
	if migrated {
		template = s.template
	}
	if err := s.exec("CREATE DATABASE " + name + " TEMPLATE " + template); err != nil {
		t.Fatalf("make a database for the test: %v", err)
	}
	t.Cleanup(func() {
		if err := s.exec("DROP DATABASE IF EXISTS " + name + " WITH (FORCE)"); err != nil {
			t.Logf("drop the test's database: %v", err)
		}
	})
	return dsn(s.admin, name)
}

func dsn(c *pgx.ConnConfig, database string) string {
	return fmt.Sprintf("host=%s port=%d user=%s password='%s' dbname=%s sslmode=disable", c.Host, c.Port, c.User, c.Password, database)
}

func (s *testServer) exec(sql string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, s.admin)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	_, err = conn.Exec(ctx, sql)
	return err
}

func start() (*testServer, error) {
	address := os.Getenv("DRAY_TEST_POSTGRES")
	if address == "" {
		var err error
		if address, err = startCluster(); err != nil {
			return nil, err
		}
	}
	admin, err := pgx.ParseConfig(address)
	if err != nil {
		return nil, fmt.Errorf("DRAY_TEST_POSTGRES: %w", err)
	}
	s := &testServer{admin: admin}
	s.template, err = makeTemplate(s)
	if err != nil {
		return nil, fmt.Errorf("prepare the template database: %w", err)
	}
	return s, nil
}

// makeTemplate migrates one database for all tests to be copied from. It is
// named for what the migrations hold, and made under a lock: several test
// binaries may share the server, and a later day's may bring other migrations.
func makeTemplate(s *testServer) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	sum := sha256.New()
	err := fs.WalkDir(migrations.Files, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := migrations.Files.ReadFile(path)
		_, _ = fmt.Fprintf(sum, "%s %d\n%s", path, len(b), b)
		return err
	})
	if err != nil {
		return "", err
	}
	name := "dray_template_" + hex.EncodeToString(sum.Sum(nil))[:16]

	conn, err := pgx.ConnectConfig(ctx, s.admin)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock(hashtext('dray test template'))`); err != nil {
		return "", err
	}
	// A template is marked as one only once it is whole.
	var ready bool
	err = conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1 AND datistemplate)`, name).Scan(&ready)
	if err != nil || ready {
		return name, err
	}
	for _, sql := range []string{"DROP DATABASE IF EXISTS " + name, "CREATE DATABASE " + name + " TEMPLATE template0"} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return "", err
		}
	}
	pool, err := postgres.Connect(ctx, dsn(s.admin, name), 4)
	if err != nil {
		return "", err
	}
	err = postgres.Migrate(ctx, pool, Seal())
	pool.Close()
	if err != nil {
		return "", err
	}
	_, err = conn.Exec(ctx, "ALTER DATABASE "+name+" WITH IS_TEMPLATE true")
	return name, err
}
