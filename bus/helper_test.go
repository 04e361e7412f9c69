package bus_test

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/testenv"
	"github.com/leatbus/leat/transports/memory"
)

func TestMain(m *testing.M) { testenv.Main(m) }

const paidTopic = "order.paid.v1"

var errBroken = errors.New("the handler is broken")

// orderPaid is the plain event.
type orderPaid struct {
	OrderID string `json:"order_id"`
	Cents   int64  `json:"cents"`
}

func (orderPaid) EventType() (string, int) { return "order.paid", 1 }

// orderShipped has every optional method, and pointer receivers.
type orderShipped struct {
	OrderID string `json:"order_id"`
	Parcel  string `json:"parcel"`
}

func (*orderShipped) EventType() (string, int) { return "order.shipped", 3 }
func (e *orderShipped) PartitionKey() string   { return e.OrderID }
func (e *orderShipped) DedupKey() string       { return e.OrderID + "/" + e.Parcel }
func (e *orderShipped) Validate() error {
	if e.OrderID == "" {
		return errors.New("order_id is empty")
	}
	return nil
}

// newBus makes a bus over the memory transport and closes it at the end of the test.
func newBus(t *testing.T, cfg bus.Config) *bus.Bus {
	t.Helper()
	return busOver(t, memory.New(memory.Config{}), cfg)
}

func busOver(t *testing.T, transport bus.Transport, cfg bus.Config) *bus.Bus {
	t.Helper()
	cfg.Service = "shop"
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	b, err := bus.New(transport, cfg)
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	return b
}

// run starts the bus. What it returns stops it, and answers what Run did.
func run(t *testing.T, b *bus.Bus) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var err error
	ran := make(chan struct{})
	go func() {
		defer close(ran)
		err = b.Run(ctx)
	}()
	stop = func() error {
		cancel()
		<-ran
		return err
	}
	t.Cleanup(func() { _ = stop() })
	select {
	case <-b.Running():
	case <-ran:
		require.NoError(t, err, "the bus does not run")
	}
	return stop
}

// handle registers a handler of messages as they are, on orderPaid's topic unless others are named.
func handle(t *testing.T, b *bus.Bus, name string, fn func(context.Context, *message.Message) error, change ...func(*bus.Handler)) {
	t.Helper()
	require.NoError(t, b.Handle(handler(name, fn, change...)))
}

func handler(name string, fn func(context.Context, *message.Message) error, change ...func(*bus.Handler)) bus.Handler {
	h := bus.Handler{
		Name:   name,
		Topics: []string{paidTopic},
		Bind: func(bus.Encoder) message.HandlerFunc {
			return func(msg *message.Message) ([]*message.Message, error) { return nil, fn(msg.Context(), msg) }
		},
	}
	for _, c := range change {
		c(&h)
	}
	return h
}

func topics(topics ...string) func(*bus.Handler) { return func(h *bus.Handler) { h.Topics = topics } }

func concurrency(n int) func(*bus.Handler) { return func(h *bus.Handler) { h.Concurrency = n } }

func ok(context.Context, *message.Message) error { return nil }

// publish publishes messages with these ids to orderPaid's topic.
func publish(t *testing.T, b *bus.Bus, ids ...string) {
	t.Helper()
	for _, id := range ids {
		require.NoError(t, b.Publish(t.Context(), orderPaid{OrderID: id}, bus.WithID(id)))
	}
}

// newMessage returns an encoded event that no bus has made.
func newMessage(topic, id string) *message.Message {
	return &message.Message{
		UUID:     id,
		Metadata: message.Metadata{driver.HeaderID: id, driver.HeaderType: topic, driver.HeaderSource: "test"},
		Payload:  []byte(`{}`),
	}
}

// next takes the message that waits for a group on the transport under the bus.
func next(t *testing.T, b *bus.Bus, group string, topics ...string) *driver.Delivery {
	t.Helper()
	if len(topics) == 0 {
		topics = []string{paidTopic}
	}
	feed, err := b.Transport().Subscribe(t.Context(), driver.Subscription{Group: group, Topics: topics, Known: topics, Concurrency: 1})
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	d, err := feed.Next(ctx)
	require.NoError(t, err)
	return d
}

// faulty is the memory transport with faults. A nil hook leaves its method alone.
type faulty struct {
	bus.Transport
	publish   func(context.Context, string, []*message.Message) error
	subscribe func(context.Context, driver.Subscription) (driver.Receiver, error)
	next      func(context.Context, driver.Receiver) (*driver.Delivery, error)
	caps      *driver.Capabilities
}

func newFaulty() *faulty { return &faulty{Transport: memory.New(memory.Config{})} }

func (f *faulty) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	if f.publish != nil {
		if err := f.publish(ctx, topic, msgs); err != nil {
			return err
		}
	}
	return f.Transport.Publish(ctx, topic, msgs...)
}

func (f *faulty) Subscribe(ctx context.Context, s driver.Subscription) (driver.Receiver, error) {
	if f.subscribe != nil {
		return f.subscribe(ctx, s)
	}
	feed, err := f.Transport.Subscribe(ctx, s)
	if err != nil || f.next == nil {
		return feed, err
	}
	return faultyFeed{feed, f.next}, nil
}

func (f *faulty) Capabilities() driver.Capabilities {
	if f.caps != nil {
		return *f.caps
	}
	return f.Transport.Capabilities()
}

type faultyFeed struct {
	driver.Receiver
	next func(context.Context, driver.Receiver) (*driver.Delivery, error)
}

func (f faultyFeed) Next(ctx context.Context) (*driver.Delivery, error) {
	return f.next(ctx, f.Receiver)
}

// log is what happened, in its order.
type log struct {
	mu    sync.Mutex
	lines []string
}

func (l *log) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
}

func (l *log) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.lines...)
}

// warnings writes lines of warning and above into a log.
func warnings(l *log) *slog.Logger {
	return slog.New(slog.NewTextHandler(lineWriter{l}, &slog.HandlerOptions{Level: slog.LevelWarn}))
}

type lineWriter struct{ log *log }

func (w lineWriter) Write(line []byte) (int, error) {
	w.log.add(string(line))
	return len(line), nil
}
