package middleware

import (
	"cmp"
	"fmt"
	"log/slog"
	"time"

	"github.com/leatbus/leat/bus"
)

// DedupConfig configures [Dedup]. The zero value is the default.
type DedupConfig struct {
	// Lease is how long a message stays claimed after its process has died. While the handler runs it is
	// renewed every third of that time, so it may be shorter than the handler. 0 means 30 s.
	Lease time.Duration
	// Keep is the window in which a second message with the same id is a duplicate. 0 means 24 h.
	Keep time.Duration
	// Mode is the mode of handlers that set none; the default is [bus.DedupOpen].
	Mode bus.DedupMode
	// Budget is how long a message may wait for one call of the store. 0 means 100 ms.
	Budget time.Duration
	// Namespace is the prefix of every key, for a store that is shared with others. "" means "leat:dedup:".
	Namespace string
	// OnFault is called for each fault, for metrics. It is called concurrently and synchronously, so it must be quick. It may be nil.
	OnFault func(DedupFault)
	// Logger logs when the store can't be reached, when it can be reached again, and each lost claim. nil means slog.Default().
	Logger *slog.Logger
}

// Defaults of [DedupConfig].
const (
	DefaultDedupLease     = 30 * time.Second
	DefaultDedupKeep      = 24 * time.Hour
	DefaultDedupBudget    = 100 * time.Millisecond
	DefaultDedupNamespace = "leat:dedup:"
)

// DedupFault describes a failure of the dedup step. No message is lost by it.
type DedupFault struct {
	Group string
	Kind  DedupFaultKind
	Err   error
}

// DedupFaultKind is a class of [DedupFault], suitable for a metric's label.
type DedupFaultKind string

// Kinds of faults.
const (
	// DedupUnavailable means that the store could not be reached. In open mode the message is handled, in closed mode it is
	// redelivered later.
	DedupUnavailable DedupFaultKind = "unavailable"
	// DedupUnmarked means that a handled message could not be marked as done: it is acked, but a duplicate may be handled after the
	// lease has expired.
	DedupUnmarked DedupFaultKind = "unmarked"
	// DedupLost means that another caller has got the claim while the handler was running, because the lease could not be renewed in
	// time: the message is handled twice.
	DedupLost DedupFaultKind = "lost"
)

// Validate returns an error if the configuration is invalid.
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
	c.Lease = cmp.Or(c.Lease, DefaultDedupLease)
	c.Keep = cmp.Or(c.Keep, DefaultDedupKeep)
	if c.Mode == bus.DedupDefault {
		c.Mode = bus.DedupOpen
	}
	c.Budget = cmp.Or(c.Budget, DefaultDedupBudget)
	c.Namespace = cmp.Or(c.Namespace, DefaultDedupNamespace)
	if c.OnFault == nil {
		c.OnFault = func(DedupFault) {}
	}
	c.Logger = cmp.Or(c.Logger, slog.Default())
	return c
}
