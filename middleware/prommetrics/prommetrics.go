// Package prommetrics observes a bus with Prometheus metrics. It is the only package that imports
// Prometheus: services that don't use it don't link it.
//
//	metric                               labels                 what
//	leat_published_messages_total        topic, result          messages published: ok, unrouted or error
//	leat_publish_duration_seconds        topic                  until the transport had them safe
//	leat_deliveries_total                group, topic, outcome  deliveries by final outcome
//	leat_process_duration_seconds        group, outcome         time in the stack, retries in process included
//	leat_delivery_lag_seconds            group                  from the event's time to its delivery, first attempts
//	leat_in_flight                       group                  deliveries in the stack now
//	leat_group_paused                    group                  1 while the group's circuit breaker is open or half-open
//	leat_breaker_changes_total           group, state           changes of circuit breakers: open, half-open or closed
//	leat_group_degraded                  group, part            1 while a part of the group, or of the outbox, does not work
//	leat_transport_connected             transport              1 while the message system can be reached
//	leat_transport_blocked               transport              1 while it accepts no messages
//	leat_transport_reconnects_total      transport              connections that were lost and made again
//	leat_transport_unroutable_total      transport              messages published that no group wanted
//	leat_outbox_pending_messages                                committed and not relayed yet; see [Outbox]
//	leat_outbox_oldest_seconds                                  how long the first of them has been waiting
//
// Those of groups that are degraded and of the transport are [Health]'s. A process with more than one bus registers each under
// a label of its own, by prometheus.WrapRegistererWith.
//
// The labels are bounded: topics beyond the first 500 are counted as "other". The topics of the handlers that run in this
// process, of their types and without wildcards, do not count among the 500.
package prommetrics

import (
	"context"
	"sync"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// maxTopics bounds the label "topic", whose values may come from foreign input.
const maxTopics = 500

const otherTopics = "other"

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

	// What is bound to its labels, so that the path of a message looks none up.
	publications sync.Map // topic → publication
	groups       sync.Map // group → group
	endings      sync.Map // endingKey → ending

	topics sync.Map // topic → its label
	mu     sync.Mutex
	known  int // how many topics have a label of their own
}

type publication struct {
	ok   prometheus.Counter
	took prometheus.Observer
}

type group struct {
	inFlight prometheus.Gauge
	lag      prometheus.Observer
}

type endingKey struct {
	group, topic string
	outcome      bus.Outcome
}

type ending struct {
	delivered prometheus.Counter
	process   prometheus.Observer
}

var _ bus.Observer = (*Observer)(nil)

// New registers the metrics. Registering twice is an error of the registerer's.
func New(registerer prometheus.Registerer) (*Observer, error) {
	buckets := []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30}
	o := &Observer{
		published: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "leat_published_messages_total", Help: "Messages published, by result: ok, unrouted or error.",
		}, []string{"topic", "result"}),
		publish: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "leat_publish_duration_seconds", Help: "Time until the transport had published messages safe.", Buckets: buckets,
		}, []string{"topic"}),
		delivered: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "leat_deliveries_total", Help: "Deliveries, by final outcome.",
		}, []string{"group", "topic", "outcome"}),
		process: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "leat_process_duration_seconds", Help: "Time of a delivery in the stack, retries in process included.", Buckets: buckets,
		}, []string{"group", "outcome"}),
		lag: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "leat_delivery_lag_seconds", Help: "Time from an event, or from when it was due, to its first delivery.", Buckets: buckets,
		}, []string{"group"}),
		inFlight: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "leat_in_flight", Help: "Deliveries in the stack now.",
		}, []string{"group"}),
		paused: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "leat_group_paused", Help: "1 while the group's circuit breaker is open or half-open.",
		}, []string{"group"}),
		breakers: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "leat_breaker_changes_total", Help: "Changes of circuit breakers, by new state: open, half-open or closed.",
		}, []string{"group", "state"}),
	}
	for _, c := range []prometheus.Collector{o.published, o.publish, o.delivered, o.process, o.lag, o.inFlight, o.paused, o.breakers} {
		if err := registerer.Register(c); err != nil {
			return nil, err
		}
	}
	return o, nil
}

// Published counts a publication.
func (o *Observer) Published(_ context.Context, p bus.Publication) {
	topic := o.label(p.Topic)
	n := len(p.Messages)
	if p.Err != nil {
		o.published.WithLabelValues(topic, "error").Add(float64(n))
		return
	}
	bound := once(&o.publications, topic, func() publication {
		return publication{o.published.WithLabelValues(topic, "ok"), o.publish.WithLabelValues(topic)}
	})
	bound.ok.Add(float64(n - p.Unrouted))
	bound.took.Observe(p.Took.Seconds())
	if p.Unrouted > 0 {
		o.published.WithLabelValues(topic, "unrouted").Add(float64(p.Unrouted))
	}
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
	if d.Attempt == 1 && d.FailedSince.IsZero() {
		if t := driver.MessageTime(d.Message); !t.IsZero() {
			if due := driver.DeliverAt(d.Message); due.After(t) {
				t = due
			}
			g.lag.Observe(max(d.Started().Sub(t).Seconds(), 0))
		}
	}
	return ctx
}

// Finished counts a delivery out, with its outcome.
func (o *Observer) Finished(_ context.Context, d *bus.Delivery, end bus.Observation) {
	o.group(d).inFlight.Dec()
	key := endingKey{d.Group, o.label(d.Topic), end.Outcome}
	bound := once(&o.endings, key, func() ending {
		return ending{
			delivered: o.delivered.WithLabelValues(key.group, key.topic, string(key.outcome)),
			process:   o.process.WithLabelValues(key.group, string(key.outcome)),
		}
	})
	bound.delivered.Inc()
	bound.process.Observe(end.Took.Seconds())
}

func (o *Observer) group(d *bus.Delivery) group {
	return once(&o.groups, d.Group, func() group {
		o.reserve(d.Handler())
		return group{o.inFlight.WithLabelValues(d.Group), o.lag.WithLabelValues(d.Group)}
	})
}

// reserve gives the topics of a handler labels of their own, so that a flood of foreign topics does not take them.
func (o *Observer) reserve(h bus.Handler) {
	for _, t := range h.Types {
		o.topics.Store(t.String(), t.String())
	}
	for _, topic := range h.Topics {
		if !driver.IsPattern(topic) {
			o.topics.Store(topic, topic)
		}
	}
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

// maxLabelBytes is the longest topic that becomes a label value: the longest routing key of AMQP 0-9-1.
const maxLabelBytes = 255

// label returns the topic, or "other" if there are too many, or if a foreign producer's topic is too long
// or no UTF-8, which Prometheus refuses with a panic.
func (o *Observer) label(topic string) string {
	if len(topic) > maxLabelBytes || !utf8.ValidString(topic) {
		return otherTopics
	}
	if label, ok := o.topics.Load(topic); ok {
		return label.(string)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.topics.Load(topic); ok {
		return topic
	}
	if o.known >= maxTopics {
		return otherTopics
	}
	o.known++
	o.topics.Store(topic, topic)
	return topic
}

// Health registers a collector that asks the bus at every scrape how its groups and its transport are. A
// transport that does not tell has no metrics.
func Health(registerer prometheus.Registerer, b *bus.Bus) error {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return registerer.Register(healthCollector{
		bus:        b,
		degraded:   desc("leat_group_degraded", "1 while a part of the group does not work.", "group", "part"),
		connected:  desc("leat_transport_connected", "1 while the message system can be reached.", "transport"),
		blocked:    desc("leat_transport_blocked", "1 while the message system accepts no messages.", "transport"),
		reconnects: desc("leat_transport_reconnects_total", "Connections that were lost and made again.", "transport"),
		unroutable: desc("leat_transport_unroutable_total", "Messages published that no group wanted.", "transport"),
	})
}

type healthCollector struct {
	bus                                                  *bus.Bus
	degraded, connected, blocked, reconnects, unroutable *prometheus.Desc
}

// Describe says which metrics there are.
func (c healthCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{c.degraded, c.connected, c.blocked, c.reconnects, c.unroutable} {
		ch <- desc
	}
}

// Collect asks the bus.
func (c healthCollector) Collect(ch chan<- prometheus.Metric) {
	for _, h := range c.bus.Health() {
		for part := range h.Degraded {
			ch <- prometheus.MustNewConstMetric(c.degraded, prometheus.GaugeValue, 1, h.Group, part)
		}
	}
	h, ok := c.bus.TransportHealth()
	if !ok {
		return
	}
	tell := func(desc *prometheus.Desc, kind prometheus.ValueType, value float64) {
		ch <- prometheus.MustNewConstMetric(desc, kind, value, h.Transport)
	}
	tell(c.connected, prometheus.GaugeValue, oneIf(h.Connected))
	tell(c.blocked, prometheus.GaugeValue, oneIf(h.Blocked != ""))
	tell(c.reconnects, prometheus.CounterValue, float64(h.Reconnects))
	tell(c.unroutable, prometheus.CounterValue, float64(h.Unroutable))
}

func oneIf(condition bool) float64 {
	if condition {
		return 1
	}
	return 0
}
