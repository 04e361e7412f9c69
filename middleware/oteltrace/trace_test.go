package oteltrace_test

import (
	"context"
	stdsql "database/sql"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/middleware/oteltrace"
	"github.com/leatbus/leat/transports"
	"github.com/leatbus/leat/transports/sql/outbox"
	_ "github.com/leatbus/leat/transports/sqlite"
)

// patience bounds what the test waits for.
const patience = 3 * time.Minute

// shop is a service with an outbox in SQLite and RabbitMQ.
type shop struct {
	bus *bus.Bus
	db  *stdsql.DB
}

func openShop(t *testing.T, p recording) shop {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	name := fmt.Sprintf("leat_trace_%08x", rand.Uint32())
	broker, err := url.Parse(testenv.RabbitMQ(t))
	require.NoError(t, err)
	q := broker.Query()
	q.Set("exchange", name)
	broker.RawQuery = q.Encode()
	t.Cleanup(func() { testenv.Forget(t, broker.String(), name+".pay", name+".mail") })
	file := filepath.Join(t.TempDir(), "shop.db")
	outbox, err := outbox.Open(ctx, &url.URL{Scheme: "sqlite", Path: file}, outbox.Config{Service: name})
	require.NoError(t, err)
	transport, err := transports.Open(ctx, broker.String())
	require.NoError(t, err)
	b, err := bus.New(transport, bus.Config{
		Service: name, Stack: middleware.Standard(middleware.Config{}), Outbox: outbox,
		Observers: []bus.Observer{oteltrace.New(p, oteltrace.WithSystem("rabbitmq"))},
	})
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(t, b.Close(ctx))
	})
	db, err := stdsql.Open("sqlite", "file:"+file+"?_pragma=busy_timeout(180000)&_txlock=immediate")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return shop{b, db}
}

// order takes an order over HTTP, as an instrumented server does: the trace goes on that the request's headers name.
func (s shop) order(tracer trace.Tracer) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx := propagation.TraceContext{}.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := tracer.Start(ctx, "POST /orders", trace.WithSpanKind(trace.SpanKindServer))
		defer span.End()
		tx, err := s.db.BeginTx(ctx, nil)
		if err == nil {
			err = s.bus.InTx(tx).Publish(ctx, orderPlaced{"1"}, bus.WithID("e-1"))
		}
		if err == nil {
			err = tx.Commit()
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	}
}

// One trace goes from an HTTP client through the transaction, the relay of the outbox and RabbitMQ to one handler, and on to
// what that publishes.
func TestTrace_goesFromARequestThroughOutboxAndBrokerToTheHandlers(t *testing.T) {
	p := record(t)
	s := openShop(t, p)
	handled := make(chan struct{})
	require.NoError(t, s.bus.Handle(handlers.Func("pay", func(ctx context.Context, e orderPlaced) error {
		return s.bus.Publish(ctx, orderPaid(e), bus.WithID("e-2"))
	})))
	require.NoError(t, s.bus.Handle(handlers.Func("mail", func(context.Context, orderPaid) error {
		close(handled)
		return nil
	})))
	go func() { _ = s.bus.Run(context.Background()) }()
	<-s.bus.Running()

	request := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/orders", nil)
	request.Header.Set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	request.Header.Set("tracestate", "vendor=1")
	answer := httptest.NewRecorder()
	s.order(p.Tracer("test")).ServeHTTP(answer, request)
	require.Equal(t, http.StatusOK, answer.Code, answer.Body)
	select {
	case <-handled:
	case <-time.After(patience):
		t.Fatal("the second handler has not run")
	}
	require.Eventually(t, func() bool { return len(p.spans.GetSpans()) >= 6 }, patience, time.Millisecond, "not all spans have ended")

	server := p.find(t, "POST /orders", trace.SpanKindServer)
	outbox := p.find(t, "send order.placed.v1", trace.SpanKindProducer)
	relay := p.find(t, "send order.placed.v1", trace.SpanKindClient)
	pay := p.find(t, "process order.placed.v1", trace.SpanKindConsumer)
	paid := p.find(t, "send order.paid.v1", trace.SpanKindProducer)
	mail := p.find(t, "process order.paid.v1", trace.SpanKindConsumer)
	require.Len(t, p.ended(), 6)
	require.Equal(t, "b7ad6b7169203331", server.Parent.SpanID().String())
	for _, edge := range []struct{ child, parent tracetest.SpanStub }{
		{outbox, server}, {relay, outbox}, {pay, outbox}, {paid, pay}, {mail, paid},
	} {
		require.Equal(t, edge.parent.SpanContext.SpanID(), edge.child.Parent.SpanID(), "the parent of %s", edge.child.Name)
	}
	for _, span := range p.ended() {
		require.Equal(t, "0af7651916cd43dd8448eb211c80319c", span.SpanContext.TraceID().String(), span.Name)
		require.Equal(t, "vendor=1", span.SpanContext.TraceState().String(), span.Name)
		require.NotContains(t, attributes(span), "error.type", span.Name)
	}
	name := s.bus.GroupName("")
	sent := func(topic, id string) map[string]any {
		return map[string]any{
			"messaging.system": "rabbitmq", "messaging.operation.name": "send", "messaging.operation.type": "send",
			"messaging.destination.name": topic, "messaging.message.id": id, "messaging.message.conversation_id": "e-1",
		}
	}
	processed := func(topic, id, handler string) map[string]any {
		return map[string]any{
			"messaging.system": "rabbitmq", "messaging.operation.name": "process", "messaging.operation.type": "process",
			"messaging.destination.name": topic, "messaging.message.id": id, "messaging.message.conversation_id": "e-1",
			"messaging.consumer.group.name": name + handler, "leat.outcome": "handled", "leat.attempt": int64(1), "leat.try": int64(1),
		}
	}
	require.Equal(t, sent("order.placed.v1", "e-1"), attributes(outbox))
	require.Equal(t, sent("order.placed.v1", "e-1"), attributes(relay))
	require.Equal(t, processed("order.placed.v1", "e-1", "pay"), attributes(pay))
	require.Equal(t, sent("order.paid.v1", "e-2"), attributes(paid))
	require.Equal(t, processed("order.paid.v1", "e-2", "mail"), attributes(mail))
}

// Messages that an outbox passes on together have one span, which links to all of them; and what is not sampled goes
// through without a span, with its context.
func TestRelay_linksToTheMessagesOfABundle(t *testing.T) {
	p := record(t, sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.AlwaysSample())))
	s := openShop(t, p)
	got := make(chan trace.SpanContext, 10)
	require.NoError(t, s.bus.Handle(handlers.Func("pay", func(ctx context.Context, _ orderPlaced) error {
		got <- trace.SpanContextFromContext(ctx)
		return nil
	})))
	ctx, request := p.Tracer("test").Start(t.Context(), "import")
	tx, err := s.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	for _, id := range []string{"1", "2", "3"} { // before the bus runs, so that they are relayed together
		require.NoError(t, s.bus.InTx(tx).Publish(ctx, orderPlaced{id}))
	}
	require.NoError(t, tx.Commit())
	request.End()
	go func() { _ = s.bus.Run(context.Background()) }()
	for range 3 {
		require.Equal(t, request.SpanContext().TraceID(), (<-got).TraceID())
	}
	const spans = 1 + 3 + 1 + 3 // the import, into the outbox, out of it, and the handler's
	require.Eventually(t, func() bool { return len(p.spans.GetSpans()) >= spans }, patience, time.Millisecond, "not all spans have ended")
	relay := p.find(t, "send order.placed.v1", trace.SpanKindClient)
	require.Len(t, relay.Links, 3)
	require.False(t, relay.Parent.IsValid())
	require.EqualValues(t, 3, attributes(relay)["messaging.batch.message_count"])
	for _, link := range relay.Links {
		require.Equal(t, request.SpanContext().TraceID(), link.SpanContext.TraceID())
	}

	unsampled := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{7}, SpanID: trace.SpanID{7}})
	p.spans.Reset()
	tx, err = s.db.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	require.NoError(t, s.bus.InTx(tx).Publish(trace.ContextWithSpanContext(t.Context(), unsampled), orderPlaced{"4"}))
	require.NoError(t, tx.Commit())
	c := <-got
	require.Equal(t, unsampled.TraceID(), c.TraceID())
	require.Equal(t, unsampled.SpanID(), c.SpanID())
	require.Empty(t, p.ended())
}
