package amqp

import (
	"errors"
	"fmt"
	"regexp"

	amqp "github.com/rabbitmq/amqp091-go"
)

// declarer declares, or only checks, one thing after the other, up to the first error: the broker
// closes the channel over it.
type declarer struct {
	ch      *amqp.Channel
	passive bool // only check
	err     error
}

// Named, because the calls take so many of them.
const (
	durable    = true
	autoDelete = false
	exclusive  = false
	internal   = false
	noWait     = false
	byBroker   = "" // a name that the broker chooses
)

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

// bind can't be checked, only made.
func (d *declarer) bind(queue, key, exchange string, args amqp.Table) {
	if d.err == nil && !d.passive {
		d.fail("binding to queue", queue, d.ch.QueueBind(queue, key, exchange, noWait, args))
	}
}

// bindExchange has what one exchange gets go to another as well.
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

// conflict says which argument differs, and the cure.
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
		return fmt.Errorf("it is not there and declare=false; make it, or leave declare out: %w", err)
	case refused.Code == amqp.AccessRefused:
		return fmt.Errorf("the user has no right to it; grant configure, write and read, or declare it yourself and use declare=false: %w", err)
	}
	return err
}

// ConflictError says that an exchange or a queue is there with another argument than leat wants.
type ConflictError struct {
	Argument string
	Wanted   string
	Found    string
	err      error
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("it is there with another %s: %s, and %s is wanted; %s", e.Argument, e.Found, e.Wanted, e.cure())
}

func (e *ConflictError) cure() string {
	switch e.Argument {
	case "x-single-active-consumer":
		return "the group was unordered and is now to be ordered by key or strictly, or the other way round; " +
			"give the handler another name, or make the queue anew as the package's documentation says under \"Changing the order of a group\""
	case "x-queue-type":
		return "choose it with the option queue, or delete the queue when it is empty"
	case "type":
		return "choose another exchange with the option exchange, or delete this one"
	}
	return "delete it when it is empty, or use declare=false to take it as it is"
}

func (e *ConflictError) Unwrap() error { return e.err }
