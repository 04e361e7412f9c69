package middleware_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

type unrelated struct{}

func (unrelated) EventType() (string, int) { return "order.paid", 2 }

func v1to2() middleware.Upcaster {
	return middleware.Upcast(func(old placedV1) placedV2 { return placedV2{OrderID: old.OrderID, Cents: int64(old.Total * 100)} })
}

func v2to3() middleware.Upcaster {
	return middleware.Upcast(func(old placedV2) placedV3 {
		return placedV3{OrderID: old.OrderID, Cents: old.Cents, Currency: "EUR"}
	})
}

func v1to3() middleware.Upcaster {
	return middleware.Upcast(func(old placedV1) placedV3 { return placedV3{OrderID: old.OrderID, Currency: "direct"} })
}

func TestVersion_rejectsInvalidUpcasters(t *testing.T) {
	down := middleware.Upcast(func(placedV2) placedV1 { return placedV1{} })
	level := middleware.Upcast(func(old placedV2) placedV2 { return old })
	other := middleware.Upcast(func(placedV1) unrelated { return unrelated{} })
	v4to5 := middleware.Upcaster{From: placed(4), To: placed(5)}
	_ = v4to5
	for name, c := range map[string]struct {
		takes     []int
		upcasters []middleware.Upcaster
		want      string
	}{
		"down":                       {[]int{1}, []middleware.Upcaster{down}, "upcaster from order.placed.v2 to order.placed.v1: it must lead to a higher version of the same event"},
		"to the same version":        {[]int{2}, []middleware.Upcaster{level}, "must lead to a higher version"},
		"to another event":           {[]int{1}, []middleware.Upcaster{other}, "must lead to a higher version of the same event"},
		"two from one version":       {[]int{3}, []middleware.Upcaster{v1to2(), v1to3(), v2to3()}, "two upcasters begin at order.placed.v1: to order.placed.v2 and to order.placed.v3"},
		"a gap":                      {[]int{3}, []middleware.Upcaster{v1to2()}, "upcasters lead from order.placed.v1 to order.placed.v2 and no further, but the handler takes [order.placed.v3]; add an upcaster from order.placed.v2"},
		"a version with two ways":    {[]int{1, 2}, []middleware.Upcaster{v1to2()}, "order.placed.v1 is handled as it is, and an upcaster would lift it to order.placed.v2; one way only"},
		"two ways, over two steps":   {[]int{1, 3}, []middleware.Upcaster{v1to2(), v2to3()}, "order.placed.v1 is handled as it is, and an upcaster would lift it to order.placed.v3"},
		"an event that can't be one": {[]int{2}, []middleware.Upcaster{middleware.Upcast(func(nameless) placedV2 { return placedV2{} })}, "topic is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			var types []bus.Type
			for _, v := range c.takes {
				types = append(types, placed(v))
			}
			_, err := middleware.Version(types, 0, c.upcasters...)
			require.ErrorContains(t, err, c.want)
			b := newBus(t, nil, standard(func(cfg *middleware.Config) { cfg.Upcasters = c.upcasters }))
			err = b.Handle(rawHandler("ledger", nil, func(h *bus.Handler) { h.Types = types }))
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, `handler "ledger"`)
		})
	}
}

type nameless struct{}

func (nameless) EventType() (string, int) { return "", 1 }

func TestVersion_ignoresOtherHandlersUpcasters(t *testing.T) {
	for name, types := range map[string][]bus.Type{
		"another event":          {{Name: "order.paid", Version: 1}},
		"a handler of v1, below": {placed(1)},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := middleware.Version(types, 0, v2to3())
			require.NoError(t, err)
			msg := message.NewMessage("id", nil)
			msg.Metadata[driver.HeaderType] = placed(2).String()
			_, err = m(func(msg *message.Message) ([]*message.Message, error) {
				require.Equal(t, placed(2).String(), msg.Metadata[driver.HeaderType], "it is not lifted")
				return nil, nil
			})(msg)
			require.NoError(t, err)
		})
	}
}

// versions returns a service with a handler of v3, and what it got.
func versions(t *testing.T, upcasters ...middleware.Upcaster) (s *service, got *[]placedV3) {
	t.Helper()
	got = new([]placedV3)
	stack := standard(func(c *middleware.Config) { c.Upcasters = upcasters })
	return serve(t, newBus(t, nil, stack), handlers.Func("ledger", func(_ context.Context, e placedV3) error {
		*got = append(*got, e)
		return nil
	}, handlers.Concurrency(1))), got
}

func TestVersion_convertsStepByStep(t *testing.T) {
	s, got := versions(t, v2to3(), v1to2())
	for _, e := range []bus.Event{placedV1{OrderID: "a", Total: 1.25}, placedV2{OrderID: "b", Cents: 7}, placedV3{OrderID: "c", Cents: 8, Currency: "SEK"}} {
		require.NoError(t, s.bus.Publish(t.Context(), e))
	}
	s.idle()
	require.Equal(t, []placedV3{{"a", 125, "EUR"}, {"b", 7, "EUR"}, {"c", 8, "SEK"}}, *got)
}

func TestVersion_upcasterMaySkipVersions(t *testing.T) {
	s, got := versions(t, v1to3(), v2to3())
	require.NoError(t, s.bus.Publish(t.Context(), placedV1{OrderID: "a"}))
	require.NoError(t, s.bus.Publish(t.Context(), placedV2{OrderID: "b"}))
	s.idle()
	require.Equal(t, []placedV3{{"a", 0, "direct"}, {"b", 0, "EUR"}}, *got)
}

func TestVersion_readsForeignVersionsFromTheBody(t *testing.T) {
	s, got := versions(t, v1to2(), v2to3())
	require.NoError(t, s.bus.PublishMessages(t.Context(),
		&message.Message{UUID: "w-1", Payload: []byte(`{"order_id":"a","total":2}`), Metadata: message.Metadata{driver.HeaderType: "order.placed"}},
		&message.Message{UUID: "w-2", Payload: []byte(`{"order_id":"b","cents":3,"version":"v2"}`), Metadata: message.Metadata{driver.HeaderType: "order.placed"}},
	))
	s.idle()
	require.Equal(t, []placedV3{{"a", 200, "EUR"}, {"b", 3, "EUR"}}, *got)
}

func TestVersion_conversionErrorIsPermanent(t *testing.T) {
	s, got := versions(t, v1to2(), v2to3())
	for id, c := range map[string][2]string{
		"broken": {"order.placed.v1", `{"total":"many"}`},
	} {
		require.NoError(t, s.bus.PublishMessages(t.Context(),
			&message.Message{UUID: id, Payload: []byte(c[1]), Metadata: message.Metadata{driver.HeaderType: c[0]}}))
	}
	s.idle()
	require.Empty(t, *got)
	reasons := map[string]string{}
	for _, dead := range s.poisoned("ledger") {
		require.Equal(t, 1, dead.Fault.Tries)
		reasons[driver.MessageID(dead.Message)] = dead.Fault.Text
	}
	require.Contains(t, reasons["broken"], "lift order.placed.v1 to order.placed.v2: decode order.placed.v1: json: cannot unmarshal")
}

func TestVersion_convertsACopy(t *testing.T) {
	m, err := middleware.Version([]bus.Type{placed(2)}, 0, v1to2())
	require.NoError(t, err)
	for _, typed := range []bool{true, false} {
		msg := message.NewMessage("a", []byte(`{"order_id":"a", "total":1}`))
		d := bus.Attach(msg)
		d.Topic = orderTopic
		if typed {
			msg.Metadata[driver.HeaderType] = orderTopic
		}
		_, err = m(func(msg *message.Message) ([]*message.Message, error) {
			require.JSONEq(t, `{"order_id":"a","cents":100}`, string(msg.Payload))
			require.Equal(t, "order.placed.v2", msg.Metadata[driver.HeaderType])
			return nil, errHandler
		})(msg)
		require.ErrorIs(t, err, errHandler)
		require.Equal(t, `{"order_id":"a", "total":1}`, string(msg.Payload))
		if typed {
			require.Equal(t, orderTopic, msg.Metadata[driver.HeaderType])
		} else {
			require.NotContains(t, msg.Metadata, driver.HeaderType)
		}
	}
	_, err = m(returns(nil))(message.NewMessage("a", nil))
	require.True(t, bus.IsPermanent(err), "a message without a type")
}

// A rolling deploy publishes a new version before every consumer knows it.
func TestVersion_newerMessagesWaitForANewerService(t *testing.T) {
	for name, order := range map[string]bus.Order{"unordered": bus.Unordered, "by key": bus.OrderedByKey, "strict": bus.OrderedStrictly} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var newest []string // the events of v2, in the order in which they were handled
				ordered := func(h *bus.Handler) { h.Order = order }
				s := &shop{t: t, transport: kept{memory.New(memory.Config{})}}
				s.start(handlers.Func("ledger", func(context.Context, placedV1) error { return nil }, ordered))
				publish := func(e bus.Event, key string) {
					require.NoError(t, s.current.bus.Publish(context.Background(), e, bus.WithKey(key)))
				}
				for i := range 30 {
					publish(placedV2{OrderID: orderID(i)}, "same key")
				}
				time.Sleep(50 * time.Minute)
				require.Empty(t, s.current.poisoned("ledger"))
				require.Zero(t, s.current.stats("ledger").Handled)
				health := s.current.bus.Health()[0].Degraded
				require.Contains(t, health["newer version"], "waits for a newer version of the service, until 2000-01-01T01:00:")
				require.NotContains(t, health, "circuit breaker")
				if order != bus.OrderedStrictly {
					publish(placedV1{OrderID: "x"}, "other key")
					time.Sleep(time.Second)
					require.EqualValues(t, 1, s.current.stats("ledger").Handled, "others go on")
				}

				require.NoError(t, s.current.bus.Drain(context.Background()))
				s.start(handlers.Func("ledger", func(_ context.Context, e placedV2) error {
					newest = append(newest, e.OrderID)
					return nil
				}, ordered, handlers.Concurrency(1)))
				time.Sleep(time.Minute)
				synctest.Wait()
				require.Len(t, newest, 30)
				if order != bus.Unordered {
					require.IsIncreasing(t, newest)
				}
				require.Empty(t, s.current.bus.Health()[0].Degraded)
			})
		})
	}
}

func TestVersion_newerMessagesArePoisonedAtLast(t *testing.T) {
	for limit, want := range map[time.Duration]time.Duration{0: time.Hour, 10 * time.Minute: 10 * time.Minute, -1: 0} {
		t.Run(limit.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := time.Now()
				s := serve(t, newBus(t, nil, standard(func(c *middleware.Config) { c.HoldNewer = limit })),
					handlers.Func("ledger", func(context.Context, placedV1) error { return nil }))
				require.NoError(t, s.bus.Publish(t.Context(), placedV2{OrderID: "x"}))
				s.idle()
				require.Equal(t, want, time.Since(began))
				dead := s.poisoned("ledger")
				require.Len(t, dead, 1)
				require.Equal(t, "*bus.NewerVersionError", dead[0].Fault.Class)
				require.Equal(t, 1, dead[0].Fault.Attempts, "it costs no attempt")
				require.Contains(t, dead[0].Fault.Text, "order.placed.v2 is newer than what the handler takes: order.placed.v1")
				time.Sleep(2 * time.Minute)
				require.Empty(t, s.bus.Health()[0].Degraded)
			})
		})
	}
}
