// Package oteltrace traces messages with OpenTelemetry. Services that don't use it, or otelmetrics, don't link OpenTelemetry.
//
// A [Tracer] is an observer of the bus. It makes these spans, named and described by OpenTelemetry's semantic conventions
// for messaging, version 1.43.0:
//
//	span            kind      when                                                   parent
//	send {topic}    PRODUCER  Publish, until the transport or the outbox has it      the span in the context
//	send {topic}    CLIENT    an outbox passes on what was committed                 the PRODUCER span
//	process {topic} CONSUMER  a delivery goes through the stack, its tries included  the PRODUCER span
//
// The context of the PRODUCER span travels with the message, in the headers of W3C Trace Context, through the outbox and
// every transport. A redelivery is one more CONSUMER span of the same trace; with [WithLinks] each delivery begins a trace
// of its own and links to the message's. What stands for several messages — a relayed bundle, the function of
// handlers.Batch — links to all of them.
//
// A message whose trace is not sampled gets no spans; its context is passed on.
package oteltrace

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"sync"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// scopeName is the instrumentation scope of the spans.
const scopeName = "github.com/leatbus/leat/middleware/oteltrace"

// Attributes beside those of the conventions.
const (
	OutcomeKey = attribute.Key("leat.outcome") // how a delivery ended
	AttemptKey = attribute.Key("leat.attempt") // the number of the delivery to the group, from 1
	TryKey     = attribute.Key("leat.try")     // the number of the last try over all deliveries, from 1
)

// maxLinks bounds the links of one span. The SDK drops what is more than 128 by itself.
const maxLinks = 128

// Tracer is a [bus.Observer] that makes spans. It may be used concurrently.
type Tracer struct {
	tracer  trace.Tracer
	system  attribute.KeyValue
	links   bool
	baggage bool

	// The options that spans of a kind begin with: sampling looks at their attributes.
	starts sync.Map     // startKey → []trace.SpanStartOption
	known  atomic.Int64 // how many there are
}

var (
	_ bus.PublishObserver = (*Tracer)(nil)
	_ bus.BatchObserver   = (*Tracer)(nil)
)

// Option changes how a [Tracer] works.
type Option func(*Tracer)

// WithSystem sets the attribute messaging.system, such as "rabbitmq"; "leat" without it.
func WithSystem(name string) Option {
	return func(t *Tracer) { t.system = semconv.MessagingSystemKey.String(name) }
}

// WithLinks lets each delivery begin a trace of its own, with a link to the message's, in place of continuing it.
func WithLinks() Option { return func(t *Tracer) { t.links = true } }

// WithBaggage puts the W3C baggage of a publish's context into the message, and that of a message into its handler's
// context. Without it, handlers pass on the baggage of the message that they handle, and don't see it.
func WithBaggage() Option { return func(t *Tracer) { t.baggage = true } }

// New returns a tracer that makes spans with the provider; nil means the global one.
func New(provider trace.TracerProvider, opts ...Option) *Tracer {
	if provider == nil {
		provider = otel.GetTracerProvider()
	}
	t := &Tracer{
		tracer: provider.Tracer(scopeName, trace.WithSchemaURL(semconv.SchemaURL)),
		system: semconv.MessagingSystemKey.String("leat"),
	}
	for _, opt := range opts {
		opt(t)
	}
	return t
}

// Publishing begins the span of a publish and puts its context into the messages.
func (t *Tracer) Publishing(ctx context.Context, topic string, msgs []*message.Message, relayed bool) (context.Context, func(error)) {
	parent := trace.SpanContextFromContext(ctx)
	if relayed {
		return t.relaying(ctx, topic, msgs)
	}
	handled := bus.DeliveryFrom(ctx)
	if !parent.IsValid() && handled != nil { // the stack has no observe step
		if c := extract(handled.Message); c.IsValid() {
			ctx, parent = trace.ContextWithRemoteSpanContext(ctx, c), c
		}
	}
	if t.baggage {
		for _, msg := range msgs {
			propagation.Baggage{}.Inject(ctx, carrier(msg))
		}
	}
	if parent.IsValid() && !parent.IsSampled() {
		inject(parent, handled, msgs)
		return ctx, nil
	}
	kind, options := trace.SpanKindProducer, []trace.SpanStartOption(nil)
	if links := foreign(handled, msgs); len(links) > 0 { // it is not what creates the messages
		kind, options = trace.SpanKindClient, []trace.SpanStartOption{trace.WithLinks(links...)}
	}
	inner, span := t.start(ctx, startKey{kind: kind, topic: topic}, options)
	describeSent(span, msgs)
	inject(span.SpanContext(), handled, msgs)
	if !span.IsRecording() {
		return inner, nil
	}
	return inner, ended(span)
}

// relaying begins the span of messages that come out of an outbox with contexts of their own.
func (t *Tracer) relaying(ctx context.Context, topic string, msgs []*message.Message) (context.Context, func(error)) {
	var options []trace.SpanStartOption
	links, unsampled := contexts(msgs)
	switch {
	case unsampled == len(msgs) && len(msgs) > 0:
		return ctx, nil
	case len(msgs) == 1 && len(links) == 1:
		ctx = trace.ContextWithRemoteSpanContext(ctx, links[0].SpanContext)
	default:
		options = []trace.SpanStartOption{trace.WithLinks(links...), trace.WithNewRoot()}
	}
	inner, span := t.start(ctx, startKey{kind: trace.SpanKindClient, topic: topic}, options)
	if !span.IsRecording() {
		return inner, nil
	}
	describeSent(span, msgs)
	return inner, ended(span)
}

// describeSent sets the attributes of a send span that belong to its messages.
func describeSent(span trace.Span, msgs []*message.Message) {
	switch {
	case !span.IsRecording():
	case len(msgs) == 1:
		span.SetAttributes(identity(msgs[0])...)
	default:
		span.SetAttributes(semconv.MessagingBatchMessageCount(len(msgs)))
	}
}

func ended(span trace.Span) func(error) {
	return func(err error) {
		if err != nil && !errors.Is(err, bus.ErrUnroutable) { // what nobody wants is safe
			failed(span, err)
		}
		span.End()
	}
}

// Published does nothing.
func (*Tracer) Published(context.Context, bus.Publication) {}

// BreakerChanged does nothing.
func (*Tracer) BreakerChanged(bus.BreakerChange) {}

// Started begins the span of a delivery.
func (t *Tracer) Started(ctx context.Context, d *bus.Delivery) context.Context {
	if t.baggage {
		ctx = propagation.Baggage{}.Extract(ctx, carrier(d.Message))
	}
	created := extract(d.Message)
	// Under a stock Watermill router another middleware may have begun a span. A bus's contexts are derived from that of
	// Run, whose span has nothing to do with the message.
	ambient := d.Settler == nil && trace.SpanContextFromContext(ctx).IsValid()
	if created.IsValid() && !created.IsSampled() && !ambient {
		return trace.ContextWithRemoteSpanContext(ctx, created)
	}
	var options []trace.SpanStartOption
	switch {
	case !created.IsValid():
	case ambient || t.links:
		options = append(options, trace.WithLinks(trace.Link{SpanContext: created}))
	default:
		ctx = trace.ContextWithRemoteSpanContext(ctx, created)
	}
	if !ambient && (t.links || !created.IsValid()) {
		options = append(options, trace.WithNewRoot())
	}
	inner, span := t.start(ctx, startKey{kind: trace.SpanKindConsumer, topic: d.Topic, group: d.Group}, options)
	if !span.IsRecording() {
		return inner
	}
	span.SetAttributes(identity(d.Message)...)
	span.SetAttributes(AttemptKey.Int(d.Attempt))
	return &processing{inner, t, d, span}
}

// Finished ends the span of a delivery.
func (t *Tracer) Finished(ctx context.Context, d *bus.Delivery, o bus.Observation) {
	p, _ := ctx.Value(processingKey{t}).(*processing)
	if p == nil || p.delivery != d { // not recorded
		return
	}
	span := p.span
	span.SetAttributes(OutcomeKey.String(string(o.Outcome)), TryKey.Int(max(d.Try, 1)))
	if hasFailed(o) {
		failed(span, o.Err)
	}
	span.End()
}

// Batching begins the span of a function that handles several deliveries. Each of them has a span of its own.
func (t *Tracer) Batching(ctx context.Context, ds []*bus.Delivery) (context.Context, func(error)) {
	msgs := make([]*message.Message, len(ds))
	for i, d := range ds {
		msgs[i] = d.Message
	}
	links, _ := contexts(msgs)
	if len(links) == 0 {
		return ctx, nil
	}
	inner, span := t.start(ctx, startKey{kind: trace.SpanKindConsumer, topic: ds[0].Topic, group: ds[0].Group},
		[]trace.SpanStartOption{trace.WithLinks(links...)})
	span.SetAttributes(semconv.MessagingBatchMessageCount(len(ds)))
	return inner, func(err error) {
		if err != nil {
			failed(span, err)
		}
		span.End()
	}
}

// hasFailed reports whether an error ended the delivery. A snooze, a stop and a duplicate are none.
func hasFailed(o bus.Observation) bool {
	switch o.Outcome {
	case bus.Poisoned, bus.Discarded:
		return o.Err != nil
	case bus.Redelivered:
		r, ok := errors.AsType[*bus.Redelivery](o.Err)
		return o.Err != nil && (!ok || r.Err != nil)
	default:
		return false
	}
}

// processing is the context of a delivery with a span, which Finished of the same tracer finds again whatever spans are
// within.
type processing struct {
	context.Context
	tracer   *Tracer
	delivery *bus.Delivery
	span     trace.Span
}

type processingKey struct{ tracer *Tracer }

func (p *processing) Value(key any) any {
	if k, ok := key.(processingKey); ok && k.tracer == p.tracer {
		return p
	}
	return p.Context.Value(key)
}

// Decorator returns the tracer as publish middleware of a stock Watermill publisher. A bus needs it not: the tracer is one
// of its observers.
func (t *Tracer) Decorator() message.PublisherDecorator {
	return func(p message.Publisher) (message.Publisher, error) { return decorated{p, t}, nil }
}

type decorated struct {
	message.Publisher
	tracer *Tracer
}

func (d decorated) Publish(topic string, msgs ...*message.Message) error {
	if len(msgs) == 0 {
		return d.Publisher.Publish(topic)
	}
	ctx, end := d.tracer.Publishing(msgs[0].Context(), topic, msgs, false)
	for _, msg := range msgs {
		msg.SetContext(ctx)
	}
	err := d.Publisher.Publish(topic, msgs...)
	if end != nil {
		end(err)
	}
	return err
}

// startKey is what the name and the first attributes of a span depend on.
type startKey struct {
	kind         trace.SpanKind
	topic, group string
}

// maxStarts bounds the remembered options: topics may come from foreign input.
const maxStarts = 1000

func (t *Tracer) start(ctx context.Context, key startKey, options []trace.SpanStartOption) (context.Context, trace.Span) {
	known, ok := t.starts.Load(key)
	if !ok {
		known = t.describe(key)
		if t.known.Add(1) <= maxStarts {
			t.starts.Store(key, known)
		}
	}
	s := known.(*start)
	if len(options) > 0 {
		options = append(options, s.options...)
	} else {
		options = s.options
	}
	return t.tracer.Start(ctx, s.name, options...)
}

// start is the name of a span and the options that it begins with.
type start struct {
	name    string
	options []trace.SpanStartOption
}

func (t *Tracer) describe(key startKey) *start {
	topic := driver.OneLine(key.topic, driver.MaxClassBytes)
	name, operation := "send", semconv.MessagingOperationTypeSend
	if key.kind == trace.SpanKindConsumer {
		name, operation = "process", semconv.MessagingOperationTypeProcess
	}
	attributes := []attribute.KeyValue{t.system, semconv.MessagingOperationName(name), operation}
	if topic != "" {
		attributes = append(attributes, semconv.MessagingDestinationName(topic))
	}
	if key.group != "" {
		attributes = append(attributes, semconv.MessagingConsumerGroupName(key.group))
	}
	if topic != "" {
		name += " " + topic
	}
	return &start{name, []trace.SpanStartOption{trace.WithSpanKind(key.kind), trace.WithAttributes(attributes...)}}
}

// identity returns the attributes by which a message is found again.
func identity(msg *message.Message) []attribute.KeyValue {
	id := driver.MessageID(msg)
	conversation := msg.Metadata[driver.HeaderCorrelationID]
	conversation = cmp.Or(conversation, id)
	return []attribute.KeyValue{
		semconv.MessagingMessageID(driver.OneLine(id, driver.MaxClassBytes)),
		semconv.MessagingMessageConversationID(driver.OneLine(conversation, driver.MaxClassBytes)),
	}
}

// failed says in a span why it failed. The description comes from messages, perhaps, and is bounded.
func failed(span trace.Span, err error) {
	span.SetAttributes(semconv.ErrorTypeKey.String(driver.OneLine(driver.ErrorType(err), driver.MaxClassBytes)))
	span.SetStatus(codes.Error, driver.OneLine(err.Error(), driver.MaxErrorBytes))
}

func carrier(msg *message.Message) propagation.MapCarrier {
	return propagation.MapCarrier(msg.Metadata)
}

// extract returns the context that a message carries; an invalid one if it has none. It is what propagation.TraceContext
// extracts, without a context.Context around it: this is the path of every message.
func extract(msg *message.Message) trace.SpanContext {
	if msg == nil {
		return trace.SpanContext{}
	}
	parent := msg.Metadata[driver.HeaderTraceParent]
	if len(parent) != parentLen || parent[:traceAt] != "00-" || parent[spanAt-1] != '-' || parent[flagsAt-1] != '-' || parent[flagsAt] != '0' {
		return trace.SpanContext{}
	}
	flags := parent[flagsAt+1] - '0'
	traceID, err := trace.TraceIDFromHex(parent[traceAt : spanAt-1])
	spanID, spanErr := trace.SpanIDFromHex(parent[spanAt : flagsAt-1])
	if err != nil || spanErr != nil || flags > 3 {
		return trace.SpanContext{}
	}
	c := trace.SpanContextConfig{TraceID: traceID, SpanID: spanID, TraceFlags: trace.TraceFlags(flags), Remote: true}
	if state := msg.Metadata[driver.HeaderTraceState]; state != "" {
		c.TraceState, _ = trace.ParseTraceState(state) // what is wrong with it does not change the trace
	}
	return trace.NewSpanContext(c)
}

// The parts of a traceparent: version, trace id, span id and flags, in hexadecimal digits.
const (
	traceAt   = len("00-")
	spanAt    = traceAt + 32 + 1
	flagsAt   = spanAt + 16 + 1
	parentLen = flagsAt + 2
)

// contexts returns links to the sampled contexts of messages, and counts those that are not sampled.
func contexts(msgs []*message.Message) (links []trace.Link, unsampled int) {
	for _, msg := range msgs {
		c := extract(msg)
		switch {
		case !c.IsValid():
		case !c.IsSampled():
			unsampled++
		case len(links) < maxLinks:
			links = append(links, trace.Link{SpanContext: c})
		}
	}
	return links, unsampled
}

// foreign returns links to the contexts that messages have of their own, and not of the message that is handled: somebody
// has created them before.
func foreign(handled *bus.Delivery, msgs []*message.Message) []trace.Link {
	var own []*message.Message
	for _, msg := range msgs {
		if hasOwn(handled, msg) {
			own = append(own, msg)
		}
	}
	if len(own) == 0 {
		return nil
	}
	links, _ := contexts(own)
	return links
}

// hasOwn reports whether a message was given a context by its publisher, which is not changed.
func hasOwn(handled *bus.Delivery, msg *message.Message) bool {
	parent := msg.Metadata[driver.HeaderTraceParent]
	return parent != "" && (handled == nil || parent != handled.Message.Metadata[driver.HeaderTraceParent])
}

// inject puts a context into the messages that have none of their own. It writes what propagation.TraceContext injects.
func inject(c trace.SpanContext, handled *bus.Delivery, msgs []*message.Message) {
	if !c.IsValid() {
		return
	}
	var parent string
	for _, msg := range msgs {
		if had := msg.Metadata[driver.HeaderTraceParent]; had != "" {
			// What a handler publishes has the context of the message that is handled already, if nothing is sampled.
			if hasOwn(handled, msg) || same(had, c) {
				continue
			}
		}
		if msg.Metadata == nil {
			msg.Metadata = message.Metadata{}
		}
		if parent == "" {
			parent = traceParent(c)
		}
		msg.Metadata[driver.HeaderTraceParent] = parent
		delete(msg.Metadata, driver.HeaderTraceState)
		if state := c.TraceState(); state.Len() > 0 {
			msg.Metadata[driver.HeaderTraceState] = state.String()
		}
	}
}

// traceParent returns the header of a context.
func traceParent(c trace.SpanContext) string {
	const digits = "0123456789abcdef"
	traceID, spanID := c.TraceID(), c.SpanID()
	flags := c.TraceFlags() & (trace.FlagsSampled | trace.FlagsRandom)
	var parent [parentLen]byte
	copy(parent[:], "00-")
	hex.Encode(parent[traceAt:], traceID[:])
	parent[spanAt-1] = '-'
	hex.Encode(parent[spanAt:], spanID[:])
	parent[flagsAt-1], parent[flagsAt], parent[flagsAt+1] = '-', '0', digits[flags]
	return string(parent[:])
}

// same reports whether a traceparent is that of a context that is not sampled.
func same(parent string, c trace.SpanContext) bool {
	if len(parent) != parentLen || c.IsSampled() || parent[flagsAt+1]&1 != 0 {
		return false
	}
	traceID, spanID := c.TraceID(), c.SpanID()
	return hexEqual(parent[traceAt:spanAt-1], traceID[:]) && hexEqual(parent[spanAt:flagsAt-1], spanID[:])
}

func hexEqual(text string, bytes []byte) bool {
	const digits = "0123456789abcdef"
	for i, b := range bytes {
		if text[2*i] != digits[b>>4] || text[2*i+1] != digits[b&15] {
			return false
		}
	}
	return true
}
