package pipeline

import "net/netip"

// Refusal is a webhook that was not let in.
type Refusal struct {
	Forge string
	// Project that its address names, or whose repository it is about; empty if
	// neither was established. What an unsigned body says is not.
	Project string
	// Delivery is the id that it came with, if that could be read.
	Delivery string
	// From is the address that it came from; the zero Addr if that is not known.
	From   netip.Addr
	Reason string // in words
	Body   Digest
}
