package outbox

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
)

// outcomes records whether an outbox's transport has accepted the latest messages of each topic. It shows whether a refusal is caused by
// the message or by the transport.
type outcomes struct {
	logger *slog.Logger

	mu     sync.Mutex
	topics map[string]topicOutcomes
}

type topicOutcomes struct {
	count    int64      // of outcomes so far
	success  int64      // the latest success, 0 for none
	failures [2]refused // the latest failures of two messages, the later one first
	problem  string     // why the topic's messages are not relayed, "" if they are
}

type refused struct {
	at int64
	id int64
}

func newOutcomes(logger *slog.Logger) *outcomes {
	return &outcomes{logger: logger, topics: make(map[string]topicOutcomes)}
}

// change calls f to change the outcomes of a topic, and returns the previous ones.
func (o *outcomes) change(topic string, f func(*topicOutcomes)) (was topicOutcomes) {
	o.mu.Lock()
	defer o.mu.Unlock()
	was = o.topics[topic]
	now := was
	f(&now)
	o.topics[topic] = now
	return was
}

// succeeded records that the transport accepted messages of a topic.
func (o *outcomes) succeeded(topic string) {
	o.change(topic, func(t *topicOutcomes) {
		t.count++
		t.success = t.count
	})
}

// failed records that the transport refused a message.
func (o *outcomes) failed(topic string, id int64) {
	o.change(topic, func(t *topicOutcomes) {
		t.count++
		if t.failures[0].id != id {
			t.failures[1] = t.failures[0]
		}
		t.failures[0] = refused{t.count, id}
	})
}

// othersSucceed reports whether the latest outcome of another message of the topic is a success.
func (o *outcomes) othersSucceed(topic string, id int64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	t := o.topics[topic]
	other := t.failures[0]
	if other.id == id {
		other = t.failures[1]
	}
	return t.success > other.at
}

// setProblem records why the messages of a topic are not relayed, nil if they are.
func (o *outcomes) setProblem(topic string, down error) {
	text := ""
	if down != nil {
		text = down.Error()
	}
	was := o.change(topic, func(t *topicOutcomes) { t.problem = text }).problem
	switch {
	case was == "" && text != "":
		o.logger.Warn("leat: sql: outbox blocked", "topic", topic, "error", down)
	case was != "" && text == "":
		o.logger.Info("leat: sql: outbox resumed", "topic", topic)
	}
}

// problem returns why messages are not relayed, nil if they are.
func (o *outcomes) problem() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []string
	for _, t := range o.topics {
		if t.problem != "" {
			all = append(all, t.problem)
		}
	}
	if len(all) == 0 {
		return nil
	}
	slices.Sort(all)
	text := all[0]
	if more := len(all) - 1; more > 0 {
		text = fmt.Sprintf("%s (and %d more topics)", text, more)
	}
	return errors.New(text)
}
