package amqp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
	"github.com/leatbus/leat/transports/internal/ordered"
)

const (
	// The bounds of what a list keeps in memory for further pages, and how long it keeps it.
	listMessages = 20_000
	listBytes    = 64 << 20
	listAge      = 10 * time.Second
)

// replayWindow is the number of messages that are replayed or dropped at once. strideBytes bounds their memory.
const replayWindow = 2 * stride

// PoisonQueue returns the queue <group>.poison. Its methods read messages and requeue them at their positions. A lock on the broker
// makes sure that only one of them runs at a time, in all processes. The poison queue of a group that has none is empty. leat
// gives a message an id when it poisons it; the id of a message that the broker has dead-lettered is a digest of its content.
func (t *Transport) PoisonQueue(group string) driver.PoisonQueue {
	q, _ := t.poison.LoadOrStore(group, &poisonQueue{t: t, group: group, turn: make(chan struct{}, 1)})
	return q.(*poisonQueue)
}

type poisonQueue struct {
	t     *Transport
	group string
	turn  chan struct{} // a mutex: holds a token while a call reads the queue. The broker's lock is for a connection, which all calls share

	// The messages that the last List read, for the next page. Guarded by turn.
	pages   []driver.PoisonedMessage
	pagesAt time.Time
}

// browse calls do with a browser of the queue. No other process of leat has one at the same time, except with declare=false.
func (q *poisonQueue) browse(ctx context.Context, do func(*browser) error) error {
	conn, wire, err := q.t.publishing.connection(ctx)
	if err != nil {
		return err
	}
	if q.t.cfg.Declare != DeclareNothing { // else the user may have no right to declare the queue that is the lock
		unlock, err := lockOnBroker(ctx, conn, q.group+lockSuffix)
		if err != nil {
			return err
		}
		defer unlock()
	}
	return newBrowser(ctx, q.t.publishing, conn, wire, poisonName(q.group)).run(do)
}

// List reads the whole queue. It keeps the first 20,000 messages or 64 MiB for ten seconds, and returns further pages from memory.
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
			again = false // also if there is no queue
			err := q.browse(ctx, func(b *browser) error {
				all, void, err := q.list(b, after)
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

// nextPage returns the page after a message that an earlier List has read, nil if there is none.
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

// list returns the messages after the one with the id after, up to the bounds of a list. It reads the whole queue, because its
// order may not be that of arrival. Void are messages of which there is a later revision: the caller takes them out and reads
// the queue again.
func (q *poisonQueue) list(b *browser, after string) (all []driver.PoisonedMessage, void []*amqp.Delivery, err error) {
	var first page
	latest := make(revisions)
	err = b.walk(func(id string, d *amqp.Delivery) (bool, error) {
		if old, _ := latest.enter(keyOf(id, d), d); old != nil {
			void = append(void, old)
		}
		if id > after {
			first.add(shown(id, d, q.t.cfg.stock))
		}
		return true, nil
	})
	first.trim()
	return first.messages, void, err
}

// Get reads the queue up to the message.
func (q *poisonQueue) Get(ctx context.Context, id string) (found driver.PoisonedMessage, err error) {
	err = q.all(ctx, "get", []string{id}, func(_ *browser, _ []string, all []*amqp.Delivery) error {
		for _, d := range all {
			found = shown(id, d, q.t.cfg.stock)
		}
		return nil
	})
	return found, err
}

// Replay publishes messages to the group's queue, and takes them out of the poison queue when the broker has confirmed them: up to
// 2000 messages at once. If the process is killed, these may be in both queues; none is lost. The end of ctx stops Replay
// after the current ones.
func (q *poisonQueue) Replay(ctx context.Context, ids ...string) (n int, err error) {
	err = q.all(ctx, "replay", ids, func(b *browser, _ []string, window []*amqp.Delivery) error {
		return b.finish(func() error {
			safe, err := q.replay(b, window)
			if failed := b.take(safe...); failed != nil {
				return errors.Join(err, failed)
			}
			n += len(safe)
			driver.Progress(ctx, len(safe))
			return err
		})
	})
	return n, err
}

// Drop implements [driver.PoisonQueue].
func (q *poisonQueue) Drop(ctx context.Context, ids ...string) (n int, err error) {
	err = q.all(ctx, "drop", ids, func(b *browser, _ []string, window []*amqp.Delivery) error {
		if err := q.release(b, window); err != nil {
			return err
		}
		if err := b.take(window...); err != nil {
			return err
		}
		n += len(window)
		driver.Progress(ctx, len(window))
		return nil
	})
	return n, err
}

// Put publishes messages to the poison queue. A message that is changed keeps its id. It is published before the old one is taken
// out. If the process is killed in between, both are in the queue, and the next List or Walk takes out the one with the lower
// revision; until then, the other methods use the one in front. If the broker has dead-lettered the message, both stay.
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
		b.taken = nil // the new messages have the ids of the old ones
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
				return fmt.Errorf("queue %q does not exist; start the group's service once, which declares it", o.key)
			}
		}
		return q.t.publisher.send(ctx, blocks) // the message must be in the poison queue before the group blocks its key
	}))
}

// outgoing returns the publishing of a message to the poison queue.
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

// Len returns the broker's count. The count does not include messages that another client reads, so Len waits for that client.
func (q *poisonQueue) Len(ctx context.Context) (n int, err error) {
	err = q.enter(ctx, "count", func(ctx context.Context) error {
		counted, _, err := q.t.counts.queue(ctx, q.t.consuming, poisonName(q.group))
		if n = counted.Messages; err != nil || counted.Consumers == 0 {
			return err
		}
		return q.inTurn(ctx, func(ctx context.Context) error {
			return q.browse(ctx, func(b *browser) error {
				n, err = b.ready()
				return err
			})
		})
	})
	return n, err
}

// all calls do with the messages that have these ids: in the order of their arrival, except that more than replayWindow or
// strideBytes of them are passed in several calls. It returns an error that wraps driver.ErrNotFound if there are ids without a message.
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
		err := q.browse(ctx, func(b *browser) error {
			found, bytes := make(map[string]*amqp.Delivery), 0
			flush := func() error {
				if len(found) == 0 {
					return nil
				}
				ids := slices.Sorted(maps.Keys(found))
				window := make([]*amqp.Delivery, len(ids))
				for i, id := range ids {
					window[i] = found[id]
				}
				clear(found)
				bytes = 0
				return do(b, ids, window)
			}
			err := b.walk(func(id string, d *amqp.Delivery) (bool, error) {
				if !wanted[id] {
					return true, nil
				}
				found[id] = d
				bytes += len(d.Body) + tableSize(d.Headers)
				delete(wanted, id)
				if len(found) < replayWindow && bytes < strideBytes {
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

// guard calls do when no other call of this process reads the queue.
func (q *poisonQueue) guard(ctx context.Context, what string, do func(context.Context) error) error {
	return q.enter(ctx, what, func(ctx context.Context) error { return q.inTurn(ctx, do) })
}

// enter calls do. Closing the transport waits for it.
func (q *poisonQueue) enter(ctx context.Context, what string, do func(context.Context) error) error {
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
	if err := do(ctx); err != nil {
		return fmt.Errorf("amqp: poison queue of group %q: %s: %w", q.group, what, err)
	}
	return nil
}

func (q *poisonQueue) inTurn(ctx context.Context, do func(context.Context) error) error {
	select {
	case q.turn <- struct{}{}:
		defer func() { <-q.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return do(ctx)
}

// replay publishes messages to the group's queue, and returns those that the broker has confirmed. In an ordered group a message is
// handled before all others of its key, because its name is the head of the key.
func (q *poisonQueue) replay(b *browser, window []*amqp.Delivery) (safe []*amqp.Delivery, err error) {
	out := make([]*outgoing, len(window))
	for i, d := range window {
		target, _ := d.Headers[headerQueue].(string)
		if target == "" || headOf(d) != "" { // an earlier version wrote the queue <group>.held
			target = q.group
		}
		out[i] = &outgoing{key: target, msg: fresh(d)}
	}
	err = b.send(out...)
	for i, o := range out {
		if err != nil && !o.confirmed { // send ends at the first message that the broker refuses
			_, _ = b.confirms.await(b.ctx, b.link, o, nil)
		}
		if o.confirmed && !o.unroutable {
			safe = append(safe, window[i])
		}
	}
	return safe, err
}

// release publishes control messages that release the keys of messages, if the group is ordered.
func (q *poisonQueue) release(b *browser, window []*amqp.Delivery) error {
	if !slices.ContainsFunc(window, func(d *amqp.Delivery) bool { return headOf(d) != "" }) {
		return nil
	}
	order, err := q.order(b.ctx)
	if err != nil || order == driver.Unordered {
		return err
	}
	var out []*outgoing
	for _, d := range window {
		if head := headOf(d); head != "" {
			out = append(out, controlMessage(q.group, ordered.ControlDrop, head, "", ordered.Name{}))
		}
	}
	return b.send(out...)
}

// fresh returns the message as it was before its first delivery. The name of the bus that published it is left out, because the
// bus does not track the message any more.
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

// faultPrefix begins the names of driver.Fault's headers.
const faultPrefix = "leat_fault_"
