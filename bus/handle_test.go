package bus_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/memory"
)

func TestNew_rejectsInvalidConfigs(t *testing.T) {
	_, err := bus.New(nil, bus.Config{})
	require.ErrorContains(t, err, "transport is nil; open one with transports.Open")
	for service, want := range map[string]string{
		"my shop":                "name has ' '",
		".shop":                  "name has '.'",
		strings.Repeat("s", 120): "name has 120 bytes",
	} {
		_, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: service})
		require.ErrorContains(t, err, want)
	}
}

func TestNew_refusesConfigurationsThatCannotWork(t *testing.T) {
	for want, cfg := range map[string]bus.Config{
		"observer 2 of 2 is nil":           {Observers: []bus.Observer{&witness{}, nil}},
		"publish middleware 1 of 1 is nil": {Decorators: []message.PublisherDecorator{nil}},
		"publish middleware 1 returns no publisher": {Decorators: []message.PublisherDecorator{
			func(message.Publisher) (message.Publisher, error) { return nil, nil },
		}},
		"MaxPayload is -1":    {MaxPayload: -1},
		"DrainTimeout is -1s": {DrainTimeout: -time.Second},
	} {
		cfg.Service = "shop"
		_, err := bus.New(memory.New(memory.Config{}), cfg)
		require.ErrorContains(t, err, "bus: "+want)
	}
}

// A handler of one event is subscribed to its older versions where the transport has no patterns.
func TestHandle_namesKnownTopicsOnlyWhereThereAreNoPatterns(t *testing.T) {
	for _, patterns := range []bool{true, false} {
		transport := newFaulty()
		transport.caps = &driver.Capabilities{Patterns: patterns}
		var known []string
		transport.subscribe = func(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
			known = s.Known
			return transport.Transport.Subscribe(ctx, s)
		}
		b := busOver(t, transport, bus.Config{})
		handle(t, b, "ledger", ok, topics("order.>"), func(h *bus.Handler) {
			h.Types = []bus.Type{{Name: "order.paid", Version: 9999}, {Name: "order.shipped", Version: 2}, {Name: "order.paid", Version: 3}}
		})
		run(t, b)
		if patterns {
			require.Empty(t, known[:min(len(known), 3)], "the transport has patterns")
			continue
		}
		require.Len(t, known, 9999+2)
		require.Equal(t, []string{"order.paid.v1", "order.paid.v2"}, known[:2])
		require.Equal(t, []string{"order.shipped.v1", "order.shipped.v2"}, known[9999:])
	}
}

func TestNew_serviceDefaultsToTheModule(t *testing.T) {
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{})
	require.NoError(t, err)
	require.NotEqual(t, ".ledger", b.GroupName("ledger"))
	require.Regexp(t, `^[A-Za-z0-9][A-Za-z0-9._-]*\.ledger$`, b.GroupName("ledger"))
}

// emptyStack returns no function.
type emptyStack struct{}

func (emptyStack) Wrap(bus.Handler, message.HandlerFunc) (message.HandlerFunc, error) {
	return nil, nil
}

type refusingStack struct{}

func (refusingStack) Wrap(bus.Handler, message.HandlerFunc) (message.HandlerFunc, error) {
	return nil, errBroken
}

func TestHandle_rejectsInvalidHandlers(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*bus.Handler)
		want   string
	}{
		"no name":                       {func(h *bus.Handler) { h.Name = "" }, "name is empty"},
		"a name with a space":           {func(h *bus.Handler) { h.Name = "the ledger" }, "name has ' '"},
		"a name that begins with a dot": {func(h *bus.Handler) { h.Name = ".ledger" }, "name has '.'"},
		"a name that is too long":       {func(h *bus.Handler) { h.Name = strings.Repeat("l", 101) }, "101 bytes; at most 100 fit"},
		"no topic":                      {func(h *bus.Handler) { h.Topics = nil }, "it subscribes to no topic"},
		"a bad pattern":                 {func(h *bus.Handler) { h.Topics = []string{"order.paid*"} }, "wildcard"},
		"a bad type":                    {func(h *bus.Handler) { h.Types = []bus.Type{{Name: "order.paid"}} }, "versions start at 1"},
		"a version that is a date":      {func(h *bus.Handler) { h.Types = []bus.Type{{Name: "order.paid", Version: 20261129}} }, "has version 20261129; versions end at 9999"},
		"no function":                   {func(h *bus.Handler) { h.Bind = nil }, "it has no function"},
		"a Bind that returns none": {func(h *bus.Handler) {
			h.Bind = func(bus.Encoder) message.HandlerFunc { return nil }
		}, "its Bind returns no function"},
		"a stack that returns none":    {func(h *bus.Handler) { h.Stack = emptyStack{} }, "its stack returns no function"},
		"negative concurrency":         {func(h *bus.Handler) { h.Concurrency = -1 }, "concurrency is -1; it is at least 1"},
		"strict order side by side":    {func(h *bus.Handler) { h.Order, h.Concurrency = bus.OrderedStrictly, 2 }, "strict order handles one message at a time"},
		"an order there is not":        {func(h *bus.Handler) { h.Order = 7 }, "order 7 is unknown"},
		"a bad retry policy":           {func(h *bus.Handler) { h.Retry = &bus.RetryPolicy{Jitter: 2} }, "a share below 1"},
		"a misspelt dedup mode":        {func(h *bus.Handler) { h.Dedup = "opne" }, `dedup mode "opne" is unknown; it is one of open, closed, off`},
		"a stack that does not fit it": {func(h *bus.Handler) { h.Stack = refusingStack{} }, errBroken.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBus(t, bus.Config{})
			err := b.Handle(handler("ledger", ok, c.change))
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, "bus: handler ")
			require.Empty(t, b.Handlers())
		})
	}
	t.Run("a name for the second time", func(t *testing.T) {
		b := newBus(t, bus.Config{})
		handle(t, b, "ledger", ok)
		err := b.Handle(handler("ledger", ok))
		require.ErrorContains(t, err, `handler "ledger" is registered twice`)
		require.ErrorContains(t, err, "handlers.Routes", "it names the fix")
		require.Len(t, b.Handlers(), 1)
	})
	t.Run("after Run", func(t *testing.T) {
		b := newBus(t, bus.Config{})
		run(t, b)
		require.ErrorContains(t, b.Handle(handler("ledger", ok)), "registered after Run; register handlers first")
	})
	t.Run("after Close", func(t *testing.T) {
		b := newBus(t, bus.Config{})
		require.NoError(t, b.Close(t.Context()))
		require.ErrorIs(t, b.Handle(handler("ledger", ok)), bus.ErrClosed)
	})
}

func TestHandle_rejectsUnsupportedFeatures(t *testing.T) {
	for want, change := range map[string]func(*bus.Handler){
		"ordering by key":        func(h *bus.Handler) { h.Order = bus.OrderedByKey },
		"strict ordering":        func(h *bus.Handler) { h.Order = bus.OrderedStrictly },
		"subscribing by pattern": topics("order.>"),
		"WithoutParking":         func(h *bus.Handler) { h.Order = bus.OrderedByKey },
	} {
		transport := newFaulty()
		transport.caps = &driver.Capabilities{}
		b := busOver(t, transport, bus.Config{})
		err := b.Handle(handler("ledger", ok, change))
		require.ErrorIs(t, err, bus.ErrUnsupported)
		require.ErrorContains(t, err, want)
	}
}

func TestHandle_orderedHandlersParkByDefault(t *testing.T) {
	for _, c := range []struct {
		order     bus.Order
		noParking bool
		want      bool
	}{
		{bus.Unordered, false, false},
		{bus.Unordered, true, false},
		{bus.OrderedByKey, false, true},
		{bus.OrderedByKey, true, false},
		{bus.OrderedStrictly, false, true},
		{bus.OrderedStrictly, true, false},
	} {
		var asked driver.Subscription
		transport := newFaulty()
		transport.subscribe = func(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
			asked = s
			return transport.Transport.Subscribe(ctx, s)
		}
		b := busOver(t, transport, bus.Config{})
		handle(t, b, "ledger", ok, func(h *bus.Handler) { h.Order, h.NoParking = c.order, c.noParking })
		run(t, b)
		require.Equal(t, c.want, asked.Park, "%s, without parking: %t", c.order, c.noParking)
	}
}

func TestHandle_acceptsTheLongestNames(t *testing.T) {
	long := strings.Repeat("n", 100)
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: long[:99]})
	require.NoError(t, err)
	require.NoError(t, b.Handle(handler(long, ok)))
	run(t, b)
	require.NoError(t, b.Close(t.Context()))
}

func TestHandle_setsDefaults(t *testing.T) {
	b := newBus(t, bus.Config{})
	handle(t, b, "first", ok)
	handle(t, b, "second", ok, func(h *bus.Handler) { h.Order = bus.OrderedStrictly })
	handle(t, b, "third", ok, concurrency(3), func(h *bus.Handler) { h.Timeout = time.Second })
	all := b.Handlers()
	require.Len(t, all, 3)
	require.Equal(t, "first", all[0].Name)
	require.Equal(t, 10, all[0].Concurrency)
	require.Equal(t, 1, all[1].Concurrency)
	require.Equal(t, 3, all[2].Concurrency)
}
