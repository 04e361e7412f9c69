package admin

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

// A Filter selects poisoned messages. Empty fields are ignored.
type Filter struct {
	Topic   string // a topic or pattern
	Type    string // an event's name, with .v and the version or without
	Version int
	Class   string // of the error, as stats shows it; the * in front of a type is optional
	Text    string // in the error or in the payload, ignoring case
	Since   time.Time
	Until   time.Time
	Key     string   // partition key
	IDs     []string // ids in the queue, or of events

	CorrelationID string
}

// Match reports whether the filter selects the message.
func (f Filter) Match(m driver.PoisonedMessage) bool {
	return (f.Topic == "" || driver.MatchTopic(f.Topic, m.Topic())) &&
		f.matchType(m) &&
		(f.Class == "" || SameClass(f.Class, m.Fault.Class)) &&
		(f.Text == "" || f.matchText(m)) &&
		(f.Since.IsZero() || !m.Fault.At.Before(f.Since)) &&
		(f.Until.IsZero() || m.Fault.At.Before(f.Until)) &&
		(f.Key == "" || f.Key == driver.PartitionKey(m.Message)) &&
		(f.CorrelationID == "" || f.CorrelationID == bus.EnvelopeOf(m.Message).CorrelationID) &&
		(len(f.IDs) == 0 || slices.Contains(f.IDs, m.ID) || slices.Contains(f.IDs, driver.MessageID(m.Message)))
}

// SameClass compares error classes. The * of a pointer is optional, since shells expand it.
func SameClass(a, b string) bool { return strings.TrimLeft(a, "*") == strings.TrimLeft(b, "*") }

func (f Filter) matchType(m driver.PoisonedMessage) bool {
	if f.Type == "" && f.Version == 0 {
		return true
	}
	t, err := typeOf(m)
	if err != nil {
		return false
	}
	return (f.Type == "" || f.Type == t.Name || f.Type == t.String()) && (f.Version == 0 || f.Version == t.Version)
}

func (f Filter) matchText(m driver.PoisonedMessage) bool {
	text := strings.ToLower(f.Text)
	return strings.Contains(strings.ToLower(m.Fault.Text), text) ||
		bytes.Contains(bytes.ToLower(m.Message.Payload), []byte(text))
}

// Limits of the pages in which poison queues are read. pageBytes limits the memory of two consecutive pages, if their
// messages have similar sizes.
const (
	pageSize  = 1000
	firstPage = 16
	pageBytes = 8 << 20
)

// pages calls visit with pages of a poison queue, which start behind the message with the id after, until visit returns an
// error or false. The length of a page depends on the size of the previous messages.
func pages(ctx context.Context, queue driver.PoisonQueue, after string, visit func([]driver.PoisonedMessage) (more bool, _ error)) error {
	for size := firstPage; ; {
		page, err := queue.List(ctx, after, size)
		if err != nil || len(page) == 0 {
			return err
		}
		more, err := visit(page)
		if err != nil || !more {
			return err
		}
		bytes := 1
		for _, m := range page {
			bytes += sizeOf(m)
		}
		size = max(1, min(2*size, len(page)*pageBytes/bytes, pageSize))
		after = page[len(page)-1].ID
	}
}

// sizeOf returns the approximate size of a message in memory, in bytes.
func sizeOf(m driver.PoisonedMessage) int {
	n := len(m.Message.Payload)
	for name, value := range m.Message.Metadata {
		n += len(name) + len(value)
	}
	return n
}

// Each calls visit with every message of a poison queue behind the one with the id after, "" for all, until it returns an error,
// which Each returns. The order is approximately that of arrival. It may include messages that are poisoned meanwhile. It reads the
// queue once if that is a [driver.PoisonWalker].
func Each(ctx context.Context, queue driver.PoisonQueue, after string, visit func(driver.PoisonedMessage) error) error {
	passed := after == ""
	if walker, ok := queue.(driver.PoisonWalker); ok {
		return walker.Walk(ctx, func(m driver.PoisonedMessage) error {
			if !passed {
				passed = m.ID == after
				return nil
			}
			return visit(m)
		})
	}
	return pages(ctx, queue, after, func(page []driver.PoisonedMessage) (bool, error) {
		for _, m := range page {
			if err := visit(m); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}
