package amqp

import (
	"errors"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/internal/ids"
)

// Who leads an ordered group: the process that has the token, a message from the queue <group>.lead, which
// has a single active consumer.
//
//   - Every session begins by sending a token. Whoever gets one leads.
//   - The leader keeps one token unacked. It sends a new one every few seconds, and acks the old one when the
//     new one has come: so it knows that it still is the one to whom the broker gives tokens, and the token
//     is always younger than any time to live, and was never put back.
//   - The leader hands out messages only during its lease, which began when the last token that returned was sent.
//     The lease is shorter than the time after which the broker gives up a silent connection. So a process
//     that was stopped for a while hands out nothing until it has made sure that it still leads.
//   - A leader whose token does not return ends its session, and stands by.
//   - A process that stands by sends a token when nobody consumes <group>.held, as a leader does.
//
// A leader learns what is held before it hands out anything, and says goodbye when it stops.

const (
	// tokenEvery is how often a leader sends a token, at most.
	tokenEvery = 5 * time.Second
	// tokenPatience is how long a token may take to return, at least; else it is the heartbeat.
	tokenPatience = 5 * time.Second
)

// leaderToken is what a process knows of tokens. It is guarded by the feed's mu.
type leaderToken struct {
	every    time.Duration
	patience time.Duration
	leased   time.Duration // how long a lease is

	tag   uint64 // of the token that is held; 0: this process does not lead
	id    string
	sent  map[string]time.Time // the tokens that are on their way, and when they were sent
	lease time.Time            // until when messages may be handed out

	orphaned bool // nobody led when this process last looked
}

func newLeaderToken(heartbeat time.Duration) leaderToken {
	if heartbeat <= 0 {
		heartbeat = defaultHeartbeat
	}
	return leaderToken{
		every: min(heartbeat/2, tokenEvery), patience: max(heartbeat, tokenPatience), leased: heartbeat * 3 / 2,
		sent: make(map[string]time.Time),
	}
}

// valid reports whether messages may be handed out. It looks at both clocks: the monotonic one stands still while
// the machine sleeps, and the other may be set back.
func (l *leaderToken) valid() bool {
	now := time.Now()
	return now.Before(l.lease) && now.Round(0).Before(l.lease.Round(0))
}

// sendToken does not wait for the confirmation, nor behind what waits for one. The caller holds the feed's mu.
func (h *held) sendToken() error {
	const mandatory, immediate = false, false
	id := ids.New()
	h.token.sent[id] = time.Now()
	_, err := h.ch.PublishWithDeferredConfirm("", leadName(h.feed.sub.Group), mandatory, immediate,
		amqp.Publishing{DeliveryMode: amqp.Persistent, MessageId: id})
	return err
}

// lead takes a token in.
func (h *held) lead(d *amqp.Delivery) {
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	if h.session.isOver() {
		return
	}
	h.seen++
	h.checkScan()
	l := &h.token
	elected := l.tag == 0
	switch {
	case elected:
	case d.Redelivered && d.MessageId != "" && d.MessageId == l.id:
		h.takenBack()
		return
	default:
		_ = h.ch.Ack(l.tag, false)
	}
	l.tag, l.id = d.DeliveryTag, d.MessageId
	if at, own := l.sent[l.id]; own {
		delete(l.sent, l.id)
		l.lease = at.Add(l.leased)
		h.feed.dispatch()
	}
	if elected {
		if !l.valid() {
			_ = h.sendToken() // its return begins the lease; without the channel the session ends anyway
		}
		h.elected <- struct{}{}
	}
}

var errNotLeading = errors.New("the broker does not give this process the token of the group's leader any more; it stands by")

// checkToken makes sure of the lead, or that somebody has it.
func (h *held) checkToken() error {
	h.feed.mu.Lock()
	l := &h.token
	if h.feed.link().state() != nil { // the broker reads nothing for now
		clear(l.sent)
		h.feed.mu.Unlock()
		return nil
	}
	if l.tag != 0 {
		defer h.feed.mu.Unlock()
		for _, at := range l.sent {
			if h.leads && time.Since(at) > l.patience {
				l.lease = time.Time{}
				return errNotLeading
			}
		}
		return h.sendToken()
	}
	clear(l.sent)
	h.feed.mu.Unlock()
	q, err := h.ch.QueueDeclarePassive(h.name(), durable, autoDelete, exclusive, noWait, nil)
	if err != nil {
		return err
	}
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	orphaned := q.Consumers == 0
	orphaned, l.orphaned = orphaned && l.orphaned, orphaned // a leader that was just elected consumes nothing yet
	if orphaned {
		return h.sendToken()
	}
	return nil
}

// alone waits until the last leader's consumer is gone from the queue of held messages, and what it had is
// back there: the queue may notice its end later than that of the batons does. A consumer that stays is
// not leat's, or one of a node that is away, whose messages are back.
func (h *held) alone() error {
	for began := time.Now(); ; {
		q, err := h.ch.QueueDeclarePassive(h.name(), durable, autoDelete, exclusive, noWait, nil)
		if err != nil || q.Consumers == 0 {
			return err
		}
		if time.Since(began) > max(heldAlone, 2*h.token.leased) {
			h.feed.t.cfg.Logger.Warn("leat: amqp: somebody else consumes the held messages of a group; the order of its keys is not sure",
				"group", h.feed.sub.Group, "queue", h.name(), "consumers", q.Consumers)
			return nil
		}
		select {
		case <-time.After(lockPause):
		case <-h.over:
			return nil
		}
	}
}

// scan begins to learn what is held.
func (h *held) scan() error {
	if err := h.alone(); err != nil {
		return err
	}
	h.feed.mu.Lock()
	h.consumers = 1
	h.feed.mu.Unlock()
	if err := h.consume(h.name(), byBroker, h.arrive); err != nil {
		return err
	}
	h.feed.mu.Lock()
	defer h.feed.mu.Unlock()
	h.nonce = ids.New()
	h.send(transfer{out: h.note(noteScan, h.nonce)})
	return nil
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

// farewell is the last that a leader does. It waits for the acks of what was not held, and tells the next
// leader that nothing of what is held was out. The note is confirmed behind the acks of what was held.
func (h *held) farewell() error {
	f := h.feed
	f.mu.Lock()
	leads := h.leads
	f.mu.Unlock()
	if !leads {
		return nil
	}
	if err := h.session.acked(); err != nil {
		return err
	}
	sent := make(chan struct{})
	f.mu.Lock()
	h.send(transfer{h.note(notePeace, ids.New()), func(bool) { close(sent) }})
	f.mu.Unlock()
	select {
	case <-sent:
	case <-f.life.Done():
	case <-time.After(lastWords):
	}
	return nil
}
