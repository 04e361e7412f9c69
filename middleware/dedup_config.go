package middleware

import (
	"fmt"
	"log/slog"
	"time"

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
