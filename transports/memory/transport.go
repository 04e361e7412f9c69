package memory

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/urlopt"
	"github.com/leatbus/leat/internal/waitcounter"
)

// Scheme is the URL scheme.
const Scheme = "memory"

// Config configures the bounds of a [Transport]. The zero value has the defaults of the URL's options.
//
// A group has three capacities, each with these bounds: for messages that wait to be handled, for messages that were published
// with a delay, and for messages that are parked behind poisoned ones.
type Config struct {
	Bytes       int // bytes per capacity of a group, headers included; one message always fits
	Queue       int // messages per capacity of a group; 0 means any number
	PoisonBytes int // bytes per poison queue, headers included
	// StrictRoutes makes Publish fail for a message that no group has subscribed to; see [driver.UnroutableError].
	StrictRoutes bool
	// Logger logs when a full group blocks publishers. nil means slog.Default().
	Logger *slog.Logger
}

const (
	defaultBytes       = 64 << 20
	defaultPoisonBytes = 256 << 20
)

// Transport is a [driver.Transport] in memory.
type Transport struct {
	cfg   Config
	err   error // cfg is invalid
	table driver.TopicTable[*group]
	busy  waitcounter.Counter // messages that are not settled, over all groups

	unroutable atomic.Int64
	tickets    atomic.Uint64 // of publishers that had to wait

	mu     sync.Mutex // guards groups
	groups map[string]*group
	closed atomic.Bool // written under mu

	tailing sync.Mutex // guards tails
	tails   []*watcher
	tailed  atomic.Int32 // len(tails)
}

var (
	_ driver.Transport     = (*Transport)(nil)
	_ driver.HealthChecker = (*Transport)(nil)
)

// Open returns a transport for a URL. Each call returns a new one; they share nothing. It returns an error if the URL has a host,
// a path or an unknown option. It does not block.
func Open(ctx context.Context, u *url.URL) (driver.Transport, error) {
	if u.Host != "" || (u.Path != "" && u.Path != "/") || u.User != nil {
		return nil, errors.New("memory: the URL has a host or a path; write memory://")
	}
	o := urlopt.New(u)
	o.RequireHost(u)
	cfg := Config{
		Bytes:        o.Int("bytes", defaultBytes, 1),
		Queue:        o.Int("queue", 0, 0),
		PoisonBytes:  o.Int("poison", defaultPoisonBytes, 0),
		StrictRoutes: o.StrictRoutes(),
		Logger:       driver.LoggerFrom(ctx),
	}
	if err := o.Err(); err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	return New(cfg), nil
}

// New returns a transport. If a bound in cfg is negative, the methods of the transport return an error that says so.
func New(cfg Config) *Transport {
	var err error
	for name, bound := range map[string]int{"Bytes": cfg.Bytes, "Queue": cfg.Queue, "PoisonBytes": cfg.PoisonBytes} {
		if bound < 0 {
			err = fmt.Errorf("memory: Config.%s is %d; it can't be negative, and 0 means the default", name, bound)
		}
	}
	cfg.Bytes = cmp.Or(cfg.Bytes, defaultBytes)
	cfg.PoisonBytes = cmp.Or(cfg.PoisonBytes, defaultPoisonBytes)
	cfg.Logger = cmp.Or(cfg.Logger, slog.Default())
	return &Transport{cfg: cfg, err: err, groups: make(map[string]*group)}
}

// Capabilities implements [driver.Transport]: the transport supports everything except durability.
func (t *Transport) Capabilities() driver.Capabilities {
	return driver.Capabilities{Delay: true, Patterns: true, ByKey: true, Strict: true, Poison: true, Park: true}
}

// Health implements [driver.HealthChecker]: the transport is connected until it is closed.
func (t *Transport) Health() driver.TransportHealth {
	err := t.openOrErr()
	return driver.TransportHealth{Transport: Scheme, Connected: err == nil, Err: err, Unroutable: t.unroutable.Load()}
}

// Publish implements [driver.Transport]. It puts each message into all groups of its topic or into none, and blocks while one of
// them is full.
func (t *Transport) Publish(ctx context.Context, topic string, msgs ...*message.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := t.openOrErr(); err != nil {
		return err
	}
	if err := driver.ValidateTopic(topic); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	groups := inOrder(t.table.Match(topic))
	if len(groups) == 0 {
		t.show(topic, msgs)
		t.unroutable.Add(int64(len(msgs)))
		return &driver.UnroutableError{Topics: slices.Repeat([]string{topic}, len(msgs)), Strict: t.cfg.StrictRoutes}
	}
	now, class := time.Now(), otherClass
	if driver.DeliveryFrom(ctx) != nil {
		class = handlerClass
	}
	for _, msg := range msgs {
		if _, err := driver.ParseDeliverAt(msg); err != nil {
			return fmt.Errorf("memory: %w", err)
		}
	}
	for i, msg := range msgs {
		it := newItem(msg, topic)
		it.since, it.due = now, driver.DeliverAt(msg)
		it.delayed = it.due.After(now)
		if err := t.enqueue(ctx, groups, it, class); err != nil {
			t.show(topic, msgs[:i])
			return &driver.PublishError{Failed: msgs[i:], Err: fmt.Errorf("memory: %w", err)}
		}
	}
	t.show(topic, msgs)
	return nil
}

// Subscribe implements [driver.Transport]. It does not block.
func (t *Transport) Subscribe(_ context.Context, s driver.Subscription) (driver.Receiver, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.openOrErr(); err != nil {
		return nil, err
	}
	g := t.group(s.Group)
	if err := g.join(s); err != nil {
		return nil, fmt.Errorf("memory: %w", err)
	}
	t.table.Set(g, s.Topics...)
	return &receiver{group: g, done: make(chan struct{})}, nil
}

// group returns the group with the name, and creates it if it does not exist.
func (t *Transport) group(name string) *group {
	g, ok := t.groups[name]
	if !ok {
		g = newGroup(name, len(t.groups), t.cfg, &t.busy)
		t.groups[name] = g
	}
	return g
}

// PoisonQueue implements [driver.Transport].
func (t *Transport) PoisonQueue(group string) driver.PoisonQueue {
	t.mu.Lock()
	defer t.mu.Unlock()
	return &poisonQueue{group: t.group(group), transport: t}
}

// WaitIdle blocks until all messages in all groups are settled, or until ctx is done: none waits, none is delayed and none is in
// a handler. This includes messages that handlers publish, because they are published before the handler's own is settled. It
// does not include messages that are parked behind a poisoned one, because they wait for an operator.
func (t *Transport) WaitIdle(ctx context.Context) error { return t.busy.Wait(ctx) }

// Redeliver delivers a message to one group that may have handled it before, as a broker does that lost an ack. It is for tests.
func (t *Transport) Redeliver(ctx context.Context, name, topic string, msg *message.Message) error {
	t.mu.Lock()
	g, ok := t.groups[name]
	t.mu.Unlock()
	if !ok {
		return fmt.Errorf("memory: group %q: %w", name, driver.ErrNotFound)
	}
	it := newItem(msg, topic)
	it.attempts, it.since, it.untracked = 1, time.Now(), true // the bus that published it has its outcome already
	return t.enqueue(ctx, []*group{g}, it, otherClass)
}

// Close implements [driver.Transport]. It drops waiting messages; all blocked calls return [driver.ErrClosed].
func (t *Transport) Close(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed.Swap(true) {
		return nil
	}
	for _, g := range t.groups {
		g.close()
	}
	t.endTails()
	return nil
}

// receiver is one subscription to a group.
type receiver struct {
	group *group
	once  sync.Once
	done  chan struct{}
}

var (
	_ driver.BacklogCounter   = (*receiver)(nil)
	_ driver.ParkNotifier     = (*receiver)(nil)
	_ driver.ParkedKeyCounter = (*receiver)(nil)
)

func (r *receiver) Next(ctx context.Context) (*driver.Delivery, error) {
	return r.group.next(ctx, r.done)
}

func (r *receiver) Close(context.Context) error {
	r.once.Do(func() {
		close(r.done)
		r.group.leave(r)
	})
	return nil
}

func (r *receiver) OnPark(fn func(*message.Message)) { r.group.notifyOnPark(r, fn) }

func (r *receiver) ParkedKeys(context.Context) (int, error) { return r.group.info().ParkedKeys, nil }

func (r *receiver) Backlog() (now, later int) { return r.group.backlog() }

var errPoisonFull = errors.New("the poison queue is full; replay or drop what is in it, or raise the option poison")
