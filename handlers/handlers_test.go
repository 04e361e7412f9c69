package handlers_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

func TestMain(m *testing.M) { testenv.Main(m) }

var errBroken = errors.New("the handler is broken")

type orderPaid struct {
	OrderID string `json:"order_id"`
	Cents   int64  `json:"cents"`
}

func (orderPaid) EventType() (string, int) { return "order.paid", 1 }
func (e orderPaid) Validate() error {
	if e.OrderID == "" {
		return errors.New("order_id is empty")
	}
	return nil
}

// orderShipped has its methods on the pointer.
type orderShipped struct {
	OrderID string `json:"order_id"`
}

func (*orderShipped) EventType() (string, int) { return "order.shipped", 2 }

type receiptSent struct {
	OrderID string `json:"order_id"`
}

func (receiptSent) EventType() (string, int) { return "receipt.sent", 1 }

// world is a bus with the standard stack on the memory transport.
type world struct {
	*testing.T
	bus *bus.Bus
}

// newWorld runs the handlers.
func newWorld(t *testing.T, hs ...bus.Handler) *world {
	t.Helper()
	return worldOver(t, memory.New(memory.Config{}), bus.Config{}, hs...)
}

func worldOver(t *testing.T, transport bus.Transport, cfg bus.Config, hs ...bus.Handler) *world {
	t.Helper()
	cfg.Service, cfg.Logger = "shop", slog.New(slog.DiscardHandler)
	cfg.Stack = middleware.Standard(middleware.Config{})
	b, err := bus.New(transport, cfg)
	require.NoError(t, err)
	for _, h := range hs {
		require.NoError(t, b.Handle(h))
	}
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		_ = b.Run(context.Background())
	}()
	<-b.Running()
	t.Cleanup(func() {
		_ = b.Close(context.Background())
		<-ran
	})
	return &world{t, b}
}

func (w *world) publish(events ...bus.Event) {
	w.Helper()
	require.NoError(w, w.bus.PublishAll(w.Context(), events))
}

// raw publishes a payload to a topic.
func (w *world) raw(topic, payload string) {
	w.Helper()
	msg := &message.Message{UUID: bus.NewID(), Payload: []byte(payload), Metadata: message.Metadata{driver.HeaderType: topic}}
	require.NoError(w, w.bus.PublishMessages(w.Context(), msg))
}

func (w *world) idle() {
	w.Helper()
	require.NoError(w, w.bus.Idle(w.Context()))
}

func (w *world) stats(handler string) bus.GroupStats { return w.bus.Stats().Groups[handler] }

// poisoned returns the one message in a handler's poison queue.
func (w *world) poisoned(handler string) bus.PoisonedMessage {
	w.Helper()
	list, err := w.bus.Transport().PoisonQueue(w.bus.GroupName(handler)).List(w.Context(), "", 10)
	require.NoError(w, err)
	require.Len(w, list, 1)
	return list[0]
}

// box keeps what handlers got.
type box[T any] struct {
	mu   sync.Mutex
	list []T
}

func (b *box[T]) add(v T) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.list = append(b.list, v)
}

func (b *box[T]) all() []T {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]T(nil), b.list...)
}

func TestFunc_getsItsEvent(t *testing.T) {
	var got box[orderPaid]
	w := newWorld(t, handlers.Func("ledger", func(ctx context.Context, e orderPaid) error {
		require.Equal(t, "shop.ledger", bus.DeliveryFrom(ctx).Group)
		got.add(e)
		return nil
	}))
	w.publish(orderPaid{OrderID: "o-1", Cents: 7})
	w.idle()
	require.Equal(t, []orderPaid{{OrderID: "o-1", Cents: 7}}, got.all())
}

func TestFunc_acceptsAPointer(t *testing.T) {
	var got box[*orderShipped]
	w := newWorld(t, handlers.Func("ledger", func(_ context.Context, e *orderShipped) error {
		got.add(e)
		return nil
	}))
	w.publish(&orderShipped{OrderID: "o-1"})
	w.idle()
	require.Equal(t, []*orderShipped{{OrderID: "o-1"}}, got.all())
}

type ledger struct{ booked box[int64] }

func (l *ledger) Record(_ context.Context, e orderPaid) error {
	l.booked.add(e.Cents)
	return nil
}

func TestMethod_hasItsReceiver(t *testing.T) {
	var l ledger
	w := newWorld(t, handlers.Method("ledger", &l, (*ledger).Record))
	w.publish(orderPaid{OrderID: "o-1", Cents: 7})
	w.idle()
	require.Equal(t, []int64{7}, l.booked.all())
}

type misnamed struct{}

func (misnamed) EventType() (string, int) { return "order paid", 1 }

func TestFunc_invalidEventPanics(t *testing.T) {
	require.PanicsWithValue(t, `handlers: handler "ledger": bus: bus.Event is an interface; an event's Go type must be a struct`, func() {
		handlers.Func("ledger", func(context.Context, bus.Event) error { return nil })
	})
	require.Panics(t, func() { handlers.Func("ledger", func(context.Context, misnamed) error { return nil }) })
	require.Panics(t, func() {
		handlers.Batch("ledger", handlers.BatchSize{}, func(context.Context, []misnamed) error { return nil })
	})
}

func TestFunc_poisonsUndecodableMessagesAtOnce(t *testing.T) {
	for name, c := range map[string]struct{ topic, payload, want string }{
		"malformed JSON":   {"order.paid.v1", `{"order_id":`, "decode order.paid.v1: unexpected end of JSON input"},
		"a wrong type":     {"order.paid.v1", `{"order_id":5}`, "decode order.paid.v1: json: cannot unmarshal number"},
		"nothing":          {"order.paid.v1", ``, "decode order.paid.v1: payload is empty"},
		"null":             {"order.paid.v1", `null`, "payload is null"},
		"invalid UTF-8":    {"order.paid.v1", "{\"order_id\":\"\xff\"}", "not valid UTF-8"},
		"an invalid event": {"order.paid.v1", `{"order_id":""}`, "invalid order.paid.v1: order_id is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, handlers.Func("ledger", func(context.Context, orderPaid) error {
				t.Error("the function was called")
				return nil
			}))
			w.raw(c.topic, c.payload)
			w.idle()
			dead := w.poisoned("ledger")
			require.Contains(t, dead.Fault.Text, c.want)
			require.Equal(t, 1, dead.Fault.Tries)
			require.Equal(t, 1, dead.Fault.Attempts)
			require.Equal(t, c.payload, string(dead.Message.Payload))
			require.EqualValues(t, 1, w.stats("ledger").Poisoned)
			require.Zero(t, w.stats("ledger").Redelivered)
		})
	}
}

func TestFunc_refusesOlderVersionsWithoutAnUpcaster(t *testing.T) {
	w := newWorld(t, handlers.Func("ledger", func(context.Context, orderPaidV2) error { return nil }))
	w.raw("order.paid.v1", `{"order_id":"a"}`)
	w.idle()
	require.Contains(t, w.poisoned("ledger").Fault.Text, "order.paid.v1: the handler does not take this type: it takes [order.paid.v2]")
}

type orderPaidV2 struct{}

func (orderPaidV2) EventType() (string, int) { return "order.paid", 2 }

// The pattern of a handler of "order" takes "order.paid", too, if its producer writes no versions.
func TestFunc_leavesOtherEventsAlone(t *testing.T) {
	for name, handler := range map[string]func(func()) bus.Handler{
		"Func": func(got func()) bus.Handler {
			return handlers.Func("ledger", func(context.Context, order) error { got(); return nil }, handlers.OrderedStrictly())
		},
		"Routes": func(got func()) bus.Handler {
			return handlers.Routes("ledger", []bus.Handler{handlers.Func("a", func(context.Context, order) error { got(); return nil })}, handlers.OrderedStrictly())
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := 0
				var log strings.Builder
				logger := slog.New(slog.NewTextHandler(&log, nil))
				b, err := bus.New(memory.New(memory.Config{}), bus.Config{
					Service: "shop", Stack: middleware.Standard(middleware.Config{}), Logger: logger, Observers: []bus.Observer{middleware.Log(logger)},
				})
				require.NoError(t, err)
				require.NoError(t, b.Handle(handler(func() { n++ })))
				go func() { _ = b.Run(context.Background()) }()
				<-b.Running()
				for i, kind := range []string{"order.paid", "order", "order.paid", "order.v1"} {
					require.NoError(t, b.PublishMessages(t.Context(), &message.Message{
						Payload: []byte(`{}`), Metadata: message.Metadata{driver.HeaderType: kind, driver.HeaderID: fmt.Sprint(i)},
					}))
				}
				require.NoError(t, b.Idle(t.Context()))
				require.Equal(t, 2, n)
				require.EqualValues(t, 2, b.Stats().Groups["ledger"].Discarded)
				require.Zero(t, b.Stats().Groups["ledger"].Poisoned)
				require.NoError(t, b.Close(context.Background()))
				require.Equal(t, 1, strings.Count(log.String(), "level=WARN"), log.String())
				require.Contains(t, log.String(), "discarded an event")
				require.Contains(t, log.String(), "LEAT_SERVICE")
			})
		})
	}
}

// Producers choose the types, so a group logs a bounded number of them.
func TestFunc_logsABoundedNumberOfOtherEvents(t *testing.T) {
	const most, published = 4096, 4100
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		logger := slog.New(slog.NewTextHandler(&log, nil))
		b, err := bus.New(memory.New(memory.Config{}), bus.Config{
			Service: "shop", Stack: middleware.Standard(middleware.Config{}), Logger: logger, Observers: []bus.Observer{middleware.Log(logger)},
		})
		require.NoError(t, err)
		require.NoError(t, b.Handle(handlers.Func("ledger", func(context.Context, order) error { return nil }, handlers.OrderedStrictly())))
		go func() { _ = b.Run(context.Background()) }()
		<-b.Running()
		for i := range published {
			require.NoError(t, b.PublishMessages(t.Context(), &message.Message{
				Payload: []byte(`{}`), Metadata: message.Metadata{driver.HeaderType: fmt.Sprint("order.t", i), driver.HeaderID: fmt.Sprint(i)},
			}))
		}
		require.NoError(t, b.Idle(t.Context()))
		require.EqualValues(t, published, b.Stats().Groups["ledger"].Discarded)
		require.NoError(t, b.Close(context.Background()))
		require.Equal(t, most+1, strings.Count(log.String(), "level=WARN"))
		require.Equal(t, 1, strings.Count(log.String(), "more of them are counted only"))
	})
}

type order struct{}

func (order) EventType() (string, int) { return "order", 1 }

func TestFunc_decodeErrorsAreDistinct(t *testing.T) {
	call := func(topic, payload string) error {
		fn := handlers.Func("ledger", func(context.Context, orderPaid) error { return nil }).Bind(bus.Encoder{})
		_, err := fn(&message.Message{Payload: []byte(payload), Metadata: message.Metadata{driver.HeaderType: topic}})
		return err
	}
	var newer *bus.NewerVersionError
	require.ErrorAs(t, call("order.paid.v2", `{}`), &newer)
	for _, err := range []error{call("order.paid.v2", `{}`), call("order.paid.v1", `{`), call("order.paid.v1", `{}`), call("", `{}`)} {
		require.True(t, bus.IsPermanent(err), "%v", err)
	}
	require.NoError(t, call("order.paid.v1", `{"order_id":"a"}`))
}

func TestFunc_decodesForeignMessagesByTopic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got box[orderPaid]
		w := newWorld(t, handlers.Func("ledger", func(_ context.Context, e orderPaid) error {
			got.add(e)
			return nil
		}))
		foreign := message.NewMessage("w-1", []byte(`{"order_id":"a"}`))
		require.NoError(t, w.bus.Transport().Publish(t.Context(), "order.paid", foreign))
		synctest.Wait()
		require.Equal(t, []orderPaid{{OrderID: "a"}}, got.all())
	})
}

func TestFunc_usesTheBusCodec(t *testing.T) {
	w := worldOver(t, memory.New(memory.Config{}), bus.Config{Codec: bus.JSON{Strict: true}},
		handlers.Func("ledger", func(context.Context, orderPaid) error { return nil }))
	w.raw("order.paid.v1", `{"order_id":"a","tip":5}`)
	w.idle()
	require.Contains(t, w.poisoned("ledger").Fault.Text, `unknown field "tip"`)
}

func TestReply_publishesTheResult(t *testing.T) {
	var got box[bus.Envelope]
	w := newWorld(t,
		handlers.Reply("mail", func(_ context.Context, e orderPaid) (receiptSent, error) {
			return receiptSent(struct{ OrderID string }{e.OrderID}), nil
		}),
		handlers.Func("archive", func(ctx context.Context, e receiptSent) error {
			require.Equal(t, "o-1", e.OrderID)
			envelope, _ := bus.EnvelopeFrom(ctx)
			got.add(envelope)
			return nil
		}),
	)
	require.NoError(t, w.bus.Publish(t.Context(), orderPaid{OrderID: "o-1"}, bus.WithID("id-1")))
	w.idle()
	require.Len(t, got.all(), 1)
	require.Equal(t, "id-1", got.all()[0].CausationID)
	require.Equal(t, "receipt.sent.v1", got.all()[0].Type)
}

// ackOrder notes what reaches the transport, in its order.
type ackOrder struct {
	bus.Transport
	log  *box[string]
	fail func() error
}

func (a ackOrder) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	if topic == "receipt.sent.v1" {
		if err := a.fail(); err != nil {
			a.log.add("reply refused")
			return err
		}
		a.log.add("reply safe")
	}
	return a.Transport.Publish(ctx, topic, msgs...)
}

func (a ackOrder) Subscribe(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
	feed, err := a.Transport.Subscribe(ctx, s)
	if s.Group != "shop.mail" {
		return feed, err
	}
	return ackFeed{feed, a.log}, err
}

type ackFeed struct {
	driver.Receiver
	log *box[string]
}

func (f ackFeed) Next(ctx context.Context) (*driver.Delivery, error) {
	d, err := f.Receiver.Next(ctx)
	if err == nil {
		d.Settler = ackSettler{d.Settler, f.log}
	}
	return d, err
}

type ackSettler struct {
	driver.Settler
	log *box[string]
}

func (s ackSettler) Ack() error {
	s.log.add("acked")
	return s.Settler.Ack()
}

func (s ackSettler) Redeliver(after time.Duration) error {
	s.log.add("redelivered")
	return s.Settler.Redeliver(after)
}

func TestReply_isPublishedBeforeTheAck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		failures := 5
		transport := ackOrder{memory.New(memory.Config{}), new(box[string]), func() error {
			if failures--; failures >= 0 {
				return errBroken
			}
			return nil
		}}
		w := worldOver(t, transport, bus.Config{},
			handlers.Reply("mail", func(_ context.Context, e orderPaid) (receiptSent, error) { return receiptSent{}, nil }),
			handlers.Func("archive", func(context.Context, receiptSent) error { return nil }))
		w.publish(orderPaid{OrderID: "o-1"})
		w.idle()
		require.Equal(t, []string{
			"reply refused", "reply refused", "reply refused", "reply refused", "redelivered",
			"reply refused", "redelivered",
			"reply safe", "acked",
		}, transport.log.all())
		require.EqualValues(t, 1, w.stats("mail").Handled)
		require.EqualValues(t, 1, w.stats("archive").Handled, "and there is one reply")
	})
}

func TestReply_errorPublishesNothing(t *testing.T) {
	t.Run("of a function that failed", func(t *testing.T) {
		w := newWorld(t,
			handlers.Reply("mail", func(context.Context, orderPaid) (receiptSent, error) {
				return receiptSent{OrderID: "x"}, bus.Permanent(errBroken)
			}),
			handlers.Func("archive", func(context.Context, receiptSent) error { return nil }))
		w.publish(orderPaid{OrderID: "o-1"})
		w.idle()
		require.Zero(t, w.stats("archive").Expected)
		require.EqualValues(t, 1, w.stats("mail").Poisoned)
	})
	t.Run("that is nil", func(t *testing.T) {
		w := newWorld(t, handlers.Reply("mail", func(context.Context, orderPaid) (*orderShipped, error) { return nil, nil }))
		w.publish(orderPaid{OrderID: "o-1"})
		w.idle()
		require.Equal(t, "reply: event is nil", w.poisoned("mail").Fault.Text)
		require.Equal(t, 1, w.poisoned("mail").Fault.Tries)
	})
}

func TestRaw_getsACopyOnEveryTry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var payloads, headers box[string]
		w := newWorld(t, handlers.Raw("audit", []string{"order.>"}, func(ctx context.Context, msg *message.Message) error {
			payloads.add(string(msg.Payload))
			headers.add(msg.Metadata["seen"])
			require.NotNil(t, bus.DeliveryFrom(msg.Context()))
			require.Equal(t, ctx, msg.Context())
			copy(msg.Payload, "XXXXXXXX")
			msg.Metadata["seen"] = "yes"
			msg.Metadata[driver.HeaderType] = "other.v1"
			msg.Ack()
			msg.Ack()
			return errBroken
		}, handlers.Retry(bus.RetryPolicy{Delays: []time.Duration{time.Millisecond, time.Minute}}), handlers.Breaker(bus.NoBreaker())))
		w.raw("order.whatever.v3", `{"a":1}`)
		w.idle()
		require.Equal(t, []string{`{"a":1}`, `{"a":1}`, `{"a":1}`}, payloads.all())
		require.Equal(t, []string{"", "", ""}, headers.all())
		dead := w.poisoned("audit")
		require.Equal(t, `{"a":1}`, string(dead.Message.Payload))
		require.Equal(t, "order.whatever.v3", dead.Message.Metadata[driver.HeaderType])
		require.NotContains(t, dead.Message.Metadata, "seen")
	})
}

func TestRaw_getsMatchingMessages(t *testing.T) {
	var got box[string]
	w := newWorld(t, handlers.Raw("audit", []string{"order.*", "mail.>"}, func(_ context.Context, msg *message.Message) error {
		got.add(driver.TopicOf(msg))
		return nil
	}))
	for _, topic := range []string{"order.paid.v1", "order.paid", "mail.sent.v1", "mail"} {
		w.raw(topic, "\x00\xff")
	}
	w.idle()
	require.ElementsMatch(t, []string{"order.paid", "mail.sent.v1"}, got.all())
}

func TestOptions(t *testing.T) {
	policy := bus.RetryPolicy{Delays: []time.Duration{time.Second}}
	stack := middleware.NewStack()
	h := handlers.Func("ledger", func(context.Context, orderPaid) error { return nil },
		handlers.Concurrency(3), handlers.OrderedByKey(), handlers.Timeout(time.Minute),
		handlers.Retry(policy), handlers.Dedup(bus.DedupClosed), handlers.Stack(stack), handlers.WithoutParking())
	require.Equal(t, "ledger", h.Name)
	require.Equal(t, []bus.Type{{Name: "order.paid", Version: 1}}, h.Types)
	require.Equal(t, []string{"order.paid.*", "order.paid"}, h.Topics)
	require.Equal(t, 3, h.Concurrency)
	require.Equal(t, bus.OrderedByKey, h.Order)
	require.Equal(t, time.Minute, h.Timeout)
	require.Equal(t, &policy, h.Retry)
	require.Equal(t, bus.DedupClosed, h.Dedup)
	require.Equal(t, stack, h.Stack)
	require.True(t, h.NoParking)
	require.Equal(t, bus.OrderedStrictly, handlers.Raw("audit", nil, func(context.Context, *message.Message) error { return nil }, handlers.OrderedStrictly()).Order)
	require.Equal(t, bus.DedupOff, handlers.Routes("all", nil, handlers.Dedup(bus.DedupOff)).Dedup)
}

func TestOrderedByKey_oneMessagePerKeyAtATime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got box[string]
		w := newWorld(t, handlers.Func("ledger", func(ctx context.Context, e orderPaid) error {
			if e.Cents == 1 && bus.DeliveryFrom(ctx).Try == 1 {
				return bus.RetryAfter(errBroken, time.Minute)
			}
			time.Sleep(time.Duration(10-e.Cents) * time.Second)
			got.add(e.OrderID + string(rune('0'+e.Cents)))
			return nil
		}, handlers.OrderedByKey()))
		for cents := range int64(3) {
			for _, order := range []string{"a", "b"} {
				require.NoError(t, w.bus.Publish(t.Context(), orderPaid{OrderID: order, Cents: cents + 1}, bus.WithKey(order)))
			}
		}
		require.NoError(t, w.bus.Publish(t.Context(), orderPaid{OrderID: "c", Cents: 2}, bus.WithKey("c")))
		w.idle()
		require.Equal(t, "c2", got.all()[0], "another key goes past")
		var a []string
		for _, s := range got.all() {
			if s[0] == 'a' {
				a = append(a, s)
			}
		}
		require.Equal(t, []string{"a1", "a2", "a3"}, a)
	})
}

func TestOptions_mustNotBeNil(t *testing.T) {
	fn := func(context.Context, *message.Message) error { return nil }
	require.PanicsWithValue(t, `handlers: handler "audit": option 2 of 2 is nil`, func() {
		handlers.Raw("audit", []string{"a"}, fn, handlers.Concurrency(1), nil)
	})
	require.PanicsWithValue(t, `handlers: handler "audit": option 1 of 1 is nil`, func() {
		handlers.Routes("audit", nil, nil)
	})
}

// A redelivered message publishes its reply twice; consumers must be able to tell.
func TestReply_hasOneIDOverAllTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ids box[string]
		n := 0
		w := newWorld(t,
			handlers.Reply("ship", func(_ context.Context, e orderPaid) (orderPaidV2, error) {
				if n++; n == 2 || n == 3 {
					return orderPaidV2{}, errBroken
				}
				return orderPaidV2{}, nil
			}, handlers.Dedup(bus.DedupOff)),
			handlers.Raw("seen", []string{"order.paid.v2"}, func(_ context.Context, msg *message.Message) error {
				ids.add(driver.MessageID(msg))
				return nil
			}, handlers.Dedup(bus.DedupOff)))
		for _, id := range []string{"1", "1", "2"} {
			require.NoError(t, w.bus.Publish(t.Context(), orderPaid{OrderID: id}, bus.WithID("paid-"+id)))
			w.idle()
		}
		got := ids.all()
		require.Len(t, got, 3)
		require.Equal(t, got[0], got[1])
		require.NotEqual(t, got[1], got[2])
	})
}

func TestDecode_refusesAnotherMediaType(t *testing.T) {
	for contentType, refused := range map[string]bool{
		"application/x-protobuf": true, "text/plain": true, "garbage": true,
		"": false, "application/json": false, "application/json; charset=utf-8": false, "Application/JSON": false,
		"application/vnd.shop+json": false, "application/cloudevents+json": false,
	} {
		t.Run(contentType, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				called := 0
				w := newWorld(t, handlers.Func("ledger", func(context.Context, orderPaid) error {
					called++
					return nil
				}))
				msg := message.NewMessage("a", []byte(`{"order_id":"a"}`))
				msg.Metadata = message.Metadata{driver.HeaderType: "order.paid.v1", driver.HeaderContentType: contentType}
				require.NoError(t, w.bus.PublishMessages(t.Context(), msg))
				w.idle()
				if !refused {
					require.Equal(t, 1, called)
					return
				}
				require.Zero(t, called)
				require.Contains(t, w.poisoned("ledger").Fault.Text, `decode order.paid.v1: its content type is "`+contentType+`", and the codec reads application/json`)
				require.Equal(t, 1, w.poisoned("ledger").Fault.Attempts)
			})
		})
	}
}
