package amqp

import (
	"slices"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// What waits: the held messages of a key, those of them whose bodies are here, and how they are handed out
// again, one after the other.

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

// put enters a message at its place.
func (h *held) put(p place, d *amqp.Delivery) {
	h.place = max(h.place, p.at)
	i, e := h.entryFor(p, d)
	if e == nil {
		return
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
	case deliveries(d) >= renewAt:
		h.renew(e, d)
	case !e.stone && i < heldAhead && h.cached+e.size <= heldBytes:
		e.raw = d
		h.cached += e.size
	}
	h.resume(p.key)
}

// entryFor returns the entry of a message that came, and its index among those of the key. It is nil where the message
// is void, and where the broker has sent again what this session holds.
func (h *held) entryFor(p place, d *amqp.Delivery) (i int, e *entry) {
	i, e = h.find(p.key, p.at)
	switch {
	case e == nil:
		e = &entry{place: p.at, alien: true}
		h.insert(p.key, i, e)
	case e.tag == 0 && e.rev == p.rev: // its own, or it was fetched
	case p.rev < e.rev && e.tag == 0: // nobody knows yet whether its next revision is safe
		h.takenBack()
		return i, nil
	case p.rev < e.rev, p.rev == e.rev && !d.Redelivered: // an operator's replay may have been sent twice
		h.ack(d.DeliveryTag)
		return i, nil
	case p.rev == e.rev && h.complete:
		h.takenBack()
		return i, nil
	case e.out: // an operator was faster than the one who handles it
		e = &entry{place: p.at, alien: true}
		h.keys[p.key].entries[i] = e
	default:
		if e.tag != 0 {
			h.ack(e.tag)
		}
		h.drop(e)
	}
	return i, e
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

// release takes away the stones of a key, in a group that does not park any more.
func (h *held) release(key string) {
	for _, e := range slices.Clone(h.keys[key].entries) {
		if e.stone && e.tag != 0 { // else when it comes
			h.ack(e.tag)
			h.remove(key, e)
		}
	}
}

// applySkips takes away stones that are void.
func (h *held) applySkips() {
	if !h.complete {
		return
	}
	for _, s := range h.skips {
		_, e := h.find(s.key, s.at)
		switch {
		case e == nil, !e.stone, e.rev > s.rev:
			h.ack(s.tag)
		default:
			if e.skip != 0 {
				h.ack(e.skip) // the same note twice, or taken back by the broker and sent again
			}
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
