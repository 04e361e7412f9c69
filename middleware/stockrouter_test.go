package middleware_test

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	stock "github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
)

// The steps in a stock Watermill router over GoChannel, and the faults of stock parts beside ours.

// stockRouter is a running message.Router over GoChannel.
type stockRouter struct {
	*testing.T
	pubSub *gochannel.GoChannel
	router *message.Router
	closed chan struct{}
}

// newStockRouter runs one handler of order.placed.v1, which publishes what it returns to "replies".
func newStockRouter(t *testing.T, pubSub *gochannel.GoChannel, fn message.HandlerFunc, steps ...message.HandlerMiddleware) *stockRouter {
	t.Helper()
	r := &stockRouter{T: t, pubSub: pubSub, closed: make(chan struct{})}
	var err error
	r.router, err = message.NewRouter(message.RouterConfig{CloseTimeout: time.Minute}, watermill.NopLogger{})
	require.NoError(t, err)
	r.router.AddMiddleware(steps...)
	r.router.AddHandler("ledger", orderTopic, r.pubSub, "replies", unclosed{r.pubSub}, fn)
	go func() {
		defer close(r.closed)
		if err := r.router.Run(context.Background()); err != nil {
			t.Error(err)
		}
	}()
	<-r.router.Running()
	t.Cleanup(func() {
		require.NoError(t, r.router.Close())
		<-r.closed
		require.NoError(t, r.pubSub.Close())
	})
	return r
}

func newGoChannel() *gochannel.GoChannel {
	return gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
}

// unclosed is a publisher that a router's end leaves open.
type unclosed struct{ message.Publisher }

func (unclosed) Close() error { return nil }

// listen subscribes to a topic.
func (r *stockRouter) listen(topic string) <-chan *message.Message {
	r.Helper()
	msgs, err := r.pubSub.Subscribe(r.Context(), topic)
	require.NoError(r, err)
	return msgs
}

func (r *stockRouter) publish(id, ceType, payload string) {
	r.Helper()
	msg := message.NewMessage(id, []byte(payload))
	if ceType != "" {
		msg.Metadata[driver.HeaderType] = ceType
	}
	require.NoError(r, r.pubSub.Publish(orderTopic, msg))
}

// receive takes and acks one message.
func receive(t *testing.T, msgs <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case msg := <-msgs:
		msg.Ack()
		return msg
	case <-time.After(time.Minute):
		t.Fatal("no message came")
		return nil
	}
}

func TestStockRouter_runsTheStack(t *testing.T) {
	version, err := middleware.Version([]bus.Type{placed(2)}, 0, v1to2())
	require.NoError(t, err)
	steps := func(poisonTo message.Publisher, a *audience, bound time.Duration) []message.HandlerMiddleware {
		return []message.HandlerMiddleware{
			middleware.Observe(a),
			middleware.Poison(middleware.PoisonConfig{Publisher: poisonTo, Topic: "shop.poison"}),
			middleware.Dedup(middleware.NewMemoryStore(0), middleware.DedupConfig{}),
			middleware.Retry(bus.RetryPolicy{Delays: []time.Duration{time.Millisecond, time.Millisecond, time.Hour}}),
			middleware.Recover,
			middleware.Timeout(bound),
			version,
		}
	}

	const bounded = "every try is bounded"
	var deadlines []time.Time
	for name, c := range map[string]struct {
		ceType, payload string
		fail            func(ctx context.Context, n int) error
		calls           int
		fault           string // "" means that it is handled
		outcome         bus.Outcome
	}{
		"an event is handled": {
			"order.placed.v2", `{"order_id":"a","cents":125}`, func(context.Context, int) error { return nil }, 1, "", bus.Handled,
		},
		"an old version is lifted": {
			"order.placed.v1", `{"order_id":"a","total":1.25}`, func(context.Context, int) error { return nil }, 1, "", bus.Handled,
		},
		"a message without a header has its topic's type": {
			"", `{"order_id":"a","total":1.25}`, func(context.Context, int) error { return nil }, 1, "", bus.Handled,
		},
		"a failure is retried": {
			"order.placed.v2", `{"order_id":"a","cents":125}`, func(_ context.Context, n int) error {
				if n <= 2 {
					return errHandler
				}
				return nil
			}, 3, "", bus.Handled,
		},
		"and poisoned where the long delays would begin": {
			"order.placed.v2", `{"order_id":"a","cents":125}`, func(context.Context, int) error { return errHandler }, 3, "handler failed", bus.Poisoned,
		},
		"a panic is a failure": {
			"order.placed.v2", `{"order_id":"a","cents":125}`, func(context.Context, int) error { panic("boom") }, 3, "panic: boom", bus.Poisoned,
		},
		bounded: {
			"order.placed.v2", `{"order_id":"a","cents":125}`, func(ctx context.Context, _ int) error {
				deadline, _ := ctx.Deadline()
				deadlines = append(deadlines, deadline)
				<-ctx.Done()
				return ctx.Err()
			}, 3, "timed out after 500ms: context deadline exceeded", bus.Poisoned,
		},
		"permanent is permanent": {
			"order.placed.v2", `{"order_id":"a","cents":125}`, func(context.Context, int) error { return bus.Permanent(errHandler) }, 1, "handler failed", bus.Poisoned,
		},
		"what does not decode is poisoned at once": {
			"order.placed.v2", `{"order_id":`, func(context.Context, int) error { return nil }, 0, "decode order.placed.v2: unexpected end of JSON input", bus.Poisoned,
		},
		"and an unknown version": {
			"order.placed.v7", `{}`, func(context.Context, int) error { return nil }, 0, "order.placed.v7 is newer than what the handler takes", bus.Poisoned,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var a audience
			var calls atomic.Int32
			h := handlers.Reply("ledger", func(ctx context.Context, e placedV2) (placedV3, error) {
				err := c.fail(ctx, int(calls.Add(1)))
				return placedV3{OrderID: e.OrderID, Cents: e.Cents, Currency: "EUR"}, err
			})
			pubSub := newGoChannel()
			bound := time.Minute // a busy machine may be slow
			if name == bounded {
				bound = 500 * time.Millisecond
			}
			r := newStockRouter(t, pubSub, h.Bind(bus.Encoder{Source: "shop"}), steps(pubSub, &a, bound)...)
			replies, dead := r.listen("replies"), r.listen("shop.poison")
			r.publish("id-1", c.ceType, c.payload)
			if c.fault == "" {
				reply := receive(t, replies)
				require.JSONEq(t, `{"order_id":"a","cents":125,"currency":"EUR"}`, string(reply.Payload))
				require.Equal(t, "id-1", reply.Metadata[driver.HeaderCausationID])
				require.Equal(t, "order.placed.v3", reply.Metadata[driver.HeaderType])
			} else {
				msg := receive(t, dead)
				fault := driver.FaultOf(msg.Metadata)
				require.Contains(t, fault.Text, c.fault)
				require.Equal(t, max(c.calls, 1), fault.Tries)
				require.Equal(t, "ledger", fault.Handler)
				require.Equal(t, orderTopic, fault.Topic)
				require.Equal(t, c.payload, string(msg.Payload))
			}
			require.NoError(t, r.router.Close())
			<-r.closed
			require.EqualValues(t, c.calls, calls.Load())
			require.Equal(t, []bus.Outcome{c.outcome}, a.outcomes())
			if name == bounded {
				require.True(t, deadlines[0].Before(deadlines[1]) && deadlines[1].Before(deadlines[2]), "each try has its own time")
			}
		})
	}
}

// deploy closes a router while its handler waits for something.
func deploy(t *testing.T, steps ...message.HandlerMiddleware) {
	started := make(chan struct{})
	start := sync.OnceFunc(func() { close(started) })
	r := newStockRouter(t, newGoChannel(), func(msg *message.Message) ([]*message.Message, error) {
		start()                // GoChannel brings a nacked message again at once, also while it closes
		<-msg.Context().Done() // a healthy handler, in a query
		return nil, msg.Context().Err()
	}, steps...)
	r.publish("healthy", orderTopic, `{}`)
	<-started
	require.NoError(t, r.router.Close())
	<-r.closed
}

func TestStockRouter_closingPoisonsHealthyMessages(t *testing.T) {
	t.Run("with the stock poison queue", func(t *testing.T) {
		var dead publisher
		poison, err := stock.PoisonQueue(&dead, "dead")
		require.NoError(t, err)
		deploy(t, poison)
		require.Len(t, dead.messages, 1)
		require.Equal(t, "healthy", dead.messages[0].UUID)
		require.Equal(t, "context canceled", dead.messages[0].Metadata[stock.ReasonForPoisonedKey])
	})
	t.Run("not with leat's, in the same router", func(t *testing.T) {
		var dead publisher
		var a audience
		deploy(t, middleware.Observe(&a), middleware.Poison(middleware.PoisonConfig{Publisher: &dead, Topic: "dead"}))
		require.Empty(t, dead.messages)
		require.NotEmpty(t, a.outcomes())
		for _, outcome := range a.outcomes() {
			require.Equal(t, bus.Interrupted, outcome)
		}
	})
	t.Run("and a leat bus lets it finish", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := serve(t, newBus(t, nil, standard()), rawHandler("ledger", func(ctx context.Context, _ *message.Message) error {
				select {
				case <-time.After(10 * time.Second):
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}))
			s.publish("healthy")
			synctest.Wait()
			require.NoError(t, s.stop())
			require.EqualValues(t, 1, s.stats("ledger").Handled)
			require.Empty(t, s.poisoned("ledger"))
		})
	})
}

// gaps returns the delays between the tries of a handler that always fails.
func gaps(t *testing.T, retry message.HandlerMiddleware) (gaps []time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		last := time.Now()
		_, err := retry(func(*message.Message) ([]*message.Message, error) {
			gaps = append(gaps, time.Since(last))
			last = time.Now()
			return nil, errHandler
		})(message.NewMessage("a", nil))
		require.ErrorIs(t, err, errHandler)
	})
	return gaps[1:]
}

func TestStockRouter_retryDoesNotGrowWithoutAMaximum(t *testing.T) {
	got := gaps(t, stock.Retry{MaxRetries: 4, InitialInterval: 100 * time.Millisecond, Multiplier: 3}.Middleware)
	require.Len(t, got, 4)
	for _, gap := range got {
		require.LessOrEqual(t, gap, 100*time.Millisecond, "%v", got)
	}

	delays := []time.Duration{100 * time.Millisecond, 300 * time.Millisecond, 900 * time.Millisecond, 2700 * time.Millisecond}
	got = gaps(t, middleware.Retry(bus.RetryPolicy{Delays: delays, InProcess: time.Minute, Jitter: -1}))
	require.Equal(t, delays, got)
}

func TestStockRouter_retryKeepsADeadContext(t *testing.T) {
	play := func(retry, timeout message.HandlerMiddleware) (live []bool) {
		synctest.Test(t, func(t *testing.T) {
			_, err := retry(timeout(func(msg *message.Message) ([]*message.Message, error) {
				live = append(live, msg.Context().Err() == nil)
				<-msg.Context().Done()
				return nil, msg.Context().Err()
			}))(message.NewMessage("a", nil))
			require.Error(t, err)
		})
		return live
	}
	require.Equal(t, []bool{true, false, false},
		play(stock.Retry{MaxRetries: 2, InitialInterval: time.Second}.Middleware, stock.Timeout(time.Minute)))
	require.Equal(t, []bool{true, true, true},
		play(middleware.Retry(bus.RetryPolicy{Delays: []time.Duration{time.Second, time.Second}}), middleware.Timeout(time.Minute)))
}

func TestStockRouter_poisonQueuePublishesFailedResults(t *testing.T) {
	var dead publisher
	poison, err := stock.PoisonQueue(&dead, "dead")
	require.NoError(t, err)
	produced, err := poison(returns(errHandler))(event("a"))
	require.NoError(t, err)
	require.Len(t, produced, 1, "and the router publishes it")

	produced, err = middleware.Poison(middleware.PoisonConfig{Publisher: &dead, Topic: "dead"})(returns(errHandler))(event("a"))
	require.NoError(t, err)
	require.Empty(t, produced)
	require.Len(t, dead.messages, 2)
}

func TestStockRouter_recovererWritesTheStackIntoAHeader(t *testing.T) {
	panics := func(*message.Message) ([]*message.Message, error) { panic("boom") }
	var dead publisher
	poison, err := stock.PoisonQueue(&dead, "dead")
	require.NoError(t, err)
	_, err = poison(stock.Recoverer(panics))(event("a"))
	require.NoError(t, err)
	require.Contains(t, dead.messages[0].Metadata[stock.ReasonForPoisonedKey], "stockrouter_test.go")

	_, err = middleware.Poison(middleware.PoisonConfig{Publisher: &dead, Topic: "dead"})(middleware.Recover(panics))(event("a"))
	require.NoError(t, err)
	require.Equal(t, "panic: boom", dead.messages[1].Metadata[driver.HeaderFaultError])
}

func TestGoChannel_dropsWithoutSubscribers(t *testing.T) {
	pubSub := gochannel.NewGoChannel(gochannel.Config{}, watermill.NopLogger{})
	require.NoError(t, pubSub.Publish(orderTopic, message.NewMessage("early", nil)), "it says that all is well")
	msgs, err := pubSub.Subscribe(t.Context(), orderTopic)
	require.NoError(t, err)
	require.NoError(t, pubSub.Publish(orderTopic, message.NewMessage("late", nil)))
	require.Equal(t, "late", receive(t, msgs).UUID)
	require.NoError(t, pubSub.Close())
	_, more := <-msgs
	require.False(t, more)

	synctest.Test(t, func(t *testing.T) {
		b := newBus(t, nil, standard())
		require.NoError(t, b.Handle(rawHandler("ledger", func(context.Context, *message.Message) error { return nil })))
		require.NoError(t, b.Publish(t.Context(), placedV1{OrderID: "early"}))
		s := serve(t, b)
		s.idle()
		require.EqualValues(t, 1, s.stats("ledger").Handled, "on a bus it waits")
	})
}

func TestGoChannel_changesTheOrder(t *testing.T) {
	const n = 5_000
	inOrder := func() bool {
		pubSub := gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: n}, watermill.NopLogger{})
		defer func() { require.NoError(t, pubSub.Close()) }()
		msgs, err := pubSub.Subscribe(t.Context(), orderTopic)
		require.NoError(t, err)
		for i := range n {
			require.NoError(t, pubSub.Publish(orderTopic, message.NewMessage(strconv.Itoa(i), nil)))
		}
		kept := true
		for i := range n {
			kept = receive(t, msgs).UUID == strconv.Itoa(i) && kept
		}
		return kept
	}
	rounds := 1
	for inOrder() && rounds < 100 {
		rounds++
	}
	require.Less(t, rounds, 100, "GoChannel kept the order a hundred times; has it been mended?")

	b := newBus(t, nil, standard())
	next := 0
	s := serve(t, b, rawHandler("ledger", func(_ context.Context, msg *message.Message) error {
		if driver.MessageID(msg) != strconv.Itoa(next) {
			return bus.Permanent(errors.New("out of order"))
		}
		next++
		return nil
	}, func(h *bus.Handler) { h.Concurrency = 1 }))
	for i := range n {
		s.publish(strconv.Itoa(i))
	}
	s.idle()
	require.EqualValues(t, n, s.stats("ledger").Handled)
}
