package bus_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/transports/memory"
)

func TestNewRefuses(t *testing.T) {
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

func TestTheServiceIsNamedAfterTheModule(t *testing.T) {
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{})
	require.NoError(t, err)
	require.NotEqual(t, ".ledger", b.GroupName("ledger"))
	require.Regexp(t, `^[A-Za-z0-9][A-Za-z0-9._-]*\.ledger$`, b.GroupName("ledger"))
}

type refusingStack struct{}

func (refusingStack) Wrap(bus.Handler, message.HandlerFunc) (message.HandlerFunc, error) {
	return nil, errBroken
}

func TestHandleRefuses(t *testing.T) {
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
		"no function":                   {func(h *bus.Handler) { h.Bind = nil }, "it has no function"},
		"negative concurrency":          {func(h *bus.Handler) { h.Concurrency = -1 }, "concurrency is -1; it is at least 1"},
		"strict order side by side":     {func(h *bus.Handler) { h.Order, h.Concurrency = bus.OrderedStrictly, 2 }, "strict order handles one message at a time"},
		"an order there is not":         {func(h *bus.Handler) { h.Order = 7 }, "order 7 is unknown"},
		"a bad retry policy":            {func(h *bus.Handler) { h.Retry = &bus.RetryPolicy{Jitter: 2} }, "a share below 1"},
		"a misspelt dedup mode":         {func(h *bus.Handler) { h.Dedup = "opne" }, `dedup mode "opne" is unknown; it is one of open, closed, off`},
		"a misspelt park mode":          {func(h *bus.Handler) { h.Park = "yes" }, `park mode "yes" is unknown; it is one of on, off`},
		"parking without an order":      {func(h *bus.Handler) { h.Park = bus.ParkOn }, "not ordered"},
		"a stack that does not fit it":  {func(h *bus.Handler) { h.Stack = refusingStack{} }, errBroken.Error()},
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
		require.ErrorContains(t, err, "handlers.Routes", "it names the cure")
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

func TestHandleRefusesWhatTheTransportLacks(t *testing.T) {
	for want, change := range map[string]func(*bus.Handler){
		"ordering by key":        func(h *bus.Handler) { h.Order = bus.OrderedByKey },
		"strict ordering":        func(h *bus.Handler) { h.Order = bus.OrderedStrictly },
		"subscribing by pattern": topics("order.>"),
		"ParkOff":                func(h *bus.Handler) { h.Order = bus.OrderedByKey },
	} {
		transport := newFaulty()
		transport.caps = &bus.Capabilities{}
		b := busOver(t, transport, bus.Config{})
		err := b.Handle(handler("ledger", ok, change))
		require.ErrorIs(t, err, bus.ErrUnsupported)
		require.ErrorContains(t, err, want)
	}
}

func TestOrderedHandlersParkUnlessToldOtherwise(t *testing.T) {
	for _, c := range []struct {
		order bus.Order
		park  bus.ParkMode
		want  bool
	}{
		{bus.Unordered, bus.ParkDefault, false},
		{bus.Unordered, bus.ParkOff, false},
		{bus.OrderedByKey, bus.ParkDefault, true},
		{bus.OrderedByKey, bus.ParkOn, true},
		{bus.OrderedByKey, bus.ParkOff, false},
		{bus.OrderedStrictly, bus.ParkDefault, true},
		{bus.OrderedStrictly, bus.ParkOff, false},
	} {
		var asked bus.Subscription
		transport := newFaulty()
		transport.subscribe = func(ctx context.Context, s bus.Subscription) (bus.Feed, error) {
			asked = s
			return transport.Transport.Subscribe(ctx, s)
		}
		b := busOver(t, transport, bus.Config{})
		handle(t, b, "ledger", ok, func(h *bus.Handler) { h.Order, h.Park = c.order, c.park })
		run(t, b)
		require.Equal(t, c.want, asked.Park, "%s, park mode %q", c.order, c.park)
	}
}

func TestTheLongestNamesMakeAGroup(t *testing.T) {
	long := strings.Repeat("n", 100)
	b, err := bus.New(memory.New(memory.Config{}), bus.Config{Service: long[:99]})
	require.NoError(t, err)
	require.NoError(t, b.Handle(handler(long, ok)))
	run(t, b)
	require.NoError(t, b.Close(t.Context()))
}

func TestHandlersGetTheirDefaults(t *testing.T) {
	b := newBus(t, bus.Config{})
	handle(t, b, "first", ok)
	handle(t, b, "second", ok, func(h *bus.Handler) { h.Order = bus.OrderedStrictly })
	handle(t, b, "third", ok, concurrency(3), func(h *bus.Handler) { h.Timeout = time.Second })
	all := b.Handlers()
	require.Len(t, all, 3)
	require.Equal(t, "first", all[0].Name)
	require.Equal(t, bus.DefaultConcurrency, all[0].Concurrency)
	require.Equal(t, 1, all[1].Concurrency)
	require.Equal(t, 3, all[2].Concurrency)
}
