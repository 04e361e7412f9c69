package amqp

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus"
)

// An ordered group has two more queues. In <group>.held wait the messages of keys that can't go on: the
// head of the key with its attempts and the time it is due, or the stone of a poisoned message, and
// behind it those that came later. <group>.lead says who of the group's processes leads.
//
// These hold at any time, and everything here follows from them:
//
//  1. One process leads a group. It is the one that got a message from <group>.lead, which has a single
//     active consumer and keeps at least one message, the baton: every session begins by sending one,
//     and the leader keeps one unacked and acks the others. Only the leader consumes the group's queue
//     and <group>.held. It does so over the connection by which it leads, and publishes to
//     <group>.held over that too, so a leader that is cut off can do neither any more.
//  2. A leader knows every held message before it takes the first from the group's queue: it sends a
//     note to <group>.held and takes what comes until the note does.
//  3. A message leaves the group's queue for <group>.held as any copy is made: it is acked when the
//     broker has confirmed the copy. So after a crash there may be both. The original comes again as
//     redelivered, its fingerprint is that of a copy which this leader has not written, and it is acked.
//  4. A held message has a place in its key, and comes before all of its key with a higher one. While a
//     key has held messages, all others of the key are behind them. Copies are written in order.
//  5. A message that is written anew keeps its place and has a higher revision. Of two messages with
//     one place the lower revision is void. So that one is acked last, and a crash leaves both.
//  6. A poisoned message is in the poison queue before its stone is in its place, and the stone is there
//     before the message is acked. A replay writes the message to its place with a higher revision
//     before it leaves the poison queue; a drop leaves a note that voids the stone, likewise. The note is
//     acked after the stone.
//
// The leader has all held messages unacked and remembers their places, not their bodies: a body is
// dropped, and fetched by handing the message back to the queue, which sends it again. That also keeps
// the broker's consumer_timeout away, and is why its count of deliveries tells nothing of held messages.
// Instead, a leader writes the messages anew that may have been handed out when the last one crashed,
// with one crash more, before it hands them out; one that stops in peace leaves a note that there are
// none.
type held struct {
	session *session
	feed    *feed
	ch      *amqp.Channel // consumes both queues
	lane    *lane         // publishes over the same channel
	over    chan struct{} // closed when the session ends

	gone      chan *amqp.Error
	cancelled chan string
	elected   chan struct{} // this process leads
	scanned   chan struct{} // it knows what is held
	work      chan struct{} // there are transfers

	// All below is guarded by the feed's mu.
	keys      map[string]*heldKey
	transfers []transfer
	dead      bool // no transfer will be carried out any more

	baton     uint64 // its delivery tag
	won       bool
	complete  bool   // what is held is known
	leads     bool   // messages are handed out
	nonce     string // of the note that is awaited
	noteTag   uint64
	seen      uint64 // deliveries that were taken in
	consumers int
	unacked   int

	place    int64 // the highest
	skips    []skip
	peace    []uint64            // notes that the last leader stopped in peace
	past     map[uint64]struct{} // fingerprints of copies that are done
	doubtful map[int64]bool      // places that were handed out when this process lost its connection; nil: unknown

	cached   int // bytes that happen to be here
	fetched  int // bytes that are here, or on their way, to be handed out
	starving []string
	age      int // ticks
}

const (
	// heldStride is how many messages each consumer holds.
	heldStride = 10_000
	// heldAhead is how many bodies of a key may be here.
	heldAhead = 16
	// heldBytes is how many bytes of bodies may be here by chance, and as many by intention.
	heldBytes = 8 << 20
	// heldOverhead is what a message takes beside its body, roughly.
	heldOverhead = 1 << 10
	// heldSoon: what follows a message that is due sooner waits for it here, as long as there is room.
	heldSoon = time.Second
	// heldTick: a held message goes back to the queue for a moment after two or three of these, lest the
	// broker's consumer_timeout ends the channel; and what waits here behind one becomes held.
	heldTick = time.Minute
)

// Notes are what is no message in the queue of held ones.
const (
	noteStone = "parked" // in the place of a poisoned message
	noteSkip  = "skip"   // the stone in this place is void
	noteScan  = "scan"   // a leader knows what was before it
	notePeace = "peace"  // no held message was handed out when its leader stopped
)

// heldKey is a key that has held messages, the first of them first.
type heldKey struct {
	entries []*entry
	timer   *time.Timer
}

// entry is a held message.
type entry struct {
	place  int64
	rev    int
	print  uint64
	until  time.Time
	tag    uint64 // 0 while it is on its way here
	age    int    // when it came
	size   int
	raw    *amqp.Delivery // nil when the body is not here
	skip   uint64         // a note that it is void; it waits for the message itself
	stone  bool
	early  bool // the stone is not on its way yet; nothing may be written behind it
	out    bool // an item has it
	wanted bool // counted as fetched
	alien  bool // this session has not written it: its original may come
	doubt  bool // it may have been handed out when the process crashed
}

// skip is a note that a stone is void.
type skip struct {
	place
	tag uint64
}

// transfer is a publishing on its way. settled is called with the feed's mu held, once: ok says that the
// broker has confirmed it.
type transfer struct {
	out     *outgoing
	settled func(ok bool)
}

// openHeld opens the channel and asks to lead.
func openHeld(s *session, conn *amqp.Connection, wire *coalescer) error {
	h := &held{
		session: s, feed: s.feed, over: make(chan struct{}),
		elected: make(chan struct{}, 1), scanned: make(chan struct{}, 1),
		work: make(chan struct{}, 1), keys: make(map[string]*heldKey), past: make(map[uint64]struct{}),
	}
	var err error
	if h.ch, err = conn.Channel(); err != nil {
		return err
	}
	if h.lane, err = newLane(h.ch, wire); err != nil {
		closeQuietly(h.ch)
		return err
	}
	h.gone = h.ch.NotifyClose(make(chan *amqp.Error, 1))
	h.cancelled = h.ch.NotifyCancel(make(chan string, 1))
	s.pumps.Go(h.run)
	s.pumps.Go(h.watch)
	h.feed.mu.Lock()
	s.held = h
	h.doubtful, h.feed.doubtful = h.feed.doubtful, nil
	h.send(transfer{out: &outgoing{key: leadName(h.feed.sub.Group), msg: amqp.Publishing{DeliveryMode: amqp.Persistent}}})
	h.feed.mu.Unlock()
	return h.consume(leadName(h.feed.sub.Group), h.lead)
}

// end is called when the session's channel is closed.
func (h *held) end() {
	close(h.over)
	closeQuietly(h.ch)
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	out := make(map[int64]bool)
	for _, k := range h.keys {
		k.stop()
		for _, e := range k.entries {
			if e.out {
				out[e.place] = true
			}
		}
	}
	if h.leads {
		h.feed.doubtful = out
	}
}

func (h *held) consume(queue string, arrive func(*amqp.Delivery)) error {
	const size, global = 0, false
	const autoAck, noLocal = false, false
	if err := h.ch.Qos(heldStride, size, global); err != nil {
		return err
	}
	deliveries, err := h.ch.Consume(queue, "", autoAck, exclusive, noLocal, noWait, nil)
	if err != nil {
		return err
	}
	h.session.pumps.Go(func() {
		for d := range deliveries {
			arrive(&d)
		}
	})
	return nil
}

// watch takes the steps of a leader, one after the other.
func (h *held) watch() {
	tick := time.NewTicker(heldTick)
	defer tick.Stop()
	for {
		var err error
		select {
		case <-h.elected:
			err = h.scan()
		case <-h.scanned:
			if err = h.session.consume(h.feed.prefetch); err == nil {
				h.serve()
			}
		case <-tick.C:
			h.tick()
		case reason := <-h.gone:
			err = channelLost(reason)
		case tag := <-h.cancelled:
			err = fmt.Errorf("the broker cancelled the consumer %s: a queue of held messages was deleted or lost its leader", tag)
		case <-h.over:
			return
		}
		if err != nil {
			h.fail(err)
			return
		}
	}
}

func (h *held) name() string { return heldName(h.feed.sub.Group) }

// lead takes a baton in.
func (h *held) lead(d *amqp.Delivery) {
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	h.seen++
	if h.baton != 0 {
		_ = h.ch.Ack(d.DeliveryTag, false)
		return
	}
	h.baton = d.DeliveryTag
	if !h.won {
		h.won = true
		h.elected <- struct{}{}
	}
}

// scan begins to learn what is held.
func (h *held) scan() error {
	h.feed.mu.Lock()
	h.consumers = 1
	h.feed.mu.Unlock()
	if err := h.consume(h.name(), h.arrive); err != nil {
		return err
	}
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	h.nonce = bus.NewID()
	h.send(transfer{out: h.note(noteScan, h.nonce)})
	return nil
}

func (h *held) note(what, id string) *outgoing {
	return &outgoing{key: h.name(), msg: amqp.Publishing{
		DeliveryMode: amqp.Persistent, MessageId: id, Headers: amqp.Table{headerHeldNote: what},
	}}
}

// arrive takes a held message in, or a note.
func (h *held) arrive(d *amqp.Delivery) {
	if h.take(d) {
		if err := h.consume(h.name(), h.arrive); err != nil {
			h.fail(err)
		}
	}
}

// take reports whether it takes another consumer to see more.
func (h *held) take(d *amqp.Delivery) (more bool) {
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	if h.session.isOver() {
		return false
	}
	h.seen++
	h.unacked++
	p, _ := placeOf(d)
	switch d.Headers[headerHeldNote] {
	case noteScan:
		if d.MessageId == h.nonce {
			h.noteTag = d.DeliveryTag
		}
		h.ack(d.DeliveryTag)
	case notePeace:
		h.peace = append(h.peace, d.DeliveryTag)
	case noteSkip:
		h.skips = append(h.skips, skip{p, d.DeliveryTag})
		h.applySkips()
	default:
		h.put(p, d)
	}
	if !h.complete && h.noteTag != 0 && h.seen >= h.noteTag {
		h.know()
	}
	if more = h.unacked >= h.consumers*heldStride; more {
		h.consumers++
	}
	return more
}

// put enters a message at its place.
func (h *held) put(p place, d *amqp.Delivery) {
	h.place = max(h.place, p.at)
	i, e := h.find(p.key, p.at)
	switch {
	case e == nil:
		e = &entry{place: p.at, alien: true}
		h.insert(p.key, i, e)
	case e.tag == 0 && e.rev == p.rev: // its own, or it was fetched
	case p.rev <= e.rev:
		h.ack(d.DeliveryTag)
		return
	case e.out: // an operator was faster than the one who handles it
		e = &entry{place: p.at, alien: true}
		h.keys[p.key].entries[i] = e
	default:
		if e.tag != 0 {
			h.ack(e.tag)
		}
		h.drop(e)
	}
	e.rev, e.tag, e.age, e.size = p.rev, d.DeliveryTag, h.age, len(d.Body)+heldOverhead
	e.stone = d.Headers[headerHeldNote] == noteStone
	e.until = time.Time{}
	if micros, ok := d.Headers[headerHeldUntil].(int64); ok {
		e.until = time.UnixMicro(micros)
	}
	if original, ok := d.Headers[headerHeldPrint].(int64); ok && e.alien {
		e.print = uint64(original) //nolint:gosec // it was one
	}
	switch {
	case e.skip != 0:
		h.void(p.key, e)
		return
	case e.stone && h.complete && !h.feed.parks(): // an operator's, who can't know
		h.release(p.key)
		h.goOn(p.key)
		return
	case e.wanted:
		e.raw = d
	case !e.stone && i < heldAhead && h.cached+e.size <= heldBytes:
		e.raw = d
		h.cached += e.size
	}
	h.resume(p.key)
}

// find is where the place is, or would be.
func (h *held) find(key string, place int64) (i int, e *entry) {
	k := h.keys[key]
	if k == nil {
		return 0, nil
	}
	i, found := slices.BinarySearchFunc(k.entries, place, func(e *entry, place int64) int {
		switch {
		case e.place < place:
			return -1
		case e.place > place:
			return 1
		}
		return 0
	})
	if !found {
		return i, nil
	}
	return i, k.entries[i]
}

func (h *held) insert(key string, i int, e *entry) {
	k := h.keys[key]
	if k == nil {
		k = new(heldKey)
		h.keys[key] = k
	}
	k.entries = slices.Insert(k.entries, i, e)
	if _, taken := h.feed.lanes[key]; !taken && h.complete {
		h.feed.lanes[key] = keyLane{}
	}
}

// add makes an entry behind all others of the key.
func (h *held) add(key string, raw *amqp.Delivery) *entry {
	h.place = max(h.place+1, time.Now().UnixMicro())
	e := &entry{place: h.place, print: printOf(raw)}
	i, _ := h.find(key, e.place)
	h.insert(key, i, e)
	return e
}

// remove takes an entry out.
func (h *held) remove(key string, e *entry) {
	i, found := h.find(key, e.place)
	if found != e {
		return // replaced
	}
	h.drop(e)
	if e.alien && e.print != 0 {
		h.past[e.print] = struct{}{}
	}
	k := h.keys[key]
	k.entries = slices.Delete(k.entries, i, i+1)
	if len(k.entries) == 0 {
		k.stop()
		delete(h.keys, key)
	}
}

func (k *heldKey) stop() {
	if k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
}

// drop forgets a body.
func (h *held) drop(e *entry) {
	switch {
	case e.wanted:
		h.fetched -= e.size
	case e.raw != nil:
		h.cached -= e.size
	}
	e.raw, e.wanted = nil, false
}

func (h *held) ack(tag uint64) {
	h.unacked--
	_ = h.ch.Ack(tag, false) // else it comes again
}

// handBack puts a message to its queue, which sends it again.
func (h *held) handBack(e *entry) {
	h.unacked--
	_ = h.ch.Nack(e.tag, false, true)
	e.tag = 0
}

// know ends the scan.
func (h *held) know() {
	h.complete = true
	peaceful := len(h.peace) > 0
	for _, tag := range h.peace {
		h.ack(tag)
	}
	h.peace = nil
	h.applySkips()
	for key, k := range h.keys {
		if !h.feed.parks() {
			h.release(key)
		}
		if h.keys[key] == nil {
			continue
		}
		if _, taken := h.feed.lanes[key]; !taken {
			h.feed.lanes[key] = keyLane{}
		}
		first := k.entries[0]
		first.doubt = !first.stone && !peaceful && !first.until.After(time.Now()) &&
			(h.doubtful == nil || h.doubtful[first.place])
	}
	h.scanned <- struct{}{}
}

// release takes away the stones of a key, in a group that does not park any more.
func (h *held) release(key string) {
	for _, e := range slices.Clone(h.keys[key].entries) {
		if e.stone {
			h.ack(e.tag)
			h.remove(key, e)
		}
	}
}

// serve begins to hand out.
func (h *held) serve() {
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	h.leads = true
	for key := range h.keys {
		h.resume(key)
	}
	h.feed.dispatch()
}

// applySkips takes away stones that are void.
func (h *held) applySkips() {
	if !h.complete {
		return
	}
	for _, s := range h.skips {
		_, e := h.find(s.key, s.at)
		switch {
		case e == nil, !e.stone, e.rev > s.rev, e.skip != 0:
			h.ack(s.tag)
		default:
			e.skip = s.tag
			if e.tag != 0 {
				h.void(s.key, e)
			}
		}
	}
	h.skips = nil
}

// void takes a stone away and lets its key go on.
func (h *held) void(key string, e *entry) {
	h.ack(e.tag)
	h.ack(e.skip)
	h.remove(key, e)
	h.goOn(key)
}

// goOn lets a key go on that is not held back any more.
func (h *held) goOn(key string) {
	if lane, taken := h.feed.lanes[key]; taken && !lane.headed && h.leads {
		h.feed.advance(key)
		h.feed.dispatch()
	}
}

// resume hands out the first held message of a key if it may be, and nothing of the key is out. It
// reports whether there is one. The caller holds the feed's mu.
func (h *held) resume(key string) bool {
	if h == nil || h.keys[key] == nil {
		return false
	}
	k := h.keys[key]
	if !h.leads || h.dead || h.feed.closed || h.feed.lanes[key].headed {
		return true
	}
	first := k.entries[0]
	wait := time.Until(first.until)
	switch {
	case first.stone, first.tag == 0:
	case wait > 0:
		k.stop()
		k.timer = time.AfterFunc(wait, func() { h.wake(key) })
	case first.raw == nil:
		h.fetch(key, k)
	case first.doubt:
		h.recount(key, first)
	default:
		h.handOut(key, k)
	}
	return true
}

func (h *held) wake(key string) {
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	if !h.session.isOver() {
		h.resume(key)
	}
}

// fetch asks for the next bodies of a key, as far as there is room.
func (h *held) fetch(key string, k *heldKey) {
	if h.fetched >= heldBytes {
		h.starving = append(h.starving, key)
		return
	}
	for _, e := range k.entries[:min(heldAhead, len(k.entries))] {
		if e.raw == nil && e.tag != 0 && !e.stone {
			e.wanted = true
			h.fetched += e.size
			h.handBack(e)
		}
	}
}

// handOut makes the first message of a key ready.
func (h *held) handOut(key string, k *heldKey) {
	f, first := h.feed, k.entries[0]
	it := h.item(key, first)
	it.heads, first.out = true, true
	lane := f.lanes[key]
	lane.headed = true
	f.lanes[key] = lane
	f.ready = append(f.ready, it)
	f.dispatch()
	if i := min(heldAhead/2, len(k.entries)-1); k.entries[i].raw == nil && k.entries[i].tag != 0 {
		h.fetch(key, k)
	}
}

func (h *held) item(key string, e *entry) *item {
	return &item{
		feed: h.feed, session: h.session, raw: e.raw, queue: h.feed.queues[0], key: key, held: e,
		attempts: fieldInt(e.raw.Headers[headerAttempt]), crashes: fieldInt(e.raw.Headers[headerCrashes]),
	}
}

// recount writes a message anew that may have crashed a process.
func (h *held) recount(key string, e *entry) {
	it := h.item(key, e)
	it.attempts++
	it.crashes++
	lane := h.feed.lanes[key]
	lane.headed = true
	h.feed.lanes[key] = lane
	old := e.tag
	h.rewrite(e)
	h.send(transfer{h.message(it, e, it.attempts), func(ok bool) {
		if ok {
			h.ack(old)
		}
		h.feed.advance(key)
		h.feed.dispatch()
	}})
}

// rewrite makes the entry one that is on its way.
func (h *held) rewrite(e *entry) {
	h.drop(e)
	e.rev++
	e.tag, e.out, e.stone, e.doubt, e.until = 0, false, false, false, time.Time{}
}

// keep holds back a delivery, and its key, until its time. The caller holds the feed's mu.
func (h *held) keep(it *item, attempts int, after time.Duration) {
	e := it.held
	if e == nil {
		e = h.add(it.key, it.raw)
	} else {
		h.rewrite(e)
	}
	e.until = time.Now().Add(after)
	h.setAside(it.key)
	h.leaves(it)
	h.send(transfer{h.message(it, e, attempts), func(ok bool) {
		if ok {
			h.settle(it)
		}
		h.feed.settled(it)
	}})
	h.relieve(it.key)
}

// leaves announces the ack of what a copy is made of.
func (h *held) leaves(it *item) {
	if it.held == nil {
		h.session.acks.expect(it.raw.DeliveryTag)
	}
}

// settle acks what a copy was made of.
func (h *held) settle(it *item) {
	if it.held != nil {
		h.ack(it.raw.DeliveryTag)
	} else {
		h.session.acks.ack(it.raw.DeliveryTag)
	}
}

// message is the copy of an item for its place.
func (h *held) message(it *item, e *entry, attempts int) *outgoing {
	p := it.copy(attempts)
	p.Headers[headerTopic] = topicOf(it.raw, it.queue, &h.feed.t.cfg)
	place{it.key, e.place, e.rev}.set(p.Headers)
	if !e.until.IsZero() {
		p.Headers[headerHeldUntil] = e.until.UnixMicro()
	}
	if e.print != 0 {
		p.Headers[headerHeldPrint] = int64(e.print) //nolint:gosec // and back
	}
	return &outgoing{key: h.name(), msg: p}
}

// relieve moves what waits here behind held messages to them, when it would be here for long or takes
// too much of what can be fetched from the group's queue. A strictly ordered group fetches no more than
// one that waits. The caller holds the feed's mu.
func (h *held) relieve(key string) {
	f, k := h.feed, h.keys[key]
	if k == nil || f.sub.Order == bus.OrderedStrictly {
		return
	}
	first := k.entries[0]
	if first.stone || time.Until(first.until) > heldSoon || f.behind > f.prefetch/4 {
		h.spill(key)
	}
}

func (h *held) spill(key string) {
	f := h.feed
	lane := f.lanes[key]
	if h.keys[key] == nil || h.keys[key].entries[0].early || len(lane.items) == 0 || f.closed {
		return
	}
	for _, it := range lane.items {
		e := h.add(key, it.raw)
		h.leaves(it)
		h.send(transfer{h.message(it, e, it.attempts), func(ok bool) {
			if ok {
				h.settle(it)
			}
		}})
	}
	f.behind -= len(lane.items)
	lane.items = nil
	f.lanes[key] = lane
}

// park puts a delivery into the poison queue and a stone into its place. It waits for both.
func (h *held) park(ctx context.Context, it *item, fault bus.Fault) error {
	f := h.feed
	f.mu.Lock()
	e := it.held
	if e == nil {
		e = h.add(it.key, it.raw)
	} else {
		h.rewrite(e)
	}
	e.stone, e.early = true, true // an operator may be faster than its copy
	h.setAside(it.key)
	h.leaves(it)
	headers := make(amqp.Table)
	place{it.key, e.place, e.rev}.set(headers)
	f.mu.Unlock()

	if err := f.t.toPoison(ctx, it, fault, headers); err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		h.unpark(it, e)
		return err
	}
	headers[headerHeldNote] = noteStone
	if e.print != 0 {
		headers[headerHeldPrint] = int64(e.print) //nolint:gosec // and back
	}
	written := make(chan bool, 1)
	f.mu.Lock()
	e.early = false
	h.send(transfer{
		&outgoing{key: h.name(), msg: amqp.Publishing{DeliveryMode: amqp.Persistent, MessageId: it.raw.MessageId, Headers: headers}},
		func(ok bool) {
			if ok {
				h.settle(it)
				f.settled(it)
			}
			written <- ok
		},
	})
	h.relieve(it.key)
	f.mu.Unlock()
	if !<-written {
		return it.late()
	}
	return nil
}

// unpark is for a delivery that did not reach the poison queue.
func (h *held) unpark(it *item, e *entry) {
	e.early = false
	if e.skip != 0 {
		h.ack(e.skip)
		e.skip = 0
	}
	if it.held == nil {
		h.remove(it.key, e)
		return
	}
	e.stone, e.out, e.tag = false, true, it.raw.DeliveryTag
	e.rev--
}

// done acks a held message; false when the channel is gone.
func (h *held) done(it *item) bool {
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	if h.session.isOver() {
		return false
	}
	h.ack(it.raw.DeliveryTag)
	h.remove(it.key, it.held)
	h.relax()
	return true
}

// relax lets keys go on that waited for room.
func (h *held) relax() {
	for len(h.starving) > 0 && h.fetched < heldBytes {
		key := h.starving[0]
		h.starving = h.starving[1:]
		h.resume(key)
	}
}

// setAside forgets the bodies of a key that has to wait.
func (h *held) setAside(key string) {
	for _, e := range h.keys[key].entries[:min(heldAhead, len(h.keys[key].entries))] {
		h.drop(e)
	}
	h.relax()
}

// has reports whether a redelivered message was made a held one before, and is not needed any more. The
// caller holds the feed's mu.
func (h *held) has(it *item) bool {
	if !it.raw.Redelivered {
		return false
	}
	original := printOf(it.raw)
	if original == 0 {
		return false
	}
	if _, done := h.past[original]; done {
		delete(h.past, original)
		return true
	}
	k := h.keys[it.key]
	if k == nil {
		return false
	}
	i := slices.IndexFunc(k.entries, func(e *entry) bool { return e.alien && e.print == original })
	if i >= 0 {
		k.entries[i].print = 0
	}
	return i >= 0
}

// tick keeps the broker's consumer_timeout away.
func (h *held) tick() {
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	if !h.leads {
		return
	}
	h.age++
	if h.age == 2 {
		clear(h.past) // originals come first of all
	}
	for key, k := range h.keys {
		h.spill(key)
		for _, e := range k.entries {
			if e.tag != 0 && !e.out && e.age <= h.age-2 {
				h.drop(e)
				h.handBack(e)
			}
		}
	}
	if h.baton != 0 { // else it is on its way back
		_ = h.ch.Nack(h.baton, false, true)
		h.baton = 0
	}
}

// farewell tells the next leader that nothing of what is held was out.
func (h *held) farewell() {
	f := h.feed
	sent := make(chan struct{})
	f.mu.Lock()
	if !h.leads || len(h.keys) == 0 {
		f.mu.Unlock()
		return
	}
	h.send(transfer{h.note(notePeace, bus.NewID()), func(bool) { close(sent) }})
	f.mu.Unlock()
	select {
	case <-sent:
	case <-f.life.Done():
	case <-time.After(lastWords):
	}
}

// send queues a transfer. The caller holds the feed's mu.
func (h *held) send(x transfer) {
	if x.settled == nil {
		x.settled = func(bool) {}
	}
	if h.dead {
		x.settled(false)
		return
	}
	h.transfers = append(h.transfers, x)
	select {
	case h.work <- struct{}{}:
	default:
	}
}

// run publishes transfers in their order, many at once.
func (h *held) run() {
	for {
		select {
		case <-h.work:
		case <-h.over:
			h.abort()
			return
		}
		h.feed.mu.Lock()
		batch := h.transfers
		h.transfers = nil
		h.feed.mu.Unlock()
		if err := h.publish(batch); err != nil {
			h.fail(err)
			h.abort()
			return
		}
	}
}

func (h *held) publish(batch []transfer) error {
	out := make([]*outgoing, len(batch))
	for i, x := range batch {
		out[i] = x.out
	}
	pending, err := h.lane.send(h.feed.life, h.feed.link(), out)
	if err == nil && len(pending) > 0 {
		err = errors.New("the connection was lost")
	}
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	ok := true // what was confirmed behind one that was not is not done either: the order would be another
	for _, x := range batch {
		ok = ok && x.out.confirmed && !x.out.unroutable
		if err == nil && !ok {
			err = fmt.Errorf("queue %q is not there", x.out.key)
		}
		x.settled(ok)
	}
	return err
}

// abort gives up what is left.
func (h *held) abort() {
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	h.dead = true
	for _, x := range h.transfers {
		x.settled(false)
	}
	h.transfers = nil
}

// fail ends the session.
func (h *held) fail(err error) {
	select {
	case h.session.lost <- err:
	default:
	}
}

// printOf is the fingerprint of a message, 0 for one without an id: two of those may well be equal.
func printOf(d *amqp.Delivery) uint64 {
	if d.MessageId == "" {
		return 0
	}
	h := fnv.New64a()
	_, _ = h.Write(append([]byte(d.MessageId), 0)) // never fails
	_, _ = h.Write(d.Body)
	return h.Sum64()
}

// shortKey is the key by which leat knows a key: itself, or a digest of a long one.
func shortKey(key string) string {
	if len(key) <= maxNameBytes {
		return key
	}
	sum := sha256.Sum256([]byte(key))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// place is where a message stands among the held ones, and which of its revisions it is.
type place struct {
	key string
	at  int64
	rev int
}

func (p place) set(headers amqp.Table) {
	headers[headerHeldKey] = p.key
	headers[headerHeldPlace] = p.at
	headers[headerHeldRev] = int64(p.rev)
}

// placeOf is the place that a message tells of; ok is false where it has none.
func placeOf(d *amqp.Delivery) (p place, ok bool) {
	p.at, ok = d.Headers[headerHeldPlace].(int64)
	p.key, _ = d.Headers[headerHeldKey].(string)
	p.rev = fieldInt(d.Headers[headerHeldRev])
	return p, ok
}
