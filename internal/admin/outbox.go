package admin

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// WithOutbox returns a bus's transport with its outbox, if it has one, as an additional group. The outbox's poisoned messages
// are listed, replayed to the relay and dropped like any others.
func WithOutbox(t driver.Transport, outbox driver.Outbox) driver.Transport {
	o, ok := outbox.(poisoningOutbox)
	if !ok {
		return t
	}
	with := withOutbox{t, o}
	if inspector, ok := t.(driver.Inspector); ok {
		return &inspectedOutbox{with, inspector}
	}
	return &with
}

// A poisoningOutbox is an outbox with a poison queue, as transports/sql's is.
type poisoningOutbox interface {
	driver.Outbox
	PoisonQueue() driver.PoisonQueue
}

type withOutbox struct {
	driver.Transport
	outbox poisoningOutbox
}

func (t *withOutbox) PoisonQueue(group string) driver.PoisonQueue {
	if group == t.outbox.Group() {
		return t.outbox.PoisonQueue()
	}
	return t.Transport.PoisonQueue(group)
}

// FindGroup implements [driver.GroupFinder], if the transport does.
func (t *withOutbox) FindGroup(ctx context.Context, names ...string) (string, error) {
	if slices.Contains(names, t.outbox.Group()) {
		return t.outbox.Group(), nil
	}
	finder, ok := t.Transport.(driver.GroupFinder)
	if !ok {
		return "", nil
	}
	return finder.FindGroup(ctx, names...)
}

// RemoveGroup implements [driver.GroupRemover], if the transport does.
func (t *withOutbox) RemoveGroup(ctx context.Context, group string) error {
	remover, ok := t.Transport.(driver.GroupRemover)
	switch {
	case group == t.outbox.Group():
		return fmt.Errorf("%q is an outbox, and no group of a handler", group)
	case !ok:
		return fmt.Errorf("remove group %q: %w", group, driver.ErrUnsupported)
	}
	return remover.RemoveGroup(ctx, group)
}

type inspectedOutbox struct {
	withOutbox
	driver.Inspector
}

// Groups returns the transport's groups and the outbox, by name. If the transport uses the outbox's tables, it already returns the outbox.
func (t *inspectedOutbox) Groups(ctx context.Context) ([]driver.GroupInfo, error) {
	all, err := t.Inspector.Groups(ctx)
	if err != nil {
		return nil, err
	}
	at, there := slices.BinarySearchFunc(all, t.outbox.Group(), func(g driver.GroupInfo, name string) int { return strings.Compare(g.Name, name) })
	if there {
		return all, nil
	}
	g, err := outboxGroup(ctx, t.outbox)
	return slices.Insert(all, at, g), err
}

// Diagnose adds findings about the outbox.
func (t *inspectedOutbox) Diagnose(ctx context.Context) []driver.Finding {
	findings := t.Inspector.Diagnose(ctx)
	g, err := outboxGroup(ctx, t.outbox)
	if err != nil {
		return append(findings, driver.Finding{Check: "outbox " + t.outbox.Group(), Err: err, Fix: "see to the outbox's database"})
	}
	return append(findings, diagnoseOutbox(g))
}

func outboxGroup(ctx context.Context, o poisoningOutbox) (g driver.GroupInfo, err error) {
	stats, err := o.Stats(ctx)
	if err != nil {
		return g, err
	}
	g = driver.GroupInfo{
		Name: o.Group(), Waiting: stats.Pending,
		Delayed: driver.Unknown, Parked: driver.Unknown, InFlight: driver.Unknown, Consumers: driver.Unknown,
	}
	if stats.Pending > 0 {
		g.Oldest = time.Now().Add(-stats.OldestAge)
	}
	g.Poisoned, err = o.PoisonQueue().Len(ctx)
	return g, err
}

// outboxSuffix is the end of an outbox's name, <service>.outbox.
const outboxSuffix = ".outbox"

// IsOutbox reports whether a group of a database is an outbox: only InTx publishes to it.
func IsOutbox(g driver.GroupInfo) bool {
	return strings.HasSuffix(g.Name, outboxSuffix) && len(g.Topics) == 0
}

// HasOutboxes reports whether a transport has outboxes among its groups: in its tables, or by [WithOutbox].
func HasOutboxes(t driver.Transport) bool {
	switch t := t.(type) {
	case *withOutbox, *inspectedOutbox:
		return true
	default:
		_, tables := t.(InboxDoctor)
		return tables
	}
}

// An InboxDoctor is a transport whose tables may have an outbox and an inbox.
type InboxDoctor interface {
	DiagnoseInbox(ctx context.Context) []driver.Finding
}

// outboxPatience is how long a committed event may wait before it counts as stuck. Relays need
// milliseconds.
const outboxPatience = 5 * time.Minute

// diagnoseOutbox checks whether an outbox's events are relayed.
func diagnoseOutbox(g driver.GroupInfo) driver.Finding {
	pending := g.Waiting + max(g.Delayed, 0) + max(g.InFlight, 0) + max(g.Parked, 0)
	f := driver.Finding{
		Check: "outbox " + g.Name,
		Text:  fmt.Sprintf("%d pending, %s relaying, %s set aside", pending, Count(g.Consumers), Count(g.Poisoned)),
	}
	var age time.Duration
	if pending > 0 && !g.Oldest.IsZero() {
		age = time.Since(g.Oldest).Round(time.Second)
		f.Text += fmt.Sprintf(", the oldest for %s", age)
	}
	switch {
	case pending > 0 && g.Consumers == 0:
		f.Err = fmt.Errorf("%d pending, the oldest for %s, and no relay runs", pending, age)
		f.Fix = "start the service whose outbox this is; any of its instances relays"
	case age > outboxPatience:
		f.Err = fmt.Errorf("%d pending, the oldest for %s", pending, age)
		f.Fix = "see whether the transport is away or refuses them: it is in the service's health and log"
	}
	return f
}
