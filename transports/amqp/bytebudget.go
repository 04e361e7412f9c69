package amqp

import (
	"encoding/binary"
	"maps"
	"slices"
	"sync"
	"time"
)

// AMQP bounds what is fetched ahead by the number of messages, and RabbitMQ not by their size. So leat counts the bytes of
// each group's messages where their frames are read and their acks written, adapts the number to the mean size, and stops
// reading while a group has too many, so that what the broker has sent already waits in the broker.

const (
	// overdue is how long reading stops for one message at most, because other groups and heartbeats use the same connection.
	// Messages that arrive nevertheless wait in a file; see spill.go.
	overdue = 20 * time.Millisecond
	// overdueAlone is the same for a connection that only one group uses.
	overdueAlone = time.Second
)

// A byteBudget bounds the bytes of one group's messages that are fetched and not settled. It may be used concurrently. mu guards
// the fields below it, and allowed is called with mu locked.
type byteBudget struct {
	limit   int
	overdue time.Duration
	changed chan struct{} // another prefetch would be better

	mu        sync.Mutex
	unsettled int
	peak      int
	mean      float64       // of the last messages
	wanted    int           // the prefetch without a bound
	inUse     int           // the prefetch
	freed     chan struct{} // closed when something is settled; nil if no call waits
}

func newByteBudget(limit int, overdue time.Duration) *byteBudget {
	return &byteBudget{limit: limit, overdue: overdue, changed: make(chan struct{}, 1)}
}

// fit returns and records how many messages to fetch ahead, at most wish.
func (b *byteBudget) fit(wish int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wanted = wish
	b.inUse = b.allowed()
	return b.inUse
}

// allowed returns how many messages of the mean size fit.
func (b *byteBudget) allowed() int {
	if b.mean < 1 {
		return b.wanted
	}
	return min(b.wanted, max(1, int(float64(b.limit)/b.mean)))
}

// add counts a message that is read.
func (b *byteBudget) add(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unsettled += n
	b.peak = max(b.peak, b.unsettled)
	if b.mean == 0 {
		b.mean = float64(n)
	}
	weight := 1. / 8
	if float64(n) > b.mean { // adapt quickly, before many large messages have arrived
		weight = 1. / 2
	}
	b.mean += (float64(n) - b.mean) * weight
	if allowed := b.allowed(); 2*allowed <= b.inUse || allowed >= 2*b.inUse || allowed == b.wanted && b.inUse < b.wanted {
		select {
		case b.changed <- struct{}{}:
		default:
		}
	}
}

// release counts messages that are settled, or lost with their channel.
func (b *byteBudget) release(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unsettled -= n
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}

// full reports whether wait would block.
func (b *byteBudget) full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.unsettled >= b.limit
}

// beyond reports whether a message of n bytes that is counted exceeds the limit. One message is never too much.
func (b *byteBudget) beyond(n int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.unsettled > b.limit && b.unsettled > n
}

// wait blocks while the budget is used up, until closed is closed, and no longer than overdue.
func (b *byteBudget) wait(closed <-chan struct{}) {
	var late <-chan time.Time
	for {
		b.mu.Lock()
		if b.unsettled < b.limit {
			b.mu.Unlock()
			return
		}
		if b.freed == nil {
			b.freed = make(chan struct{})
		}
		freed := b.freed
		b.mu.Unlock()
		if late == nil {
			timer := time.NewTimer(b.overdue)
			defer timer.Stop()
			late = timer.C
		}
		select {
		case <-freed:
		case <-late:
			return
		case <-closed:
			return
		}
	}
}

// A meter counts the messages of one connection against the budgets of their consumers. It may be used concurrently.
type meter struct {
	mu       sync.Mutex
	budgets  map[string]*byteBudget // by consumer tag
	channels map[uint16]*metered
	closed   chan struct{}
	acks     frameScanner // guarded by the write batcher's mu
}

// metered is what one channel has fetched and not settled.
type metered struct {
	next    *byteBudget // of the message whose properties follow
	nextTag uint64
	sizes   []meteredMessage // by delivery tag
}

type meteredMessage struct {
	tag    uint64
	size   int
	budget *byteBudget // nil if it is settled
}

// trim removes the first messages that are settled.
func (c *metered) trim() {
	for len(c.sizes) > 0 && c.sizes[0].budget == nil {
		c.sizes = c.sizes[1:]
	}
}

func newMeter() *meter {
	return &meter{budgets: make(map[string]*byteBudget), channels: make(map[uint16]*metered), closed: make(chan struct{}), acks: frameScanner{skip: len("AMQP0091")}}
}

// watch counts what a consumer gets from now on.
func (m *meter) watch(consumer string, b *byteBudget) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.budgets[consumer] = b
}

const (
	basicDeliver = 60<<16 | 60
	basicAck     = 60<<16 | 80
	basicReject  = 60<<16 | 90
	basicNack    = 60<<16 | 120
	channelClose = 20<<16 | 40
	channelEnds  = 20<<16 | 41
)

// reads examines a method that was received from the broker.
func (m *meter) reads(channel uint16, payload []byte) {
	if len(payload) < 5 {
		return
	}
	switch binary.BigEndian.Uint32(payload) {
	case channelClose, channelEnds:
		m.forget(channel)
	case basicDeliver:
		end := 5 + int(payload[4])
		if end+8 > len(payload) {
			return
		}
		m.mu.Lock()
		defer m.mu.Unlock()
		b := m.budgets[string(payload[5:end])]
		if b == nil {
			return
		}
		c := m.channels[channel]
		if c == nil {
			c = new(metered)
			m.channels[channel] = c
		}
		c.next, c.nextTag = b, binary.BigEndian.Uint64(payload[end:])
	}
}

// due returns the budget of the message whose properties follow on the channel, nil if there is none.
func (m *meter) due(channel uint16) *byteBudget {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.channels[channel]; c != nil {
		return c.next
	}
	return nil
}

// message counts a message when its properties arrive.
func (m *meter) message(channel uint16, size int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.channels[channel]
	if c == nil || c.next == nil {
		return
	}
	c.next.add(size)
	c.sizes = append(c.sizes, meteredMessage{c.nextTag, size, c.next})
	c.next = nil
}

// writes examines what is sent to the broker.
func (m *meter) writes(p []byte) {
	m.acks.scan(p, func(channel uint16, payload []byte) {
		if len(payload) < 4 {
			return
		}
		method := binary.BigEndian.Uint32(payload)
		switch {
		case method == channelClose || method == channelEnds:
			m.forget(channel)
		case len(payload) < 13:
		case method == basicAck || method == basicNack || method == basicReject:
			m.settled(channel, binary.BigEndian.Uint64(payload[4:]), method != basicReject && payload[12]&1 != 0)
		}
	})
}

// settled counts one message, or all up to it.
func (m *meter) settled(channel uint16, tag uint64, multiple bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.channels[channel]
	if c == nil {
		return
	}
	for i := range c.sizes {
		x := &c.sizes[i]
		if x.tag > tag {
			break
		}
		if x.budget != nil && (multiple || x.tag == tag) {
			x.budget.release(x.size)
			x.budget = nil
		}
	}
	c.trim()
}

// release releases one message of a consumer before it is settled, because it is counted elsewhere from now on.
func (m *meter) release(b *byteBudget, tag uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.channels {
		for i := range c.sizes {
			if x := &c.sizes[i]; x.budget == b && x.tag == tag {
				b.release(x.size)
				x.budget = nil
			}
		}
		c.trim()
	}
}

// forget releases what a channel had.
func (m *meter) forget(channel uint16) {
	m.settled(channel, 1<<64-1, true)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.channels, channel)
}

// close releases everything.
func (m *meter) close() {
	m.mu.Lock()
	all := slices.Collect(maps.Keys(m.channels))
	select {
	case <-m.closed:
	default:
		close(m.closed)
	}
	m.mu.Unlock()
	for _, channel := range all {
		m.forget(channel)
	}
}

// A frameScanner finds methods in a stream of frames that arrives in pieces. It keeps the beginning of one frame.
type frameScanner struct {
	begin [frameHead + 13]byte // up to the bits behind a delivery tag
	have  int
	skip  int
}

func (s *frameScanner) scan(p []byte, method func(channel uint16, payload []byte)) {
	for len(p) > 0 {
		if s.skip > 0 {
			n := min(s.skip, len(p))
			s.skip -= n
			p = p[n:]
			continue
		}
		wanted, whole := frameHead, 0
		if s.have >= frameHead {
			whole = frameHead + int(binary.BigEndian.Uint32(s.begin[3:])) + 1
			wanted = min(len(s.begin), whole)
		}
		n := copy(s.begin[s.have:wanted], p)
		s.have += n
		p = p[n:]
		if s.have < wanted || whole == 0 {
			continue
		}
		if s.begin[0] == frameMethod {
			method(binary.BigEndian.Uint16(s.begin[1:]), s.begin[frameHead:min(wanted, whole-1)])
		}
		s.have, s.skip = 0, whole-wanted
	}
}
