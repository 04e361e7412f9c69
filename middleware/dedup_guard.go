package middleware

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/sony/gobreaker/v2"
)

const (
	// tripAfter is how many calls in a row must fail before the store counts as unavailable.
	tripAfter = 5
	// probeEvery is how often an unavailable store is called to check whether it is available again.
	probeEvery = time.Second
)

// errCallerGone is the error of a call that the message's own context has ended: it does not count as a failure of the store.
var errCallerGone = errors.New("cut short by the caller")

// guard keeps a slow or unavailable store from slowing down the handlers: a call gets a time budget, and after a few failures in a row
// only one call per second is tried.
type guard struct {
	store   Store
	budget  time.Duration
	breaker *gobreaker.CircuitBreaker[Claim]
	last    atomic.Pointer[error] // what the last failed call failed with
}

func newGuard(store Store, budget time.Duration, log *slog.Logger) *guard {
	g := &guard{store: store, budget: budget}
	g.breaker = gobreaker.NewCircuitBreaker[Claim](gobreaker.Settings{
		Timeout:      probeEvery,
		ReadyToTrip:  func(c gobreaker.Counts) bool { return c.ConsecutiveFailures >= tripAfter },
		IsSuccessful: func(err error) bool { return err == nil || errors.Is(err, ErrClaimLost) },
		IsExcluded:   func(err error) bool { return errors.Is(err, errCallerGone) },
		OnStateChange: func(_ string, from, to gobreaker.State) {
			switch {
			case from == gobreaker.StateClosed:
				log.Warn("leat: dedup store is away", "error", g.lastError())
			case to == gobreaker.StateClosed:
				log.Info("leat: dedup store is back")
			}
		},
	})
	return g
}

func (g *guard) Claim(ctx context.Context, key string, lease time.Duration) (Claim, error) {
	return g.call(ctx, func(ctx context.Context) (Claim, error) { return g.store.Claim(ctx, key, lease) })
}

func (g *guard) Renew(ctx context.Context, c Claim, lease time.Duration) error {
	_, err := g.call(ctx, func(ctx context.Context) (Claim, error) { return c, g.store.Renew(ctx, c, lease) })
	return err
}

func (g *guard) Done(ctx context.Context, c Claim, keep time.Duration) error {
	_, err := g.call(ctx, func(ctx context.Context) (Claim, error) { return c, g.store.Done(ctx, c, keep) })
	return err
}

func (g *guard) Release(ctx context.Context, c Claim) error {
	_, err := g.call(ctx, func(ctx context.Context) (Claim, error) { return c, g.store.Release(ctx, c) })
	return err
}

func (g *guard) call(ctx context.Context, op func(context.Context) (Claim, error)) (Claim, error) {
	c, err := g.breaker.Execute(func() (Claim, error) {
		budgeted, cancel := context.WithTimeout(ctx, g.budget)
		defer cancel()
		c, err := op(budgeted)
		switch {
		case err == nil || errors.Is(err, ErrClaimLost):
		case ctx.Err() != nil:
			err = fmt.Errorf("%w: %w", errCallerGone, err)
		default:
			g.last.Store(&err)
		}
		return c, err
	})
	if errors.Is(err, gobreaker.ErrOpenState) || errors.Is(err, gobreaker.ErrTooManyRequests) {
		return Claim{}, fmt.Errorf("store is away, asked again every %s: %w", probeEvery, g.lastError())
	}
	return c, err
}

func (g *guard) lastError() error {
	if err := g.last.Load(); err != nil {
		return *err
	}
	return errors.New("no answer")
}
