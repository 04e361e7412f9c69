package bustest

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/middleware"
	"github.com/leatbus/leat/transports/memory"
)

// Config configures the bus under test. The zero value uses the standard stack.
type Config struct {
	// Stack is the stack in place of the standard one.
	Stack *middleware.Stack
	// Middleware configures the standard stack if Stack is nil. If HoldNewer is 0, it is off, because a test has no newer
	// version of the service to wait for.
	Middleware middleware.Config
	// Bus configures the bus; its Stack is not used. Service defaults to "test". Breaker defaults to none, so that a test in
	// which everything fails reaches the poison queue.
	Bus bus.Config
	// Patience is how long WaitIdle waits, in real time only; 0 means 30 s.
	Patience time.Duration
}

// A Harness runs a bus and records what happens on it. Its methods may be called concurrently. They fail the test on errors.
type Harness struct {
	t         testing.TB
	bus       *bus.Bus
	transport *memory.Transport
	patience  time.Duration
	story     *story
	failures  *failures
}

// New runs a bus with the handlers until the test ends.
func New(t testing.TB, handlers ...bus.Handler) *Harness {
	t.Helper()
	return NewWith(t, Config{}, handlers...)
}

// NewWith does what New does, with another configuration.
func NewWith(t testing.TB, cfg Config, handlers ...bus.Handler) *Harness {
	t.Helper()
	h := &Harness{
		t:         t,
		transport: memory.New(memory.Config{}),
		patience:  cfg.Patience,
		story:     &story{},
		failures:  &failures{},
	}
	h.patience = cmp.Or(h.patience, 30*time.Second)
	cfg.Bus.Service = cmp.Or(cfg.Bus.Service, "test")
	if cfg.Bus.Breaker == (bus.BreakerPolicy{}) {
		cfg.Bus.Breaker = bus.NoBreaker()
	}
	cfg.Bus.Logger = cmp.Or(cfg.Bus.Logger, slog.New(slog.DiscardHandler)) // failed checks print the story
	cfg.Bus.Stack = instrumented{cfg.stack(), h.failures}
	cfg.Bus.Observers = append(cfg.Bus.Observers, h.story)

	b, err := bus.New(h.transport, cfg.Bus)
	h.must(err)
	h.bus = b
	for _, handler := range handlers {
		h.must(b.Handle(handler))
	}
	ended := make(chan error, 1)
	go func() { ended <- b.Run(context.Background()) }()
	t.Cleanup(func() {
		h.must(b.Close(context.Background()))
		h.must(<-ended)
		if left := h.failures.left(); left != "" && !t.Failed() {
			t.Errorf("bustest: FailNext was called for failures that did not happen: %s", left)
		}
	})
	select {
	case <-b.Running():
	case err := <-ended:
		ended <- err
		h.must(err)
	}
	return h
}

func (c Config) stack() bus.Stack {
	if c.Stack != nil {
		return *c.Stack
	}
	c.Middleware.HoldNewer = cmp.Or(c.Middleware.HoldNewer, -1)
	return middleware.Standard(c.Middleware)
}

func (h *Harness) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatalf("bustest: %v", err)
	}
}

// Bus returns the bus under test.
func (h *Harness) Bus() *bus.Bus { return h.bus }

// Publish publishes an event.
func (h *Harness) Publish(e bus.Event, opts ...bus.PublishOption) {
	h.t.Helper()
	h.must(h.bus.Publish(context.Background(), e, opts...))
}

// WaitIdle blocks until every message has been handled, acked or poisoned, also those that handlers publish. It fails the test
// after [Config].Patience.
func (h *Harness) WaitIdle() {
	h.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if !inBubble() { // virtual time would make the patience pass at once
		ctx, cancel = context.WithTimeout(ctx, h.patience)
		defer cancel()
	}
	err := h.transport.WaitIdle(ctx)
	if err == nil {
		err = h.bus.Idle(ctx) // a poisoned message is settled before its delivery ends
	}
	if err != nil {
		h.t.Fatalf("bustest: not idle after %s; where messages wait for their next try, run the test in testing/synctest\n%s", h.patience, h.story)
	}
}

// inBubble reports whether the time is virtual: that of testing/synctest begins in the year 2000.
func inBubble() bool { return time.Now().Before(time.Date(2010, 1, 1, 0, 0, 0, 0, time.UTC)) }

// FailNext makes the next try of a handler fail with err; the handler's function is not called. Several calls make several
// tries fail, in order. The test fails if a failure is left over at its end.
func (h *Harness) FailNext(handler string, err error) {
	h.t.Helper()
	h.mustKnow(handler)
	h.failures.add(handler, err)
}

// mustKnow fails the test if there is no such handler: a check with a misspelt name would always pass.
func (h *Harness) mustKnow(handler string) {
	h.t.Helper()
	var names []string
	for _, known := range h.bus.Handlers() {
		names = append(names, known.Name)
	}
	if !slices.Contains(names, handler) {
		h.t.Fatalf("bustest: there is no handler %q; there are %s", handler, strings.Join(names, ", "))
	}
}

// Duplicate publishes every message of T's type again under the same id, as a producer does that got no confirmation.
func Duplicate[T bus.Event](h *Harness) {
	h.t.Helper()
	for _, msg := range again[T](h) {
		h.must(h.bus.PublishMessages(context.Background(), clone(msg)))
	}
}

// Redeliver delivers every message of T's type to one handler again, as a broker does that lost its ack.
func Redeliver[T bus.Event](h *Harness, handler string) {
	h.t.Helper()
	h.mustKnow(handler)
	for _, msg := range again[T](h) {
		h.must(h.transport.Redeliver(context.Background(), h.bus.GroupName(handler), driver.TopicOf(msg), clone(msg)))
	}
}

// again returns the published messages of T's type, each once. It fails the test if there is none.
func again[T bus.Event](h *Harness) []*message.Message {
	h.t.Helper()
	msgs := h.story.distinct(typeOf[T](h))
	if len(msgs) == 0 {
		h.t.Fatalf("bustest: no %s was published\n%s", typeOf[T](h), h.story)
	}
	return msgs
}

func clone(msg *message.Message) *message.Message {
	return &message.Message{UUID: msg.UUID, Payload: msg.Payload, Metadata: maps.Clone(msg.Metadata)}
}

// RequireHandled fails the test unless the handler has succeeded exactly n times.
func (h *Harness) RequireHandled(handler string, n int) {
	h.t.Helper()
	h.requireOutcome(handler, bus.Handled, n)
}

// RequireDuplicates fails the test unless exactly n deliveries to the handler were duplicates.
func (h *Harness) RequireDuplicates(handler string, n int) {
	h.t.Helper()
	h.requireOutcome(handler, bus.Duplicate, n)
}

// RequirePoisoned fails the test unless exactly n deliveries to the handler were poisoned so far. It returns up to n messages
// that are in the handler's poison queue now.
func (h *Harness) RequirePoisoned(handler string, n int) []bus.PoisonedMessage {
	h.t.Helper()
	h.requireOutcome(handler, bus.Poisoned, n)
	list, err := h.transport.PoisonQueue(h.bus.GroupName(handler)).List(context.Background(), "", n)
	h.must(err)
	return list
}

func (h *Harness) requireOutcome(handler string, want bus.Outcome, n int) {
	h.t.Helper()
	h.mustKnow(handler)
	if got := h.story.outcomes(h.bus.GroupName(handler), want); got != n {
		h.t.Fatalf("bustest: %s: %d %s, want %d\n%s", handler, got, want, n, h.story)
	}
}

// Published returns the events of T's type that were published, in order.
func Published[T bus.Event](h *Harness) []T {
	h.t.Helper()
	var events []T
	for _, msg := range h.story.messages(typeOf[T](h)) {
		var e T
		h.must(h.bus.Encoder().Codec.Unmarshal(msg.Payload, &e))
		events = append(events, e)
	}
	return events
}

// RequirePublished returns the first published event that matches. It fails the test if there is none.
func RequirePublished[T bus.Event](h *Harness, match func(T) bool) T {
	h.t.Helper()
	events := Published[T](h)
	for _, e := range events {
		if match(e) {
			return e
		}
	}
	h.t.Fatalf("bustest: none of %d published %s matches\n%s", len(events), typeOf[T](h), h.story)
	panic("not reached")
}

func typeOf[T bus.Event](h *Harness) string {
	h.t.Helper()
	t, err := bus.TypeOf[T]()
	h.must(err)
	return t.String()
}

// instrumented is a stack that makes tries fail for FailNext.
type instrumented struct {
	bus.Stack
	failures *failures
}

func (s instrumented) Wrap(h bus.Handler, next message.HandlerFunc) (message.HandlerFunc, error) {
	wrapped, err := s.Stack.Wrap(h, func(msg *message.Message) ([]*message.Message, error) {
		if err := s.failures.next(h.Name); err != nil {
			return nil, fmt.Errorf("made to fail: %w", err)
		}
		return next(msg)
	})
	return wrapped, err
}
