package amqp

import (
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// An ordered group has two more queues. In <group>.held wait the messages of keys that can't go on: the
// head of the key with its attempts and the time it is due, or the stone of a poisoned message, and
// behind it those that came later. <group>.lead says who of the group's processes leads.
//
// These hold at any time, and everything here follows from them:
//
//  1. One process leads a group. It is the one that got a message from <group>.lead, which has a single
//     active consumer and keeps at least one message, the leader's token; see lead.go. Only the leader
//     consumes the group's queue and <group>.held. It does so over the connection by which it leads, and
//     publishes to <group>.held over that too, so a leader that is cut off can do neither any more.
//  2. A leader knows every held message before it takes the first from the group's queue: when nobody
//     else consumes <group>.held it sends a note there and takes what comes until the note does.
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
//  7. What a leader has unacked is in its hands only as long as the nodes of the broker's cluster are connected.
//     A queue that can't reach the node of a consumer takes back everything that this consumer has unacked. When
//     the node is back, the queue sends all of it again over the same channel, and ignores acks of what it sent
//     before. So a redelivery of what this session holds ends the session: nothing is acked, and the next
//     session begins with what the queues have. The same happens when the token does not return.
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

	token     leaderToken
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
	// heldAlone is how long a new leader waits for the consumer of the last one to go, at least.
	heldAlone = 15 * time.Second
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
	h.token = newLeaderToken(conn.Config.Heartbeat)
	s.pumps.Go(h.run)
	s.pumps.Go(h.watch)
	h.feed.mu.Lock()
	s.held = h
	h.doubtful, h.feed.doubtful = h.feed.doubtful, nil
	err = h.sendToken()
	h.feed.mu.Unlock()
	if err != nil {
		return err
	}
	return h.consume(leadName(h.feed.sub.Group), leadTag, h.lead)
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

// leadTag is the tag of the consumer that gets tokens.
const leadTag = "lead"

func (h *held) consume(queue, tag string, arrive func(*amqp.Delivery)) error {
	const size, global = 0, false
	const autoAck, noLocal = false, false
	if err := h.ch.Qos(heldStride, size, global); err != nil {
		return err
	}
	deliveries, err := h.ch.Consume(queue, tag, autoAck, exclusive, noLocal, noWait, nil)
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
	check := time.NewTicker(h.token.every)
	defer check.Stop()
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
		case <-check.C:
			err = h.checkToken()
		case reason := <-h.gone:
			err = channelLost(reason)
		case tag := <-h.cancelled:
			err = fmt.Errorf("held messages: %w", consumerCancelled(tag))
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

func (h *held) note(what, id string) *outgoing {
	return &outgoing{key: h.name(), msg: amqp.Publishing{
		DeliveryMode: amqp.Persistent, MessageId: id, Headers: amqp.Table{headerHeldNote: what},
	}}
}

// checkScan ends the scan when its note and everything before it has been taken in. Tokens come through another consumer
// of the channel, so the note may be taken in before a token that was delivered earlier. The caller holds the feed's mu.
func (h *held) checkScan() {
	if !h.complete && h.noteTag != 0 && h.seen >= h.noteTag {
		h.know()
	}
}

// arrive takes a held message in, or a note.
func (h *held) arrive(d *amqp.Delivery) {
	if h.take(d) {
		if err := h.consume(h.name(), byBroker, h.arrive); err != nil {
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
	distrust(d)
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
	h.checkScan()
	if more = h.unacked >= h.consumers*heldStride; more {
		h.consumers++
	}
	return more
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
}

var errTakenBack = errors.New("the broker has taken back what this process holds, and sends it again: " +
	"nodes of its cluster lost contact with each other; the group begins again with what the broker has")

// takenBack ends the session without acking anything. The caller holds the feed's mu.
func (h *held) takenBack() {
	h.token.lease = time.Time{}
	h.fail(errTakenBack)
}

// fail ends the session.
func (h *held) fail(err error) {
	select {
	case h.session.lost <- err:
	default:
	}
}
