package ordered

import (
	"cmp"
	"slices"
)

// The memory of a session is bounded:
//
//   - Deliveries of the group's queue: by Prefetch. Of those, the ones that wait for a time, for a pass, or behind
//     one that does: by Held and HeldBytes. So there is always room for what must arrive: ticks, fences, and messages
//     that come back.
//   - Deliveries of a parked queue: by the prefetch of its consumer.
//   - Keys in the log: by MaxKeys and MaxKeyBytes. Beyond that, a message that would add a key stays here. When such messages
//     use up Prefetch, the group has stopped; a Report precedes this. Messages that operators import, and those that were
//     parked when the log was lost, are accepted in any case.

// heldUp returns how many messages of the key wait here for a time or a pass, which may take long, and their bytes.
func (k *keyQueue) heldUp() (n, bytes int) {
	c := k.current
	waits := c != nil && c.phase == waiting && !c.stuck
	passes := k.m.state.pairOf(k.name) != 0 && k.mayPark()
	if !waits && !passes {
		return 0, 0
	}
	if waits && !c.parked() {
		n, bytes = 1, c.msg.Size
	}
	for _, it := range k.here {
		n++
		bytes += it.msg.Size
	}
	return n, bytes
}

// relieve makes room: it sends away or parks the messages of the waiting key with the most messages (then bytes) here.
func (m *Machine) relieve() {
	for !m.over && (len(m.waiting) > 0 || len(m.state.keys) > 0) {
		var worst *keyQueue
		var total, totalBytes, most, mostBytes int
		for _, k := range m.queues {
			n, bytes := k.heldUp()
			total, totalBytes = total+n, totalBytes+bytes
			if n > 0 && (worst == nil || cmp.Or(cmp.Compare(n, most), cmp.Compare(bytes, mostBytes), cmp.Compare(worst.name, k.name)) > 0) {
				worst, most, mostBytes = k, n, bytes
			}
		}
		if worst == nil || total <= m.config.Held && totalBytes <= m.config.HeldBytes {
			return
		}
		worst.relieve()
	}
}

func (k *keyQueue) relieve() {
	if k.m.state.pairOf(k.name) != 0 && k.mayPark() {
		k.park()
		return
	}
	it := k.current
	k.m.waiting = slices.DeleteFunc(k.m.waiting, func(w *item) bool { return w == it })
	k.m.depart(it, ToDelay, it.due)
}

// roomFor reports whether the key may be added to the log.
func (m *Machine) roomFor(key string) bool {
	return m.state.keys[key] != nil || len(m.state.keys)+len(m.departing) < m.config.MaxKeys && m.state.bytes < m.config.MaxKeyBytes
}

// report reports a change.
func (m *Machine) report(full bool) {
	if m.full != full {
		m.full = full
		m.emit(Report{full})
	}
}

// Stats has the counts of a group, for operators.
type Stats struct {
	Poisoned int  // messages in the poison queue that block a key
	Stopped  int  // keys that they block
	Delayed  int  // messages that are delayed elsewhere and block a key
	Keys     int  // keys of which something is away or parked
	Draining int  // of those, keys that are released, and whose parked messages are being handed out
	Parked   int  // messages in parked queues
	Here     int  // deliveries of the group's queue that are unacked
	Waiting  int  // of those, messages that wait for a short time
	Full     bool // the limit on keys is reached
}

// Stats returns the counts of the group. It takes time in proportion to the number of known keys.
func (m *Machine) Stats() Stats {
	s := Stats{Keys: len(m.state.keys), Here: m.leader.unacked, Waiting: len(m.waiting), Full: m.full}
	for _, k := range m.state.keys {
		if len(k.away) == 0 {
			s.Draining++
		}
		poisoned := 0
		for _, a := range k.away {
			if a.Poison {
				poisoned++
			}
		}
		s.Poisoned += poisoned
		s.Delayed += len(k.away) - poisoned
		s.Stopped += min(poisoned, 1)
	}
	for _, p := range m.pairs {
		s.Parked += p.messages
	}
	return s
}
