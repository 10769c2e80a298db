package builder

import (
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
)

// simpleCommand is one command of a shell script: its words without quotes.
type simpleCommand struct {
	words []string
	piped bool // its output goes into the next
}

// script returns what a RUN gives to a shell; ok is false when it starts a
// program by itself.
func script(cmd *instructions.RunCommand) (text string, ok bool) {
	if !cmd.PrependShell {
		return "", false
	}
	text = strings.Join(cmd.CmdLine, "\n")
	// In `RUN <<EOF` the shell reads the document; in `RUN tool <<EOF` it is data.
	if len(cmd.Files) > 0 && strings.HasPrefix(strings.TrimSpace(text), "<<") {
		text = cmd.Files[0].Data
		if strings.HasPrefix(text, "#!") && !strings.Contains(strings.SplitN(text, "\n", 2)[0], "sh") {
			return "", false // a script of another language
		}
	}
	return text, true
}

// commandsOf are the commands of a RUN in either form, and its text.
func commandsOf(cmd *instructions.RunCommand) ([]simpleCommand, string) {
	if text, ok := script(cmd); ok {
		return simpleCommands(text), text
	}
	words := cmd.CmdLine
	if len(words) >= 3 && words[1] == "-c" {
		return simpleCommands(words[2]), words[2]
	}
	return []simpleCommand{{words: words}}, strings.Join(words, " ")
}

// simpleCommands takes a script apart where one command ends and another begins:
// as much of the shell's grammar as it takes to find the programs that are
// called with plain words. It reads each byte once.
func simpleCommands(text string) []simpleCommand {
	var out []simpleCommand
	var words []string
	var word strings.Builder
	in := false // in a word
	endWord := func() {
		if in {
			words = append(words, word.String())
		}
		word.Reset()
		in = false
	}
	end := func(piped bool) {
		endWord()
		if len(words) > 0 {
			out = append(out, simpleCommand{words, piped})
		}
		words = nil
	}
	quote := byte(0)
	for i := 0; i < len(text); i++ {
		c := text[i]
		next := byte(0)
		if i+1 < len(text) {
			next = text[i+1]
		}
		switch {
		case quote == '\'':
			if c == '\'' {
				quote = 0
			} else {
				word.WriteByte(c)
			}
		case quote == '"':
			switch {
			case c == '"':
				quote = 0
			case c == '\\' && next != 0:
				word.WriteByte(next)
				i++
			default:
				word.WriteByte(c)
			}
		case c == '\\':
			if next != '\n' && next != 0 {
				word.WriteByte(next)
				in = true
			}
			i++
		case c == '\'' || c == '"':
			quote, in = c, true
		case c == '#' && !in:
			for i+1 < len(text) && text[i+1] != '\n' {
				i++
			}
		case c == ' ' || c == '\t' || c == '\r':
			endWord()
		case c == '|' && next == '|', c == '&' && next == '&':
			end(false)
			i++
		case c == '|' && in && strings.HasSuffix(word.String(), ">"):
			// `>|` overwrites a file.
		case c == '|':
			end(true)
			if next == '&' {
				i++
			}
		case c == '&' && (next == '>' || i > 0 && text[i-1] == '>'):
			word.WriteByte(c) // a redirection
			in = true
		case c == '\n' || c == ';' || c == '&' || c == '(' || c == ')' || c == '`':
			end(false)
		case (c == '{' || c == '}' || c == '!') && !in && (next == 0 || next == ' ' || next == '\n' || next == ';'):
		default:
			word.WriteByte(c)
			in = true
		}
	}
	end(false)
	return out
}

// call takes off what stands before a program's name.
func call(words []string) []string {
	for len(words) > 0 {
		w := words[0]
		name, _, assigned := strings.Cut(w, "=")
		switch {
		case assigned && name != "" && !strings.ContainsAny(name, "-/$"):
		case slices.Contains([]string{"sudo", "exec", "command", "env", "time", "if", "then", "else", "elif", "while", "until", "do", "nice", "eatmydata"}, w):
		default:
			return words
		}
		words = words[1:]
	}
	return nil
}

// program is what a command calls, as far as that is a plain word.
func program(words []string) string {
	words = call(words)
	if len(words) == 0 || !plainPackage(path.Base(words[0])) {
		return "a program"
	}
	return path.Base(words[0])
}

type aptUse struct {
	verb     string
	packages []string
	lean     bool // nothing that is only recommended
}

// aptCall reads a call of apt-get or apt.
func aptCall(words []string) (u aptUse, ok bool) {
	words = call(words)
	if len(words) == 0 {
		return u, false
	}
	if name := path.Base(words[0]); name != "apt-get" && name != "apt" {
		return u, false
	}
	words = words[1:]
	for i := 0; i < len(words); i++ {
		w := words[i]
		option, value, joined := strings.Cut(w, "=")
		switch {
		case strings.ContainsAny(w, "<>"):
			if strings.HasSuffix(w, ">") || strings.HasSuffix(w, "<") {
				i++ // the file of a redirection
			}
		case w == "--no-install-recommends":
			u.lean = true
		case strings.HasPrefix(w, "-o") && !strings.HasPrefix(w, "--"), option == "--option":
			setting := strings.TrimPrefix(w, "-o")
			if option == "--option" {
				setting = value
			}
			if setting == "" && !joined && i+1 < len(words) {
				i++
				setting = words[i]
			}
			if k, v, _ := strings.Cut(strings.ToLower(setting), "="); k == "apt::install-recommends" && (v == "0" || v == "false" || v == "no") {
				u.lean = true
			}
		case option == "-t" || option == "-c" || option == "--target-release" || option == "--default-release" || option == "--config-file":
			if !joined {
				i++
			}
		case strings.HasPrefix(w, "-"):
		case u.verb == "":
			u.verb = w
		default:
			u.packages = append(u.packages, w)
		}
	}
	return u, true
}

// plainPackage reports whether a word is a package's name and nothing more: no
// version, file, address or variable.
func plainPackage(w string) bool {
	if w == "" || len(w) > 100 || w == "." || w == ".." {
		return false
	}
	for i := range len(w) {
		switch c := w[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case i > 0 && (c == '.' || c == '+' || c == '-' || c == ':' || c == '_'):
		default:
			return false
		}
	}
	return !strings.HasSuffix(w, ".deb")
}
