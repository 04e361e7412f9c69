// Package prommetrics counts and measures what a bus does with Prometheus. It is the only package that imports
// Prometheus: services that don't use it don't link it.
//
// [New] makes an observer of the messages on their way, [Health] a collector of what the bus knows of its groups and its
// transport, [Groups] one of what waits in the message system, and [Outbox] one of what waits in the outbox. All names and
// labels are listed in docs/monitoring.md.
//
// A process with more than one bus registers each under a label of its own, by prometheus.WrapRegistererWith.
//
// The labels are bounded: topics and types beyond the first 500 are counted as "other". The topics of the handlers that
// run in this process, of their types and without wildcards, do not count among the 500.
package prommetrics

import (
	"context"
	"maps"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/middleware/internal/observed"
)

// Observer is a [bus.Observer] that counts into Prometheus.
type Observer struct {
	published *prometheus.CounterVec
	publish   *prometheus.HistogramVec
	delivered *prometheus.CounterVec
	process   *prometheus.HistogramVec
	lag       *prometheus.HistogramVec
	inFlight  *prometheus.GaugeVec
	paused    *prometheus.GaugeVec
	breakers  *prometheus.CounterVec
	events    *prometheus.CounterVec
	otel      *otelMetrics // nil without WithOTelNames

	// What is bound to its labels, so that the path of a message looks none up.
	publications sync.Map                              // topic → *publication
	groups       sync.Map                              // group → *group
	endings      atomic.Pointer[map[endingKey]*ending] // replaced when one is added

	topics observed.Topics
	mu     sync.Mutex // of replacing endings
}

type publication struct {
	ok   prometheus.Counter
	took prometheus.Observer
	otel otelSent
}

type group struct {
	inFlight prometheus.Gauge
	lag      prometheus.Observer
}

type endingKey struct {
	group, topic, eventType string
	outcome                 bus.Outcome
}

type ending struct {
	delivered prometheus.Counter
	event     prometheus.Counter
	process   prometheus.Observer
	otel      otelProcessed
}

var _ bus.Observer = (*Observer)(nil)

// Option changes what [New] registers.
type Option func(*Observer)

// New registers the metrics of messages on their way and returns their observer. It returns the registerer's error if
// they are registered already.
func New(registerer prometheus.Registerer, opts ...Option) (*Observer, error) {
	o := &Observer{
		published: counter("leat_published_messages_total", "Messages published, by result: ok, unrouted or error.", "topic", "result"),
		publish:   histogram("leat_publish_duration_seconds", "Time until the transport had published messages safe.", "topic"),
		delivered: counter("leat_deliveries_total", "Deliveries, by final outcome.", "group", "topic", "outcome"),
		process:   histogram("leat_process_duration_seconds", "Time of a delivery in the stack, without the waits between tries.", "group", "outcome"),
		lag:       histogram("leat_delivery_lag_seconds", "Time from an event, or from when it was due, to its delivery, unless it has failed before.", "group"),
		inFlight:  gauge("leat_in_flight", "Deliveries in the stack now.", "group"),
		paused:    gauge("leat_group_paused", "1 while the group is paused by its circuit breaker or an operator.", "group"),
		breakers:  counter("leat_breaker_changes_total", "Changes of circuit breakers, by new state: open, half-open, closed, or held by an operator.", "group", "state"),
		events:    counter("event_processed_total", "Deliveries of all groups, by event type and final outcome.", "type", "status"),
	}
	o.endings.Store(&map[endingKey]*ending{})
	for _, opt := range opts {
		opt(o)
	}
	all := []prometheus.Collector{o.published, o.publish, o.delivered, o.process, o.lag, o.inFlight, o.paused, o.breakers, o.events}
	for _, c := range append(all, o.otel.collectors()...) {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return o, nil
}

func counter(name, help string, labels ...string) *prometheus.CounterVec {
	return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
}

func gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
}

// histogram returns a histogram of seconds.
func histogram(name, help string, labels ...string) *prometheus.HistogramVec {
	buckets := []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}
	return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets}, labels)
}

// Published counts a publication.
func (o *Observer) Published(_ context.Context, p bus.Publication) {
	n := len(p.Messages)
	if p.Err != nil {
		topic := o.topics.Label(p.Topic)
		o.published.WithLabelValues(topic, "error").Add(float64(n))
		o.otel.sent(topic, "error").observe(n, p.Took)
		return
	}
	bound := o.publication(p.Topic)
	bound.otel.observe(n, p.Took)
	bound.ok.Add(float64(n - p.Unrouted))
	bound.took.Observe(p.Took.Seconds())
	if p.Unrouted > 0 {
		o.published.WithLabelValues(o.topics.Label(p.Topic), "unrouted").Add(float64(p.Unrouted))
	}
}

// publication returns what is bound to a topic. A topic with a label of its own is found by one look.
func (o *Observer) publication(topic string) *publication {
	if bound, ok := o.publications.Load(topic); ok {
		return bound.(*publication)
	}
	label := o.topics.Label(topic)
	return once(&o.publications, label, func() *publication {
		return &publication{o.published.WithLabelValues(label, "ok"), o.publish.WithLabelValues(label), o.otel.sent(label, "")}
	})
}

// BreakerChanged counts a change.
func (o *Observer) BreakerChanged(c bus.BreakerChange) {
	o.breakers.WithLabelValues(c.Group, string(c.State)).Inc()
	paused := 1.0
	if c.State == bus.BreakerClosed {
		paused = 0
	}
	o.paused.WithLabelValues(c.Group).Set(paused)
}

// Started counts a delivery in.
func (o *Observer) Started(ctx context.Context, d *bus.Delivery) context.Context {
	g := o.group(d)
	g.inFlight.Inc()
	if lag, known := observed.Lag(d); known {
		g.lag.Observe(lag.Seconds())
	}
	return ctx
}

// Finished counts a delivery out, with its outcome.
func (o *Observer) Finished(_ context.Context, d *bus.Delivery, end bus.Observation) {
	o.group(d).inFlight.Dec()
	eventType := d.Message.Metadata[driver.HeaderType]
	if eventType == "" {
		eventType = d.Topic
	}
	bound, ok := (*o.endings.Load())[endingKey{d.Group, d.Topic, eventType, end.Outcome}] // missing if a name has no label of its own
	if !ok {
		bound = o.ending(endingKey{d.Group, o.topics.Label(d.Topic), o.topics.Label(eventType), end.Outcome})
	}
	took := end.Took - end.Waited
	bound.delivered.Inc()
	bound.event.Inc()
	bound.process.Observe(took.Seconds())
	bound.otel.observe(took)
}

// ending returns what is bound to a key. A sync.Map would allocate at each look-up of such a key.
func (o *Observer) ending(key endingKey) *ending {
	o.mu.Lock()
	defer o.mu.Unlock()
	if bound, ok := (*o.endings.Load())[key]; ok {
		return bound
	}
	all := maps.Clone(*o.endings.Load())
	all[key] = &ending{
		delivered: o.delivered.WithLabelValues(key.group, key.topic, string(key.outcome)),
		event:     o.events.WithLabelValues(key.eventType, string(key.outcome)),
		process:   o.process.WithLabelValues(key.group, string(key.outcome)),
		otel:      o.otel.processed(key.group, key.topic, key.outcome),
	}
	o.endings.Store(&all)
	return all[key]
}

func (o *Observer) group(d *bus.Delivery) *group {
	return once(&o.groups, d.Group, func() *group {
		o.topics.Reserve(d.Handler())
		o.paused.WithLabelValues(d.Group) // 0 until the breaker says otherwise
		return &group{o.inFlight.WithLabelValues(d.Group), o.lag.WithLabelValues(d.Group)}
	})
}

// once returns what the map holds for the key, made at its first use.
func once[K comparable, V any](m *sync.Map, key K, bind func() V) V {
	if v, ok := m.Load(key); ok {
		return v.(V)
	}
	v := bind()
	m.Store(key, v)
	return v
}
