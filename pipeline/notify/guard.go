package notify

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// notPublic are ranges that netip does not tell from public ones.
func notPublic() []netip.Prefix {
	var out []netip.Prefix
	for _, p := range []string{
		"0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "240.0.0.0/4",
		// Forms of IPv6 that an IPv4 address hides in, wherever that leads.
		"::/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/32", "2002::/16",
		"100::/64", "2001:db8::/32", "3fff::/20", "5f00::/16", "fec0::/10",
	} {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

// admit returns nil if the address may be dialled: it is public, or allowed by
// name. IPv4 in IPv6 counts as the IPv4 address that it is.
func admit(addr netip.Addr, allow []netip.Prefix) error {
	addr = addr.Unmap().WithZone("")
	for _, p := range allow {
		if p.Contains(addr) {
			return nil
		}
	}
	public := addr.IsGlobalUnicast() && !addr.IsPrivate()
	for _, p := range notPublic() {
		public = public && !p.Contains(addr)
	}
	if !public {
		return fmt.Errorf("address %s is not public: refused; if it is meant, put it into this receiver's allow", addr)
	}
	return nil
}

// dialer looks at each address right before it is connected to, after the name
// was resolved: what a name resolves to a moment later does not matter.
func dialer(allow []netip.Prefix, timeout time.Duration) func(context.Context, string, string) (net.Conn, error) {
	d := &net.Dialer{Timeout: timeout, ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
		at, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("address %q: %w", address, err)
		}
		return admit(at.Addr(), allow)
	}}
	return d.DialContext
}
