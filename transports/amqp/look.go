package amqp

import (
	"cmp"
	"container/heap"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/ids"
)

const (
	// lockSuffix ends the name of the queue that is a lock; see locked.
	lockSuffix = ".poison.lock"
	// lockPause is how often a lock is asked for that somebody else has.
	lockPause = 25 * time.Millisecond

	// stride is how many messages are read at once.
	stride = 1000
	// silence is how long nothing may come before the queue is asked whether there is more.
	silence = 2 * time.Second
	// settlePause is how often the queue is asked whether it shows what was put back. A broker with much to
	// do may need a while, and what is not there yet must not be missed; but where others consume, or take
	// messages out, it never is.
	settlePause  = 5 * time.Millisecond
	settleWithin = 30 * time.Second
	settleStill  = 5 * time.Second // the count has not changed for so long, and nobody consumes
	settleBeside = 2 * time.Second // others' consumers
)

// look is one visit to a queue that nobody consumes: a poison queue, or the registry. What was read and
// not taken is back in its place at the end.
type look struct {
	ctx   context.Context
	t     *Transport
	queue string
	group string // whose poison queue it is
	conn  *amqp.Connection
	ch    *amqp.Channel
	lane  *lane // made at the first replay
	wire  *coalescer
	read  int // messages that were read and not taken

	giveUp func() (notYet bool) // keeps the end of ctx from closing the channel

	strides int
	before  int             // how many messages the queue had at the first stride
	through uint64          // everything up to this delivery tag was taken
	taken   map[string]bool // what was taken and has an id of its own
	back    bool            // some of that may have come back
	worn    bool            // something was delivered so often that it is written anew
}

// look calls do with the queue open, while no other leat process has it open.
func (q *poisonQueue) look(ctx context.Context, do func(*look) error) error {
	conn, wire, err := q.t.publishing.connection(ctx)
	if err != nil {
		return err
	}
	return q.t.look(&look{ctx: ctx, conn: conn, wire: wire, queue: poisonName(q.group), group: q.group}, q.group+lockSuffix, do)
}

// look calls do under a lock. A queue that nobody has made yet has nothing in it.
func (t *Transport) look(l *look, lock string, do func(*look) error) error {
	unlock, err := t.lock(l.ctx, l.conn, lock)
	if err != nil {
		return err
	}
	defer unlock()
	l.t = t
	if l.ch, err = l.conn.Channel(); err != nil {
		return err
	}
	defer closeQuietly(l.ch)
	l.heed()
	defer func() { l.giveUp() }()
	err = do(l)
	outer := l.ctx
	inner, cancel := lingering(outer)
	defer cancel()
	l.ctx = inner // who looks next must not miss what is not back yet
	switch {
	case err != nil && outer.Err() != nil:
		_ = l.putBack() // fails on a connection that is lost
		return context.Cause(outer)
	case isCode(err, amqp.NotFound):
		return nil
	case err != nil:
		return err
	}
	if err := l.putBack(); err != nil {
		return err
	}
	for n := 0; l.back; n++ {
		if n == retakes {
			return errComesBack
		}
		if err := l.retake(); err != nil {
			return err
		}
	}
	if l.worn && outer.Err() == nil {
		if err := l.renew(outer); err != nil && outer.Err() == nil {
			t.cfg.Logger.Warn("leat: amqp: queue not renewed; a policy with a low delivery-limit may delete from it", "queue", l.queue, "err", err)
		}
	}
	return nil
}

// renew writes every message of the queue anew, behind the others, and takes the old one then. It has a connection
// of its own, and gives up when the broker accepts no messages: it would stop reading from that connection.
func (l *look) renew(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	conn, wire, err := l.t.cfg.dial(ctx, "renew")
	if err != nil {
		return err
	}
	defer func() { _ = conn.CloseDeadline(time.Now().Add(lastWords)) }()
	blocked := conn.NotifyBlocked(make(chan amqp.Blocking, 1))
	go func() {
		for b := range blocked { // until the connection is closed
			if b.Active {
				cancel(errBlocked)
			}
		}
	}()
	again := &look{ctx: ctx, t: l.t, conn: conn, wire: wire, queue: l.queue, group: l.group}
	if again.ch, err = conn.Channel(); err != nil {
		return err
	}
	again.heed()
	defer func() { again.giveUp() }()
	n, err := again.size()
	if err != nil || n == 0 {
		return err
	}
	if n, err = again.rewrite(n); err != nil {
		return err
	}
	again.strides, again.read, again.taken = 1, n, nil
	return again.putBack() // some of the new ones have come, too: the next look must not miss them
}

// rewrite publishes the next n messages of the queue to it and takes them then. It returns how many there were.
func (l *look) rewrite(n int) (total int, err error) {
	const size, global = 0, false
	const autoAck, noLocal = false, false
	if err := l.ch.Qos(stride, size, global); err != nil {
		return 0, err
	}
	arrived, err := l.ch.Consume(l.queue, byBroker, autoAck, exclusive, noLocal, noWait, nil)
	if err != nil {
		return 0, err
	}
	seen := make(map[string]int)
	for total < n {
		window := collect(arrived, min(n-total, replayWindow))
		if len(window) == 0 {
			break // somebody else takes messages out
		}
		total += len(window)
		out := make([]*outgoing, len(window))
		for i, d := range window {
			distrust(d)
			out[i] = &outgoing{key: l.queue, msg: renewed(d)}
			if l.group != "" {
				out[i].msg.Headers[headerPoisonID] = idOf(d, seen)
			}
		}
		err := l.finish(func() error {
			if err := l.send(out...); err != nil {
				return err
			}
			return l.take(window...)
		})
		if err != nil {
			return total, err
		}
	}
	_, err = l.size() // the acks have arrived
	return total, err
}

// collect takes so many deliveries, or fewer where no more come.
func collect(arrived <-chan amqp.Delivery, n int) (all []*amqp.Delivery) {
	timeout := time.NewTimer(silence)
	defer timeout.Stop()
	for len(all) < n {
		select {
		case d, ok := <-arrived:
			if !ok {
				return all
			}
			all = append(all, &d)
			timeout.Reset(silence)
		case <-timeout.C:
			return all
		}
	}
	return all
}

// heed has the end of ctx close the channel, so that nobody waits for an answer any more.
func (l *look) heed() {
	ch := l.ch
	l.giveUp = context.AfterFunc(l.ctx, func() { closeQuietly(ch) })
}

// finishWithin is how long a look that is interrupted may take to come to an end that leaves no message in
// two places.
const finishWithin = 10 * time.Second

// finish carries out what is published and then taken, though ctx ends in the middle: else it would be in
// both places.
func (l *look) finish(do func() error) error {
	if !l.giveUp() {
		return context.Cause(l.ctx)
	}
	outer := l.ctx
	inner, cancel := lingering(outer)
	defer cancel()
	l.ctx = inner
	l.heed()
	err := do()
	l.giveUp()
	l.ctx = outer
	l.heed()
	return err
}

// lingering is ctx, but ends later.
func lingering(ctx context.Context) (longer context.Context, cancel func()) {
	longer, end := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(finishWithin, func() { end(context.Cause(ctx)) })
		context.AfterFunc(longer, func() { timer.Stop() })
	})
	return longer, func() {
		stop()
		end(nil)
	}
}

// retakes is how often a look tries to take what comes back. Each time at least pace messages don't.
const retakes = 1000

var errComesBack = errors.New("the broker puts messages back that were taken out; try again when it has less to do")

// retake takes once more what was taken and is there again. A quorum queue's acks are lost where their
// channel is closed while more than a few of them wait for the disk.
func (l *look) retake() error {
	again := &look{ctx: l.ctx, t: l.t, conn: l.conn, wire: l.wire, queue: l.queue, group: l.group}
	var err error
	if again.ch, err = l.conn.Channel(); err != nil {
		return err
	}
	ch := again.ch
	defer closeQuietly(ch)
	giveUp := context.AfterFunc(l.ctx, func() { closeQuietly(ch) })
	defer giveUp()
	var found []*amqp.Delivery
	err = again.walk(func(id string, d *amqp.Delivery) (bool, error) {
		if l.taken[id] {
			found = append(found, d)
		}
		return true, nil
	})
	if err == nil {
		err = again.take(found...)
	}
	if err == nil {
		err = again.putBack()
	}
	l.back = again.back
	return err
}

// lock takes the broker's lock: a queue that only this connection may use, and that goes away with
// the connection. A user without the right to make queues works without.
func (t *Transport) lock(ctx context.Context, conn *amqp.Connection, name string) (unlock func(), err error) {
	if t.cfg.Declare == DeclareNothing {
		return func() {}, nil
	}
	const transient, ours = false, true
	for {
		ch, err := conn.Channel()
		if err != nil {
			return nil, err
		}
		_, err = ch.QueueDeclare(name, transient, autoDelete, ours, noWait, nil)
		if err == nil {
			return func() {
				_, _ = ch.QueueDelete(name, false, false, noWait) // else the connection's end does it
				closeQuietly(ch)
			}, nil
		}
		closeQuietly(ch)
		if !isCode(err, amqp.ResourceLocked) {
			return nil, err
		}
		if err := sleep(ctx, lockPause); err != nil {
			return nil, fmt.Errorf("another process looks into it: %w", err)
		}
	}
}

func isCode(err error, code int) bool {
	var refused *amqp.Error
	return errors.As(err, &refused) && refused.Code == code
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// size is how many messages are in the queue and not being looked at.
func (l *look) size() (int, error) {
	q, err := l.ch.QueueDeclarePassive(l.queue, durable, autoDelete, exclusive, noWait, nil)
	return q.Messages, err
}

// walk calls visit with the messages in order, until it wants no more.
func (l *look) walk(visit func(id string, d *amqp.Delivery) (more bool, err error)) error {
	seen := make(map[string]int)
	for {
		batch, end, err := l.next()
		if err != nil {
			return err
		}
		for i := range batch {
			more, err := visit(idOf(&batch[i], seen), &batch[i])
			if err != nil || !more {
				return err
			}
		}
		if end {
			return nil
		}
	}
}

// next reads up to a stride: as many as the queue says it has. Nothing else takes any away, under the
// lock; what a foreign client takes all the same is not waited for, once the queue has none left.
func (l *look) next() (batch []amqp.Delivery, end bool, err error) {
	const size, global = 0, false
	const autoAck, noLocal = false, false
	n, err := l.size()
	if err != nil || n == 0 {
		return nil, true, err
	}
	// Each stride has a consumer of its own, which stays: a cancelled one's messages would go to the
	// end of the queue.
	if l.strides++; l.strides == 1 {
		l.before = n
	}
	tag := "look-" + strconv.Itoa(l.strides)
	if err := l.ch.Qos(stride, size, global); err != nil {
		return nil, false, err
	}
	arrived, err := l.ch.Consume(l.queue, tag, autoAck, exclusive, noLocal, noWait, nil)
	if err != nil {
		return nil, false, err
	}
	wanted := min(n, stride)
	l.read += wanted
	timeout := time.NewTimer(silence)
	defer timeout.Stop()
	for left := 1; !end && len(batch) < wanted; timeout.Reset(silence) {
		select {
		case d, ok := <-arrived:
			if !ok {
				return nil, false, errors.New("the connection was lost; try again")
			}
			distrust(&d)
			batch, left = append(batch, d), 1
			l.worn = l.worn || deliveries(&d) >= renewAt
		case <-timeout.C:
			end = left == 0 // and what the broker had sent before it said so has not come either
			if left, err = l.size(); err != nil {
				return nil, false, err
			}
		}
	}
	l.read -= wanted - len(batch)
	return batch, end || n <= stride, nil
}

// list reads the messages behind the one with the id after, up to the bounds of a list. It reads them
// all, because the queue's order is not that of arrival for sure: somebody else may have looked into
// it by other means. Void are those of which there is an edited copy, too; without them it is to be read
// again.
func (l *look) list(after string) (all []driver.PoisonedMessage, void []*amqp.Delivery, err error) {
	var first page
	latest := make(revisions)
	err = l.walk(func(id string, d *amqp.Delivery) (bool, error) {
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

// page keeps the messages with the lowest ids, up to the bounds of a list: a heap with the highest on
// top.
type page struct {
	messages []driver.PoisonedMessage
	bytes    int
}

func (p *page) add(m driver.PoisonedMessage) {
	heap.Push(p, m)
	for len(p.messages) > listMessages || p.bytes > listBytes && len(p.messages) > 1 {
		heap.Pop(p)
	}
}

func (p *page) Len() int           { return len(p.messages) }
func (p *page) Less(i, j int) bool { return p.messages[i].ID > p.messages[j].ID }
func (p *page) Swap(i, j int)      { p.messages[i], p.messages[j] = p.messages[j], p.messages[i] }

func (p *page) Push(x any) {
	m := x.(driver.PoisonedMessage)
	p.messages = append(p.messages, m)
	p.bytes += len(m.Message.Payload)
}

func (p *page) Pop() any {
	last := len(p.messages) - 1
	m := p.messages[last]
	p.messages[last] = driver.PoisonedMessage{}
	p.messages = p.messages[:last]
	p.bytes -= len(m.Message.Payload)
	return m
}

// pace is how many acks may be on their way by themselves. RabbitMQ keeps those beyond 32 back that the
// queue has not carried out yet, and forgets them with their channel.
const pace = 32

// take removes messages from the queue: where they are the first that were read, with one ack.
func (l *look) take(all ...*amqp.Delivery) error {
	const alone, upTo = false, true
	slices.SortFunc(all, func(a, b *amqp.Delivery) int { return cmp.Compare(a.DeliveryTag, b.DeliveryTag) })
	l.read -= len(all)
	for _, d := range all {
		if id, ok := d.Headers[headerPoisonID].(string); ok {
			if l.taken == nil {
				l.taken = make(map[string]bool)
			}
			l.taken[id] = true
		}
	}
	first := 0
	for first < len(all) && all[first].DeliveryTag == l.through+1 {
		l.through++
		first++
	}
	if first > 0 {
		if err := l.ch.Ack(l.through, upTo); err != nil {
			return err
		}
	}
	for i, d := range all[first:] {
		if err := l.ch.Ack(d.DeliveryTag, alone); err != nil {
			return err
		}
		if i%pace == pace-1 {
			if _, err := l.size(); err != nil { // an answer comes after what was asked before
				return err
			}
		}
	}
	return nil
}

// places reports whether the group is ordered now, if messages of the window have places from a time when it was.
func (l *look) places(window []*amqp.Delivery) (bool, error) {
	if !slices.ContainsFunc(window, hasPlace) {
		return false, nil
	}
	order, err := l.t.orderOf(l.ctx, l.group)
	return order != driver.Unordered, err
}

func hasPlace(d *amqp.Delivery) bool {
	_, ok := placeOf(d)
	return ok
}

// replay publishes messages to the group's own queue, or if the group is ordered to their places among those of
// their keys that wait behind them, over the channel by which they are then taken, and returns those that are safe
// there.
func (l *look) replay(window []*amqp.Delivery) (safe []*amqp.Delivery, err error) {
	places, err := l.places(window)
	if err != nil {
		return nil, err
	}
	out := make([]*outgoing, len(window))
	for i, d := range window {
		target, _ := d.Headers[headerQueue].(string)
		if target == "" {
			target = l.group
		}
		out[i] = &outgoing{key: target, msg: fresh(d)}
		if p, ok := placeOf(d); ok && places {
			out[i].key = heldName(l.group)
			out[i].msg.Headers[headerTopic], _ = d.Headers[headerTopic].(string)
			p.rev++
			p.set(out[i].msg.Headers)
		}
	}
	err = l.send(out...)
	for i, o := range out {
		if o.confirmed && !o.unroutable {
			safe = append(safe, window[i])
		}
	}
	return safe, err
}

// release lets the keys of messages go on without them.
func (l *look) release(window []*amqp.Delivery) error {
	places, err := l.places(window)
	if err != nil || !places {
		return err
	}
	var out []*outgoing
	for _, d := range window {
		if p, ok := placeOf(d); ok {
			h := amqp.Table{headerHeldNote: noteSkip}
			p.set(h)
			out = append(out, &outgoing{key: heldName(l.group), msg: amqp.Publishing{
				DeliveryMode: amqp.Persistent, MessageId: ids.New(), Headers: h,
			}})
		}
	}
	return l.send(out...)
}

// send publishes over the look's own channel and waits until all is confirmed.
func (l *look) send(out ...*outgoing) (err error) {
	if len(out) == 0 {
		return nil
	}
	if l.lane == nil {
		if l.lane, err = newLane(l.ch, l.wire); err != nil {
			return err
		}
	}
	pending, err := l.lane.send(l.ctx, l.t.publishing, out)
	if err != nil {
		return err
	}
	if len(pending) > 0 {
		return errors.New("the connection was lost; try again")
	}
	for _, o := range out {
		if o.unroutable {
			return fmt.Errorf("queue %q is not there; subscribe the group first", o.key)
		}
	}
	return nil
}

// putBack requeues what was read, and waits until the queue shows it: the next look must not miss it. Then
// it also shows what was taken and came back.
func (l *look) putBack() error {
	if l.strides == 0 {
		return nil
	}
	closeQuietly(l.ch) // a nack, too, would put them to the end of the queue
	var err error
	if l.ch, err = l.conn.Channel(); err != nil {
		return err
	}
	defer closeQuietly(l.ch)
	had, since := -1, time.Now() // how many are back, and since when
	for began := time.Now(); time.Since(began) < settleWithin; {
		q, err := l.ch.QueueDeclarePassive(l.queue, durable, autoDelete, exclusive, noWait, nil)
		if err != nil {
			return err
		}
		beside := q.Consumers > 0 && time.Since(began) > settleBeside // else they are this look's own, which go
		if q.Messages >= l.read && (q.Consumers == 0 || beside) {
			l.back = len(l.taken) > 0 && q.Messages > l.before-len(l.taken)
			return nil
		}
		if beside {
			return nil
		}
		if q.Messages != had || q.Consumers > 0 {
			had, since = q.Messages, time.Now()
		}
		if time.Since(since) > settleStill {
			break
		}
		if err := sleep(l.ctx, settlePause); err != nil {
			return err
		}
	}
	return fmt.Errorf("only %d of %d messages are back in queue %q after they were read: a policy with delivery-limit, message-ttl or "+
		"max-length may have deleted the others, or somebody else takes them out; exempt leat's queues from such policies", had, l.read, l.queue)
}

// idOf is a message's id: the one that leat gave it, else one made of its content, for what the
// broker dead-lettered by itself. Equal ones are numbered. Both begin with the time, so that the order
// of ids is that of arrival.
func idOf(d *amqp.Delivery, seen map[string]int) string {
	if id, ok := d.Headers[headerPoisonID].(string); ok {
		return id
	}
	at := d.Timestamp
	for _, death := range deaths(d.Headers["x-death"]) {
		if t, ok := death["time"].(time.Time); ok {
			at = t
			break
		}
	}
	ms := fmt.Sprintf("%012x", max(at.UnixMilli(), 0)) // as a UUIDv7 begins
	sum := sha256.Sum256(append([]byte(d.MessageId+"\x00"), d.Body...))
	id := ms[:8] + "-" + ms[8:12] + "-" + hex.EncodeToString(sum[:12])
	seen[id]++
	if n := seen[id]; n > 1 {
		return fmt.Sprintf("%s-%d", id, n)
	}
	return id
}

func shown(id string, d *amqp.Delivery) driver.PoisonedMessage {
	msg := new(message.Message)
	unmarshal(msg, d, nil)
	shown := driver.PoisonedMessage{ID: id, Message: msg, Fault: driver.FaultOf(msg.Metadata)}
	if _, parks := placeOf(d); parks {
		shown.Parked = driver.Unknown
	}
	return shown
}

// fresh is the message as it was before its first delivery, but for the bus that published it: that
// one has settled its account of the message.
func fresh(d *amqp.Delivery) amqp.Publishing {
	topic, _ := d.Headers[headerTopic].(string)
	p := copyOf(d, topic)
	for name := range p.Headers {
		switch {
		case strings.HasPrefix(name, faultPrefix),
			name == headerAttempt, name == headerCrashes, name == headerPoisonID, name == headerPoisonRev, name == headerQueue,
			name == driver.HeaderInstance, name == headerOwn:
			delete(p.Headers, name)
		}
	}
	return p
}

// faultPrefix is what driver.Fault's headers have in common.
const faultPrefix = "leat_fault_"
