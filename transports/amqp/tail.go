package amqp

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/leatbus/leat/bus/driver"
)

const (
	// The limits of a tail's queue. If its reader is slow, the oldest copies are dropped.
	tailMessages = 10_000
	tailBytes    = 64 << 20
	tailPrefetch = 100
	// unbindWithin is how long a tail that ends may take to unbind its queue.
	unbindWithin = time.Second
)

// Tail reads copies from its own queue, which the broker deletes when the connection ends. Messages that are published while the
// connection is lost are missing. With topology=watermill a pattern matches the topics that are known when Tail begins. The user
// needs the right to declare queues.
func (t *Transport) Tail(ctx context.Context, pattern string, fn func(topic string, msg *message.Message) error) error {
	if err := driver.ValidatePattern(pattern); err != nil {
		return fmt.Errorf("amqp: tail: %w", err)
	}
	tl := tail{t: t, pattern: pattern, fn: fn, done: ctx.Done()}
	longer, end := lingering(ctx, unbindWithin)
	defer end()
	pause := newBackoff()
	for {
		err := t.inspector.inspect(longer, "tail "+pattern, tl.run)
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
	t       *Transport
	pattern string
	fn      func(topic string, msg *message.Message) error
	done    <-chan struct{} // closed when the caller gives up
	began   bool            // it has been connected
	ended   error           // of fn
}

var errTailLost = errors.New("the connection was lost")

func (tl *tail) run(i *inspection) error {
	deliveries, unbind, err := tl.listen(i)
	switch {
	case isCode(err, amqp.AccessRefused):
		return fmt.Errorf("the user has no right to declare a queue for the copies (amq.gen-*) or to read from the exchange: %w", err)
	case err != nil:
		return err
	}
	tl.began = true
	defer unbind()
	for {
		select {
		case d, ok := <-deliveries:
			if !ok {
				return errTailLost
			}
			if tl.ended = tl.show(&d); tl.ended != nil {
				return tl.ended
			}
		case <-tl.done:
			return context.Canceled
		case <-i.ctx.Done():
			return context.Cause(i.ctx)
		}
	}
}

// listen declares the queue and begins to consume. unbind must be called before the queue is deleted: RabbitMQ 4 refuses a message
// (basic.nack) if one of its queues is deleted before it has the message.
func (tl *tail) listen(i *inspection) (deliveries <-chan amqp.Delivery, unbind func(), err error) {
	sources, err := tl.sources(i)
	if err != nil {
		return nil, nil, err
	}
	ch, err := i.conn.Channel()
	if err != nil {
		return nil, nil, err
	}
	const transient, deleted, ours = false, true, true
	q, err := ch.QueueDeclare(byBroker, transient, deleted, ours, noWait, amqp.Table{
		"x-queue-type": string(Classic), "x-max-length": int64(tailMessages), "x-max-length-bytes": int64(tailBytes),
	})
	if err != nil {
		return nil, nil, err
	}
	for _, from := range sources {
		if err := ch.QueueBind(q.Name, from.key, from.exchange, noWait, nil); err != nil {
			return nil, nil, fmt.Errorf("exchange %q: %w", from.exchange, err)
		}
	}
	unbind = func() {
		defer time.AfterFunc(unbindWithin, func() { _ = i.conn.CloseDeadline(time.Now()) }).Stop()
		for _, from := range sources {
			_ = ch.QueueUnbind(q.Name, from.key, from.exchange, nil)
		}
	}
	deliveries, err = consume(ch, q.Name, "tail", tailPrefetch, ours, nil)
	return deliveries, unbind, err
}

// sources returns the exchanges of the copies: one, or with topology=watermill one for each topic.
func (tl *tail) sources(i *inspection) ([]address, error) {
	if !tl.t.topology.watermill() {
		return []address{{tl.t.cfg.ExchangeName, bindingKey(tl.pattern)}}, nil
	}
	matching, err := tl.topics(i)
	if err != nil {
		return nil, err
	}
	all := make([]address, len(matching))
	for n, topic := range matching {
		if all[n] = tl.t.cfg.stock.of(topic); all[n].exchange == "" {
			return nil, fmt.Errorf("topic %s is published to the default exchange, from which copies are not possible: %w", topic, driver.ErrUnsupported)
		}
	}
	return all, nil
}

// topics returns those that match the pattern, of topology=watermill.
func (tl *tail) topics(i *inspection) ([]string, error) {
	if driver.ValidateTopic(tl.pattern) == nil {
		return []string{tl.pattern}, nil
	}
	topics, err := tl.t.Topics(i.ctx)
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
		return nil, fmt.Errorf("with topology=watermill a pattern matches only topics of leat groups, and it matches none of them; use the topic's name: %w", driver.ErrUnsupported)
	}
	return matching, nil
}

func (tl *tail) show(d *amqp.Delivery) error {
	msg := new(message.Message)
	dropForeignHeaders(d)
	unmarshal(msg, d, nil, tl.t.cfg.stock)
	if err := tl.fn(topicOf(d, "", &tl.t.cfg), msg); err != nil {
		return err
	}
	_ = d.Ack(single) // if it fails, the connection is lost, and the next read fails too
	return nil
}
