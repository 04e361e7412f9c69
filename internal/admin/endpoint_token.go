package admin

import (
	"hash/maphash"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Limits of wrong tokens from one address.
const (
	wrongTokenBurst = 10
	wrongTokenEvery = 6 * time.Second // how often one more is allowed
	wrongTokenSlots = 256
)

// wrongTokens limits the attempts to guess the token. Addresses share a fixed number of slots, so that its memory is
// constant; the seed keeps an attacker from choosing an address that shares a slot with an operator's. It may be used
// concurrently.
type wrongTokens struct {
	seed  maphash.Seed
	mu    sync.Mutex
	slots [wrongTokenSlots]struct {
		used float64 // wrong tokens that still count
		at   time.Time
	}
}

func newWrongTokens() *wrongTokens { return &wrongTokens{seed: maphash.MakeSeed()} }

// check returns an error if the token is wrong, or if too many wrong ones came from the address. In the second case the error
// does not depend on the token, so it does not confirm a right guess.
func (w *wrongTokens) check(remoteAddr string, right bool) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	slot, now := &w.slots[maphash.String(w.seed, addressOf(remoteAddr))%wrongTokenSlots], time.Now()
	slot.used = max(0, slot.used-float64(now.Sub(slot.at))/float64(wrongTokenEvery))
	slot.at = now
	switch {
	case slot.used > wrongTokenBurst-1:
		return &statusError{http.StatusTooManyRequests, "too many wrong tokens came from this address; try again in " + wrongTokenEvery.String()}
	case right:
		return nil
	}
	slot.used++
	return errWrongToken()
}

func errWrongToken() error {
	return &statusError{http.StatusUnauthorized, "the token is missing or wrong; give the service's in LEAT_ADMIN_TOKEN"}
}

// addressOf returns what counts as one client: an IPv4 address, or a /64 of IPv6.
func addressOf(remoteAddr string) string {
	at, err := netip.ParseAddrPort(remoteAddr)
	if err != nil {
		return remoteAddr // a unix socket
	}
	ip := at.Addr().Unmap().WithZone("")
	if ip.Is6() {
		if network, err := ip.Prefix(64); err == nil {
			return network.String()
		}
	}
	return ip.String()
}
