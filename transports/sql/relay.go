package sql

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
)

const (
	// relayGrace is how long a batch may go on that is under way when the relay is stopped.
	relayGrace = 2 * time.Second
	// longestRelayWait is the longest wait between two tries of a transport that is away.
	longestRelayWait = 5 * time.Second
	// firstRelayWait is the first.
	firstRelayWait = 50 * time.Millisecond
	// relayBundles is how many bundles are under way at once.
	relayBundles = 4
)

// Relay publishes what is committed, in batches. It is a consumer of the outbox's group: leases, claims
// and acks are those of every feed.
func (o *Outbox) Relay(ctx context.Context, publish bus.PublishFunc) error {
	f, err := o.transport.join(ctx, bus.Subscription{Group: o.Group(), Concurrency: o.cfg.Batch, Order: bus.OrderedByKey})
	if err != nil {
		return ended(ctx, err)
	}
	f.bundle = o.cfg.Batch
	if err := o.transport.begin(f, []string{">"}); err != nil {
		return ended(ctx, err)
	}
	r := &relay{outbox: o, feed: f, publish: publish}
	err = r.run(ctx)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), relayGrace)
	defer cancel()
	return errors.Join(err, ended(ctx, f.Close(closing)))
}

// ended leaves out errors that are only the end.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, bus.ErrClosed) {
		return nil //nolint:nilerr // to be told to end is no error
	}
	return err
}

// relay moves one feed's messages.
type relay struct {
	outbox  *Outbox
	feed    *feed
	publish bus.PublishFunc
}

// run has several bundles under way, so that none waits for the broker's answer to another. No two have
// messages of one key.
func (r *relay) run(ctx context.Context) error {
	publishing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if sleep(publishing, relayGrace) {
			cancel()
		}
	})
	defer stop()
	errs := make([]error, relayBundles)
	var workers sync.WaitGroup
	for n := range errs {
		workers.Go(func() { errs[n] = r.work(ctx, publishing) })
	}
	workers.Wait()
	return errors.Join(errs...)
}

// work publishes one bundle after the other until ctx ends.
func (r *relay) work(ctx, publishing context.Context) error {
	var wait time.Duration // before the next try, while the transport is away
	for {
		taken, err := r.feed.nextBundle(ctx)
		if err != nil {
			return ended(ctx, err)
		}
		b := &bundle{relay: r}
		b.publish(publishing, taken)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // to be told to end is no error
		}
		r.outbox.note(b.away)
		if wait = nextWait(wait, b.away); wait > 0 && !sleep(ctx, bus.RetryPolicy{}.Spread(wait)) {
			return nil
		}
	}
}

// nextWait grows while the transport is away.
func nextWait(last time.Duration, away error) time.Duration {
	if away == nil {
		return 0
	}
	return min(max(2*last, firstRelayWait), longestRelayWait)
}

// note keeps why messages do not move, nil where they do.
func (o *Outbox) note(away error) {
	logger := o.transport.store.cfg.Logger
	if away == nil {
		if o.problem.Load() != nil && o.problem.Swap(nil) != nil {
			logger.Info("leat: sql: the outbox moves again", "outbox", o.Group())
		}
		return
	}
	text := away.Error()
	if o.problem.Swap(&text) == nil {
		logger.Warn("leat: sql: the outbox does not move; trying again", "outbox", o.Group(), "err", away)
	}
}

// bundle is what one claim took. Of a key it never publishes a message while another in front of it is
// not safe: it goes out in waves, each of which has of a key only messages of one topic, and what stands
// behind a failed one goes back with it. No claim gets messages of that key before all of them are back.
type bundle struct {
	*relay
	mu    sync.Mutex
	away  error           // why something was not published
	stuck map[string]bool // keys of which a message has failed
}

func (b *bundle) publish(ctx context.Context, rest []*delivery) {
	for len(rest) > 0 {
		var now map[string][]*delivery
		now, rest = b.wave(rest)
		var topics sync.WaitGroup
		for topic, deliveries := range now {
			topics.Go(func() { b.send(ctx, topic, deliveries) })
		}
		topics.Wait()
	}
}

// wave is what can be published now, by topic: of a key its first messages of one topic. The rest comes
// after it.
func (b *bundle) wave(batch []*delivery) (now map[string][]*delivery, rest []*delivery) {
	now = make(map[string][]*delivery)
	topicOf, closed := make(map[string]string), make(map[string]bool)
	for _, d := range batch {
		key, topic := bus.PartitionKey(d.delivery.Message), d.delivery.Topic
		switch first, begun := topicOf[key]; {
		case b.isStuck(d):
			giveBack(d)
			continue
		case key == "":
		case closed[key] || begun && first != topic:
			closed[key] = true
			rest = append(rest, d)
			continue
		default:
			topicOf[key] = topic
		}
		now[topic] = append(now[topic], d)
	}
	return now, rest
}

// send publishes messages of one topic, and settles them. What the transport refuses is found by
// halves; a transport that is away costs no message a try.
func (b *bundle) send(ctx context.Context, topic string, batch []*delivery) {
	if batch = b.unstuck(batch); len(batch) == 0 {
		return
	}
	patience, cancel := context.WithTimeout(ctx, b.outbox.cfg.Patience)
	err := b.relay.publish(patience, topic, messagesOf(batch)...)
	late := patience.Err() != nil
	cancel()
	batch = ackSafe(batch, err)
	switch {
	case len(batch) == 0:
	case late || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, bus.ErrClosed):
		b.noteAway(fmt.Errorf("publish %s: %w", topic, err))
		for _, d := range batch {
			b.hold(d)
			giveBack(d)
		}
	case len(batch) == 1:
		b.refused(ctx, batch[0], err)
	default:
		b.send(ctx, topic, batch[:len(batch)/2])
		b.send(ctx, topic, batch[len(batch)/2:])
	}
}

// ackSafe acks what is safe, and returns the rest.
func ackSafe(batch []*delivery, err error) (rest []*delivery) {
	if err != nil {
		failed, ok := errors.AsType[*bus.PublishError](err)
		if !ok {
			return batch
		}
		unsafe := make(map[*message.Message]bool, len(failed.Failed))
		for _, msg := range failed.Failed {
			unsafe[msg] = true
		}
		var safe []*delivery
		for _, d := range batch {
			if unsafe[d.delivery.Message] {
				rest = append(rest, d)
			} else {
				safe = append(safe, d)
			}
		}
		batch = safe
	}
	for _, d := range batch {
		_ = d.Ack() // it fails only where the feed is closed, and then it comes again
	}
	return rest
}

// refused tries a message again later, and sets it aside after its last try. What stands behind it
// waits for it, but not for one that is set aside.
func (b *bundle) refused(ctx context.Context, d *delivery, err error) {
	logger, attempt := b.feed.store.cfg.Logger, d.delivery.Attempt
	retry := b.outbox.cfg.Retry
	if attempt <= len(retry.Delays) {
		logger.Warn("leat: sql: the transport refuses a message of the outbox; trying again",
			"outbox", b.outbox.Group(), "message_id", bus.MessageID(d.delivery.Message), "attempt", attempt, "err", err)
		b.hold(d)
		_ = d.Redeliver(retry.Spread(retry.Delays[attempt-1]))
		return
	}
	logger.Error("leat: sql: the transport refuses a message of the outbox; it is in the poison queue",
		"outbox", b.outbox.Group(), "message_id", bus.MessageID(d.delivery.Message), "attempt", attempt, "err", err)
	if err := d.Poison(ctx, bus.NewFault(&d.delivery, err)); err != nil {
		b.hold(d)
		_ = d.Redeliver(longestRelayWait)
	}
}

func giveBack(d *delivery) { _ = d.GiveBack(0) }

func (b *bundle) noteAway(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.away = err
}

// hold keeps back what stands behind d.
func (b *bundle) hold(d *delivery) {
	if key := bus.PartitionKey(d.delivery.Message); key != "" {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.stuck == nil {
			b.stuck = make(map[string]bool)
		}
		b.stuck[key] = true
	}
}

func (b *bundle) isStuck(d *delivery) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.stuck) > 0 && b.stuck[bus.PartitionKey(d.delivery.Message)]
}

// unstuck gives back what stands behind a failed message.
func (b *bundle) unstuck(batch []*delivery) (free []*delivery) {
	for _, d := range batch {
		if b.isStuck(d) {
			giveBack(d)
		} else {
			free = append(free, d)
		}
	}
	return free
}

func messagesOf(batch []*delivery) []*message.Message {
	msgs := make([]*message.Message, len(batch))
	for i, d := range batch {
		msgs[i] = d.delivery.Message
	}
	return msgs
}

// nextBundle waits for messages and takes all that one claim took: what stands behind a message in its
// lane is in no other.
func (f *feed) nextBundle(ctx context.Context) ([]*delivery, error) {
	f.waiting.Add(1)
	f.poke()
	defer f.poke()
	defer f.waiting.Add(-1)
	select {
	case d := <-f.buffer:
		bundle := append([]*delivery{d}, d.behind...)
		f.handed.Add(int64(len(bundle)))
		return bundle, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-f.ctx.Done():
		return nil, bus.ErrClosed
	}
}
