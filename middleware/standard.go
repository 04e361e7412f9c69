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
	// Upcasters lift old versions for every handler that takes newer ones.
	Upcasters []Upcaster
}

// Standard is the stack that services use: every step, in its order. A handler's own timeout, retry
// policy and dedup mode take the place of the configured ones.
func Standard(cfg Config) Stack {
	if cfg.Store == nil {
		cfg.Store = NewMemoryStore(0)
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	return NewStack(
		Use(StepObserve, Observe()),
		Use(StepPoison, Poison(PoisonConfig{})),
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

func (c Config) retry(h bus.Handler) (message.HandlerMiddleware, error) {
	policy := c.Retry
	if h.Retry != nil {
		policy = *h.Retry
	}
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
	return Version(h.Types, c.Upcasters...)
}
