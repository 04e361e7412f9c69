package oteltrace

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

type testKey struct{}

func delivery(msg *message.Message) *bus.Delivery {
	return &bus.Delivery{Delivery: driver.Delivery{Message: msg, Topic: "order.paid.v1", Group: "shop.ledger", Attempt: 1}}
}

// unsampledMessage is a message of a trace that is not sampled.
func unsampledMessage() *message.Message {
	msg := message.NewMessage("id", nil)
	msg.Metadata[driver.HeaderTraceParent] = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
	return msg
}

func TestTracer_givesUnsampledDeliveriesTheContextOfTheirTrace(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder))
	tracer, msg := New(provider), unsampledMessage()
	ctx := tracer.Started(context.WithValue(t.Context(), testKey{}, "kept"), delivery(msg))
	want := propagation.TraceContext{}.Extract(context.Background(), carrier(msg))
	require.True(t, trace.SpanContextFromContext(want).Equal(trace.SpanContextFromContext(ctx)))
	require.True(t, trace.SpanContextFromContext(ctx).IsRemote())
	require.False(t, trace.SpanFromContext(ctx).IsRecording())
	require.Equal(t, "kept", ctx.Value(testKey{}))

	_, child := provider.Tracer("handler").Start(ctx, "query")
	child.End()
	require.Equal(t, "0af7651916cd43dd8448eb211c80319c", child.SpanContext().TraceID().String())
	tracer.Finished(ctx, delivery(msg), bus.Observation{Outcome: bus.Handled})
	require.Empty(t, recorder.Ended())
}

// TestTracer_endsItsOwnSpan also where another tracer has one for the same delivery.
func TestTracer_endsItsOwnSpan(t *testing.T) {
	outer, inner := tracetest.NewSpanRecorder(), tracetest.NewSpanRecorder()
	tracers := []*Tracer{
		New(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(outer))),
		New(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(inner))),
	}
	d, ctx := delivery(message.NewMessage("id", nil)), t.Context()
	for _, tracer := range tracers {
		ctx = tracer.Started(ctx, d) //nolint:fatcontext // as many layers as tracers
	}
	tracers[1].Finished(ctx, d, bus.Observation{Outcome: bus.Handled})
	require.Empty(t, outer.Ended())
	require.Len(t, inner.Ended(), 1)
	tracers[0].Finished(ctx, d, bus.Observation{Outcome: bus.Handled})
	require.Len(t, outer.Ended(), 1)
}

func TestInject_writesWhatOpenTelemetryInjects(t *testing.T) {
	state, err := trace.ParseTraceState("vendor=1,other=2")
	require.NoError(t, err)
	for flags := range 8 {
		for _, s := range []trace.TraceState{{}, state} {
			c := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1, 0xab}, SpanID: trace.SpanID{0xf0, 2}, TraceFlags: trace.TraceFlags(flags), TraceState: s})
			want := propagation.MapCarrier{}
			propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(t.Context(), c), want)
			msgs := []*message.Message{{}, message.NewMessage("id", nil)}
			inject(c, nil, msgs)
			for _, msg := range msgs {
				require.Equal(t, want, carrier(msg))
			}
		}
	}
}

// TestTracer_leavesTheSpanOfAnOuterDelivery checks a delivery without a span, within a handler that has one.
func TestTracer_leavesTheSpanOfAnOuterDelivery(t *testing.T) {
	recorder := tracetest.NewSpanRecorder()
	tracer := New(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder)))
	outer, inner := delivery(message.NewMessage("id", nil)), delivery(unsampledMessage())
	inner.Settler = struct{ driver.Settler }{} // of a bus, whose deliveries continue no other span
	ctx := tracer.Started(t.Context(), outer)
	tracer.Finished(tracer.Started(ctx, inner), inner, bus.Observation{Outcome: bus.Handled})
	require.Empty(t, recorder.Ended())
	tracer.Finished(ctx, outer, bus.Observation{Outcome: bus.Handled})
	require.Len(t, recorder.Ended(), 1)
}

// TestTracer_allocatesLittleWithoutSampling: the header of a publish; the span and the context of a delivery.
func TestTracer_allocatesLittleWithoutSampling(t *testing.T) {
	tracer, d := New(sdktrace.NewTracerProvider()), delivery(unsampledMessage())
	ctx := trace.ContextWithSpanContext(t.Context(), extract(d.Message))
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() {
		tracer.Finished(tracer.Started(t.Context(), d), d, bus.Observation{Outcome: bus.Handled})
	}), 2.0)
	msgs := []*message.Message{message.NewMessage("id", nil)}
	require.LessOrEqual(t, testing.AllocsPerRun(100, func() {
		delete(msgs[0].Metadata, driver.HeaderTraceParent)
		tracer.Publishing(ctx, "order.paid.v1", msgs, false)
	}), 1.0)
}
