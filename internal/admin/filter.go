package admin

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/leatbus/leat/bus/driver"
)

// Filter chooses poisoned messages. What is empty does not filter.
type Filter struct {
	Topic   string // a topic or pattern
	Type    string // an event's name, with .v and the version or without
	Version int
	Class   string // of the error, as stats shows it; the * in front of a type may be left out
	Text    string // in the error or in the payload, in any case of letters
	Since   time.Time
	Until   time.Time
	Key     string   // partition key
	IDs     []string // places in the queue, or ids of events
}

// Match reports whether the filter chooses the message.
func (f Filter) Match(m driver.PoisonedMessage) bool {
	return (f.Topic == "" || driver.MatchTopic(f.Topic, m.Topic())) &&
		f.matchType(m) &&
		(f.Class == "" || SameClass(f.Class, m.Fault.Class)) &&
		(f.Text == "" || f.matchText(m)) &&
		(f.Since.IsZero() || !m.Fault.At.Before(f.Since)) &&
		(f.Until.IsZero() || m.Fault.At.Before(f.Until)) &&
		(f.Key == "" || f.Key == driver.PartitionKey(m.Message)) &&
		(len(f.IDs) == 0 || slices.Contains(f.IDs, m.ID) || slices.Contains(f.IDs, driver.MessageID(m.Message)))
}

// SameClass compares error classes. The * of a pointer, which a shell may take for its own, may be left out.
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

// Limits of the pages in which poison queues are read. pageBytes bounds what two pages after each other have in memory, as
// far as their messages are equally large.
const (
	pageSize  = 1000
	firstPage = 16
	pageBytes = 8 << 20
)

// pages calls visit with pages of a poison queue, from behind the message with the id after on, until it returns an error
// or false. Pages are as long as messages of the size of those before allow.
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

// sizeOf returns how many bytes of memory a message takes, about.
func sizeOf(m driver.PoisonedMessage) int {
	n := len(m.Message.Payload)
	for name, value := range m.Message.Metadata {
		n += len(name) + len(value)
	}
	return n
}

// Each calls visit with every message of a poison queue that the filter chooses, about in the order of their
// arrival, until it returns an error, which Each returns. What is poisoned meanwhile may come too. It reads the
// queue once if that is a [driver.PoisonWalker].
func Each(ctx context.Context, queue driver.PoisonQueue, f Filter, visit func(driver.PoisonedMessage) error) error {
	matching := func(m driver.PoisonedMessage) error {
		if !f.Match(m) {
			return nil
		}
		return visit(m)
	}
	if walker, ok := queue.(driver.PoisonWalker); ok {
		return walker.Walk(ctx, matching)
	}
	return pages(ctx, queue, "", func(page []driver.PoisonedMessage) (bool, error) {
		for _, m := range page {
			if err := matching(m); err != nil {
				return false, err
			}
		}
		return true, nil
	})
}
