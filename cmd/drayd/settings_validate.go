package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dray-project/dray/pipeline"
)

// Validate names everything that is wrong at once, so that nobody has to start
// drayd five times to find five mistakes.
func (s *Settings) Validate() error {
	var problems []error
	bad := func(format string, args ...any) { problems = append(problems, fmt.Errorf(format, args...)) }

	if s.Database.URL == "" {
		bad("database.url (DRAY_DATABASE_URL) is required: postgres://user@host/dbname")
	}
	if !slices.Contains([]string{"all", "api", "worker"}, s.Role) {
		bad("role is %q: want all, api or worker", s.Role)
	}
	if s.Works() && s.Signer.KeyFile == "" {
		bad("signer.key_file (DRAY_SIGNER_KEY_FILE) is required: drayd key generate makes a key")
	}
	if s.Works() && s.Ledger.KeyFile == "" {
		bad("ledger.key_file (DRAY_LEDGER_KEY_FILE) is required: drayd key generate-log makes a key")
	}
	if s.Ledger.SealFile == "" {
		bad("ledger.seal_file (DRAY_LEDGER_SEAL_FILE) is required: drayd key generate-log makes one, and all drayds of a database have the same")
	}
	if r := s.Ledger.Publish.Repository; r != "" && (!strings.Contains(r, "/") || strings.ContainsAny(r, "@ ")) {
		bad("ledger.publish.repository is %q: want registry/path without a tag", r)
	}
	if s.Ledger.Publish.Every < time.Second {
		bad("ledger.publish.every is %s: want at least 1s", s.Ledger.Publish.Every)
	}
	if len(s.Builder.Addresses) == 0 {
		bad("builder.addresses needs at least one buildkitd")
	}
	if s.Worker.Concurrency < 1 {
		bad("worker.concurrency is %d: want at least 1", s.Worker.Concurrency)
	}
	if s.Scanner.MaxAge <= 0 {
		bad("scanner.max_age is %s: want a positive duration, such as 72h", s.Scanner.MaxAge)
	}
	for _, l := range s.Signer.Layouts {
		if l != "bundle" && l != "legacy" {
			bad("signer.layouts has %q: want bundle or legacy", l)
		}
	}
	hosts := map[string]bool{}
	for i, r := range s.Registries {
		if r.Host == "" || strings.Contains(r.Host, "/") {
			bad("registries[%d].host is %q: want a host and port without a scheme", i, r.Host)
		}
		if hosts[r.Host] {
			bad("registries[%d].host: %s is listed twice", i, r.Host)
		}
		hosts[r.Host] = true
	}
	if len(s.Projects) == 0 {
		bad("projects is empty: without a project there is nothing to watch")
	}
	names, sources := map[string]bool{}, map[string]bool{}
	for i, p := range s.Projects {
		at := fmt.Sprintf("projects[%d]", i)
		if p.Name != "" {
			at = fmt.Sprintf("projects[%s]", p.Name)
		}
		if p.WebhookSecret == "" {
			bad("%s.webhook_secret_file is required: without a secret anybody could start builds", at)
		}
		if names[p.Name] {
			bad("%s: the name is used twice", at)
		}
		if key := p.Forge + " " + p.Source; sources[key] {
			bad("%s.source: %s belongs to another project already", at, p.Source)
		} else {
			sources[key] = true
		}
		names[p.Name] = true
		if _, err := p.project(); err != nil {
			problems = append(problems, err)
		}
	}
	if s.Rematch.Every < 0 {
		bad("rematch.every is %s: want a positive duration, or 0 for never", s.Rematch.Every)
	}
	if _, err := s.receivers(); err != nil {
		problems = append(problems, err)
	}
	return errors.Join(problems...)
}

// Works reports whether this process takes jobs.
func (s *Settings) Works() bool { return s.Role != "api" }

// Serves reports whether this process answers requests.
func (s *Settings) Serves() bool { return s.Role != "worker" }

// DomainProjects turns the validated settings into the domain's projects.
func (s *Settings) DomainProjects() ([]pipeline.Project, error) {
	var out []pipeline.Project
	for _, p := range s.Projects {
		d, err := p.project()
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	return out, nil
}

func (p ProjectSettings) project() (pipeline.Project, error) {
	var problems []error
	bad := func(format string, args ...any) {
		problems = append(problems, fmt.Errorf("projects[%s].%w", p.Name, fmt.Errorf(format, args...)))
	}
	if p.Name == "" || strings.Trim(p.Name, "abcdefghijklmnopqrstuvwxyz0123456789-._") != "" {
		bad("name is %q: want lower-case letters, digits, dashes and dots", p.Name)
	}
	d := pipeline.Project{Name: p.Name, Forge: p.Forge, Source: p.Source, CloneURL: p.CloneURL,
		Repository: p.Repository, CacheRepository: p.CacheRepository, Latest: p.Latest}
	if d.Forge == "" {
		d.Forge = "github"
	}
	if d.Forge != "github" {
		bad("forge is %q: want github", p.Forge)
	}
	if !strings.Contains(p.Source, "/") {
		bad("source is %q: want owner/name", p.Source)
	}
	if !strings.Contains(p.CloneURL, "://") {
		bad("clone_url is %q: want a URL", p.CloneURL)
	}
	repository := func(setting, r string) {
		if !strings.Contains(r, "/") || strings.ContainsAny(r, "@ ") {
			bad("%s is %q: want registry/path without a tag", setting, r)
		}
	}
	repository("repository", p.Repository)
	platforms := p.Platforms
	if len(platforms) == 0 {
		platforms = []string{"linux/amd64"}
	}
	for _, s := range platforms {
		pl, err := pipeline.ParsePlatform(s)
		if err != nil {
			bad("platforms: %w", err)
		}
		if slices.Contains(d.Platforms, pl) {
			bad("platforms: %s is listed twice", s)
		}
		d.Platforms = append(d.Platforms, pl)
	}
	var err error
	if d.Gate, err = p.Gate.rules(); err != nil {
		bad("gate.fail_on: %w", err)
	}
	for _, e := range p.Environments {
		rules, err := e.Gate.rules()
		if err != nil {
			bad("environments[%s].gate.fail_on: %w", e.Name, err)
		}
		if e.Name == "" {
			bad("environments: one has no name")
		}
		if _, twice := d.Environment(e.Name); twice {
			bad("environments[%s]: the name is used twice", e.Name)
		}
		repository("environments["+e.Name+"].repository", e.Repository)
		d.Environments = append(d.Environments, pipeline.Environment{Name: e.Name, Repository: e.Repository, Gate: rules})
	}
	return d, errors.Join(problems...)
}

func (g GateSettings) rules() (pipeline.GateRules, error) {
	r := pipeline.GateRules{FailOn: pipeline.SeverityCritical, IgnoreUnfixed: g.IgnoreUnfixed, AllowRoot: g.AllowRoot}
	if g.FailOn == "" {
		return r, nil
	}
	var err error
	r.FailOn, err = pipeline.ParseSeverity(g.FailOn)
	return r, err
}

// Hosts turns the registries into the domain's words.
func (s *Settings) Hosts() []pipeline.RegistryHost {
	var out []pipeline.RegistryHost
	for _, r := range s.Registries {
		out = append(out, pipeline.RegistryHost{Host: r.Host, Username: r.Username, Password: r.Password, TokenHost: r.TokenHost, PlainHTTP: r.PlainHTTP})
	}
	return out
}

// BuildHosts are the registries that a build may use: those that projects are
// built to, and those that are marked for it. The credentials of all others stay
// out of reach of what a project's Dockerfile can make buildkitd do.
func (s *Settings) BuildHosts() []pipeline.RegistryHost {
	builds := map[string]bool{}
	for _, r := range s.Registries {
		builds[r.Host] = r.Builds
	}
	for _, p := range s.Projects {
		for _, repository := range []string{p.Repository, p.CacheRepository} {
			host, _, _ := strings.Cut(repository, "/")
			builds[host] = true
		}
	}
	return slices.DeleteFunc(s.Hosts(), func(h pipeline.RegistryHost) bool { return !builds[h.Host] })
}

// Secrets lists every secret value, for masking.
func (s *Settings) Secrets() []string {
	out := []string{s.Signer.Password}
	for _, r := range s.Registries {
		out = append(out, r.Password)
	}
	for _, g := range s.Git {
		out = append(out, g.Token)
	}
	for _, p := range s.Projects {
		out = append(out, p.WebhookSecret)
	}
	for _, n := range s.Notify {
		out = append(out, n.Secret)
	}
	return out
}
