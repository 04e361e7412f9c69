package amqp

import (
	"strconv"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// ReplayWindow is how many messages a killed replay leaves in both places at most.
const ReplayWindow = replayWindow

// StandsStill reports whether a single active consumer may stand still on that version of RabbitMQ.
var StandsStill = standsStill

// SmallAnswers lets the management API answer no more than 1 MiB at once.
func SmallAnswers(c *Config) { c.managementMost = 1 << 20 }

// MigrateOften looks at the queues of older versions more often.
func MigrateOften(c *Config) { c.migrateEvery = 100 * time.Millisecond }

// QueuesForTest returns the queues that tests clean up.
func (t *Transport) QueuesForTest() []string {
	_, groups := t.topology.remembered()
	var queues []string
	for _, s := range groups {
		queues = append(append(queues, t.topology.queues(s)...), t.topology.own(s)...)
	}
	return queues
}

// HeldForTest returns how many messages of the transport's ordered groups are delayed, poisoned or parked elsewhere, once all
// that was written is confirmed.
func (t *Transport) HeldForTest() (n int) {
	for _, f := range t.orderedForTest() {
		f.mu.Lock()
		if s := f.session; s != nil && s.machine != nil && s.machine.Settled() {
			stats := s.machine.Stats()
			n += stats.Delayed + stats.Poisoned + stats.Parked
		}
		f.mu.Unlock()
	}
	return n
}

// IdleTickForTest returns how long after a tick a process with so many ordered groups sends the next one.
func IdleTickForTest(groups int) time.Duration {
	t := &Transport{topology: newTopology(&Config{})}
	for n := range groups {
		t.topology.groups[strconv.Itoa(n)] = driver.Subscription{}
	}
	f := &orderedReceiver{intake: &intake[*orderedItem, orderedSession]{t: t}, longest: idleTickLimit}
	return f.idleTick()
}

func (t *Transport) orderedForTest() (all []*orderedReceiver) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.open {
		if f, ok := s.(*orderedReceiver); ok {
			all = append(all, f)
		}
	}
	return all
}

// LoseLeadForTest has the broker make another process the active consumer of the transport's ordered groups.
func (t *Transport) LoseLeadForTest() {
	for _, f := range t.orderedForTest() {
		f.mu.Lock()
		s := f.session
		f.mu.Unlock()
		if s != nil && s.group != nil { // else its connection was lost
			_ = s.group.ch.Cancel(s.group.tag, noWait)
		}
	}
}

// LeadsForTest reports whether the transport leads all its ordered groups.
func (t *Transport) LeadsForTest() bool {
	for _, f := range t.orderedForTest() {
		f.mu.Lock()
		leads := f.session != nil && f.session.machine != nil
		f.mu.Unlock()
		if !leads {
			return false
		}
	}
	return true
}

// StandsByForTest reports whether all ordered groups have a session in which they lead or stand by.
func (t *Transport) StandsByForTest() bool {
	for _, f := range t.orderedForTest() {
		f.mu.Lock()
		begun := f.session != nil && f.session.group != nil
		f.mu.Unlock()
		if !begun {
			return false
		}
	}
	return true
}

// Decoded is what leat reads from the headers of a message that anybody may have written.
type Decoded struct {
	Attempts, Crashes, Rev int
	PoisonRev, Place       int64
	HasPlace               bool
	Topic, ID              string
	History                driver.History
	Message                *message.Message
	Copy                   amqp.Publishing
}

// DecodeForTest reads a message that came from a queue.
func DecodeForTest(d *amqp.Delivery, queue string) (x Decoded) {
	dropForeignHeaders(d)
	x.Attempts, x.Crashes = handOvers(d, queue)
	var p legacyPosition
	p, x.HasPlace = legacyPositionOf(d)
	x.Place, x.Rev = p.at, p.rev
	x.PoisonRev = revisionOf(d)
	x.Topic = topicOf(d, queue, &Config{})
	x.ID = idOf(d, make(map[string]int))
	x.Message = new(message.Message)
	unmarshal(x.Message, d, nil, nil)
	x.History = driver.TakeHistory(x.Message.Metadata)
	x.Copy = copyOf(d, x.Topic)
	fit(&x.Copy, 4096)
	return x
}

// CopyForTest returns the copy with which a message is redelivered that has so many attempts and failures.
func CopyForTest(d *amqp.Delivery, queue string, attempts, failures int) amqp.Publishing {
	it := &received{t: &Transport{}, raw: d, queue: queue}
	it.unpack()
	it.history = driver.History{FailedSince: time.Unix(1, 0), Failures: failures}
	return it.copy(attempts)
}

// TableSizeForTest returns how many bytes leat takes a header table for.
func TableSizeForTest(h amqp.Table) int { return tableSize(h) }

// LoseConnectionsForTest ends the transport's connections, as a network does. They are closed when it returns.
func (t *Transport) LoseConnectionsForTest() {
	for _, l := range t.links() {
		l.mu.Lock()
		conn := l.conn
		l.mu.Unlock()
		if conn != nil {
			_ = conn.CloseDeadline(time.Now())
		}
	}
}

// BytesForTest returns how many bytes of a group's messages are fetched and not settled (ordered: and in memory), the most that there were, and how
// many messages are fetched ahead.
func (t *Transport) BytesForTest(group string) (held, peak, prefetch int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.open {
		switch f := s.(type) {
		case *receiver:
			if f.sub.Group == group {
				f.bytes.mu.Lock()
				defer f.bytes.mu.Unlock()
				return f.bytes.unsettled, f.bytes.peak, f.bytes.inUse
			}
		case *orderedReceiver:
			if f.sub.Group == group {
				f.mu.Lock()
				defer f.mu.Unlock()
				held = f.outBytes
				if f.session != nil {
					held += f.session.bodies.waiting
				}
				return held, f.peakBytes, f.config.Prefetch
			}
		}
	}
	return 0, 0, 0
}

// orderedGroupForTest returns the current session of an ordered group, and its receiver.
func (t *Transport) orderedGroupForTest(group string) (*orderedReceiver, *orderedSession) {
	for _, f := range t.orderedForTest() {
		if f.sub.Group == group {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f, f.session
		}
	}
	return nil, nil
}

// HereForTest returns how many messages of an ordered group are fetched and not settled.
func (t *Transport) HereForTest(group string) int {
	f, s := t.orderedGroupForTest(group)
	if s == nil {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(s.items)
}

// LoseOrderedForTest ends the connection of an ordered group, as a network does.
func (t *Transport) LoseOrderedForTest(group string) {
	if _, s := t.orderedGroupForTest(group); s != nil {
		_ = s.conn.CloseDeadline(time.Now())
	}
}

// PrintForTest returns the text of a message's print.
func PrintForTest(d *amqp.Delivery) (string, error) {
	text, err := printOf(d).MarshalText()
	return string(text), err
}

// SpillForTest is a temporary file for bodies that are too much for the memory.
type SpillForTest = spillStore

// SpillToForTest makes the sessions that begin from now on use the temporary files that create returns.
func (t *Transport) SpillToForTest(create func() (SpillForTest, error)) { t.createSpill = create }

// NewTemporaryFileForTest returns a file as sessions use it.
func NewTemporaryFileForTest() (SpillForTest, error) { return newTemporaryFile() }
