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

// activeClaim is the claim of a message whose handler is running.
type activeClaim struct {
	step     *dedup
	delivery *bus.Delivery
	claim    Claim
	ctx      context.Context // the message's; see context
	reported bool            // a fault of the claim was reported already

	mu    sync.Mutex // held during a renewal
	timer *time.Timer
	over  bool
}

// run calls the handler and finishes the claim. It also releases the claim after a panic or runtime.Goexit.
func (h *activeClaim) run(msg *message.Message, next message.HandlerFunc) (produced []*message.Message, err error) {
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

// finishWhenSettled waits until a stock Watermill router has published the messages that the handler produced. Until then the message is
// not done, because a redelivery must produce them again.
func (h *activeClaim) finishWhenSettled(msg *message.Message) {
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

// context returns a context for the store's calls, which outlive an interrupted handler. A local store's calls ignore it.
func (h *activeClaim) context() context.Context {
	if h.step.local {
		return h.ctx
	}
	return context.WithoutCancel(h.ctx)
}

func (h *activeClaim) done() {
	h.stopRenewing()
	if h.claim.Token == "" {
		return // the store was not called
	}
	h.settled(DedupUnmarked, "done", h.step.store.Done(h.context(), h.claim, h.step.cfg.Keep))
}

func (h *activeClaim) release() {
	h.stopRenewing()
	if h.claim.Token == "" {
		return
	}
	h.settled(DedupUnavailable, "release", h.step.store.Release(h.context(), h.claim))
}

func (h *activeClaim) settled(kind DedupFaultKind, op string, err error) {
	if err == nil || h.reported {
		return
	}
	if errors.Is(err, ErrClaimLost) {
		kind = DedupLost
	}
	h.step.fault(h.delivery, kind, fmt.Errorf("middleware: dedup: %s: %w", op, err))
}

// startRenewing starts to renew the lease while the handler runs. For a quick handler, it costs a timer that does not fire.
func (h *activeClaim) startRenewing() {
	if h.step.local {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.timer = time.AfterFunc(h.step.cfg.Lease/3, h.renew)
}

func (h *activeClaim) renew() {
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
		h.reported = true
		h.step.fault(h.delivery, DedupLost, fmt.Errorf("middleware: dedup: renew: %w", err))
	default:
		h.step.fault(h.delivery, DedupUnavailable, fmt.Errorf("middleware: dedup: renew: %w", err))
		h.timer.Reset(h.step.cfg.Lease / 12)
	}
}

// stopRenewing stops renewing and waits for a running renewal, which could otherwise claim a released key again.
func (h *activeClaim) stopRenewing() {
	if h.timer == nil {
		return
	}
	h.timer.Stop()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = true
}
