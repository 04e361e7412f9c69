package middleware_test

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

const orderTopic = "order.placed.v1"

type placedV1 struct {
	OrderID string  `json:"order_id"`
	Total   float64 `json:"total"`
}

type placedV2 struct {
	OrderID string `json:"order_id"`
	Cents   int64  `json:"cents"`
}

type placedV3 struct {
	OrderID  string `json:"order_id"`
	Cents    int64  `json:"cents"`
	Currency string `json:"currency"`
}

func (placedV1) EventType() (string, int) { return "order.placed", 1 }
func (placedV2) EventType() (string, int) { return "order.placed", 2 }
func (placedV3) EventType() (string, int) { return "order.placed", 3 }

func placed(version int) bus.Type { return bus.Type{Name: "order.placed", Version: version} }

// newBus makes a bus over a transport, nil for memory, and closes it at the end of the test.
func newBus(t *testing.T, transport bus.Transport, stack bus.Stack, observers ...bus.Observer) *bus.Bus {
	t.Helper()
	if transport == nil {
		transport = memory.New(memory.Config{})
	}
	b, err := bus.New(transport, bus.Config{Service: "shop", Stack: stack, Observers: observers, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b
}

// standard returns the whole stack, changed where the test wants it.
func standard(change ...func(*middleware.Config)) middleware.Stack {
	var cfg middleware.Config
	for _, c := range change {
		c(&cfg)
	}
	return middleware.Standard(cfg)
}

// rawHandler handles order.placed in every version, as it is.
func rawHandler(name string, fn func(context.Context, *message.Message) error, change ...func(*bus.Handler)) bus.Handler {
	h := bus.Handler{
		Name:   name,
		Topics: []string{"order.placed.*"},
		Bind: func(bus.Encoder) message.HandlerFunc {
			return func(msg *message.Message) ([]*message.Message, error) { return nil, fn(msg.Context(), msg) }
		},
	}
	for _, c := range change {
		c(&h)
	}
	return h
}

// withoutBreaker is for tests in which everything fails, and whose subject is something else.
func withoutBreaker(h *bus.Handler) { h.Breaker = new(bus.NoBreaker()) }

// service is a running bus.
type service struct {
	*testing.T
	bus  *bus.Bus
	stop func() error
}

func serve(t *testing.T, b *bus.Bus, hs ...bus.Handler) *service {
	t.Helper()
	for _, h := range hs {
		require.NoError(t, b.Handle(h))
	}
	ctx, cancel := context.WithCancel(context.Background())
	var err error
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		err = b.Run(ctx)
	}()
	s := &service{t, b, func() error {
		cancel()
		<-ran
		return err
	}}
	t.Cleanup(func() { _ = s.stop() })
	select {
	case <-b.Running():
	case <-ran:
		require.NoError(t, err, "the bus does not run")
	}
	return s
}

// publish publishes placedV1 events with these ids.
func (s *service) publish(ids ...string) {
	s.Helper()
	for _, id := range ids {
		require.NoError(s, s.bus.Publish(s.Context(), placedV1{OrderID: id}, bus.WithID(id)))
	}
}

func (s *service) idle() {
	s.Helper()
	require.NoError(s, s.bus.Idle(s.Context()))
}

func (s *service) stats(handler string) bus.GroupStats { return s.bus.Stats().Groups[handler] }

// poisoned returns what is in a handler's poison queue.
func (s *service) poisoned(handler string) []bus.PoisonedMessage {
	s.Helper()
	list, err := s.bus.Transport().PoisonQueue(s.bus.GroupName(handler)).List(s.Context(), "", 1000)
	require.NoError(s, err)
	return list
}

// try is one run of a handler.
type try struct {
	at           time.Duration
	attempt, try int
}

// diary is what a handler did, and when.
type diary struct {
	began time.Time
	mu    sync.Mutex
	tries []try
}

func newDiary() *diary { return &diary{began: time.Now()} }

// note writes one try down and returns how many there are now.
func (d *diary) note(ctx context.Context) int {
	delivery := bus.DeliveryFrom(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.tries = append(d.tries, try{time.Since(d.began), delivery.Attempt, delivery.Try})
	return len(d.tries)
}

func (d *diary) all() []try {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]try(nil), d.tries...)
}

// audience is an observer that remembers how deliveries ended.
type audience struct {
	mu       sync.Mutex
	started  int
	finished []bus.Observation
}

type audienceKey struct{}

func (*audience) Published(context.Context, bus.Publication) {}

func (a *audience) Started(ctx context.Context, _ *bus.Delivery) context.Context {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.started++
	return context.WithValue(ctx, audienceKey{}, a.started)
}

func (a *audience) Finished(_ context.Context, _ *bus.Delivery, o bus.Observation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.finished = append(a.finished, o)
}

func (a *audience) outcomes() []bus.Outcome {
	a.mu.Lock()
	defer a.mu.Unlock()
	outcomes := make([]bus.Outcome, len(a.finished))
	for i, o := range a.finished {
		outcomes[i] = o.Outcome
	}
	return outcomes
}

func (*audience) BreakerChanged(bus.BreakerChange) {}
