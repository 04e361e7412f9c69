package sql

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
)

// outcomes is what an outbox's transport did with the latest messages of each topic. From it follows whether a refusal
// is the message's fault or the transport's.
type outcomes struct {
	logger *slog.Logger

	mu     sync.Mutex
	topics map[string]topicOutcomes
}

type topicOutcomes struct {
	count    int64      // of outcomes so far
	success  int64      // the latest success, 0 for none
	failures [2]refused // the latest failures of two messages, the later one first
	problem  string     // why the topic's messages do not move, "" if they do
}

type refused struct {
	at int64
	id int64
}

func newOutcomes(logger *slog.Logger) *outcomes {
	return &outcomes{logger: logger, topics: make(map[string]topicOutcomes)}
}

// change lets f change the outcomes of a topic, and returns what they were.
func (o *outcomes) change(topic string, f func(*topicOutcomes)) (was topicOutcomes) {
	o.mu.Lock()
	defer o.mu.Unlock()
	was = o.topics[topic]
	now := was
	f(&now)
	o.topics[topic] = now
	return was
}

// succeeded notes that messages of a topic are safe.
func (o *outcomes) succeeded(topic string) {
	o.change(topic, func(t *topicOutcomes) {
		t.count++
		t.success = t.count
	})
}

// failed notes that the transport refused a message.
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

// note keeps why the messages of a topic do not move, nil if they do.
func (o *outcomes) note(topic string, away error) {
	text := ""
	if away != nil {
		text = away.Error()
	}
	was := o.change(topic, func(t *topicOutcomes) { t.problem = text }).problem
	switch {
	case was == "" && text != "":
		o.logger.Warn("leat: sql: outbox blocked", "topic", topic, "error", away)
	case was != "" && text == "":
		o.logger.Info("leat: sql: outbox resumed", "topic", topic)
	}
}

// problem returns why messages do not move, nil if they do.
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
		text = fmt.Sprintf("%s (and %d topics more)", text, more)
	}
	return errors.New(text)
}
