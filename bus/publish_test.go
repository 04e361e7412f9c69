package bus_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/memory"
)

// placed is an event of a type that nobody handles.
type placed struct{}

func (placed) EventType() (string, int) { return "order.placed", 1 }

// sized has a payload of that many bytes, and the quotes of its JSON.
type sized int

func (sized) EventType() (string, int) { return "order.paid", 1 }
func (s sized) MarshalJSON() ([]byte, error) {
	return []byte(`"` + strings.Repeat("x", int(s)) + `"`), nil
}

func TestPublish_rejectsInvalidMessages(t *testing.T) {
	var nilPointer *orderShipped
	for name, c := range map[string]struct {
		publish func(context.Context, *bus.Bus) error
		want    string
		is      error
	}{
		"no event":              {func(ctx context.Context, b *bus.Bus) error { return b.Publish(ctx, nil) }, "event is nil", nil},
		"a nil pointer":         {func(ctx context.Context, b *bus.Bus) error { return b.Publish(ctx, nilPointer) }, "event is nil", nil},
		"an invalid event":      {func(ctx context.Context, b *bus.Bus) error { return b.Publish(ctx, refusing{}) }, "order.refused.v1: invalid event: ", errBroken},
		"what JSON can't say":   {func(ctx context.Context, b *bus.Bus) error { return b.Publish(ctx, unencodable{Reply: make(chan int)}) }, "encode bus_test.unencodable", nil},
		"a panicking EventType": {func(ctx context.Context, b *bus.Bus) error { return b.Publish(ctx, asksItsFields{}) }, "EventType of bus_test.asksItsFields panics", nil},
		"version 0":             {func(ctx context.Context, b *bus.Bus) error { return b.Publish(ctx, badVersion{}) }, "versions start at 1", nil},
		"a name with a space":   {func(ctx context.Context, b *bus.Bus) error { return b.Publish(ctx, badName{}) }, "white space", nil},
		"a payload of 1,001 B":  {func(ctx context.Context, b *bus.Bus) error { return b.Publish(ctx, sized(999), bus.WithID("big")) }, "message big has a payload of 1001 bytes; at most 1000 are allowed", nil},
		"an event among others": {func(ctx context.Context, b *bus.Bus) error { return b.PublishAll(ctx, []bus.Event{orderPaid{}, nil}) }, "event 2 of 2: event is nil", nil},
		"one id for two events": {func(ctx context.Context, b *bus.Bus) error {
			return b.PublishAll(ctx, []bus.Event{orderPaid{}, orderPaid{}}, bus.WithID("a"))
		}, "the option ID is for one event", nil},
		"an option that is nil": {func(ctx context.Context, b *bus.Bus) error {
			return b.Publish(ctx, orderPaid{}, bus.WithKey("a"), nil)
		}, "option 2 of 2 is nil", nil},
		"no message": {func(ctx context.Context, b *bus.Bus) error {
			return b.PublishMessages(ctx, newMessage(paidTopic, "a"), nil)
		}, "message 2 of 2: message is nil", nil},
		"a message without type": {func(ctx context.Context, b *bus.Bus) error {
			return b.PublishMessages(ctx, &message.Message{UUID: "w-1"})
		}, "message w-1: its ce_type: topic is empty", nil},
		"a message to a pattern":                     {func(ctx context.Context, b *bus.Bus) error { return b.PublishMessages(ctx, newMessage("order.*", "a")) }, "wildcards belong in a subscription", nil},
		"an event nobody wants, where that is asked": {func(ctx context.Context, b *bus.Bus) error { return b.Publish(ctx, placed{}, bus.RequireRoute()) }, "publish order.placed.v1: no group wants the message", bus.ErrUnroutable},
		"after its context": {func(ctx context.Context, b *bus.Bus) error {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return b.Publish(ctx, orderPaid{})
		}, "publish order.paid.v1", context.Canceled},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBus(t, bus.Config{MaxPayload: 1000})
			handle(t, b, "ledger", ok)
			run(t, b)
			err := c.publish(t.Context(), b)
			require.ErrorContains(t, err, c.want)
			require.True(t, strings.HasPrefix(err.Error(), "bus: publish"), err.Error())
			require.Equal(t, name == "an invalid event", errors.Is(err, bus.ErrInvalid))
			if c.is != nil {
				require.ErrorIs(t, err, c.is)
			}
			require.NoError(t, b.Idle(t.Context()), "what is not published is not waited for")
			require.Equal(t, b.Stats().Unrouted, b.Stats().Published, "what nobody wants is safe all the same")
			require.Zero(t, b.Stats().Groups["ledger"].Expected)
			require.Zero(t, b.Stats().Groups["ledger"].Handled)
		})
	}
}

func TestPublish_acceptsValidMessages(t *testing.T) {
	for name, publish := range map[string]func(context.Context, *bus.Bus) error{
		"an event":                    func(ctx context.Context, b *bus.Bus) error { return b.Publish(ctx, orderPaid{}) },
		"a pointer to an event":       func(ctx context.Context, b *bus.Bus) error { return b.Publish(ctx, &orderPaid{}) },
		"the largest payload allowed": func(ctx context.Context, b *bus.Bus) error { return b.Publish(ctx, sized(998)) },
		"a list of one with an id": func(ctx context.Context, b *bus.Bus) error {
			return b.PublishAll(ctx, []bus.Event{orderPaid{}}, bus.WithID("a"))
		},
		"a message": func(ctx context.Context, b *bus.Bus) error { return b.PublishMessages(ctx, newMessage(paidTopic, "a")) },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBus(t, bus.Config{MaxPayload: 1000})
			handle(t, b, "ledger", ok)
			run(t, b)
			require.NoError(t, publish(t.Context(), b))
			require.NoError(t, b.Idle(t.Context()))
			require.EqualValues(t, 1, b.Stats().Groups["ledger"].Handled)
		})
	}
	t.Run("nothing", func(t *testing.T) {
		b := newBus(t, bus.Config{})
		require.NoError(t, b.PublishAll(t.Context(), nil))
		require.NoError(t, b.PublishMessages(t.Context()))
		require.Zero(t, b.Stats().Published)
	})
}

func TestPublish_failsAfterClose(t *testing.T) {
	transport := newFaulty()
	transport.publish = func(context.Context, string, []*message.Message) error {
		t.Error("the transport was asked")
		return nil
	}
	b := busOver(t, transport, bus.Config{})
	handle(t, b, "ledger", ok)
	require.NoError(t, b.Close(t.Context()))
	require.ErrorIs(t, b.Publish(t.Context(), orderPaid{}), bus.ErrClosed)
	require.ErrorIs(t, b.PublishAll(t.Context(), []bus.Event{orderPaid{}}), bus.ErrClosed)
	require.ErrorIs(t, b.PublishMessages(t.Context(), newMessage(paidTopic, "a")), bus.ErrClosed)
}

func TestPublish_rejectsUnsupportedDelays(t *testing.T) {
	transport := newFaulty()
	transport.caps = &driver.Capabilities{Patterns: true}
	b := busOver(t, transport, bus.Config{})
	handle(t, b, "ledger", ok)
	require.ErrorIs(t, b.Publish(t.Context(), orderPaid{}, bus.WithDelay(time.Hour)), bus.ErrUnsupported)
	require.NoError(t, b.Publish(t.Context(), orderPaid{}))
}

func TestPublish_delayedEventIsNotDeliveredEarlier(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, bus.Config{})
		began := time.Now()
		var after time.Duration
		handle(t, b, "ledger", func(context.Context, *message.Message) error {
			after = time.Since(began)
			return nil
		})
		run(t, b)
		require.NoError(t, b.Publish(t.Context(), orderPaid{}, bus.WithDelay(time.Hour)))
		require.NoError(t, b.Idle(t.Context()))
		require.Equal(t, time.Hour, after)
	})
}

func TestPublish_beforeRunWaits(t *testing.T) {
	b := newBus(t, bus.Config{})
	handle(t, b, "ledger", ok)
	publish(t, b, "a", "b")
	require.EqualValues(t, 2, b.Stats().Groups["ledger"].Outstanding())
	run(t, b)
	require.NoError(t, b.Idle(t.Context()))
	require.EqualValues(t, 2, b.Stats().Groups["ledger"].Handled)
}

func TestPublishAll_publishesAllOrNone(t *testing.T) {
	b := newBus(t, bus.Config{})
	var seen log
	handle(t, b, "audit", func(_ context.Context, msg *message.Message) error {
		seen.add(driver.TopicOf(msg))
		return nil
	}, topics("order.>"), concurrency(1))
	run(t, b)

	require.Error(t, b.PublishAll(t.Context(), []bus.Event{orderPaid{}, placed{}, refusing{}}))
	require.NoError(t, b.Idle(t.Context()))
	require.Empty(t, seen.all(), "one could not be encoded")

	require.NoError(t, b.PublishAll(t.Context(), []bus.Event{orderPaid{}, placed{}, placed{}, orderPaid{}}))
	require.NoError(t, b.Idle(t.Context()))
	require.Equal(t, []string{paidTopic, "order.placed.v1", "order.placed.v1", paidTopic}, seen.all(), "in their order")
}

func TestPublishAll_batchesRunsOfOneType(t *testing.T) {
	transport := newFaulty()
	var calls []string
	fail := errors.New("the transport is away")
	transport.publish = func(_ context.Context, topic string, msgs []*message.Message) error {
		calls = append(calls, topic+strings.Repeat("+", len(msgs)))
		if len(calls) == 4 {
			return fail
		}
		return nil
	}
	b := busOver(t, transport, bus.Config{})
	handle(t, b, "audit", ok, topics("order.>"))

	events := []bus.Event{orderPaid{}, orderPaid{}, placed{}, orderPaid{}}
	require.NoError(t, b.PublishAll(t.Context(), events))
	require.Equal(t, []string{"order.paid.v1++", "order.placed.v1+", "order.paid.v1+"}, calls)

	err := b.PublishAll(t.Context(), events)
	require.ErrorIs(t, err, fail)
	require.ErrorContains(t, err, "bus: publish order.paid.v1: the transport is away (and 2 messages behind were not tried)")
	require.Len(t, calls, 4)
	require.EqualValues(t, 4, b.Stats().Published)
}

// Two runs are safe in part; what is behind the run that fails was never tried.
func TestPublishError_namesEveryMessageThatIsNotKnownToBeSafe(t *testing.T) {
	away := errors.New("the transport is away")
	for name, c := range map[string]struct {
		fail func(msgs []*message.Message) error
		want []string
	}{
		"a part of the run failed": {func(msgs []*message.Message) error { return &bus.PublishError{Failed: msgs[1:], Err: away} }, []string{"3", "4", "5"}},
		"the run failed":           {func([]*message.Message) error { return away }, []string{"2", "3", "4", "5"}},
		"the run is safe, and no group wants it": {func(msgs []*message.Message) error {
			return &bus.UnroutableError{Topics: []string{paidTopic, paidTopic}, Strict: true}
		}, []string{"4", "5"}},
	} {
		for by, publish := range map[string]func(context.Context, *bus.Bus, []*message.Message) error{
			"messages": func(ctx context.Context, b *bus.Bus, msgs []*message.Message) error {
				return b.PublishMessages(ctx, msgs...)
			},
			"messages in a transaction": func(ctx context.Context, b *bus.Bus, msgs []*message.Message) error {
				return b.InTx("tx").PublishMessages(ctx, msgs...)
			},
		} {
			t.Run(name+", "+by, func(t *testing.T) {
				transport := &faultyTx{newFaulty()}
				runs := 0
				transport.publish = func(_ context.Context, _ string, msgs []*message.Message) error {
					if runs++; runs == 2 {
						return c.fail(msgs)
					}
					return nil
				}
				b := busOver(t, transport, bus.Config{})
				handle(t, b, "audit", ok, topics("order.>"))
				err := publish(t.Context(), b, []*message.Message{
					newMessage("order.placed.v1", "1"),
					newMessage(paidTopic, "2"), newMessage(paidTopic, "3"),
					newMessage("order.placed.v1", "4"), newMessage(paidTopic, "5"),
				})
				var partly *bus.PublishError
				require.ErrorAs(t, err, &partly)
				var failed []string
				for _, msg := range partly.Failed {
					failed = append(failed, msg.UUID)
				}
				require.Equal(t, c.want, failed)
			})
		}
	}
	t.Run("nothing is safe", func(t *testing.T) {
		transport := newFaulty()
		transport.publish = func(context.Context, string, []*message.Message) error { return away }
		b := busOver(t, transport, bus.Config{})
		require.ErrorIs(t, b.Publish(t.Context(), placed{}), away)
		require.ErrorContains(t, b.Publish(t.Context(), placed{}), "bus: publish order.placed.v1: the transport is away")
	})
}

// faultyTx publishes in transactions, with the same faults.
type faultyTx struct{ *faulty }

func (f *faultyTx) PublishTx(ctx context.Context, _ any, topic string, msgs ...*message.Message) error {
	return f.Publish(ctx, topic, msgs...)
}

func TestPublishMessages_keepsHeaders(t *testing.T) {
	b := newBus(t, bus.Config{})
	handle(t, b, "ledger", ok)
	msg, err := bus.ParseCloudEvent([]byte(cloudEvent(`"tenant":"acme","correlationid":"c-1","data":{"cents": 5}`)))
	require.NoError(t, err)
	require.NoError(t, b.PublishMessages(t.Context(), msg, &message.Message{UUID: "w-1", Metadata: message.Metadata{driver.HeaderType: paidTopic}}))

	d := next(t, b, "shop.ledger")
	require.Equal(t, `{"cents": 5}`, string(d.Message.Payload))
	require.Equal(t, "acme", d.Message.Metadata["ce_tenant"])
	require.Equal(t, "c-1", bus.EnvelopeOf(d.Message).CorrelationID)
	require.Equal(t, "e-1", driver.MessageID(d.Message))
}

func TestPublish_countsUnroutableMessages(t *testing.T) {
	var lines log
	b := newBus(t, bus.Config{Logger: warnings(&lines)})
	handle(t, b, "ledger", ok)
	for range 3 {
		require.NoError(t, b.Publish(t.Context(), placed{}))
	}
	require.EqualValues(t, 3, b.Stats().Published)
	require.EqualValues(t, 3, b.Stats().Unrouted)
	require.NoError(t, b.Idle(t.Context()))
	require.Len(t, lines.all(), 1, "logged once per topic: %v", lines.all())
	require.Contains(t, lines.all()[0], "no group subscribes to this topic")
}

func TestPublish_strictTransportRejectsUnroutable(t *testing.T) {
	transport := newFaulty()
	transport.publish = func(_ context.Context, topic string, _ []*message.Message) error {
		return &bus.UnroutableError{Topics: []string{topic}, Strict: true}
	}
	b := busOver(t, transport, bus.Config{})
	require.ErrorIs(t, b.Publish(t.Context(), placed{}), bus.ErrUnroutable)
	require.EqualValues(t, 1, b.Stats().Unrouted)
}

func TestIdle_waitsForAPartlyPublishedBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := busOver(t, memory.New(memory.Config{Queue: 2}), bus.Config{})
		release := make(chan struct{})
		handle(t, b, "ledger", func(context.Context, *message.Message) error {
			<-release
			return nil
		}, concurrency(1))
		run(t, b)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := b.PublishAll(ctx, []bus.Event{orderPaid{}, orderPaid{}, orderPaid{}})
		require.ErrorIs(t, err, context.DeadlineExceeded)
		var partly *bus.PublishError
		require.ErrorAs(t, err, &partly)
		require.Len(t, partly.Failed, 1, "two are queued")
		release <- struct{}{}
		release <- struct{}{}
		publish(t, b, "a")
		idle := make(chan struct{})
		go func() {
			_ = b.Idle(context.Background())
			close(idle)
		}()
		synctest.Wait()
		select {
		case <-idle:
			t.Error("it is idle, and a message is in its handler")
		default:
		}
		close(release)
		<-idle
	})
}

// recorder is publish middleware that writes down what goes through it.
type recorder struct {
	message.Publisher
	name string
	log  *log
}

func (r recorder) Publish(topic string, msgs ...*message.Message) error {
	for _, msg := range msgs {
		msg.Metadata["by"] += r.name
		if value, ok := msg.Context().Value(contextKey{}).(string); ok {
			r.log.add(r.name + " " + topic + " " + value)
		}
	}
	return r.Publisher.Publish(topic, msgs...)
}

type contextKey struct{}

func TestPublishMiddleware(t *testing.T) {
	decorate := func(l *log, name string) message.PublisherDecorator {
		return func(p message.Publisher) (message.Publisher, error) { return recorder{p, name, l}, nil }
	}

	t.Run("runs outermost first, and the context goes through it to the transport", func(t *testing.T) {
		var l log
		transport := newFaulty()
		transport.publish = func(ctx context.Context, topic string, _ []*message.Message) error {
			l.add("transport " + topic + " " + ctx.Value(contextKey{}).(string))
			return nil
		}
		b := busOver(t, transport, bus.Config{Decorators: []message.PublisherDecorator{decorate(&l, "outer"), decorate(&l, "inner")}})
		handle(t, b, "ledger", ok)
		ctx := context.WithValue(t.Context(), contextKey{}, "acme")
		require.NoError(t, b.Publish(ctx, orderPaid{}))
		require.Equal(t, []string{"outer order.paid.v1 acme", "inner order.paid.v1 acme", "transport order.paid.v1 acme"}, l.all())
		require.Equal(t, "outerinner", next(t, b, "shop.ledger").Message.Metadata["by"])

		require.NoError(t, b.PublishMessages(ctx, newMessage(paidTopic, "encoded elsewhere")))
		require.Len(t, l.all(), 6, "the context is the call's, not the message's")
	})
	t.Run("does not hide what nobody wants", func(t *testing.T) {
		b := newBus(t, bus.Config{Decorators: []message.PublisherDecorator{decorate(new(log), "outer")}})
		require.NoError(t, b.Publish(t.Context(), placed{}))
		require.EqualValues(t, 1, b.Stats().Unrouted)
		require.ErrorIs(t, b.Publish(t.Context(), placed{}, bus.RequireRoute()), bus.ErrUnroutable)
	})
	t.Run("that can't be made fails the bus", func(t *testing.T) {
		_, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: "shop", Decorators: []message.PublisherDecorator{
			decorate(new(log), "fine"),
			func(message.Publisher) (message.Publisher, error) { return nil, errBroken },
		}})
		require.ErrorIs(t, err, errBroken)
	})
}

// witness is an observer that keeps what it was told of publishing.
type witness struct{ published []bus.Publication }

func (w *witness) Published(_ context.Context, p bus.Publication) {
	w.published = append(w.published, p)
}
func (w *witness) Started(ctx context.Context, _ *bus.Delivery) context.Context { return ctx }
func (w *witness) Finished(context.Context, *bus.Delivery, bus.Observation)     {}

func TestObserver_getsEachPublish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		transport := newFaulty()
		transport.publish = func(ctx context.Context, topic string, _ []*message.Message) error {
			time.Sleep(time.Second)
			if topic == "order.refused.v1" {
				return errBroken
			}
			return nil
		}
		var w witness
		b := busOver(t, transport, bus.Config{Observers: []bus.Observer{&w}})
		handle(t, b, "ledger", ok)
		require.NoError(t, b.PublishAll(t.Context(), []bus.Event{orderPaid{}, orderPaid{}, placed{}}))
		require.Error(t, b.PublishMessages(t.Context(), newMessage("order.refused.v1", "a")))
		require.Error(t, b.Publish(t.Context(), nil), "never got as far as the transport")

		require.Len(t, w.published, 3)
		require.Equal(t, paidTopic, w.published[0].Topic)
		require.Len(t, w.published[0].Messages, 2)
		require.Equal(t, time.Second, w.published[0].Took)
		require.NoError(t, w.published[0].Err)
		require.Zero(t, w.published[0].Unrouted)
		require.Equal(t, 1, w.published[1].Unrouted)
		require.NoError(t, w.published[1].Err, "it is no error unless asked for")
		require.ErrorIs(t, w.published[2].Err, errBroken)
	})
}

func (*witness) BreakerChanged(bus.BreakerChange) {}
