// Package storetest tests implementations of [middleware.Store], also those of other modules.
package storetest

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/leatbus/leat/middleware"
)

// Setup creates an empty store and calls test with it, once. pass advances the store's time: it is time.Sleep,
// inside a testing/synctest bubble if the store supports that. A test advances it by up to a second.
// Setup may call t.Parallel.
type Setup func(t *testing.T, test func(t *testing.T, s middleware.Store, pass func(time.Duration)))

const (
	short = 100 * time.Millisecond // a lease or window that ends within a test
	long  = time.Minute            // one that does not
)

// Run tests the stores of setup.
func Run(t *testing.T, setup Setup) {
	t.Helper()
	for _, tc := range []struct {
		name string
		test func(c contract)
	}{
		{"a free key can be claimed", contract.claims},
		{"a claimed key is in progress for others", contract.inProgress},
		{"a done key is done for all", contract.done},
		{"a released key is free", contract.released},
		{"keys don't know each other", contract.apart},
		{"Done twice is Done once", contract.doneTwice},
		{"Release twice is Release once", contract.releaseTwice},
		{"a lease runs out", contract.leaseRunsOut},
		{"a renewed lease goes on", contract.renewed},
		{"a lost claim can do nothing", contract.fenced},
		{"a claim that ran out can still be done", contract.doneLate},
		{"a claim that ran out can be taken again", contract.renewedLate},
		{"a mark is kept for its window", contract.kept},
		{"and not for much longer", contract.forgotten},
		{"of 50 who claim at once, one wins", contract.contended},
		{"keys can be long and binary", contract.oddKeys},
		{"a cancelled context is heeded", contract.cancelled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			setup(t, func(t *testing.T, s middleware.Store, pass func(time.Duration)) {
				t.Helper()
				tc.test(contract{T: t, store: s, pass: pass})
			})
		})
	}
}

type contract struct {
	*testing.T

	store middleware.Store
	pass  func(time.Duration)
}

// claim fails the test unless the key is in the state.
func (c contract) claim(key string, lease time.Duration, want middleware.ClaimState) middleware.Claim {
	c.Helper()
	claim, err := c.store.Claim(c.Context(), key, lease)
	if err != nil {
		c.Fatalf("Claim(%.40q): %v", key, err)
	}
	if claim.State != want || claim.Key != key {
		c.Fatalf("Claim(%.40q) = %+v, want its key and state %d", key, claim, want)
	}
	return claim
}

func (c contract) must(err error) {
	c.Helper()
	if err != nil {
		c.Fatal(err)
	}
}

func (c contract) lost(op string, err error) {
	c.Helper()
	if !errors.Is(err, middleware.ErrClaimLost) {
		c.Errorf("%s: %v, want ErrClaimLost", op, err)
	}
}

// leased reports whether claims expire. Those of a local store must not.
func (c contract) leased() bool {
	c.Helper()
	if _, local := c.store.(middleware.LocalStore); !local {
		return true
	}
	c.claim("k", short, middleware.Claimed)
	c.pass(10 * short)
	c.claim("k", short, middleware.InProgress)
	return false
}

func (c contract) claims() {
	if claim := c.claim("k", long, middleware.Claimed); claim.Token == "" {
		c.Error("the claim has no token")
	}
}

func (c contract) inProgress() {
	c.claim("k", long, middleware.Claimed)
	claim := c.claim("k", long, middleware.InProgress)
	if claim.Left < 0 || claim.Left > long {
		c.Errorf("left of the lease of %s: %s", long, claim.Left)
	}
	if claim.Token != "" {
		c.Error("another's claim shows a token")
	}
}

func (c contract) done() {
	claim := c.claim("k", long, middleware.Claimed)
	c.must(c.store.Done(c.Context(), claim, long))
	c.claim("k", long, middleware.Done)
	c.lost("Renew after Done", c.store.Renew(c.Context(), claim, long))
	c.lost("Release after Done", c.store.Release(c.Context(), claim))
	c.claim("k", long, middleware.Done)
}

func (c contract) released() {
	first := c.claim("k", long, middleware.Claimed)
	c.must(c.store.Release(c.Context(), first))
	second := c.claim("k", long, middleware.Claimed)
	if first.Token == second.Token {
		c.Error("two claims of a key have the same token")
	}
	c.lost("Renew by the old claim", c.store.Renew(c.Context(), first, long))
	c.lost("Done by the old claim", c.store.Done(c.Context(), first, long))
	c.lost("Release by the old claim", c.store.Release(c.Context(), first))
	c.claim("k", long, middleware.InProgress)
	c.must(c.store.Done(c.Context(), second, long))
}

func (c contract) apart() {
	one := c.claim("k1", long, middleware.Claimed)
	c.claim("k2", long, middleware.Claimed)
	c.must(c.store.Done(c.Context(), one, long))
	c.claim("k2", long, middleware.InProgress)
	c.claim("k", long, middleware.Claimed)
}

// doneTwice repeats a call, as a client does after a lost connection.
func (c contract) doneTwice() {
	claim := c.claim("k", long, middleware.Claimed)
	c.must(c.store.Done(c.Context(), claim, long))
	if err := c.store.Done(c.Context(), claim, long); err != nil && !errors.Is(err, middleware.ErrClaimLost) {
		c.Error(err)
	}
	c.claim("k", long, middleware.Done)
}

func (c contract) releaseTwice() {
	claim := c.claim("k", long, middleware.Claimed)
	c.must(c.store.Release(c.Context(), claim))
	c.must(c.store.Release(c.Context(), claim))
	c.claim("k", long, middleware.Claimed)
}

func (c contract) leaseRunsOut() {
	if !c.leased() {
		return
	}
	c.claim("k", short, middleware.Claimed)
	c.pass(2 * short)
	c.claim("k", long, middleware.Claimed)
}

func (c contract) renewed() {
	claim := c.claim("k", short, middleware.Claimed)
	c.must(c.store.Renew(c.Context(), claim, short))
	c.must(c.store.Renew(c.Context(), claim, long))
	c.pass(4 * short)
	c.claim("k", long, middleware.InProgress)
	c.must(c.store.Done(c.Context(), claim, long))
	c.claim("k", long, middleware.Done)
}

func (c contract) fenced() {
	if !c.leased() {
		return
	}
	old := c.claim("k", short, middleware.Claimed)
	c.pass(2 * short)
	fresh := c.claim("k", long, middleware.Claimed)
	c.lost("Renew by the old claim", c.store.Renew(c.Context(), old, long))
	c.lost("Done by the old claim", c.store.Done(c.Context(), old, long))
	c.lost("Release by the old claim", c.store.Release(c.Context(), old))
	c.claim("k", long, middleware.InProgress)

	c.must(c.store.Done(c.Context(), fresh, long))
	c.lost("Renew after another's Done", c.store.Renew(c.Context(), old, long))
	c.lost("Done after another's Done", c.store.Done(c.Context(), old, long))
	c.lost("Release after another's Done", c.store.Release(c.Context(), old))
	c.claim("k", long, middleware.Done)
}

func (c contract) doneLate() {
	if !c.leased() {
		return
	}
	claim := c.claim("k", short, middleware.Claimed)
	c.pass(2 * short)
	c.must(c.store.Done(c.Context(), claim, long))
	c.claim("k", long, middleware.Done)
}

func (c contract) renewedLate() {
	if !c.leased() {
		return
	}
	claim := c.claim("k", short, middleware.Claimed)
	c.pass(2 * short)
	c.must(c.store.Renew(c.Context(), claim, long))
	c.claim("k", long, middleware.InProgress)
	c.must(c.store.Release(c.Context(), claim))
	c.claim("k", long, middleware.Claimed)
}

func (c contract) kept() {
	claim := c.claim("k", short, middleware.Claimed)
	c.must(c.store.Done(c.Context(), claim, long))
	c.pass(4 * short)
	c.claim("k", long, middleware.Done)
}

func (c contract) forgotten() {
	claim := c.claim("k", long, middleware.Claimed)
	c.must(c.store.Done(c.Context(), claim, short))
	c.pass(4 * short) // a mark may stay for twice its window
	c.claim("k", long, middleware.Claimed)
}

func (c contract) contended() {
	const n = 50
	var (
		wg    sync.WaitGroup
		start = make(chan struct{})
		seen  = make(chan middleware.ClaimState, n)
	)
	for range n {
		wg.Go(func() {
			<-start
			claim, err := c.store.Claim(c.Context(), "k", long)
			if err != nil {
				c.Error(err)
			}
			seen <- claim.State
		})
	}
	close(start)
	wg.Wait()
	close(seen)
	count := make(map[middleware.ClaimState]int)
	for state := range seen {
		count[state]++
	}
	if count[middleware.Claimed] != 1 || count[middleware.InProgress] != n-1 {
		c.Errorf("%d claimed and %d in progress, want 1 and %d", count[middleware.Claimed], count[middleware.InProgress], n-1)
	}
}

func (c contract) oddKeys() {
	keys := []string{
		strings.Repeat("x", 10_000), strings.Repeat("x", 10_001), "nul\x00byte", "nul\x00", "\xff\xfe\xfd",
		"two\r\nlines", "Größe/注文 {slot} 1", " ", "*", "=",
	}
	claims := make([]middleware.Claim, len(keys))
	for i, key := range keys {
		claims[i] = c.claim(key, long, middleware.Claimed)
	}
	for i, key := range keys {
		c.claim(key, long, middleware.InProgress)
		c.must(c.store.Done(c.Context(), claims[i], long))
		c.claim(key, long, middleware.Done)
	}
}

func (c contract) cancelled() {
	ctx, cancel := context.WithCancel(c.Context())
	cancel()
	claim, err := c.store.Claim(ctx, "k", long)
	if !errors.Is(err, context.Canceled) {
		c.Errorf("Claim with a cancelled context: %v, want context.Canceled", err)
	}
	c.must(c.store.Release(c.Context(), middleware.Claim{Key: "k", Token: claim.Token}))
	c.claim("k", long, middleware.Claimed)
}
