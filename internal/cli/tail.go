package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
)

type tail struct {
	connect `embed:""`

	JSON    bool   `name:"json" help:"Write CloudEvents, one per line, as input for leat publish."`
	Number  int    `short:"n" help:"Stop after this number of messages."`
	Pattern string `arg:"" optional:"" default:">" help:"A topic, or a pattern like order.* or order.>."`
}

var errEnough = errors.New("that were enough")

// Run shows copies until it is interrupted.
func (c *tail) Run(ctx context.Context, e *Env) error {
	if err := driver.ValidatePattern(c.Pattern); err != nil {
		return &UsageError{err}
	}
	return c.with(ctx, e, func(s *session) error {
		inspector, err := s.inspector()
		if err != nil {
			return err
		}
		seen := 0
		err = inspector.Tail(ctx, c.Pattern, func(topic string, msg *message.Message) error {
			if err := c.write(e, topic, msg); err != nil {
				return err
			}
			if seen++; seen == c.Number {
				return errEnough
			}
			return nil
		})
		if errors.Is(err, errEnough) || errors.Is(err, context.Canceled) {
			err = nil // the usual end
		}
		return err
	})
}

func (c *tail) write(e *Env, topic string, msg *message.Message) error {
	if c.JSON {
		msg.Metadata[driver.HeaderType] = cmp.Or(msg.Metadata[driver.HeaderType], topic)
		msg.Metadata[driver.HeaderSource] = cmp.Or(msg.Metadata[driver.HeaderSource], "unknown")
		event, err := bus.FormatCloudEvent(msg)
		if err != nil { // an invalid message of another producer must not end the tail
			_, err = fmt.Fprintf(e.Stderr, "skipped: %s\n", printable(err.Error()))
			return err
		}
		_, err = raw(e.Stdout).Write(append(event, '\n'))
		return err
	}
	at := driver.MessageTime(msg)
	if at.IsZero() {
		at = time.Now()
	}
	_, err := fmt.Fprintf(e.Stdout, "%s  %s  %s  %s\n", at.Local().Format("15:04:05.000"), printable(topic), printable(driver.MessageID(msg)),
		printable(short(string(msg.Payload), 200)))
	return err
}
