//go:build linux

package stack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// portsFile is the name, without .json, of the file under run/ that remembers
// the ports.
const portsFile = "ports"

// Ports are chosen below the range from which Linux gives ports to clients, so
// that no connection takes one between its choice and its use.
const (
	firstPort = 20000
	lastPort  = 29999
)

// portsMu keeps the goroutines of one process apart; Start's lock does it for
// processes.
var portsMu sync.Mutex

// Reserve returns the loopback address, "127.0.0.1:PORT", that a process of
// that name listens on or will listen on. It is remembered: the next call
// returns the same, unless somebody else took that port in the meantime.
func Reserve(dir, name string) (string, error) {
	dir, err := makeDir(dir)
	if err != nil {
		return "", err
	}
	return reserve(dir, name)
}

func reserve(dir, name string) (string, error) {
	portsMu.Lock()
	defer portsMu.Unlock()
	path := filepath.Join(dir, "run", portsFile+".json")
	ports := map[string]int{}
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return "", fmt.Errorf("stack: read the remembered ports: %w", err)
	default:
		if err := json.Unmarshal(b, &ports); err != nil {
			return "", fmt.Errorf("stack: read the remembered ports in %s: %w", path, err)
		}
	}

	if port, ok := ports[name]; ok {
		if portFree(port) {
			return loopback(port), nil
		}
		p, err := readRecord(dir, name)
		if ours := err == nil && (p.Address == "" || strings.Contains(p.Address, loopback(port))); ours {
			if p.Running() || released(dir, name, port) {
				return loopback(port), nil
			}
		}
	}
	taken := map[int]bool{}
	for _, port := range ports {
		taken[port] = true
	}
	for range 1000 {
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		if taken[port] || !portFree(port) {
			continue
		}
		ports[name] = port
		b, err := json.MarshalIndent(ports, "", "  ")
		if err != nil {
			return "", err
		}
		if err := writeFile(path, append(b, '\n'), 0o644); err != nil {
			return "", fmt.Errorf("stack: remember the port of %s: %w", name, err)
		}
		return loopback(port), nil
	}
	return "", fmt.Errorf("stack: no free port for %s between %d and %d", name, firstPort, lastPort)
}

// released waits a moment for the port of a process that died: a child of its
// may still hold it.
func released(dir, name string, port int) bool {
	if killLeftovers(dir, name) != nil {
		return false
	}
	for range 20 {
		if portFree(port) {
			return true
		}
		time.Sleep(pollEvery)
	}
	return false
}

func portFree(port int) bool {
	l, err := net.Listen("tcp", loopback(port))
	if err != nil {
		return false
	}
	l.Close()
	return true
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }
