//go:build linux

package main

import (
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"sync/atomic"
	"time"
)

// proxy stands before a registry, counts the requests and makes each of them
// wait as long as the way to a registry takes.
type proxy struct {
	host   string
	server *http.Server
	count  atomic.Int64
	wait   atomic.Int64 // nanoseconds
}

func newProxy(registry string) (*proxy, error) {
	p := &proxy{}
	back := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "http", registry
			r.Out.Host = r.In.Host // registries write it into Location
		},
		FlushInterval: -1,
		ErrorLog:      log.New(io.Discard, "", 0),
		Transport:     &http.Transport{MaxIdleConnsPerHost: 64, DisableCompression: true},
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p.host = listener.Addr().String()
	p.server = &http.Server{ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.count.Add(1)
		if d := time.Duration(p.wait.Load()); d > 0 {
			time.Sleep(d)
		}
		back.ServeHTTP(w, r)
	})}
	go p.server.Serve(listener) //nolint:errcheck // ends with Close
	return p, nil
}
