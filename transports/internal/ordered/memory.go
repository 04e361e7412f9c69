package ordered

// maxHandled is how many handled messages a process remembers.
const maxHandled = 4096

// A Memory is what a process knows of a group over all of its sessions: what its handlers still have from sessions
// that are over, and what they have handled. It remembers handled messages, not acked ones: the ack of a session that
// was cut off may never have reached the broker. A Memory is not safe for concurrent use; it is used with its machines.
type Memory struct {
	current *Machine
	out     map[string]int // keys of which a handler has a message from a session that is over
	handled map[memo]int   // how many times in ring
	ring    []memo
	next    int
	epoch   uint64 // the highest that was met
}

// memo is a handled message. The original and its copy that was sent away are two.
type memo struct {
	print uint64
	head  string
}

// NewMemory returns an empty memory.
func NewMemory() *Memory {
	return &Memory{out: make(map[string]int), handled: make(map[memo]int)}
}

func (m *Memory) remember(it *item) {
	h := it.memo()
	if h.print == 0 {
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

// has reports whether this process has handled the message before, and it is delivered again.
func (m *Memory) has(it *item) bool {
	return it.msg.Redelivered && it.msg.Print != 0 && m.handled[it.memo()] > 0
}

// release ends what a handler had from a session that is over.
func (m *Memory) release(it *item, handled bool) {
	if handled {
		m.remember(it)
	}
	key := it.msg.Key
	if m.out[key]--; m.out[key] <= 0 {
		delete(m.out, key)
	}
	if c := m.current; c != nil && c.queues[key] != nil {
		c.run(c.queues[key])
	}
}
