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

// Dedup returns the step that handles a message once per group. It is an Idempotent Receiver in two phases: it claims the message
// before the handler, and marks it as done after it. If the handler fails, panics or ends its goroutine, the claim is released, and if
// the process is killed, the lease expires. So a message is never marked as done before it is.
//
// A message is identified by its group and its [bus.Delivery.Identity]. A duplicate of a done message is acked without calling the
// handler; a duplicate of a message in progress is redelivered a little later. A message without an id is always handled. If the store
// can't be reached, the handler's [bus.DedupMode] decides.
//
// The middleware may be used for any number of handlers. Dedup panics if store is nil or cfg is invalid.
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

// dedupPart is the part that a group reports as degraded while the store can't be reached.
const dedupPart = "dedup"

const (
	inProgressDelay  = 250 * time.Millisecond // to a second; see inProgressAfter
	unavailableDelay = 750 * time.Millisecond // to 1.25 s
	delaySpread      = 500 * time.Millisecond
)

// errInProgress is the error with which a duplicate is given back.
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
	if done, redelivery := s.checkFormerMark(ctx, d, msg); done {
		d.MarkDuplicate()
		return nil, nil
	} else if redelivery != nil {
		return nil, redelivery
	}
	claim, err := s.store.Claim(ctx, key, s.cfg.Lease)
	if err != nil {
		return s.handleUnclaimed(d, mode, claim, err, msg, next)
	}
	d.Degraded(dedupPart, nil)
	switch claim.State {
	case Done:
		d.MarkDuplicate()
		return nil, nil
	case InProgress:
		return nil, later(ctx, d, inProgressAfter(claim.Left), errInProgress)
	default:
		h := &activeClaim{step: s, delivery: d, claim: claim, ctx: ctx}
		h.startRenewing()
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

// key returns the message's key in the store, "" if it has no identity.
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

// checkFormerMark checks the mark that an earlier version of leat wrote for a message with a dedup key, without the source and the
// event's name. It reports whether the message is done, or returns a redelivery if such a version is handling it now. No such marks are
// written any more, so the last one expires DedupConfig.Keep after the upgrade. Errors of the store are ignored: the claim that follows
// returns them as well.
func (s *dedup) checkFormerMark(ctx context.Context, d *bus.Delivery, msg *message.Message) (done bool, redelivery error) {
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
	_ = s.store.Release(context.WithoutCancel(ctx), claim) // otherwise its lease expires
	return false, nil
}

// handleUnclaimed handles or gives back a message that could not be claimed because the store has failed.
func (s *dedup) handleUnclaimed(d *bus.Delivery, mode bus.DedupMode, claim Claim, err error,
	msg *message.Message, next message.HandlerFunc,
) ([]*message.Message, error) {
	ctx := msg.Context()
	h := &activeClaim{step: s, delivery: d, claim: claim, ctx: ctx, reported: true}
	if ctx.Err() != nil { // the store has not failed: the delivery is being interrupted
		h.release()
		return nil, fmt.Errorf("middleware: dedup: claim: %w", context.Cause(ctx))
	}
	s.fault(d, DedupUnavailable, fmt.Errorf("middleware: dedup: claim: %w", err))
	if mode == bus.DedupClosed {
		h.release()
		return nil, later(ctx, d, unavailableDelay+rand.N(delaySpread), fmt.Errorf("middleware: dedup: claim: %w", err))
	}
	return h.run(msg, next)
}

// fault reports a fault to the metrics, the log or the health, and OnFault.
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

// inProgressAfter returns the delay before a duplicate of a message in progress is redelivered: short, because most handlers are quick,
// and no longer than the other claim's lease.
func inProgressAfter(left time.Duration) time.Duration {
	after := inProgressDelay + rand.N(time.Second-inProgressDelay)
	if left > 0 {
		after = min(after, left)
	}
	return after
}

// later returns the error that gives the delivery back. Under a stock Watermill router, which would redeliver the message at once, it
// waits first.
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
