package oteltrace_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/baggage"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	semconv "go.opentelemetry.io/otel/semconv/v1.43.0"
	"go.opentelemetry.io/otel/trace"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/bustest"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/oteltrace"
	"github.com/leatbus/leat/transports/memory"
)

func TestMain(m *testing.M) { testenv.Main(m) }

type orderPlaced struct{ ID string }

func (orderPlaced) EventType() (string, int) { return "order.placed", 1 }
func (e orderPlaced) DedupKey() string       { return e.ID }

type orderPaid struct{ ID string }

func (orderPaid) EventType() (string, int) { return "order.paid", 1 }

// recording is a provider whose ended spans the test sees.
type recording struct {
	*sdktrace.TracerProvider
	spans *tracetest.InMemoryExporter
}

func record(t testing.TB, opts ...sdktrace.TracerProviderOption) recording {
	t.Helper()
	exporter := tracetest.NewInMemoryExporter()
	p := sdktrace.NewTracerProvider(append(opts, sdktrace.WithSyncer(exporter))...)
	t.Cleanup(func() { require.NoError(t, p.Shutdown(context.Background())) })
	return recording{p, exporter}
}

// ended returns the spans by their start.
func (r recording) ended() tracetest.SpanStubs {
	spans := r.spans.GetSpans()
	slices.SortStableFunc(spans, func(a, b tracetest.SpanStub) int { return a.StartTime.Compare(b.StartTime) })
	return spans
}

// find returns the one span with the name and kind.
func (r recording) find(t testing.TB, name string, kind trace.SpanKind) tracetest.SpanStub {
	t.Helper()
	var found tracetest.SpanStubs
	for _, s := range r.spans.GetSpans() {
		if s.Name == name && s.SpanKind == kind {
			found = append(found, s)
		}
	}
	require.Len(t, found, 1, "%s of kind %s", name, kind)
	return found[0]
}

func attributes(s tracetest.SpanStub) map[string]any {
	all := make(map[string]any)
	for _, a := range s.Attributes {
		all[string(a.Key)] = a.Value.AsInterface()
	}
	return all
}

func harness(t testing.TB, tracer *oteltrace.Tracer, hs ...bus.Handler) *bustest.Harness {
	t.Helper()
	return bustest.NewWith(t, bustest.Config{Bus: bus.Config{Observers: []bus.Observer{tracer}}}, hs...)
}

func TestTracer_makesOneTraceOfAPublishAndWhatFollows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := record(t)
		var b *bus.Bus
		h := harness(t, oteltrace.New(p),
			handlers.Func("pay", func(ctx context.Context, e orderPlaced) error {
				require.True(t, trace.SpanFromContext(ctx).IsRecording())
				return b.Publish(ctx, orderPaid(e))
			}),
			handlers.Func("mail", func(context.Context, orderPaid) error { return nil }))
		b = h.Bus()
		ctx, request := p.Tracer("test").Start(t.Context(), "POST /orders")
		require.NoError(t, b.Publish(ctx, orderPlaced{"1"}, bus.WithID("e-1")))
		request.End()
		h.WaitIdle()

		sent, pay := p.find(t, "send order.placed.v1", trace.SpanKindProducer), p.find(t, "process order.placed.v1", trace.SpanKindConsumer)
		sentPaid, mail := p.find(t, "send order.paid.v1", trace.SpanKindProducer), p.find(t, "process order.paid.v1", trace.SpanKindConsumer)
		require.Len(t, p.ended(), 5)
		for _, link := range []struct {
			child  tracetest.SpanStub
			parent trace.SpanContext
			remote bool
		}{
			{sent, request.SpanContext(), false}, {pay, sent.SpanContext, true}, {sentPaid, pay.SpanContext, false}, {mail, sentPaid.SpanContext, true},
		} {
			require.Equal(t, request.SpanContext().TraceID(), link.child.SpanContext.TraceID())
			require.Equal(t, link.parent.SpanID(), link.child.Parent.SpanID(), link.child.Name)
			require.Equal(t, link.remote, link.child.Parent.IsRemote(), link.child.Name)
			require.Empty(t, link.child.Links)
			require.Equal(t, semconv.SchemaURL, link.child.InstrumentationScope.SchemaURL)
		}
		require.Equal(t, map[string]any{
			"messaging.system": "leat", "messaging.operation.name": "send", "messaging.operation.type": "send",
			"messaging.destination.name": "order.placed.v1", "messaging.message.id": "e-1", "messaging.message.conversation_id": "e-1",
		}, attributes(sent))
		require.Equal(t, map[string]any{
			"messaging.system": "leat", "messaging.operation.name": "process", "messaging.operation.type": "process",
			"messaging.destination.name": "order.placed.v1", "messaging.consumer.group.name": "test.pay",
			"messaging.message.id": "e-1", "messaging.message.conversation_id": "e-1",
			"leat.attempt": int64(1), "leat.try": int64(1), "leat.outcome": "handled",
		}, attributes(pay))
		require.Equal(t, "e-1", attributes(mail)["messaging.message.conversation_id"])
	})
}

func TestTracer_setsAnErrorTypeOnlyOnWhatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := record(t)
		snoozed := false
		h := harness(t, oteltrace.New(p, oteltrace.WithSystem("rabbitmq")), handlers.Func("pay", func(_ context.Context, e orderPlaced) error {
			switch {
			case e.ID == "bad":
				return bus.Permanent(&badOrder{})
			case e.ID == "late" && !snoozed:
				snoozed = true
				return bus.Snooze(time.Hour)
			}
			return nil
		}))
		for _, id := range []string{"bad", "late", "good"} {
			h.Publish(orderPlaced{id}, bus.WithID(id))
		}
		h.WaitIdle()
		type end struct{ outcome, errorType, status string }
		var ends []end
		for _, s := range p.ended() {
			if a := attributes(s); s.SpanKind == trace.SpanKindConsumer {
				errorType, _ := a["error.type"].(string)
				ends = append(ends, end{a["leat.outcome"].(string), errorType, s.Status.Code.String()})
				require.Equal(t, "rabbitmq", a["messaging.system"])
			}
		}
		require.ElementsMatch(t, []end{
			{"poisoned", "*oteltrace_test.badOrder", "Error"}, {"redelivered", "", "Unset"}, {"handled", "", "Unset"}, {"handled", "", "Unset"},
		}, ends)

		p.spans.Reset()
		require.Error(t, h.Bus().PublishMessages(canceled(t), wanted("refused")))
	})
}

type badOrder struct{}

func (*badOrder) Error() string { return "bad\norder" }

func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func wanted(id string) *message.Message {
	msg := message.NewMessage(id, []byte(`{}`))
	msg.Metadata[driver.HeaderID], msg.Metadata[driver.HeaderType] = id, "order.placed.v1"
	return msg
}

func TestTracer_leavesTheContextThatAPublisherHasSet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
		p := record(t)
		var got string
		h := harness(t, oteltrace.New(p), handlers.Raw("pay", []string{"order.placed.v1"}, func(_ context.Context, msg *message.Message) error {
			got = msg.Metadata[driver.HeaderTraceParent]
			return nil
		}))
		msg := wanted("m-1")
		msg.Metadata[driver.HeaderTraceParent] = own
		require.NoError(t, h.Bus().PublishMessages(t.Context(), msg))
		h.WaitIdle()
		require.Equal(t, own, got)
		sent := p.find(t, "send order.placed.v1", trace.SpanKindClient)
		require.Len(t, sent.Links, 1)
		require.Equal(t, "b7ad6b7169203331", sent.Links[0].SpanContext.SpanID().String())
		require.Equal(t, "b7ad6b7169203331", p.find(t, "process order.placed.v1", trace.SpanKindConsumer).Parent.SpanID().String())
	})
}

func TestTracer_passesOnWhatIsNotSampled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := record(t, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.NeverSample())))
		var b *bus.Bus
		var seen []trace.SpanContext
		h := harness(t, oteltrace.New(p),
			handlers.Func("pay", func(ctx context.Context, e orderPlaced) error {
				seen = append(seen, trace.SpanContextFromContext(ctx))
				return b.Publish(ctx, orderPaid(e))
			}),
			handlers.Func("mail", func(ctx context.Context, _ orderPaid) error {
				seen = append(seen, trace.SpanContextFromContext(ctx))
				return nil
			}))
		b = h.Bus()
		ctx, request := p.Tracer("test").Start(t.Context(), "POST /orders")
		require.NoError(t, b.Publish(ctx, orderPlaced{"1"}))
		h.WaitIdle()
		require.NoError(t, b.Publish(t.Context(), orderPlaced{"2"}))
		h.WaitIdle()
		require.Empty(t, p.ended())
		require.Len(t, seen, 4)
		for i, c := range seen {
			require.True(t, c.IsValid())
			require.False(t, c.IsSampled())
			require.Equal(t, i < 2, c.TraceID() == request.SpanContext().TraceID())
		}
	})
}

func TestWithLinks_beginsATraceForEachDelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := record(t)
		h := harness(t, oteltrace.New(p, oteltrace.WithLinks()), handlers.Func("pay", func(context.Context, orderPlaced) error { return nil }))
		h.Publish(orderPlaced{"1"})
		h.WaitIdle()
		sent, pay := p.find(t, "send order.placed.v1", trace.SpanKindProducer), p.find(t, "process order.placed.v1", trace.SpanKindConsumer)
		require.False(t, pay.Parent.IsValid())
		require.Len(t, pay.Links, 1)
		require.Equal(t, sent.SpanContext.SpanID(), pay.Links[0].SpanContext.SpanID())
		require.NotEqual(t, sent.SpanContext.TraceID(), pay.SpanContext.TraceID())
	})
}

// A redelivery is one more span of the trace.
func TestRedeliveries_areSpansOfTheSameTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := record(t)
		h := harness(t, oteltrace.New(p), handlers.Func("pay", func(context.Context, orderPlaced) error { return nil }))
		for range 4 {
			h.FailNext("pay", errors.New("four times"))
		}
		h.Publish(orderPlaced{"1"})
		h.WaitIdle()
		sent := p.find(t, "send order.placed.v1", trace.SpanKindProducer)
		var attempts, tries []int64
		for _, s := range p.ended() {
			if s.SpanKind == trace.SpanKindConsumer {
				require.Equal(t, sent.SpanContext.SpanID(), s.Parent.SpanID())
				attempts = append(attempts, attributes(s)["leat.attempt"].(int64))
				tries = append(tries, attributes(s)["leat.try"].(int64))
			}
		}
		require.Equal(t, []int64{1, 2}, attempts)
		require.Equal(t, []int64{4, 5}, tries)
	})
}

func TestBatch_linksToAllItsMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := record(t)
		var inside trace.SpanContext
		h := harness(t, oteltrace.New(p), handlers.Batch("pay", handlers.BatchSize{Max: 3}, func(ctx context.Context, _ []orderPlaced) error {
			inside = trace.SpanContextFromContext(ctx)
			return errors.New("all of them")
		}, handlers.WithoutRetry()))
		require.NoError(t, h.Bus().PublishAll(t.Context(), []bus.Event{orderPlaced{"1"}, orderPlaced{"2"}, orderPlaced{"3"}}))
		h.WaitIdle()
		sent := p.find(t, "send order.placed.v1", trace.SpanKindProducer)
		require.EqualValues(t, 3, attributes(sent)["messaging.batch.message_count"])
		require.NotContains(t, attributes(sent), "messaging.message.id")
		var batch tracetest.SpanStub
		for _, s := range p.ended() {
			if s.SpanContext.SpanID() == inside.SpanID() {
				batch = s
			}
		}
		require.Equal(t, "process order.placed.v1", batch.Name)
		require.Len(t, batch.Links, 3)
		require.EqualValues(t, 3, attributes(batch)["messaging.batch.message_count"])
		require.Equal(t, codes.Error, batch.Status.Code)
	})
}

func TestWithBaggage_carriesBaggageToTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		member, err := baggage.NewMember("tenant", "acme")
		require.NoError(t, err)
		bag, err := baggage.New(member)
		require.NoError(t, err)
		for _, with := range []bool{true, false} {
			var opts []oteltrace.Option
			if with {
				opts = append(opts, oteltrace.WithBaggage())
			}
			var got string
			h := harness(t, oteltrace.New(record(t), opts...), handlers.Func("pay", func(ctx context.Context, _ orderPlaced) error {
				got = baggage.FromContext(ctx).Member("tenant").Value()
				return nil
			}))
			require.NoError(t, h.Bus().Publish(baggage.ContextWithBaggage(t.Context(), bag), orderPlaced{"1"}))
			h.WaitIdle()
			require.Equal(t, with, got == "acme")
		}
	})
}

// stock is a Watermill publisher.
type stock struct {
	got []*message.Message
	err error
}

func (s *stock) Publish(_ string, msgs ...*message.Message) error {
	s.got = append(s.got, msgs...)
	return s.err
}
func (s *stock) Close() error { return nil }

func TestDecorator_tracesAStockPublisher(t *testing.T) {
	p := record(t)
	next := &stock{err: errors.New("refused")}
	publisher, err := oteltrace.New(p).Decorator()(next)
	require.NoError(t, err)
	require.NoError(t, func() error { _ = publisher.Publish("nothing"); return nil }())
	require.EqualError(t, publisher.Publish("order.placed.v1", wanted("1"), wanted("2")), "refused")
	sent := p.find(t, "send order.placed.v1", trace.SpanKindProducer)
	require.Equal(t, codes.Error, sent.Status.Code)
	require.Equal(t, "*errors.errorString", attributes(sent)["error.type"])
	for _, msg := range next.got {
		require.Contains(t, msg.Metadata[driver.HeaderTraceParent], sent.SpanContext.SpanID().String())
		require.Equal(t, sent.SpanContext.SpanID(), trace.SpanContextFromContext(msg.Context()).SpanID())
	}
}

// Nothing of a message makes a span, or the memory that remembers topics, grow without bound.
func TestTracer_boundsWhatMessagesSay(t *testing.T) {
	p := record(t)
	tracer := oteltrace.New(p)
	long := strings.Repeat("x\xff", 100_000)
	msg := message.NewMessage(long, nil)
	for _, key := range []string{driver.HeaderID, driver.HeaderCorrelationID, driver.HeaderTraceParent, driver.HeaderTraceState, driver.HeaderType} {
		msg.Metadata[key] = long
	}
	d := &bus.Delivery{Delivery: driver.Delivery{Message: msg, Topic: long, Group: "shop.pay", Attempt: 1}}
	tracer.Finished(tracer.Started(t.Context(), d), d, bus.Observation{Outcome: bus.Poisoned, Err: errors.New(long)})
	spans := p.ended()
	require.Len(t, spans, 1)
	require.Less(t, len(spans[0].Name), 1<<10)
	require.Less(t, len(spans[0].Status.Description), 64<<10)
	for _, a := range spans[0].Attributes {
		require.Less(t, len(a.Value.String()), 1<<10, string(a.Key))
	}
}

// The attributes of the conventions, 1.43.0, and leat's own three. Names are spelled out, so that an upgrade of the
// conventions' package can't change them unseen.
func TestAttributes_areThoseOfTheConventions(t *testing.T) {
	for constant, name := range map[attribute.Key]string{
		semconv.MessagingSystemKey: "messaging.system", semconv.MessagingOperationNameKey: "messaging.operation.name",
		semconv.MessagingOperationTypeKey: "messaging.operation.type", semconv.MessagingDestinationNameKey: "messaging.destination.name",
		semconv.MessagingConsumerGroupNameKey: "messaging.consumer.group.name", semconv.MessagingMessageIDKey: "messaging.message.id",
		semconv.MessagingMessageConversationIDKey: "messaging.message.conversation_id",
		semconv.MessagingBatchMessageCountKey:     "messaging.batch.message_count", semconv.ErrorTypeKey: "error.type",
		oteltrace.OutcomeKey: "leat.outcome", oteltrace.AttemptKey: "leat.attempt", oteltrace.TryKey: "leat.try",
	} {
		require.Equal(t, name, string(constant))
	}
	require.Equal(t, "https://opentelemetry.io/schemas/1.43.0", semconv.SchemaURL)
}

// Whoever sampled the trace first has decided: a sampler that takes everything does not begin in its middle.
func TestTracer_makesNoSpansInATraceThatIsNotSampled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := record(t, sdktrace.WithSampler(sdktrace.AlwaysSample()))
		h := harness(t, oteltrace.New(p), handlers.Func("pay", func(context.Context, orderPlaced) error { return nil }))
		unsampled := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{7}, SpanID: trace.SpanID{7}})
		require.NoError(t, h.Bus().Publish(trace.ContextWithSpanContext(t.Context(), unsampled), orderPlaced{"1"}))
		h.WaitIdle()
		require.Empty(t, p.ended())
	})
}

// A span around Run, as that of a program, is not the parent of what its handlers do.
func TestTracer_hasNothingToDoWithTheSpanAroundRun(t *testing.T) {
	p := record(t)
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{
		Service: "test", Stack: middleware.Standard(middleware.Config{}), Observers: []bus.Observer{oteltrace.New(p)},
	})
	require.NoError(t, err)
	require.NoError(t, b.Handle(handlers.Func("pay", func(context.Context, orderPlaced) error { return nil })))
	ctx, program := p.Tracer("test").Start(t.Context(), "program")
	go func() { _ = b.Run(ctx) }()
	<-b.Running()
	require.NoError(t, b.Publish(t.Context(), orderPlaced{"1"}))
	require.NoError(t, b.Transport().Publish(t.Context(), "order.placed.v1", wanted("2"))) // by somebody who does not trace
	require.NoError(t, b.Idle(t.Context()))
	require.NoError(t, b.Close(context.Background()))
	sent := p.find(t, "send order.placed.v1", trace.SpanKindProducer)
	var parents []trace.SpanID
	for _, s := range p.ended() {
		require.NotEqual(t, program.SpanContext().TraceID(), s.SpanContext.TraceID())
		if s.SpanKind == trace.SpanKindConsumer {
			parents = append(parents, s.Parent.SpanID())
		}
	}
	require.ElementsMatch(t, []trace.SpanID{sent.SpanContext.SpanID(), {}}, parents)
}
