package amqp

import (
	"errors"
	"fmt"
	"regexp"

	amqp "github.com/rabbitmq/amqp091-go"
)

// A declarer declares, or only checks, exchanges, queues and bindings until the first error, for which the broker closes the
// channel.
type declarer struct {
	ch      *amqp.Channel
	passive bool // only check
	err     error
}

// The arguments of most calls, with names because there are so many of them.
const (
	durable    = true
	autoDelete = false
	exclusive  = false
	internal   = false
	noWait     = false
	autoAck    = false
	noLocal    = false
	mandatory  = true
	immediate  = false
	single     = false // an ack is for one message,
	upTo       = true  // or for all up to that one
	byBroker   = ""    // a name that the broker chooses
)

// consume begins to consume a queue. The prefetch is for the consumers of the channel that begin from now on; 0 is no limit.
func consume(ch *amqp.Channel, queue, tag string, prefetch int, alone bool, args amqp.Table) (<-chan amqp.Delivery, error) {
	const size, global = 0, false
	if err := ch.Qos(prefetch, size, global); err != nil {
		return nil, err
	}
	return ch.Consume(queue, tag, autoAck, alone, noLocal, noWait, args)
}

func (d *declarer) exchange(name, kind string, args amqp.Table) {
	if d.err != nil {
		return
	}
	declare := d.ch.ExchangeDeclare
	if d.passive {
		declare = d.ch.ExchangeDeclarePassive
	}
	d.fail("exchange", name, declare(name, kind, durable, autoDelete, internal, noWait, args))
}

func (d *declarer) queue(name string, args amqp.Table) {
	if d.err != nil {
		return
	}
	declare := d.ch.QueueDeclare
	if d.passive {
		declare = d.ch.QueueDeclarePassive
	}
	_, err := declare(name, durable, autoDelete, exclusive, noWait, args)
	d.fail("queue", name, err)
}

// bind makes a binding. If the declarer is passive it does nothing, because a binding can't be checked.
func (d *declarer) bind(queue, key, exchange string, args amqp.Table) {
	if d.err == nil && !d.passive {
		d.fail("binding to queue", queue, d.ch.QueueBind(queue, key, exchange, noWait, args))
	}
}

// bindExchange binds one exchange to another, from which it gets messages.
func (d *declarer) bindExchange(to, key, from string) {
	if d.err == nil && !d.passive {
		d.fail("binding to exchange", to, d.ch.ExchangeBind(to, key, from, noWait, nil))
	}
}

func (d *declarer) fail(what, name string, err error) {
	if err != nil {
		d.err = fmt.Errorf("%s %q: %w", what, name, conflict(err, d.passive))
	}
}

// inequivalent is how RabbitMQ words a conflict.
var inequivalent = regexp.MustCompile(`inequivalent arg '([^']+)'.*?received (?:the value )?(.*?) but current is (?:the value )?(.*)`)

// conflict returns an error that says which argument differs, and the fix.
func conflict(err error, passive bool) error {
	var refused *amqp.Error
	if !errors.As(err, &refused) {
		return err
	}
	switch {
	case refused.Code == amqp.PreconditionFailed:
		if m := inequivalent.FindStringSubmatch(refused.Reason); m != nil {
			return &ConflictError{Argument: m[1], Wanted: m[2], Found: m[3], err: err}
		}
	case refused.Code == amqp.NotFound && passive:
		return fmt.Errorf("it does not exist and declare=false; declare it, or leave declare out: %w", err)
	case refused.Code == amqp.AccessRefused && passive:
		return fmt.Errorf("the user has no right to it; grant write or read (RabbitMQ 4.2.6 and 4.3.0 want configure, others any right): %w", err)
	case refused.Code == amqp.AccessRefused:
		return fmt.Errorf("the user has no right to it; grant configure, write and read, or declare it yourself and use declare=false: %w", err)
	}
	return err
}

// ConflictError is the error of an exchange or a queue that exists with another argument than leat declares.
type ConflictError struct {
	Argument string
	Wanted   string
	Found    string
	err      error
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("it exists with another %s: %s, and %s is wanted; %s", e.Argument, e.Found, e.Wanted, e.fix())
}

func (e *ConflictError) fix() string {
	switch e.Argument {
	case "x-single-active-consumer":
		return "the group was unordered and is now to be ordered by key or strictly, or the other way round; " +
			"give the handler another name; or let the group run empty, stop its processes, delete it with leat groups rm, and start them again. " +
			"That deletes poisoned messages, too; to keep them, see \"Changing the order of a group\" in the package's documentation"
	case "x-queue-type":
		return "choose it with the option queue, or delete the queue when it is empty"
	case "type":
		return "choose another exchange with the option exchange, or delete this one"
	}
	return "delete it when it is empty, or use declare=false to take it as it is"
}

func (e *ConflictError) Unwrap() error { return e.err }
