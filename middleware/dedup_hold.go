package middleware

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

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

// context returns a context for the store's calls, which outlive an interrupted handler. A local store's don't look.
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
