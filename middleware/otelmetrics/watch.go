package otelmetrics

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/middleware/internal/groupcounts"
)

// outboxTimeout bounds what a collection waits for the outbox's database.
const outboxTimeout = 5 * time.Second

// Watch observes at each collection how the groups of the bus and its transport are, what waits in the message system for the
// groups, and what waits in the outbox, if there is one; nil means the global provider. The message system is asked at most
// every 15 s, and a collection waits 50 ms for its answer, and else gets the last one. What can't be counted is missing.
//
// Watch returns the provider's error if that refuses an instrument. The instruments are observed as long as the provider
// collects.
func Watch(provider metric.MeterProvider, b *bus.Bus) error {
	w := &watch{bus: b}
	w.counter, _ = groupcounts.New(b) // a transport that counts nothing has no such metrics
	maker := &maker{meter: meter(provider)}
	w.messages = maker.gauge("leat.group.messages", "{message}", "Messages of a group, by what they wait for.")
	w.parkedKeys = maker.gauge("leat.group.parked_keys", "{key}", "Keys that a poisoned message holds back.")
	w.consumers = maker.gauge("leat.group.consumers", "{consumer}", "Processes or connections that consume.")
	w.oldest = maker.seconds("leat.group.oldest", "How long the oldest message has been in the group.")
	w.degraded = maker.gauge("leat.group.degraded", "1", "1 while a part of the group does not work.")
	w.retries = maker.counter("leat.retries", "{try}", "Tries in process that followed a failed one, without a new delivery.")
	w.panics = maker.counter("leat.panics", "{panic}", "Panics of handlers and of steps.")
	w.dedupFaults = maker.counter("leat.dedup.faults", "{call}", "Calls of the dedup store that failed.")
	w.connected = maker.gauge("leat.transport.connected", "1", "1 while the message system can be reached.")
	w.blocked = maker.gauge("leat.transport.blocked", "1", "1 while the message system accepts no messages.")
	w.reconnects = maker.counter("leat.transport.reconnects", "{connection}", "Connections that were lost and made again.")
	w.unroutable = maker.counter("leat.transport.unroutable", "{message}", "Messages published that no group wanted.")
	w.pending = maker.gauge("leat.outbox.messages", "{message}", "Committed messages that are not relayed yet.")
	w.pendingAge = maker.seconds("leat.outbox.oldest", "How long the first of them has been waiting.")
	if err := errors.Join(maker.errs...); err != nil {
		return fmt.Errorf("otelmetrics: %w", err)
	}
	if _, err := maker.meter.RegisterCallback(w.observe, maker.all...); err != nil {
		return fmt.Errorf("otelmetrics: %w", err)
	}
	return nil
}

// maker makes instruments and gathers their errors.
type maker struct {
	meter metric.Meter
	all   []metric.Observable
	errs  []error
}

func (m *maker) gauge(name, unit, what string) metric.Int64Observable {
	g, err := m.meter.Int64ObservableGauge(name, metric.WithUnit(unit), metric.WithDescription(what))
	m.all, m.errs = append(m.all, g), append(m.errs, err)
	return g
}

func (m *maker) counter(name, unit, what string) metric.Int64Observable {
	c, err := m.meter.Int64ObservableCounter(name, metric.WithUnit(unit), metric.WithDescription(what))
	m.all, m.errs = append(m.all, c), append(m.errs, err)
	return c
}

func (m *maker) seconds(name, what string) metric.Float64Observable {
	g, err := m.meter.Float64ObservableGauge(name, metric.WithUnit("s"), metric.WithDescription(what))
	m.all, m.errs = append(m.all, g), append(m.errs, err)
	return g
}

// watch observes a bus.
type watch struct {
	bus     *bus.Bus
	counter *groupcounts.Counter // nil if the transport counts nothing

	messages, parkedKeys, consumers, degraded metric.Int64Observable
	retries, panics, dedupFaults              metric.Int64Observable
	connected, blocked                        metric.Int64Observable
	reconnects, unroutable                    metric.Int64Observable
	pending                                   metric.Int64Observable
	oldest, pendingAge                        metric.Float64Observable
}

func (w *watch) observe(ctx context.Context, o metric.Observer) error {
	w.observeGroups(o)
	for _, h := range w.bus.Health() {
		for part := range h.Degraded {
			o.ObserveInt64(w.degraded, 1, setOf(groupName(h.Group), PartKey.String(part)))
		}
	}
	for handler, s := range w.bus.Stats().Groups {
		of := setOf(groupName(w.bus.GroupName(handler)))
		o.ObserveInt64(w.retries, int64(s.Retries), of)         //nolint:gosec // it counts from 0
		o.ObserveInt64(w.panics, int64(s.Panics), of)           //nolint:gosec // it counts from 0
		o.ObserveInt64(w.dedupFaults, int64(s.DedupFaults), of) //nolint:gosec // it counts from 0
	}
	if h, ok := w.bus.TransportHealth(); ok {
		of := setOf(TransportKey.String(h.Transport))
		o.ObserveInt64(w.connected, oneIf(h.Connected), of)
		o.ObserveInt64(w.blocked, oneIf(h.Blocked != ""), of)
		o.ObserveInt64(w.reconnects, int64(h.Reconnects), of)
		o.ObserveInt64(w.unroutable, h.Unroutable, of)
	}
	ctx, cancel := context.WithTimeout(ctx, outboxTimeout)
	defer cancel()
	if stats, err := w.bus.OutboxStats(ctx); err == nil {
		o.ObserveInt64(w.pending, int64(stats.Pending))
		o.ObserveFloat64(w.pendingAge, stats.OldestAge.Seconds())
	}
	return nil
}

// observeGroups observes what waits in the message system.
func (w *watch) observeGroups(o metric.Observer) {
	if w.counter == nil {
		return
	}
	for _, g := range w.counter.Counts().Groups {
		for state, n := range map[string]int{
			"waiting": g.Waiting, "delayed": g.Delayed, "parked": g.Parked, "in_flight": g.InFlight, "poisoned": g.Poisoned,
		} {
			if n != driver.Unknown {
				o.ObserveInt64(w.messages, int64(n), setOf(groupName(g.Name), StateKey.String(state)))
			}
		}
		of := setOf(groupName(g.Name))
		if g.Consumers != driver.Unknown {
			o.ObserveInt64(w.consumers, int64(g.Consumers), of)
		}
		if keys, known := groupcounts.ParkedKeys(g); known {
			o.ObserveInt64(w.parkedKeys, int64(keys), of)
		}
		if age, known := groupcounts.OldestAge(g); known {
			o.ObserveFloat64(w.oldest, age, of)
		}
	}
}

func groupName(name string) attribute.KeyValue { return semconv.MessagingConsumerGroupName(name) }

func oneIf(condition bool) int64 {
	if condition {
		return 1
	}
	return 0
}
