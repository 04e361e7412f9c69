package amqp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/ordered"
)

const (
	// A list keeps so much in memory, for so long, for its further pages.
	listMessages = 20_000
	listBytes    = 64 << 20
	listAge      = 10 * time.Second
)

// replayWindow is how many messages are replayed at once.
const replayWindow = stride

// poisonLocks are this process's own locks, beside the broker's: to that one a whole connection is
// one client.
type poisonLocks struct {
	mu     sync.Mutex
	groups map[string]*poisonQueue
}

// PoisonQueue is the queue <group>.poison. Its methods read messages and put them back where they
// were; they exclude each other, here and in other processes, by a lock on the broker. A group that
// has no poison queue yet has an empty one. Ids are given by leat when it poisons; what the broker
// itself dead-lettered has one made of its content.
func (t *Transport) PoisonQueue(group string) driver.PoisonQueue {
	t.poison.mu.Lock()
	defer t.poison.mu.Unlock()
	if t.poison.groups == nil {
		t.poison.groups = make(map[string]*poisonQueue)
	}
	q, ok := t.poison.groups[group]
	if !ok {
		q = &poisonQueue{t: t, group: group, turn: make(chan struct{}, 1)}
		t.poison.groups[group] = q
	}
	return q
}

type poisonQueue struct {
	t     *Transport
	group string
	turn  chan struct{} // holds one while somebody looks

	// What the last List read and did not return, for the next page. The one whose turn it is has it.
	pages   []driver.PoisonedMessage
	pagesAt time.Time
}

// browse calls do with the queue open, while no other leat process has it open.
func (q *poisonQueue) browse(ctx context.Context, do func(*browser) error) error {
	conn, wire, err := q.t.publishing.connection(ctx)
	if err != nil {
		return err
	}
	return q.t.browse(&browser{ctx: ctx, conn: conn, wire: wire, queue: poisonName(q.group), group: q.group}, q.group+lockSuffix, do)
}

// List reads the whole queue, keeps its first 20,000 messages or 64 MiB, and answers further pages of
// that from memory for ten seconds.
func (q *poisonQueue) List(ctx context.Context, after string, limit int) ([]driver.PoisonedMessage, error) {
	if limit < 1 {
		return nil, nil
	}
	var page []driver.PoisonedMessage
	err := q.guard(ctx, "list", func(ctx context.Context) error {
		if page = q.nextPage(after, limit); page != nil {
			return nil
		}
		for again := true; again; {
			again = false // also where there is no queue
			err := q.browse(ctx, func(b *browser) error {
				all, void, err := list(b, after)
				if err != nil {
					return err
				}
				page = all[:min(limit, len(all))]
				q.pages, q.pagesAt, again = all, time.Now(), len(void) > 0
				return b.take(void...)
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	return page, err
}

// nextPage is the page behind a message that an earlier List has read, nil where none is known.
func (q *poisonQueue) nextPage(after string, limit int) []driver.PoisonedMessage {
	if after == "" || time.Since(q.pagesAt) > listAge {
		return nil
	}
	i := slices.IndexFunc(q.pages, func(p driver.PoisonedMessage) bool { return p.ID == after })
	if i < 0 || i+1 == len(q.pages) {
		return nil
	}
	return q.pages[i+1 : min(i+1+limit, len(q.pages))]
}

// list reads the messages behind the one with the id after, up to the bounds of a list. It reads them
// all, because the queue's order is not that of arrival for sure: somebody else may have looked into
// it by other means. Void are those of which there is an edited copy, too; without them it is to be read
// again.
func list(b *browser, after string) (all []driver.PoisonedMessage, void []*amqp.Delivery, err error) {
	var first page
	latest := make(revisions)
	err = b.walk(func(id string, d *amqp.Delivery) (bool, error) {
		if old := latest.enter(id, d); old != nil {
			void = append(void, old)
		}
		if id > after {
			first.add(shown(id, d))
		}
		return true, nil
	})
	slices.SortFunc(first.messages, func(a, b driver.PoisonedMessage) int { return strings.Compare(a.ID, b.ID) })
	return first.messages, void, err
}

// Get reads the queue up to the message.
func (q *poisonQueue) Get(ctx context.Context, id string) (found driver.PoisonedMessage, err error) {
	err = q.all(ctx, "get", []string{id}, func(_ *browser, _ []string, all []*amqp.Delivery) error {
		for _, d := range all {
			found = shown(id, d)
		}
		return nil
	})
	return found, err
}

// Replay publishes messages to the group's own queue and takes them out of this one when that is
// confirmed, a window of them at once over one channel: a process killed in the middle leaves at most
// a window of messages in both, and none in neither. The end of ctx stops it between two windows.
func (q *poisonQueue) Replay(ctx context.Context, ids ...string) (n int, err error) {
	err = q.all(ctx, "replay", ids, func(b *browser, _ []string, window []*amqp.Delivery) error {
		return b.finish(func() error {
			safe, err := b.replay(window)
			if err := errors.Join(err, b.take(safe...)); err != nil {
				return err
			}
			n += len(safe)
			return nil
		})
	})
	return n, err
}

// Drop deletes messages, and lets what is parked behind them go on.
func (q *poisonQueue) Drop(ctx context.Context, ids ...string) (n int, err error) {
	err = q.all(ctx, "drop", ids, func(b *browser, _ []string, window []*amqp.Delivery) error {
		if err := b.release(window); err != nil {
			return err
		}
		if err := b.take(window...); err != nil {
			return err
		}
		n += len(window)
		return nil
	})
	return n, err
}

// Put publishes messages to the poison queue. The place of one that is changed is its id's: it is
// published first and the old one taken then, so that a process killed in between leaves both: the new one
// has a higher revision, and who lists them takes the old one away.
func (q *poisonQueue) Put(ctx context.Context, msgs ...driver.PoisonedMessage) error {
	var added []*outgoing
	var fresh []driver.PoisonedMessage
	changed := make(map[string]*outgoing)
	for _, m := range msgs {
		o, err := q.outgoing(m)
		switch {
		case err != nil:
			return fmt.Errorf("amqp: poison queue of group %q: write: %w", q.group, err)
		case m.ID == "":
			added, fresh = append(added, o), append(fresh, m)
		default:
			changed[m.ID] = o
		}
	}
	err := q.all(ctx, "write", slices.Sorted(maps.Keys(changed)), func(b *browser, ids []string, found []*amqp.Delivery) error {
		for i, d := range found {
			o := changed[ids[i]]
			o.msg.Headers[headerQueue], o.msg.Timestamp = d.Headers[headerQueue], d.Timestamp
			o.msg.Headers[headerPoisonRev] = revisionOf(d) + 1
			if head := headOf(d); head != "" {
				o.msg.Headers[headerHead] = head
			}
			err := b.finish(func() error {
				if err := b.send(o); err != nil {
					return err
				}
				return b.take(d)
			})
			if err != nil {
				return err
			}
		}
		b.taken = nil // the new ones have the ids of the old
		return nil
	})
	if len(added) == 0 || err != nil && !errors.Is(err, driver.ErrNotFound) {
		return err
	}
	return errors.Join(err, q.guard(ctx, "write", func(ctx context.Context) error {
		q.pages = nil
		blocks, err := q.blocks(ctx, added, fresh)
		if err != nil {
			return err
		}
		if err := q.t.publisher.send(ctx, added); err != nil {
			return err
		}
		for _, o := range added {
			if o.unroutable {
				return fmt.Errorf("queue %q is not there; start the group's service once, which makes it", o.key)
			}
		}
		return q.t.publisher.send(ctx, blocks) // a message is in the poison queue before the group knows of it
	}))
}

// outgoing is a poisoned message on its way to the poison queue.
func (q *poisonQueue) outgoing(m driver.PoisonedMessage) (*outgoing, error) {
	if err := driver.ValidateTopic(m.Topic()); err != nil {
		return nil, fmt.Errorf("message %s: %w", driver.MessageID(m.Message), err)
	}
	p, err := marshal(m.Message, m.Topic(), &q.t.cfg, q.t.publishing.frame())
	if err != nil {
		return nil, err
	}
	p.Headers[headerTopic] = m.Topic()
	p.Headers[headerPoisonID] = cmp.Or(m.ID, ids.New())
	if first := driver.FaultOf(m.Message.Metadata).FirstAt; !first.IsZero() {
		p.Timestamp = first
	}
	return &outgoing{key: poisonName(q.group), msg: p}, nil
}

// Len is exact unless another process looks into the queue right now, for which it waits.
func (q *poisonQueue) Len(ctx context.Context) (n int, err error) {
	err = q.guard(ctx, "count", func(ctx context.Context) error {
		return q.browse(ctx, func(b *browser) error {
			n, err = b.ready()
			return err
		})
	})
	return n, err
}

// all calls do with the messages of these ids that are there: in the order of their arrival, as far as strideBytes of
// them go. The error tells of those that are not.
func (q *poisonQueue) all(ctx context.Context, what string, ids []string, do func(b *browser, ids []string, found []*amqp.Delivery) error) error {
	if len(ids) == 0 {
		return nil
	}
	wanted := make(map[string]bool, len(ids))
	for _, id := range ids {
		wanted[id] = true
	}
	return q.guard(ctx, what, func(ctx context.Context) error {
		q.pages = nil
		seen := make(map[string]int)
		err := q.browse(ctx, func(b *browser) error {
			found, bytes := make(map[string]*amqp.Delivery), 0
			flush := func() error {
				there := slices.Sorted(maps.Keys(found))
				for ids := range slices.Chunk(there, replayWindow) {
					window := make([]*amqp.Delivery, len(ids))
					for i, id := range ids {
						window[i] = found[id]
					}
					if err := do(b, ids, window); err != nil {
						return err
					}
				}
				clear(found)
				bytes = 0
				return nil
			}
			err := b.walkStrides(func(batch []*amqp.Delivery) (bool, error) {
				for _, d := range batch {
					if id := idOf(d, seen); wanted[id] {
						found[id] = d
						bytes += len(d.Body) + tableSize(d.Headers)
						delete(wanted, id)
					}
				}
				if bytes < strideBytes {
					return len(wanted) > 0, nil
				}
				return len(wanted) > 0, flush()
			})
			if err != nil {
				return err
			}
			return flush()
		})
		if err == nil && len(wanted) > 0 {
			err = missing(ids, wanted)
		}
		return err
	})
}

func missing(ids []string, wanted map[string]bool) error {
	for _, id := range ids {
		if wanted[id] {
			return fmt.Errorf("message %q and %d more: %w", id, len(wanted)-1, driver.ErrNotFound)
		}
	}
	return nil
}

// guard waits for the turn.
func (q *poisonQueue) guard(ctx context.Context, what string, do func(context.Context) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := checkName("queue", q.group+lockSuffix); err != nil {
		return fmt.Errorf("amqp: %w", err)
	}
	if !q.t.enter() {
		return driver.ErrClosed
	}
	defer q.t.active.Add(-1)
	select {
	case q.turn <- struct{}{}:
		defer func() { <-q.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := do(ctx); err != nil {
		return fmt.Errorf("amqp: poison queue of group %q: %s: %w", q.group, what, err)
	}
	return nil
}

// replay publishes messages to the group's own queue, over the channel by which they are then taken, and returns those
// that are safe there. In an ordered group they come before all of their keys, by the names that they have.
func (b *browser) replay(window []*amqp.Delivery) (safe []*amqp.Delivery, err error) {
	out := make([]*outgoing, len(window))
	for i, d := range window {
		target, _ := d.Headers[headerQueue].(string)
		if target == "" || headOf(d) != "" { // an earlier version named the queue that a message was held in
			target = b.group
		}
		out[i] = &outgoing{key: target, msg: fresh(d)}
	}
	err = b.send(out...)
	for i, o := range out {
		if o.confirmed && !o.unroutable {
			safe = append(safe, window[i])
		}
	}
	return safe, err
}

// release lets the keys of messages go on without them, if the group is ordered.
func (b *browser) release(window []*amqp.Delivery) error {
	if !slices.ContainsFunc(window, func(d *amqp.Delivery) bool { return headOf(d) != "" }) {
		return nil
	}
	order, err := b.t.orderOf(b.ctx, b.group)
	if err != nil || order == driver.Unordered {
		return err
	}
	var out []*outgoing
	for _, d := range window {
		if head := headOf(d); head != "" {
			out = append(out, controlMessage(b.group, ordered.ControlDrop, head, "", ordered.Name{}))
		}
	}
	return b.send(out...)
}

// fresh is the message as it was before its first delivery, but for the bus that published it: that
// one has settled its account of the message.
func fresh(d *amqp.Delivery) amqp.Publishing {
	topic, _ := d.Headers[headerTopic].(string)
	p := copyOf(d, topic)
	if head := headOf(d); head != "" {
		p.Headers[headerHead] = head
	}
	for name := range p.Headers {
		switch {
		case strings.HasPrefix(name, faultPrefix),
			name == headerAttempt, name == headerCrashes, name == headerPoisonID, name == headerPoisonRev, name == headerQueue,
			name == driver.HeaderInstance, name == headerOwn, name == headerTooBig:
			delete(p.Headers, name)
		}
	}
	return p
}

// faultPrefix is what driver.Fault's headers have in common.
const faultPrefix = "leat_fault_"
