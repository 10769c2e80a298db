//go:build linux

package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem" // its driver of that name
	"github.com/olareg/olareg"
	"github.com/olareg/olareg/config"
	"github.com/sirupsen/logrus"

	"github.com/dray-project/dray/deploy/stack"
)

func serveRegistry(ctx context.Context, flags *flag.FlagSet, args []string, stderr io.Writer) error {
	kind := flags.String("kind", "", "distribution (no referrers API) or olareg (referrers API)")
	addr := flags.String("addr", "", "the address to listen on")
	dir := flags.String("dir", "", "the directory for the content")
	if err := parse(flags, args, "kind", "addr", "dir"); err != nil {
		return err
	}
	log := newLog(stderr)
	var handler http.Handler
	switch stack.RegistryKind(*kind) {
	case stack.Distribution:
		app := distribution(ctx, *dir, stderr)
		handler = app
		defer func() {
			if err := app.Shutdown(); err != nil {
				log.Error("shut down", "error", err)
			}
		}()
	case stack.Olareg:
		server := olaregServer(*dir)
		handler = server
		defer func() {
			if err := server.Close(); err != nil {
				log.Error("shut down", "error", err)
			}
		}()
	default:
		return fmt.Errorf("registry --kind: there is no %q: want distribution or olareg", *kind)
	}
	return serve(ctx, *addr, accessLog(handler, log), log)
}

func distribution(ctx context.Context, dir string, stderr io.Writer) *handlers.App {
	logrus.SetOutput(stderr)
	logrus.SetLevel(logrus.WarnLevel) // it says every request twice otherwise
	c := &configuration.Configuration{Storage: configuration.Storage{
		"filesystem": configuration.Parameters{"rootdirectory": dir},
		"delete":     configuration.Parameters{"enabled": true},
		"maintenance": configuration.Parameters{"uploadpurging": map[any]any{
			"enabled": true, "age": "24h", "interval": "1h", "dryrun": false,
		}},
	}}
	c.Catalog.MaxEntries = 1000
	// Made anew at each start; it only has to outlive an upload.
	c.HTTP.Secret = ""
	return handlers.NewApp(ctx, c)
}

func olaregServer(dir string) *olareg.Server {
	yes, no := true, false
	return olareg.New(config.Config{
		Storage: config.ConfigStorage{
			StoreType: config.StoreDir,
			RootDir:   dir,
			// Nothing that was pushed by digest may go before it is tagged, or with
			// what it refers to.
			GC: config.ConfigGC{Frequency: -1, Untagged: &no, ReferrersDangling: &no, ReferrersWithSubj: &no},
		},
		API: config.ConfigAPI{
			DeleteEnabled: &yes,
			Blob:          config.ConfigAPIBlob{DeleteEnabled: &yes},
			Referrer:      config.ConfigAPIReferrer{Enabled: &yes},
		},
	})
}

// accessLog logs each request when it is answered.
func accessLog(next http.Handler, log *slog.Logger) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		rec := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(rec, r)
		log.Info("request", "method", r.Method, "path", r.URL.RequestURI(), "status", rec.status,
			"bytes", rec.bytes, "took", time.Since(start).Round(time.Microsecond))
	})
}

type statusRecorder struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *statusRecorder) Write(b []byte) (int, error) {
	n, err := r.ResponseWriter.Write(b)
	r.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach what it needs.
func (r *statusRecorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }
