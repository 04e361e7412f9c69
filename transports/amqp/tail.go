package amqp

import (
	"context"
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

const (
	// A tail's queue keeps so much for a reader that is slow; then the oldest copies go.
	tailMessages = 10_000
	tailBytes    = 64 << 20
	tailPrefetch = 100
)

// Tail reads from a queue of its own, which goes away with its connection. Copies that are published
// while the connection is lost are missing. With topology=watermill a pattern is that of the topics
// known when Tail begins. A user without the right to make queues can't tail.
func (t *Transport) Tail(ctx context.Context, pattern string, fn func(topic string, msg *message.Message) error) error {
	if err := driver.ValidatePattern(pattern); err != nil {
		return fmt.Errorf("amqp: tail: %w", err)
	}
	tl := tail{pattern: pattern, fn: fn}
	pause := newBackoff()
	for {
		err := t.inspect(ctx, "tail "+pattern, tl.run)
		switch {
		case tl.ended != nil:
			return tl.ended
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !tl.began, errors.Is(err, driver.ErrClosed):
			return err
		}
		t.cfg.Logger.Warn("leat: amqp: tail is interrupted", "pattern", pattern, "error", err)
		if !pause.Wait(ctx) {
			return context.Cause(ctx)
		}
	}
}

// tail is one call of Tail, over as many connections as it takes.
type tail struct {
	pattern string
	fn      func(topic string, msg *message.Message) error
	began   bool  // it has been connected
	ended   error // fn's
}

var errTailLost = errors.New("the connection was lost")

func (tl *tail) run(i *inspection) error {
	deliveries, err := tl.listen(i)
	switch {
	case isCode(err, amqp.AccessRefused):
		return fmt.Errorf("the user has no right to make a queue for the copies (amq.gen-*) or to read from the exchange: %w", err)
	case err != nil:
		return err
	}
	tl.began = true
	for {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return errTailLost
			}
			if tl.ended = tl.show(i, &d); tl.ended != nil {
				return tl.ended
			}
		case <-i.ctx.Done():
			return context.Cause(i.ctx)
		}
	}
}

// listen makes the queue and begins to consume.
func (tl *tail) listen(i *inspection) (<-chan amqp.Delivery, error) {
	exchanges, err := tl.exchanges(i)
	if err != nil {
		return nil, err
	}
	ch, err := i.conn.Channel()
	if err != nil {
		return nil, err
	}
	const transient, deleted, ours = false, true, true
	q, err := ch.QueueDeclare(byBroker, transient, deleted, ours, noWait, amqp.Table{
		"x-queue-type": string(Classic), "x-max-length": int64(tailMessages), "x-max-length-bytes": int64(tailBytes),
	})
	if err != nil {
		return nil, err
	}
	for _, exchange := range exchanges {
		if err := ch.QueueBind(q.Name, bindingKey(tl.pattern), exchange, noWait, nil); err != nil {
			return nil, fmt.Errorf("exchange %q: %w", exchange, err)
		}
	}
	const size, global = 0, false
	if err := ch.Qos(tailPrefetch, size, global); err != nil {
		return nil, err
	}
	const autoAck, noLocal = false, false
	return ch.Consume(q.Name, "tail", autoAck, ours, noLocal, noWait, nil)
}

// exchanges are where the copies come from: one, or one for each topic.
func (tl *tail) exchanges(i *inspection) ([]string, error) {
	if !i.t.topology.watermill() {
		return []string{i.t.cfg.ExchangeName}, nil
	}
	if driver.ValidateTopic(tl.pattern) == nil {
		return []string{tl.pattern}, nil
	}
	topics, err := i.t.Topics(i.ctx)
	if err != nil {
		return nil, err
	}
	var matching []string
	for _, t := range topics {
		if driver.MatchTopic(tl.pattern, t.Topic) {
			matching = append(matching, t.Topic)
		}
	}
	if matching == nil {
		return nil, fmt.Errorf("with topology=watermill a pattern finds only topics that a leat group asks for, and none of those matches; name the topic: %w", driver.ErrUnsupported)
	}
	return matching, nil
}

func (tl *tail) show(i *inspection, d *amqp.Delivery) error {
	const multiple = false
	msg := new(message.Message)
	distrust(d)
	unmarshal(msg, d, nil)
	if err := tl.fn(topicOf(d, "", &i.t.cfg), msg); err != nil {
		return err
	}
	_ = d.Ack(multiple) // where that fails the connection is lost, and the next read tells
	return nil
}
