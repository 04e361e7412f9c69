package transporttest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/stretchr/testify/require"

	"github.com/leatbus/leat/bus/driver"
)

// Harness describes a transport to the suite.
type Harness struct {
	// Open returns another instance on the same message system, as another process does. The suite closes it. If the
	// transport is not durable, instances need not share anything.
	Open func(t testing.TB) driver.Transport
	// Operator returns another instance with the rights to delete groups. The suite closes it. nil means Open.
	Operator func(t testing.TB) driver.Transport
	// URL opens the transport without options, through OpenURL.
	URL string
	// OpenURL opens the transport for a URL.
	OpenURL func(ctx context.Context, rawURL string) (driver.Transport, error)
	// Restart stops the message system and starts it again. If it is nil, because there is none or it must not be restarted,
	// promise 9 and restarts in promise 4 are not tested.
	Restart func(t testing.TB)
	// Bound is the approximate number of messages of 1 KiB in a group at which Publish blocks, and also of delayed messages. 0
	// means that the message system stores them outside of this process.
	Bound int
	// Patience is how long the suite waits for something that must happen. 0 means five minutes: the machine may be busy, its
	// disk slow, and a restart of the message system takes time.
	Patience time.Duration
	// Begin is called at the start of each promise's test. It may make the test parallel, or block. nil means that the tests
	// run one after the other. Each test uses its own names.
	Begin func(t *testing.T)
	// OnlyRestart limits the suite to the promises for which it needs Restart, if the others are tested in another run.
	OnlyRestart bool
}

// Run tests every promise. It blocks until all tests have ended.
func Run(t *testing.T, h Harness) {
	h.Patience = cmp.Or(h.Patience, 5*time.Minute)
	for _, promise := range []struct {
		name string
		test func(*testing.T, Harness)
	}{
		{"01 every group gets every message, one consumer handles it", testGroups},
		{"02 publish returns when the message is safe", testPublish},
		{"03 acked is done, everything else comes again", testSettle},
		{"04 a redelivery is delayed, for its group only", testDelay},
		{"05 payload and headers come back exactly", testFidelity},
		{"06 a group outlives its consumers", testDurability},
		{"07 order holds as asked for", testOrder},
		{"07 order holds past a poisoned message", testPark},
		{"08 memory is bounded", testBounds},
		{"09 it reconnects by itself", testReconnect},
		{"10 close drains and is final", testClose},
		{"11 poisoned messages can be worked with", testPoison},
		{"11 poisoned messages can be changed and added", testPut},
		{"11 poisoned messages can be walked through", testWalk},
		{"12 mistakes are clear errors at start", testMistakes},
		{"operators see what is there", testInspect},
		{"operators remove groups", testRemove},
	} {
		if h.OnlyRestart && !strings.HasPrefix(promise.name, "04") && !strings.HasPrefix(promise.name, "09") {
			continue
		}
		t.Run(promise.name, func(t *testing.T) {
			if h.Begin != nil {
				h.Begin(t)
			}
			promise.test(t, h)
		})
	}
}

// world has the instances, the names and the patience of one test.
type world struct {
	testing.TB
	h      Harness
	ctx    context.Context
	prefix string
}

func newWorld(t testing.TB, h Harness) *world {
	ctx, cancel := context.WithTimeout(context.Background(), h.Patience)
	t.Cleanup(cancel)
	return &world{TB: t, h: h, ctx: ctx, prefix: fmt.Sprintf("t%08x", rand.Uint32())}
}

// newLedger returns a world with an open transport, a topic and a receiver of its group "ledger".
func newLedger(t *testing.T, h Harness) (w *world, transport driver.Transport, topic string, receiver driver.Receiver) {
	t.Helper()
	w = newWorld(t, h)
	transport, topic = w.open(), w.topic("order.paid.v1")
	return w, transport, topic, w.subscribe(transport, w.subscription("ledger", topic))
}

// open returns a new instance, which it closes at the end of the test.
func (w *world) open() driver.Transport { return w.closing(w.h.Open(w.TB)) }

// operator returns a new instance with the rights to delete groups, which it closes at the end of the test.
func (w *world) operator() driver.Transport {
	if w.h.Operator == nil {
		return w.open()
	}
	return w.closing(w.h.Operator(w.TB))
}

// closing returns the instance, which it closes at the end of the test.
func (w *world) closing(transport driver.Transport) driver.Transport {
	w.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), w.h.Patience)
		defer cancel()
		require.NoError(w, transport.Close(ctx))
	})
	return transport
}

// another returns another instance if instances share a message system, else the same one.
func (w *world) another(transport driver.Transport) driver.Transport {
	if transport.Capabilities().Durable {
		return w.open()
	}
	return transport
}

func (w *world) topic(name string) string { return w.prefix + "." + name }
func (w *world) group(name string) string { return w.prefix + "." + name }

func (w *world) subscription(group string, topics ...string) driver.Subscription {
	return driver.Subscription{Group: w.group(group), Topics: topics, Known: topics, Concurrency: 1}
}

func (w *world) subscribe(transport driver.Transport, s driver.Subscription) driver.Receiver {
	w.Helper()
	receiver, err := transport.Subscribe(w.ctx, s)
	require.NoError(w, err)
	return receiver
}

func (w *world) publish(transport driver.Transport, topic string, ids ...string) {
	w.Helper()
	for _, id := range ids {
		require.NoError(w, transport.Publish(w.ctx, topic, newMessage(topic, id)))
	}
}

// next returns one delivery, or fails the test.
func (w *world) next(receiver driver.Receiver) *driver.Delivery {
	w.Helper()
	d, err := receiver.Next(w.ctx)
	require.NoError(w, err, "a message should have come")
	require.NotNil(w, d.Message)
	require.NotEmpty(w, driver.MessageID(d.Message), "an empty message came that nobody published")
	return d
}

// nothing fails the test if a message arrives within a short time.
func (w *world) nothing(receiver driver.Receiver, during time.Duration) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, during)
	defer cancel()
	d, err := receiver.Next(ctx)
	if err == nil {
		w.Fatalf("message %s came, attempt %d, where none was due", driver.MessageID(d.Message), d.Attempt)
	}
	require.ErrorIs(w, err, context.DeadlineExceeded)
}

// ack may be called by any goroutine.
func (w *world) ack(d *driver.Delivery) {
	w.Helper()
	if err := d.Settler.Ack(); err != nil {
		w.Errorf("ack of %s: %v", driver.MessageID(d.Message), err)
	}
}

// collect acks n messages and returns their ids in the order of arrival.
func (w *world) collect(receiver driver.Receiver, n int) []string {
	w.Helper()
	ids := make([]string, 0, n)
	for range n {
		d := w.next(receiver)
		ids = append(ids, driver.MessageID(d.Message))
		w.ack(d)
	}
	return ids
}

// consume runs n consumers on the receiver until the test ends or the returned function is called.
func (w *world) consume(receiver driver.Receiver, n int, handle func(*driver.Delivery)) (stop func()) {
	ctx, cancel := context.WithCancel(w.ctx)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			for {
				d, err := receiver.Next(ctx)
				if err != nil {
					return
				}
				handle(d)
			}
		})
	}
	stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
	})
	w.Cleanup(stop)
	return stop
}

// eventually waits for a condition.
func (w *world) eventually(what string, condition func() bool) {
	w.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-w.ctx.Done():
			w.Fatalf("waited %s for: %s", w.h.Patience, what)
		}
	}
}

func newMessage(topic, id string) *message.Message {
	msg := message.NewMessage(id, []byte(`{"id":"`+id+`"}`))
	msg.Metadata = message.Metadata{
		driver.HeaderID:     id,
		driver.HeaderType:   topic,
		driver.HeaderSource: "transporttest",
		driver.HeaderTime:   time.Now().UTC().Format(time.RFC3339Nano),
	}
	return msg
}

func withKey(msg *message.Message, key string) *message.Message {
	msg.Metadata[driver.HeaderPartitionKey] = key
	return msg
}

func ids(prefix string, n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("%s-%04d", prefix, i)
	}
	return all
}

// idCounter counts ids. It may be used concurrently.
type idCounter struct {
	mu    sync.Mutex
	seen  map[string]int
	order []string
}

func newIDCounter() *idCounter { return &idCounter{seen: make(map[string]int)} }

func (s *idCounter) add(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen[id]++
	s.order = append(s.order, id)
	return s.seen[id]
}

func (s *idCounter) counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.seen)
}

// all returns the ids that were added, in order.
func (s *idCounter) all() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.order)
}

func (s *idCounter) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.seen)
}

// once returns the expected counts if every id was seen once.
func once(ids []string) map[string]int {
	counts := make(map[string]int, len(ids))
	for _, id := range ids {
		counts[id] = 1
	}
	return counts
}
