package middleware

import (
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// DefaultTimeout bounds one try of a handler.
const DefaultTimeout = 30 * time.Second

// Config is how the standard stack works. Its zero value does.
type Config struct {
	// Store remembers what was handled. nil means one in memory, for this stack.
	Store Store
	// Dedup is how the dedup step uses it.
	Dedup DedupConfig
	// Retry is the policy of handlers that have none of their own.
	Retry bus.RetryPolicy
	// Timeout bounds one try of handlers that have none of their own. 0 means [DefaultTimeout];
	// a negative value means none.
	Timeout time.Duration
	// HoldNewer is how long a message waits whose version no handler of this process knows yet. 0 means
	// [DefaultHoldNewer]; a negative value means that it is poisoned at once.
	HoldNewer time.Duration
	// Upcasters lift old versions for every handler that takes newer ones.
	Upcasters []Upcaster
}

// Standard returns the stack that services use: every step, in its order. A handler's own timeout, retry
// policy and dedup mode take the place of the configured ones.
func Standard(cfg Config) Stack {
	if cfg.Store == nil {
		cfg.Store = NewMemoryStore(0)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if cfg.HoldNewer == 0 {
		cfg.HoldNewer = DefaultHoldNewer
	}
	return NewStack(
		Use(StepObserve, Observe()),
		Step{StepPoison, cfg.poison},
		cfg.dedupStep(),
		Step{StepRetry, cfg.retry},
		Use(StepRecover, Recover),
		Step{StepTimeout, cfg.timeout},
		Step{StepVersion, cfg.version},
	)
}

// dedupStep shares one middleware, and with it one circuit breaker, between the handlers.
func (c Config) dedupStep() Step {
	if err := c.Dedup.Validate(); err != nil {
		return Step{StepDedup, func(bus.Handler) (message.HandlerMiddleware, error) { return nil, err }}
	}
	shared := Dedup(c.Store, c.Dedup)
	return Step{StepDedup, func(h bus.Handler) (message.HandlerMiddleware, error) {
		if h.Dedup == bus.DedupOff {
			return nil, nil
		}
		return shared, nil
	}}
}

// policy returns the handler's retry policy.
func (c Config) policy(h bus.Handler) bus.RetryPolicy {
	if h.Retry != nil {
		return *h.Retry
	}
	return c.Retry
}

func (c Config) poison(h bus.Handler) (message.HandlerMiddleware, error) {
	return Poison(PoisonConfig{Retry: new(c.policy(h))}), nil
}

func (c Config) retry(h bus.Handler) (message.HandlerMiddleware, error) {
	policy := c.policy(h)
	for _, rule := range h.RetryOn {
		if err := rule.Validate(); err != nil {
			return nil, err
		}
	}
	return Retry(policy, h.RetryOn...), policy.Validate()
}

func (c Config) timeout(h bus.Handler) (message.HandlerMiddleware, error) {
	d := c.Timeout
	if h.Timeout != 0 {
		d = h.Timeout
	}
	if d < 0 {
		return nil, nil
	}
	return Timeout(d), nil
}

func (c Config) version(h bus.Handler) (message.HandlerMiddleware, error) {
	return Version(h.Types, c.HoldNewer, c.Upcasters...)
}
