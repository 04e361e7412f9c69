// Package otelmetrics counts and measures what a bus does with the metric API of OpenTelemetry, for services that push metrics
// to a collector. Services that don't use it don't link it; those that Prometheus scrapes use prommetrics.
//
// [New] makes an observer of the messages on their way, with the instruments of the semantic conventions for messaging, version
// 1.43.0, and [Watch] observes what waits in the message system and how the groups are. All instruments and attributes are
// listed in docs/monitoring.md.
//
// The attributes are bounded: topics beyond the first 500 are counted as "other". The topics of the handlers that run in this
// process, of their types and without wildcards, do not count among the 500.
package otelmetrics

import (
	"context"
	"errors"
	"sync"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/semconv/v1.43.0/messagingconv"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/middleware/internal/observed"
)

// scopeName is the instrumentation scope of the metrics.
const scopeName = "github.com/leatbus/leat/middleware/otelmetrics"

// Attributes beside those of the conventions.
const (
	OutcomeKey   = attribute.Key("leat.outcome")   // how a delivery ended
	StateKey     = attribute.Key("leat.state")     // what a message waits for
	PartKey      = attribute.Key("leat.part")      // the part of a group that does not work
	TransportKey = attribute.Key("leat.transport") // the transport of the bus
)

// publishError is the error.type of messages that were not published: the types of errors are not bounded.
const publishError = "error"

// Observer is a [bus.Observer] that counts with OpenTelemetry. It may be used concurrently.
type Observer struct {
	system         attribute.KeyValue
	sent, consumed metric.Int64Counter
	operation      metric.Float64Histogram
	process, lag   metric.Float64Histogram
	inFlight       metric.Int64UpDownCounter
	topics         observed.Topics

	// Sets of attributes, so that the path of a message makes none. The keys are bounded, as the attributes are.
	groups       sync.Map // group → *options
	publications sync.Map // publicationKey → *options
	endings      sync.Map // endingKey → *options
}

type publicationKey struct {
	topic  string
	failed bool
}

type endingKey struct {
	group, topic string
	outcome      bus.Outcome
}

// options are the attributes of a measurement.
type options struct {
	add    []metric.AddOption
	record []metric.RecordOption
}

var _ bus.Observer = (*Observer)(nil)

// Option changes what an [Observer] measures.
type Option func(*Observer)

// WithSystem sets the attribute messaging.system, such as "rabbitmq"; "leat" without it.
func WithSystem(name string) Option {
	return func(o *Observer) { o.system = semconv.MessagingSystemKey.String(name) }
}

// New returns an observer that measures with the provider; nil means the global one. It returns the error of the provider if
// that refuses an instrument.
func New(provider metric.MeterProvider, opts ...Option) (*Observer, error) {
	o := &Observer{system: semconv.MessagingSystemKey.String("leat")}
	for _, opt := range opts {
		opt(o)
	}
	m := meter(provider)
	seconds := metric.WithExplicitBucketBoundaries(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
	sent, err1 := messagingconv.NewClientSentMessages(m)
	consumed, err2 := messagingconv.NewClientConsumedMessages(m)
	operation, err3 := messagingconv.NewClientOperationDuration(m, seconds)
	process, err4 := messagingconv.NewProcessDuration(m, seconds)
	lag, err5 := m.Float64Histogram("leat.delivery.lag", seconds, metric.WithUnit("s"),
		metric.WithDescription("Time from an event, or from when it was due, to its delivery, unless it has failed before."))
	inFlight, err6 := m.Int64UpDownCounter("leat.deliveries.in_flight", metric.WithUnit("{message}"), metric.WithDescription("Deliveries in the stack now."))
	o.sent, o.consumed, o.operation, o.process, o.lag, o.inFlight = sent.Inst(), consumed.Inst(), operation.Inst(), process.Inst(), lag, inFlight
	return o, errors.Join(err1, err2, err3, err4, err5, err6)
}

func meter(provider metric.MeterProvider) metric.Meter {
	if provider == nil {
		provider = otel.GetMeterProvider()
	}
	return provider.Meter(scopeName, metric.WithSchemaURL(semconv.SchemaURL))
}

// Published counts a publication.
func (o *Observer) Published(ctx context.Context, p bus.Publication) {
	bound := o.publication(publicationKey{o.topics.Label(p.Topic), p.Err != nil})
	o.sent.Add(ctx, int64(len(p.Messages)), bound.add...)
	o.operation.Record(ctx, p.Took.Seconds(), bound.record...)
}

func (o *Observer) publication(key publicationKey) *options {
	return once(&o.publications, key, func() *options {
		attributes := []attribute.KeyValue{o.system, semconv.MessagingOperationName("send"), semconv.MessagingDestinationName(key.topic)}
		if key.failed {
			attributes = append(attributes, semconv.ErrorTypeKey.String(publishError))
		}
		return &options{
			add:    []metric.AddOption{setOf(attributes...)},
			record: []metric.RecordOption{setOf(append(attributes, semconv.MessagingOperationTypeSend)...)},
		}
	})
}

// BreakerChanged does nothing: [Watch] shows the parts of a group that do not work.
func (o *Observer) BreakerChanged(bus.BreakerChange) {}

// Started counts a delivery in.
func (o *Observer) Started(ctx context.Context, d *bus.Delivery) context.Context {
	g := o.group(d)
	o.inFlight.Add(ctx, 1, g.add...)
	if lag, known := observed.Lag(d); known {
		o.lag.Record(ctx, lag.Seconds(), g.record...)
	}
	return ctx
}

// Finished counts a delivery out, with its outcome.
func (o *Observer) Finished(ctx context.Context, d *bus.Delivery, end bus.Observation) {
	o.inFlight.Add(ctx, -1, o.group(d).add...)
	bound := o.ending(endingKey{d.Group, o.topics.Label(d.Topic), end.Outcome})
	o.consumed.Add(ctx, 1, bound.add...)
	o.process.Record(ctx, (end.Took - end.Waited).Seconds(), bound.record...)
}

func (o *Observer) group(d *bus.Delivery) *options {
	return once(&o.groups, d.Group, func() *options {
		o.topics.Reserve(d.Handler())
		set := setOf(o.system, semconv.MessagingConsumerGroupName(d.Group))
		return &options{[]metric.AddOption{set}, []metric.RecordOption{set}}
	})
}

func (o *Observer) ending(key endingKey) *options {
	return once(&o.endings, key, func() *options {
		attributes := []attribute.KeyValue{
			o.system, semconv.MessagingOperationName("process"), semconv.MessagingConsumerGroupName(key.group),
			semconv.MessagingDestinationName(key.topic), OutcomeKey.String(string(key.outcome)),
		}
		if key.outcome != bus.Handled && key.outcome != bus.Duplicate {
			attributes = append(attributes, semconv.ErrorTypeKey.String(string(key.outcome))) // bounded, which the types of errors are not
		}
		set := setOf(attributes...)
		return &options{[]metric.AddOption{set}, []metric.RecordOption{set}}
	})
}

func setOf(attributes ...attribute.KeyValue) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(attributes...))
}

// once returns what the map holds for the key, made at its first use.
func once[K comparable, V any](m *sync.Map, key K, bind func() V) V {
	if v, ok := m.Load(key); ok {
		return v.(V)
	}
	v, _ := m.LoadOrStore(key, bind())
	return v.(V)
}
