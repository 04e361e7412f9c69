package sql

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/transports/internal/backoff"
)

const (
	// relayGrace is how long a batch may go on that is under way when the relay is stopped.
	relayGrace = 2 * time.Second
	// longestRelayWait is the longest wait between two tries of a transport that is away.
	longestRelayWait = 5 * time.Second
	// topicWait is how long messages of a topic wait that the transport refuses while it takes others.
	topicWait = time.Second
	// firstRelayWait is the first.
	firstRelayWait = 50 * time.Millisecond
	// relayBundles is how many bundles are under way at once.
	relayBundles = 4
)

// Relay publishes what is committed, in batches. It is a consumer of the outbox's group: leases, claims
// and acks are those of every feed.
func (o *Outbox) Relay(ctx context.Context, publish driver.PublishFunc) error {
	f, err := o.transport.join(ctx, driver.Subscription{Group: o.Group(), Concurrency: o.cfg.Batch, Order: driver.OrderedByKey})
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
	if ctx.Err() != nil || errors.Is(err, driver.ErrClosed) {
		return nil //nolint:nilerr // to be told to end is no error
	}
	return err
}

// relay moves one feed's messages.
type relay struct {
	outbox  *Outbox
	feed    *feed
	publish driver.PublishFunc
}

// run publishes several bundles at once, so that none waits for the broker's answer to another. No two have
// messages of one key.
func (r *relay) run(ctx context.Context) error {
	publishing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	stop := context.AfterFunc(ctx, func() {
		if backoff.Sleep(publishing, relayGrace) {
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
	for failures := 0; ; {
		taken, err := r.feed.nextBundle(ctx)
		if err != nil {
			return ended(ctx, err)
		}
		b := newBundle(r, failures)
		away := b.publish(publishing, taken)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // to be told to end is no error
		}
		if failures++; !away {
			failures = 0
		}
		if wait = nextWait(wait, away); wait > 0 && !backoff.Sleep(ctx, bus.RetryPolicy{}.Spread(wait)) {
			return nil
		}
	}
}

// nextWait grows while the transport is away.
func nextWait(last time.Duration, away bool) time.Duration {
	if !away {
		return 0
	}
	return min(max(2*last, firstRelayWait), longestRelayWait)
}

// bundle is what one claim took. Of a key it never publishes a message while another in front of it is
// not safe: it goes out in waves, each of which has of a key only messages of one topic, and what stands
// behind a failed one goes back with it. No claim gets messages of that key before all of them are back.
//
// What the transport refuses is judged when the whole bundle is through. A refusal counts only if another
// message of the topic succeeded: most clients answer at once while their broker is away, and a broker
// whose queue is full refuses everything.
type bundle struct {
	*relay
	probes int // how many messages of a topic fail one by one before the rest of it is given back untried

	mu     sync.Mutex
	topics map[string]*bundleTopic
	stuck  map[string]bool // keys of which a message has failed
}

// bundleTopic is what became of a bundle's messages of one topic.
type bundleTopic struct {
	succeeded bool
	away      error // why messages were not published, or refused by a transport that is away
	refused   []refusal
	untried   []*delivery // those that are to go back without a verdict
}

type refusal struct {
	d   *delivery
	err error
}

const (
	// fewProbes is how many messages are tried one by one before a transport counts as away that refuses
	// each of them.
	fewProbes = 8
	// allProbes is after how many bundles without a success all messages of one are tried one by one.
	// Else some bad ones in front could keep good ones waiting for ever.
	allProbes = 8
)

// newBundle makes a bundle for a worker that has seen only failures in its last ones.
func newBundle(r *relay, failures int) *bundle {
	b := &bundle{relay: r, probes: fewProbes, topics: make(map[string]*bundleTopic), stuck: make(map[string]bool)}
	if failures%allProbes == allProbes-1 {
		b.probes = math.MaxInt
	}
	return b
}

// publish publishes and settles all. It reports whether the transport is away: nothing was published of
// what was tried, and that is nobody's fault.
func (b *bundle) publish(ctx context.Context, rest []*delivery) (away bool) {
	for len(rest) > 0 {
		var now map[string][]*delivery
		now, rest = b.wave(rest)
		var topics sync.WaitGroup
		for topic, deliveries := range now {
			topics.Go(func() { b.send(ctx, topic, deliveries) })
		}
		topics.Wait()
	}
	return b.judge(ctx)
}

// judge settles what was refused. No goroutine of the bundle runs any more.
func (b *bundle) judge(ctx context.Context) (away bool) {
	moved := false
	for _, t := range b.topics {
		moved = moved || t.succeeded
	}
	for topic, t := range b.topics {
		for _, r := range t.refused {
			if t.succeeded || len(t.refused) == 1 && len(t.untried) == 0 && !connectionLost(r.err) && b.outbox.outcomes.othersSucceed(topic, r.d.id) {
				b.refused(ctx, r.d, r.err)
				continue
			}
			t.away = fmt.Errorf("publish %s: %w", topic, r.err)
			t.untried = append(t.untried, r.d)
		}
		wait := time.Duration(0)
		if moved { // else they would come back at once, in front of the topics that move
			wait = bus.RetryPolicy{}.Spread(topicWait)
		}
		for _, d := range t.untried {
			_ = d.GiveBack(wait)
		}
		away = away || t.away != nil
		b.outbox.outcomes.note(topic, t.away)
	}
	return away && !moved
}

// update lets f change what became of a topic.
func (b *bundle) update(name string, f func(*bundleTopic)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.topics[name]
	if t == nil {
		t = &bundleTopic{}
		b.topics[name] = t
	}
	f(t)
}

// wave returns what can be published now, by topic: of a key its first messages of one topic. The rest comes
// after it.
func (b *bundle) wave(batch []*delivery) (now map[string][]*delivery, rest []*delivery) {
	now = make(map[string][]*delivery)
	topicOf, closed := make(map[string]string), make(map[string]bool)
	for _, d := range batch {
		key, topic := driver.PartitionKey(d.delivery.Message), d.delivery.Topic
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

// send publishes messages of one topic, and acks those that are safe. What the transport refuses is found
// by halves; a transport that is away costs no message a try.
func (b *bundle) send(ctx context.Context, topic string, batch []*delivery) {
	if batch = b.unstuck(batch); len(batch) == 0 {
		return
	}
	if err := b.hopeless(topic); err != nil {
		b.giveBackAll(topic, batch, err)
		return
	}
	patience, cancel := context.WithTimeout(ctx, b.outbox.cfg.Patience)
	err := b.relay.publish(patience, topic, messagesOf(batch)...)
	late := patience.Err() != nil
	cancel()
	all := len(batch)
	if batch = ackSafe(batch, err); len(batch) < all {
		b.succeeded(topic)
	}
	switch {
	case len(batch) == 0:
	case late || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, driver.ErrClosed):
		b.giveBackAll(topic, batch, err)
	case len(batch) == 1:
		b.refuse(topic, batch[0], err)
	default:
		b.send(ctx, topic, batch[:len(batch)/2])
		b.send(ctx, topic, batch[len(batch)/2:])
	}
}

// giveBackAll gives messages back at the end, without a try counted.
func (b *bundle) giveBackAll(topic string, batch []*delivery, err error) {
	b.update(topic, func(t *bundleTopic) {
		t.away, t.untried = fmt.Errorf("publish %s: %w", topic, err), append(t.untried, batch...)
	})
	for _, d := range batch {
		b.hold(d)
	}
}

func (b *bundle) succeeded(topic string) {
	b.outbox.outcomes.succeeded(topic)
	b.update(topic, func(t *bundleTopic) { t.succeeded = true })
}

// refuse keeps a message that the transport refused for the judgement.
func (b *bundle) refuse(topic string, d *delivery, err error) {
	b.hold(d)
	b.outbox.outcomes.failed(topic, d.id)
	b.update(topic, func(t *bundleTopic) { t.refused = append(t.refused, refusal{d, err}) })
}

// hopeless returns the last error of a topic of which enough messages were refused, and none was taken.
func (b *bundle) hopeless(topic string) (err error) {
	b.update(topic, func(t *bundleTopic) {
		if n := len(t.refused); !t.succeeded && n >= b.probes {
			err = t.refused[n-1].err
		}
	})
	return err
}

// ackSafe acks what is safe, and returns the rest.
func ackSafe(batch []*delivery, err error) (rest []*delivery) {
	if err != nil {
		failed, ok := errors.AsType[*driver.PublishError](err)
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
		_ = d.Ack() // it fails only if the feed is closed, and then it is redelivered
	}
	return rest
}

// refused tries a message again later, and sets it aside after its last try. What stands behind it
// waits for it, but not for one that is set aside. Its attempts also count relays that died; the first
// refusal is never the last.
func (b *bundle) refused(ctx context.Context, d *delivery, err error) {
	logger, attempt := b.feed.core.cfg.Logger, d.delivery.Attempt
	retry := b.outbox.cfg.Retry
	first := d.delivery.FailedSince.IsZero()
	if tries := len(retry.Delays); attempt <= tries || first && tries > 0 {
		logger.Warn("leat: sql: outbox message refused",
			"outbox", b.outbox.Group(), "message_id", driver.MessageID(d.delivery.Message), "attempt", attempt, "error", err)
		if first {
			d.delivery.FailedSince = time.Now()
		}
		_ = d.Redeliver(retry.Spread(retry.Delays[min(attempt, tries)-1]))
		return
	}
	logger.Error("leat: sql: outbox message poisoned",
		"outbox", b.outbox.Group(), "message_id", driver.MessageID(d.delivery.Message), "attempt", attempt, "error", err)
	if err := d.Poison(ctx, driver.NewFault(&d.delivery, err)); err != nil {
		_ = d.Redeliver(longestRelayWait)
	}
}

func giveBack(d *delivery) { _ = d.GiveBack(0) }

// hold keeps back what stands behind d.
func (b *bundle) hold(d *delivery) {
	if key := driver.PartitionKey(d.delivery.Message); key != "" {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.stuck[key] = true
	}
}

func (b *bundle) isStuck(d *delivery) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.stuck) > 0 && b.stuck[driver.PartitionKey(d.delivery.Message)]
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
// key queue is in no other.
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
		return nil, driver.ErrClosed
	}
}
