package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/leatbus/leat/bus"
	"github.com/leatbus/leat/bus/driver"
	"github.com/leatbus/leat/internal/admin"
)

type publish struct {
	connect `embed:""`

	Type        string `placeholder:"TYPE" help:"Publish one event of this type, like order.paid.v1, with --data."`
	Data        string `placeholder:"DATA" help:"The event's payload; @file reads a file, @- the standard input."`
	ContentType string `placeholder:"TYPE" help:"The content type of the data, if it is not JSON."`
	ID          string `name:"id" help:"The event's id. An id that was used before is a duplicate."`
	Source      string `default:"leat" help:"The event's source."`
	Subject     string `help:"The event's subject."`
	Key         string `help:"The event's partition key."`

	File string `arg:"" optional:"" help:"CloudEvents in JSON, one or many; - is the standard input."`
}

// Run publishes the messages and prints their ids.
func (c *publish) Run(ctx context.Context, e *Env) error {
	msgs, err := c.read(e)
	if err != nil {
		return err
	}
	return c.with(ctx, e, func(s *session) error {
		for i, msg := range msgs {
			if s.Check == nil {
				break
			}
			if err := s.Check(msg); err != nil {
				return usage("message %d of %d, %s: %w; nothing was published", i+1, len(msgs), driver.MessageID(msg), err)
			}
		}
		for i, msg := range msgs {
			if err := s.publish(ctx, msg); err != nil {
				return fmt.Errorf("message %d of %d, %s: %w", i+1, len(msgs), driver.MessageID(msg), err)
			}
		}
		which := ""
		if len(msgs) == 1 {
			which = ", id " + printable(driver.MessageID(msgs[0]))
		}
		_, err := fmt.Fprintf(e.Stdout, "published %s%s\n", messages(len(msgs)), which)
		return err
	})
}

func (s *session) publish(ctx context.Context, msg *message.Message) error {
	ctx, cancel := s.soon(ctx)
	defer cancel()
	err := s.Publish(ctx, driver.TopicOf(msg), msg)
	if errors.Is(err, driver.ErrUnroutable) {
		return fmt.Errorf("no group subscribes to %s, so the message was dropped; %s topics shows the topics of groups", driver.TopicOf(msg), s.Program)
	}
	return err
}

func (c *publish) read(e *Env) ([]*message.Message, error) {
	switch {
	case c.Type != "" && c.File != "":
		return nil, usage("give a file or --type, not both")
	case c.Type != "":
		msg, err := c.event(e)
		return []*message.Message{msg}, err
	case c.File == "":
		return nil, usage("give a file with CloudEvents, - for the standard input, or --type and --data")
	}
	events, err := readJSON[json.RawMessage](e, c.File, "event")
	if err != nil {
		return nil, err
	}
	msgs := make([]*message.Message, len(events))
	for i, event := range events {
		if msgs[i], err = bus.ParseCloudEvent(event); err == nil {
			err = driver.ValidateTopic(driver.TopicOf(msgs[i]))
		}
		if err != nil {
			return nil, usage("%s: event %d: %w", c.File, i+1, err)
		}
	}
	return msgs, nil
}

// event returns a message from the flags.
func (c *publish) event(e *Env) (*message.Message, error) {
	data, err := e.value(c.Data)
	if err != nil {
		return nil, err
	}
	msg, err := admin.Event{
		Type: c.Type, ID: c.ID, Source: c.Source, Subject: c.Subject, Key: c.Key, ContentType: c.ContentType, Data: data,
	}.Message()
	switch {
	case errors.Is(err, admin.ErrNoJSON):
		return nil, usage("--data is not JSON; set --content-type")
	case err != nil:
		return nil, &UsageError{err}
	}
	return msg, nil
}
