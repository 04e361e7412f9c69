package middleware

import (
	"cmp"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

// DefaultTimeout is the default for the longest duration of one try.
const DefaultTimeout = 30 * time.Second

// Config configures the standard stack. The zero value is the default.
type Config struct {
	// Store records which messages were handled. nil means a store in memory, for this stack.
	Store Store
	// Dedup configures the dedup step.
	Dedup DedupConfig
	// Retry is the retry policy of handlers that set none.
	Retry bus.RetryPolicy
	// Timeout is the longest duration of one try, for handlers that set none. 0 means [DefaultTimeout]; a negative value
	// means no limit.
	Timeout time.Duration
	// HoldNewer is how long a message of a newer version than its handler takes waits for a newer version of the service. 0
	// means [DefaultHoldNewer]; a negative value means that it is poisoned at once.
	HoldNewer time.Duration
	// Upcasters convert old versions of events, for every handler that takes newer ones.
	Upcasters []Upcaster
}

// Standard returns the stack that services use, with all standard steps. A handler's own timeout, retry policy and dedup mode
// replace those of cfg.
func Standard(cfg Config) Stack {
	if cfg.Store == nil {
		cfg.Store = NewMemoryStore(0)
	}
	cfg.Timeout = cmp.Or(cfg.Timeout, DefaultTimeout)
	cfg.HoldNewer = cmp.Or(cfg.HoldNewer, DefaultHoldNewer)
	return NewStack(
		Use(StepObserve, Observe()),
		Step{Name: StepPoison, Make: cfg.poison},
		cfg.dedupStep(),
		Step{Name: StepRetry, Make: cfg.retry, Settings: cfg.retrySettings},
		Use(StepRecover, Recover),
		Step{Name: StepTimeout, Make: cfg.timeout, Settings: cfg.timeoutSettings},
		Step{Name: StepVersion, Make: cfg.version, Settings: cfg.versionSettings},
	)
}

// dedupStep returns a step whose middleware all handlers share, and with it one circuit breaker for the store.
func (c Config) dedupStep() Step {
	if err := c.Dedup.Validate(); err != nil {
		return Step{Name: StepDedup, Make: func(bus.Handler) (message.HandlerMiddleware, error) { return nil, err }}
	}
	shared := Dedup(c.Store, c.Dedup)
	return Step{Name: StepDedup, Settings: c.dedupSettings, Make: func(h bus.Handler) (message.HandlerMiddleware, error) {
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

// timeoutOf returns the time of one try of a handler, negative for no limit.
func (c Config) timeoutOf(h bus.Handler) time.Duration {
	if h.Timeout != 0 {
		return h.Timeout
	}
	return c.Timeout
}

func (c Config) timeout(h bus.Handler) (message.HandlerMiddleware, error) {
	if d := c.timeoutOf(h); d >= 0 {
		return Timeout(d), nil
	}
	return nil, nil
}

func (c Config) version(h bus.Handler) (message.HandlerMiddleware, error) {
	return Version(h.Types, c.HoldNewer, c.Upcasters...)
}
