package ordered

import "time"

// This file has the messages of a key in a session. How they are parked is in parked.go.

// phase is what happens to the current message of a key.
type phase int

const (
	waiting   phase = iota // it is due later, here
	delivered              // a worker has it, or will
	leaving                // it is being copied, written to the log, or fenced
)

// item is a delivery of an application's message.
type item struct {
	msg     Message
	from    Source
	key     *keyQueue // nil if the message has no key
	awaited bool      // it returned with a name that is in the log
	written bool      // the record that it is away was published
	phase   phase
	due     time.Time

	stuck bool // there is no room for its key; it is sent away when there is
	to    Target
	until time.Time
}

func (it *item) parked() bool { return it.from.Pair > 0 }

// memo identifies the message for the memory of the process.
func (it *item) memo() memo { return memo{it.msg.Print, it.msg.Head} }

// keyQueue is a key of which something is here, unacked. At most one message of a key is current. The next is the first
// of heads; if there is none and nothing of the key is away, the first of parked; if nothing is parked either, the
// first of here.
type keyQueue struct {
	m       *Machine
	name    string
	current *item
	heads   []*item // messages that returned
	parked  []*item // read from a parked queue by a pass
	here    []*item // from the group's queue
	parking bool    // the record that allows parking is not confirmed yet
}

func (k *keyQueue) empty() bool {
	return k.current == nil && len(k.heads)+len(k.parked)+len(k.here) == 0
}

// queue returns the key's queue, and makes it if nothing of the key is here.
func (m *Machine) queue(key string) *keyQueue {
	k := m.queues[key]
	if k == nil {
		k = &keyQueue{m: m, name: key}
		m.queues[key] = k
	}
	return k
}

// run takes the next step of a key. It is called after each change.
func (k *keyQueue) run() {
	k.parkBlocked()
	for !k.m.over && k.current == nil && k.m.memory.out[k.name] == 0 {
		it := k.next()
		if it == nil {
			break
		}
		k.current = it
		if k.m.memory.has(it) {
			it.phase = leaving
			k.m.finish(it)
			return // finish has called run
		}
		switch {
		case !it.msg.Due.After(k.m.now):
			k.m.deliver(it)
		case it.msg.Due.Sub(k.m.now) > k.m.config.Short:
			k.m.depart(it, ToDelay, it.msg.Due)
		default:
			k.m.wait(it, it.msg.Due)
		}
	}
	if k.empty() && k.m.queues[k.name] == k {
		delete(k.m.queues, k.name)
	}
}

// next takes out the message that may run next, nil if none may.
func (k *keyQueue) next() *item {
	if k.m.stopping {
		return nil
	}
	for len(k.heads) > 0 {
		it := pop(&k.heads)
		if _, a := k.m.find(it.msg.Head); a != nil {
			return it // it has been sent away: else it would be current
		}
		k.m.afterRecords(func() { k.m.ack(it) }) // another copy was handled before
	}
	pair := k.m.state.pairOf(k.name)
	switch {
	case k.m.state.blocked(k.name):
		return nil
	case len(k.parked) > 0:
		return pop(&k.parked)
	case pair != 0:
		k.m.pairs[pair-1].want(k.name)
		return nil
	case len(k.here) > 0:
		return pop(&k.here)
	}
	return nil
}

func pop(items *[]*item) *item {
	it := (*items)[0]
	(*items)[0] = nil
	*items = (*items)[1:]
	return it
}

// deliver hands a message out.
func (m *Machine) deliver(it *item) {
	it.phase = delivered
	m.items[it.msg.Tag] = it
	m.emit(Deliver{Tag: it.msg.Tag, Fence: m.state.epoch})
}

// finish ends a message that was handled.
func (m *Machine) finish(it *item) {
	it.phase = leaving
	if !it.awaited {
		m.settle(it)
		return
	}
	// The record must be confirmed before the message is acked. Otherwise a later leader would keep the key blocked.
	m.done(it.msg.Head, func() { m.settle(it) })
}

// done writes that a head is done, if it is away.
func (m *Machine) done(head string, then func()) {
	key, a := m.state.find(head)
	if a == nil {
		then()
		return
	}
	m.write(&Record{Kind: kindDone, Key: keyText(key), Head: head}, then)
	m.queue(key).run()
}

// settle acks the current message of a key and lets the next go.
func (m *Machine) settle(it *item) {
	m.ack(it)
	if k := it.key; k != nil && k.current == it {
		k.current = nil
		k.run()
	}
}

// sendAway copies a message to a delay or to the poison queue.
//
//  1. The copy is confirmed, under a new name.
//  2. The record that the name is away is confirmed. From then on later messages may be parked, and the message may run again if
//     it has returned already.
//  3. For a parked message: a fence has returned. Its ack is valid even if this process does not lead any more,
//     and the record is not. Acks in the group's queue need none: the queue has taken back what a deposed leader acks.
//  4. It is acked.
//
// A message without a key, and a poisoned one in a group that does not park, need only the first and the last step.
func (m *Machine) sendAway(it *item, to Target, after time.Duration) {
	it.phase = leaving
	if it.key == nil || to == ToPoison && !m.config.Park {
		m.copy(it, Copy{To: to, After: after}, func() { m.finish(it) })
		return
	}
	a := &away{Head: m.name().String(), Digest: it.msg.Print, Poison: to == ToPoison}
	m.departing[a.Head] = departure{it.key.name, a}
	m.copy(it, Copy{To: to, After: after, Head: a.Head}, func() {
		delete(m.departing, a.Head)
		r := &Record{Kind: kindBlock, Key: keyText(it.key.name), Away: a}
		if it.awaited {
			r.Head = it.msg.Head
		}
		it.written = true
		m.write(r, func() {
			m.logged(a)
			if it.parked() {
				m.leader.fence(func() { m.settle(it) })
				return
			}
			m.settle(it)
		})
		it.key.run()
	})
}

// A departure is a message that is being sent away. Its record is not written yet, but it may return at any time.
type departure struct {
	key  string
	away *away
}

// find returns the message that is away, or being sent away, under this name, and its key.
func (m *Machine) find(head string) (key string, a *away) {
	if d, found := m.departing[head]; found {
		return d.key, d.away
	}
	return m.state.find(head)
}

// logged allows a message that is away to run when it returns.
func (m *Machine) logged(a *away) {
	a.logged = true
	if a.drop != 0 {
		m.done(a.Head, func() { m.leader.ack(a.drop) })
	}
	if key, found := m.state.heads[a.Head]; found {
		m.queue(key).run()
	}
}
