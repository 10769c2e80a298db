package main

import (
	"errors"
	"fmt"
	"os"
	"reflect"
	"sort"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/confmap"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/v2"
)

// Settings is everything that can be set, in the shape of the settings file.
// The tag help is what the reference page says; default is what holds when
// nothing is said. A setting that is not inside a list can also be given by an
// environment variable and by a flag.
type Settings struct {
	Listen    string `koanf:"listen" default:"127.0.0.1:8080" help:"Address that the API and the webhooks are served on."`
	PublicURL string `koanf:"public_url" help:"URL under which people reach drayd; it stands in links. Default: http:// and the listen address."`
	Role      string `koanf:"role" default:"all" help:"What this process does: all, api (serves only), or worker (takes runs and promotions, and answers /livez and /readyz only)."`

	Log struct {
		Level  string `koanf:"level" default:"info" help:"Least level that is logged: debug, info, warn or error."`
		Format string `koanf:"format" default:"json" help:"json or text."`
	} `koanf:"log"`

	Database struct {
		URL            string `koanf:"url" help:"PostgreSQL connection string, 15 or newer. Required."`
		MaxConnections int    `koanf:"max_connections" default:"20" help:"Most connections that this process opens for queries; locks use a few more."`
		Migrate        bool   `koanf:"migrate" default:"true" help:"Bring the schema up to date at start. Without it, run drayd migrate first."`
	} `koanf:"database"`

	Builder struct {
		Addresses []string      `koanf:"addresses" default:"unix:///run/buildkit/buildkitd.sock" help:"buildkitd addresses (unix:// or tcp://). A project and platform stay with one of them for the cache's sake."`
		Timeout   time.Duration `koanf:"timeout" default:"30m" help:"Longest that one build may take."`
		ID        string        `koanf:"id" default:"https://github.com/dray-project/dray/blob/main/docs/reference/builders.md#shared" help:"builder.id of the provenance: a page that says how far this builder can be trusted."`
		Frontends []string      `koanf:"frontends" help:"Digests of Dockerfile frontends that a # syntax= line may name. None by default: the built-in one serves."`
	} `koanf:"builder"`

	Scanner struct {
		Database string        `koanf:"database" default:"ghcr.io/aquasecurity/trivy-db:2" help:"OCI reference of the vulnerability database."`
		MaxAge   time.Duration `koanf:"max_age" default:"72h" help:"Oldest vulnerability database that a scan may use; with an older one, runs fail."`
		CacheDir string        `koanf:"cache_dir" default:"/var/lib/dray/scanner" help:"Directory for the vulnerability database and analysed layers. One per process."`
		Timeout  time.Duration `koanf:"timeout" default:"10m" help:"Longest that one scan may take."`
	} `koanf:"scanner"`

	Signer struct {
		KeyFile         string   `koanf:"key_file" help:"Encrypted cosign private key (drayd key generate makes one). Required where runs are worked on."`
		Password        string   `koanf:"password" help:"Password of the key. Prefer password_file." secret:"true"`
		PasswordFile    string   `koanf:"password_file" help:"File that holds the password of the key."`
		TrustedKeyFiles []string `koanf:"trusted_key_files" help:"More public keys whose signatures count, for the time of a key's rotation."`
		Layouts         []string `koanf:"layouts" default:"bundle,legacy" help:"How signatures are stored: bundle (OCI 1.1 referrers) and legacy (tags). Verifiers in the field are split, so both."`
	} `koanf:"signer"`

	Ledger struct {
		KeyFile         string   `koanf:"key_file" help:"Private key that signs the evidence log's checkpoints (drayd key generate-log makes one). Others than its owner and group must not be able to read it. Required where runs are worked on."`
		SealFile        string   `koanf:"seal_file" help:"File with the key that marks entries of the evidence log as Dray's until they have their place (drayd key generate-log makes one). The same for every drayd of a database; others than its owner and group must not be able to read it. Required."`
		Origin          string   `koanf:"origin" help:"Name of the log, which its key and its checkpoints carry. Default: the key's. A key that is made without one is for the public URL's host, followed by /log."`
		TrustedKeyFiles []string `koanf:"trusted_key_files" help:"More public keys whose checkpoints count: earlier ones after a key was changed, and the log's own where there is no key_file."`
		Publish         struct {
			File       string        `koanf:"file" help:"File that checkpoints are appended to: on another machine's disk, best. Empty: none."`
			Repository string        `koanf:"repository" help:"Repository that checkpoints are pushed to as OCI artefacts. Empty: none."`
			Every      time.Duration `koanf:"every" default:"1m" help:"Least time between two checkpoints that are published."`
		} `koanf:"publish"`
	} `koanf:"ledger"`

	Worker struct {
		Concurrency int           `koanf:"concurrency" default:"2" help:"How many runs and promotions this process works on at once."`
		MaxAttempts int           `koanf:"max_attempts" default:"5" help:"How often a job is tried before it has failed, when the cause may pass."`
		Drain       time.Duration `koanf:"drain" default:"30s" help:"How long work may go on after SIGTERM; what is not done by then resumes elsewhere."`
	} `koanf:"worker"`

	Reconcile struct {
		Every time.Duration `koanf:"every" default:"10m" help:"How often what the environments hold is compared with the record. 0 never does."`
	} `koanf:"reconcile"`

	Rematch struct {
		Every time.Duration `koanf:"every" default:"10m" help:"How often it is looked whether there is a newer vulnerability database to match recorded images with. 0 never does."`
	} `koanf:"rematch"`

	Copy struct {
		Remember time.Duration `koanf:"remember" default:"24h" help:"How long it is believed that something is still in a registry where it was verified. A registry that collects garbage by itself wants less."`
	} `koanf:"copy"`

	Metrics struct {
		Listen string `koanf:"listen" help:"Address that /metrics is served on, without a token: 127.0.0.1:9090. Empty serves none."`
	} `koanf:"metrics"`

	Registries []RegistrySettings `koanf:"registries" help:"How to reach registries. One that is not listed is reached over HTTPS without credentials."`
	Git        []GitSettings      `koanf:"git" help:"Credentials for cloning, by origin."`
	Notify     []NotifySettings   `koanf:"notify" help:"Who is told of what by signed webhooks; see notifications.md."`
	Projects   []ProjectSettings  `koanf:"projects" help:"The repositories that Dray watches. At least one is required."`
}

// RegistrySettings says how to reach one registry.
type RegistrySettings struct {
	Host         string `koanf:"host" help:"Host and port, without a scheme."`
	Username     string `koanf:"username" help:"User name; it and the password are sent to this host only."`
	Password     string `koanf:"password" help:"Password or token. Prefer password_file." secret:"true"`
	PasswordFile string `koanf:"password_file" help:"File that holds the password."`
	TokenHost    string `koanf:"token_host" help:"Host of the registry's token service, where it is another: it may see the credentials too."`
	PlainHTTP    bool   `koanf:"plain_http" help:"Speak HTTP without TLS. For a registry on the same machine."`
	Builds       bool   `koanf:"builds" help:"Builds may pull from it with these credentials: a mirror of base images. The registries that projects are built to always may; no other does, so that a build cannot reach an environment."`
}

// GitSettings says how to clone from one origin.
type GitSettings struct {
	Origin    string `koanf:"origin" help:"Origin of the clone URLs that the credentials are for, and nothing else: https://github.com."`
	Username  string `koanf:"username" help:"User name; x-access-token suits GitHub."`
	Token     string `koanf:"token" help:"Token. Prefer token_file." secret:"true"`
	TokenFile string `koanf:"token_file" help:"File that holds the token."`
}

// ProjectSettings is a project as the settings file has it.
type ProjectSettings struct {
	Name              string                `koanf:"name" help:"Name of the project, in lower case."`
	Forge             string                `koanf:"forge" help:"Kind of forge; github is known. Default: github."`
	Source            string                `koanf:"source" help:"Full name of the repository at the forge: owner/name."`
	CloneURL          string                `koanf:"clone_url" help:"URL that buildkitd clones (https, http or ssh)."`
	WebhookSecret     string                `koanf:"webhook_secret" help:"Secret of the webhook. Prefer webhook_secret_file. One of them is required." secret:"true"`
	WebhookSecretFile string                `koanf:"webhook_secret_file" help:"File that holds the secret of the webhook."`
	Repository        string                `koanf:"repository" help:"Where images are built to: registry/path."`
	CacheRepository   string                `koanf:"cache_repository" help:"Where the build cache is kept. Default: the repository."`
	Platforms         []string              `koanf:"platforms" help:"Platforms to build. Default: linux/amd64."`
	Latest            bool                  `koanf:"latest" help:"Move the tag latest forward with releases."`
	Gate              GateSettings          `koanf:"gate" help:"What an image must satisfy to be signed and tagged."`
	Environments      []EnvironmentSettings `koanf:"environments" help:"Where images can be promoted to, in order."`
}

// GateSettings is a gate as the settings file has it.
type GateSettings struct {
	FailOn        string `koanf:"fail_on" help:"Least severity that refuses: low, medium, high or critical. Default: critical."`
	IgnoreUnfixed bool   `koanf:"ignore_unfixed" help:"Let findings pass that have no fixed version yet."`
	AllowRoot     bool   `koanf:"allow_root" help:"Let an image pass that starts as root."`
}

// EnvironmentSettings is an environment as the settings file has it.
type EnvironmentSettings struct {
	Name       string       `koanf:"name" help:"Name of the environment: staging, prod."`
	Repository string       `koanf:"repository" help:"Repository that receives the image."`
	Gate       GateSettings `koanf:"gate" help:"What an image must satisfy to enter."`
}

// LoadSettings reads the file (if any), then the environment, then the flags:
// the later one wins. The error names every setting that is wrong.
func LoadSettings(path string, getenv func(string) string, flags map[string]string) (*Settings, error) {
	k := koanf.New(".")
	leaves := settingLeaves()
	for _, l := range leaves {
		if l.Default != "" {
			if err := k.Load(confmap.Provider(map[string]any{l.Path: l.Default}, "."), nil); err != nil {
				return nil, err
			}
		}
	}
	if path != "" {
		info, err := os.Stat(path)
		if err != nil {
			return nil, fmt.Errorf("settings file: %w", err)
		}
		if info.Size() > 1<<20 {
			return nil, fmt.Errorf("settings file %s: %d bytes; more than 1 MiB is no settings file", path, info.Size())
		}
		if err := k.Load(file.Provider(path), yaml.Parser()); err != nil {
			return nil, fmt.Errorf("settings file %s: %w", path, err)
		}
	}
	for _, l := range leaves {
		set := map[string]any{}
		if v := getenv(l.Env); v != "" {
			set[l.Path] = v
		}
		if v, ok := flags[l.Path]; ok {
			set[l.Path] = v
		}
		if err := k.Load(confmap.Provider(set, "."), nil); err != nil {
			return nil, err
		}
	}

	var s Settings
	err := k.UnmarshalWithConf("", &s, koanf.UnmarshalConf{Tag: "koanf", DecoderConfig: &mapstructure.DecoderConfig{
		Result: &s, TagName: "koanf", WeaklyTypedInput: true, ErrorUnused: true,
		DecodeHook: mapstructure.ComposeDecodeHookFunc(
			mapstructure.StringToTimeDurationHookFunc(), mapstructure.StringToSliceHookFunc(",")),
	}})
	if err != nil {
		return nil, fmt.Errorf("settings: %w", err)
	}
	if s.PublicURL == "" {
		s.PublicURL = "http://" + s.Listen
	}
	return &s, errors.Join(s.readSecrets()...)
}

// readSecrets replaces each …_file by what is in the file.
func (s *Settings) readSecrets() (problems []error) {
	read := func(setting string, value *string, path string) {
		if path == "" {
			return
		}
		if *value != "" {
			problems = append(problems, fmt.Errorf("%s and %s_file are both set: keep one", setting, setting))
			return
		}
		b, err := os.ReadFile(path)
		if err != nil {
			problems = append(problems, fmt.Errorf("%s_file: %w", setting, err))
			return
		}
		*value = strings.TrimRight(string(b), "\r\n")
	}
	read("signer.password", &s.Signer.Password, s.Signer.PasswordFile)
	for i := range s.Registries {
		r := &s.Registries[i]
		read(fmt.Sprintf("registries[%s].password", r.Host), &r.Password, r.PasswordFile)
	}
	for i := range s.Git {
		g := &s.Git[i]
		read(fmt.Sprintf("git[%s].token", g.Origin), &g.Token, g.TokenFile)
	}
	for i := range s.Notify {
		n := &s.Notify[i]
		read(fmt.Sprintf("notify[%s].secret", n.Name), &n.Secret, n.SecretFile)
	}
	for i := range s.Projects {
		p := &s.Projects[i]
		read(fmt.Sprintf("projects[%s].webhook_secret", p.Name), &p.WebhookSecret, p.WebhookSecretFile)
	}
	return problems
}

// leaf is one setting that is not inside a list.
type leaf struct {
	Path    string // "scanner.max_age"
	Env     string // "DRAY_SCANNER_MAX_AGE"
	Default string
	Help    string
	Secret  bool
	Type    reflect.Type
}

func settingLeaves() []leaf {
	var out []leaf
	var walk func(t reflect.Type, prefix string)
	walk = func(t reflect.Type, prefix string) {
		for i := range t.NumField() {
			f := t.Field(i)
			path := prefix + f.Tag.Get("koanf")
			switch {
			case f.Type.Kind() == reflect.Struct:
				walk(f.Type, path+".")
			case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			default:
				out = append(out, leaf{Path: path, Env: "DRAY_" + strings.ToUpper(strings.ReplaceAll(path, ".", "_")),
					Default: f.Tag.Get("default"), Help: f.Tag.Get("help"), Secret: f.Tag.Get("secret") != "", Type: f.Type})
			}
		}
	}
	walk(reflect.TypeFor[Settings](), "")
	sort.SliceStable(out, func(i, j int) bool {
		return strings.Count(out[i].Path, ".") == 0 && strings.Count(out[j].Path, ".") > 0
	})
	return out
}
