package middleware

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// Dedup handles a message once per group: it is the Idempotent Receiver, in two phases. Before the
// handler it claims the message, after it marks it done; when the handler fails, panics or ends its
// goroutine, it releases the claim, and when the process dies, the lease runs out. So a message is
// never taken for done before it is.
//
// A message is known by its group, its source and its id, or by its group and its dedup key where it
// has one. A duplicate of a done message is acked without its handler; a duplicate of one in progress
// is redelivered a little later. A message without any id is handled as it is. When the store can't
// be reached, the handler's mode decides: see [bus.DedupMode].
//
// The middleware may be used for any number of handlers. Dedup panics when store is nil or cfg does
// not validate: both are mistakes in the program.
func Dedup(store Store, cfg DedupConfig) message.HandlerMiddleware {
	if store == nil {
		panic("middleware: dedup: store is nil; make one with NewMemoryStore or redisstore.Open, or leave the step out")
	}
	if err := cfg.Validate(); err != nil {
		panic(err.Error())
	}
	s := &dedup{store: store, cfg: cfg.withDefaults()}
	if _, s.local = store.(LocalStore); !s.local {
		s.store = newGuard(store, s.cfg.Budget, s.cfg.Logger)
	}
	return func(next message.HandlerFunc) message.HandlerFunc {
		return func(msg *message.Message) ([]*message.Message, error) { return s.handle(msg, next) }
	}
}

// dedupPart is the part of a group that is degraded while the store is away.
const dedupPart = "dedup"

const (
	inProgressDelay = 250 * time.Millisecond // to a second; see inProgressAfter
	awayDelay       = 750 * time.Millisecond // to 1.25 s
	delaySpread     = 500 * time.Millisecond
)

// errInProgress is why a duplicate is given back.
var errInProgress = errors.New("middleware: dedup: the same message is being handled now")

type dedup struct {
	store Store
	local bool // see LocalStore
	cfg   DedupConfig
}

func (s *dedup) handle(msg *message.Message, next message.HandlerFunc) ([]*message.Message, error) {
	d := bus.Attach(msg)
	mode := s.mode(d)
	key := s.key(d)
	if mode == bus.DedupOff || key == "" {
		return next(msg)
	}
	ctx := msg.Context()
	if done, again := s.formerly(ctx, d, msg); done {
		d.MarkDuplicate()
		return nil, nil
	} else if again != nil {
		return nil, again
	}
	claim, err := s.store.Claim(ctx, key, s.cfg.Lease)
	if err != nil {
		return s.unclaimed(d, mode, claim, err, msg, next)
	}
	d.Degraded(dedupPart, nil)
	switch claim.State {
	case Done:
		d.MarkDuplicate()
		return nil, nil
	case InProgress:
		return nil, later(ctx, d, inProgressAfter(claim.Left), errInProgress)
	default:
		h := &hold{step: s, delivery: d, claim: claim, ctx: ctx}
		h.renewWhileHeld()
		return h.run(msg, next)
	}
}

func (s *dedup) mode(d *bus.Delivery) bus.DedupMode {
	if mode := d.Handler().Dedup; mode != bus.DedupDefault {
		return mode
	}
	return s.cfg.Mode
}

// maxDedupKey is how long a key may be, in bytes, before it is hashed.
const maxDedupKey = 256

// key names the message in the store, "" where it has no identity.
func (s *dedup) key(d *bus.Delivery) string {
	return s.named(d, d.Identity())
}

func (s *dedup) named(d *bus.Delivery, identity string) string {
	if identity == "" {
		return ""
	}
	key := s.cfg.Namespace + d.Group + ":" + identity
	if len(key) > maxDedupKey {
		sum := sha256.Sum256([]byte(key))
		key = s.cfg.Namespace + "sha256:" + hex.EncodeToString(sum[:])
	}
	return key
}

// formerly looks for the mark that an earlier version of leat wrote for a message with a dedup key, without the source
// and the event's name. It reports whether the message is done, or returns the redelivery for one that such a version
// handles now. No marks are written in that form any more, so the last one expires DedupConfig.Keep after the upgrade. Errors
// of the store are left to the claim that follows.
func (s *dedup) formerly(ctx context.Context, d *bus.Delivery, msg *message.Message) (done bool, again error) {
	old := msg.Metadata[driver.HeaderDedupKey]
	if old == "" || s.local {
		return false, nil
	}
	claim, err := s.store.Claim(ctx, s.named(d, "key:"+old), s.cfg.Lease)
	switch {
	case err == nil && claim.State == Done:
		return true, nil
	case err == nil && claim.State == InProgress:
		return false, later(ctx, d, inProgressAfter(claim.Left), errInProgress)
	}
	_ = s.store.Release(context.WithoutCancel(ctx), claim) // its lease ends by itself, too
	return false, nil
}

// unclaimed goes on with a message that the store could not be asked about.
func (s *dedup) unclaimed(d *bus.Delivery, mode bus.DedupMode, claim Claim, err error,
	msg *message.Message, next message.HandlerFunc,
) ([]*message.Message, error) {
	ctx := msg.Context()
	h := &hold{step: s, delivery: d, claim: claim, ctx: ctx, told: true}
	if ctx.Err() != nil { // not the store's fault: the delivery is being cut short
		h.release()
		return nil, fmt.Errorf("middleware: dedup: claim: %w", context.Cause(ctx))
	}
	s.fault(d, DedupUnavailable, fmt.Errorf("middleware: dedup: claim: %w", err))
	if mode == bus.DedupClosed {
		h.release()
		return nil, later(ctx, d, awayDelay+rand.N(delaySpread), fmt.Errorf("middleware: dedup: claim: %w", err))
	}
	return h.run(msg, next)
}

// fault tells everybody who wants to know.
func (s *dedup) fault(d *bus.Delivery, kind DedupFaultKind, err error) {
	d.DedupFailed()
	if kind == DedupLost {
		s.cfg.Logger.Warn("leat: dedup claim lost; the message is handled twice",
			"group", d.Group, "message_id", driver.OneLine(driver.MessageID(d.Message), maxAttrBytes), "error", err)
	} else {
		d.Degraded(dedupPart, err)
	}
	s.cfg.OnFault(DedupFault{Group: d.Group, Kind: kind, Err: err})
}

// inProgressAfter returns when to look again: soon, because most handlers are quick, and no later than the
// other one's lease runs out if it is dead.
func inProgressAfter(left time.Duration) time.Duration {
	after := inProgressDelay + rand.N(time.Second-inProgressDelay)
	if left > 0 {
		after = min(after, left)
	}
	return after
}

// later gives the delivery back. A stock Watermill router can't delay a message and would bring it
// again at once, so there the wait is here.
func later(ctx context.Context, d *bus.Delivery, after time.Duration, why error) error {
	if d.Settler == nil {
		wait := time.NewTimer(after)
		defer wait.Stop()
		select {
		case <-wait.C:
		case <-ctx.Done():
		}
	}
	return &bus.Redelivery{After: after, Uncounted: true, Err: why}
}
