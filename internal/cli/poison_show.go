package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

type poisonShow struct {
	connect `embed:""`
	output  `embed:""`

	Group   string `placeholder:"GROUP" help:"Its group, if the id is in more than one."`
	Payload bool   `help:"Write only the payload, byte for byte."`
	ID      string `arg:"" name:"id" help:"Its id in the queue, or the event's id, or at least the last 6 characters of it."`
}

// Run shows the message.
func (c *poisonShow) Run(ctx context.Context, e *Env) error {
	return c.with(ctx, e, func(s *session) error {
		queue, m, err := named(c.Group).one(ctx, s, c.ID)
		switch {
		case err != nil:
			return err
		case c.Payload:
			_, err = raw(s.Stdout).Write(m.Message.Payload)
			return err
		case c.JSON:
			return s.line(admin.Full(queue.group, m))
		}
		return writeMessage(s.Stdout, queue.group, m)
	})
}

// named returns a filter for one group, or for all if it is empty.
func named(group string) filter {
	if group == "" {
		return filter{}
	}
	return filter{Group: []string{group}}
}

func writeMessage(w io.Writer, group string, m driver.PoisonedMessage) error {
	r := admin.Full(group, m)
	writePairs(w, "", [][2]string{
		{"id", r.ID},
		{"group", r.Group},
		{"topic", r.Topic},
		{"event", r.EventID},
		{"type", versioned(r)},
		{"key", r.Key},
		{"error", r.Error},
		{"class", r.Class},
		{"chain", r.Chain},
		{"trace", r.TraceID},
		{"attempts", fmt.Sprintf("%d, with %d tries", r.Attempts, r.Tries)},
		{"first seen", stamp(r.FirstAt)},
		{"first failed", stamp(r.FailedAt)},
		{"poisoned", stamp(r.At)},
		{"handler", r.Handler},
		{"process", fmt.Sprintf("%s/%d, %s", r.Host, r.PID, r.Build)},
	})
	if r.Stack != "" {
		fmt.Fprintln(w, "\nstack")
		for line := range strings.Lines(r.Stack) {
			fmt.Fprintf(w, "  %s\n", printable(strings.ReplaceAll(strings.TrimSuffix(line, "\n"), "\t", "    ")))
		}
	}
	fmt.Fprintln(w, "\nheaders")
	headers := maps.Clone(m.Message.Metadata)
	driver.ClearFault(headers)
	for _, name := range slices.Sorted(maps.Keys(headers)) {
		fmt.Fprintf(w, "  %s: %s\n", printable(name), printable(headers[name]))
	}
	_, err := fmt.Fprintf(w, "\npayload, %d bytes\n%s\n", len(m.Message.Payload), readable(m.Message.Payload))
	return err
}

// readable returns a payload for people.
func readable(payload []byte) string {
	var indented bytes.Buffer
	switch {
	case json.Indent(&indented, payload, "  ", "  ") == nil:
		return "  " + indented.String()
	case utf8.Valid(payload):
		return "  " + printable(string(payload))
	default:
		return fmt.Sprintf("  %x", payload)
	}
}

func stamp(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}
