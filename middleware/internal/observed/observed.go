// Package observed has what the observers that measure deliveries have in common.
package observed

import (
	"sync"
	"time"
	"unicode/utf8"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// maxTopics bounds the labels of topics and types, whose values may come from foreign input.
const maxTopics = 500

// maxLabelBytes is the longest topic that becomes a label: the longest routing key of AMQP 0-9-1.
const maxLabelBytes = 255

// Other is the label of topics that have none of their own.
const Other = "other"

// Topics bounds the labels of topics and types. The zero value is ready; it may be used concurrently.
type Topics struct {
	labels sync.Map // topic → its label
	mu     sync.Mutex
	known  int // how many topics have a label of their own
}

// Label returns the topic, or [Other] if there are too many, or if a foreign producer's topic is too long or no UTF-8, which
// Prometheus refuses with a panic.
func (t *Topics) Label(topic string) string {
	if len(topic) > maxLabelBytes || !utf8.ValidString(topic) {
		return Other
	}
	if label, ok := t.labels.Load(topic); ok {
		return label.(string)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.labels.Load(topic); ok {
		return topic
	}
	if t.known >= maxTopics {
		return Other
	}
	t.known++
	t.labels.Store(topic, topic)
	return topic
}

// Reserve gives the topics of a handler labels of their own, so that a flood of foreign topics does not take them.
func (t *Topics) Reserve(h bus.Handler) {
	for _, eventType := range h.Types {
		t.labels.Store(eventType.String(), eventType.String())
	}
	for _, topic := range h.Topics {
		if !driver.IsPattern(topic) {
			t.labels.Store(topic, topic)
		}
	}
}

// Lag returns how long after it was due a delivery has begun: after the event's time, after the time that its delay ends, or
// after when it was to be redelivered after a snooze. It is unknown for a message that has failed, that waits for a newer
// version of the service, or that does not say when it was due.
func Lag(d *bus.Delivery) (lag time.Duration, known bool) {
	if d.Attempt != 1 || !d.FailedSince.IsZero() || !d.WaitingSince.IsZero() {
		return 0, false
	}
	due := dueTime(d)
	return max(d.Started().Sub(due), 0), !due.IsZero()
}

func dueTime(d *bus.Delivery) time.Time {
	if !d.DueAgain.IsZero() {
		return d.DueAgain
	}
	happened := driver.MessageTime(d.Message)
	if due := driver.DeliverAt(d.Message); !happened.IsZero() && due.After(happened) {
		return due
	}
	return happened
}
