package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
	"github.com/dray-project/dray/signer"
)

// keyCommand makes signing keys.
func keyCommand(settings func(*cobra.Command) (*Settings, error), stdout, stderr io.Writer, getenv func(string) string) *cobra.Command {
	key := &cobra.Command{Use: "key", Short: "Make signing keys"}
	var out, passwordFile string
	generate := &cobra.Command{
		Use: "generate", Short: "Make an encrypted cosign key and its public half", Args: cobra.NoArgs,
		Long: "Writes cosign.key and cosign.pub into a directory. The private key is encrypted with the\n" +
			"password from --password-file or COSIGN_PASSWORD. An existing key is never overwritten.",
		Example: "  drayd key generate --out /etc/dray --password-file /etc/dray/cosign.password",
		RunE: func(*cobra.Command, []string) error {
			password := []byte(getenv("COSIGN_PASSWORD"))
			if passwordFile != "" {
				var err error
				if password, err = readSecret(passwordFile); err != nil {
					return err
				}
			}
			if len(password) == 0 {
				return errors.New("a password is required: give --password-file or COSIGN_PASSWORD")
			}
			private, public, err := signer.GenerateKey(password)
			if err != nil {
				return err
			}
			if err := writeNew(filepath.Join(out, "cosign.key"), private, 0o600); err != nil {
				return err
			}
			if err := writeNew(filepath.Join(out, "cosign.pub"), public, 0o644); err != nil {
				return err
			}
			fmt.Fprintf(stderr, "wrote cosign.key and cosign.pub into %s\n", out)
			_, err = stdout.Write(public)
			return err
		},
	}
	generate.Flags().StringVar(&out, "out", ".", "directory to write into")
	generate.Flags().StringVar(&passwordFile, "password-file", "", "file that holds the password")
	key.AddCommand(generate, logKeyCommand(settings, stdout, stderr))
	return key
}

// logKeyCommand makes the key of the evidence log.
func logKeyCommand(settings func(*cobra.Command) (*Settings, error), stdout, stderr io.Writer) *cobra.Command {
	var out, origin string
	c := &cobra.Command{
		Use: "generate-log", Short: "Make the evidence log's key, its public half and its seal", Args: cobra.NoArgs,
		Long: "Writes log.key and log.pub into a directory: an Ed25519 key as signed notes have it, for the\n" +
			"checkpoints of the evidence log. Auditors need log.pub, from you and not from the server that\n" +
			"they check. And log.seal, a key that every drayd of the database needs: by it entries are known\n" +
			"to be Dray's until they have their place. The two private files are not encrypted, and only\n" +
			"their owner may read them. An existing file is never overwritten.",

		Example: "  drayd key generate-log --out /etc/dray --origin dray.example/log",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if origin == "" {
				s, err := settings(cmd)
				if err != nil {
					return fmt.Errorf("%w (or give --origin)", err)
				}
				if origin, err = s.logOrigin(); err != nil {
					return err
				}
			}
			private, public, err := ledger.GenerateKey(origin)
			if err != nil {
				return err
			}
			if err := writeNew(filepath.Join(out, "log.key"), private, 0o600); err != nil {
				return err
			}
			if err := writeNew(filepath.Join(out, "log.pub"), public, 0o644); err != nil {
				return err
			}
			made := "log.key, log.pub and log.seal"
			err = writeNew(filepath.Join(out, "log.seal"), pipeline.NewSealKey(), 0o600)
			if errors.Is(err, fs.ErrExist) { // another key for the same log
				made = "log.key and log.pub"
			} else if err != nil {
				return err
			}
			fmt.Fprintf(stderr, "wrote %s of the log %s into %s\n", made, origin, out)
			_, err = stdout.Write(public)
			return err
		},
	}
	c.Flags().StringVar(&out, "out", ".", "directory to write into")
	c.Flags().StringVar(&origin, "origin", "", "name of the log (default: ledger.origin, else the public URL's host and /log)")
	return c
}

// tokenCommand makes API tokens.
func tokenCommand(settings func(*cobra.Command) (*Settings, error), stdout, stderr io.Writer) *cobra.Command {
	token := &cobra.Command{Use: "token", Short: "Make tokens for the API"}
	var expires time.Duration
	var roles []string
	create := &cobra.Command{
		Use: "create NAME", Short: "Make a token and print it, once", Args: cobra.ExactArgs(1),
		Long: "The token is printed on standard output and kept as a hash only: it cannot be shown again.\n" +
			"A new token of the same name replaces the old one. What the token does is recorded under its name.\n\n" +
			"A role holds everywhere, or in one project with ROLE@PROJECT. viewer, developer,\n" +
			"release-manager, auditor and admin are known to Dray; others can be named in approval rules.\n" +
			"Without --role the token may do everything (admin).",
		Example: "  drayd token create rita --role release-manager@shop --expires 720h\n" +
			"  drayd token create sam --role developer --role security",
		RunE: func(cmd *cobra.Command, args []string) error {
			var grants []pipeline.Grant
			for _, r := range roles {
				g, err := pipeline.ParseGrant(r)
				if err != nil {
					return fmt.Errorf("--role: %w", err)
				}
				grants = append(grants, g)
			}
			s, err := settings(cmd)
			if err != nil {
				return err
			}
			p := &parts{settings: s, log: slog.New(slog.DiscardHandler)}
			defer p.Close()
			if err := p.openDatabase(cmd.Context()); err != nil {
				return err
			}
			var until *time.Time
			if expires > 0 {
				t := time.Now().Add(expires)
				until = &t
			}
			secret, made, err := p.store.CreateToken(cmd.Context(), args[0], grants, until)
			if err != nil {
				return err
			}
			when := "does not expire"
			if made.ExpiresAt != nil {
				when = "expires " + made.ExpiresAt.Format(time.RFC3339)
			}
			var may []string
			for _, g := range made.Grants {
				may = append(may, g.String())
			}
			fmt.Fprintf(stderr, "token of %s (%s), %s; it is not shown again\n", made.Name, strings.Join(may, ", "), when)
			_, err = fmt.Fprintln(stdout, secret)
			return err
		},
	}
	create.Flags().DurationVar(&expires, "expires", 0, "how long it is valid; without, until it is replaced")
	create.Flags().StringSliceVar(&roles, "role", []string{pipeline.RoleAdmin}, "role, or role@project, that it has; can be given several times")
	token.AddCommand(create)
	return token
}

func readSecret(path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
		b = b[:len(b)-1]
	}
	return b, nil
}

// writeNew writes a file that must not exist yet.
func writeNew(path string, data []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return errors.Join(err, f.Close())
	}
	return f.Close()
}
