package amqp

import (
	"encoding/binary"
	"sync"
	"time"
)

// AMQP bounds what is fetched ahead by the number of messages, and RabbitMQ not by their size. So leat counts the bytes of
// each group's messages where their frames are read and their acks written, adapts the number to the mean size, and stops
// reading while a group has too many, so that what the broker has sent already waits in the broker.

// overdue is how long reading stops for one message at most: other groups and heartbeats come by the same connection.
const overdue = time.Second

// A byteBudget bounds the bytes of one group's messages that are fetched and not settled. It may be used concurrently.
type byteBudget struct {
	limit   int
	changed chan struct{} // another prefetch would be better

	mu    sync.Mutex
	held  int
	peak  int
	mean  float64       // of the last messages
	wish  int           // the prefetch without a bound
	inUse int           // the prefetch
	freed chan struct{} // closed when something is settled; nil if nobody waits
}

func newByteBudget(limit int) *byteBudget {
	return &byteBudget{limit: limit, changed: make(chan struct{}, 1)}
}

// fit returns how many messages to fetch ahead, at most so many, and notes it down.
func (b *byteBudget) fit(wish int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wish = wish
	b.inUse = b.allowed()
	return b.inUse
}

// allowed is what fits now. The caller holds b.mu.
func (b *byteBudget) allowed() int {
	if b.mean < 1 {
		return b.wish
	}
	return min(b.wish, max(1, int(float64(b.limit)/b.mean)))
}

// add counts a message that is read.
func (b *byteBudget) add(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.held += n
	b.peak = max(b.peak, b.held)
	if b.mean == 0 {
		b.mean = float64(n)
	}
	b.mean += (float64(n) - b.mean) / 8
	if allowed := b.allowed(); 2*allowed <= b.inUse || allowed >= 2*b.inUse || allowed == b.wish && b.inUse < b.wish {
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
	b.held -= n
	if b.freed != nil {
		close(b.freed)
		b.freed = nil
	}
}

// full reports whether wait would block.
func (b *byteBudget) full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.held >= b.limit
}

// wait blocks while too much is held, until closed is closed, and no longer than overdue.
func (b *byteBudget) wait(closed <-chan struct{}) {
	var late <-chan time.Time
	for {
		b.mu.Lock()
		if b.held < b.limit {
			b.mu.Unlock()
			return
		}
		if b.freed == nil {
			b.freed = make(chan struct{})
		}
		freed := b.freed
		b.mu.Unlock()
		if late == nil {
			timer := time.NewTimer(overdue)
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
	acks     frameScanner // guarded by the coalescer's mu
}

// metered is what one channel has fetched and not settled.
type metered struct {
	next    *byteBudget // whose message comes now
	nextTag uint64
	sizes   []meteredMessage // by delivery tag
}

type meteredMessage struct {
	tag    uint64
	size   int
	budget *byteBudget // nil if it is settled
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

// reads looks at a method that comes from the broker.
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

// due returns the budget of the message that comes next over the channel, nil if there is none.
func (m *meter) due(channel uint16) *byteBudget {
	m.mu.Lock()
	defer m.mu.Unlock()
	if c := m.channels[channel]; c != nil {
		return c.next
	}
	return nil
}

// message counts the message of which the properties come.
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

// writes looks at what goes to the broker.
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
	for len(c.sizes) > 0 && c.sizes[0].budget == nil {
		c.sizes = c.sizes[1:]
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
	var all []uint16
	for channel := range m.channels {
		all = append(all, channel)
	}
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

// A frameScanner finds methods in a stream of frames that comes in pieces. It keeps the beginning of one frame.
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
