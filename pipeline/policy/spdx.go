package policy

import "strings"

// licenseExpr is a parsed SPDX licence expression: one licence, or several that
// are joined by one operator.
type licenseExpr struct {
	id, exception string
	or            bool
	parts         []licenseExpr
}

func (e licenseExpr) permitted(t licenseTerms) bool {
	if len(e.parts) == 0 {
		return t.permitOne(e.id, e.exception)
	}
	for _, p := range e.parts {
		if p.permitted(t) == e.or {
			return e.or
		}
	}
	return !e.or
}

// Expressions of packages are short; longer ones are texts.
const (
	maxLicenseLength = 4096
	maxLicenseDepth  = 32
)

// parseLicense reads an expression; false when it is none. Operators are taken
// in either case, as package managers write them.
func parseLicense(s string) (licenseExpr, bool) {
	if len(s) > maxLicenseLength {
		return licenseExpr{}, false
	}
	p := licenseParser{tokens: strings.Fields(strings.NewReplacer("(", " ( ", ")", " ) ").Replace(s))}
	e, ok := p.alternatives(0)
	return e, ok && len(p.tokens) == 0
}

type licenseParser struct{ tokens []string }

func (p *licenseParser) next(word string) bool {
	if len(p.tokens) == 0 || !strings.EqualFold(p.tokens[0], word) {
		return false
	}
	p.tokens = p.tokens[1:]
	return true
}

func (p *licenseParser) alternatives(depth int) (licenseExpr, bool) {
	return p.joined("OR", depth, func() (licenseExpr, bool) {
		return p.joined("AND", depth, func() (licenseExpr, bool) { return p.one(depth) })
	})
}

func (p *licenseParser) joined(operator string, depth int, operand func() (licenseExpr, bool)) (licenseExpr, bool) {
	e := licenseExpr{or: operator == "OR"}
	for {
		part, ok := operand()
		if !ok {
			return e, false
		}
		e.parts = append(e.parts, part)
		if !p.next(operator) {
			break
		}
	}
	if len(e.parts) == 1 {
		return e.parts[0], true
	}
	return e, true
}

func (p *licenseParser) one(depth int) (licenseExpr, bool) {
	if p.next("(") {
		if depth == maxLicenseDepth {
			return licenseExpr{}, false
		}
		e, ok := p.alternatives(depth + 1)
		return e, ok && p.next(")")
	}
	id, ok := p.name()
	if !ok {
		return licenseExpr{}, false
	}
	e := licenseExpr{id: id}
	if p.next("WITH") {
		e.exception, ok = p.name()
	}
	return e, ok
}

// name takes an identifier: letters, digits, "-", ".", "+" and ":".
func (p *licenseParser) name() (string, bool) {
	if len(p.tokens) == 0 {
		return "", false
	}
	id := p.tokens[0]
	for _, word := range []string{"AND", "OR", "WITH"} {
		if strings.EqualFold(id, word) {
			return "", false
		}
	}
	if strings.Trim(strings.ToLower(id), "abcdefghijklmnopqrstuvwxyz0123456789-.+:_") != "" {
		return "", false
	}
	p.tokens = p.tokens[1:]
	return id, true
}
