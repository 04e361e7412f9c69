package amqp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

var _ driver.Inspector = (*Transport)(nil)

// inspection is a connection of its own: it can be given up at any time, and disturbs no work.
type inspection struct {
	prober
	ctx  context.Context
	t    *Transport
	wire *coalescer
}

// inspect calls do until ctx is done or the transport closed.
func (t *Transport) inspect(ctx context.Context, what string, do func(*inspection) error) error {
	if !t.enter() {
		return driver.ErrClosed
	}
	t.active.Add(-1) // Close need not wait
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(t.ctx, func() { cancel(driver.ErrClosed) })()
	if err := t.inspectWith(ctx, do); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("amqp: %s: %w", what, err)
	}
	return nil
}

func (t *Transport) inspectWith(ctx context.Context, do func(*inspection) error) error {
	conn, wire, err := t.cfg.dial(ctx, "inspect")
	if err != nil {
		return err
	}
	giveUp := context.AfterFunc(ctx, func() { _ = conn.CloseDeadline(time.Now()) })
	defer giveUp()
	defer func() { _ = conn.CloseDeadline(time.Now().Add(lastWords)) }()
	return do(&inspection{ctx: ctx, t: t, wire: wire, prober: prober{conn: conn}})
}

// Groups returns the groups of this exchange, or with topology=watermill those of leat processes with that topology;
// queues of plain Watermill services can't be found. In a process that has subscribed to groups it returns these, and
// asks the broker for their queues over AMQP: it does not tell what waits for a time and what is handed out, and so
// these are [driver.Unknown]. In any other process Groups asks the management API, whose counts are some seconds old;
// without it the error is a [*ManagementError], which says how to get it.
func (t *Transport) Groups(ctx context.Context) ([]driver.GroupInfo, error) {
	var all []driver.GroupInfo
	if !t.serves() {
		s, err := t.survey(ctx)
		if err != nil {
			return nil, fmt.Errorf("amqp: groups: %w", err)
		}
		for _, g := range s.groups() {
			all = append(all, s.info(g))
		}
		return all, nil
	}
	err := t.inspect(ctx, "groups", func(i *inspection) error {
		for _, s := range t.topology.subscriptions() {
			info, there, err := i.count(s)
			if err != nil {
				return err
			}
			if there {
				all = append(all, info)
			}
		}
		return nil
	})
	return all, err
}

// Topics returns what the groups of [Transport.Groups] are bound to; those of this process, what they ask for.
func (t *Transport) Topics(ctx context.Context) ([]driver.TopicInfo, error) {
	byTopic := make(map[string][]string)
	if t.serves() {
		for _, s := range t.topology.subscriptions() {
			for _, topic := range t.topology.topics(s) {
				byTopic[topic] = append(byTopic[topic], s.Group)
			}
		}
	} else {
		s, err := t.survey(ctx)
		if err != nil {
			return nil, fmt.Errorf("amqp: topics: %w", err)
		}
		for _, g := range s.groups() {
			for _, topic := range g.topics {
				byTopic[topic] = append(byTopic[topic], g.name)
			}
		}
	}
	all := make([]driver.TopicInfo, 0, len(byTopic))
	for _, topic := range slices.Sorted(maps.Keys(byTopic)) {
		all = append(all, driver.TopicInfo{Topic: topic, Groups: byTopic[topic]})
	}
	return all, nil
}

// serves reports whether this process has groups. Services never ask the management API.
func (t *Transport) serves() bool { return !t.cfg.Operator && len(t.topology.subscriptions()) > 0 }

// subscriptions returns those of this process's groups, sorted by name.
func (t *topology) subscriptions() []driver.Subscription {
	_, all := t.remembered()
	slices.SortFunc(all, func(a, b driver.Subscription) int { return cmp.Compare(a.Group, b.Group) })
	return all
}

// topics returns what a group asks for, sorted.
func (t *topology) topics(s driver.Subscription) []string {
	topics := s.Topics
	if t.watermill() {
		topics = s.Known
	}
	return slices.Compact(slices.Sorted(slices.Values(topics)))
}

// fixOf returns what to do about an error of the management API.
func fixOf(err error) string {
	if failed, ok := errors.AsType[*ManagementError](err); ok {
		return failed.fix
	}
	return "try again"
}

// count asks for the group's queues; ok is false if it has none.
func (i *inspection) count(s driver.Subscription) (info driver.GroupInfo, ok bool, err error) {
	info = driver.GroupInfo{Name: s.Group, Topics: i.t.topology.topics(s), Delayed: driver.Unknown, InFlight: driver.Unknown}
	for _, name := range i.t.topology.queues(s) {
		q, there, err := i.queue(name)
		if err != nil {
			return info, false, err
		}
		ok = ok || there
		info.Waiting += q.Messages
		info.Consumers = max(info.Consumers, q.Consumers)
	}
	if s.Order != driver.Unordered {
		for _, name := range parkedNames(s.Group) {
			parked, _, err := i.queue(name)
			if err != nil {
				return info, false, err
			}
			info.Parked += parked.Messages
		}
	}
	poisoned, _, err := i.queue(poisonName(s.Group))
	if err != nil {
		return info, false, err
	}
	info.Poisoned = poisoned.Messages
	return info, ok, err
}

// conflictWith compares the arguments of the group's queues with those that it asks for. It makes
// nothing: only what is there is declared again.
func (i *inspection) conflictWith(s driver.Subscription) error {
	for _, name := range i.t.topology.queues(s) {
		_, there, err := i.queue(name)
		if err == nil && there {
			err = i.do(func(ch *amqp.Channel) error {
				d := &declarer{ch: ch}
				d.queue(name, i.t.topology.queueArgs(s))
				return d.err
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A prober asks for one queue after the other: the broker closes the channel over each that is not there.
type prober struct {
	conn *amqp.Connection
	ch   *amqp.Channel
}

// do calls what with an open channel.
func (p *prober) do(what func(*amqp.Channel) error) (err error) {
	if p.ch == nil || p.ch.IsClosed() {
		if p.ch, err = p.conn.Channel(); err != nil {
			return err
		}
	}
	return what(p.ch)
}

// queue returns the queue's counts; ok is false if there is none of that name.
func (p *prober) queue(name string) (q amqp.Queue, ok bool, err error) {
	err = p.do(func(ch *amqp.Channel) error {
		q, err = ch.QueueDeclarePassive(name, durable, autoDelete, exclusive, noWait, nil)
		return err
	})
	if isCode(err, amqp.NotFound) {
		return q, false, nil
	}
	return q, err == nil, err
}

// close closes the channel, if there is one.
func (p *prober) close() {
	if p.ch != nil {
		closeQuietly(p.ch)
	}
}
