package browsertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/fxmodule/console"
	"github.com/leatbus/leat/handlers"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

type OrderPlaced struct {
	Order string   `json:"order"`
	Total int      `json:"total"`
	Items []string `json:"items"`
	Note  string   `json:"note,omitempty"`
}

func (OrderPlaced) EventType() (string, int) { return "order.placed", 2 }

type OldOrderPlaced struct {
	ID string `json:"id"`
}

func (OldOrderPlaced) EventType() (string, int) { return "order.placed", 1 }

type OrderPaid struct {
	Order string `json:"order"`
}

func (OrderPaid) EventType() (string, int) { return "order.paid", 1 }

type InvoiceIssued struct {
	Invoice string `json:"invoice"`
}

func (InvoiceIssued) EventType() (string, int) { return "invoice.issued", 1 }

var (
	errDeclined = errors.New("card declined")
	errAddress  = errors.New("the address has no postal code")
	errAway     = errors.New("dial tcp 10.0.3.7:25: connection refused")
)

// shop is a service under a prefix of a server, with a group for each state that there is.
type shop struct {
	*bus.Bus
	repaired atomic.Bool
	handled  atomic.Int64
	url      string
}

const prefix = "/ops/leat"

func newShop(t *testing.T) *shop {
	s := &shop{}
	quiet := slog.New(slog.DiscardHandler)
	stack := middleware.Standard(middleware.Config{Upcasters: []middleware.Upcaster{
		middleware.Upcast(func(o OldOrderPlaced) OrderPlaced { return OrderPlaced{Order: o.ID} }),
	}})
	var err error
	s.Bus, err = bus.New(memory.New(memory.Config{}), bus.Config{Service: "shop", Stack: stack, Logger: quiet})
	require.NoError(t, err)
	for _, h := range []bus.Handler{
		handlers.Func("charge", s.charge, handlers.WithoutRetry()),
		handlers.Func("ship", func(_ context.Context, o OrderPaid) error {
			if o.Order == "o-1007" {
				return bus.Permanent(errAddress)
			}
			return nil
		}, handlers.OrderedByKey()),
		handlers.Func("search-index", s.index, handlers.Concurrency(1)),
		handlers.Func("send-mail", func(context.Context, InvoiceIssued) error { return errAway },
			handlers.Breaker(bus.BreakerPolicy{Messages: 2, Patience: -1, Probe: time.Minute, MaxProbe: time.Minute})),
	} {
		require.NoError(t, s.Handle(h))
	}
	ctx, stop := context.WithCancel(context.Background())
	running := make(chan error, 1)
	go func() { running <- s.Run(ctx) }()
	<-s.Running()
	mux := http.NewServeMux()
	mux.Handle(prefix+"/", http.StripPrefix(prefix, console.New(console.Config{Bus: s.Bus, Stack: stack, Actions: true, Logger: quiet})))
	server := httptest.NewServer(mux)
	s.url = server.URL + prefix + "/"
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		stop()
		require.NoError(t, <-running)
		require.NoError(t, s.Close(context.Background()))
	})
	return s
}

// hostile does something in a page that does not escape it.
const hostile = `"><script>console.error("hostile")</script><img src="https://hostile.example/x" onerror="console.error(1)">`

func (s *shop) charge(ctx context.Context, o OrderPlaced) error {
	switch {
	case s.repaired.Load():
		s.handled.Add(1)
		return s.Publish(ctx, OrderPaid{o.Order}, bus.WithKey(o.Order))
	case o.Note == "nil":
		var none *OrderPlaced
		_ = none.Order
	case o.Total > 100:
		return bus.Permanent(fmt.Errorf("order %s: %w", o.Order, errDeclined))
	case o.Note != "":
		return bus.Permanent(errors.New(o.Note))
	}
	return s.Publish(ctx, OrderPaid{o.Order}, bus.WithKey(o.Order))
}

// fill publishes what leaves each group in its state.
func (s *shop) fill(t *testing.T) {
	place := func(n, total int, note string) {
		o := OrderPlaced{Order: fmt.Sprintf("o-%d", n), Total: total, Items: []string{"kettle", "tea"}, Note: note}
		require.NoError(t, s.Publish(t.Context(), o, bus.WithKey(o.Order)))
	}
	for n := 1000; n < 1040; n++ {
		place(n, 20, "")
	}
	for n := range 11 {
		place(2000+n, 250, "")
	}
	for n := range 3 {
		place(2100+n, 10, "nil")
	}
	place(2200, 10, hostile)
	for range 5 {
		require.NoError(t, s.Publish(t.Context(), OrderPaid{"o-1007"}, bus.WithKey("o-1007")))
	}
	for n := range 8 {
		require.NoError(t, s.Publish(t.Context(), InvoiceIssued{fmt.Sprint("i-", n)}))
	}
	require.Eventually(t, func() bool {
		n, err := s.Transport().PoisonQueue("shop.charge").Len(t.Context())
		require.NoError(t, err)
		return n == 15
	}, patience, 10*time.Millisecond)
}

// paused returns why an operator has paused a group, "" if it is not.
func (s *shop) paused(group string) string {
	for _, h := range s.Health() {
		if h.Group == group {
			return h.Degraded["operator"]
		}
	}
	return ""
}

// pages returns each kind of page by name, as what follows the URL of the console. fill is called before.
func (s *shop) pages(t *testing.T) map[string]string {
	first, err := s.Transport().PoisonQueue("shop.charge").List(t.Context(), "", 1)
	require.NoError(t, err)
	return map[string]string{
		"overview": "", "group": "group?group=shop.charge", "message": "message?group=shop.charge&id=" + first[0].ID, "tail": "tail", "outbox": "outbox",
		"doctor": "doctor", "find": "find", "wiring": "wiring", "publish": "publish", "confirm": "confirm?group=shop.charge&do=drop",
		"edit": "edit?group=shop.charge&id=" + first[0].ID, "pause": "pause?group=shop.charge&do=pause",
	}
}

// index is slow, so that messages wait.
func (s *shop) index(ctx context.Context, _ OrderPlaced) error {
	slow, cancel := context.WithTimeout(ctx, 15*time.Millisecond)
	defer cancel()
	<-slow.Done()
	return ctx.Err()
}
