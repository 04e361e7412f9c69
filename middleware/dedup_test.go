package middleware_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/alicebob/miniredis/v2"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/redisstore"
)

var errHandler = errors.New("handler failed")

// dedupStep has the step on a store, and its reports.
type dedupStep struct {
	middleware message.HandlerMiddleware

	mu     sync.Mutex
	faults []middleware.DedupFault
}

func newDedupStep(store middleware.Store, cfg middleware.DedupConfig) *dedupStep {
	s := &dedupStep{}
	cfg.Logger = slog.New(slog.DiscardHandler)
	cfg.OnFault = func(f middleware.DedupFault) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.faults = append(s.faults, f)
	}
	s.middleware = middleware.Dedup(store, cfg)
	return s
}

func (s *dedupStep) counts() map[middleware.DedupFaultKind]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := make(map[middleware.DedupFaultKind]int)
	for _, f := range s.faults {
		counts[f.Kind]++
	}
	return counts
}

// deliver runs the step with a message of group shop.pay, as leat's router does.
func (s *dedupStep) deliver(msg *message.Message, handler func(*message.Message) error) (bus.Outcome, error) {
	d := deliveryOf(msg)
	_, err := s.middleware(func(msg *message.Message) ([]*message.Message, error) { return nil, handler(msg) })(msg)
	return d.Outcome(err), err
}

func deliveryOf(msg *message.Message) *bus.Delivery {
	d := bus.Attach(msg)
	d.Group, d.Settler = "shop.pay", settler{}
	return d
}

type settler struct{}

func (settler) Ack() error                                 { return nil }
func (settler) Redeliver(time.Duration) error              { return nil }
func (settler) GiveBack(time.Duration) error               { return nil }
func (settler) Poison(context.Context, driver.Fault) error { return nil }

func event(id string, headers ...string) *message.Message {
	msg := message.NewMessage("", nil)
	msg.Metadata[driver.HeaderID] = id
	msg.Metadata[driver.HeaderSource] = "/shop"
	for i := 0; i < len(headers); i += 2 {
		msg.Metadata[headers[i]] = headers[i+1]
	}
	return msg
}

func succeed(*message.Message) error { return nil }

func fail(*message.Message) error { return errHandler }

func forbid(t *testing.T) func(*message.Message) error {
	return func(*message.Message) error {
		t.Helper()
		t.Error("the handler was called")
		return nil
	}
}

// stores are the two kinds that the step treats differently.
func stores(t *testing.T, test func(t *testing.T, store middleware.Store)) {
	for name, makeStore := range map[string]func() middleware.Store{
		"local":  func() middleware.Store { return middleware.NewMemoryStore(0) },
		"remote": func() middleware.Store { return newRemote() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, makeStore()) })
		})
	}
}

func TestDedup_acksDuplicates(t *testing.T) {
	stores(t, func(t *testing.T, store middleware.Store) {
		s := newDedupStep(store, middleware.DedupConfig{Keep: time.Hour})
		if outcome, err := s.deliver(event("1"), succeed); outcome != bus.Handled {
			t.Fatalf("first: %s, %v", outcome, err)
		}
		if outcome, err := s.deliver(event("1"), forbid(t)); outcome != bus.Duplicate || err != nil {
			t.Errorf("second: %s, %v; want duplicate", outcome, err)
		}
		time.Sleep(3 * time.Hour)
		if outcome, _ := s.deliver(event("1"), succeed); outcome != bus.Handled {
			t.Errorf("after the window: %s, want handled", outcome)
		}
	})
}

func TestDedup_keysHaveSourceAndName(t *testing.T) {
	long := strings.Repeat("x", 5000)
	for _, tc := range []struct {
		name          string
		first, second *message.Message
		want          bus.Outcome
	}{
		{"same source and id", event("1"), event("1"), bus.Duplicate},
		{"other id", event("1"), event("2"), bus.Handled},
		{"other source", event("1"), event("1", driver.HeaderSource, "/other"), bus.Handled},
		{
			"source and id that read the same together",
			event("c", driver.HeaderSource, "a:b"), event("b:c", driver.HeaderSource, "a"), bus.Handled,
		},
		{"same dedup key", event("1", driver.HeaderDedupKey, "k"), event("2", driver.HeaderDedupKey, "k"), bus.Duplicate},
		{
			"same dedup key of another event",
			event("1", driver.HeaderDedupKey, "k", driver.HeaderType, "order.paid.v1"), event("2", driver.HeaderDedupKey, "k", driver.HeaderType, "order.cancelled.v1"), bus.Handled,
		},
		{
			"same dedup key of another version",
			event("1", driver.HeaderDedupKey, "k", driver.HeaderType, "order.paid.v1"), event("2", driver.HeaderDedupKey, "k", driver.HeaderType, "order.paid.v2"), bus.Duplicate,
		},
		{"same dedup key of another source", event("1", driver.HeaderDedupKey, "k"), event("2", driver.HeaderDedupKey, "k", driver.HeaderSource, "/other"), bus.Handled},
		{"other dedup key", event("1", driver.HeaderDedupKey, "k"), event("1", driver.HeaderDedupKey, "l"), bus.Handled},
		{"an id that reads like a dedup key", event("1", driver.HeaderDedupKey, "k"), event("k"), bus.Handled},
		{"same Watermill id", message.NewMessage("1", nil), message.NewMessage("1", nil), bus.Duplicate},
		{"no id", message.NewMessage("", nil), message.NewMessage("", nil), bus.Handled},
		{"same long id", event(long), event(long), bus.Duplicate},
		{"other long id", event(long + "1"), event(long + "2"), bus.Handled},
		{"same binary id", event("\x00\xff"), event("\x00\xff"), bus.Duplicate},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newDedupStep(middleware.NewMemoryStore(0), middleware.DedupConfig{})
			if outcome, err := s.deliver(tc.first, succeed); outcome != bus.Handled {
				t.Fatalf("first: %s, %v", outcome, err)
			}
			if outcome, err := s.deliver(tc.second, succeed); outcome != tc.want {
				t.Errorf("second: %s, %v; want %s", outcome, err, tc.want)
			}
		})
	}
}

// TestDedup_readsMarksOfEarlierVersions checks that marks by the dedup key alone, of an earlier version, still work.
func TestDedup_readsMarksOfEarlierVersions(t *testing.T) {
	store := newRemote()
	s := newDedupStep(store, middleware.DedupConfig{})
	claim := func(key string) middleware.Claim {
		c, err := store.Claim(t.Context(), "leat:dedup:"+deliveryOf(event("1")).Group+":key:"+key, time.Minute)
		if err != nil || c.State != middleware.Claimed {
			t.Fatal(c, err)
		}
		return c
	}
	if err := store.Done(t.Context(), claim("k"), time.Hour); err != nil {
		t.Fatal(err)
	}
	claim("under way")
	for key, want := range map[string]bus.Outcome{"k": bus.Duplicate, "under way": bus.Redelivered, "new": bus.Handled} {
		if outcome, err := s.deliver(event("1", driver.HeaderDedupKey, key), succeed); outcome != want {
			t.Errorf("%s: %s, %v; want %s", key, outcome, err, want)
		}
	}
	if outcome, _ := s.deliver(event("2", driver.HeaderDedupKey, "new", driver.HeaderType, "order.cancelled.v1"), succeed); outcome != bus.Handled {
		t.Error("marks are written in the new form only")
	}
}

func TestDedup_marksArePerGroup(t *testing.T) {
	for name, headers := range map[string][]string{"by id": nil, "by dedup key": {driver.HeaderDedupKey, "k"}} {
		t.Run(name, func(t *testing.T) {
			s := newDedupStep(middleware.NewMemoryStore(0), middleware.DedupConfig{})
			if outcome, _ := s.deliver(event("1", headers...), succeed); outcome != bus.Handled {
				t.Fatal(outcome)
			}
			msg := event("1", headers...)
			d := deliveryOf(msg)
			d.Group = "shop.audit"
			_, err := s.middleware(message.PassthroughHandler)(msg)
			if outcome := d.Outcome(err); outcome != bus.Handled {
				t.Errorf("in another group: %s, want handled", outcome)
			}
		})
	}
}

func TestDedup_hashesLongKeys(t *testing.T) {
	store := newRemote()
	s := newDedupStep(store, middleware.DedupConfig{Namespace: "ns:"})
	_, _ = s.deliver(event(strings.Repeat("x", 5000)), succeed)
	for key := range store.keys {
		if len(key) > 300 || !strings.HasPrefix(key, "ns:") {
			t.Errorf("key is %q (%d bytes)", key, len(key))
		}
	}
}

func TestDedup_redeliversDuplicatesInProgress(t *testing.T) {
	stores(t, func(t *testing.T, store middleware.Store) {
		s := newDedupStep(store, middleware.DedupConfig{Lease: time.Minute})
		_, err := s.deliver(event("1"), func(*message.Message) error {
			for range 100 {
				outcome, err := s.deliver(event("1"), forbid(t))
				var r *bus.Redelivery
				if outcome != bus.Redelivered || !errors.As(err, &r) {
					t.Fatalf("%s, %v; want a redelivery", outcome, err)
				}
				if !r.Uncounted || r.After < 250*time.Millisecond || r.After > time.Second {
					t.Fatalf("redelivery is %+v, want one for nothing after 250 ms to 1 s", r)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if outcome, _ := s.deliver(event("1"), forbid(t)); outcome != bus.Duplicate {
			t.Errorf("afterwards: %s, want duplicate", outcome)
		}
	})
}

func TestDedup_retriesWhenTheLeaseEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newRemote()
		s := newDedupStep(store, middleware.DedupConfig{})
		_, err := s.deliver(event("1"), func(*message.Message) error {
			store.mu.Lock() // as if the other one had died a while ago
			for key, k := range store.keys {
				store.keys[key] = remoteKey{token: k.token, until: time.Now().Add(100 * time.Millisecond)}
			}
			store.mu.Unlock()
			_, err := s.deliver(event("1"), forbid(t))
			var r *bus.Redelivery
			if !errors.As(err, &r) || r.After > 100*time.Millisecond {
				t.Errorf("%v; want a redelivery within 100 ms", err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestDedup_handlesOneOf50ConcurrentDeliveries(t *testing.T) {
	stores(t, func(t *testing.T, store middleware.Store) {
		s := newDedupStep(store, middleware.DedupConfig{})
		var handled, later atomic.Int32
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				outcome, _ := s.deliver(event("1"), func(*message.Message) error {
					handled.Add(1)
					time.Sleep(time.Second)
					return nil
				})
				if outcome == bus.Redelivered {
					later.Add(1)
				}
			})
		}
		wg.Wait()
		if handled.Load() != 1 || later.Load() != 49 {
			t.Errorf("%d handled, %d later; want 1 and 49", handled.Load(), later.Load())
		}
	})
}

func TestDedup_finishesTheClaimByOutcome(t *testing.T) {
	for _, tc := range []struct {
		name    string
		handler func(*message.Message) error
		then    bus.Outcome // of the same message, delivered again
	}{
		{"success", succeed, bus.Duplicate},
		{"an error", fail, bus.Handled},
		{"a permanent error", func(*message.Message) error { return bus.Permanent(errHandler) }, bus.Handled},
		{"a snooze", func(*message.Message) error { return bus.Snooze(time.Hour) }, bus.Handled},
		{"a discarded error", func(*message.Message) error { return bus.Discard(errHandler) }, bus.Duplicate},
		{"a poisoned message", func(msg *message.Message) error {
			bus.Attach(msg).MarkPoisoned(errHandler)
			return nil
		}, bus.Handled},
		{"a panic", func(*message.Message) error { panic("boom") }, bus.Handled},
		{"runtime.Goexit", func(*message.Message) error { runtime.Goexit(); return nil }, bus.Handled},
		{"a cancelled context and an error", func(msg *message.Message) error {
			ctx, cancel := context.WithCancel(msg.Context())
			cancel()
			msg.SetContext(ctx)
			return ctx.Err()
		}, bus.Handled},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stores(t, func(t *testing.T, store middleware.Store) {
				s := newDedupStep(store, middleware.DedupConfig{})
				done := make(chan struct{})
				go func() { // which Goexit ends
					defer close(done)
					defer func() { _ = recover() }()
					_, _ = s.deliver(event("1"), tc.handler)
				}()
				<-done
				if outcome, err := s.deliver(event("1"), succeed); outcome != tc.then {
					t.Errorf("then: %s, %v; want %s", outcome, err, tc.then)
				}
				if len(s.counts()) > 0 {
					t.Errorf("faults: %v", s.counts())
				}
			})
		})
	}
}

func TestDedup_releasesInterruptedClaims(t *testing.T) {
	stores(t, func(t *testing.T, store middleware.Store) {
		s := newDedupStep(store, middleware.DedupConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		msg := event("1")
		msg.SetContext(ctx)
		if outcome, _ := s.deliver(msg, func(*message.Message) error { cancel(); return ctx.Err() }); outcome != bus.Redelivered {
			t.Errorf("cut short: %s", outcome)
		}
		if outcome, err := s.deliver(event("1"), succeed); outcome != bus.Handled {
			t.Errorf("then: %s, %v; want handled", outcome, err)
		}
	})
}

func TestDedup_endedContextIsNoStoreFailure(t *testing.T) {
	store := newRemote()
	store.sabotage(func(ctx context.Context, _ string) error { return ctx.Err() }, nil)
	s := newDedupStep(store, middleware.DedupConfig{})
	for range 100 {
		msg := event("1")
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(bus.ErrInterrupted)
		msg.SetContext(ctx)
		if _, err := s.deliver(msg, forbid(t)); !errors.Is(err, bus.ErrInterrupted) {
			t.Fatalf("err is %v, want the context's cause", err)
		}
	}
	if outcome, err := s.deliver(event("1"), succeed); outcome != bus.Handled || len(s.counts()) > 0 {
		t.Errorf("then: %s, %v, faults %v; want handled, and none", outcome, err, s.counts())
	}
}

func TestDedup_manyInterruptionsAreNoStoreFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newRemote()
		store.sabotage(func(ctx context.Context, op string) error {
			if op == "claim" {
				return hang(ctx, op)
			}
			time.Sleep(50 * time.Millisecond)
			return nil
		}, nil)
		s := newDedupStep(store, middleware.DedupConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				msg := event(fmt.Sprint(i))
				msg.SetContext(ctx)
				_, _ = s.deliver(msg, forbid(t))
			})
		}
		synctest.Wait()
		cancel()
		wg.Wait()
		store.sabotage(nil, nil)
		if outcome, err := s.deliver(event("1"), succeed); outcome != bus.Handled || len(s.counts()) > 0 {
			t.Errorf("then: %s, %v, faults %v; want handled, and none", outcome, err, s.counts())
		}
	})
}

func TestDedup_renewsTheLease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newRemote()
		s := newDedupStep(store, middleware.DedupConfig{Lease: 3 * time.Second})
		go func() {
			_, _ = s.deliver(event("1"), func(*message.Message) error { time.Sleep(time.Minute); return nil })
		}()
		for range 59 {
			time.Sleep(time.Second)
			if outcome, err := s.deliver(event("1"), forbid(t)); outcome != bus.Redelivered {
				t.Fatalf("%s, %v; want redelivered", outcome, err)
			}
		}
		time.Sleep(2 * time.Second)
		if outcome, err := s.deliver(event("1"), forbid(t)); outcome != bus.Duplicate {
			t.Errorf("afterwards: %s, %v; want duplicate", outcome, err)
		}
		if n := store.calls["renew"]; n < 58 || n > 60 {
			t.Errorf("%d renewals in a minute of a lease of 3 s, want one a second", n)
		}
		time.Sleep(time.Hour)
		if n := store.calls["renew"]; n > 60 {
			t.Errorf("the lease is renewed after the end")
		}
		if len(s.counts()) > 0 {
			t.Errorf("faults: %v", s.counts())
		}
	})
}

func TestDedup_quickHandlerDoesNotRenew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newRemote()
		s := newDedupStep(store, middleware.DedupConfig{})
		_, _ = s.deliver(event("1"), succeed)
		time.Sleep(time.Hour)
		if store.calls["renew"] != 0 || store.calls["claim"] != 1 || store.calls["done"] != 1 {
			t.Errorf("calls: %v, want one claim and one done", store.calls)
		}
	})
}

func TestDedup_renewalSurvivesAShortOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newRemote()
		s := newDedupStep(store, middleware.DedupConfig{Lease: 12 * time.Second})
		_, err := s.deliver(event("1"), func(*message.Message) error {
			time.Sleep(3 * time.Second)
			store.sabotage(refuse, nil)
			time.Sleep(5 * time.Second)
			store.sabotage(nil, nil)
			time.Sleep(10 * time.Second)
			if outcome, _ := s.deliver(event("1"), forbid(t)); outcome != bus.Redelivered {
				t.Errorf("a duplicate meanwhile: %s", outcome)
			}
			return nil
		})
		if err != nil || s.counts()[middleware.DedupLost] > 0 {
			t.Errorf("%v, faults %v", err, s.counts())
		}
	})
}

func TestDedup_countsAndAcksLostClaims(t *testing.T) {
	for _, tc := range []struct {
		name    string
		handler time.Duration
	}{
		{"noticed at the renewal", time.Minute},
		{"noticed at the end", 11500 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newRemote()
				s := newDedupStep(store, middleware.DedupConfig{Lease: 3 * time.Second})
				other := newDedupStep(store, middleware.DedupConfig{Lease: time.Hour})
				var wg sync.WaitGroup
				outcome, err := s.deliver(event("1"), func(*message.Message) error {
					store.sabotage(only("renew", refuse), nil)
					time.Sleep(10 * time.Second)
					store.sabotage(nil, nil)
					wg.Go(func() { // another process
						outcome, err := other.deliver(event("1"), func(*message.Message) error { time.Sleep(time.Hour); return nil })
						if outcome != bus.Handled {
							t.Errorf("the other one: %s, %v", outcome, err)
						}
					})
					time.Sleep(tc.handler - 10*time.Second)
					return nil
				})
				if outcome != bus.Handled || s.counts()[middleware.DedupLost] != 1 {
					t.Errorf("%s, %v, faults %v; want handled, and one lost", outcome, err, s.counts())
				}
				if outcome, _ := s.deliver(event("1"), forbid(t)); outcome != bus.Redelivered {
					t.Errorf("while the other one runs: %s, want redelivered", outcome)
				}
				wg.Wait()
				if outcome, _ := s.deliver(event("1"), forbid(t)); outcome != bus.Duplicate {
					t.Errorf("in the end: %s, want duplicate", outcome)
				}
				if len(other.counts()) > 0 {
					t.Errorf("the other one's faults: %v", other.counts())
				}
			})
		})
	}
}

func TestDedup_acksUnmarkedMessages(t *testing.T) {
	for _, mode := range []bus.DedupMode{bus.DedupOpen, bus.DedupClosed} {
		t.Run(string(mode), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newRemote()
				store.sabotage(only("done", hang), nil)
				s := newDedupStep(store, middleware.DedupConfig{Mode: mode})
				outcome, err := s.deliver(event("1"), succeed)
				if outcome != bus.Handled || err != nil || s.counts()[middleware.DedupUnmarked] != 1 {
					t.Errorf("%s, %v, faults %v; want handled, and one unmarked", outcome, err, s.counts())
				}
				if outcome, _ := s.deliver(event("1"), forbid(t)); outcome != bus.Redelivered {
					t.Errorf("before the lease is over: %s, want redelivered", outcome)
				}
				time.Sleep(middleware.DefaultDedupLease)
				if outcome, _ := s.deliver(event("1"), succeed); outcome != bus.Handled {
					t.Errorf("after the lease: %s, want handled", outcome)
				}
			})
		})
	}
}

func TestDedup_unreachableStore(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault func(context.Context, string) error
	}{{"refuses", refuse}, {"hangs", hang}} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := newRemote()
				store.sabotage(tc.fault, nil)
				open := newDedupStep(store, middleware.DedupConfig{})
				closed := newDedupStep(store, middleware.DedupConfig{Mode: bus.DedupClosed})
				for i := range 20 {
					if outcome, err := open.deliver(event(fmt.Sprint(i)), succeed); outcome != bus.Handled {
						t.Fatalf("open: %s, %v; want handled", outcome, err)
					}
					_, err := closed.deliver(event(fmt.Sprint(i)), forbid(t))
					var r *bus.Redelivery
					if !errors.As(err, &r) || !r.Uncounted || r.After < 500*time.Millisecond || r.After > 2*time.Second {
						t.Fatalf("closed: %+v; want a redelivery for nothing in about 1 s", err)
					}
					if text := err.Error(); !strings.Contains(text, "refused") && !strings.Contains(text, "deadline") {
						t.Fatalf("closed: %v; want the store's error in it", err)
					}
				}
				if n := open.counts()[middleware.DedupUnavailable]; n != 20 {
					t.Errorf("open: %d counted, want 20", n)
				}
				if n := closed.counts()[middleware.DedupUnavailable]; n != 20 {
					t.Errorf("closed: %d counted, want 20", n)
				}
				store.sabotage(nil, nil)
				time.Sleep(1100 * time.Millisecond)
				for _, s := range []*dedupStep{open, closed} {
					id := fmt.Sprintf("%p", s)
					if outcome, err := s.deliver(event(id), succeed); outcome != bus.Handled {
						t.Errorf("afterwards: %s, %v", outcome, err)
					}
					if outcome, err := s.deliver(event(id), forbid(t)); outcome != bus.Duplicate {
						t.Errorf("afterwards: %s, %v; want duplicate", outcome, err)
					}
				}
			})
		})
	}
}

func TestDedup_keepsThroughputWithoutTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newRemote()
		s := newDedupStep(store, middleware.DedupConfig{})
		run := func(first int) time.Duration {
			begin := time.Now()
			for i := range 1000 {
				outcome, err := s.deliver(event(fmt.Sprint(first+i)), func(*message.Message) error { time.Sleep(10 * time.Millisecond); return nil })
				if outcome != bus.Handled {
					t.Fatal(outcome, err)
				}
			}
			return time.Since(begin)
		}
		before := run(0)
		store.sabotage(hang, nil)
		away := run(1000)
		t.Logf("1,000 messages: %s with the store, %s while it hangs", before, away)
		if away > before*5/4 {
			t.Errorf("1,000 messages take %s with the store, and %s while it hangs", before, away)
		}
	})
}

func TestDedup_storeFailsDuringTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := newRemote()
		s := newDedupStep(store, middleware.DedupConfig{})
		outcome, _ := s.deliver(event("1"), func(*message.Message) error {
			store.sabotage(refuse, nil)
			return errHandler
		})
		if outcome != bus.Redelivered {
			t.Errorf("%s, want redelivered", outcome)
		}
		if outcome, _ := s.deliver(event("1"), succeed); outcome != bus.Handled {
			t.Errorf("while the store is away: %s, want handled", outcome)
		}
	})
}

// TestDedup_claimWithALostResponse checks a claim whose response was lost after the store had executed it.
func TestDedup_claimWithALostResponse(t *testing.T) {
	lost := only("claim", func(context.Context, string) error { return errors.New("connection reset") })
	t.Run("open: the message is marked all the same", func(t *testing.T) {
		store := newRemote()
		s := newDedupStep(store, middleware.DedupConfig{})
		store.sabotage(nil, lost)
		if outcome, err := s.deliver(event("1"), succeed); outcome != bus.Handled {
			t.Fatalf("%s, %v", outcome, err)
		}
		store.sabotage(nil, nil)
		if outcome, _ := s.deliver(event("1"), forbid(t)); outcome != bus.Duplicate {
			t.Errorf("then: %s, want duplicate", outcome)
		}
	})
	t.Run("open: a failed message is released all the same", func(t *testing.T) {
		store := newRemote()
		s := newDedupStep(store, middleware.DedupConfig{})
		store.sabotage(nil, lost)
		_, _ = s.deliver(event("1"), fail)
		store.sabotage(nil, nil)
		if outcome, _ := s.deliver(event("1"), succeed); outcome != bus.Handled {
			t.Errorf("then: %s, want handled", outcome)
		}
	})
	t.Run("closed: the claim is released", func(t *testing.T) {
		store := newRemote()
		s := newDedupStep(store, middleware.DedupConfig{Mode: bus.DedupClosed})
		store.sabotage(nil, lost)
		_, _ = s.deliver(event("1"), forbid(t))
		store.sabotage(nil, nil)
		if outcome, _ := s.deliver(event("1"), succeed); outcome != bus.Handled {
			t.Errorf("then: %s, want handled", outcome)
		}
	})
}

func TestDedup_redisHangsAndRecovers(t *testing.T) {
	server := miniredis.RunT(t)
	proxy := testenv.NewProxy(t, server.Addr())
	store, err := redisstore.Open("redis://" + proxy.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	const budget = 3 * time.Second
	s := newDedupStep(store, middleware.DedupConfig{Budget: time.Minute, Lease: time.Hour}) // a busy machine may be slow
	run := func(first int) time.Duration {
		begin := time.Now()
		var wg sync.WaitGroup
		for worker := range 10 {
			wg.Go(func() {
				for i := range 100 {
					id := fmt.Sprint(first + worker*100 + i)
					if outcome, err := s.deliver(event(id), succeed); outcome != bus.Handled {
						t.Errorf("%s: %s, %v", id, outcome, err)
					}
				}
			})
		}
		wg.Wait()
		return time.Since(begin)
	}
	run(0)
	if len(s.counts()) > 0 {
		t.Fatalf("faults: %v", s.counts())
	}
	proxy.Stall()
	s = newDedupStep(store, middleware.DedupConfig{Budget: budget})
	if took := run(1000); took > 50*budget { // 100 without the breaker
		t.Errorf("1,000 messages with a frozen Redis took %s", took)
	}
	proxy.Resume()
	for outcome := bus.Handled; outcome != bus.Duplicate; {
		select {
		case <-time.After(20 * time.Millisecond):
			outcome, _ = s.deliver(event("0"), succeed)
		case <-t.Context().Done():
			t.Fatal("the store is not used again")
		}
	}
}

func TestDedup_modeAndHealthArePerHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store, transport := newRemote(), newShelf()
		step := newDedupStep(store, middleware.DedupConfig{})
		quiet := slog.New(slog.DiscardHandler)
		b, err := bus.New(transport, bus.Config{
			Service: "shop", Logger: quiet,
			Stack: middleware.NewStack(middleware.Use(middleware.StepDedup, step.middleware)),
		})
		if err != nil {
			t.Fatal(err)
		}
		calls := make(map[string]int)
		for _, mode := range []bus.DedupMode{bus.DedupDefault, bus.DedupOpen, bus.DedupClosed, bus.DedupOff} {
			name := "h" + string(mode)
			err := b.Handle(bus.Handler{
				Name: name, Topics: []string{"order.paid.v1"}, Dedup: mode, Concurrency: 1,
				Bind: func(bus.Encoder) message.HandlerFunc {
					return func(*message.Message) ([]*message.Message, error) { calls[name]++; return nil, nil }
				},
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- b.Run(ctx) }()
		synctest.Wait()

		for _, phase := range []struct {
			name     string
			fault    func(context.Context, string) error
			id       string
			settled  map[string]string
			degraded []string
		}{
			{"away at start", refuse, "1", map[string]string{"h": "acked", "hopen": "acked", "hclosed": "given back", "hoff": "acked"}, []string{"h", "hopen", "hclosed"}},
			{"there", nil, "2", map[string]string{"h": "acked", "hopen": "acked", "hclosed": "acked", "hoff": "acked"}, nil},
			{"a duplicate", nil, "2", map[string]string{"h": "acked", "hopen": "acked", "hclosed": "acked", "hoff": "acked"}, nil},
			{"away in the middle", hang, "3", map[string]string{"h": "acked", "hopen": "acked", "hclosed": "given back", "hoff": "acked"}, []string{"h", "hopen", "hclosed"}},
			{"back", nil, "4", map[string]string{"h": "acked", "hopen": "acked", "hclosed": "acked", "hoff": "acked"}, nil},
		} {
			store.sabotage(phase.fault, nil)
			time.Sleep(1100 * time.Millisecond) // till the breaker lets a probe through
			for name, want := range phase.settled {
				if got := transport.feeds["shop."+name].put(event(phase.id)); got != want {
					t.Errorf("%s: %s: %s, want %s", phase.name, name, got, want)
				}
			}
			synctest.Wait()
			degraded := make(map[string]string)
			for _, h := range b.Health() {
				if h.State == bus.Degraded {
					degraded[strings.TrimPrefix(h.Group, "shop.")] = h.Degraded["dedup"]
				}
			}
			for _, name := range phase.degraded {
				if !strings.Contains(degraded[name], "refused") && !strings.Contains(degraded[name], "deadline") {
					t.Errorf("%s: %s is degraded by %q, want the store's error", phase.name, name, degraded[name])
				}
			}
			if len(degraded) != len(phase.degraded) {
				t.Errorf("%s: degraded are %v, want %v", phase.name, degraded, phase.degraded)
			}
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for name, want := range map[string]int{"h": 4, "hopen": 4, "hclosed": 2, "hoff": 5} {
			if calls[name] != want {
				t.Errorf("%s was called %d times, want %d", name, calls[name], want)
			}
		}
		if d := b.Stats().Groups["h"].Duplicates; d != 1 {
			t.Errorf("%d duplicates counted, want 1", d)
		}
	})
}

// TestDedup_stockRouterNacksDuplicatesInProgress checks a stock router, which redelivers a nacked message at once.
func TestDedup_stockRouterNacksDuplicatesInProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newDedupStep(middleware.NewMemoryStore(0), middleware.DedupConfig{}).middleware(
			func(*message.Message) ([]*message.Message, error) { time.Sleep(10 * time.Second); return nil, nil })
		var first sync.WaitGroup
		first.Go(func() { _, _ = h(event("1")) })
		synctest.Wait()
		begin := time.Now()
		if _, err := h(event("1")); err == nil || time.Since(begin) < 250*time.Millisecond {
			t.Errorf("%v after %s; want an error after at least 250 ms", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		msg := event("1")
		msg.SetContext(ctx)
		begin = time.Now()
		if _, err := h(msg); err == nil || time.Since(begin) != 100*time.Millisecond {
			t.Errorf("%v after %s; want an error when the context is over", err, time.Since(begin))
		}
		first.Wait()
	})
}

// flakyPublisher fails the first publish, like an unreachable broker.
type flakyPublisher struct {
	message.Publisher

	failed atomic.Bool
}

func (p *flakyPublisher) Publish(topic string, msgs ...*message.Message) error {
	if p.failed.CompareAndSwap(false, true) {
		return errors.New("broker away")
	}
	return p.Publisher.Publish(topic, msgs...)
}

func TestDedup_stockRouterLosesNoProducedMessages(t *testing.T) {
	logger := watermill.NopLogger{}
	pubsub := gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: 10}, logger)
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		t.Fatal(err)
	}
	var handled atomic.Int32
	router.AddMiddleware(newDedupStep(middleware.NewMemoryStore(0), middleware.DedupConfig{}).middleware)
	router.AddHandler("receipts", "paid", pubsub, "receipt", &flakyPublisher{Publisher: pubsub},
		func(*message.Message) ([]*message.Message, error) {
			handled.Add(1)
			return []*message.Message{event("receipt")}, nil
		})
	receipts, err := pubsub.Subscribe(t.Context(), "receipt")
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error)
	go func() { stopped <- router.Run(context.WithoutCancel(t.Context())) }()
	<-router.Running()
	for range 2 {
		if err := pubsub.Publish("paid", event("1")); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case msg := <-receipts:
		msg.Ack()
	case <-time.After(time.Minute):
		t.Error("the produced message is lost")
	}
	select {
	case <-receipts:
		t.Error("the duplicate was handled")
	case <-time.After(100 * time.Millisecond):
	}
	if err := errors.Join(router.Close(), <-stopped, pubsub.Close()); err != nil {
		t.Error(err)
	}
	if handled.Load() != 2 {
		t.Errorf("handled %d times, want twice: once before the publishing failed", handled.Load())
	}
}

func TestDedup_rejectsInvalidConfigs(t *testing.T) {
	for _, tc := range []struct {
		cfg  middleware.DedupConfig
		want string
	}{
		{middleware.DedupConfig{Mode: "opne"}, `mode "opne" is unknown; it is one of open, closed, off`},
		{middleware.DedupConfig{Lease: -1}, "negative"},
		{middleware.DedupConfig{Keep: -1}, "negative"},
		{middleware.DedupConfig{Budget: -1}, "negative"},
		{middleware.DedupConfig{Lease: time.Second, Budget: time.Second}, "longer than the budget"},
	} {
		err := tc.cfg.Validate()
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v; want %q", tc.cfg, err, tc.want)
		}
		mustPanic(t, func() { middleware.Dedup(middleware.NewMemoryStore(0), tc.cfg) })
	}
	mustPanic(t, func() { middleware.Dedup(nil, middleware.DedupConfig{}) })
	if err := (middleware.DedupConfig{}).Validate(); err != nil {
		t.Errorf("the zero DedupConfig: %v", err)
	}
}

func mustPanic(t *testing.T, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	f()
}

func BenchmarkDedup(b *testing.B) {
	for name, makeStore := range map[string]func() middleware.Store{
		"local":  func() middleware.Store { return middleware.NewMemoryStore(0) },
		"remote": func() middleware.Store { return newRemote() },
	} {
		b.Run(name, func(b *testing.B) {
			h := middleware.Dedup(makeStore(), middleware.DedupConfig{})(
				func(*message.Message) ([]*message.Message, error) { return nil, nil })
			msg := event("")
			deliveryOf(msg)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				msg.Metadata[driver.HeaderID] = strconv.Itoa(i)
				if _, err := h(msg); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
