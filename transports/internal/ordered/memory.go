package ordered

// maxHandled is how many handled messages a process remembers.
const maxHandled = 4096

// A Memory is the state of a group that a process keeps over all of its sessions: messages that handlers still have from sessions
// that are over, and messages that were handled. It keeps handled messages, not acked ones, because the ack of a session that was
// cut off may not have reached the broker. A Memory and its machines are not safe for concurrent use.
type Memory struct {
	current *Machine
	out     map[string]int // keys of which a handler has a message from a session that is over
	handled map[memo]int   // how many times in ring
	ring    []memo
	next    int
	epoch   uint64 // the highest that was seen
}

// A memo is a handled message. An original and its copy that was sent away have different ones.
type memo struct {
	print Print
	head  string
}

// NewMemory returns an empty memory.
func NewMemory() *Memory {
	return &Memory{out: make(map[string]int), handled: make(map[memo]int)}
}

func (m *Memory) remember(it *item) {
	h := it.memo()
	if h.print == (Print{}) {
		return
	}
	if len(m.ring) < maxHandled {
		m.ring = append(m.ring, h)
	} else {
		old := m.ring[m.next]
		if m.handled[old]--; m.handled[old] == 0 {
			delete(m.handled, old)
		}
		m.ring[m.next] = h
		m.next = (m.next + 1) % maxHandled
	}
	m.handled[h]++
}

// has reports whether the message is redelivered and this process has handled it.
func (m *Memory) has(it *item) bool {
	return it.msg.Redelivered && it.msg.Print != (Print{}) && m.handled[it.memo()] > 0
}

// release records that a handler has settled a message of a session that is over.
func (m *Memory) release(it *item, handled bool) {
	if handled {
		m.remember(it)
	}
	key := it.msg.Key
	if m.out[key]--; m.out[key] <= 0 {
		delete(m.out, key)
	}
	if c := m.current; c != nil && c.queues[key] != nil {
		c.queues[key].run()
	}
}
