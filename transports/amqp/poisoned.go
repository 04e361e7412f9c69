package amqp

import (
	"container/heap"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

// idOf is a message's id: the one that leat gave it, else one made of its content, for what the
// broker dead-lettered by itself. Equal ones are numbered. Both begin with the time, so that the order
// of ids is that of arrival.
func idOf(d *amqp.Delivery, seen map[string]int) string {
	if id, ok := d.Headers[headerPoisonID].(string); ok {
		return id
	}
	at := d.Timestamp
	for _, death := range deaths(d.Headers["x-death"]) {
		if t, ok := death["time"].(time.Time); ok {
			at = t
			break
		}
	}
	ms := fmt.Sprintf("%012x", max(at.UnixMilli(), 0)) // as a UUIDv7 begins
	sum := sha256.Sum256(append([]byte(d.MessageId+"\x00"), d.Body...))
	id := ms[:8] + "-" + ms[8:12] + "-" + hex.EncodeToString(sum[:12])
	seen[id]++
	if n := seen[id]; n > 1 {
		return fmt.Sprintf("%s-%d", id, n)
	}
	return id
}

func shown(id string, d *amqp.Delivery) driver.PoisonedMessage {
	msg := new(message.Message)
	unmarshal(msg, d, nil)
	shown := driver.PoisonedMessage{ID: id, Message: msg, Fault: driver.FaultOf(msg.Metadata)}
	if headOf(d) != "" {
		shown.Parked = driver.Unknown
	}
	return shown
}

// page keeps the messages with the lowest ids, up to the bounds of a list: a heap with the highest on
// top.
type page struct {
	messages []driver.PoisonedMessage
	bytes    int
}

func (p *page) add(m driver.PoisonedMessage) {
	heap.Push(p, m)
	for len(p.messages) > listMessages || p.bytes > listBytes && len(p.messages) > 1 {
		heap.Pop(p)
	}
}

func (p *page) Len() int           { return len(p.messages) }
func (p *page) Less(i, j int) bool { return p.messages[i].ID > p.messages[j].ID }
func (p *page) Swap(i, j int)      { p.messages[i], p.messages[j] = p.messages[j], p.messages[i] }

func (p *page) Push(x any) {
	m := x.(driver.PoisonedMessage)
	p.messages = append(p.messages, m)
	p.bytes += len(m.Message.Payload)
}

func (p *page) Pop() any {
	last := len(p.messages) - 1
	m := p.messages[last]
	p.messages[last] = driver.PoisonedMessage{}
	p.messages = p.messages[:last]
	p.bytes -= len(m.Message.Payload)
	return m
}
