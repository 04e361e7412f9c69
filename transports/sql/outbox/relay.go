package outbox

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
	"github.com/leatbus/leat/transports/sql/internal/database"
	"github.com/leatbus/leat/transports/sql/internal/queue"
)

const (
	// relayGrace is how long the current batches may take when the relay is stopped.
	relayGrace = 2 * time.Second
	// longestRelayWait is the longest wait between two attempts while the transport can't be reached.
	longestRelayWait = 5 * time.Second
	// topicWait is the delay of a topic's messages if the transport accepts only messages of other topics.
	topicWait = time.Second
	// firstRelayWait is the first wait between two attempts; each further one is twice as long.
	firstRelayWait = 50 * time.Millisecond
	// relayBundles is how many bundles are published at once.
	relayBundles = 4
)

// Relay publishes committed messages in batches, until ctx is done or the outbox is closed; then it returns nil. It is a
// consumer of the outbox's group, with the leases, claims and acks of every receiver.
func (o *Outbox) Relay(ctx context.Context, publish driver.PublishFunc) error {
	bundles, err := o.group.Receive(ctx, o.cfg.Batch)
	if err != nil {
		return ended(ctx, err)
	}
	r := &relay{outbox: o, bundles: bundles, publish: publish}
	err = r.run(ctx)
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), relayGrace)
	defer cancel()
	return errors.Join(err, ended(ctx, bundles.Close(closing)))
}

// ended returns err, or nil if the relay was stopped.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil || errors.Is(err, driver.ErrClosed) {
		return nil //nolint:nilerr // being stopped is no error
	}
	return err
}

// A relay publishes the messages of one consumer.
type relay struct {
	outbox  *Outbox
	bundles *queue.Bundles
	publish driver.PublishFunc
}

// run publishes several bundles at once, so that they do not wait for each other's confirmations. No two bundles have messages of the
// same key.
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

// work publishes one bundle after the other until ctx is done.
func (r *relay) work(ctx, publishing context.Context) error {
	var wait time.Duration // before the next attempt, while the transport can't be reached
	for failures := 0; ; {
		taken, err := r.bundles.Next(ctx)
		if err != nil {
			return ended(ctx, err)
		}
		b := newBundle(r, failures)
		down := b.publish(publishing, taken)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // being stopped is no error
		}
		if failures++; !down {
			failures = 0
		}
		if wait = nextWait(wait, down); wait > 0 && !backoff.Sleep(ctx, bus.RetryPolicy{}.Spread(wait)) {
			return nil
		}
	}
}

// nextWait doubles the wait while the transport can't be reached.
func nextWait(last time.Duration, down bool) time.Duration {
	if !down {
		return 0
	}
	return min(max(2*last, firstRelayWait), longestRelayWait)
}

// A bundle has the messages of one claim. It never publishes a message before the messages in front of it in its
// key queue are accepted by the transport. So it is published in waves: in a wave, all messages of a key have
// the same topic. If a message fails, the ones behind it in its key queue are given back with it. No claim gets
// messages of that key before all of them are given back.
//
// Refused messages are settled at the end of the bundle. A refusal counts as an attempt only if another
// message of the topic succeeded: most clients return an error at once while their broker can't be reached, and a broker
// whose queue is full refuses every message.
type bundle struct {
	*relay
	probes int // after how many refusals the other messages of a topic are given back

	mu           sync.Mutex
	topics       map[string]*bundleTopic
	heldBackKeys map[string]bool // keys of which a message has failed
}

// A bundleTopic has the outcomes of a bundle's messages of one topic.
type bundleTopic struct {
	succeeded bool
	away      error // why messages were not published, if that is not the fault of the messages
	refused   []refusal
	untried   []*queue.Delivery // to be given back, without an attempt counted
}

type refusal struct {
	d   *queue.Delivery
	err error
}

const (
	// fewProbes is the number of refused messages from which the transport counts as unreachable, if it has
	// accepted none.
	fewProbes = 8
	// allProbes is the number of bundles without a success after which all messages of one are tried.
	// Otherwise some bad messages in front could block good ones forever.
	allProbes = 8
)

// newBundle returns a bundle for a worker whose latest bundles, as many as failures, have all failed.
func newBundle(r *relay, failures int) *bundle {
	b := &bundle{relay: r, probes: fewProbes, topics: make(map[string]*bundleTopic), heldBackKeys: make(map[string]bool)}
	if failures%allProbes == allProbes-1 {
		b.probes = math.MaxInt
	}
	return b
}

// publish publishes and settles all messages. It returns true if the transport seems unreachable: no message was
// published, and messages failed without a fault of their own.
func (b *bundle) publish(ctx context.Context, rest []*queue.Delivery) (down bool) {
	for len(rest) > 0 {
		var now map[string][]*queue.Delivery
		now, rest = b.wave(rest)
		var topics sync.WaitGroup
		for topic, deliveries := range now {
			topics.Go(func() { b.send(ctx, topic, deliveries) })
		}
		topics.Wait()
	}
	return b.settleRefused(ctx)
}

// settleRefused settles the refused messages, after all goroutines of the bundle have ended.
func (b *bundle) settleRefused(ctx context.Context) (down bool) {
	moved := false
	for _, t := range b.topics {
		moved = moved || t.succeeded
	}
	for topic, t := range b.topics {
		for _, r := range t.refused {
			if t.succeeded || len(t.refused) == 1 && len(t.untried) == 0 && !database.ConnectionLost(r.err) && b.outbox.outcomes.othersSucceed(topic, r.d.ID) {
				b.refused(ctx, r.d, r.err)
				continue
			}
			t.away = fmt.Errorf("publish %s: %w", topic, r.err)
			t.untried = append(t.untried, r.d)
		}
		wait := time.Duration(0)
		if moved { // otherwise they are claimed again at once, in front of the other topics
			wait = bus.RetryPolicy{}.Spread(topicWait)
		}
		for _, d := range t.untried {
			_ = d.GiveBack(wait)
		}
		down = down || t.away != nil
		b.outbox.outcomes.setProblem(topic, t.away)
	}
	return down && !moved
}

// update calls f to change the outcomes of a topic.
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

// wave returns the messages that can be published now, by topic: of each key, the first messages that have the same topic. rest has the
// messages for the next waves.
func (b *bundle) wave(batch []*queue.Delivery) (now map[string][]*queue.Delivery, rest []*queue.Delivery) {
	now = make(map[string][]*queue.Delivery)
	topicOf, closed := make(map[string]string), make(map[string]bool)
	for _, d := range batch {
		key, topic := driver.PartitionKey(d.Delivery.Message), d.Delivery.Topic
		switch first, begun := topicOf[key]; {
		case b.isHeldBack(d):
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

// send publishes messages of one topic, and acks those that the transport has accepted. If it refuses the batch, send
// divides it in halves to find the refused messages. If the transport can't be reached, no attempt is counted.
func (b *bundle) send(ctx context.Context, topic string, batch []*queue.Delivery) {
	if batch = b.giveBackHeldBack(batch); len(batch) == 0 {
		return
	}
	if err := b.refusesAll(topic); err != nil {
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

// giveBackAll makes settleRefused give back messages, without an attempt counted, and holds back their keys.
func (b *bundle) giveBackAll(topic string, batch []*queue.Delivery, err error) {
	b.update(topic, func(t *bundleTopic) {
		t.away, t.untried = fmt.Errorf("publish %s: %w", topic, err), append(t.untried, batch...)
	})
	for _, d := range batch {
		b.holdBackKey(d)
	}
}

func (b *bundle) succeeded(topic string) {
	b.outbox.outcomes.succeeded(topic)
	b.update(topic, func(t *bundleTopic) { t.succeeded = true })
}

// refuse records a refused message for settleRefused, and holds back its key.
func (b *bundle) refuse(topic string, d *queue.Delivery, err error) {
	b.holdBackKey(d)
	b.outbox.outcomes.failed(topic, d.ID)
	b.update(topic, func(t *bundleTopic) { t.refused = append(t.refused, refusal{d, err}) })
}

// refusesAll returns the latest error of a topic if at least b.probes of its messages were refused, and none was accepted.
func (b *bundle) refusesAll(topic string) (err error) {
	b.update(topic, func(t *bundleTopic) {
		if n := len(t.refused); !t.succeeded && n >= b.probes {
			err = t.refused[n-1].err
		}
	})
	return err
}

// ackSafe acks the messages that the transport has accepted, and returns the others.
func ackSafe(batch []*queue.Delivery, err error) (rest []*queue.Delivery) {
	if err != nil {
		failed, ok := errors.AsType[*driver.PublishError](err)
		if !ok {
			return batch
		}
		unsafe := make(map[*message.Message]bool, len(failed.Failed))
		for _, msg := range failed.Failed {
			unsafe[msg] = true
		}
		var safe []*queue.Delivery
		for _, d := range batch {
			if unsafe[d.Delivery.Message] {
				rest = append(rest, d)
			} else {
				safe = append(safe, d)
			}
		}
		batch = safe
	}
	for _, d := range batch {
		_ = d.Ack() // fails only if the receiver is closed, and then the message is redelivered
	}
	return rest
}

// refused redelivers a refused message later, or poisons it after its last attempt. The messages behind it in its
// key queue wait until then. The attempts include those of relays that died, so the first refusal never poisons
// the message if there are delays.
func (b *bundle) refused(ctx context.Context, d *queue.Delivery, err error) {
	logger, attempt := b.outbox.group.Logger(), d.Delivery.Attempt
	retry := b.outbox.cfg.Retry
	first := d.Delivery.FailedSince.IsZero()
	if tries := len(retry.Delays); attempt <= tries || first && tries > 0 {
		logger.Warn("leat: sql: outbox message refused",
			"outbox", b.outbox.Group(), "message_id", driver.OneLine(driver.MessageID(d.Delivery.Message), driver.MaxClassBytes), "attempt", attempt, "error", err)
		if first {
			d.Delivery.FailedSince = time.Now()
		}
		_ = d.Redeliver(retry.Spread(retry.Delays[min(attempt, tries)-1]))
		return
	}
	logger.Error("leat: sql: outbox message poisoned",
		"outbox", b.outbox.Group(), "message_id", driver.OneLine(driver.MessageID(d.Delivery.Message), driver.MaxClassBytes), "attempt", attempt, "error", err)
	if err := d.Poison(ctx, driver.NewFault(&d.Delivery, err)); err != nil {
		_ = d.Redeliver(longestRelayWait)
	}
}

func giveBack(d *queue.Delivery) { _ = d.GiveBack(0) }

// holdBackKey marks the key of d: the bundle publishes no further messages of it.
func (b *bundle) holdBackKey(d *queue.Delivery) {
	if key := driver.PartitionKey(d.Delivery.Message); key != "" {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.heldBackKeys[key] = true
	}
}

func (b *bundle) isHeldBack(d *queue.Delivery) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.heldBackKeys) > 0 && b.heldBackKeys[driver.PartitionKey(d.Delivery.Message)]
}

// giveBackHeldBack gives back the messages of held-back keys, and returns the others.
func (b *bundle) giveBackHeldBack(batch []*queue.Delivery) (free []*queue.Delivery) {
	for _, d := range batch {
		if b.isHeldBack(d) {
			giveBack(d)
		} else {
			free = append(free, d)
		}
	}
	return free
}

func messagesOf(batch []*queue.Delivery) []*message.Message {
	msgs := make([]*message.Message, len(batch))
	for i, d := range batch {
		msgs[i] = d.Delivery.Message
	}
	return msgs
}
