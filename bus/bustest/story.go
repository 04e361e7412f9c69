package bustest

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// story is an observer that records what happened to all messages.
type story struct {
	mu        sync.Mutex
	published []*message.Message
	ends      []end
}

// end is the end of one delivery.
type end struct {
	id, group   string
	attempt     int
	tries       int
	observation bus.Observation
}

func (s *story) Published(_ context.Context, p bus.Publication) {
	if p.Err != nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.published = append(s.published, p.Messages...)
}

func (s *story) Started(ctx context.Context, _ *bus.Delivery) context.Context { return ctx }

func (s *story) Finished(_ context.Context, d *bus.Delivery, o bus.Observation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends = append(s.ends, end{driver.MessageID(d.Message), d.Group, d.Attempt, d.Try, o})
}

// messages returns the messages of a topic, in the order of their publishing.
func (s *story) messages(topic string) (found []*message.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, msg := range s.published {
		if driver.TopicOf(msg) == topic {
			found = append(found, msg)
		}
	}
	return found
}

// distinct returns the messages of a topic, each once even if it was published again.
func (s *story) distinct(topic string) (found []*message.Message) {
	seen := make(map[string]bool)
	for _, msg := range s.messages(topic) {
		if id := bus.Attach(msg).Identity(); !seen[id] {
			seen[id] = true
			found = append(found, msg)
		}
	}
	return found
}

func (s *story) outcomes(group string, want bus.Outcome) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.ends {
		if e.group == group && e.observation.Outcome == want {
			n++
		}
	}
	return n
}

// String returns a text that says what happened to each message.
func (s *story) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	b.WriteString("what happened:\n")
	if len(s.published) == 0 {
		b.WriteString("  nothing was published\n")
	}
	shown := make(map[string]bool)
	for _, msg := range s.published {
		id := driver.MessageID(msg)
		fmt.Fprintf(&b, "  %s %s %s\n", driver.TopicOf(msg), id, driver.OneLine(string(msg.Payload), 120))
		if shown[id] {
			b.WriteString("    published again; see above\n")
			continue
		}
		shown[id] = true
		s.describe(&b, id)
	}
	return b.String()
}

func (s *story) describe(b *strings.Builder, id string) {
	n := 0
	for _, e := range s.ends {
		if e.id != id {
			continue
		}
		n++
		fmt.Fprintf(b, "    %s, attempt %d", e.group, e.attempt)
		if e.tries > 0 { // the handler was called
			fmt.Fprintf(b, ", up to try %d", e.tries)
		}
		fmt.Fprintf(b, ": %s", e.observation.Outcome)
		if err := e.observation.Err; err != nil {
			fmt.Fprintf(b, ": %s", driver.OneLine(err.Error(), 240))
		}
		b.WriteByte('\n')
	}
	if n == 0 {
		b.WriteString("    reached no handler\n")
	}
}

func (*story) BreakerChanged(bus.BreakerChange) {}
