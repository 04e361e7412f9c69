package middleware

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// DedupConfig is how [Dedup] works. The zero DedupConfig does.
type DedupConfig struct {
	// Lease is how long a message stays claimed when its process dies. While the handler runs it is
	// renewed at a third of it, so it need not be longer than the handler. 0 means 30 s.
	Lease time.Duration
	// Keep is the window in which a second message with the same id is a duplicate. 0 means 24 h.
	Keep time.Duration
	// Mode is for handlers that don't choose by themselves; the default is [bus.DedupOpen].
	Mode bus.DedupMode
	// Budget is how long a message may wait for one call of the store. 0 means 100 ms.
	Budget time.Duration
	// Namespace begins every key, for a store that is shared with others. "" means "leat:dedup:".
	Namespace string
	// OnFault is told what went wrong, for counting. It is called concurrently, on the path of the
	// message: it must be quick. nil means nobody is told.
	OnFault func(DedupFault)
	// Logger gets a line when the store goes away, when it is back, and for each lost claim. nil
	// means slog.Default().
	Logger *slog.Logger
}

// Defaults of [DedupConfig].
const (
	DefaultDedupLease     = 30 * time.Second
	DefaultDedupKeep      = 24 * time.Hour
	DefaultDedupBudget    = 100 * time.Millisecond
	DefaultDedupNamespace = "leat:dedup:"
)

// DedupFault is something the dedup step could not do. The message is never lost for it.
type DedupFault struct {
	Group string
	Kind  DedupFaultKind
	Err   error
}

// DedupFaultKind is a class of [DedupFault], fit for a metric's label.
type DedupFaultKind string

// Kinds of faults.
const (
	// DedupUnavailable says that the store could not be asked. In open mode the message is handled,
	// in closed mode redelivered later.
	DedupUnavailable DedupFaultKind = "unavailable"
	// DedupUnmarked says that a handled message could not be marked done: it is acked, but its
	// duplicate may be handled once the lease has run out.
	DedupUnmarked DedupFaultKind = "unmarked"
	// DedupLost says that a claim went to another while the handler ran, because its lease could not
	// be renewed in time: the message is being handled twice.
	DedupLost DedupFaultKind = "lost"
)

// Validate says what is wrong with the settings.
func (c DedupConfig) Validate() error {
	c = c.withDefaults()
	switch {
	case c.Lease < 0 || c.Keep < 0 || c.Budget < 0:
		return fmt.Errorf("middleware: dedup: lease %s, keep %s, budget %s: none of them can be negative; 0 means the default",
			c.Lease, c.Keep, c.Budget)
	case c.Lease <= c.Budget:
		return fmt.Errorf("middleware: dedup: lease %s is not longer than the budget %s, so it can't be renewed in time; make it longer",
			c.Lease, c.Budget)
	case c.Mode != bus.DedupOpen && c.Mode != bus.DedupClosed && c.Mode != bus.DedupOff:
		return fmt.Errorf("middleware: dedup: mode %q is unknown; it is one of %s, %s, %s",
			c.Mode, bus.DedupOpen, bus.DedupClosed, bus.DedupOff)
	default:
		return nil
	}
}

func (c DedupConfig) withDefaults() DedupConfig {
	if c.Lease == 0 {
		c.Lease = DefaultDedupLease
	}
	if c.Keep == 0 {
		c.Keep = DefaultDedupKeep
	}
	if c.Mode == bus.DedupDefault {
		c.Mode = bus.DedupOpen
	}
	if c.Budget == 0 {
		c.Budget = DefaultDedupBudget
	}
	if c.Namespace == "" {
		c.Namespace = DefaultDedupNamespace
	}
	if c.OnFault == nil {
		c.OnFault = func(DedupFault) {}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	return c
}

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
	key := s.key(d, msg)
	if mode == bus.DedupOff || key == "" {
		return next(msg)
	}
	ctx := msg.Context()
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
func (s *dedup) key(d *bus.Delivery, msg *message.Message) string {
	key := bus.Identity(msg)
	if key == "" {
		return ""
	}
	key = s.cfg.Namespace + d.Group + ":" + key
	if len(key) > maxDedupKey {
		sum := sha256.Sum256([]byte(key))
		key = s.cfg.Namespace + "sha256:" + hex.EncodeToString(sum[:])
	}
	return key
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
	if kind == DedupLost {
		s.cfg.Logger.Warn("leat: dedup claim lost; the message is handled twice",
			"group", d.Group, "message_id", bus.MessageID(d.Message), "err", err)
	} else {
		d.Degraded(dedupPart, err)
	}
	s.cfg.OnFault(DedupFault{Group: d.Group, Kind: kind, Err: err})
}

// inProgressAfter is when to look again: soon, because most handlers are quick, and no later than the
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
	return &bus.Redelivery{After: after, Cost: bus.CostsNothing, Err: why}
}

// hold is one message while its handler runs.
type hold struct {
	step     *dedup
	delivery *bus.Delivery
	claim    Claim
	ctx      context.Context // the message's; see context
	told     bool            // the claim's fault is known already: it is ours, another's or nobody's

	mu    sync.Mutex // held while a renewal is under way
	timer *time.Timer
	over  bool
}

// run calls the handler and finishes the claim. What a panic or runtime.Goexit leaves behind is
// released too.
func (h *hold) run(msg *message.Message, next message.HandlerFunc) (produced []*message.Message, err error) {
	returned := false
	defer func() {
		if !returned {
			h.release()
		}
	}()
	produced, err = next(msg)
	returned = true
	switch {
	case err != nil && !bus.IsDiscard(err), h.delivery.Outcome(nil) == bus.Poisoned:
		h.release()
	case err == nil && len(produced) > 0 && h.delivery.Settler == nil:
		go h.finishWhenSettled(msg)
	default:
		h.done()
	}
	return produced, err
}

// finishWhenSettled waits for a stock router to publish what the handler produced: until then the
// message is not done, because its redelivery has to produce it again.
func (h *hold) finishWhenSettled(msg *message.Message) {
	select {
	case <-msg.Acked():
	case <-msg.Nacked():
	case <-msg.Context().Done(): // a subscriber ends the context after the ack as well
	}
	select {
	case <-msg.Acked():
		h.done()
	default:
		h.release()
	}
}

// context is for the store's calls, which outlive an interrupted handler. A local store's don't look.
func (h *hold) context() context.Context {
	if h.step.local {
		return h.ctx
	}
	return context.WithoutCancel(h.ctx)
}

func (h *hold) done() {
	h.stopRenewing()
	if h.claim.Token == "" {
		return // the store was not even asked
	}
	h.settled(DedupUnmarked, "done", h.step.store.Done(h.context(), h.claim, h.step.cfg.Keep))
}

func (h *hold) release() {
	h.stopRenewing()
	if h.claim.Token == "" {
		return
	}
	h.settled(DedupUnavailable, "release", h.step.store.Release(h.context(), h.claim))
}

func (h *hold) settled(kind DedupFaultKind, op string, err error) {
	if err == nil || h.told {
		return
	}
	if errors.Is(err, ErrClaimLost) {
		kind = DedupLost
	}
	h.step.fault(h.delivery, kind, fmt.Errorf("middleware: dedup: %s: %w", op, err))
}

// renewWhileHeld keeps the lease from running out under a slow handler. A quick one costs a timer
// that never fires.
func (h *hold) renewWhileHeld() {
	if h.step.local {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.timer = time.AfterFunc(h.step.cfg.Lease/3, h.renew)
}

func (h *hold) renew() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.over {
		return
	}
	err := h.step.store.Renew(h.context(), h.claim, h.step.cfg.Lease)
	switch {
	case err == nil:
		h.timer.Reset(h.step.cfg.Lease / 3)
	case errors.Is(err, ErrClaimLost):
		h.told = true
		h.step.fault(h.delivery, DedupLost, fmt.Errorf("middleware: dedup: renew: %w", err))
	default:
		h.step.fault(h.delivery, DedupUnavailable, fmt.Errorf("middleware: dedup: renew: %w", err))
		h.timer.Reset(h.step.cfg.Lease / 12)
	}
}

// stopRenewing waits for a renewal under way, which would otherwise take a released key again.
func (h *hold) stopRenewing() {
	if h.timer == nil {
		return
	}
	h.timer.Stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
}
