package amqp

import (
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

// QueuesForTest are the queues that tests clean up.
func (t *Transport) QueuesForTest() []string {
	_, groups := t.topology.remembered()
	var queues []string
	for _, s := range groups {
		queues = append(append(queues, t.topology.queues(s)...), t.topology.own(s)...)
	}
	return queues
}

// HeldForTest is how many held messages the transport's groups know of, all written down.
func (t *Transport) HeldForTest() (n int) {
	t.mu.Lock()
	feeds := t.open
	t.mu.Unlock()
	for _, f := range feeds {
		f.mu.Lock()
		if f.session != nil && f.session.held != nil {
			for _, k := range f.session.held.keys {
				for _, e := range k.entries {
					if e.tag != 0 {
						n++
					}
				}
			}
		}
		f.mu.Unlock()
	}
	return n
}

// TickForTest is what time does to held messages.
func (t *Transport) TickForTest() {
	for _, h := range t.heldForTest() {
		h.tick()
		if err := h.checkToken(); err != nil {
			h.fail(err)
		}
	}
}

// heldForTest are the held messages of all sessions that ordered groups have now.
func (t *Transport) heldForTest() (all []*held) {
	t.mu.Lock()
	feeds := t.open
	t.mu.Unlock()
	for _, f := range feeds {
		f.mu.Lock()
		if f.session != nil && f.session.held != nil {
			all = append(all, f.session.held)
		}
		f.mu.Unlock()
	}
	return all
}

// LoseLeadForTest has the broker give the tokens of the transport's ordered groups to other processes.
func (t *Transport) LoseLeadForTest() {
	for _, h := range t.heldForTest() {
		_ = h.ch.Cancel(leadTag, noWait)
	}
}

// StandsByForTest reports whether all groups have a session in which they lead or stand by.
func (t *Transport) StandsByForTest() bool {
	t.mu.Lock()
	n := len(t.open)
	t.mu.Unlock()
	return len(t.heldForTest()) == n
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
	distrust(d)
	x.Attempts, x.Crashes = handOvers(d, queue)
	var p place
	p, x.HasPlace = placeOf(d)
	x.Place, x.Rev = p.at, p.rev
	x.PoisonRev = revisionOf(d)
	x.Topic = topicOf(d, queue, &Config{})
	x.ID = idOf(d, make(map[string]int))
	x.Message = new(message.Message)
	unmarshal(x.Message, d, nil)
	x.History = driver.TakeHistory(x.Message.Metadata)
	x.Copy = copyOf(d, x.Topic)
	fit(&x.Copy, 4096)
	return x
}

// CopyForTest is the copy with which a message is redelivered that has so many attempts and failures.
func CopyForTest(d *amqp.Delivery, queue string, attempts, failures int) amqp.Publishing {
	it := &item{feed: &feed{t: &Transport{}}, raw: d, queue: queue}
	it.unpack()
	it.history = driver.History{FailedSince: time.Unix(1, 0), Failures: failures}
	return it.copy(attempts)
}

// TableSizeForTest is how many bytes leat takes a header table for.
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

// BytesForTest returns how many bytes of a group's messages are fetched and not settled, the most that there were, and how
// many messages are fetched ahead.
func (t *Transport) BytesForTest(group string) (held, peak, prefetch int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, f := range t.open {
		if f.sub.Group == group {
			f.bytes.mu.Lock()
			defer f.bytes.mu.Unlock()
			return f.bytes.held, f.bytes.peak, f.bytes.inUse
		}
	}
	return 0, 0, 0
}
