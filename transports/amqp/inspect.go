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

// known is a group as the registry and this process know it.
type known struct {
	note             // the newest
	earlier []string // topics that were asked for before and are still bound, as far as leat knows
	delays  []string // delays that the retry policy had before, and whose queues are still there
}

func (k known) topics() []string {
	return slices.Sorted(slices.Values(slices.Concat(k.Topics, k.earlier)))
}

// Groups are the groups of this exchange, or with topology=watermill those of leat processes with that
// topology; the queues of plain Watermill services can't be found. An operator's tool ([Config].Operator) asks the
// management API, whose counts are some seconds old. Services, and a tool where the API does not answer, go by the
// registry; see registry.go: a group is known from a moment after its Subscribe on. The broker does not tell what waits for a time and what is handed out,
// and its oldest message could only be seen by taking it, which counts as an attempt: these are unknown.
// With declare=false it is an error if nobody has made the registry; the groups subscribed here come with it.
func (t *Transport) Groups(ctx context.Context) ([]driver.GroupInfo, error) {
	var all []driver.GroupInfo
	s, missing := t.survey(ctx)
	if s != nil && missing == nil {
		for _, g := range s.groups() {
			all = append(all, s.info(g))
		}
		return all, nil
	}
	err := t.inspect(ctx, "groups", func(i *inspection) error {
		groups, unknown := i.groupsWithout(missing)
		for _, k := range groups {
			info, ok, err := i.count(k)
			if err != nil {
				return err
			}
			if ok {
				all = append(all, info)
			}
		}
		return unknown
	})
	return all, err
}

// Topics are what the groups of [Transport.Groups] are bound to, as far as leat knows.
func (t *Transport) Topics(ctx context.Context) ([]driver.TopicInfo, error) {
	byTopic := make(map[string][]string)
	s, missing := t.survey(ctx)
	var err error
	if s != nil && missing == nil {
		for _, g := range s.groups() {
			for _, topic := range g.topics {
				byTopic[topic] = append(byTopic[topic], g.name)
			}
		}
	} else {
		err = t.inspect(ctx, "topics", func(i *inspection) error {
			groups, unknown := i.groupsWithout(missing)
			for _, k := range groups {
				for _, topic := range k.topics() {
					byTopic[topic] = append(byTopic[topic], k.Group)
				}
			}
			return unknown
		})
	}
	all := make([]driver.TopicInfo, 0, len(byTopic))
	for _, topic := range slices.Sorted(maps.Keys(byTopic)) {
		all = append(all, driver.TopicInfo{Topic: topic, Groups: byTopic[topic]})
	}
	return all, err
}

var errNoRegistry = errors.New("the queue by which groups are known is not there, and declare=false: " +
	"let one process that may make queues subscribe to any group, or make it; its arguments are in the package's documentation")

// groupsWithout are those that the registry knows, where the management API is missing, if it is.
func (i *inspection) groupsWithout(missing error) ([]known, error) {
	groups, unknown := i.groups()
	switch {
	case missing == nil:
		return groups, unknown
	case len(groups) == 0 && (unknown == nil || errors.Is(unknown, errNoRegistry)):
		return nil, missing
	}
	i.t.cfg.Logger.Warn("leat: amqp: groups are those that have left a note of themselves, because the management API does not answer",
		"err", missing, "fix", fixOf(missing))
	return groups, unknown
}

// fixOf is what to do about an error of the management API.
func fixOf(err error) string {
	if failed, ok := errors.AsType[*ManagementError](err); ok {
		return failed.fix
	}
	return "try again"
}

// groups are sorted by name. The error says why some may be missing.
func (i *inspection) groups() (all []known, err error) {
	notes := make(map[groupKey][]note)
	registries := 0
	for _, queues := range []QueueType{Quorum, Classic} {
		_, ok, err := i.queue(registryName(queues))
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		registries++
		read, err := i.t.registry.read(&browser{ctx: i.ctx, conn: i.conn, wire: i.wire}, queues)
		if err != nil {
			return nil, err
		}
		for key, list := range read {
			notes[key] = append(notes[key], list...)
		}
	}
	if registries == 0 && i.t.cfg.Declare == DeclareNothing {
		err = errNoRegistry
	}
	_, own := i.t.topology.remembered()
	for _, s := range own {
		n := i.t.topology.noteOf(s)
		key := groupKey{n.Group, n.Exchange}
		notes[key] = append([]note{n}, notes[key]...)
	}
	exchange := i.t.topology.noteOf(driver.Subscription{}).Exchange
	for key, list := range notes {
		if key.exchange == exchange {
			all = append(all, knownBy(list))
		}
	}
	slices.SortFunc(all, func(a, b known) int { return cmp.Compare(a.Group, b.Group) })
	return all, err
}

// knownBy joins the notes of one group, the newest first.
func knownBy(notes []note) known {
	k := known{note: notes[0]}
	for _, older := range notes[1:] {
		k.delays = append(k.delays, without(older.Delays, slices.Concat(k.Delays, k.delays))...)
		for _, topic := range older.Topics {
			if !slices.Contains(k.Topics, topic) && !slices.Contains(k.earlier, topic) {
				k.earlier = append(k.earlier, topic)
			}
		}
	}
	slices.Sort(k.earlier)
	return k
}

// queuesOf are the group's queues: more than one with topology=watermill.
func (i *inspection) queuesOf(k known) []string {
	s := k.subscription()
	s.Topics, s.Known = k.topics(), k.topics()
	return i.t.topology.noted(k.note).queues(s)
}

// count asks for the group's queues; ok is false where it has none.
func (i *inspection) count(k known) (info driver.GroupInfo, ok bool, err error) {
	info = driver.GroupInfo{Name: k.Group, Topics: k.topics(), Delayed: driver.Unknown, InFlight: driver.Unknown}
	for _, name := range i.queuesOf(k) {
		q, there, err := i.queue(name)
		if err != nil {
			return info, false, err
		}
		ok = ok || there
		info.Waiting += q.Messages
		info.Consumers = max(info.Consumers, q.Consumers)
	}
	if k.Order != driver.Unordered.String() {
		for _, name := range parkedNames(k.Group) {
			parked, _, err := i.queue(name)
			if err != nil {
				return info, false, err
			}
			info.Parked += parked.Messages
		}
	}
	poisoned, _, err := i.queue(poisonName(k.Group))
	if err != nil {
		return info, false, err
	}
	info.Poisoned = poisoned.Messages
	return info, ok, err
}

// conflictWith compares the arguments of the group's queues with those that it asks for. It makes
// nothing: only what is there is declared again.
func (i *inspection) conflictWith(k known) error {
	topology := i.t.topology.noted(k.note)
	for _, name := range i.queuesOf(k) {
		_, there, err := i.queue(name)
		if err == nil && there {
			err = i.do(func(ch *amqp.Channel) error {
				d := &declarer{ch: ch}
				d.queue(name, topology.queueArgs(k.subscription()))
				return d.err
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}
