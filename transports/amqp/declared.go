package amqp

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// A declaredTopology remembers what this process has declared, so that deleted objects can be declared again. Its methods may be
// called concurrently. No lock is held while the broker is called.
type declaredTopology struct {
	*topology

	mu        sync.Mutex
	exchanges map[string]bool // fanout exchanges of topology=watermill to which messages were published
	delays    bool            // something was published with a delay
	groups    map[string]driver.Subscription
	unstable  map[string]time.Time // until when groups are not declared over the publishing connection
}

func newTopology(cfg *Config) *declaredTopology {
	return &declaredTopology{
		topology: &topology{cfg}, exchanges: make(map[string]bool), groups: make(map[string]driver.Subscription),
		unstable: make(map[string]time.Time),
	}
}

// allLevels returns the levels for delays that this process needs: those for redeliveries if it has a group, and those of
// publishers when it has published with a delay.
func (t *declaredTopology) allLevels() (all []levels) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.groups) > 0 {
		all = append(all, t.redelivering())
	}
	if t.delays {
		all = append(all, t.publishing())
	}
	return all
}

// assertDelays declares the levels of the delays again and again: if a part of them is deleted, messages are delivered too early.
func (t *declaredTopology) assertDelays(ctx context.Context, l *link) {
	for sleep(ctx, delayAssertInterval) == nil {
		for _, set := range t.allLevels() {
			err := l.withChannel(ctx, func(ch *amqp.Channel) error { return set.declare(ctx, t.declarer(ch)) })
			if err != nil && ctx.Err() == nil {
				t.cfg.Logger.Error("leat: amqp: the queues for delays can't be declared", "error", err)
			}
		}
	}
}

func (t *declaredTopology) delaysKnown() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.delays
}

// publishDelayed declares the levels for publishers.
func (t *declaredTopology) publishDelayed(ctx context.Context, l *link) error {
	err := l.withChannel(ctx, func(ch *amqp.Channel) error { return t.publishing().declare(ctx, t.declarer(ch)) })
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.delays = true
	return nil
}

// declareDelays declares the levels for redeliveries, for the first group of this process.
func (t *declaredTopology) declareDelays(ctx context.Context, ch *amqp.Channel) error {
	t.mu.Lock()
	declared := len(t.groups) > 0
	t.mu.Unlock()
	if declared {
		return nil
	}
	return t.redelivering().declare(ctx, t.declarer(ch))
}

// publishTo declares a topic's exchange if topics have their own.
func (t *declaredTopology) publishTo(ctx context.Context, l *link, topic string) error {
	if !t.watermill() {
		return nil
	}
	t.mu.Lock()
	known := t.exchanges[topic]
	t.mu.Unlock()
	if known {
		return nil
	}
	err := l.withChannel(ctx, func(ch *amqp.Channel) error {
		d := t.declarer(ch)
		t.declareTopic(d, topic)
		return d.err
	})
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.exchanges[topic] = true
	return nil
}

// subscribe declares a group's queues and remembers them.
func (t *declaredTopology) subscribe(ch *amqp.Channel, s driver.Subscription) error {
	d := t.declarer(ch)
	t.declareGroup(d, s)
	if d.err != nil {
		return d.err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.groups[s.Group] = s
	return nil
}

// adopt returns an error if a subscription differs from one of the same group in this process.
func (t *declaredTopology) adopt(s driver.Subscription) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := t.sharesNoQueue(s); err != nil {
		return err
	}
	other, ok := t.groups[s.Group]
	if !ok {
		return nil
	}
	return s.CheckAgrees(other.Topics, other.Order)
}

// sharesNoQueue returns an error if the group would have the queue of another group, because a Watermill configuration names queues
// by topic alone. It is called with mu locked.
func (t *declaredTopology) sharesNoQueue(s driver.Subscription) error {
	if !t.watermill() {
		return nil
	}
	queues := t.queues(s)
	for _, other := range t.groups {
		if other.Group == s.Group {
			continue
		}
		for _, queue := range t.queues(other) {
			if slices.Contains(queues, queue) {
				return fmt.Errorf("groups %q and %q would take each other's messages from queue %q; give FromWatermill a function that names the queues of each group",
					other.Group, s.Group, queue)
			}
		}
	}
	return nil
}

// repair declares again what is missing, before a new channel is used: a missing exchange may be the reason why the last channel
// was closed. Other objects are declared, and messages published, even if one can't be declared, which is logged. It returns an
// error if the connection is lost.
func (t *declaredTopology) repair(ctx context.Context, conn *amqp.Connection) error {
	p := prober{conn: conn}
	defer p.close()
	var lost error
	step := func(do func(*declarer)) {
		if lost != nil {
			return
		}
		err := p.do(func(ch *amqp.Channel) error {
			d := t.declarer(ch)
			do(d)
			return d.err
		})
		switch {
		case err == nil:
		case conn.IsClosed(), ctx.Err() != nil:
			lost = err
		default:
			t.cfg.Logger.Error("leat: amqp: not declared", "error", err)
		}
	}
	if !t.cfg.Operator {
		step(t.declareExchange)
	}
	topics, groups := t.remembered()
	for _, set := range t.allLevels() {
		step(func(d *declarer) {
			if err := set.declare(ctx, d); err != nil {
				d.err = err
			}
		})
	}
	for _, topic := range topics {
		step(func(d *declarer) { t.declareTopic(d, topic) })
	}
	for _, s := range groups {
		if t.isUnstable(s.Group) {
			continue // its own consumer declares it
		}
		step(func(d *declarer) { t.declareGroup(d, s) })
		if isCode(lost, amqp.InternalError) {
			t.setUnstable(s.Group)
		}
	}
	return lost
}

func (t *declaredTopology) isUnstable(group string) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return time.Now().Before(t.unstable[group])
}

// setUnstable keeps a group for a while from being declared over the publishing connection, because the broker closes the
// connection for it.
func (t *declaredTopology) setUnstable(group string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unstable[group] = time.Now().Add(unstableFor)
}

// remembered returns what was declared so far.
func (t *declaredTopology) remembered() (topics []string, groups []driver.Subscription) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Collect(maps.Keys(t.exchanges)), slices.Collect(maps.Values(t.groups))
}

// size returns how many groups this process has.
func (t *declaredTopology) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.groups)
}

// subscription returns the subscription of a group of this process.
func (t *declaredTopology) subscription(group string) (s driver.Subscription, here bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s, here = t.groups[group]
	return s, here
}

// subscriptions returns those of this process's groups, sorted by name.
func (t *declaredTopology) subscriptions() []driver.Subscription {
	_, all := t.remembered()
	slices.SortFunc(all, func(a, b driver.Subscription) int { return cmp.Compare(a.Group, b.Group) })
	return all
}

// serves reports whether this process has groups. Services use the management API only in Consumers.
func (t *declaredTopology) serves() bool { return !t.cfg.Operator && len(t.subscriptions()) > 0 }

// assertAfter returns when a group's bindings are declared again: at random, so that groups do not do so together.
func (t *declaredTopology) assertAfter() time.Duration {
	every := max(assertInterval, time.Duration(t.size())*assertPace)
	return every/2 + rand.N(every)
}
